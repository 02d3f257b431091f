//! The broker about itself: status, executors (and that one is lost), and the audit of its books.
//!
//! The audit compares the core with the store at one moment: the store's books are taken right
//! after the batch that the core's belong to (drive.rs).
//! Law: submitted = waiting + running + parked + ended, for each log (acceptance case A2).

use std::collections::BTreeMap;

use hyper::StatusCode;

use crate::proto::event::{Reply, Request};
use crate::proto::id::{ExecutorId, LogId};
use crate::proto::view::{AuditView, JobState};
use crate::runtime::server::Context;
use crate::runtime::server::answer::{self, Handled};
use crate::runtime::server::hub::{Answer, Stopping};
use crate::runtime::server::jobs::reason_of;
use crate::runtime::store::StoredBooks;
use crate::wire::api::{AuditLine, AuditedLog, ExecutorLine, LostLine, StatusLine};
use crate::wire::problem::Problem;

/// `GET /v1/status`.
pub async fn status(context: &Context) -> Handled {
    let Reply::Status(view) = context.ask(Request::Status).await? else {
        return Err(context.unexpected());
    };
    let line = StatusLine::new(
        &view,
        context.peers.lines(),
        env!("CARGO_PKG_VERSION"),
        std::process::id(),
    );
    Ok(answer::json(StatusCode::OK, &line))
}

/// `GET /v1/executors`.
pub async fn executors(context: &Context) -> Handled {
    let Reply::Executors(executors) = context.ask(Request::Executors).await? else {
        return Err(context.unexpected());
    };
    Ok(answer::lines(move |sink| async move {
        for view in executors {
            sink.room().await;
            sink.line(&ExecutorLine { kind: "executor".into(), view });
        }
        Ok(())
    }))
}

/// `POST /v1/executors/{executor}/lost`: its operator knows that it is gone.
pub async fn declare_lost(
    context: &Context,
    executor: &str,
    request: hyper::Request<hyper::body::Incoming>,
) -> Handled {
    let Ok(executor) = executor.parse::<ExecutorId>() else {
        let what = format!("{executor:.80?} is no executor's name");
        return Err(Problem::new(404, "no-executor", what)
            .hint("'ucp-broker executors' shows the executors that are known"));
    };
    let said = reason_of(request, "").await?;
    let declared = "an operator declared its executor lost";
    let reason = if said.is_empty() { declared.to_owned() } else { format!("{declared}: {said}") };
    let reply = context.ask(Request::DeclareLost { executor, reason }).await?;
    let Reply::DeclaredLost { executor, attempts } = reply else {
        return Err(context.unexpected());
    };
    Ok(answer::json(StatusCode::OK, &LostLine { kind: "lost".into(), executor, attempts }))
}

/// `GET /v1/audit`.
pub async fn audit(context: &Context) -> Handled {
    let mail = context.hub.open();
    mail.ask(Request::Audit).await?;
    let Answer::Audit(view, stored) = mail.next().await? else { return Err(context.unexpected()) };
    let stored = stored.await.map_err(|_| Stopping)?;
    let stored = stored.map_err(|error| {
        tracing::error!("the store's books cannot be read: {error}");
        Problem::new(500, "store", format!("the store's books cannot be read: {error}"))
    })?;
    Ok(answer::json(StatusCode::OK, &compare(*view, &stored)))
}

/// Compares what the core holds with what the store holds.
fn compare(view: AuditView, stored: &StoredBooks) -> AuditLine {
    let AuditView { submitted, states, rows, vector, mut faults } = view;
    let mut logs: BTreeMap<LogId, AuditedLog> = BTreeMap::new();
    for (log, seq) in &vector {
        logs.entry(log.clone()).or_default().seq = *seq;
    }
    for (log, seq) in &stored.vector {
        logs.entry(log.clone()).or_default().stored_seq = *seq;
    }
    for (log, count) in submitted {
        logs.entry(log).or_default().submitted = count;
    }
    for (log, states) in &states {
        let line = logs.entry(log.clone()).or_default();
        for (state, count) in states {
            *match state {
                JobState::Waiting => &mut line.waiting,
                JobState::Running => &mut line.running,
                JobState::Parked => &mut line.parked,
                _ => &mut line.ended,
            } += count;
        }
    }
    for (log, line) in &logs {
        if line.seq != line.stored_seq {
            faults.push(format!(
                "log {log} is held up to {}, the store has it up to {}",
                line.seq, line.stored_seq
            ));
        }
        let sum = line.waiting + line.running + line.parked + line.ended;
        if line.submitted != sum {
            faults.push(format!("log {log}: {} jobs submitted, {sum} found", line.submitted));
        }
        for state in JobState::ALL {
            let count = |books: &BTreeMap<LogId, BTreeMap<JobState, u64>>| {
                books.get(log).and_then(|states| states.get(&state)).copied().unwrap_or(0)
            };
            let (held, kept) = (count(&rows), count(&stored.states));
            if held != kept {
                let word = state.word();
                faults.push(format!(
                    "log {log}: {held} jobs are {word}, the store's table says {kept}"
                ));
            }
        }
    }
    AuditLine { kind: "audit".into(), ok: faults.is_empty(), logs, faults }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn books() -> (AuditView, StoredBooks) {
        let log: LogId = "north-00000001".parse().expect("a name");
        let states = BTreeMap::from([(JobState::Waiting, 2), (JobState::Failed, 1)]);
        let states = BTreeMap::from([(log.clone(), states)]);
        let vector = BTreeMap::from([(log.clone(), 9)]);
        let view = AuditView {
            submitted: BTreeMap::from([(log, 3)]),
            states: states.clone(),
            rows: states.clone(),
            vector: vector.clone(),
            faults: vec![],
        };
        (view, StoredBooks { vector, states })
    }

    #[test]
    fn books_that_agree_have_no_fault() {
        let (view, stored) = books();
        let line = compare(view, &stored);
        assert!(line.ok, "{:?}", line.faults);
        let log = line.logs.values().next().expect("one log");
        assert_eq!((log.submitted, log.waiting, log.ended), (3, 2, 1));
        assert_eq!((log.seq, log.stored_seq), (9, 9));
    }

    #[test]
    fn a2_each_difference_is_a_sentence() {
        let (view, mut stored) = books();
        stored.vector.values_mut().for_each(|seq| *seq = 8);
        stored.states.values_mut().for_each(|states| {
            states.insert(JobState::Waiting, 3);
        });
        let line = compare(view, &stored);
        assert!(!line.ok);
        assert_eq!(line.faults.len(), 2, "{:?}", line.faults);
        let (mut view, stored) = books();
        view.submitted.values_mut().for_each(|count| *count = 4);
        assert_eq!(compare(view, &stored).faults.len(), 1);
        let (view, _) = books();
        let empty = StoredBooks { vector: BTreeMap::new(), states: BTreeMap::new() };
        assert!(!compare(view, &empty).ok);
    }
}
