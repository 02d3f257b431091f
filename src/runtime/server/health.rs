//! `GET /healthz` and `GET /readyz`: for supervisors and for whoever spreads load.
//!
//! Alive is not ready. A broker whose disk is full is alive: to start it again would help nobody.
//! It is not ready, as it takes nothing in.
//! Law: each answers within [`limits::HEALTH_WITHIN`], whatever the core and the disk do.

use hyper::StatusCode;
use serde::Serialize;
use tokio::time::timeout;

use crate::proto::event::{Refusal, Request};
use crate::proto::limits;
use crate::runtime::server::Context;
use crate::runtime::server::answer::{self, Handled};
use crate::runtime::server::hub::Stopping;
use crate::runtime::store::Disk;
use crate::wire::problem::Problem;

/// The broker is well. `type`: `health`.
#[derive(Serialize)]
struct HealthLine {
    #[serde(rename = "type")]
    kind: &'static str,
    ok: bool,
    /// `well`, `full` or `stalled`.
    disk: &'static str,
}

/// The word of a disk's state.
#[must_use]
pub const fn word(disk: Disk) -> &'static str {
    match disk {
        Disk::Well => "well",
        Disk::Full => "full",
        Disk::Stalled => "stalled",
    }
}

fn ok(context: &Context) -> Handled {
    let disk = word(context.hub.disk());
    Ok(answer::json(StatusCode::OK, &HealthLine { kind: "health", ok: true, disk }))
}

/// The core answers a question in time.
async fn core_answers(context: &Context) -> Result<(), Problem> {
    match timeout(limits::HEALTH_WITHIN, context.ask(Request::Status)).await {
        Ok(answered) => answered.map(|_| ()),
        Err(_) => {
            let what = format!("the core did not answer within {:?}", limits::HEALTH_WITHIN);
            Err(Problem::new(503, "core-slow", what).retryable())
        }
    }
}

/// `GET /healthz`: the process answers, and so does its loop.
///
/// # Errors
/// The core does not answer.
pub async fn alive(context: &Context) -> Handled {
    // With a stalled disk all answers of the core wait for it: the loop has nothing to prove then.
    let stalled = context.hub.disk() == Disk::Stalled || context.hub.commit_is_slow();
    if !stalled && !context.hub.is_stopping() {
        core_answers(context).await?;
    }
    ok(context)
}

/// `GET /readyz`: the log is open, the store takes writes, and the broker is not ending.
///
/// # Errors
/// One of these is not so, always with 503.
pub async fn ready(context: &Context) -> Handled {
    let not_now = |mut problem: Problem| {
        problem.status = 503;
        problem.retryable()
    };
    if context.hub.is_stopping() {
        return Err(Stopping.into());
    }
    if context.hub.disk() != Disk::Well {
        return Err(not_now(Problem::of_refusal(&Refusal::DiskFull, None)));
    }
    if context.hub.commit_is_slow() {
        let what = format!("a commit has been under way for over {:?}", limits::HEALTH_WITHIN);
        return Err(Problem::new(503, "store-slow", what).retryable());
    }
    core_answers(context).await.map_err(not_now)?;
    ok(context)
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;
    use std::sync::Arc;

    use super::*;
    use crate::runtime::blobs::Blobs;
    use crate::runtime::entropy;
    use crate::runtime::server::hub::Hub;
    use crate::runtime::store::CommitMeter;

    fn context() -> (tempfile::TempDir, Context) {
        let data = tempfile::tempdir().expect("a directory");
        let blobs = Arc::new(Blobs::open(&data.path().join("blobs")).expect("it can be created"));
        let context = Context::new(Rc::new(Hub::default()), blobs, data.path().to_owned());
        (data, context)
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_broker_that_ends_is_alive_and_not_ready() {
        let (_data, context) = context();
        context.hub.drain();
        let refused = ready(&context).await.expect_err("it ends");
        assert_eq!(
            (refused.status, &*refused.code, refused.retryable),
            (503, "shutting-down", true)
        );
        assert_eq!(alive(&context).await.expect("it lives").status(), StatusCode::OK);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_store_that_does_not_come_back_from_a_commit_is_told() {
        let (_data, context) = context();
        let meter = Arc::new(CommitMeter::default());
        context.hub.watch_commits(Arc::clone(&meter));
        meter.began(crate::proto::time::Monotonic(
            entropy::now().mono.0
                - u64::try_from(limits::HEALTH_WITHIN.as_micros()).expect("short")
                - 1,
        ));
        let refused = ready(&context).await.expect_err("the disk hangs");
        assert_eq!((refused.status, &*refused.code), (503, "store-slow"));
        assert_eq!(alive(&context).await.expect("it lives").status(), StatusCode::OK);
    }
}
