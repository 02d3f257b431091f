//! The flags of `ucp-broker`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::cli::args::{self, BrokerArgs, Common};
use crate::proto::units::{Size, Span};
use crate::runtime::endpoint::Address;

/// Takes jobs, deploys them on executors, keeps what came of them; answers questions about it
#[derive(Debug, Parser)]
#[command(name = "ucp-broker", version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    pub serve: Serve,
    #[command(subcommand)]
    pub command: Option<Command>,
}

impl Cli {
    /// Whether errors are wanted as JSON too.
    pub const fn json(&self) -> bool {
        match &self.command {
            Some(
                Command::Status(ask)
                | Command::Executors(ask)
                | Command::Peers(ask)
                | Command::Audit(ask),
            ) => ask.json,
            Some(Command::DeclareLost(flags)) => flags.json,
            _ => false,
        }
    }
}

/// What is to be done; without a word it is `serve`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve until a signal asks for the end
    Serve(Serve),
    /// Tell how the broker stands
    Status(Ask),
    /// Tell which executors there are
    Executors(Ask),
    /// Tell which other brokers this one knows, and when it was in step with them
    Peers(Ask),
    /// Print the facts as they were written, in the order in which they were committed
    Facts(Facts),
    /// Say that an executor is gone: what ran there is deployed elsewhere at once
    DeclareLost(DeclareLost),
    /// Prove that no job is missing: what was submitted waits, runs, is parked or ended
    Audit(Ask),
    /// Recompute everything from the facts of a broker that does not run
    Check(Check),
}

/// How to serve.
#[derive(Debug, Args)]
pub struct Serve {
    /// The broker's name, the first part of its log's; the host's name where absent
    #[arg(long, value_parser = name)]
    pub name: Option<String>,
    /// Where facts and large contents are kept
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Listen here as well, unix:/path.sock or http://127.0.0.1:port; port 0 takes a free one
    #[arg(long, value_name = "ADDR")]
    pub listen: Vec<Address>,
    /// Where sockets and locks are kept
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// Another broker: what either of the two holds, both hold soon
    #[arg(long, value_name = "ADDR")]
    pub peer: Vec<Address>,
    /// Compare what is held with each peer so often, give or take a tenth
    #[arg(long, value_name = "D", default_value = "60s", value_parser = args::span)]
    pub sync_interval: Span,
    /// Let fresh facts wait for that instead of sending them at once
    #[arg(long)]
    pub no_eager_sync: bool,
    /// Bytes a second that facts may take on their way to a peer, and from it
    #[arg(long, value_name = "SIZE", value_parser = args::rate)]
    pub sync_max_rate: Option<Size>,
    /// Deploy nothing new on an executor that was silent for so long
    #[arg(long, value_name = "D", default_value = "2s", value_parser = args::span)]
    pub suspect_after: Span,
    /// Give up the attempts of an executor that was silent for so long
    #[arg(long, value_name = "D", default_value = "5s", value_parser = args::span)]
    pub lost_after: Span,
    /// Give up an executor whose connection closed and that stays away for so long
    #[arg(long, value_name = "D", default_value = "1s", value_parser = args::span)]
    pub reconnect_grace: Span,
    /// Write this into each job as the time to keep it after its end; nothing is deleted yet
    #[arg(long, value_name = "D", default_value = "7d", value_parser = args::span)]
    pub retention: Span,
    /// Take no more jobs when so many wait
    #[arg(long, value_name = "N", default_value_t = crate::proto::limits::QUEUED_MAX_DEFAULT)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    pub max_queued: u64,
    /// What an acknowledgement waits for: the disk, or the operating system alone
    #[arg(long, value_name = "HOW", value_enum, default_value = "fsync")]
    pub durability: Durability,
    /// Let other machines connect without encryption: whoever reaches the port can run anything
    #[arg(long)]
    pub insecure_plaintext: bool,
}

/// What an acknowledgement waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Durability {
    /// The disk: what was acknowledged outlives a power cut.
    Fsync,
    /// The operating system: it outlives every process, but not a power cut.
    Os,
}

/// A question with a table or JSON as its answer.
#[derive(Debug, Args)]
pub struct Ask {
    #[command(flatten)]
    pub broker: BrokerArgs,
    /// Answer in JSON, one value a line
    #[arg(long)]
    pub json: bool,
}

/// Which facts to print.
#[derive(Debug, Args)]
pub struct Facts {
    #[command(flatten)]
    pub broker: BrokerArgs,
    /// Only those about this job
    #[arg(long, value_name = "ID")]
    pub job: Option<String>,
    /// Go on as facts are committed
    #[arg(long, conflicts_with = "sorted")]
    pub follow: bool,
    /// In the order of their dots: by log, then by number
    #[arg(long)]
    pub sorted: bool,
}

/// Which executor is gone.
#[derive(Debug, Args)]
pub struct DeclareLost {
    #[command(flatten)]
    pub broker: BrokerArgs,
    /// The executor, as `ucp-broker executors` names it
    pub executor: crate::proto::id::ExecutorId,
    /// Why, for those who read the job's history
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// Answer in JSON
    #[arg(long)]
    pub json: bool,
}

/// What to check.
#[derive(Debug, Args)]
pub struct Check {
    /// The broker's data directory
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
}

/// Reads a broker's name: the start of a log's name, which adds nine bytes.
fn name(text: &str) -> Result<String, String> {
    let log = format!("{text}-00000000").parse::<crate::proto::id::LogId>();
    match log {
        Ok(_) if !text.is_empty() => Ok(text.to_owned()),
        _ => Err("use 1 to 71 ASCII letters, digits, '-', '_' or '.'".to_owned()),
    }
}
