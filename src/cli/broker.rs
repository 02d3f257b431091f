//! `ucp-broker`: the daemon, and the questions that are asked of it.
//!
//! Serving is runtime/server/start.rs; here are only flags, words and exit statuses. Questions go
//! over the same HTTP routes that everybody has.

mod ask;
mod flags;
mod serve;

use std::process::ExitCode;

use crate::cli::args;
use crate::cli::check;
use crate::cli::exit::Exit;
use crate::cli::report::{Failure, Reporter};

use self::flags::{Cli, Command};

pub(crate) use self::serve::host_name;

const PROGRAM: &str = "ucp-broker";

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
    let reporter = Reporter::begin(PROGRAM, &cli.common, cli.json());
    let ended = match &cli.command {
        None => serve::serve(&cli.serve),
        Some(Command::Serve(flags)) => serve::serve(flags),
        Some(Command::Check(flags)) => recompute(flags),
        Some(question) => ask(question),
    };
    ended.unwrap_or_else(|failure| reporter.failure(&failure))
}

fn recompute(flags: &flags::Check) -> Result<Exit, Failure> {
    check::command(&serve::data_dir(flags.data.as_deref())?)
}

fn ask(question: &Command) -> Result<Exit, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::io("cannot start", &error))?;
    let ended = runtime.block_on(async {
        match question {
            Command::Status(flags) => ask::status(flags).await,
            Command::Executors(flags) => ask::executors(flags).await,
            Command::Peers(flags) => ask::peers(flags).await,
            Command::Audit(flags) => ask::audit(flags).await,
            Command::DeclareLost(flags) => ask::declare_lost(flags).await,
            Command::Facts(flags) => ask::facts(flags).await,
            Command::Serve(_) | Command::Check(_) => unreachable!("asked of no broker"),
        }
    });
    // Name look-ups that still run must not hold up the end.
    runtime.shutdown_background();
    ended
}
