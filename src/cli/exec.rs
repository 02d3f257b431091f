//! `ucp-exec`: the daemon that runs jobs.
//!
//! Flags, words and exit statuses; running is runtime/executor.rs. The spawner is forked here,
//! before any thread is started.
//! Exit statuses: 0 drained; 70 the spawner died; 75 another process has the data directory; 78 or
//! 65 something in it, or `$UCP_BROKER`, is not what it should be; 128+n ended at once by signal n.
//! Those of `ucp-exec run` stand in exec/run.rs.

mod run;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::cli::args::{self, Common};
use crate::cli::broker::host_name;
use crate::cli::exit::Exit;
use crate::cli::output::{self, OutputError};
use crate::cli::report::{Failure, Reporter, chain};
use crate::proto::capability::Capability;
use crate::proto::isolation::Isolation;
use crate::proto::limits;
use crate::proto::units::{Size, Span};
use crate::runtime::endpoint::Address;
use crate::runtime::executor::identity::{self, IdentityError};
use crate::runtime::executor::{self, Ended, ExecutorError, Registration, Settings};
use crate::runtime::isolation;
use crate::runtime::measure;
use crate::runtime::rundir::{self, DataKind};
use crate::runtime::spawner;
use crate::wire::api::ExecutorReadyLine;

const PROGRAM: &str = "ucp-exec";

/// Joins a broker and runs its jobs; keeps results until a broker has them
#[derive(Debug, Parser)]
#[command(name = "ucp-exec", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    serve: Serve,
    #[command(subcommand)]
    command: Option<Command>,
}

/// What is to be done; without a word it is `serve`.
#[derive(Debug, Subcommand)]
enum Command {
    /// Serve until a signal asks for the end
    Serve(Serve),
    /// Run one job without a broker: its spec in, one result line out
    Run(run::Run),
}

/// What jobs may have of the machine.
#[derive(Debug, Args)]
struct Machine {
    /// Single-core jobs to run at one time; the cores that this process may use if absent
    #[arg(long, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(limits::SLOTS_MAX)))]
    slots: Option<u32>,
    /// Memory for jobs; what this process may use if absent
    #[arg(long, value_name = "SIZE", value_parser = args::size)]
    memory: Option<Size>,
    /// A label that jobs may need, KEY=VALUE
    #[arg(long, value_name = "K=V", value_parser = args::pair)]
    label: Vec<(String, String)>,
    /// Run no commands of this machine, WASI modules alone
    #[arg(long, conflicts_with = "no_wasm")]
    no_native: bool,
    /// Run no WASI modules
    #[arg(long)]
    no_wasm: bool,
    /// How far native jobs are kept apart: as far as the machine offers, or killed as trees only
    #[arg(long, value_name = "LEVEL", default_value = "full")]
    isolation: IsolationLevel,
    /// A directory beside its own that native jobs may write to
    #[arg(long, value_name = "DIR", value_parser = isolation::writable)]
    allow_write: Vec<PathBuf>,
}

/// How to serve.
#[derive(Debug, Args)]
struct Serve {
    /// A broker's address, unix:/path.sock or http://host:port; several are tried in turn
    #[arg(long, value_name = "ADDR")]
    broker: Vec<Address>,
    /// The first part of the executor's identity, used when it is made; the host's name if absent
    #[arg(long, value_parser = name)]
    name: Option<String>,
    /// Where the identity, results, their files, blobs and the jobs' directories are kept
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    #[command(flatten)]
    machine: Machine,
    /// How often to say that it is there
    #[arg(long, value_name = "D", default_value_t = limits::HEARTBEAT.into(), value_parser = args::span)]
    heartbeat: Span,
    /// How long jobs that run may take to end when a signal asks for the end
    #[arg(long, value_name = "D", default_value_t = limits::DRAIN_TIMEOUT.into())]
    drain_timeout: Span,
    /// How often to keep the state that jobs leave in `UCP_JOB_CHECKPOINT_DIR`, where it changed
    #[arg(long, value_name = "D", default_value_t = limits::CHECKPOINT_INTERVAL.into())]
    #[arg(value_parser = checkpoint_interval)]
    checkpoint_interval: Span,
}

/// How far native jobs are kept apart.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum IsolationLevel {
    /// As far as the machine offers
    Full,
    /// Process groups, closed descriptors, and trees killed as a whole
    None,
}

impl From<IsolationLevel> for isolation::Level {
    fn from(level: IsolationLevel) -> Self {
        match level {
            IsolationLevel::Full => Self::Full,
            IsolationLevel::None => Self::None,
        }
    }
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
    let ended = match cli.command {
        None => serve(cli.serve),
        Some(Command::Serve(flags)) => serve(flags),
        Some(Command::Run(flags)) => run::run(flags, &reporter),
    };
    ended.unwrap_or_else(|failure| reporter.failure(&failure))
}

fn serve(flags: Serve) -> Result<Exit, Failure> {
    let settings = settings(flags)?;
    let opened = executor::open(&settings).map_err(|error| failure(&error))?;
    let forked = spawner::fork(opened.plan());
    let spawner = forked.map_err(|error| Failure::new(Exit::Bug, chain(&error)))?;
    let announce = |registration: Registration<'_>| {
        let line = ExecutorReadyLine {
            kind: "ready".into(),
            ready: true,
            executor: registration.executor.clone(),
            pid: std::process::id(),
            broker: registration.broker.to_string(),
        };
        output::line(&line).map_err(|error| match error {
            OutputError::Closed => io::ErrorKind::BrokenPipe.into(),
            OutputError::Write(_, error) => error,
        })
    };
    match executor::run(&settings, opened, spawner, announce) {
        Ok(Ended::Drained) => Ok(Exit::Done),
        Ok(Ended::AtOnce(signal)) => Ok(Exit::Job(128 + u8::try_from(signal).unwrap_or(0))),
        Err(error) => Err(failure(&error)),
    }
}

fn settings(flags: Serve) -> Result<Settings, Failure> {
    let data = match flags.data {
        Some(data) => data,
        None => rundir::data_dir(DataKind::Exec).map_err(Failure::from)?,
    };
    let (isolation, allow_write) = (flags.machine.isolation, flags.machine.allow_write.clone());
    let capability = capability(flags.machine)?;
    Ok(Settings {
        brokers: flags.broker,
        name: flags.name.unwrap_or_else(|| host_name("exec")),
        data,
        capability,
        heartbeat: flags.heartbeat.duration(),
        drain_timeout: flags.drain_timeout.duration(),
        checkpoint_interval: flags.checkpoint_interval.duration(),
        isolation: isolation.into(),
        allow_write,
    })
}

fn capability(flags: Machine) -> Result<Capability, Failure> {
    if flags.label.len() > limits::LABELS_MAX {
        return Err(Failure::usage(format!("at most {} times --label", limits::LABELS_MAX)));
    }
    let labels: BTreeMap<_, _> = flags.label.into_iter().collect();
    Ok(Capability {
        slots: flags.slots.unwrap_or_else(|| measure::cores().min(limits::SLOTS_MAX)),
        memory: flags.memory.unwrap_or_else(measure::memory),
        labels,
        arch: measure::architecture(),
        native: !flags.no_native,
        wasm: !flags.no_wasm,
        isolation: Isolation::default(),
    })
}

fn checkpoint_interval(text: &str) -> Result<Span, String> {
    let (least, most) = (limits::CHECKPOINT_INTERVAL_MIN, limits::CHECKPOINT_INTERVAL_MAX);
    let span = args::span(text)?;
    if (least..=most).contains(&span.duration()) {
        return Ok(span);
    }
    Err(format!("use {} to {}", Span::from(least), Span::from(most)))
}

fn name(text: &str) -> Result<String, String> {
    let max = identity::NAME_BYTES_MAX;
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if (1..=max).contains(&text.len()) && text.bytes().all(legal) {
        return Ok(text.to_owned());
    }
    Err(format!("use 1 to {max} ASCII letters, digits, '-', '_' or '.'"))
}

fn failure(error: &ExecutorError) -> Failure {
    let words = chain(error);
    match error {
        ExecutorError::Dir(error) => error.into(),
        ExecutorError::Identity(IdentityError::Damaged { .. }) => Failure::new(Exit::Data, words)
            .hint("remove that file, and the executor becomes a new one"),
        ExecutorError::Identity(IdentityError::Newer { .. }) => {
            Failure::new(Exit::Protocol, words).hint("run the newer version")
        }
        ExecutorError::Copied { .. } => Failure::new(Exit::Denied, words)
            .hint("remove identity.json from the copy, so that it gets an identity of its own"),
        ExecutorError::Endpoint(error) => Failure::new(error.into(), words),
        ExecutorError::Spawner => Failure::new(Exit::Bug, words)
            .hint("its jobs were killed; start it again, and brokers run them anew"),
        ExecutorError::Wasm(_) => Failure::new(Exit::Bug, words)
            .hint("with --no-wasm it runs commands of this machine alone"),
        ExecutorError::Announce(error) if error.kind() == io::ErrorKind::BrokenPipe => {
            Failure::quiet()
        }
        _ => Failure::new(Exit::Io, words),
    }
}
