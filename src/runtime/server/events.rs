//! `GET /v1/events`: what happens, live, as JSON Lines or as server-sent events.
//!
//! Only what is durable is told (feed.rs). The reader is waited for; one that is too slow is told
//! how many events it missed. It ends with an `end` line when the broker stops.
//! Source for `text/event-stream`: the HTML standard, section "Server-sent events".

use std::rc::Rc;

use hyper::Request;
use hyper::body::Incoming;
use hyper::header::ACCEPT;

use crate::proto::event::{self, JobRef, Reply};
use crate::proto::id::JobId;
use crate::proto::limits;
use crate::runtime::server::Context;
use crate::runtime::server::answer::{self, Handled, Query};
use crate::runtime::server::body::{Cut, Sink};
use crate::runtime::server::feed::{Reader, Taken};
use crate::runtime::server::hub::Stopping;
use crate::wire::api::{EVENT_WORDS, EndLine, GapLine};
use crate::wire::problem::Problem;

/// The media type of server-sent events.
pub const EVENT_STREAM: &str = "text/event-stream";

/// Which events a reader wants.
#[derive(Debug)]
struct Wanted {
    job: Option<JobId>,
    /// None for all.
    words: Vec<&'static str>,
}

/// `GET /v1/events?job=&event=`.
pub async fn events(context: Rc<Context>, request: Request<Incoming>) -> Handled {
    let query = Query::parse(request.uri().query(), &["job", "event"])?;
    let words = query.text("event").map(words).transpose()?.unwrap_or_default();
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
    let accepted = request.headers().get(ACCEPT).and_then(|value| value.to_str().ok());
    let is_stream = accepted.is_some_and(|accepted| accepted.contains(EVENT_STREAM));
    // It reads from here on: when the head of the answer is there, nothing is missed any more.
    let Some(reader) = context.hub.feed.read() else {
        let what = format!("{} readers of events are here already", limits::EVENT_READERS_MAX);
        return Err(Problem::new(503, "too-many-readers", what).retryable());
    };
    let wanted = Wanted { job, words };
    let work = move |sink| serve(context, sink, reader, wanted, is_stream);
    Ok(if is_stream { answer::stream(EVENT_STREAM, work) } else { answer::lines(work) })
}

/// The words behind `event=`, separated by commas.
fn words(text: &str) -> Result<Vec<&'static str>, Problem> {
    let known = |word: &str| EVENT_WORDS.into_iter().find(|known| *known == word);
    let word = |word: &str| {
        known(word).ok_or_else(|| {
            Problem::new(400, "bad-parameter", format!("parameter `event`: no event is {word:?}"))
                .hint(format!("events are {}", EVENT_WORDS.join(", ")))
        })
    };
    text.split(',').map(word).collect()
}

async fn serve(
    context: Rc<Context>,
    sink: Sink,
    mut reader: Reader,
    wanted: Wanted,
    is_stream: bool,
) -> Result<(), Cut> {
    let mut commits = context.hub.commits();
    let put = |word: &str, line: &str| match is_stream {
        true => sink.text(&format!("event: {word}\ndata: {line}\n")),
        false => sink.text(line),
    };
    let mut stopping = false;
    loop {
        commits.mark_unchanged();
        while let Some(taken) = reader.take() {
            match taken {
                Taken::Missed(missed) => {
                    let gap = GapLine { kind: "gap".into(), missed };
                    put("gap", &answer::text(&gap));
                }
                Taken::Event(event) if wanted.holds(&event) => put(event.word, &event.line),
                Taken::Event(_) => {}
            }
            sink.room().await;
        }
        if stopping {
            let end = EndLine { kind: "end".into(), reason: Stopping.to_string() };
            put("end", &answer::text(&end));
            return Ok(());
        }
        tokio::select! {
            changed = commits.changed() => changed.map_err(|_| Cut::from(Stopping))?,
            () = context.hub.stopped() => stopping = true,
        }
    }
}

impl Wanted {
    fn holds(&self, event: &crate::runtime::server::feed::Event) -> bool {
        self.job.is_none_or(|job| event.job == Some(job))
            && (self.words.is_empty() || self.words.contains(&event.word))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::fact::{Body, Reason};

    #[test]
    fn words_are_those_of_facts_and_executors() {
        assert_eq!(words("lost,executor-left"), Ok(vec!["lost", "executor-left"]));
        for none in ["", "lost,", "Lost", "weather"] {
            let refused = words(none).expect_err(none);
            assert_eq!((refused.status, &*refused.code), (400, "bad-parameter"));
        }
        let reason = Reason { reason: String::new() };
        for body in [Body::Parked(reason.clone()), Body::Skipped(reason)] {
            assert!(EVENT_WORDS.contains(&body.kind()));
        }
    }
}
