//! One job: submit it, pass its output on as it is written, end as it ended.
//!
//! The submission carries an id drawn here, so it is simply repeated until it is acknowledged,
//! and a broker that starts again in between changes nothing: the output is asked for from the
//! byte after the last that was printed. Should another attempt take over, its output is printed
//! from the beginning, and stderr says so.

use std::cell::Cell;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::Method;

use crate::cli::exit::Exit;
use crate::cli::output::{self, OutputError};
use crate::cli::report::{self, Failure, Reporter};
use crate::proto::id::{AttemptId, JobId};
use crate::proto::job::JobSpec;
use crate::proto::message::StreamName;
use crate::proto::rng::Rng;
use crate::runtime::client::Body;
use crate::runtime::entropy;
use crate::wire::api::{AttemptLine, OutputLine, ResultLine, SubmitLine, SubmittedLine};

use super::flags::JobFlags;
use super::interrupt::{Interrupt, Interrupts};
use super::link::{Asked, Link};
use super::{line, outcome, query, stdin};

/// How the following of a job ended.
enum Followed {
    /// The job ended.
    Ended(Box<ResultLine>),
    /// Nobody reads our output any more.
    Closed,
}

/// The spec that the flags describe, with everything looked up and uploaded that it needs.
///
/// # Errors
/// Standard input cannot be read, a job of `--after` is not known, or no broker is reachable.
pub async fn spec(flags: &JobFlags, link: &mut Link) -> Result<JobSpec, Failure> {
    let mut spec = flags.base()?;
    for text in &flags.after {
        let job = match text.parse::<JobId>() {
            Ok(job) => job,
            Err(_) => query::resolve(text, link).await?,
        };
        spec.after.push(job);
    }
    if let Some(source) = &flags.stdin {
        spec.stdin = stdin::prepare(source, link).await?;
    }
    Ok(spec)
}

/// A fresh job id.
pub fn fresh_id() -> JobId {
    JobId::random(entropy::wall(), &mut Rng::from_seed(entropy::seed()))
}

fn submission(spec: JobSpec) -> (JobId, String) {
    let id = match &spec.key {
        Some(key) => JobId::keyed(key, &spec.digest()),
        None => fresh_id(),
    };
    let line = SubmitLine { index: 0, id: Some(id), spec };
    (id, serde_json::to_string(&line).expect("a spec has only string keys"))
}

/// Submits one job without live output: its id with `--detach`, else its result line.
///
/// # Errors
/// No broker is reachable, or it refused.
pub async fn report(
    flags: &JobFlags,
    link: &mut Link,
    reporter: Reporter,
) -> Result<Exit, Failure> {
    let (id, body) = submission(spec(flags, link).await?);
    if flags.detach {
        return detach(&body, link).await;
    }
    let mut interrupts = Interrupts::new()?;
    let (twin, sent) = (link.twin(), Cell::new(false));
    let ask = async {
        let line = link.submit("/v1/jobs?until=accepted", &body, &sent).await?;
        let ended: ResultLine = line::read(&line)?;
        match output::bytes(format!("{line}\n").as_bytes()).await {
            Ok(()) | Err(OutputError::Closed) => Ok(Followed::Ended(Box::new(ended))),
            Err(error) => Err(error.into()),
        }
    };
    attend(ask, (id, &sent), twin, &mut interrupts, reporter).await
}

async fn detach(body: &str, link: &mut Link) -> Result<Exit, Failure> {
    let line = link.submit("/v1/jobs", body, &Cell::new(false)).await?;
    let taken: SubmittedLine = line::read(&line)?;
    output::text(&format!("{}\n", taken.job))?;
    Ok(Exit::Done)
}

/// Submits one job and passes its output on until it ends.
///
/// # Errors
/// No broker is reachable, or it refused.
pub async fn follow(
    flags: &JobFlags,
    link: &mut Link,
    reporter: Reporter,
) -> Result<Exit, Failure> {
    let hint = flags.stdin.is_none() && stdin::is_waiting();
    if hint {
        reporter.hint("the job does not get what is on stdin; '--stdin -' passes it on");
    }
    let (id, body) = submission(spec(flags, link).await?);
    if flags.detach {
        return detach(&body, link).await;
    }
    let mut interrupts = Interrupts::new()?;
    let (twin, sent) = (link.twin(), Cell::new(false));
    let mut follower = Follower::both(id, reporter);
    let work = async {
        link.submit("/v1/jobs", &body, &sent).await?;
        match follower.follow(link).await {
            Ok(ended) => Ok(Followed::Ended(Box::new(ended))),
            Err(failure) if failure.what.is_empty() => Ok(Followed::Closed),
            Err(failure) => Err(failure),
        }
    };
    let exit = attend(work, (id, &sent), twin, &mut interrupts, reporter).await;
    if !hint && flags.stdin.is_none() && stdin::is_waiting() {
        reporter.hint("the job did not get what is on stdin; '--stdin -' passes it on");
    }
    exit
}

/// Waits for the work while attending to signals: the first Ctrl-C cancels the job, a second one,
/// TERM and HUP leave it to itself. Before the job was sent to any broker, each ends us at once.
async fn attend(
    work: impl Future<Output = Result<Followed, Failure>>,
    (id, sent): (JobId, &Cell<bool>),
    mut twin: Link,
    interrupts: &mut Interrupts,
    reporter: Reporter,
) -> Result<Exit, Failure> {
    let mut work = std::pin::pin!(work);
    let mut cancelling = false;
    let cancel = async {
        query::cancel_until_known(id, &mut twin).await;
        std::future::pending::<()>().await;
    };
    let mut cancel = std::pin::pin!(cancel);
    let followed = loop {
        tokio::select! {
            followed = &mut work => break followed,
            interrupt = interrupts.next() => match interrupt {
                _ if !sent.get() => {
                    let what = "interrupted before a broker was reached; nothing was submitted";
                    return Err(Failure::new(Exit::Cancelled, what));
                }
                Interrupt::Cancel if !cancelling => {
                    cancelling = true;
                    reporter.note("cancelling the job; press Ctrl-C again to leave it to itself");
                }
                Interrupt::Cancel | Interrupt::Detach => {
                    return Ok(outcome::unknown(id, "detached", reporter));
                }
            },
            () = &mut cancel, if cancelling => {}
        }
    };
    match followed {
        Ok(Followed::Ended(ended)) => Ok(outcome::tell(&ended, reporter)),
        Ok(Followed::Closed) => {
            // As a local command would, the job ends when nobody reads it.
            tokio::select! {
                () = &mut cancel => {}
                () = tokio::time::sleep(crate::proto::limits::CANCEL_WAIT_MAX) => {}
            }
            Ok(Exit::Done)
        }
        Err(failure) if failure.exit == Exit::Unknown => {
            Ok(outcome::unknown(id, &failure.what, reporter))
        }
        Err(failure) => Err(failure),
    }
}

/// Follows a job's output and remembers how much of it was printed.
pub struct Follower {
    job: JobId,
    attempt: Option<AttemptId>,
    /// Bytes printed of each stream that is wanted.
    stdout: Option<u64>,
    stderr: Option<u64>,
    /// Whether standard error is what was asked for, and so goes to our stdout.
    stderr_is_data: bool,
    reporter: Reporter,
}

impl Follower {
    /// Both streams, each to ours; nothing printed yet.
    pub fn both(job: JobId, reporter: Reporter) -> Self {
        let (stdout, stderr) = (Some(0), Some(0));
        Self { job, attempt: None, stdout, stderr, stderr_is_data: false, reporter }
    }

    /// One stream, to our standard output; nothing printed yet.
    pub fn one(job: JobId, stderr: bool, reporter: Reporter) -> Self {
        let (stdout, stderr) = ((!stderr).then_some(0), stderr.then_some(0));
        Self { job, attempt: None, stdout, stderr, stderr_is_data: true, reporter }
    }

    /// Passes output on until the job ends, whatever becomes of the broker meanwhile.
    ///
    /// # Errors
    /// No broker answered for too long, it refused, or nobody reads (then there are no words).
    pub async fn follow(&mut self, link: &mut Link) -> Result<ResultLine, Failure> {
        loop {
            match self.follow_once(true, link).await {
                Ok(Some(ended)) => return Ok(ended),
                // A broker that stops in order ends its answers without a result.
                Ok(None) => link.lose("the answer ended before the job did"),
                Err(Asked::Gone(error)) => link.lose_question(&error)?,
                Err(Asked::Failed(failure)) => return Err(failure),
            }
        }
    }

    /// Passes on what one answer holds; the result line where the job ended.
    ///
    /// # Errors
    /// Whether the broker went away, or something failed.
    pub async fn follow_once(
        &mut self,
        go_on: bool,
        link: &mut Link,
    ) -> Result<Option<ResultLine>, Asked> {
        let mut answer = link.begin(Method::GET, &self.path(go_on), Body::empty()).await?;
        while let Some(text) = answer.next().await? {
            let head = line::head(&text).map_err(Asked::Failed)?;
            match &*head.kind {
                "attempt" => {
                    let line: AttemptLine = line::read(&text).map_err(Asked::Failed)?;
                    self.switch(&line.attempt);
                }
                "output" => {
                    let line: OutputLine = line::read(&text).map_err(Asked::Failed)?;
                    self.print(&line).await.map_err(Asked::Failed)?;
                }
                "result" => {
                    let ended: ResultLine = line::read(&text).map_err(Asked::Failed)?;
                    self.rest(&ended).await.map_err(Asked::Failed)?;
                    return Ok(Some(ended));
                }
                _ => {}
            }
        }
        Ok(None)
    }

    fn path(&self, go_on: bool) -> String {
        let mut path = format!("/v1/jobs/{}/output?", self.job);
        let mut add = |name: &str, value: String| path.push_str(&format!("{name}={value}&"));
        if go_on {
            add("follow", "1".to_owned());
        }
        if let Some(from) = self.stdout {
            add("stdout_from", from.to_string());
        }
        if let Some(from) = self.stderr {
            add("stderr_from", from.to_string());
        }
        if let Some(attempt) = &self.attempt {
            add("attempt", attempt.to_string());
        }
        path.truncate(path.len() - 1);
        path
    }

    fn switch(&mut self, attempt: &AttemptId) {
        if self.attempt.as_ref() == Some(attempt) {
            return;
        }
        if self.attempt.is_some() {
            self.reporter.note(format_args!(
                "{}: runs anew as attempt {attempt}; its output follows from the beginning",
                self.job
            ));
        }
        self.attempt = Some(attempt.clone());
        self.stdout = self.stdout.map(|_| 0);
        self.stderr = self.stderr.map(|_| 0);
    }

    async fn print(&mut self, line: &OutputLine) -> Result<(), Failure> {
        let bytes = STANDARD.decode(&line.base64).map_err(|error| {
            Failure::new(Exit::Protocol, format_args!("the broker sent broken output: {error}"))
        })?;
        self.switch(&line.attempt);
        self.put(line.stream, line.offset, &bytes).await
    }

    /// Prints the part of a piece that was not printed before.
    async fn put(&mut self, name: StreamName, offset: u64, bytes: &[u8]) -> Result<(), Failure> {
        let printed = match name {
            StreamName::Stdout => &mut self.stdout,
            StreamName::Stderr => &mut self.stderr,
        };
        let Some(printed) = printed else { return Ok(()) };
        if offset > *printed {
            let missing = offset - *printed;
            self.reporter.note(format_args!("{}: {missing} bytes of output are missing", self.job));
            *printed = offset;
        }
        let known = usize::try_from(*printed - offset).unwrap_or(usize::MAX);
        let Some(fresh) = bytes.get(known..).filter(|fresh| !fresh.is_empty()) else {
            return Ok(());
        };
        match name {
            StreamName::Stderr if !self.stderr_is_data => report::bytes(fresh).await,
            StreamName::Stdout | StreamName::Stderr => output::bytes(fresh).await?,
        }
        *printed += fresh.len() as u64;
        Ok(())
    }

    /// Prints what only the result holds: the executor may have gone before all was passed on.
    async fn rest(&mut self, ended: &ResultLine) -> Result<(), Failure> {
        let Some(attempt) = &ended.attempt else { return Ok(()) };
        self.switch(attempt);
        let streams = [
            (StreamName::Stdout, &ended.stdout, &ended.encoding),
            (StreamName::Stderr, &ended.stderr, &ended.stderr_encoding),
        ];
        for (name, text, encoding) in streams {
            let Some(text) = text else { continue };
            let bytes = match encoding {
                Some(_) => STANDARD.decode(text).unwrap_or_default(),
                None => text.clone().into_bytes(),
            };
            self.put(name, 0, &bytes).await?;
        }
        Ok(())
    }
}
