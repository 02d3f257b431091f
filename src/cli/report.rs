//! Standard error: what went wrong and why, hints, notes, and the log.
//!
//! The only file that writes to stderr. One line `PROGRAM: what went wrong: why`, and where
//! advice exists a line `hint: …`; with `--json` also a problem document (RFC 9457). A stderr that
//! is closed is ignored: there is nobody left to tell.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};

use indicatif::ProgressBar;

use crate::cli::args::{Common, LogFormat};
use crate::cli::exit::Exit;
use crate::cli::output::{self, OutputError};
use crate::proto::id::TaskId;
use crate::runtime::client::ClientError;
use crate::runtime::endpoint::{Address, EndpointError};
use crate::runtime::rundir::DirError;
use crate::runtime::store::StoreError;
use crate::wire::problem::Problem;

/// Why a command did not do what it was told, ready to be reported.
#[derive(Debug)]
pub struct Failure {
    /// How the command ends.
    pub exit: Exit,
    /// What went wrong and why, in one line; empty where there is nothing to tell.
    pub what: String,
    /// What a person can do about it.
    pub hint: Option<String>,
    /// The broker's own document, where it refused.
    pub problem: Option<Box<Problem>>,
}

impl Failure {
    /// A failure with its status and its words.
    #[must_use]
    pub fn new(exit: Exit, what: impl Display) -> Self {
        Self { exit, what: what.to_string(), hint: None, problem: None }
    }

    /// Wrong usage; `why` names the flag.
    #[must_use]
    pub fn usage(why: impl Display) -> Self {
        Self::new(Exit::Usage, format!("wrong usage: {why}"))
    }

    /// The end of a program whose reader has gone: nothing to tell, and no failure.
    #[must_use]
    pub fn quiet() -> Self {
        Self::new(Exit::Done, "")
    }

    /// An operation on a file or stream failed.
    #[must_use]
    pub fn io(what: impl Display, error: &io::Error) -> Self {
        Self::new(error.into(), format!("{what}: {error}"))
    }

    /// The same failure with advice.
    #[must_use]
    pub fn hint(mut self, hint: impl Display) -> Self {
        self.hint = Some(hint.to_string());
        self
    }

    /// The same failure with what was being done in front.
    #[must_use]
    pub fn while_doing(mut self, doing: impl Display) -> Self {
        if !self.what.is_empty() {
            self.what = format!("{doing}: {}", self.what);
        }
        self
    }

    fn document(&self) -> Problem {
        if let Some(problem) = &self.problem {
            return (**problem).clone();
        }
        let mut problem = Problem::new(self.exit.http(), self.exit.code(), self.what.clone());
        problem.hint.clone_from(&self.hint);
        problem.retryable = matches!(self.exit, Exit::NoBroker | Exit::Later);
        problem
    }
}

impl From<EndpointError> for Failure {
    fn from(error: EndpointError) -> Self {
        let failure = Self::new(Exit::from(&error), chain(&error));
        match &error {
            EndpointError::NoBroker { looked, .. } => failure.hint(where_looked(looked)),
            _ => failure,
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let exit = Exit::from(&error);
        match error {
            ClientError::Endpoint(error) => error.into(),
            ClientError::Refused(problem) => Self {
                exit,
                what: problem.detail.clone(),
                hint: problem.hint.clone(),
                problem: Some(problem),
            },
            other => Self::new(exit, chain(&other)),
        }
    }
}

impl From<&DirError> for Failure {
    fn from(error: &DirError) -> Self {
        let hint = error.hint().map(str::to_owned);
        Self { hint, ..Self::new(Exit::from(error), chain(error)) }
    }
}

impl From<DirError> for Failure {
    fn from(error: DirError) -> Self {
        Self::from(&error)
    }
}

impl From<&StoreError> for Failure {
    fn from(error: &StoreError) -> Self {
        let hint = error.hint().map(str::to_owned);
        Self { hint, ..Self::new(Exit::from(error), chain(error)) }
    }
}

impl From<OutputError> for Failure {
    fn from(error: OutputError) -> Self {
        match error {
            OutputError::Closed => Self::quiet(),
            OutputError::Write(..) => Self::new(Exit::Io, error),
        }
    }
}

fn where_looked(looked: &[String]) -> String {
    let places = if looked.is_empty() { "nowhere".to_owned() } else { looked.join(", ") };
    format!("looked at {places}; start 'ucp-broker', or name one with --broker or $UCP_BROKER")
}

/// An error with its causes, without saying twice what a message already holds.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// Writes to stderr in the name of one program.
#[derive(Debug, Clone, Copy)]
pub struct Reporter {
    program: &'static str,
    quiet: bool,
    json: bool,
}

impl Reporter {
    /// A reporter before any flag is known.
    #[must_use]
    pub const fn new(program: &'static str) -> Self {
        Self { program, quiet: false, json: false }
    }

    /// Takes the flags into account and begins the log on stderr.
    #[must_use]
    pub fn begin(program: &'static str, common: &Common, json: bool) -> Self {
        begin_log(common);
        Self { program, quiet: common.quiet, json }
    }

    /// The program's name.
    #[must_use]
    pub const fn program(&self) -> &'static str {
        self.program
    }

    /// Reports a failure and gives the status to end with.
    pub fn failure(&self, failure: &Failure) -> Exit {
        if !failure.what.is_empty() {
            put(&format!("{}: {}", self.program, failure.what));
            if let Some(hint) = &failure.hint {
                put(&format!("hint: {hint}"));
            }
            if self.json {
                let document = serde_json::to_string(&failure.document());
                put(&document.expect("a problem has only string keys"));
            }
        }
        failure.exit
    }

    /// Says why a command ends with a status of ours and not with the job's own.
    pub fn own(&self, job: TaskId, reason: impl Display) {
        put(&format!("{}: {job}: {reason}", self.program));
    }

    /// Says something that is no failure; not with `-q`.
    pub fn note(&self, what: impl Display) {
        if !self.quiet {
            put(&format!("{}: {what}", self.program));
        }
    }

    /// Says what is wrong with a part of the input, after which the work goes on.
    pub fn fault(&self, what: impl Display) {
        put(&format!("{}: {what}", self.program));
    }

    /// Gives advice without a failure; not with `-q`.
    pub fn hint(&self, hint: impl Display) {
        if !self.quiet {
            put(&format!("hint: {hint}"));
        }
    }

    /// Says that a broker went away and is waited for; not with `-q`.
    pub fn away(&self, address: &Address) {
        self.note(format_args!("broker {address} does not answer, waiting for it or another"));
    }

    /// Says that a broker answers again; not with `-q`.
    pub fn back(&self, address: &Address) {
        self.note(format_args!("broker {address} answers, going on"));
    }
}

/// Passes on bytes of a job's standard error as they are.
pub async fn bytes(bytes: &[u8]) {
    let _ = output::write_slowly(io::stderr().as_fd(), bytes).await;
}

fn put(line: &str) {
    let line: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let _ = Above.write_all(format!("{line}\n").as_bytes());
}

/// Whether stderr is a terminal.
#[must_use]
pub fn is_terminal() -> bool {
    io::stderr().is_terminal()
}

/// Whether to colour what goes to stderr.
#[must_use]
pub fn colour(common: &Common) -> bool {
    common.colour(&io::stderr())
}

/// What is drawn on the last line of the terminal, if anything.
static LAST_LINE: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// Says what is drawn on the last line of the terminal from now on: it goes away while something
/// is written.
pub fn set_last_line(bar: Option<ProgressBar>) {
    *LAST_LINE.lock().unwrap_or_else(PoisonError::into_inner) = bar;
}

/// Stderr, above what is drawn on the last line.
struct Above;

impl Write for Above {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let bar = LAST_LINE.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let write = || io::stderr().lock().write_all(bytes);
        bar.map_or_else(write, |bar| bar.suspend(write))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn begin_log(common: &Common) {
    use tracing::level_filters::LevelFilter;
    let level = match (common.quiet, common.verbose) {
        (true, _) => LevelFilter::ERROR,
        (false, 0) => LevelFilter::WARN,
        (false, 1) => LevelFilter::INFO,
        (false, 2) => LevelFilter::DEBUG,
        (false, _) => LevelFilter::TRACE,
    };
    let log = tracing_subscriber::fmt().with_max_level(level).with_writer(|| Above);
    // A second start within one process (tests) keeps the first log.
    let _ = match common.log_format {
        LogFormat::Text => log.with_target(false).try_init(),
        LogFormat::Json => log.json().try_init(),
    };
}
