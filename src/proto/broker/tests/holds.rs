//! Jobs that wait as an earlier attempt may still run.

use super::reappear::{beat, pass_with, return_of};
use super::*;
use crate::proto::job::Overlap;

fn alone() -> JobSpec {
    JobSpec { overlap: Overlap::Forbid, ..spec() }
}

fn lease(bench: &Bench) -> Option<u64> {
    bench.durable.iter().rev().find_map(|sealed| match &sealed.fact.body {
        Body::Deployed(body) => Some(body.lease_ms),
        _ => None,
    })?
}

#[test]
fn a10_a_job_that_must_not_overlap_waits_for_the_end_of_the_lease() {
    let mut bench = Bench::new();
    bench.connect(1, 1, vec![]);
    bench.submit(alone());
    assert_eq!(lease(&bench), Some(5_000));
    let first = start_of_last(&mut bench);
    bench.connect(2, 1, vec![]);
    beat(&mut bench, 1);
    // Its connection ends, and it does not come back within the grace.
    let session = SessionId(1);
    bench.input(Input::SessionClosed { session, process_gone: false, tree_gone: false });
    let outputs = pass_with(&mut bench, Duration::from_secs(5), &[2]);
    assert!(starts(&outputs).is_empty(), "the lease may hold still");
    assert_eq!(bench.kinds().last(), Some(&"lost"));
    let why = bench.request(Request::Why { job: JobRef(first.job.to_string()) });
    let [Output::Reply { reply: Reply::Why(view), .. }] = &why[..] else { panic!() };
    assert!(
        view.reasons.iter().any(|r| r.contains("an earlier attempt may still run")),
        "{view:?}"
    );
    let outputs = pass_with(&mut bench, Duration::from_millis(100), &[2]);
    assert_eq!(starts(&outputs).len(), 1, "5 s and one percent");
}

#[test]
fn a10_what_is_proven_gone_is_not_waited_for() {
    let mut bench = Bench::new();
    bench.connect(1, 1, vec![]);
    bench.submit(alone());
    bench.connect(2, 1, vec![]);
    let session = SessionId(1);
    let outputs =
        bench.input(Input::SessionClosed { session, process_gone: true, tree_gone: true });
    assert_eq!(starts(&outputs).len(), 1);
}

#[test]
fn a10_a_rerun_waits_until_the_cancelled_attempt_has_stopped() {
    let mut bench = Bench::new();
    bench.connect(1, 1, vec![]);
    bench.connect(2, 1, vec![]);
    let job = bench.submit(alone());
    let first = start_of_last(&mut bench);
    let named = || JobRef(job.to_string());
    bench.request(Request::Cancel { job: named(), reason: "x".into() });
    let outputs = bench.request(Request::Rerun { job: named(), reason: "y".into() });
    assert!(starts(&outputs).is_empty(), "its processes may take a while to end");
    let at = bench.broker.fleet.seats.iter().find(|(_, seat)| !seat.assigned.is_empty());
    let session = at.and_then(|(_, seat)| seat.session).expect("it is there");
    let attempt = first.attempt;
    let message = ExecutorMessage::Stopped { attempt, unbegun: false, reason: None };
    let outputs = bench.input(Input::Message { session, message });
    assert_eq!(starts(&outputs).len(), 1);
}

#[test]
fn a10_a_broker_that_began_again_waits_a_full_lease_and_renews_what_is_announced() {
    let mut bench = Bench::new();
    bench.connect(1, 1, vec![]);
    let job = bench.submit(alone());
    let order = start_of_last(&mut bench);
    let mut again = Bench::over(bench.durable.clone());
    let log = "north-00000001".parse().expect("a name");
    again.broker.open(again.now, Opening::Continue(log));
    again.drain();
    let outputs = return_of(&mut again, 1, 1, &[&order]);
    let kept = outputs.iter().any(|output| {
        let Output::Send { message: BrokerMessage::Keep { attempt }, .. } = output else {
            return false;
        };
        *attempt == order.attempt
    });
    assert!(kept, "{outputs:?}");
    again.connect(2, 1, vec![]);
    let other = JobId(uuid::Uuid::from_u128(7));
    let submission = Submission { index: 0, id: Some(other), spec: Arc::new(alone()) };
    again.request(Request::Submit { submissions: vec![submission], watch: false });
    assert_eq!(again.state(other), JobState::Waiting, "it may have run before");
    pass_with(&mut again, Duration::from_millis(5_100), &[1, 2]);
    assert_eq!((again.state(job), again.state(other)), (JobState::Running, JobState::Running));
}

#[test]
fn jobs_of_a_dead_executor_wait_where_its_processes_may_be_left() {
    let mut bench = Bench::new();
    bench.connect(1, 1, vec![]);
    bench.submit(spec());
    bench.connect(2, 1, vec![]);
    let session = SessionId(1);
    bench.input(Input::SessionClosed { session, process_gone: true, tree_gone: false });
    let outputs = pass_with(&mut bench, Duration::from_millis(4_500), &[2]);
    assert!(starts(&outputs).is_empty());
    let outputs = pass_with(&mut bench, Duration::from_millis(600), &[2]);
    assert_eq!(starts(&outputs).len(), 1);
}

#[test]
fn a_job_whose_home_is_elsewhere_is_refused_for_the_moment() {
    let mut bench = Bench::new();
    let home = Some("south-00000001".parse().expect("a name"));
    let submission = Submission { index: 0, id: None, spec: Arc::new(JobSpec { home, ..alone() }) };
    let said = bench.request(Request::Submit { submissions: vec![submission], watch: false });
    let said = refusal(&said);
    assert_eq!(said.code(), "home-elsewhere");
    assert!(said.is_retryable());
    let home = Some("north-00000001".parse().expect("a name"));
    let key = Some("k".to_owned());
    bench.submit(JobSpec { home, key: key.clone(), ..alone() });
    let keyed = JobSpec { key, ..alone() };
    assert!(keyed.validate().expect_err("no home").to_string().starts_with("field `home`"));
}

#[test]
fn a10_another_machine_with_the_identity_proves_nothing_of_the_attempt() {
    let mut bench = Bench::new();
    bench.connect(1, 1, vec![]);
    bench.submit(alone());
    pass_with(&mut bench, Duration::from_millis(500), &[1]);
    bench.pass(limits::SUSPECT_AFTER);
    let mut other = hello(1, 1, vec![]);
    (other.incarnation.boot, other.incarnation.life) = ("another".into(), 9);
    let session = SessionId(2);
    let outputs = bench.input(Input::SessionOpened { session, hello: other, local: false });
    assert!(starts(&outputs).is_empty(), "the first may stand still, and its lease holds");
    let outputs = pass_with(&mut bench, Duration::from_millis(2_900), &[2]);
    assert!(starts(&outputs).is_empty());
    let outputs = pass_with(&mut bench, Duration::from_millis(300), &[2]);
    assert_eq!(starts(&outputs).len(), 1, "5 s after it was heard of last");
}
