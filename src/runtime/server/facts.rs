//! `GET /v1/facts`: the facts as they were written, in commit order or sorted by dot.
//!
//! Read from the store page by page on another thread, never through the core, so that a reader
//! of a long history costs the broker nothing but the page it reads.
//! Shape: the verbatim lines, nothing added. With `follow` it goes on as facts are committed.

use std::rc::Rc;

use hyper::Request;
use hyper::body::Incoming;

use crate::proto::event::{self, JobRef, Reply};
use crate::proto::id::{Dot, JobId};
use crate::proto::limits;
use crate::runtime::server::Context;
use crate::runtime::server::answer::{self, Handled, Query};
use crate::runtime::server::body::{Cut, Sink};
use crate::runtime::server::hub::Stopping;
use crate::runtime::store::{Entry, Reader};
use crate::wire::problem::Problem;

/// `GET /v1/facts?job=&sorted=&follow=`.
pub async fn facts(context: Rc<Context>, request: Request<Incoming>) -> Handled {
    let query = Query::parse(request.uri().query(), &["job", "sorted", "follow"])?;
    let (sorted, follow) = (query.flag("sorted")?, query.flag("follow")?);
    if sorted && follow {
        let what = "facts that are still to come cannot be sorted";
        return Err(Problem::new(400, "bad-parameter", what).hint("leave out sorted or follow"));
    }
    let job = match query.text("job") {
        None => None,
        Some(text) => {
            let job = JobRef(text.to_owned());
            match context.ask(event::Request::Show { job }).await? {
                Reply::Job(view) => Some(view.job),
                _ => return Err(context.unexpected()),
            }
        }
    };
    Ok(answer::lines(move |sink| async move {
        match sorted {
            true => in_order(&context, &sink, job).await,
            false => as_committed(&context, &sink, job, follow).await,
        }
    }))
}

fn write(sink: &Sink, fact: &Entry, job: Option<JobId>) {
    if job.is_none_or(|job| fact.is_about(&job)) {
        sink.text(&fact.line);
    }
}

async fn as_committed(
    context: &Context,
    sink: &Sink,
    job: Option<JobId>,
    follow: bool,
) -> Result<(), Cut> {
    let mut commits = context.hub.commits();
    let mut after = 0;
    loop {
        commits.mark_unchanged();
        let page = context.read(move |reader| reader.entries_after(after, limits::FACTS_PAGE_ROWS));
        let page = page.await.map_err(|problem| Cut(problem.detail))?;
        for fact in &page {
            sink.room().await;
            write(sink, fact, job);
            after = fact.id;
        }
        if !page.is_empty() {
            continue;
        }
        if !follow {
            return Ok(());
        }
        tokio::select! {
            changed = commits.changed() => changed.map_err(|_| Cut::from(Stopping))?,
            () = context.hub.stopped() => return Err(Stopping.into()),
        }
    }
}

async fn in_order(context: &Context, sink: &Sink, job: Option<JobId>) -> Result<(), Cut> {
    let mut after: Option<Dot> = None;
    loop {
        let from = after.take();
        let read =
            move |reader: &Reader| reader.entries_sorted(from.as_ref(), limits::FACTS_PAGE_ROWS);
        let page = context.read(read).await.map_err(|problem| Cut(problem.detail))?;
        let Some(last) = page.last() else { return Ok(()) };
        after = Some(last.dot.clone());
        for fact in &page {
            sink.room().await;
            write(sink, fact, job);
        }
    }
}
