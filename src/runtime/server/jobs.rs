//! Questions about jobs, and what is done to one job: list, show, wait, why, cancel, rerun.

use std::rc::Rc;

use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use serde::Deserialize;

use crate::proto::event::{self, JobRef, Reply};
use crate::proto::limits;
use crate::proto::view::JobState;
use crate::runtime::server::Context;
use crate::runtime::server::answer::{self, Handled, Query};
use crate::runtime::server::body::{Cut, Sink};
use crate::runtime::server::hub::{Answer, Mail};
use crate::runtime::server::submit::Told;
use crate::wire::api::{DoneLine, JobLine, ResultLine, ShowLine, WhyLine};
use crate::wire::problem::Problem;

/// `GET /v1/jobs`.
pub async fn list(context: &Context, request: Request<Incoming>) -> Handled {
    let query = Query::parse(request.uri().query(), &["state", "limit"])?;
    let state = query.text("state").map(state_of).transpose()?;
    let limit = query.value("limit")?.unwrap_or(limits::LIST_ROWS_DEFAULT);
    let Reply::Jobs(jobs) = context.ask(event::Request::List { state, limit }).await? else {
        return Err(context.unexpected());
    };
    Ok(answer::lines(move |sink| async move {
        for job in &jobs {
            sink.room().await;
            sink.line(&JobLine::from(job));
        }
        Ok(())
    }))
}

fn state_of(word: &str) -> Result<JobState, Problem> {
    JobState::ALL.into_iter().find(|state| state.word() == word).ok_or_else(|| {
        let words: Vec<_> = JobState::ALL.iter().map(|state| state.word()).collect();
        Problem::new(400, "bad-parameter", format!("no job has the state {word:?}"))
            .hint(format!("states are {}", words.join(", ")))
    })
}

/// `GET /v1/jobs/{id}`: everything about it, or with `until` its result when it ends.
pub async fn show(context: Rc<Context>, job: JobRef, request: Request<Incoming>) -> Handled {
    let query = Query::parse(request.uri().query(), &["until", "facts_only"])?;
    if context.until(&query).await? {
        return wait(context, job).await;
    }
    let facts_only = query.flag("facts_only")?;
    let Reply::Job(mut view) = context.ask(event::Request::Show { job }).await? else {
        return Err(context.unexpected());
    };
    for result in &mut view.results {
        context.complete_result(&result.dot, &mut result.reported).await?;
    }
    if let Some(ended) = &mut view.ended {
        context.complete(ended).await?;
    }
    Ok(answer::json(StatusCode::OK, &ShowLine::new(&view, facts_only)))
}

/// The result when it ends; of an array a line for each element as it ends.
async fn wait(context: Rc<Context>, job: JobRef) -> Handled {
    let mail = context.hub.open();
    mail.ask(event::Request::Watch { job, attempts: false }).await?;
    match mail.next().await? {
        Answer::Reply(Reply::Ended(mut ended)) => {
            context.complete(&mut ended).await?;
            Ok(answer::json(StatusCode::OK, &ResultLine::new(&ended, None)))
        }
        Answer::Reply(Reply::Watched { elements }) => {
            Ok(answer::lines(move |sink| tell_elements(context, mail, sink, elements)))
        }
        Answer::Reply(Reply::Refused { index, refusal }) => {
            Err(Problem::of_refusal(&refusal, index))
        }
        _ => Err(context.unexpected()),
    }
}

async fn tell_elements(
    context: Rc<Context>,
    mail: Mail,
    sink: Sink,
    elements: u64,
) -> Result<(), Cut> {
    let mut told = Told::default();
    for _ in 0..elements {
        let Answer::Reply(Reply::Ended(mut ended)) = mail.next().await? else {
            return Err(Cut("the job is not known any more".into()));
        };
        context.complete(&mut ended).await.map_err(|problem| Cut(problem.detail))?;
        sink.room().await;
        sink.line(&ResultLine::new(&ended, None));
        told.took(&mail).await?;
    }
    Ok(())
}

/// `GET /v1/jobs/{id}/why`.
pub async fn why(context: &Context, job: JobRef, request: Request<Incoming>) -> Handled {
    Query::parse(request.uri().query(), &[])?;
    let reply = context.ask(event::Request::Why { job }).await?;
    let Reply::Why(view) = reply else { return Err(context.unexpected()) };
    Ok(answer::json(StatusCode::OK, &WhyLine::from(*view)))
}

/// `POST /v1/jobs/{id}/cancel`.
pub async fn cancel(context: Rc<Context>, job: JobRef, request: Request<Incoming>) -> Handled {
    let reason = reason_of(request, "cancelled by a client").await?;
    done(&context, event::Request::Cancel { job, reason }).await
}

/// `POST /v1/jobs/{id}/rerun`.
pub async fn rerun(context: Rc<Context>, job: JobRef, request: Request<Incoming>) -> Handled {
    let reason = reason_of(request, "rerun by a client").await?;
    done(&context, event::Request::Rerun { job, reason }).await
}

async fn done(context: &Context, request: event::Request) -> Handled {
    let Reply::Done { task, state } = context.ask(request).await? else {
        return Err(context.unexpected());
    };
    Ok(answer::json(StatusCode::OK, &DoneLine { kind: "done".into(), job: task, state }))
}

/// The reason in the body, `{"reason":"…"}`, or what stands for an empty body.
pub(super) async fn reason_of(
    request: Request<Incoming>,
    otherwise: &str,
) -> Result<String, Problem> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Body {
        #[serde(default)]
        reason: Option<String>,
    }
    Query::parse(request.uri().query(), &[])?;
    let bytes = answer::whole(request.into_body()).await?;
    if bytes.is_empty() {
        return Ok(otherwise.to_owned());
    }
    let wrong =
        |why: String| Problem::new(422, "bad-body", why).hint(r#"send nothing, or {"reason":"…"}"#);
    let body: Body = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
    match body.reason {
        Some(reason) if reason.len() > limits::TEXT_BYTES_MAX => {
            Err(wrong(format!("the reason is over {} bytes", limits::TEXT_BYTES_MAX)))
        }
        reason => Ok(reason.unwrap_or_else(|| otherwise.to_owned())),
    }
}
