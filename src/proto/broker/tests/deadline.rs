//! Deadlines: what waits expires, what runs finishes or is stopped, what starts again counts on.

use super::*;
use crate::proto::job::AfterDeadline;

const SECOND: Duration = Duration::from_secs(1);

fn within(seconds: u64, after_deadline: AfterDeadline) -> JobSpec {
    let deadline = Some(Span::from_millis(seconds * 1_000));
    JobSpec { deadline, after_deadline, ..spec() }
}

fn reason(bench: &mut Bench, job: JobId) -> String {
    match &bench.request(Request::Why { job: JobRef(job.to_string()) })[..] {
        [Output::Reply { reply: Reply::Why(view), .. }] => view.reasons.join("; "),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_waits_expires_when_its_deadline_is_over_and_not_before() {
    let mut bench = Bench::new();
    let job = bench.submit(within(3, AfterDeadline::Finish));
    let why = reason(&mut bench, job);
    assert!(why.contains("its deadline of 3s is over in 3000 ms; then it expires"), "{why}");
    assert_eq!(bench.broker.poll_timeout(), Some(bench.now.mono.after(3 * SECOND)));
    assert_eq!(bench.pass(3 * SECOND - Duration::from_micros(1)).len(), 0);
    let ended = ends(&bench.pass(Duration::from_micros(1)));
    assert_eq!((ended.len(), ended[0].state), (1, JobState::Expired));
    assert_eq!(ended[0].reason.as_deref(), Some("its deadline of 3s is over"));
    assert_eq!(bench.broker.poll_timeout(), None);
    assert!(starts(&bench.connect(1, 1, vec![])).is_empty());
    let why = reason(&mut bench, job);
    assert_eq!(why, "its deadline of 3s is over");
}

#[test]
fn an_executor_that_comes_in_the_instant_of_the_deadline_is_too_late() {
    let mut bench = Bench::new();
    let job = bench.submit(within(1, AfterDeadline::Finish));
    bench.now.mono = bench.now.mono.after(SECOND);
    assert!(starts(&bench.connect(1, 1, vec![])).is_empty());
    assert_eq!(bench.state(job), JobState::Expired);
}

#[test]
fn a_job_that_waits_for_another_one_or_for_its_back_off_waits() {
    let mut bench = Bench::new();
    let first = bench.submit(spec());
    let after = bench.submit(JobSpec { after: vec![first], ..within(1, AfterDeadline::Stop) });
    bench.pass(SECOND);
    assert_eq!((bench.state(first), bench.state(after)), (JobState::Waiting, JobState::Expired));
    bench.connect(1, 2, vec![]);
    let again = bench.submit(JobSpec { retries: 3, ..within(1, AfterDeadline::Finish) });
    let start = start_of_last(&mut bench);
    bench.now.mono = bench.now.mono.after(SECOND - limits::RETRY_BACKOFF_FIRST / 2);
    assert!(ends(&bench.finish(1, &start, 1)).is_empty());
    assert_eq!(bench.state(again), JobState::Waiting);
    let ended = ends(&bench.pass(limits::RETRY_BACKOFF_FIRST / 2));
    let said = ended[0].reason.as_deref();
    assert_eq!(said, Some("its deadline of 1s is over; 1 attempts failed before"));
}

#[test]
fn what_runs_goes_on_and_counts_but_is_not_tried_again() {
    for (exit, state) in [(0, JobState::Succeeded), (1, JobState::Expired)] {
        let mut bench = Bench::new();
        bench.connect(1, 1, vec![]);
        let job = bench.submit(JobSpec { retries: 3, ..within(1, AfterDeadline::Finish) });
        let start = start_of_last(&mut bench);
        assert_eq!(bench.pass(SECOND).len(), 0);
        assert_eq!(bench.state(job), JobState::Running);
        let why = reason(&mut bench, job);
        assert!(why.contains("it goes on, but is not tried again"), "{why}");
        let ended = ends(&bench.finish(1, &start, exit));
        assert_eq!((ended.len(), ended[0].state), (1, state));
        assert!(bench.broker.poll_timeout().is_none_or(|due| due > bench.now.mono));
    }
    let mut bench = Bench::new();
    bench.connect(1, 1, vec![]);
    let job = bench.submit(within(1, AfterDeadline::Finish));
    let start = start_of_last(&mut bench);
    bench.pass(SECOND);
    bench.finish(1, &start, 1);
    assert_eq!(bench.state(job), JobState::Failed, "its last try counts");
}

#[test]
fn what_is_to_stop_is_stopped_at_once_and_its_result_is_late() {
    let mut bench = Bench::new();
    bench.connect(1, 1, vec![]);
    let job = bench.submit(within(1, AfterDeadline::Stop));
    let start = start_of_last(&mut bench);
    let outputs = bench.pass(SECOND);
    let stops = |output: &Output| match output {
        Output::Send { message: BrokerMessage::Stop { attempt, .. }, .. } => {
            *attempt == start.attempt
        }
        _ => false,
    };
    assert_eq!((outputs.len(), ends(&outputs).len()), (2, 1), "{outputs:?}");
    assert!(outputs.iter().any(stops));
    assert!(ends(&bench.finish(1, &start, 0)).is_empty());
    assert_eq!(bench.state(job), JobState::Expired);
    assert_eq!(reason(&mut bench, job), "its deadline of 1s is over; it was stopped");
}

#[test]
fn a_rerun_counts_anew() {
    let mut bench = Bench::new();
    let job = bench.submit(within(1, AfterDeadline::Finish));
    bench.pass(SECOND);
    bench.request(Request::Rerun { job: JobRef(job.to_string()), reason: "again".into() });
    assert_eq!(bench.state(job), JobState::Waiting);
    bench.pass(SECOND / 2);
    assert_eq!(bench.state(job), JobState::Waiting);
    bench.pass(SECOND / 2);
    assert_eq!(bench.state(job), JobState::Expired);
}

#[test]
fn a_broker_that_starts_again_counts_on_where_its_log_goes_on() {
    let log: LogId = "north-00000001".parse().expect("a name");
    let fresh: LogId = "north-00000002".parse().expect("a name");
    for goes_on in [true, false] {
        let mut first = Bench::new();
        first.now.mono = Monotonic(7);
        let job = first.submit(within(10, AfterDeadline::Finish));
        let mut second = Bench::over(first.durable.clone());
        second.now.mono = first.now.mono.after(8 * SECOND);
        let opening = if goes_on {
            Opening::Continue(log.clone())
        } else {
            Opening::Fresh { log: fresh.clone(), continues: Some(log.clone()) }
        };
        second.broker.open(second.now, opening);
        second.drain();
        second.pass(2 * SECOND);
        let state = if goes_on { JobState::Expired } else { JobState::Waiting };
        assert_eq!(second.state(job), state);
        second.pass(8 * SECOND);
        assert_eq!(second.state(job), JobState::Expired);
    }
}
