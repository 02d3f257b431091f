//! The executor fed one event at a time.

mod array;
mod lease;

use std::sync::Arc;

use super::*;
use crate::proto::id::Dot;
use crate::proto::job::JobSpec;
use crate::proto::units::{Size, Span};

fn at(millis: u64) -> Now {
    Now { mono: Monotonic(millis * 1_000), ..Now::default() }
}

fn executor(spooled: Vec<ResultMessage>) -> Executor {
    let config = ExecutorConfig {
        cgroup: None,
        executor: "van-00000001".parse().expect("a name"),
        incarnation: Incarnation { boot: "boot".into(), life: 1 },
        pid: 1,
        capability: Capability {
            slots: 2,
            memory: Size(1),
            labels: BTreeMap::new(),
            arch: String::new(),
            native: true,
            wasm: true,
            isolation: crate::proto::isolation::Isolation::default(),
        },
        heartbeat: Duration::from_secs(1),
        silence_max: Duration::from_secs(5),
    };
    Executor::new(config, spooled)
}

fn attempt(seq: u64) -> AttemptId {
    AttemptId::from(Dot { log: "north-00000001".parse().expect("a name"), seq })
}

fn order(seq: u64, timeout: Option<Span>) -> BrokerMessage {
    let spec = JobSpec { timeout, ..JobSpec::command(vec!["true".into()]) };
    BrokerMessage::Start(Box::new(StartOrder {
        attempt: attempt(seq),
        job: JobId(uuid::Uuid::from_u128(u128::from(seq))),
        generation: 1,
        fence: 1,
        clock: Clock::new(),
        spec: Arc::new(spec),
        elements: None,
        items: vec![],
        lease: None,
        checkpoints: vec![],
        carried: vec![],
    }))
}

fn drain(executor: &mut Executor) -> Vec<ExecutorOutput> {
    std::iter::from_fn(|| executor.poll_output()).collect()
}

fn give(executor: &mut Executor, now: Now, input: ExecutorInput) -> Vec<ExecutorOutput> {
    executor.handle_input(now, input);
    drain(executor)
}

fn hear(executor: &mut Executor, now: Now, message: BrokerMessage) -> Vec<ExecutorOutput> {
    give(executor, now, ExecutorInput::Message(message))
}

fn end(executor: &mut Executor, now: Now, seq: u64, exit: i32) -> Vec<ExecutorOutput> {
    let result = Box::new(JobResult { exit: Some(exit), ..JobResult::default() });
    give(executor, now, ExecutorInput::Ended { attempt: attempt(seq), result })
}

fn register(executor: &mut Executor, now: Now) -> Vec<ExecutorOutput> {
    let mut outputs = give(executor, now, ExecutorInput::Connected);
    let log = "north-00000001".parse().expect("a name");
    let welcome = BrokerMessage::Welcome { log, heartbeat_max: None, continues: vec![] };
    outputs.extend(hear(executor, now, welcome));
    outputs
}

fn words(outputs: &[ExecutorOutput]) -> Vec<&'static str> {
    let word = |output: &ExecutorOutput| match output {
        ExecutorOutput::Send(ExecutorMessage::Hello(_)) => "hello",
        ExecutorOutput::Send(ExecutorMessage::Heartbeat { .. }) => "heartbeat",
        ExecutorOutput::Send(ExecutorMessage::Result(_)) => "result",
        ExecutorOutput::Send(ExecutorMessage::Stopped { .. }) => "stopped",
        ExecutorOutput::Send(_) => "output",
        ExecutorOutput::Run(_) => "run",
        ExecutorOutput::Kill { kill: Kill::Terminate, .. } => "terminate",
        ExecutorOutput::Kill { kill: Kill::Kill, .. } => "kill",
        ExecutorOutput::Spool(_) => "spool",
        ExecutorOutput::Unspool(_) => "unspool",
        ExecutorOutput::Registered(_) => "registered",
        ExecutorOutput::Reconnect { .. } => "reconnect",
        ExecutorOutput::Drained => "drained",
        ExecutorOutput::Notice(_) => "notice",
        ExecutorOutput::Lease { .. } => "lease",
        ExecutorOutput::Forget(_) => "forget",
    };
    outputs.iter().map(word).collect()
}

#[test]
fn an_attempt_is_run_once_however_often_its_order_comes() {
    let mut executor = executor(vec![]);
    assert_eq!(words(&register(&mut executor, at(0))), ["hello", "registered", "heartbeat"]);
    assert_eq!(words(&hear(&mut executor, at(1), order(1, None))), ["run"]);
    assert!(hear(&mut executor, at(1), order(1, None)).is_empty());
    assert_eq!(words(&end(&mut executor, at(2), 1, 0)), ["result"]);
    assert!(hear(&mut executor, at(2), order(1, None)).is_empty());
}

#[test]
fn a_result_is_kept_until_acknowledged_and_written_down_when_that_takes_long() {
    let mut executor = executor(vec![]);
    register(&mut executor, at(0));
    hear(&mut executor, at(0), order(1, None));
    end(&mut executor, at(0), 1, 0);
    let due = at(u64::try_from(limits::SPOOL_AFTER.as_millis()).expect("a short time"));
    assert_eq!(executor.poll_timeout(), Some(due.mono));
    executor.handle_timeout(due);
    assert_eq!(words(&drain(&mut executor)), ["spool"]);
    give(&mut executor, at(230), ExecutorInput::Disconnected);
    let outputs = register(&mut executor, at(240));
    assert_eq!(words(&outputs), ["hello", "registered", "result", "heartbeat"]);
    let ExecutorOutput::Send(ExecutorMessage::Hello(hello)) = &outputs[0] else { panic!() };
    assert_eq!(hello.attempts, [attempt(1)]);
    let acknowledged =
        BrokerMessage::Acknowledged { attempt: attempt(1), elements: None, keep: false };
    assert_eq!(words(&hear(&mut executor, at(250), acknowledged.clone())), ["unspool", "forget"]);
    assert!(hear(&mut executor, at(250), acknowledged).is_empty());
    assert!(executor.is_idle());
}

#[test]
fn a_result_without_session_is_written_down_at_once_and_outlives_the_process() {
    let mut first = executor(vec![]);
    register(&mut first, at(0));
    hear(&mut first, at(0), order(1, None));
    give(&mut first, at(1), ExecutorInput::Disconnected);
    let outputs = end(&mut first, at(2), 1, 0);
    let [ExecutorOutput::Spool(message)] = &outputs[..] else { panic!("{outputs:?}") };
    let mut second = executor(vec![(**message).clone()]);
    let outputs = register(&mut second, at(3));
    assert_eq!(words(&outputs), ["hello", "registered", "result", "heartbeat"]);
}

#[test]
fn a_time_out_terminates_then_kills_and_marks_the_result() {
    let mut executor = executor(vec![]);
    register(&mut executor, at(0));
    hear(&mut executor, at(0), order(1, Some(Span::from_millis(300))));
    executor.handle_timeout(at(300));
    assert_eq!(words(&drain(&mut executor)), ["terminate"]);
    let kill_at = at(300).mono.after(limits::KILL_GRACE);
    executor.handle_timeout(Now { mono: kill_at, ..Now::default() });
    assert!(words(&drain(&mut executor)).contains(&"kill"));
    let outputs = end(&mut executor, at(2_400), 1, 0);
    let ExecutorOutput::Send(ExecutorMessage::Result(message)) = &outputs[0] else { panic!() };
    assert!(message.result.timed_out && !message.result.is_success());
}

#[test]
fn a_stopped_attempt_has_no_result_however_it_ends() {
    let mut executor = executor(vec![]);
    register(&mut executor, at(0));
    for seq in 1..=2 {
        hear(&mut executor, at(0), order(seq, None));
        let stop = BrokerMessage::Stop { attempt: attempt(seq), reason: String::new() };
        assert_eq!(words(&hear(&mut executor, at(1), stop.clone())), ["terminate"]);
        assert!(hear(&mut executor, at(1), stop).is_empty());
    }
    assert_eq!(words(&end(&mut executor, at(2), 1, 143)), ["stopped"]);
    assert_eq!(words(&end(&mut executor, at(2), 2, 0)), ["stopped"]);
    let stop = BrokerMessage::Stop { attempt: attempt(9), reason: String::new() };
    assert_eq!(words(&hear(&mut executor, at(3), stop)), ["stopped"]);
}

#[test]
fn heartbeats_go_on_and_a_silent_broker_is_given_up() {
    let mut executor = executor(vec![]);
    register(&mut executor, at(0));
    for second in 1..5 {
        executor.handle_timeout(at(second * 1_000));
        assert_eq!(words(&drain(&mut executor)), ["heartbeat"]);
    }
    hear(&mut executor, at(4_500), BrokerMessage::Heard { number: 0 });
    executor.handle_timeout(at(9_499));
    assert_eq!(words(&drain(&mut executor)), ["heartbeat"]);
    executor.handle_timeout(at(9_500));
    assert_eq!(words(&drain(&mut executor)), ["reconnect"]);
    assert_eq!(executor.poll_timeout(), None);
}

#[test]
fn a36_a_draining_executor_takes_nothing_new_and_hands_back_what_it_must_stop() {
    let mut executor = executor(vec![]);
    register(&mut executor, at(0));
    hear(&mut executor, at(0), order(1, None));
    assert_eq!(words(&give(&mut executor, at(1), ExecutorInput::Drain)), ["heartbeat"]);
    assert_eq!(words(&hear(&mut executor, at(2), order(2, None))), ["stopped"]);
    assert_eq!(words(&give(&mut executor, at(3), ExecutorInput::HandBack)), ["terminate"]);
    assert_eq!(words(&end(&mut executor, at(4), 1, 137)), ["stopped", "drained"]);
}

#[test]
fn an_attempt_that_could_not_begin_is_handed_back_and_leaves_no_result() {
    let unfit = |seq| ExecutorInput::Unfit { attempt: attempt(seq), reason: "no pipe".into() };
    let mut executor = executor(vec![]);
    register(&mut executor, at(0));
    hear(&mut executor, at(0), order(1, None));
    assert_eq!(words(&give(&mut executor, at(1), unfit(1))), ["notice", "stopped"]);
    assert!(give(&mut executor, at(1), unfit(1)).is_empty());
    hear(&mut executor, at(2), order(2, None));
    give(&mut executor, at(2), ExecutorInput::Drain);
    assert_eq!(words(&give(&mut executor, at(3), unfit(2))), ["notice", "stopped", "drained"]);
}

#[test]
fn a_refusal_is_told_and_ends_the_session() {
    let mut executor = executor(vec![]);
    give(&mut executor, at(0), ExecutorInput::Connected);
    let refused = BrokerMessage::Refused { code: "executor-in-use".into(), detail: "x".into() };
    assert_eq!(words(&hear(&mut executor, at(1), refused)), ["reconnect"]);
}

#[test]
fn a_broker_that_bears_less_silence_gets_more_heartbeats() {
    let mut executor = executor(vec![]);
    give(&mut executor, at(0), ExecutorInput::Connected);
    let log = "north-00000001".parse().expect("a name");
    let heartbeat_max = Some(Span::from_millis(250));
    hear(&mut executor, at(0), BrokerMessage::Welcome { log, heartbeat_max, continues: vec![] });
    assert_eq!(executor.poll_timeout(), Some(at(250).mono));
}
