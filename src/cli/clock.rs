//! `ucp-clock`: a pure filter over vector clocks and histories. Asks no broker, keeps no file.
//!
//! `compare`, `tick` and `merge` take clocks as arguments: JSON, `@FILE`, or `-` for stdin. The
//! others read JSON Lines from stdin and go on after a bad line, which stderr names; they then
//! end with 65. No runtime is started, so that a call costs what a process costs.
//! Exit statuses: 0; 1 where `--is` does not hold or `check` found a fault; 64, 65, 66, 74.

mod clocks;
mod draw;
mod events;
mod resolve;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::cli::args::{self, Common};
use crate::cli::exit::Exit;
use crate::cli::report::{Failure, Reporter};
use crate::proto::id::{ActorId, JobId};

const PROGRAM: &str = "ucp-clock";

/// Compares, merges, sorts, checks and draws vector clocks and histories
///
/// A clock is a JSON object of counters, {"north":3,"van2":1}; as an argument it may also be
/// @FILE, or '-' for stdin. An event is any JSON object with `clock`, and `actor` or `dot`.
#[derive(Debug, Parser)]
#[command(name = "ucp-clock", version, max_term_width = 100, disable_help_subcommand = true)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say how clock A lies to clock B: before, after, equal or concurrent
    Compare(Compare),
    /// Count one event of an actor
    Tick {
        /// Whose event
        actor: ActorId,
        /// The clock before; an empty one if absent
        clock: Option<String>,
    },
    /// The least clock that covers all of these
    Merge {
        /// Clocks
        #[arg(required = true)]
        clocks: Vec<String>,
    },
    /// Judge competing results, one JSON object a line: the same lines with `verdict` and `rule`
    ///
    /// The accepted one comes first. A result has `clock`, and may have `gen`, `exit` or `state` or
    /// `success`, `fence`, `attempt` and `digest`.
    Resolve {
        /// Which of concurrent results goes first where no other rule decides
        #[arg(long, value_name = "RULE", value_enum, default_value = "newest-attempt")]
        on_conflict: resolve::OnConflict,
    },
    /// Put events into a causal order, the same for every order of arrival
    Sort,
    /// Find gaps, reused dots and effects before their causes; one line a fault
    Check {
        /// The history is a part of a whole: gaps and causes that are not there are no faults
        #[arg(long)]
        partial: bool,
    },
    /// Draw the space-time diagram of a history
    Draw {
        /// The form of the drawing
        #[arg(long, value_name = "FORM", value_enum, default_value = "svg")]
        format: draw::Form,
        /// Only what is about this job; its id may be cut to its end
        #[arg(long, value_name = "ID")]
        job: Option<String>,
    },
}

#[derive(Debug, Args)]
struct Compare {
    /// A clock
    a: String,
    /// Another clock
    b: String,
    /// Print nothing; end with 0 if A lies so to B, else with 1
    #[arg(long, value_name = "WORD", value_enum)]
    is: Option<clocks::Word>,
}

/// The definition of the command line.
#[must_use]
pub fn definition() -> clap::Command {
    args::definition::<Cli>(PROGRAM)
}

/// Runs the command line to its end.
#[must_use]
pub fn main() -> ExitCode {
    end().into()
}

fn end() -> Exit {
    let cli = match args::parse::<Cli>(PROGRAM) {
        Ok((cli, _)) => cli,
        Err(exit) => return exit,
    };
    let reporter = Reporter::begin(PROGRAM, &cli.common, false);
    run(cli.command, reporter).unwrap_or_else(|failure| reporter.failure(&failure))
}

fn run(command: Command, reporter: Reporter) -> Result<Exit, Failure> {
    match command {
        Command::Compare(Compare { a, b, is }) => clocks::compare(&a, &b, is),
        Command::Tick { actor, clock } => clocks::tick(&actor, clock.as_deref()),
        Command::Merge { clocks } => clocks::merge(&clocks),
        Command::Resolve { on_conflict } => resolve::run(on_conflict, reporter),
        Command::Sort => events::sort(reporter),
        Command::Check { partial } => events::check(partial, reporter),
        Command::Draw { format, job } => {
            if let Some(job) = &job {
                check_job(job)?;
            }
            draw::run(format, job.as_deref(), reporter)
        }
    }
}

fn check_job(text: &str) -> Result<(), Failure> {
    let whole = text.parse::<JobId>().is_ok();
    let part = !text.is_empty() && text.chars().all(|c| c.is_ascii_hexdigit() || c == '-');
    if whole || part { Ok(()) } else { Err(Failure::usage(format!("{text:?} is no job id"))) }
}
