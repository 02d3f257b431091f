//! Waiting for jobs that were submitted before, their output, and the files that they left.
//!
//! Both go on when the broker starts again; a job that is not known to it is an error.

use hyper::Method;

use crate::cli::args::Common;
use crate::cli::exit::Exit;
use crate::cli::output;
use crate::cli::report::{Failure, Reporter};
use crate::proto::id::JobId;
use crate::proto::ranges::Ranges;
use crate::proto::view::JobState;
use crate::wire::api::ShowLine;

use super::array::Results;
use super::fetch::OutDir;
use super::flags::{OutputFlags, WaitFlags};
use super::follow::{Ended, Follower};
use super::interrupt::Interrupts;
use super::link::{Asked, Link};
use super::progress::Progress;
use super::status::Status;
use super::{line, query};

/// `wait`: the result line of each job, in the order in which they are named.
///
/// # Errors
/// No broker answered for too long, or nobody reads.
pub async fn wait(
    flags: &WaitFlags,
    common: &Common,
    link: &mut Link,
    reporter: Reporter,
) -> Result<Exit, Failure> {
    let jobs = query::named(&flags.jobs)?;
    let out = flags.out_dir.as_deref().map(OutDir::create).transpose()?;
    let mut at = 0;
    let waiting = Waiting { jobs: &jobs, out, until: flags.until.word(), common, reporter };
    let all = unless_interrupted(waiting.out.is_some(), waiting.all(&mut at, link));
    let waited = match flags.timeout {
        None => all.await,
        Some(span) => match tokio::time::timeout(span.duration(), all).await {
            Ok(ended) => ended,
            Err(_) => return Ok(unknown(&jobs[at], "--timeout ran out", reporter)),
        },
    };
    match waited {
        Err(failure) if failure.exit == Exit::Unknown => {
            Ok(unknown(&jobs[at], &failure.what, reporter))
        }
        other => other,
    }
}

fn unknown(job: &str, why: &str, reporter: Reporter) -> Exit {
    let what = format_args!("outcome unknown: {why}; 'ucp-submit wait {job}' goes on");
    reporter.failure(&Failure::new(Exit::Unknown, format_args!("{job}: {what}")))
}

/// Several jobs that are waited for.
struct Waiting<'a> {
    jobs: &'a [String],
    out: Option<OutDir>,
    until: &'static str,
    common: &'a Common,
    reporter: Reporter,
}

impl Waiting<'_> {
    async fn all(&self, at: &mut usize, link: &mut Link) -> Result<Exit, Failure> {
        let mut exit = Exit::Done;
        for (number, job) in self.jobs.iter().enumerate() {
            *at = number;
            let path = format!("/v1/jobs/{job}?until={}", self.until);
            if let Some((id, elements)) = elements_of(job, link).await? {
                let count = Some(elements.len());
                let progress = Progress::start(count, false, self.common, self.reporter);
                let told = (progress, self.reporter);
                let out = self.out_of_array(id)?;
                let mut results = Results::new(id, elements, false, out, told);
                let ended = results.gather(self.until, link, &mut Status::default()).await?;
                if exit == Exit::Done {
                    exit = ended;
                }
                continue;
            }
            match link.ask(Method::GET, &path, None).await {
                Ok(text) => {
                    let ended = Ended::read(text)?;
                    let unfetched = self.fetch(&ended, link).await.err();
                    output::bytes(format!("{}\n", ended.text).as_bytes()).await?;
                    if let Some(failure) = unfetched {
                        exit = self.reporter.failure(&failure);
                    } else if ended.line.state != JobState::Succeeded && exit == Exit::Done {
                        exit = Exit::No;
                    }
                }
                Err(failure) if failure.problem.is_some() => {
                    let doing = format_args!("cannot wait for {job}");
                    exit = self.reporter.failure(&failure.while_doing(doing));
                }
                Err(failure) => return Err(failure),
            }
        }
        Ok(exit)
    }

    /// Where the files of an array's elements go, each into a directory of its own there.
    fn out_of_array(&self, job: JobId) -> Result<Option<OutDir>, Failure> {
        match &self.out {
            Some(out) if self.jobs.len() > 1 => out.below(&job.to_string()).map(Some),
            out => Ok(out.clone()),
        }
    }

    async fn fetch(&self, ended: &Ended, link: &mut Link) -> Result<(), Failure> {
        let Some(out) = &self.out else { return Ok(()) };
        let job = ended.line.job;
        let below = (self.jobs.len() > 1).then(|| job.to_string());
        out.fetch(job, below.as_deref(), &ended.line.outputs, link).await
    }
}

/// The elements of a job that is an array as a whole.
async fn elements_of(job: &str, link: &mut Link) -> Result<Option<(JobId, Ranges)>, Failure> {
    if job.contains('/') {
        return Ok(None);
    }
    let path = format!("/v1/jobs/{job}?facts_only=1");
    match link.ask(Method::GET, &path, None).await {
        Ok(text) => {
            let shown: ShowLine = line::read(&text)?;
            Ok(shown.spec.array.map(|elements| (shown.job.job, elements)))
        }
        // What there is to say of it is said when it is waited for.
        Err(failure) if failure.problem.is_some() => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// Work that a signal ends as it always does; where it writes files, what is half there goes.
async fn unless_interrupted<T>(
    writes: bool,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    if !writes {
        return work.await;
    }
    let mut interrupts = Interrupts::new()?;
    tokio::select! {
        biased;
        done = work => done,
        interrupt = interrupts.next() => {
            let what = "interrupted before all files were here; the jobs go on";
            Err(Failure::new(Exit::Job(interrupt.status()), what))
        }
    }
}

/// `output`: what a job wrote, byte for byte.
///
/// # Errors
/// No broker answered for too long, it knows no such job, or nobody reads.
pub async fn output(
    flags: &OutputFlags,
    link: &mut Link,
    reporter: Reporter,
) -> Result<Exit, Failure> {
    let out = flags.out_dir.as_deref().map(OutDir::create).transpose()?;
    let job = query::resolve(&flags.job, link).await?;
    let mut follower = Follower::one(job, flags.stderr, reporter);
    let work = async {
        let ended = if flags.follow {
            Some(follower.follow(link).await?)
        } else {
            written(&mut follower, link).await?
        };
        if let (Some(out), Some(ended)) = (&out, ended) {
            out.fetch(job, None, &ended.line.outputs, link).await?;
        }
        Ok(Exit::Done)
    };
    unless_interrupted(out.is_some(), work).await
}

async fn written(follower: &mut Follower, link: &mut Link) -> Result<Option<Ended>, Failure> {
    loop {
        match follower.follow_once(false, link).await {
            Ok(ended) => return Ok(ended),
            Err(Asked::Gone(error)) => link.lose_question(&error)?,
            Err(Asked::Failed(failure)) => return Err(live_only(failure)),
        }
    }
}

/// The broker's refusal in the words of this command line.
fn live_only(failure: Failure) -> Failure {
    let running = failure.problem.as_ref().is_some_and(|problem| problem.code == "not-ended");
    if running { failure.hint("'--follow' passes on what it writes") } else { failure }
}
