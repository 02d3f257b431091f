//! Questions about jobs, and the two orders to them: list, show, why, cancel, rerun.
//!
//! Each may be asked twice: a broker that goes away meanwhile is waited for.

use hyper::Method;

use crate::cli::exit::Exit;
use crate::cli::output;
use crate::cli::report::{Failure, Reporter};
use crate::proto::id::{AttemptId, TaskId};
use crate::proto::limits;
use crate::runtime::client::{Body, ClientError};
use crate::wire::api::{ExecutorLine, JobLine, ShowLine, WhyLine};

use super::flags::{Cli, JobFlag, ListFlags, ShowFlags, job_ref};
use super::line;
use super::link::{Asked, Link};

/// `list`: a table, or the broker's lines.
///
/// # Errors
/// No broker is reachable, or nobody reads.
pub async fn list(flags: &ListFlags, cli: &Cli, link: &mut Link) -> Result<Exit, Failure> {
    let limit = flags.limit.unwrap_or(limits::LIST_ROWS_DEFAULT);
    let mut path = format!("/v1/jobs?limit={limit}");
    if let Some(state) = flags.state {
        path = format!("{path}&state={}", state.word());
    }
    let mut answer = loop {
        match link.begin(Method::GET, &path, Body::empty()).await {
            Ok(answer) => break answer,
            Err(Asked::Gone(error @ ClientError::Silent { .. })) => link.lose_question(&error)?,
            Err(Asked::Gone(error)) => return Err(error.into()),
            Err(Asked::Failed(failure)) => return Err(failure),
        }
    };
    let mut jobs: Vec<JobLine> = vec![];
    while let Some(text) = answer.next().await? {
        if cli.json {
            output::text(&format!("{text}\n"))?;
        } else {
            jobs.push(line::read(&text)?);
        }
    }
    if !cli.json {
        output::text(&super::table::jobs(&jobs, cli.common.colour(&std::io::stdout())))?;
    }
    Ok(Exit::Done)
}

/// `show`: a page, or the broker's line.
///
/// # Errors
/// No broker is reachable, or it knows no such job.
pub async fn show(flags: &ShowFlags, cli: &Cli, link: &mut Link) -> Result<Exit, Failure> {
    let query = if flags.facts_only { "?facts_only=1" } else { "" };
    let text = link.ask(Method::GET, &format!("/v1/jobs/{}{query}", flags.job), None).await?;
    if cli.json {
        output::text(&format!("{text}\n"))?;
    } else {
        let show: ShowLine = line::read(&text)?;
        output::text(&super::table::page(&show))?;
    }
    Ok(Exit::Done)
}

/// `why`: one reason a line, or the broker's line.
///
/// # Errors
/// No broker is reachable, or it knows no such job.
pub async fn why(flags: &JobFlag, cli: &Cli, link: &mut Link) -> Result<Exit, Failure> {
    let text = link.ask(Method::GET, &format!("/v1/jobs/{}/why", flags.job), None).await?;
    if cli.json {
        output::text(&format!("{text}\n"))?;
    } else {
        let why: WhyLine = line::read(&text)?;
        output::text(&super::table::why(&why))?;
    }
    Ok(Exit::Done)
}

/// `cancel` and `rerun`: a line for each job that it was done to; goes on after a refusal.
///
/// # Errors
/// No broker is reachable, or nobody reads.
pub async fn change(
    verb: &str,
    jobs: &[String],
    link: &mut Link,
    reporter: Reporter,
) -> Result<Exit, Failure> {
    let mut exit = Exit::Done;
    for job in named(jobs)? {
        let path = format!("/v1/jobs/{job}/{verb}");
        match link.ask(Method::POST, &path, None).await {
            Ok(text) => output::text(&format!("{text}\n"))?,
            Err(failure) if failure.problem.is_some() => {
                let failed = reporter.failure(&failure.while_doing(format_args!("cannot {verb}")));
                exit = if exit == Exit::Done { failed } else { exit };
            }
            Err(failure) => return Err(failure),
        }
    }
    Ok(exit)
}

/// The ids that a command names; `-` stands for those on stdin, separated by white space.
///
/// # Errors
/// Stdin cannot be read, or holds what is no id.
pub fn named(jobs: &[String]) -> Result<Vec<String>, Failure> {
    let mut found = vec![];
    for job in jobs {
        if job != "-" {
            found.push(job.clone());
            continue;
        }
        let text = std::io::read_to_string(std::io::stdin())
            .map_err(|error| Failure::io("cannot read ids from stdin", &error))?;
        for word in text.split_whitespace() {
            found.push(job_ref(word).map_err(|why| Failure::new(Exit::Data, why))?);
        }
    }
    Ok(found)
}

/// The whole id of a job or element that is named by the end of it.
///
/// # Errors
/// No broker is reachable, or no such job is known, or more than one.
pub async fn resolve(text: &str, link: &mut Link) -> Result<TaskId, Failure> {
    if let Ok(job) = text.parse() {
        return Ok(job);
    }
    let show = link.ask(Method::GET, &format!("/v1/jobs/{text}?facts_only=1"), None).await?;
    let head = line::head(&show)?;
    head.job.ok_or_else(|| Failure::new(Exit::Protocol, "the broker's answer names no job"))
}

/// Waits until no executor has anything of the job any more, or nobody can tell.
pub async fn until_gone(job: TaskId, link: &mut Link) {
    let path = format!("/v1/jobs/{job}?facts_only=1");
    let Ok(shown) = link.ask(Method::GET, &path, None).await else { return };
    let Ok(shown) = line::read::<ShowLine>(&shown) else { return };
    let ours = |id: &AttemptId| shown.attempts.iter().any(|attempt| attempt.attempt == *id);
    loop {
        let answer = link.begin(Method::GET, "/v1/executors", Body::empty()).await;
        let Ok(mut answer) = answer else { return };
        let mut is_held = false;
        while let Ok(Some(text)) = answer.next().await {
            let executor = line::read::<ExecutorLine>(&text);
            is_held |= executor.is_ok_and(|line| line.view.attempts.iter().any(ours));
        }
        if !is_held {
            return;
        }
        tokio::time::sleep(limits::CANCEL_LOOK_PAUSE).await;
    }
}

/// Cancels a job whose submission may still be under way; stops when it is done or cannot be.
pub async fn cancel_until_known(job: TaskId, link: &mut Link) {
    let path = format!("/v1/jobs/{job}/cancel");
    loop {
        match link.ask(Method::POST, &path, None).await {
            Err(failure) if matches!(failure.exit, Exit::Absent | Exit::NoBroker) => {
                tokio::time::sleep(limits::CONNECT_PAUSE_MAX).await;
            }
            Ok(_) | Err(_) => return,
        }
    }
}
