//! `ucp-submit`: the client. Submits jobs, follows them, and asks about them.
//!
//! Keeps no state of its own: job ids are drawn here, so whatever was not acknowledged is simply
//! sent again, to the same broker or to the one that comes after it. Only one connection is used
//! for a job and its output. Everything runs on one thread, as starting must cost little.

mod each;
mod flags;
mod interrupt;
mod line;
mod link;
mod outcome;
mod query;
mod run;
mod stdin;
mod table;
mod wait;

use std::process::ExitCode;

use crate::cli::args;
use crate::cli::exit::Exit;
use crate::cli::report::{Failure, Reporter};

use self::flags::{Cli, Command, Mode};
use self::link::Link;

const PROGRAM: &str = "ucp-submit";

/// Runs the command line to its end.
#[must_use]
pub fn main() -> ExitCode {
    end().into()
}

fn end() -> Exit {
    let (cli, matches) = match args::parse::<Cli>(PROGRAM) {
        Ok(parsed) => parsed,
        Err(exit) => return exit,
    };
    let reporter = Reporter::begin(PROGRAM, &cli.common, cli.json);
    let checked = cli.mode(&matches);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::io("cannot start", &error));
    let (mode, runtime) = match (checked, runtime) {
        (Ok(mode), Ok(runtime)) => (mode, runtime),
        (Err(failure), _) | (_, Err(failure)) => return reporter.failure(&failure),
    };
    let ended = runtime.block_on(dispatch(&cli, mode, reporter));
    // Name look-ups that still run must not hold up the end.
    runtime.shutdown_background();
    ended.unwrap_or_else(|failure| reporter.failure(&failure))
}

async fn dispatch(cli: &Cli, mode: Mode<'_>, reporter: Reporter) -> Result<Exit, Failure> {
    let mut link = Link::new(&cli.broker, reporter);
    match mode {
        Mode::One(flags) if cli.json => run::report(flags, &mut link, reporter).await,
        Mode::One(flags) => run::follow(flags, &mut link, reporter).await,
        Mode::Many(flags) => each::filter(flags, &mut link, reporter).await,
        Mode::Ask(command) => match command {
            Command::List(flags) => query::list(flags, cli, &mut link).await,
            Command::Show(flags) => query::show(flags, cli, &mut link).await,
            Command::Why(flags) => query::why(flags, cli, &mut link).await,
            Command::Cancel(flags) => {
                query::change("cancel", &flags.jobs, &mut link, reporter).await
            }
            Command::Rerun(flags) => query::change("rerun", &flags.jobs, &mut link, reporter).await,
            Command::Wait(flags) => wait::wait(flags, &mut link, reporter).await,
            Command::Output(flags) => wait::output(flags, &mut link, reporter).await,
        },
    }
}
