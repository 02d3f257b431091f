//! `ucp-submit`: the client. Submits jobs, follows them, and asks about them.
//!
//! Keeps no state of its own: job ids are drawn here, so whatever was not acknowledged is simply
//! sent again, to the same broker or to the one that comes after it. Only one connection is used
//! for a job and its output. Everything runs on one thread, as starting must cost little.

mod array;
mod each;
mod fetch;
mod files;
mod flags;
mod follow;
mod interrupt;
mod line;
mod link;
mod needs;
mod outcome;
mod progress;
mod query;
mod run;
mod status;
mod stdin;
mod table;
mod upload;
mod wait;

use std::process::ExitCode;

use crate::cli::args;
use crate::cli::exit::Exit;
use crate::cli::report::{Failure, Reporter};
use crate::proto::ranges::Ranges;

use self::flags::{Cli, Command, Mode};
use self::link::Link;
use self::progress::Progress;
use self::status::Status;

const PROGRAM: &str = "ucp-submit";

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
    let (cli, matches) = match args::parse::<Cli>(PROGRAM) {
        Ok(parsed) => parsed,
        Err(exit) => return exit,
    };
    let reporter = Reporter::begin(PROGRAM, &cli.common, cli.json);
    // Before anything of ours is opened, which could have the descriptor's number.
    let status = Status::open(cli.job.status_fd);
    let checked = cli.mode(&matches).and_then(|mode| Ok((mode, status?)));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::io("cannot start", &error));
    let ((mode, status), runtime) = match (checked, runtime) {
        (Ok(checked), Ok(runtime)) => (checked, runtime),
        (Err(failure), _) | (_, Err(failure)) => return reporter.failure(&failure),
    };
    let ended = runtime.block_on(dispatch(&cli, mode, status, reporter));
    // Name look-ups that still run must not hold up the end.
    runtime.shutdown_background();
    ended.unwrap_or_else(|failure| reporter.failure(&failure))
}

async fn dispatch(
    cli: &Cli,
    mode: Mode<'_>,
    status: Status,
    reporter: Reporter,
) -> Result<Exit, Failure> {
    let mut link = Link::new(&cli.broker, reporter);
    match mode {
        Mode::One(flags) if cli.json => run::report(flags, &mut link, status, reporter).await,
        Mode::One(flags) => run::follow(flags, &mut link, status, reporter).await,
        Mode::Array(flags) => {
            let count = flags.array.as_ref().map(Ranges::len);
            let progress = Progress::start(count, flags.progress, &cli.common, reporter);
            array::submit(flags, &mut link, (status, progress), reporter).await
        }
        Mode::Many(flags) => {
            let progress = Progress::start(None, flags.progress, &cli.common, reporter);
            each::filter(flags, &mut link, (status, progress), reporter).await
        }
        Mode::Ask(command) => match command {
            Command::List(flags) => query::list(flags, cli, &mut link).await,
            Command::Show(flags) => query::show(flags, cli, &mut link).await,
            Command::Why(flags) => query::why(flags, cli, &mut link).await,
            Command::Cancel(flags) => {
                query::change("cancel", &flags.jobs, &mut link, reporter).await
            }
            Command::Rerun(flags) => query::change("rerun", &flags.jobs, &mut link, reporter).await,
            Command::Wait(flags) => wait::wait(flags, &cli.common, &mut link, reporter).await,
            Command::Output(flags) => wait::output(flags, &mut link, reporter).await,
        },
    }
}
