//! The flags of `ucp-submit`, and the spec that they describe.
//!
//! Reads no file and speaks to nobody. A command that is called like a subcommand is only reached
//! after `--`. Arguments, values of variables and names of files may be any bytes.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Parser, Subcommand, ValueEnum};

use crate::cli::args::{BrokerArgs, Common, span};
use crate::cli::report::Failure;
use crate::proto::content::{Content, Module};
use crate::proto::contest::Preference;
use crate::proto::id::{JobId, LogId};
use crate::proto::job::{AfterDeadline, JobSpec, Overlap};
use crate::proto::limits;
use crate::proto::precedence::Precedence;
use crate::proto::ranges::{Ranges, RangesError};
use crate::proto::text::Text;
use crate::proto::units::Span;
use crate::proto::view::JobState;

use super::needs::needs;

#[cfg(test)]
mod tests;

/// Hand jobs to a broker, follow them, and ask about them.
///
/// With a command after '--' it runs it somewhere, passes on its output and ends with its status.
#[derive(Debug, Parser)]
#[command(name = "ucp-submit", version, max_term_width = 100)]
#[command(override_usage = "ucp-submit [OPTIONS] -- COMMAND [ARG]...\n       \
    ucp-submit [OPTIONS] --wasm FILE [-- ARG...]\n       \
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
    /// One job for each line of stdin: the line replaces {} and is in UCP_JOB_ITEM, its number in
    /// UCP_JOB_INDEX
    #[arg(long, help_heading = "Many jobs", conflicts_with = "jsonl")]
    pub each: bool,
    /// One job spec as JSON for each line of stdin
    #[arg(long, help_heading = "Many jobs", conflicts_with = "command")]
    pub jsonl: bool,
    /// One element for each number, which replaces {} and is in UCP_JOB_INDEX: 1-1000 or 1,5,9-12
    #[arg(long, value_name = "NUMBERS", help_heading = "Many jobs", value_parser = ranges)]
    #[arg(conflicts_with_all = ["each", "jsonl"])]
    pub array: Option<Ranges>,
    /// What the line of --each or the number of --array replaces, instead of {}
    #[arg(short = 'I', long, value_name = "STR", help_heading = "Many jobs")]
    #[arg(allow_hyphen_values = true)]
    pub replace: Option<String>,
    /// With --each: items end with NUL instead of a newline and are any other bytes
    #[arg(short = '0', long, help_heading = "Many jobs", requires = "each")]
    pub null: bool,
    /// Print results in the order of the lines or numbers; one that is ready waits for those
    /// before it
    #[arg(long, help_heading = "Many jobs")]
    pub keep_order: bool,
    /// Tell how far many jobs are, also where stderr is no terminal
    #[arg(long, help_heading = "Many jobs")]
    pub progress: bool,
    /// Do not wait: print the job's id once the broker has it
    #[arg(long)]
    pub detach: bool,
    /// Wait for a result that is accepted, or for one that can change no more
    #[arg(long, value_name = "WHAT", value_enum, default_value = "accepted")]
    pub until: Until,
    /// Write the result lines to this open descriptor as well
    #[arg(long, value_name = "N")]
    pub status_fd: Option<i32>,
    /// A WASI module to run, binary or text, '-' for stdin; its arguments stand after '--'
    #[arg(long, value_name = "FILE", help_heading = "Job", conflicts_with = "jsonl")]
    pub wasm: Option<PathBuf>,
    /// A file or directory that the job finds, under its name or as PATH; may be repeated
    #[arg(long = "in", value_name = "FILE[=PATH]", value_parser = given_parser())]
    #[arg(help_heading = "Files", allow_hyphen_values = true)]
    pub inputs: Vec<Given>,
    /// A path, pattern or directory that is kept when the job ends; may be repeated
    #[arg(long = "out", value_name = "PATH", help_heading = "Files")]
    pub outputs: Vec<String>,
    /// Where that is put when the job ends; each of many jobs has DIR/NUMBER
    #[arg(long, value_name = "DIR", help_heading = "Files")]
    pub out_dir: Option<PathBuf>,
    /// A variable for the job; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable_parser())]
    #[arg(help_heading = "Job")]
    pub env: Vec<(String, Text)>,
    /// A file for the job's standard input, '-' for ours; without it the job has none
    #[arg(long, value_name = "FILE", help_heading = "Files")]
    pub stdin: Option<PathBuf>,
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
    /// How long after its submission it may begin; then it expires. Counted in running time by the
    /// broker, from anew after a rerun or when the broker's machine boots
    #[arg(long, value_name = "D", value_parser = span, help_heading = "Job")]
    pub deadline: Option<Span>,
    /// If it runs when the deadline is over: let it finish, or stop it
    #[arg(long, value_name = "WHAT", value_parser = after_deadline, default_value = "finish")]
    #[arg(help_heading = "Job")]
    pub after_deadline: AfterDeadline,
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
    /// Whether two attempts at it may run at one time after a cut: allow, or forbid, by which it
    /// rather waits
    #[arg(long, value_name = "WHAT", value_parser = overlap, default_value = "allow")]
    #[arg(help_heading = "Job")]
    pub overlap: Overlap,
    /// The only broker that may take it, by its log, as 'ucp-broker status' names it
    #[arg(long, value_name = "LOG", value_parser = log, help_heading = "Job")]
    pub home: Option<LogId>,
    /// Which of attempts that knew nothing of each other goes first: newest-attempt or
    /// oldest-attempt
    #[arg(long, value_name = "WHICH", value_parser = preference)]
    #[arg(default_value = "newest-attempt", help_heading = "Job")]
    pub on_conflict: Preference,
    /// Program and arguments
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// A file or directory of ours, and where the job finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    /// The file; `-` is our standard input.
    pub file: PathBuf,
    /// Its path in the job's directory; under its own name where absent.
    pub path: Option<String>,
}

/// When a wait is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Until {
    /// A result is accepted.
    Accepted,
    /// It is final: no broker can know better any more.
    Final,
}

impl Until {
    /// The word that a broker knows.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Final => "final",
        }
    }
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
    /// Wait for results that are accepted, or for ones that can change no more
    #[arg(long, value_name = "WHAT", value_enum, default_value = "accepted")]
    pub until: Until,
    /// Put the files that they left here; those of several jobs into DIR/ID
    #[arg(long, value_name = "DIR")]
    pub out_dir: Option<PathBuf>,
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
    /// Put the files that it left here
    #[arg(long, value_name = "DIR")]
    pub out_dir: Option<PathBuf>,
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
    /// A job of many elements.
    Array(&'a JobFlags),
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
        if job.command.is_empty() && !job.jsonl && job.wasm.is_none() {
            return Err(Failure::usage("no command is given")
                .hint("put it after '--', as in: ucp-submit -- echo hi"));
        }
        let many = job.each || job.jsonl;
        job.check_stdin(many)?;
        job.check_many(many)?;
        if job.detach && job.out_dir.is_some() {
            return Err(Failure::usage("--out-dir needs the end of the job, --detach leaves it")
                .hint("'ucp-submit wait ID --out-dir DIR' fetches what it left"));
        }
        if job.after.len() > limits::AFTER_MAX {
            let what = format_args!("--after is given {} times", job.after.len());
            return Err(Failure::usage(format_args!("{what}, at most {}", limits::AFTER_MAX))
                .hint("let one job wait for some of them, and this one for that"));
        }
        job.check_home()?;
        job.base()?;
        Ok(match (many, &job.array) {
            (true, _) => Mode::Many(job),
            (false, Some(_)) => Mode::Array(job),
            (false, None) => Mode::One(job),
        })
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
    /// The spec as far as flags tell it: without `after` and what is in files.
    ///
    /// # Errors
    /// Wrong usage, with the flag and the fix.
    pub fn base(&self) -> Result<JobSpec, Failure> {
        let words = self.command.iter().map(|word| Text::from(word.as_bytes().to_vec())).collect();
        let mut spec = match &self.wasm {
            // Its content comes with the other files.
            Some(file) => {
                let content = Content::Text(String::new());
                JobSpec::module(Module { content, name: module_name(file) }, words)
            }
            None => JobSpec::argv(words),
        };
        spec.env = self.env.iter().cloned().collect();
        spec.outputs = self.outputs.iter().map(|path| plain(path)).collect();
        spec.needs = needs(&self.needs)?;
        spec.precedence = self.precedence.unwrap_or_default();
        spec.retries = self.retries;
        spec.timeout = self.timeout;
        spec.deadline = self.deadline;
        spec.after_deadline = self.after_deadline;
        spec.max_lost = self.max_lost;
        spec.overlap = self.overlap;
        spec.home.clone_from(&self.home);
        spec.on_conflict = self.on_conflict;
        spec.key.clone_from(&self.key);
        spec.name.clone_from(&self.name);
        spec.array.clone_from(&self.array);
        let hole = self.hole();
        let holed = |text: &Text| text.lossy().contains(hole);
        if self.array.is_some() && spec.command.iter().chain(&spec.args).any(holed) {
            spec.placeholder = Some(hole.to_owned());
        }
        let mut checked = spec.clone();
        if self.jsonl {
            checked.command = vec!["from the line".into()];
        }
        checked.validate().map_err(Failure::usage)?;
        Ok(spec)
    }

    /// What is replaced by the line of --each or the number of --array.
    #[must_use]
    pub fn hole(&self) -> &str {
        self.replace.as_deref().unwrap_or("{}")
    }

    /// Whether something of the job comes from our standard input, or was said to come from
    /// elsewhere.
    #[must_use]
    pub fn reads_stdin(&self) -> bool {
        let stdin = Path::new("-");
        let given = self.inputs.iter().any(|given| given.file == stdin);
        self.stdin.is_some() || self.wasm.as_deref() == Some(stdin) || given
    }

    /// Our standard input can be read by one only.
    fn check_stdin(&self, many: bool) -> Result<(), Failure> {
        let is_stdin = |file: &Path| file == Path::new("-");
        let mut users: Vec<&str> = vec![];
        users.extend(self.stdin.iter().filter(|file| is_stdin(file)).map(|_| "--stdin -"));
        users.extend(self.wasm.iter().filter(|file| is_stdin(file)).map(|_| "--wasm -"));
        let given = self.inputs.iter().filter(|given| is_stdin(&given.file));
        users.extend(given.map(|_| "--in -"));
        users.extend(many.then_some("lines of jobs"));
        match users[..] {
            [one, other, ..] => {
                let what = format_args!("{one} and {other} cannot both come from stdin");
                Err(Failure::usage(what).hint("give one of them a file"))
            }
            _ => Ok(()),
        }
    }

    /// A key is taken by whatever broker is reached, so that two halves of a cut network would each
    /// run the job.
    fn check_home(&self) -> Result<(), Failure> {
        if self.overlap == Overlap::Forbid && self.key.is_some() && self.home.is_none() {
            let what = "--overlap forbid with --key needs --home: else each half of a cut network \
                        would take the job, and both would run it";
            return Err(Failure::usage(what)
                .hint("name the one broker that may take it: 'ucp-broker status' tells its log"));
        }
        Ok(())
    }

    fn check_many(&self, many: bool) -> Result<(), Failure> {
        let hole = self.hole();
        if hole.is_empty() {
            return Err(Failure::usage("--replace is empty, which stands everywhere")
                .hint("name what the line replaces, as in: -I % -- echo %"));
        }
        if self.replace.is_some() && !self.each && self.array.is_none() {
            return Err(Failure::usage("--replace is for --each and --array")
                .hint("name what varies: --array 1-9, or --each for the lines of stdin"));
        }
        if self.each && self.key.as_ref().is_some_and(|key| !key.contains(hole)) {
            return Err(Failure::usage("--key is the same for every line of --each")
                .hint(format_args!("put {hole} into the key")));
        }
        let holed = |given: &&Given| given.file.to_string_lossy().contains(hole);
        if let Some(given) = self.inputs.iter().find(|given| many && holed(given)) {
            let what = format_args!("--in {}: a line names no file", given.file.display());
            return Err(Failure::usage(what)
                .hint("all jobs get the same files; give the directory that they are in"));
        }
        Ok(())
    }
}

/// What the module sees as its own name: that of its file.
fn module_name(file: &Path) -> Option<String> {
    let name = file.file_name().filter(|_| file != Path::new("-"))?;
    Some(name.to_string_lossy().into_owned())
}

/// A path without what says nothing: `./a//b/` is `a/b`. Absolute ones stay, to be refused.
#[must_use]
pub fn plain(path: &str) -> String {
    let parts: Vec<&str> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if path.starts_with('/') || parts.is_empty() { path.to_owned() } else { parts.join("/") }
}

fn given_parser() -> impl TypedValueParser<Value = Given> {
    OsStringValueParser::new().try_map(|text| given(&text))
}

/// Reads `FILE` or `FILE=PATH`; the last `=` counts.
fn given(text: &OsStr) -> Result<Given, String> {
    let bytes = text.as_bytes();
    let Some(at) = bytes.iter().rposition(|byte| *byte == b'=') else {
        return match bytes {
            b"" => Err("a file is expected".into()),
            b"-" => Err("what comes from stdin needs a name: -=PATH".into()),
            _ => Ok(Given { file: text.into(), path: None }),
        };
    };
    let file = PathBuf::from(OsStr::from_bytes(&bytes[..at]));
    let path = String::from_utf8(bytes[at + 1..].to_vec());
    match path {
        _ if at == 0 => Err("a file is expected before '='".into()),
        Ok(path) if !path.is_empty() => Ok(Given { file, path: Some(path) }),
        Ok(_) => Err("a path is expected after '='".into()),
        Err(_) => Err("the path in the job's directory is not UTF-8".into()),
    }
}

fn variable_parser() -> impl TypedValueParser<Value = (String, Text)> {
    OsStringValueParser::new().try_map(variable)
}

/// Reads `NAME=VALUE`; the value may be any bytes.
fn variable(text: OsString) -> Result<(String, Text), String> {
    let shown = text.to_string_lossy().into_owned();
    let bytes = text.into_vec();
    let at = bytes.iter().position(|byte| *byte == b'=');
    let name = at.and_then(|at| std::str::from_utf8(&bytes[..at]).ok());
    match (at, name.filter(|name| !name.is_empty())) {
        (Some(at), Some(name)) => Ok((name.to_owned(), bytes[at + 1..].to_vec().into())),
        _ => Err(format!("{shown:?} is no NAME=VALUE")),
    }
}

fn precedence(text: &str) -> Result<Precedence, String> {
    text.parse()
}

fn after_deadline(text: &str) -> Result<AfterDeadline, String> {
    text.parse().map_err(|_| format!("{text:?} is neither finish nor stop"))
}

fn overlap(text: &str) -> Result<Overlap, String> {
    text.parse().map_err(|_| format!("{text:?} is neither allow nor forbid"))
}

fn preference(text: &str) -> Result<Preference, String> {
    text.parse().map_err(|_| format!("{text:?} is neither newest-attempt nor oldest-attempt"))
}

fn log(text: &str) -> Result<LogId, String> {
    let problem = "is no log, as in north-1f2e3d4c: 'ucp-broker status' names a broker's";
    text.parse().map_err(|_| format!("{text:?} {problem}"))
}

fn state(text: &str) -> Result<JobState, String> {
    let words = JobState::ALL.map(JobState::word).join(", ");
    let found = JobState::ALL.into_iter().find(|state| state.word() == text);
    found.ok_or_else(|| format!("{text:?} is no state: {words}"))
}

fn ranges(text: &str) -> Result<Ranges, String> {
    text.parse().map_err(|error: RangesError| error.to_string())
}

/// Reads a job id or the end of one, as a piece of a path that needs no quoting.
///
/// # Errors
/// It holds something else than hexadecimal digits and hyphens, or nothing.
pub fn job_ref(text: &str) -> Result<String, String> {
    let legal = |c: char| c.is_ascii_hexdigit() || c == '-';
    let (job, element) = text.split_once('/').map_or((text, None), |(job, e)| (job, Some(e)));
    let bad_job = job.is_empty() || job == "-" || job.len() > 64 || !job.chars().all(legal);
    let number = |text: &str| text.parse::<u64>().is_ok() && !text.starts_with('+');
    if bad_job || element.is_some_and(|element| !number(element)) {
        let expected = "a UUID or the end of one is expected, of an array's element ID/7";
        return Err(format!("{text:?} is no job id: {expected}"));
    }
    let whole = job.parse::<JobId>().map(|job| job.to_string());
    let job = whole.unwrap_or_else(|_| job.to_ascii_lowercase());
    Ok(element.map_or(job.clone(), |element| format!("{job}/{element}")))
}

fn job_ref_or_stdin(text: &str) -> Result<String, String> {
    if text == "-" { Ok(text.to_owned()) } else { job_ref(text) }
}
