//! `ucp-sync`: rounds of anti-entropy between any two brokers, and facts as JSON Lines for
//! whatever carries bytes.
//!
//! Holds no facts and keeps no file. Data go to stdout, everything else to stderr.
//! Exit statuses: 0; 1 where `diff` found a difference, or a log is damaged or forked; 64, 65, 69,
//! 74, 76.

mod carry;
mod rounds;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::cli::args::{self, BrokerArgs, Common};
use crate::cli::exit::Exit;
use crate::cli::report::{Failure, Reporter};
use crate::proto::units::{Size, Span};
use crate::runtime::endpoint::Address;

const PROGRAM: &str = "ucp-sync";

/// Brings brokers in step with each other, over the network or on a stick
#[derive(Debug, Parser)]
#[command(name = "ucp-sync", version, max_term_width = 100, disable_help_subcommand = true)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// One round with each of these: afterwards both hold what either held; one line each
    Once(Ends),
    /// The same again and again, until a signal asks for the end
    Loop {
        /// How often
        #[arg(long, value_name = "D", default_value = "60s", value_parser = args::span)]
        every: Span,
        #[command(flatten)]
        ends: Ends,
    },
    /// Print the version vector of a broker: how far it holds each log
    Vector {
        #[command(flatten)]
        broker: BrokerArgs,
    },
    /// Print the facts of a broker, framed so that they can be imported elsewhere
    Export {
        /// Leave out what this version vector covers: JSON, or @FILE with it; everything if absent
        #[arg(long, value_name = "VECTOR")]
        since: Option<String>,
        #[command(flatten)]
        broker: BrokerArgs,
    },
    /// Hand facts from stdin to a broker; twice, in any order or cut off is safe
    Import {
        #[command(flatten)]
        broker: BrokerArgs,
    },
    /// Compare what two brokers hold: one line for each log that differs, and then status 1
    Diff {
        /// A broker's address
        first: Address,
        /// Another's
        second: Address,
    },
}

#[derive(Debug, Args)]
struct Ends {
    /// The broker from whose side things are named; the one that is found where absent
    #[arg(long, value_name = "ADDR")]
    from: Option<Address>,
    /// Another broker; several are taken in turn
    #[arg(long, value_name = "ADDR", required = true)]
    with: Vec<Address>,
    /// Bytes a second that facts may take, each way
    #[arg(long, value_name = "SIZE", value_parser = args::rate)]
    max_rate: Option<Size>,
    /// How long to wait for the first broker that answers
    #[arg(long, value_name = "D", default_value = "5s", value_parser = args::span)]
    connect_timeout: Span,
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
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::io("cannot start", &error))?;
    let ended = runtime.block_on(async {
        match command {
            Command::Once(ends) => rounds::once(&ends, reporter).await,
            Command::Loop { every, ends } => rounds::forever(&ends, every, reporter).await,
            Command::Vector { broker } => carry::vector(&broker).await,
            Command::Export { since, broker } => carry::export(since.as_deref(), &broker).await,
            Command::Import { broker } => carry::import(&broker, reporter).await,
            Command::Diff { first, second } => rounds::diff(&first, &second).await,
        }
    });
    // Name look-ups and reads that still run must not hold up the end.
    runtime.shutdown_background();
    ended
}
