//! Waiting for jobs that were submitted before, and their output.
//!
//! Both go on when the broker starts again; a job that is not known to it is an error.

use hyper::Method;

use crate::cli::exit::Exit;
use crate::cli::output;
use crate::cli::report::{Failure, Reporter};
use crate::proto::view::JobState;
use crate::wire::api::ResultLine;

use super::flags::{OutputFlags, WaitFlags};
use super::link::{Asked, Link};
use super::run::Follower;
use super::{line, query};

/// `wait`: the result line of each job, in the order in which they are named.
///
/// # Errors
/// No broker answered for too long, or nobody reads.
pub async fn wait(flags: &WaitFlags, link: &mut Link, reporter: Reporter) -> Result<Exit, Failure> {
    let jobs = query::named(&flags.jobs)?;
    let mut at = 0;
    let all = wait_for_all(&jobs, &mut at, link, reporter);
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

async fn wait_for_all(
    jobs: &[String],
    at: &mut usize,
    link: &mut Link,
    reporter: Reporter,
) -> Result<Exit, Failure> {
    let mut exit = Exit::Done;
    for (number, job) in jobs.iter().enumerate() {
        *at = number;
        let path = format!("/v1/jobs/{job}?until=accepted");
        match link.ask(Method::GET, &path, None).await {
            Ok(text) => {
                output::bytes(format!("{text}\n").as_bytes()).await?;
                let ended: ResultLine = line::read(&text)?;
                if ended.state != JobState::Succeeded && exit == Exit::Done {
                    exit = Exit::No;
                }
            }
            Err(failure) if failure.problem.is_some() => {
                exit =
                    reporter.failure(&failure.while_doing(format_args!("cannot wait for {job}")));
            }
            Err(failure) => return Err(failure),
        }
    }
    Ok(exit)
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
    let job = query::resolve(&flags.job, link).await?;
    let mut follower = Follower::one(job, flags.stderr, reporter);
    if flags.follow {
        follower.follow(link).await?;
        return Ok(Exit::Done);
    }
    loop {
        match follower.follow_once(false, link).await {
            Ok(_) => return Ok(Exit::Done),
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
