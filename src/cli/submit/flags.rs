//! The flags of `ucp-submit`, and the spec that they describe.
//!
//! Reads no file and speaks to nobody. A command that is called like a subcommand is only reached
//! after `--`.

use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Parser, Subcommand};

use crate::cli::args::{BrokerArgs, Common, pair, span};
use crate::cli::report::Failure;
use crate::proto::capability::Needs;
use crate::proto::id::JobId;
use crate::proto::job::JobSpec;
use crate::proto::limits;
use crate::proto::precedence::Precedence;
use crate::proto::units::Span;
use crate::proto::view::JobState;

/// Hand jobs to a broker, follow them, and ask about them.
///
/// With a command after '--' it runs it somewhere, passes on its output and ends with its status.
#[derive(Debug, Parser)]
#[command(name = "ucp-submit", version, max_term_width = 100)]
#[command(override_usage = "ucp-submit [OPTIONS] -- COMMAND [ARG]...\n       \
    ucp-submit [OPTIONS] --each -- COMMAND [{}]...\n       \
    ucp-submit [OPTIONS] --jsonl\n       \
    ucp-submit <list|show|wait|output|cancel|rerun|why> [OPTIONS]")]
pub struct Cli {
    /// What is asked about jobs that were submitted before
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The job.
    #[command(flatten)]
    pub job: JobFlags,
    /// JSON on stdout instead of text, and problem documents on stderr
    #[arg(long, global = true, help_heading = "Common")]
    pub json: bool,
    /// Where brokers are.
    #[command(flatten)]
    pub broker: BrokerArgs,
    /// What every command has.
    #[command(flatten)]
    pub common: Common,
}

/// Flags that describe jobs.
#[derive(Debug, Args)]
pub struct JobFlags {
    /// One job for each line of stdin: the line replaces {} and is in UCP_JOB_ITEM
    #[arg(long, help_heading = "Many jobs", conflicts_with = "jsonl")]
    pub each: bool,
    /// One job spec as JSON for each line of stdin
    #[arg(long, help_heading = "Many jobs", conflicts_with = "command")]
    pub jsonl: bool,
    /// Do not wait: print the job's id once the broker has it
    #[arg(long)]
    pub detach: bool,
    /// A variable for the job; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair, help_heading = "Job")]
    pub env: Vec<(String, String)>,
    /// A file for the job's standard input, '-' for ours; without it the job has none
    #[arg(long, value_name = "FILE", help_heading = "Job")]
    pub stdin: Option<String>,
    /// What the executor must have: cores, memory, disk, battery, cpu_free, label
    #[arg(long, value_name = "WHAT=VALUE,...", help_heading = "Job")]
    pub needs: Vec<String>,
    /// How urgent it is: routine, priority, immediate or flash
    #[arg(long, value_name = "LEVEL", value_parser = precedence, help_heading = "Job")]
    pub precedence: Option<Precedence>,
    /// A job that must have succeeded before; may be repeated
    #[arg(long, value_name = "ID", value_parser = job_ref, help_heading = "Job")]
    pub after: Vec<String>,
    /// How often a failed run is repeated
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Job")]
    pub retries: u32,
    /// How long one run may take
    #[arg(long, value_name = "D", value_parser = span, help_heading = "Job")]
    pub timeout: Option<Span>,
    /// The same key and job are one job, however often it is submitted
    #[arg(long, value_name = "KEY", help_heading = "Job")]
    pub key: Option<String>,
    /// A name for people
    #[arg(long, value_name = "TEXT", help_heading = "Job")]
    pub name: Option<String>,
    /// How many executors it may take down before it is parked
    #[arg(long, value_name = "N", default_value_t = limits::LOST_MAX_DEFAULT)]
    #[arg(help_heading = "Job")]
    pub max_lost: u32,
    /// Program and arguments
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// What is asked about jobs.
#[derive(Debug, Subcommand)]
#[command(disable_help_subcommand = true)]
pub enum Command {
    /// Jobs, the newest first
    List(ListFlags),
    /// Everything about one job: its spec, attempts, results and their verdicts
    Show(ShowFlags),
    /// Wait until jobs end; prints their result lines in the order in which they are named
    Wait(WaitFlags),
    /// The output of a job as it is
    Output(OutputFlags),
    /// End jobs
    Cancel(JobsFlags),
    /// Begin jobs again that have ended or are parked
    Rerun(JobsFlags),
    /// What a job waits for
    Why(JobFlag),
}

/// Flags of `list`.
#[derive(Debug, Args)]
pub struct ListFlags {
    /// Only jobs in this state
    #[arg(long, value_name = "STATE", value_parser = state)]
    pub state: Option<JobState>,
    /// How many at the most
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
}

/// Flags of `show`.
#[derive(Debug, Args)]
pub struct ShowFlags {
    /// The job, or the end of its id
    #[arg(value_name = "ID", value_parser = job_ref)]
    pub job: String,
    /// Only what facts tell, so that brokers can be compared
    #[arg(long)]
    pub facts_only: bool,
}

/// Flags of `wait`.
#[derive(Debug, Args)]
pub struct WaitFlags {
    /// The jobs, or the ends of their ids; '-' reads ids from stdin
    #[arg(value_name = "ID", required = true, value_parser = job_ref_or_stdin)]
    pub jobs: Vec<String>,
    /// How long to wait for all of them
    #[arg(long, value_name = "D", value_parser = span)]
    pub timeout: Option<Span>,
}

/// Flags of `output`.
#[derive(Debug, Args)]
pub struct OutputFlags {
    /// The job, or the end of its id
    #[arg(value_name = "ID", value_parser = job_ref)]
    pub job: String,
    /// Its standard error instead of its standard output
    #[arg(long)]
    pub stderr: bool,
    /// Go on until the job ends
    #[arg(long)]
    pub follow: bool,
}

/// The jobs of `cancel` and `rerun`.
#[derive(Debug, Args)]
pub struct JobsFlags {
    /// The jobs, or the ends of their ids; '-' reads ids from stdin
    #[arg(value_name = "ID", required = true, value_parser = job_ref_or_stdin)]
    pub jobs: Vec<String>,
}

/// The job of `why`.
#[derive(Debug, Args)]
pub struct JobFlag {
    /// The job, or the end of its id
    #[arg(value_name = "ID", value_parser = job_ref)]
    pub job: String,
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Mode<'a> {
    /// One job.
    One(&'a JobFlags),
    /// A job for each line of stdin.
    Many(&'a JobFlags),
    /// Something about jobs.
    Ask(&'a Command),
}

impl Cli {
    /// Checks what belongs together.
    ///
    /// # Errors
    /// Wrong usage, with the flag and the fix.
    pub fn mode(&self, matches: &ArgMatches) -> Result<Mode<'_>, Failure> {
        let job = &self.job;
        if let Some(command) = &self.command {
            return match stray(matches) {
                None => Ok(Mode::Ask(command)),
                Some(flag) => Err(Failure::usage(format_args!("--{flag} is for new jobs"))
                    .hint("a subcommand takes its own flags, after its name")),
            };
        }
        if job.command.is_empty() && !job.jsonl {
            return Err(Failure::usage("no command is given")
                .hint("put it after '--', as in: ucp-submit -- echo hi"));
        }
        let many = job.each || job.jsonl;
        if many && job.stdin.as_deref() == Some("-") {
            return Err(Failure::usage("--stdin - and lines of jobs cannot both come from stdin")
                .hint("give --stdin a file"));
        }
        if job.each && job.key.as_ref().is_some_and(|key| !key.contains("{}")) {
            return Err(Failure::usage("--key is the same for every line of --each")
                .hint("put {} into the key"));
        }
        job.base()?;
        Ok(if many { Mode::Many(job) } else { Mode::One(job) })
    }
}

/// The first flag for new jobs that stands before a subcommand.
fn stray(matches: &ArgMatches) -> Option<String> {
    let given = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
    let flags = JobFlags::augment_args(clap::Command::new("job"));
    let found = flags.get_arguments().find(|arg| given(arg.get_id().as_str()));
    found.map(|arg| arg.get_long().unwrap_or("").to_owned())
}

impl JobFlags {
    /// The spec as far as flags tell it: without `after` and standard input.
    ///
    /// # Errors
    /// Wrong usage, with the flag and the fix.
    pub fn base(&self) -> Result<JobSpec, Failure> {
        let mut spec = JobSpec::command(self.command.clone());
        spec.env = self.env.iter().cloned().collect();
        spec.needs = needs(&self.needs)?;
        spec.precedence = self.precedence.unwrap_or_default();
        spec.retries = self.retries;
        spec.timeout = self.timeout;
        spec.max_lost = self.max_lost;
        spec.key.clone_from(&self.key);
        spec.name.clone_from(&self.name);
        let mut checked = spec.clone();
        if self.jsonl {
            checked.command = vec!["from the line".to_owned()];
        }
        checked.validate().map_err(Failure::usage)?;
        Ok(spec)
    }
}

fn needs(texts: &[String]) -> Result<Needs, Failure> {
    let mut needs = Needs::default();
    for text in texts.iter().flat_map(|text| text.split(',')).filter(|text| !text.is_empty()) {
        need(&mut needs, text).map_err(|why| {
            Failure::usage(format_args!("--needs {text}: {why}"))
                .hint("as in: --needs cores=2,memory=1G,label=gpu")
        })?;
    }
    Ok(needs)
}

fn need(needs: &mut Needs, text: &str) -> Result<(), String> {
    let (what, value) = text.split_once('=').ok_or("WHAT=VALUE is expected")?;
    let size = || crate::cli::args::size(value).map(Some);
    let percent = || value.parse::<u8>().map(Some).map_err(|_| "percent, 0 to 100".to_owned());
    match what {
        "cores" => needs.cores = value.parse().map_err(|_| "a whole number is expected")?,
        "memory" => needs.memory = size()?,
        "disk" => needs.disk = size()?,
        "battery" => needs.battery = percent()?,
        "cpu_free" => needs.cpu_free = percent()?,
        "label" => needs.labels.push(value.to_owned()),
        _ => {
            return Err("known are cores, memory, disk, battery, cpu_free and label".to_owned());
        }
    }
    Ok(())
}

fn precedence(text: &str) -> Result<Precedence, String> {
    text.parse()
}

fn state(text: &str) -> Result<JobState, String> {
    let words = JobState::ALL.map(JobState::word).join(", ");
    let found = JobState::ALL.into_iter().find(|state| state.word() == text);
    found.ok_or_else(|| format!("{text:?} is no state: {words}"))
}

/// Reads a job id or the end of one, as a piece of a path that needs no quoting.
///
/// # Errors
/// It holds something else than hexadecimal digits and hyphens, or nothing.
pub fn job_ref(text: &str) -> Result<String, String> {
    let legal = |c: char| c.is_ascii_hexdigit() || c == '-';
    if text.is_empty() || text == "-" || text.len() > 64 || !text.chars().all(legal) {
        return Err(format!("{text:?} is no job id: a UUID or the end of one is expected"));
    }
    let whole = text.parse::<JobId>().map(|job| job.to_string());
    Ok(whole.unwrap_or_else(|_| text.to_ascii_lowercase()))
}

fn job_ref_or_stdin(text: &str) -> Result<String, String> {
    if text == "-" { Ok(text.to_owned()) } else { job_ref(text) }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, FromArgMatches};

    use super::*;

    fn parsed(arguments: &[&str]) -> (Cli, ArgMatches) {
        let all = [&["ucp-submit"], arguments].concat();
        let matches = Cli::command().try_get_matches_from(all).expect("right usage");
        (Cli::from_arg_matches(&matches).expect("a command line"), matches)
    }

    fn wrong(arguments: &[&str]) -> Failure {
        let (cli, matches) = parsed(arguments);
        let mode = cli.mode(&matches).map(|mode| format!("{mode:?}"));
        mode.expect_err("wrong usage")
    }

    #[test]
    fn flags_become_a_spec() {
        let (cli, _) = parsed(&[
            "--needs",
            "cores=2,memory=1G",
            "--needs",
            "label=gpu",
            "--env",
            "A=b=c",
            "--timeout",
            "2s",
            "--retries",
            "3",
            "--precedence",
            "flash",
            "--",
            "list",
            "-v",
        ]);
        let text = cli.job.base().expect("a spec").to_json();
        let expected = r#"{"command":["list","-v"],"env":{"A":"b=c"},"needs":{"cores":2,"memory":"1G","labels":["gpu"]},"precedence":"flash","retries":3,"timeout":"2s"}"#;
        assert_eq!(text, expected);
    }

    #[test]
    fn common_flags_may_stand_on_either_side_of_a_subcommand() {
        for arguments in [["--json", "list"], ["list", "--json"]] {
            let (cli, matches) = parsed(&arguments);
            assert!(cli.json);
            assert!(matches!(cli.mode(&matches), Ok(Mode::Ask(Command::List(_)))));
        }
    }

    #[test]
    fn what_does_not_belong_together_is_wrong_usage() {
        for (arguments, word) in [
            (&[][..], "no command"),
            (&["--timeout", "1s", "list"], "--timeout"),
            (&["--each", "--stdin", "-", "--", "a"], "--stdin"),
            (&["--each", "--key", "k", "--", "a"], "--key"),
            (&["--needs", "core=1", "--", "a"], "--needs core=1"),
            (&["--needs", "memory=1Q", "--", "a"], "--needs memory=1Q"),
            (&["--retries", "1000000", "--", "a"], "retries"),
        ] {
            let failure = wrong(arguments);
            assert_eq!(failure.exit.status(), 64);
            assert!(failure.what.contains(word), "{}", failure.what);
        }
    }

    #[test]
    fn the_whole_command_line_is_sound() {
        crate::cli::args::with_twins(Cli::command(), "ucp-submit").debug_assert();
    }
}
