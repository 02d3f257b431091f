//! Leases, suspension, and what an executor keeps.

use super::*;
use crate::proto::id::LogId;

fn leased(seq: u64) -> BrokerMessage {
    let BrokerMessage::Start(order) = order(seq, None) else { unreachable!() };
    BrokerMessage::Start(Box::new(StartOrder { lease: Some(Span::from_millis(5_000)), ..*order }))
}

fn number_of(outputs: &[ExecutorOutput]) -> u64 {
    let number = |output: &ExecutorOutput| match output {
        ExecutorOutput::Send(ExecutorMessage::Heartbeat { number, .. }) => Some(*number),
        _ => None,
    };
    outputs.iter().rev().find_map(number).expect("a heartbeat")
}

fn lease_of(outputs: &[ExecutorOutput]) -> Option<u64> {
    outputs.iter().find_map(|output| match output {
        ExecutorOutput::Lease { until, .. } => Some(until.0 / 1_000),
        _ => None,
    })
}

#[test]
fn a10_a_lease_counts_from_the_sending_of_the_heartbeat_that_was_answered() {
    let mut executor = executor(vec![]);
    let number = number_of(&register(&mut executor, at(0)));
    assert!(hear(&mut executor, at(100), leased(1)).is_empty(), "no heartbeat was answered yet");
    let outputs = hear(&mut executor, at(900), BrokerMessage::Heard { number });
    assert_eq!((words(&outputs), lease_of(&outputs)), (vec!["lease", "run"], Some(5_000)));
    executor.handle_timeout(at(1_000));
    let number = number_of(&drain(&mut executor));
    let outputs = hear(&mut executor, at(3_000), BrokerMessage::Heard { number });
    assert_eq!(lease_of(&outputs), Some(6_000));
    executor.handle_timeout(at(6_000));
    assert!(words(&drain(&mut executor)).contains(&"kill"));
    let outputs = end(&mut executor, at(6_010), 1, 137);
    let ExecutorOutput::Send(ExecutorMessage::Stopped { reason, .. }) = &outputs[0] else {
        panic!("{outputs:?}")
    };
    assert_eq!(reason.as_deref(), Some("its lease ran out"));
    assert_eq!(words(&hear(&mut executor, at(6_020), leased(1))), ["stopped"], "not again");
}

#[test]
fn a10_another_session_renews_only_what_its_broker_wants() {
    let mut executor = executor(vec![]);
    let number = number_of(&register(&mut executor, at(0)));
    hear(&mut executor, at(1), leased(1));
    hear(&mut executor, at(2), BrokerMessage::Heard { number });
    give(&mut executor, at(1_000), ExecutorInput::Disconnected);
    let number = number_of(&register(&mut executor, at(2_000)));
    let outputs = hear(&mut executor, at(2_001), BrokerMessage::Heard { number });
    assert_eq!(lease_of(&outputs), None);
    hear(&mut executor, at(2_002), BrokerMessage::Keep { attempt: attempt(1) });
    executor.handle_timeout(at(3_000));
    let number = number_of(&drain(&mut executor));
    let outputs = hear(&mut executor, at(3_001), BrokerMessage::Heard { number });
    assert_eq!(lease_of(&outputs), Some(8_000));
}

#[test]
fn a11_a_suspended_executor_begins_nothing_before_its_broker_answered() {
    let mut executor = executor(vec![]);
    register(&mut executor, at(0));
    (1..=3).for_each(|seq| drop(hear(&mut executor, at(1), order(seq, None))));
    assert_eq!(executor.waiting().count(), 1);
    // The machine slept for a minute; a job ended meanwhile.
    let outputs = end(&mut executor, at(60_000), 1, 0);
    let words_said = words(&outputs);
    assert!(words_said.contains(&"heartbeat") && !words_said.contains(&"run"), "{words_said:?}");
    let number = number_of(&outputs);
    let stop = BrokerMessage::Stop { attempt: attempt(3), reason: "it runs elsewhere".into() };
    assert_eq!(words(&hear(&mut executor, at(60_001), stop))[0], "stopped");
    assert!(hear(&mut executor, at(60_002), BrokerMessage::Heard { number }).is_empty());
    assert_eq!(words(&hear(&mut executor, at(60_003), order(4, None))), ["run"]);
}

#[test]
fn a_result_that_is_to_be_kept_is_on_disk_until_it_is_released() {
    let mut executor = executor(vec![]);
    register(&mut executor, at(0));
    hear(&mut executor, at(0), order(1, None));
    end(&mut executor, at(1), 1, 0);
    let keep = BrokerMessage::Acknowledged { attempt: attempt(1), elements: None, keep: true };
    assert_eq!(words(&hear(&mut executor, at(2), keep)), ["spool"]);
    assert!(executor.is_idle() && executor.holds(&attempt(1)));
    let released = BrokerMessage::Released { attempt: attempt(1), elements: None };
    assert_eq!(words(&hear(&mut executor, at(3), released)), ["unspool", "forget"]);
}

#[test]
fn another_broker_gets_the_facts_of_a_job_with_its_result() {
    let mut executor = executor(vec![]);
    register(&mut executor, at(0));
    let BrokerMessage::Start(one) = order(1, None) else { unreachable!() };
    let carried: Vec<Arc<str>> = vec!["the line".into()];
    let one = StartOrder { carried: carried.clone(), ..*one };
    hear(&mut executor, at(0), BrokerMessage::Start(Box::new(one)));
    let carried_by = |outputs: &[ExecutorOutput]| {
        outputs.iter().find_map(|output| match output {
            ExecutorOutput::Send(ExecutorMessage::Result(said)) => Some(said.carried.clone()),
            _ => None,
        })
    };
    assert_eq!(carried_by(&end(&mut executor, at(1), 1, 0)), Some(vec![]));
    give(&mut executor, at(2), ExecutorInput::Disconnected);
    give(&mut executor, at(3), ExecutorInput::Connected);
    let log: LogId = "south-00000001".parse().expect("a name");
    let welcome = BrokerMessage::Welcome { log, heartbeat_max: None, continues: vec![] };
    assert_eq!(carried_by(&hear(&mut executor, at(4), welcome)), Some(carried));
}

#[test]
fn state_is_told_with_its_number_and_again_in_each_session() {
    let mut executor = executor(vec![]);
    register(&mut executor, at(0));
    hear(&mut executor, at(0), order(1, None));
    let manifest = Digest::of(b"state");
    let kept = ExecutorInput::Checkpointed { attempt: attempt(1), manifest, files: 2, bytes: 9 };
    let told = |outputs: &[ExecutorOutput]| {
        outputs.iter().find_map(|output| match output {
            ExecutorOutput::Send(ExecutorMessage::Checkpoint(said)) => Some(said.number),
            _ => None,
        })
    };
    assert_eq!(told(&give(&mut executor, at(1), kept.clone())), Some(1));
    assert_eq!(told(&give(&mut executor, at(2), kept)), Some(2));
    give(&mut executor, at(3), ExecutorInput::Disconnected);
    assert_eq!(told(&register(&mut executor, at(4))), Some(2));
}
