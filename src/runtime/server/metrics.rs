//! `GET /metrics`: how the broker does, for Prometheus.
//!
//! Counts were kept all along (tally.rs, store/meter.rs); the core is asked for what it holds and
//! the disk for sizes, at each scrape. While the disk is stalled the core's answers would wait for
//! it, so its numbers are left out then.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use crate::proto::event::{Reply, Request};
use crate::proto::limits;
use crate::proto::view::{Detection, ExecutorView, JobState, StatusView};
use crate::runtime::blobs::Blobs;
use crate::runtime::entropy;
use crate::runtime::metrics::{Page, TEXT_FORMAT};
use crate::runtime::server::Context;
use crate::runtime::server::answer::{self, Handled};
use crate::runtime::server::health;
use crate::runtime::store::{Disk, STORE_NAME};

/// What was counted last of the blobs, and when.
#[derive(Debug, Default)]
pub struct Counted(Cell<Option<(Instant, (u64, u64))>>);

/// `GET /metrics`.
pub async fn metrics(context: &Context) -> Handled {
    let mut page = Page::default();
    page.labelled(
        ("ucp_build_info", "gauge", "The version of this broker; always 1."),
        "version",
        [(env!("CARGO_PKG_VERSION"), 1)],
    );
    let up = entropy::now().mono.since(context.began).as_secs_f64();
    page.gauge("ucp_uptime_seconds", "Time since this process began to serve.", up);
    if let Some((status, executors)) = core(context).await {
        jobs(&mut page, &status);
        fleet(&mut page, &executors);
        detection(&mut page, &status.detection);
    }
    counts(&mut page, context);
    store(&mut page, context).await;
    http(&mut page, context);
    Ok(answer::typed(TEXT_FORMAT, page.into_text()))
}

/// What the core holds, if it says so in time.
async fn core(context: &Context) -> Option<(Box<StatusView>, Vec<ExecutorView>)> {
    if context.hub.disk() == Disk::Stalled {
        return None;
    }
    let asked = async {
        let status = context.ask(Request::Status).await.ok()?;
        let executors = context.ask(Request::Executors).await.ok()?;
        match (status, executors) {
            (Reply::Status(status), Reply::Executors(executors)) => Some((status, executors)),
            _ => None,
        }
    };
    timeout(limits::HEALTH_WITHIN, asked).await.ok().flatten()
}

fn jobs(page: &mut Page, status: &StatusView) {
    let count = |state: &JobState| status.jobs.get(state).copied().unwrap_or(0);
    page.labelled(
        ("ucp_jobs", "gauge", "Jobs in each state."),
        "state",
        JobState::ALL.iter().map(|state| (state.word(), count(state))),
    );
    let queued: u64 = status.queued.values().sum();
    page.gauge("ucp_queue_jobs", "Jobs that could be deployed and wait for an executor.", queued);
    let facts: u64 = status.vector.values().sum();
    page.gauge("ucp_facts_held", "Facts that this broker holds.", facts);
    page.gauge("ucp_logs", "Logs that this broker holds facts of.", status.vector.len());
}

fn fleet(page: &mut Page, executors: &[ExecutorView]) {
    let words = ["alive", "avoided", "away", "doubted", "draining", "suspect"];
    let mut states = BTreeMap::from(words.map(|word| (word, 0)));
    for executor in executors {
        *states.entry(executor.state.as_str()).or_default() += 1;
    }
    let here = |executor: &&ExecutorView| executor.state != "away";
    let slots: u64 =
        executors.iter().filter(here).map(|held| u64::from(held.capability.slots)).sum();
    let attempts: usize = executors.iter().map(|executor| executor.attempts.len()).sum();
    page.labelled(("ucp_executors", "gauge", "Executors in each state."), "state", states);
    page.gauge("ucp_slots", "Slots of all executors with a session.", slots);
    page.gauge("ucp_attempts", "Attempts that occupy executors.", attempts);
    let silence = executors.iter().filter(here).map(|held| held.heard_ms).max().unwrap_or(0);
    let silence = Duration::from_millis(silence).as_secs_f64();
    let help = "Longest time since an executor with a session was last heard of.";
    page.gauge("ucp_executor_silence_seconds", help, silence);
}

/// How executors were lost and found since the start.
fn detection(page: &mut Page, seen: &Detection) {
    let lost = [
        ("ended", seen.lost_ended),
        ("silent", seen.lost_silent),
        ("away", seen.lost_away),
        ("declared", seen.lost_declared),
    ];
    let help = "Executors that were given up, by reason.";
    page.labelled(("ucp_executors_lost_total", "counter", help), "reason", lost);
    let help = "Attempts that were given up with their executors.";
    page.counter("ucp_attempts_lost_total", help, seen.attempts_lost);
    let help = "Attempts that were given up, came back and went on.";
    page.counter("ucp_attempts_regained_total", help, seen.regained);
    let help = "Executors given more time, as this broker may be cut off itself.";
    page.counter("ucp_link_doubts_total", help, seen.doubts);
    let help = "Times at which this broker's own loop had stood still.";
    page.counter("ucp_own_pauses_total", help, seen.own_pauses);
    let help = "Executors that were refused, by reason.";
    let refused = [("in-use", seen.clones)];
    page.labelled(("ucp_executors_refused_total", "counter", help), "reason", refused);
    let help = "Times at which an executor was left alone as it failed everything.";
    page.counter("ucp_executors_avoided_total", help, seen.avoided);
    let help = "Results that said something else than an earlier one of the same attempt.";
    page.counter("ucp_equivocations_total", help, seen.equivocations);
}

fn counts(page: &mut Page, context: &Context) {
    let (hub, tally) = (&context.hub, &context.hub.tally);
    let facts = tally.facts.borrow();
    page.labelled(
        ("ucp_facts_total", "counter", "Facts that became durable since the start, by kind."),
        "kind",
        facts.iter().map(|(kind, count)| (*kind, *count)),
    );
    let help = "From the end of a submission to its acknowledgement.";
    page.histogram("ucp_submit_ack_seconds", help, &tally.submit_ack);
    let help = "From a job's submission or rerun to each of its deployments, by wall clocks.";
    page.histogram("ucp_job_queue_seconds", help, &tally.queue_wait);
    let help = "From a deployment to the result of that attempt, by wall clocks.";
    page.histogram("ucp_job_run_seconds", help, &tally.run);
    let help = "From a job's submission or rerun to an accepted result, by wall clocks.";
    page.histogram("ucp_job_result_seconds", help, &tally.submit_result);
    page.gauge("ucp_sessions", "Sessions of executors.", hub.feed.sessions());
    page.gauge("ucp_event_readers", "Readers of /v1/events.", hub.feed.readers());
    let help = "Requests that wait for the core, such as for a job's end.";
    page.gauge("ucp_requests_waiting", help, hub.waiting());
}

async fn store(page: &mut Page, context: &Context) {
    if let Some(meter) = context.hub.commit_meter() {
        let help = "Transactions of the store until they are durable.";
        page.histogram("ucp_store_commit_seconds", help, &meter.times);
        let help = "Facts in one transaction of the store.";
        page.histogram("ucp_store_commit_facts", help, &meter.facts);
        let help = "Batches of the core in one transaction of the store.";
        page.histogram("ucp_store_commit_batches", help, &meter.batches);
    }
    let disk = context.hub.disk();
    page.labelled(
        ("ucp_store_disk", "gauge", "How the store's disk is: 1 at the state that holds."),
        "state",
        [Disk::Well, Disk::Full, Disk::Stalled]
            .map(|state| (health::word(state), u8::from(state == disk))),
    );
    let (data, blobs) = (context.data.clone(), Arc::clone(&context.blobs));
    let kept = context.blobs_counted.0.get();
    let kept = kept.filter(|(at, _)| at.elapsed() < limits::BLOBS_COUNTED_EVERY);
    let measured = tokio::task::spawn_blocking(move || (sizes(&data), count(kept, &blobs))).await;
    let Ok((bytes, counted)) = measured else { return };
    context.blobs_counted.0.set(Some(counted));
    page.gauge("ucp_store_bytes", "Bytes of the store's files.", bytes);
    let (_, (count, bytes)) = counted;
    page.gauge("ucp_blobs", "Blobs that are kept; counted now and then.", count);
    page.gauge("ucp_blobs_bytes", "Bytes of the blobs; counted now and then.", bytes);
}

fn count(kept: Option<(Instant, (u64, u64))>, blobs: &Blobs) -> (Instant, (u64, u64)) {
    kept.unwrap_or_else(|| (Instant::now(), blobs.totals()))
}

/// The bytes of the store with its write-ahead log.
fn sizes(data: &Path) -> u64 {
    let size = |end: &str| {
        let path = data.join(format!("{STORE_NAME}{end}"));
        path.metadata().map_or(0, |found| found.len())
    };
    ["", "-wal", "-shm"].into_iter().map(size).sum()
}

fn http(page: &mut Page, context: &Context) {
    let tally = &context.hub.tally;
    let requests = tally.requests.borrow();
    let shown: Vec<_> = requests
        .iter()
        .map(|((method, path, status), count)| (*method, *path, status.to_string(), *count))
        .collect();
    page.many(
        ("ucp_http_requests_total", "counter", "Requests by route and status."),
        shown.iter().map(|(method, path, status, count)| {
            ([("method", *method), ("route", *path), ("status", status.as_str())], count)
        }),
    );
    let problems = tally.problems.borrow();
    page.labelled(
        ("ucp_problems_total", "counter", "Problem documents by code, as answers and as lines."),
        "code",
        problems.iter().map(|(code, count)| (&**code, *count)),
    );
    let help = "Open connections, those of sessions among them.";
    page.gauge("ucp_http_connections", help, context.connections.get());
    page.gauge("ucp_http_connections_max", "Connections that may be open.", context.most());
    let help = "Connections that were one too many.";
    page.counter("ucp_http_connections_refused_total", help, tally.turned_away.get());
}
