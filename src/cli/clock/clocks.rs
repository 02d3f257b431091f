//! Single clocks: compare, tick, merge.

use std::fs::File;
use std::io::{self, Read};

use clap::ValueEnum;

use crate::cli::exit::Exit;
use crate::cli::output;
use crate::cli::report::Failure;
use crate::proto::clock::{Causality, Clock};
use crate::proto::id::ActorId;
use crate::proto::limits;

/// How two clocks lie to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Word {
    /// A happened before B.
    Before,
    /// A happened after B.
    After,
    /// They are the same.
    Equal,
    /// Neither knew of the other.
    Concurrent,
}

impl From<Causality> for Word {
    fn from(causality: Causality) -> Self {
        match causality {
            Causality::Before => Self::Before,
            Causality::After => Self::After,
            Causality::Equal => Self::Equal,
            Causality::Concurrent => Self::Concurrent,
        }
    }
}

impl Word {
    const fn text(self) -> &'static str {
        match self {
            Self::Before => "before",
            Self::After => "after",
            Self::Equal => "equal",
            Self::Concurrent => "concurrent",
        }
    }
}

/// Reads the clocks of the arguments in their order; stdin may be named once.
fn read(sources: &[&str]) -> Result<Vec<Clock>, Failure> {
    if sources.iter().filter(|source| **source == "-").count() > 1 {
        return Err(Failure::usage("only one clock can come from stdin"));
    }
    sources.iter().map(|source| read_one(source)).collect()
}

fn read_one(source: &str) -> Result<Clock, Failure> {
    let (name, text) = match (source, source.strip_prefix('@')) {
        ("-", _) => ("stdin".to_owned(), read_all("stdin", &mut io::stdin().lock())?),
        (_, Some(path)) => {
            let failed = |error: &io::Error| Failure::io(format_args!("cannot read {path}"), error);
            let mut file = File::open(path).map_err(|error| failed(&error))?;
            (path.to_owned(), read_all(path, &mut file)?)
        }
        (text, None) => ("the argument".to_owned(), text.to_owned()),
    };
    serde_json::from_str(&text).map_err(|error| {
        Failure::new(Exit::Data, format_args!("{name} is no clock: {error}"))
            .hint(r#"a clock is a JSON object of counters, as in '{"north":3,"van2":1}'"#)
    })
}

fn read_all(name: &str, from: &mut dyn Read) -> Result<String, Failure> {
    let mut bytes = vec![];
    let read = from.take(limits::LINE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes);
    read.map_err(|error| Failure::io(format_args!("cannot read {name}"), &error))?;
    if bytes.len() > limits::LINE_BYTES_MAX {
        let max = limits::LINE_BYTES_MAX;
        return Err(Failure::new(Exit::Data, format_args!("{name} is over {max} bytes")));
    }
    String::from_utf8(bytes)
        .map_err(|_| Failure::new(Exit::Data, format_args!("{name} is not UTF-8")))
}

/// Says how one clock lies to another.
pub(super) fn compare(a: &str, b: &str, is: Option<Word>) -> Result<Exit, Failure> {
    let clocks = read(&[a, b])?;
    let word = Word::from(clocks[0].compare(&clocks[1]));
    match is {
        Some(wanted) if wanted == word => Ok(Exit::Done),
        Some(_) => Ok(Exit::No),
        None => {
            output::text(&format!("{}\n", word.text()))?;
            Ok(Exit::Done)
        }
    }
}

/// Counts one event of an actor.
pub(super) fn tick(actor: &ActorId, clock: Option<&str>) -> Result<Exit, Failure> {
    let mut clock = match clock {
        Some(source) => read_one(source)?,
        None => Clock::new(),
    };
    if clock.get(actor) == limits::COUNTER_MAX {
        return Err(Failure::new(Exit::Data, format_args!("the counter of {actor} is at its end")));
    }
    clock.tick(actor);
    if clock.len() > limits::CLOCK_ENTRIES_MAX {
        let max = limits::CLOCK_ENTRIES_MAX;
        return Err(Failure::new(Exit::Data, format_args!("a clock has at most {max} entries")));
    }
    output::line(&clock)?;
    Ok(Exit::Done)
}

/// Prints the least clock that covers all.
pub(super) fn merge(sources: &[String]) -> Result<Exit, Failure> {
    let sources: Vec<&str> = sources.iter().map(String::as_str).collect();
    let mut merged = Clock::new();
    for clock in read(&sources)? {
        merged.merge(&clock);
    }
    if merged.len() > limits::CLOCK_ENTRIES_MAX {
        let max = limits::CLOCK_ENTRIES_MAX;
        return Err(Failure::new(Exit::Data, format_args!("a clock has at most {max} entries")));
    }
    output::line(&merged)?;
    Ok(Exit::Done)
}
