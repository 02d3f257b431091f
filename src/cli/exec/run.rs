//! `ucp-exec run`: one job spec in, one result line out, without broker, daemon or data.
//!
//! Reads, checks, prints; running is runtime/alone.rs, by the same path as an executor's jobs.
//! Exit statuses: the job's own, 128+n where signal n ended it; 124 its time was over; 125 it ended
//! with 0 and an error (an output was not made), or never ran; 126 and 127 as in a shell; 130 and
//! 143 stopped by SIGINT and SIGTERM. Before anything ran: 64 usage, 65 the spec is wrong, 66 it
//! or a file that it names is absent, 78 this machine has not what the job needs.
//! Law: whatever happens short of SIGKILL, nothing of the job stays but its outputs
//! (tests/exec/run.rs).

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::cli::exit::Exit;
use crate::cli::output::{self, OutputError};
use crate::cli::report::{Failure, Reporter, chain};
use crate::proto::capability::{Occupied, fits};
use crate::proto::clock::Clock;
use crate::proto::content::Content;
use crate::proto::fact::Reported;
use crate::proto::id::ExecutorId;
use crate::proto::job::{JobSpec, json_error};
use crate::proto::limits;
use crate::proto::result::{JobResult, Stream};
use crate::proto::view::{Ended, JobState};
use crate::runtime::alone::{self, AloneError, Finished};
use crate::runtime::isolation::{Owner, Plan};
use crate::runtime::measure::Meter;
use crate::runtime::rooms;
use crate::runtime::{entropy, spawner};
use crate::wire::api::ResultLine;

use super::{Machine, capability};

/// What to run, and where its outputs go.
#[derive(Debug, clap::Args)]
pub(super) struct Run {
    /// The job's spec, one JSON object; standard input where absent or `-`
    #[arg(value_name = "SPEC.json")]
    spec: Option<PathBuf>,
    /// Where the job's outputs are put, under their own paths; the current directory if absent
    #[arg(long, value_name = "DIR")]
    out_dir: Option<PathBuf>,
    #[command(flatten)]
    machine: Machine,
}

/// A directory that goes when this does.
struct Temporary(PathBuf);

impl Temporary {
    fn make() -> Result<Self, Failure> {
        use std::os::unix::fs::DirBuilderExt;
        let parent = std::env::temp_dir();
        let named = |error: &io::Error| {
            let parent = parent.display();
            Failure::new(Exit::Create, format!("cannot make a directory in {parent}: {error}"))
        };
        let parent = parent.canonicalize().map_err(|error| named(&error))?;
        let path = parent.join(format!("ucp-run-{:016x}", entropy::seed()));
        let made = std::fs::DirBuilder::new().mode(0o700).create(&path);
        made.map_err(|error| named(&error))?;
        Ok(Self(path))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Err(error) = rooms::remove_tree(&self.0) {
            tracing::warn!("cannot remove {}: {error}", self.0.display());
        }
    }
}

/// Runs one job to its end.
pub(super) fn run(flags: Run, reporter: &Reporter) -> Result<Exit, Failure> {
    let spec = read(flags.spec.as_deref())?;
    check(&spec)?;
    let (level, writable) = (flags.machine.isolation, flags.machine.allow_write.clone());
    let capability = capability(flags.machine)?;
    let load = Meter::new(std::env::temp_dir()).measure(entropy::now().mono);
    let unmet = fits(spec.kind(), &spec.needs, &capability, &load, &Occupied::default());
    if let Err(unmet) = unmet {
        let what = format!("the job does not fit this machine, which {unmet}");
        return Err(Failure::new(Exit::Config, what).hint("lower its `needs`, or give --label"));
    }
    let place = Temporary::make()?;
    let name = format!("run-{:08x}", entropy::seed() & u64::from(u32::MAX));
    let owner = Owner { executor: &name, life: 0 };
    let plan = Plan::make(level.into(), writable, Some(owner));
    let spawner = spawner::fork(&plan).map_err(|error| Failure::new(Exit::Bug, chain(&error)))?;
    let finished = alone::run(spec, &plan, spawner, &place.0).map_err(|error| match &error {
        AloneError::Dir(error) => error.into(),
        AloneError::Spawner => Failure::new(Exit::Bug, chain(&error)),
        _ => Failure::new(Exit::Io, chain(&error)),
    })?;
    let out_dir = flags.out_dir.unwrap_or_else(|| PathBuf::from("."));
    let delivered = deliver(&finished, &out_dir);
    let line = line(&finished)?;
    match output::line(&line) {
        // The status still tells somebody.
        Ok(()) | Err(OutputError::Closed) => {}
        Err(error) => return Err(error.into()),
    }
    delivered?;
    Ok(end(&finished, reporter))
}

/// Reads a spec.
fn read(path: Option<&Path>) -> Result<JobSpec, Failure> {
    let path = path.filter(|path| *path != Path::new("-"));
    let name = path.map_or("standard input".into(), |path| path.display().to_string());
    let failed = |error: &io::Error| Failure::io(format_args!("cannot read {name}"), error);
    let input: Box<dyn Read> = match path {
        None => Box::new(io::stdin().lock()),
        Some(path) => Box::new(File::open(path).map_err(|error| failed(&error))?),
    };
    let mut bytes = vec![];
    let max = limits::RUN_SPEC_BYTES_MAX;
    input.take(max + 1).read_to_end(&mut bytes).map_err(|error| failed(&error))?;
    let wrong = |why: &dyn std::fmt::Display| Failure::new(Exit::Data, format!("{name}: {why}"));
    if bytes.len() as u64 > max {
        let why = format!("a spec is over {max} bytes; long contents stand in a `file`");
        return Err(wrong(&why));
    }
    if bytes.trim_ascii().is_empty() {
        return Err(wrong(&"there is no spec").hint(r#"a spec is as {"command":["date"]}"#));
    }
    let spec: JobSpec =
        serde_json::from_slice(&bytes).map_err(|error| wrong(&json_error(&error)))?;
    spec.validate_local().map_err(|error| wrong(&error))?;
    Ok(spec)
}

/// What is said of a job whose deadline was over.
const EXPIRED: &str = "expired: its deadline is over";

/// Checks what needs a broker, and that the files are there.
fn check(spec: &JobSpec) -> Result<(), Failure> {
    if !spec.after.is_empty() {
        let why = "field `after`: without a broker there are no other jobs to wait for";
        return Err(Failure::new(Exit::Data, why).hint("leave it out"));
    }
    let module = spec.wasm.iter().map(|module| ("field `wasm`".to_owned(), &module.content));
    let stdin = spec.stdin.iter().map(|content| ("field `stdin`".to_owned(), content));
    let inputs = spec.inputs.iter();
    let inputs = inputs.map(|(path, input)| (format!("field `inputs`: {path:?}"), &input.content));
    for (field, content) in module.chain(stdin).chain(inputs) {
        match content {
            Content::Blob(_) => {
                let why = format!("{field}: a `blob` is held by a broker, and none is here");
                return Err(Failure::new(Exit::Data, why).hint("name a `file`, or give its text"));
            }
            Content::File(path) => {
                let what = format!("{field}: cannot read {path}");
                // Looked at before it is opened: a fifo would be waited for.
                let found = std::fs::metadata(path).map_err(|e| Failure::io(&what, &e))?;
                if found.is_dir() {
                    return Err(Failure::new(Exit::Data, format!("{what}: it is a directory")));
                }
                if found.is_file() {
                    File::open(path).map_err(|e| Failure::io(&what, &e))?;
                }
            }
            Content::Text(_) | Content::Base64(_) => {}
        }
    }
    Ok(())
}

/// Copies the outputs to where they are wanted, each whole or not at all.
fn deliver(finished: &Finished, directory: &Path) -> Result<(), Failure> {
    for (path, file) in finished.files() {
        let target = directory.join(path);
        let executable = finished.result.outputs[path].executable;
        let delivered = deliver_one(&file, &target, executable);
        delivered.map_err(|error| {
            let what = format!("cannot write output {}: {error}", target.display());
            Failure::new(Exit::Create, what).hint("say another place with --out-dir DIR")
        })?;
    }
    Ok(())
}

fn deliver_one(from: &Path, target: &Path, executable: bool) -> io::Result<()> {
    if let Some(above) = target.parent() {
        std::fs::create_dir_all(above)?;
    }
    let mut beside = target.as_os_str().to_owned();
    beside.push(format!(".ucp-{}", std::process::id()));
    let beside = PathBuf::from(beside);
    let copy = || {
        // What the umask leaves of it.
        let mode = if executable { 0o777 } else { 0o666 };
        let mut options = OpenOptions::new();
        let mut to = options.write(true).create(true).truncate(true).mode(mode).open(&beside)?;
        io::copy(&mut File::open(from)?, &mut to)?;
        std::fs::rename(&beside, target)
    };
    copy().inspect_err(|_| {
        let _ = std::fs::remove_file(&beside);
    })
}

fn line(finished: &Finished) -> Result<ResultLine, Failure> {
    let result = &finished.result;
    let state = match finished.stopped {
        Some(_) if !result.is_success() => JobState::Cancelled,
        _ if result.is_success() => JobState::Succeeded,
        _ if finished.expired => JobState::Expired,
        _ => JobState::Failed,
    };
    let reason = finished.stopped.map(|signal| format!("stopped by signal {signal}"));
    let executor: ExecutorId =
        finished.attempt.dot.log.as_str().parse().expect("the name of a log is one of an executor");
    let reported = Reported {
        attempt: finished.attempt.clone(),
        executor,
        digest: result.digest(),
        result: result.clone(),
        runs: vec![],
        clock: Clock::default(),
        carried: vec![],
    };
    let ended = Ended {
        job: finished.job,
        element: None,
        item: None,
        state,
        generation: 1,
        result: Some((finished.attempt.dot.clone(), Arc::new(reported))),
        is_final: true,
        clock: Clock::default(),
        reason: reason.or_else(|| finished.expired.then(|| EXPIRED.to_owned())),
    };
    let mut line = ResultLine::new(&ended, None);
    line.executor = None;
    if result.stdout.blob.is_some() {
        line.stdout_blob = None;
        let (text, encoding) = whole(finished, "stdout", &result.stdout, &mut line.truncated)?;
        (line.stdout, line.encoding) = (Some(text), encoding);
    }
    if result.stderr.blob.is_some() {
        line.stderr_blob = None;
        let (text, encoding) = whole(finished, "stderr", &result.stderr, &mut line.truncated)?;
        (line.stderr, line.stderr_encoding) = (Some(text), encoding);
    }
    Ok(line)
}

type Shown = (String, Option<crate::wire::api::Kind>);

/// Reads a stream that is not in the result, up to what the line may have.
fn whole(
    finished: &Finished,
    name: &str,
    stream: &Stream,
    truncated: &mut bool,
) -> Result<Shown, Failure> {
    let failed =
        |error: &io::Error| Failure::io(format_args!("cannot read the job's {name}"), error);
    let max = limits::RUN_OUTPUT_BYTES_MAX;
    let mut bytes = vec![];
    let file = File::open(finished.stream(name)).map_err(|error| failed(&error))?;
    file.take(max).read_to_end(&mut bytes).map_err(|error| failed(&error))?;
    if stream.size > max {
        *truncated = true;
        // A cut within a character would make bytes of what is text.
        if let Err(error) = std::str::from_utf8(&bytes)
            && error.error_len().is_none()
        {
            bytes.truncate(error.valid_up_to());
        }
    }
    Ok(match String::from_utf8(bytes) {
        Ok(text) => (text, None),
        Err(error) => (STANDARD.encode(error.as_bytes()), Some("base64".into())),
    })
}

/// The status to end with; one that is not the job's own is announced.
fn end(finished: &Finished, reporter: &Reporter) -> Exit {
    let JobResult { exit, signal, error, timed_out, .. } = &finished.result;
    let own = |exit: Exit, reason: &str| {
        reporter.own(finished.job.into(), reason);
        exit
    };
    if let Some(stop) = finished.stopped.filter(|_| !finished.result.is_success()) {
        let status = 128 + u8::try_from(stop).unwrap_or(0);
        return own(Exit::Job(status), &format!("stopped by signal {stop}"));
    }
    match (exit, signal) {
        _ if finished.expired => own(Exit::NotRun, EXPIRED),
        _ if *timed_out => own(Exit::TimedOut, "its time was over"),
        (Some(0), _) => match error {
            None => Exit::Done,
            Some(error) => own(Exit::NotRun, error),
        },
        (Some(exit), _) => {
            if let Some(error) = error {
                reporter.own(finished.job.into(), error);
            }
            Exit::Job(u8::try_from(*exit).unwrap_or(u8::MAX))
        }
        (None, Some(signal)) => Exit::Job(128 + u8::try_from(*signal).unwrap_or(0)),
        (None, None) => own(Exit::NotRun, error.as_deref().unwrap_or("it has no status")),
    }
}
