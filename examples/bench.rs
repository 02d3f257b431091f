//! The measurements of `scripts/bench`: what jobs cost, beside the floors of the same run.
//!
//! Every round measures each row that was asked for once, a figure close to its floor, so that a
//! machine that slows down slows both; a figure is the median of the rounds. Prints Markdown on
//! stdout and on stderr how far it is. The daemons that it starts die with it.
//! Judges nothing: a missed target is a word in a table, not a failure.

#[path = "bench/floors.rs"]
mod floors;
#[path = "bench/load.rs"]
mod load;
#[path = "bench/measure.rs"]
mod measure;
#[path = "bench/rows.rs"]
mod rows;
#[path = "bench/site.rs"]
mod site;
#[path = "bench/table.rs"]
mod table;

use std::path::PathBuf;

use crate::measure::Outcome;
use crate::rows::{ROWS, Round, Row, Sizes};
use crate::site::Place;
use crate::table::Table;

/// So many, and a middle one can be named.
const ROUNDS: usize = 3;

/// What is measured, and where.
struct Settings {
    rows: Vec<&'static Row>,
    place: Place,
    sizes: Sizes,
}

fn settings(args: &[String]) -> Outcome<Settings> {
    let [bin, folder, threads, rest @ ..] = args else {
        return Err("usage: bench BIN FOLDER THREADS [--quick] [ROW...], or bench --list".into());
    };
    let quick = rest.iter().any(|arg| arg == "--quick");
    let named: Vec<&String> = rest.iter().filter(|arg| *arg != "--quick").collect();
    if let Some(unknown) = named.iter().find(|name| !ROWS.iter().any(|row| row.name == ***name)) {
        return Err(format!("there is no row {unknown:?}: see --list").into());
    }
    let wanted = |row: &&Row| named.is_empty() || named.iter().any(|name| *name == row.name);
    Ok(Settings {
        rows: ROWS.iter().filter(wanted).collect(),
        place: Place {
            bin: PathBuf::from(bin),
            folder: PathBuf::from(folder),
            slots: threads.parse()?,
        },
        sizes: if quick { Sizes::QUICK } else { Sizes::WHOLE },
    })
}

#[allow(clippy::print_stdout, reason = "the tables are what this program is for")]
#[allow(clippy::print_stderr, reason = "a whole run is long: it says how far it is")]
fn main() -> Outcome<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.iter().any(|arg| arg == "--list") {
        ROWS.iter().for_each(|row| println!("{:13} {}", row.name, row.about));
        return Ok(());
    }
    let Settings { rows, place, sizes } = settings(&args)?;
    let mut tables: Vec<Table> = rows.iter().map(|_| Table::default()).collect();
    let mut isolation = vec![];
    for number in 1..=ROUNDS {
        let round = Round::new(&place, &sizes);
        for (row, table) in rows.iter().zip(&mut tables) {
            for figure in (row.measure)(&round)? {
                eprintln!("round {number}, {}: {figure}", row.name);
                table.add(figure);
            }
        }
        isolation = round.isolation();
    }
    for line in isolation {
        println!("- {line}");
    }
    for (row, table) in rows.iter().zip(&tables) {
        println!("\n### {}: {}\n\n{table}", row.name, row.about);
    }
    Ok(())
}
