//! The broker fed one event at a time: what comes out, and that nothing else does.

mod array;
mod deadline;
mod declared;
mod holds;
mod lives;
mod reappear;
mod sight;

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::proto::capability::{Capability, Load};
use crate::proto::event::{JobRef, Refusal, Request, Submission};
use crate::proto::id::{AttemptId, Incarnation, SessionId};
use crate::proto::job::JobSpec;
use crate::proto::message::{BrokerMessage, ExecutorMessage, Hello, ResultMessage};
use crate::proto::precedence::Precedence;
use crate::proto::result::JobResult;
use crate::proto::units::{Size, Span};
use crate::proto::view::{Ended, Verdict};

const CLIENT: RequestId = RequestId(1);

/// A broker with its clock and everything that it made durable.
struct Bench {
    broker: Broker,
    now: Now,
    durable: Vec<SealedFact>,
}

impl Bench {
    fn new() -> Self {
        let mut bench = Self::over(vec![]);
        let log = "north-00000001".parse().expect("a name");
        bench.broker.open(bench.now, Opening::Fresh { log, continues: None });
        assert_eq!(bench.drain().len(), 0);
        bench
    }

    fn over(durable: Vec<SealedFact>) -> Self {
        let mut broker = Broker::new(BrokerConfig::default(), Rng::from_seed(1));
        for sealed in &durable {
            broker.restore(sealed).expect("durable facts are whole");
        }
        Self { broker, now: Now::default(), durable }
    }

    /// Everything that comes out but `Persist`, which comes first and only once.
    fn drain(&mut self) -> Vec<Output> {
        let mut outputs = vec![];
        while let Some(output) = self.broker.poll_output() {
            match output {
                Output::Persist(batch) => {
                    assert!(outputs.is_empty(), "Persist comes before what depends on it");
                    assert!(!batch.facts.is_empty());
                    self.durable.extend(batch.facts);
                }
                other => outputs.push(other),
            }
        }
        outputs
    }

    fn input(&mut self, input: Input) -> Vec<Output> {
        self.broker.handle_input(self.now, input);
        self.drain()
    }

    fn request(&mut self, body: Request) -> Vec<Output> {
        self.input(Input::Request { request: CLIENT, body })
    }

    fn submit(&mut self, spec: JobSpec) -> JobId {
        let submission = Submission { index: 0, id: None, spec: Arc::new(spec) };
        let request = Request::Submit { submissions: vec![submission], watch: true };
        let outputs = self.request(request);
        outputs.iter().find_map(submitted).expect("the job is taken")
    }

    fn connect(&mut self, number: u64, slots: u32, attempts: Vec<AttemptId>) -> Vec<Output> {
        self.input(Input::SessionOpened {
            session: SessionId(number),
            hello: hello(number, slots, attempts),
            local: true,
        })
    }

    fn finish(
        &mut self,
        session: u64,
        start: &crate::proto::message::StartOrder,
        exit: i32,
    ) -> Vec<Output> {
        let message = ResultMessage {
            attempt: start.attempt.clone(),
            job: start.job,
            generation: start.generation,
            result: JobResult { exit: Some(exit), ..JobResult::default() },
            clock: start.clock.clone(),
            took_us: None,
            carried: vec![],
        };
        let message = ExecutorMessage::Result(Box::new(message));
        self.input(Input::Message { session: SessionId(session), message })
    }

    /// Lets time go by, with the broker awake at each moment that it asked for.
    fn pass(&mut self, span: Duration) -> Vec<Output> {
        let end = self.now.mono.after(span);
        let mut outputs = vec![];
        while let Some(due) = self.broker.poll_timeout().filter(|due| *due < end) {
            self.now.mono = due.max(self.now.mono);
            self.broker.handle_timeout(self.now);
            outputs.extend(self.drain());
        }
        self.now.mono = end;
        self.broker.handle_timeout(self.now);
        outputs.extend(self.drain());
        outputs
    }

    fn state(&mut self, job: JobId) -> JobState {
        let outputs = self.request(Request::Show { job: JobRef(job.to_string()) });
        match &outputs[..] {
            [Output::Reply { reply: Reply::Job(view), .. }] => view.state,
            other => panic!("{other:?}"),
        }
    }

    fn state_of_only_job(&mut self) -> JobState {
        let outputs = self.request(Request::List { state: None, limit: 1 });
        match &outputs[..] {
            [Output::Reply { reply: Reply::Jobs(jobs), .. }] => jobs[0].state,
            other => panic!("{other:?}"),
        }
    }

    fn kinds(&self) -> Vec<&'static str> {
        self.durable.iter().map(|sealed| sealed.fact.body.kind()).collect()
    }
}

fn hello(number: u64, slots: u32, attempts: Vec<AttemptId>) -> Hello {
    Hello {
        cgroup: None,
        v: crate::proto::message::SESSION_VERSION,
        executor: format!("van{number}-00000001").parse().expect("a name"),
        incarnation: Incarnation { boot: "boot".into(), life: number },
        pid: 1,
        capability: Capability {
            slots,
            memory: Size(1 << 30),
            labels: BTreeMap::new(),
            arch: "x86_64".into(),
            native: true,
            wasm: true,
            isolation: crate::proto::isolation::Isolation::default(),
        },
        load: Load::default(),
        heartbeat: Span::from_millis(1_000),
        attempts,
        jobs: vec![],
    }
}

fn submitted(output: &Output) -> Option<JobId> {
    match output {
        Output::Reply { reply: Reply::Submitted { job, .. }, .. } => Some(*job),
        _ => None,
    }
}

fn starts(outputs: &[Output]) -> Vec<crate::proto::message::StartOrder> {
    let start = |output: &Output| match output {
        Output::Send { message: BrokerMessage::Start(order), .. } => Some((**order).clone()),
        _ => None,
    };
    outputs.iter().filter_map(start).collect()
}

fn ends(outputs: &[Output]) -> Vec<Ended> {
    let end = |output: &Output| match output {
        Output::Reply { reply: Reply::Ended(ended), .. } => Some((**ended).clone()),
        _ => None,
    };
    outputs.iter().filter_map(end).collect()
}

fn refusal(outputs: &[Output]) -> Refusal {
    match outputs {
        [Output::Reply { reply: Reply::Refused { refusal, .. }, .. }] => refusal.clone(),
        other => panic!("{other:?}"),
    }
}

fn spec() -> JobSpec {
    JobSpec::command(vec!["true".into()])
}

#[test]
fn a_job_is_submitted_and_deployed_in_one_batch_and_reported_and_accepted_in_one() {
    let mut bench = Bench::new();
    bench.connect(1, 1, vec![]);
    let submission = Submission { index: 7, id: None, spec: Arc::new(spec()) };
    let outputs = bench.request(Request::Submit { submissions: vec![submission], watch: true });
    let start = starts(&outputs);
    assert_eq!((outputs.len(), start.len()), (2, 1), "{outputs:?}");
    assert_eq!(bench.kinds(), ["joined", "submitted", "deployed"]);
    let outputs = bench.finish(1, &start[0], 0);
    assert_eq!(bench.kinds()[3..], ["reported", "accepted"]);
    let ended = ends(&outputs);
    assert_eq!((outputs.len(), ended.len()), (2, 1), "{outputs:?}");
    assert_eq!((ended[0].state, ended[0].is_final), (JobState::Succeeded, true));
}

#[test]
fn the_same_result_a_thousand_times_changes_and_writes_nothing() {
    let mut bench = Bench::new();
    bench.connect(1, 1, vec![]);
    bench.submit(spec());
    let start = start_of_last(&mut bench);
    bench.finish(1, &start, 0);
    let written = bench.durable.len();
    for _ in 0..1_000 {
        let outputs = bench.finish(1, &start, 0);
        assert!(
            matches!(
                &outputs[..],
                [Output::Send { message: BrokerMessage::Acknowledged { .. }, .. }]
            ),
            "{outputs:?}"
        );
    }
    assert_eq!(bench.durable.len(), written);
}

/// The order of the attempt that was deployed last.
fn start_of_last(bench: &mut Bench) -> crate::proto::message::StartOrder {
    let deployed = bench.durable.iter().rev().find_map(|sealed| match &sealed.fact.body {
        Body::Deployed(_) => Some(Arc::clone(&sealed.fact)),
        _ => None,
    });
    let fact = deployed.expect("something was deployed");
    let job = fact.job.expect("a deployed fact names its job");
    crate::proto::message::StartOrder {
        attempt: AttemptId::from(fact.dot.clone()),
        job,
        generation: fact.generation,
        fence: 1,
        clock: fact.clock.clone(),
        spec: Arc::new(spec()),
        elements: None,
        items: vec![],
        lease: None,
        checkpoints: vec![],
        carried: vec![],
    }
}

#[test]
fn a31_the_same_id_or_key_and_spec_is_one_job_and_another_spec_is_refused() {
    let mut bench = Bench::new();
    let id = Some(JobId(uuid::Uuid::from_u128(9)));
    let once = |spec: JobSpec| {
        let submission = Submission { index: 0, id, spec: Arc::new(spec) };
        Request::Submit { submissions: vec![submission], watch: false }
    };
    bench.request(once(spec()));
    let outputs = bench.request(once(spec()));
    assert!(matches!(
        &outputs[..],
        [Output::Reply { reply: Reply::Submitted { known: true, .. }, .. }]
    ));
    let other = JobSpec::command(vec!["false".into()]);
    let said = refusal(&bench.request(once(other.clone())));
    assert!(matches!(said, Refusal::IdTaken(_)));
    let keyed = JobSpec { key: Some("k".into()), ..spec() };
    let first = bench.submit(keyed.clone());
    assert_eq!(bench.submit(keyed), first);
    let said = refusal(&bench.request(once(JobSpec { key: Some("k".into()), ..other })));
    assert!(matches!(said, Refusal::KeyConflict { job, .. } if job == first));
    assert_eq!(bench.kinds(), ["joined", "submitted", "submitted"]);
}

#[test]
fn a_failure_is_retried_and_the_greatest_is_accepted_when_retries_are_used_up() {
    let mut bench = Bench::new();
    bench.connect(1, 1, vec![]);
    let job = bench.submit(JobSpec { retries: 1, ..spec() });
    let first = start_of_last(&mut bench);
    assert!(ends(&bench.finish(1, &first, 3)).is_empty());
    assert_eq!(bench.state(job), JobState::Waiting);
    let outputs = bench.pass(limits::RETRY_BACKOFF_FIRST);
    let second = starts(&outputs);
    assert_eq!((outputs.len(), second.len(), second[0].fence), (1, 1, 2));
    let ended = ends(&bench.finish(1, &second[0], 4));
    assert_eq!(ended[0].state, JobState::Failed);
    let (_, reported) = ended[0].result.as_ref().expect("a result");
    assert_eq!(reported.result.exit, Some(4));
}

#[test]
fn a_lost_executors_jobs_go_to_another_and_its_late_result_is_judged() {
    let mut bench = Bench::new();
    bench.connect(1, 1, vec![]);
    let job = bench.submit(spec());
    let first = start_of_last(&mut bench);
    bench.connect(2, 1, vec![]);
    let gone = Input::SessionClosed { session: SessionId(1), process_gone: true, tree_gone: true };
    let second = starts(&bench.input(gone));
    assert_eq!(second.len(), 1);
    // The first comes back with its result before the second ended: the work counts.
    bench.connect(3, 1, vec![]);
    let outputs = bench.connect(1, 1, vec![first.attempt.clone()]);
    assert!(
        outputs.iter().any(|output| matches!(
            output,
            Output::Send { message: BrokerMessage::Stop { .. }, .. }
        ))
    );
    let outputs = bench.finish(1, &first, 0);
    assert_eq!(ends(&outputs).len(), 1);
    let stops = outputs.iter().filter(|output| {
        matches!(output, Output::Send { message: BrokerMessage::Stop { .. }, .. })
    });
    assert_eq!(stops.count(), 1, "the second attempt is stopped: {outputs:?}");
    bench.finish(2, &second[0], 0);
    let outputs = bench.request(Request::Show { job: JobRef(job.to_string()) });
    let [Output::Reply { reply: Reply::Job(view), .. }] = &outputs[..] else { panic!() };
    let verdicts: Vec<_> = view.results.iter().map(|result| result.judgement.verdict).collect();
    assert_eq!(verdicts, [Verdict::Accepted, Verdict::Late]);
}

#[test]
fn silence_and_absence_lose_attempts_in_their_time() {
    let mut bench = Bench::new();
    bench.connect(1, 1, vec![]);
    let job = bench.submit(spec());
    bench.pass(limits::SUSPECT_AFTER);
    assert_eq!(bench.state(job), JobState::Running);
    bench.pass(limits::LOST_AFTER);
    assert_eq!(bench.state(job), JobState::Waiting);
    bench.connect(2, 1, vec![]);
    assert_eq!(bench.state(job), JobState::Running);
    let closed =
        Input::SessionClosed { session: SessionId(2), process_gone: false, tree_gone: false };
    bench.input(closed);
    assert_eq!(bench.state(job), JobState::Running);
    bench.pass(limits::RECONNECT_GRACE);
    assert_eq!(bench.state(job), JobState::Waiting);
}

#[test]
fn a28_a_job_that_takes_down_executors_is_parked_and_a_rerun_releases_it() {
    let mut bench = Bench::new();
    let job = bench.submit(JobSpec { max_lost: 2, ..spec() });
    for number in 1..=2 {
        bench.connect(number, 1, vec![]);
        bench.pass(Duration::from_millis(200));
        let gone = Input::SessionClosed {
            session: SessionId(number),
            process_gone: true,
            tree_gone: true,
        };
        bench.input(gone);
    }
    assert_eq!(bench.state(job), JobState::Parked);
    bench.request(Request::Rerun { job: JobRef(job.to_string()), reason: "again".into() });
    bench.connect(3, 1, vec![]);
    assert_eq!(bench.state(job), JobState::Running);
    let start = start_of_last(&mut bench);
    assert_eq!(start.generation, 2);
    bench.finish(3, &start, 0);
    assert_eq!(bench.state(job), JobState::Succeeded);
}

#[test]
fn a_cancel_ends_a_running_job_and_its_result_is_late() {
    let mut bench = Bench::new();
    bench.connect(1, 1, vec![]);
    let job = bench.submit(spec());
    let start = start_of_last(&mut bench);
    let cancel = Request::Cancel { job: JobRef(job.to_string()), reason: "enough".into() };
    let outputs = bench.request(cancel.clone());
    assert_eq!(outputs.len(), 3, "Ended, Stop, Done: {outputs:?}");
    assert!(matches!(refusal(&bench.request(cancel)), Refusal::HasEnded { .. }));
    assert!(ends(&bench.finish(1, &start, 0)).is_empty());
    assert_eq!(bench.state(job), JobState::Cancelled);
}

#[test]
fn a_job_waits_for_others_and_is_skipped_when_one_did_not_succeed() {
    let mut bench = Bench::new();
    let first = bench.submit(spec());
    let second = bench.submit(JobSpec { after: vec![first], ..spec() });
    let third = bench.submit(JobSpec { after: vec![second], ..spec() });
    bench.connect(1, 2, vec![]);
    assert_eq!(bench.state(second), JobState::Waiting);
    let start = start_of_last(&mut bench);
    bench.finish(1, &start, 0);
    assert_eq!(bench.state(second), JobState::Running);
    let start = start_of_last(&mut bench);
    bench.finish(1, &start, 1);
    assert_eq!((bench.state(second), bench.state(third)), (JobState::Failed, JobState::Skipped));
    let unknown = JobSpec { after: vec![JobId(uuid::Uuid::from_u128(1))], ..spec() };
    let submission = Submission { index: 0, id: None, spec: Arc::new(unknown) };
    let request = Request::Submit { submissions: vec![submission], watch: false };
    assert!(matches!(refusal(&bench.request(request)), Refusal::AfterUnknown(_)));
}

#[test]
fn the_most_urgent_job_is_deployed_first_and_equals_in_order_of_arrival() {
    let mut bench = Bench::new();
    let levels = [Precedence::Routine, Precedence::Flash, Precedence::Routine, Precedence::Flash];
    let jobs: Vec<JobId> = levels
        .into_iter()
        .map(|precedence| bench.submit(JobSpec { precedence, ..spec() }))
        .collect();
    let order: Vec<JobId> =
        starts(&bench.connect(1, 4, vec![])).iter().map(|start| start.job).collect();
    assert_eq!(order, [jobs[1], jobs[3], jobs[0], jobs[2]]);
}

#[test]
fn after_a_restart_running_attempts_are_kept_and_undelivered_orders_are_sent_again() {
    let mut bench = Bench::new();
    bench.connect(1, 2, vec![]);
    let (kept, resent) = (bench.submit(spec()), bench.submit(spec()));
    let attempts: Vec<AttemptId> = bench
        .durable
        .iter()
        .filter(|sealed| matches!(sealed.fact.body, Body::Deployed(_)))
        .map(|sealed| AttemptId::from(sealed.fact.dot.clone()))
        .collect();
    let written = bench.durable.len();
    let mut bench = Bench::over(bench.durable);
    let log = "north-00000001".parse().expect("a name");
    bench.broker.open(bench.now, Opening::Continue(log));
    assert!(bench.drain().is_empty());
    let outputs = bench.connect(1, 2, vec![attempts[0].clone()]);
    let again: Vec<_> = starts(&outputs).into_iter().map(|start| start.attempt).collect();
    assert_eq!(again, attempts[1..]);
    assert_eq!((bench.state(kept), bench.state(resent)), (JobState::Running, JobState::Running));
    assert_eq!(bench.durable.len(), written, "nothing was written");
}

#[test]
fn a18_a_fresh_log_carries_the_older_ones_jobs_on() {
    let mut bench = Bench::new();
    bench.connect(1, 1, vec![]);
    let job = bench.submit(spec());
    let start = start_of_last(&mut bench);
    let mut bench = Bench::over(bench.durable);
    let opening = Opening::Fresh {
        log: "north-00000002".parse().expect("a name"),
        continues: Some("north-00000001".parse().expect("a name")),
    };
    bench.broker.open(bench.now, opening);
    bench.drain();
    bench.connect(1, 1, vec![start.attempt.clone()]);
    bench.finish(1, &start, 0);
    let outputs = bench.request(Request::Show { job: JobRef(job.to_string()) });
    let [Output::Reply { reply: Reply::Job(view), .. }] = &outputs[..] else { panic!() };
    assert_eq!((view.state, view.clock.len()), (JobState::Succeeded, 2));
    assert!(view.ended.as_ref().is_some_and(|ended| ended.is_final));
    assert_eq!(view.owner.as_str(), "north-00000002");
}

#[test]
fn a_second_process_with_the_same_executor_id_is_refused() {
    let mut bench = Bench::new();
    bench.connect(1, 1, vec![]);
    let mut clone = hello(1, 1, vec![]);
    clone.incarnation.life = 99;
    let outputs =
        bench.input(Input::SessionOpened { session: SessionId(2), hello: clone, local: true });
    assert!(outputs.iter().any(|output| matches!(
        output,
        Output::Send { message: BrokerMessage::Refused { .. }, .. }
    )));
}

#[test]
fn garbage_from_an_executor_changes_no_other_job() {
    let mut bench = Bench::new();
    bench.connect(1, 1, vec![]);
    let job = bench.submit(spec());
    let start = start_of_last(&mut bench);
    bench.connect(2, 1, vec![]);
    // Another executor claims the result.
    bench.finish(2, &start, 0);
    assert_eq!(bench.state(job), JobState::Running);
    // A result of an attempt that nobody deployed waits, and is acknowledged.
    let mut unknown = start.clone();
    unknown.attempt.dot.seq = 1_000;
    bench.finish(1, &unknown, 0);
    assert_eq!(bench.state(job), JobState::Running);
    bench.finish(1, &start, 0);
    assert_eq!(bench.state(job), JobState::Succeeded);
}

#[test]
fn i11_a_result_that_names_another_job_loses_its_attempt_and_nothing_else() {
    let mut bench = Bench::new();
    bench.connect(1, 1, vec![]);
    let job = bench.submit(spec());
    let start = start_of_last(&mut bench);
    let mut wrong = start.clone();
    wrong.job = JobId(uuid::Uuid::from_u128(77));
    bench.finish(1, &wrong, 0);
    assert_eq!(bench.state(job), JobState::Running, "a further attempt runs");
    assert_eq!(bench.kinds()[3..], ["lost", "deployed"]);
}

#[test]
fn i10_an_executor_that_hands_everything_back_is_asked_less_and_less() {
    let mut bench = Bench::new();
    bench.connect(1, 1, vec![]);
    bench.submit(spec());
    for _ in 0..10_000 {
        if bench.state_of_only_job() == JobState::Running {
            let attempt = start_of_last(&mut bench).attempt;
            let message = ExecutorMessage::Stopped { attempt, unbegun: false, reason: None };
            bench.input(Input::Message { session: SessionId(1), message });
        }
        bench.pass(Duration::from_millis(1));
    }
    let deployed = bench.kinds().iter().filter(|kind| **kind == "deployed").count();
    assert!((2..=10).contains(&deployed), "{deployed} attempts in ten seconds");
}

#[test]
fn an_executor_with_impossible_slots_is_refused() {
    let mut bench = Bench::new();
    for slots in [0, u32::MAX] {
        let outputs = bench.connect(1, slots, vec![]);
        assert!(matches!(
            &outputs[..],
            [
                Output::Notice(_),
                Output::Send { message: BrokerMessage::Refused { .. }, .. },
                Output::Close { .. }
            ]
        ));
    }
}
