//! One job: submit it, pass its output on as it is written, end as it ended.
//!
//! The submission carries an id drawn here, so it is simply repeated until it is acknowledged,
//! and a broker that starts again in between changes nothing. When the job has ended, the files
//! that it left are fetched.

use std::cell::Cell;

use hyper::Method;

use crate::cli::exit::Exit;
use crate::cli::output::{self, OutputError};
use crate::cli::report::{Failure, Reporter};
use crate::proto::id::{JobId, TaskId};
use crate::proto::job::{JobSpec, SpecError};
use crate::proto::limits;
use crate::proto::rng::Rng;
use crate::runtime::entropy;
use crate::wire::api::{SubmitLine, SubmittedLine};

use super::fetch::OutDir;
use super::files::Wanted;
use super::flags::{JobFlags, Until};
use super::follow::{Ended, Follower};
use super::interrupt::{Interrupt, Interrupts, Stop};
use super::link::Link;
use super::status::Status;
use super::{line, outcome, query, stdin, upload};

/// How the following of a job ended.
enum Followed {
    /// The job ended; what kept its files from being fetched, if anything.
    Ended(Ended, Option<Failure>),
    /// Nobody reads our output any more.
    Closed,
}

/// The spec that the flags describe, with everything looked up and uploaded that it needs.
///
/// # Errors
/// A file cannot be read, a job of `--after` is not known, or no broker is reachable.
pub async fn spec(flags: &JobFlags, link: &mut Link) -> Result<JobSpec, Failure> {
    let mut spec = flags.base()?;
    for text in &flags.after {
        let job = match text.parse::<JobId>() {
            Ok(job) => job,
            Err(_) => query::resolve(text, link).await?.job,
        };
        spec.after.push(job);
    }
    let many = flags.each || flags.jsonl || flags.array.is_some();
    upload::fill(&mut spec, Wanted::of(flags, many), link).await?;
    Ok(spec)
}

/// The same, given up at the first signal.
///
/// # Errors
/// As there, or a signal came.
pub async fn spec_unless_interrupted(
    flags: &JobFlags,
    link: &mut Link,
    interrupts: &mut Interrupts,
) -> Result<JobSpec, Failure> {
    tokio::select! {
        biased;
        spec = spec(flags, link) => spec,
        _ = interrupts.next() => {
            let what = "interrupted before all files were handed over; nothing was submitted";
            Err(Failure::new(Exit::Cancelled, what))
        }
    }
}

/// A fresh job id.
pub fn fresh_id() -> JobId {
    JobId::random(entropy::wall(), &mut Rng::from_seed(entropy::seed()))
}

/// The id of a submission and its JSON.
///
/// # Errors
/// It is too long.
pub fn submission(spec: JobSpec) -> Result<(JobId, String), Failure> {
    let id = match &spec.key {
        Some(key) => JobId::keyed(key, &spec.digest()),
        None => fresh_id(),
    };
    let line = SubmitLine { index: 0, id: Some(id), spec };
    let text = serde_json::to_string(&line).expect("a spec has only string keys");
    if text.len() > limits::SPEC_BYTES_MAX {
        return Err(Failure::new(Exit::Data, SpecError::Long)
            .hint("put long arguments and variables into a file: --in FILE"));
    }
    Ok((id, text))
}

/// Where the outputs of one job go: as told, or into the current directory if some are named.
fn out_dir(flags: &JobFlags) -> Result<Option<OutDir>, Failure> {
    let here = std::path::Path::new(".");
    let unnamed = (!flags.outputs.is_empty()).then_some(here);
    flags.out_dir.as_deref().or(unnamed).map(OutDir::create).transpose()
}

/// Submits a job and prints its id.
///
/// # Errors
/// No broker is reachable, or it refused.
pub async fn detach(spec: JobSpec, link: &mut Link, status: &mut Status) -> Result<Exit, Failure> {
    let (_, body) = submission(spec)?;
    let line = link.submit("/v1/jobs", &body, &Cell::new(false)).await?;
    let taken: SubmittedLine = line::read(&line)?;
    output::text(&format!("{}\n", taken.job))?;
    status.push(&line);
    status.write().await?;
    Ok(Exit::Done)
}

/// One job that is waited for, and how far it is.
struct Run<'a> {
    id: JobId,
    /// Whether a broker may know of it.
    sent: Cell<bool>,
    /// Whether it has ended and its files are fetched; then a signal ends that.
    fetching: Cell<bool>,
    stop: Stop,
    out: Option<OutDir>,
    reporter: Reporter,
    flags: &'a JobFlags,
}

/// Submits one job without live output: its id with `--detach`, else its result line.
///
/// # Errors
/// No broker is reachable, or it refused.
pub async fn report(
    flags: &JobFlags,
    link: &mut Link,
    mut status: Status,
    reporter: Reporter,
) -> Result<Exit, Failure> {
    if flags.detach {
        return detach(spec(flags, link).await?, link, &mut status).await;
    }
    let mut interrupts = Interrupts::new()?;
    let (run, body) = Run::prepare(flags, link, &mut interrupts, reporter).await?;
    let twin = link.twin();
    let path = format!("/v1/jobs?until={}", flags.until.word());
    let work = async {
        let ended = Ended::read(link.submit(&path, &body, &run.sent).await?)?;
        let unfetched = run.fetch(&ended, link).await;
        match output::bytes(format!("{}\n", ended.text).as_bytes()).await {
            Ok(()) | Err(OutputError::Closed) => Ok(Followed::Ended(ended, unfetched)),
            Err(error) => Err(error.into()),
        }
    };
    run.attend(work, twin, &mut interrupts, &mut status).await
}

/// Submits one job and passes its output on until it ends.
///
/// # Errors
/// No broker is reachable, or it refused.
pub async fn follow(
    flags: &JobFlags,
    link: &mut Link,
    mut status: Status,
    reporter: Reporter,
) -> Result<Exit, Failure> {
    let reads_stdin = flags.reads_stdin();
    let hint = !reads_stdin && stdin::is_waiting();
    if hint {
        reporter.hint("the job does not get what is on stdin; '--stdin -' passes it on");
    }
    if flags.detach {
        return detach(spec(flags, link).await?, link, &mut status).await;
    }
    let mut interrupts = Interrupts::new()?;
    let (run, body) = Run::prepare(flags, link, &mut interrupts, reporter).await?;
    let twin = link.twin();
    let mut follower = Follower::both(run.id.into(), reporter);
    let work = async {
        link.submit("/v1/jobs", &body, &run.sent).await?;
        match follower.follow(link).await {
            Ok(ended) => {
                let ended = run.settled(ended, link).await?;
                let unfetched = run.fetch(&ended, link).await;
                Ok(Followed::Ended(ended, unfetched))
            }
            Err(failure) if failure.what.is_empty() => Ok(Followed::Closed),
            Err(failure) => Err(failure),
        }
    };
    let exit = run.attend(work, twin, &mut interrupts, &mut status).await;
    if !hint && !reads_stdin && stdin::is_waiting() {
        reporter.hint("the job did not get what is on stdin; '--stdin -' passes it on");
    }
    exit
}

impl<'a> Run<'a> {
    async fn prepare(
        flags: &'a JobFlags,
        link: &mut Link,
        interrupts: &mut Interrupts,
        reporter: Reporter,
    ) -> Result<(Self, String), Failure> {
        let out = out_dir(flags)?;
        let (id, body) = submission(spec_unless_interrupted(flags, link, interrupts).await?)?;
        let (sent, fetching, stop) = (Cell::new(false), Cell::new(false), Stop::default());
        Ok((Self { id, sent, fetching, stop, out, reporter, flags }, body))
    }

    /// The result that was asked for: a final one, where that is wanted and it is not yet.
    async fn settled(&self, ended: Ended, link: &mut Link) -> Result<Ended, Failure> {
        if self.flags.until == Until::Accepted || ended.line.is_final {
            return Ok(ended);
        }
        let path = format!("/v1/jobs/{}?until=final", self.id);
        Ended::read(link.ask(Method::GET, &path, None).await?)
    }

    /// Fetches what the job left behind; gives back why that was not done.
    async fn fetch(&self, ended: &Ended, link: &mut Link) -> Option<Failure> {
        let outputs = &ended.line.outputs;
        let out = self.out.as_ref().filter(|_| !outputs.is_empty())?;
        self.fetching.set(true);
        tokio::select! {
            biased;
            fetched = out.fetch(self.id.into(), None, outputs, link) => fetched.err(),
            interrupt = self.stop.asked() => {
                let exit = match interrupt {
                    Interrupt::Cancel => Exit::Cancelled,
                    Interrupt::Detach => Exit::Unknown,
                };
                let what = format_args!("{}: interrupted before all its files were here", self.id);
                let hint = format_args!("'ucp-submit output {} --out-dir DIR' fetches them", self.id);
                Some(Failure::new(exit, what).hint(hint))
            }
        }
    }

    /// Waits for the work while attending to signals: the first Ctrl-C cancels the job, a second
    /// one, TERM and HUP leave it to itself. Before the job was sent to any broker, each ends us
    /// at once; when it has ended, each ends the fetching of its files.
    async fn attend(
        &self,
        work: impl Future<Output = Result<Followed, Failure>>,
        mut twin: Link,
        interrupts: &mut Interrupts,
        status: &mut Status,
    ) -> Result<Exit, Failure> {
        let (id, reporter) = (TaskId::from(self.id), self.reporter);
        let mut other = twin.twin();
        let mut work = std::pin::pin!(work);
        let (mut cancelling, mut stopping) = (false, false);
        let cancel = async {
            query::cancel_until_known(id, &mut twin).await;
            std::future::pending::<()>().await;
        };
        let mut cancel = std::pin::pin!(cancel);
        let followed = loop {
            tokio::select! {
                followed = &mut work => break followed,
                interrupt = interrupts.next() => match interrupt {
                    _ if !self.sent.get() => {
                        let what = "interrupted before a broker was reached; nothing was submitted";
                        return Err(Failure::new(Exit::Cancelled, what));
                    }
                    interrupt if self.fetching.get() && !stopping => {
                        stopping = true;
                        self.stop.ask(interrupt);
                    }
                    Interrupt::Cancel if !cancelling && !stopping => {
                        cancelling = true;
                        reporter.note("cancelling the job; press Ctrl-C again to leave it to itself");
                    }
                    Interrupt::Cancel | Interrupt::Detach => {
                        return self.unknown("detached", status).await;
                    }
                },
                () = &mut cancel, if cancelling => {}
            }
        };
        match followed {
            Ok(Followed::Ended(ended, unfetched)) => {
                if cancelling {
                    // The job is ended at once; its processes have a moment to do so.
                    tokio::select! {
                        () = query::until_gone(id, &mut other) => {}
                        () = tokio::time::sleep(limits::CANCEL_WAIT_MAX) => {}
                        _ = interrupts.next() => {}
                    }
                }
                self.end(&ended, unfetched, status).await
            }
            Ok(Followed::Closed) => {
                // As a local command would, the job ends when nobody reads it.
                tokio::select! {
                    () = &mut cancel => {}
                    () = tokio::time::sleep(limits::CANCEL_WAIT_MAX) => {}
                }
                Ok(Exit::Done)
            }
            Err(failure) if failure.exit == Exit::Unknown => {
                self.unknown(&failure.what, status).await
            }
            Err(failure) => Err(failure),
        }
    }

    async fn unknown(&self, why: &str, status: &mut Status) -> Result<Exit, Failure> {
        let exit = outcome::unknown(self.id.into(), why, self.reporter);
        status.push_unknown(self.id.into(), why);
        status.write().await?;
        Ok(exit)
    }

    /// The job's own status first; that its files are not here counts where it succeeded.
    async fn end(
        &self,
        ended: &Ended,
        unfetched: Option<Failure>,
        status: &mut Status,
    ) -> Result<Exit, Failure> {
        let exit = outcome::tell(&ended.line, self.reporter);
        status.push(&ended.text);
        let exit = match unfetched.map(|failure| self.reporter.failure(&failure)) {
            Some(said) if exit.status() == 0 => said,
            _ => exit,
        };
        status.write().await?;
        Ok(exit)
    }
}
