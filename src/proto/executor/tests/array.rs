//! Attempts ahead of free slots: elements that wait here, are called back, and tell together.

use super::*;
use crate::proto::ranges::Ranges;
use crate::proto::text::Text;

fn element(seq: u64, element: u64) -> AttemptId {
    AttemptId { element: Some(element), ..attempt(seq) }
}

/// The order to run elements of an array, each with its number as an argument.
fn lease(seq: u64, elements: &str, items: &[&str]) -> BrokerMessage {
    let BrokerMessage::Start(order) = order(seq, None) else { unreachable!() };
    let spec = JobSpec {
        placeholder: Some("{}".into()),
        ..JobSpec::command(vec!["echo".into(), "{}".into()])
    };
    BrokerMessage::Start(Box::new(StartOrder {
        spec: Arc::new(spec),
        elements: Some(elements.parse().expect("ranges")),
        items: items.iter().map(|item| Text::from(*item)).collect(),
        ..*order
    }))
}

fn started(outputs: &[ExecutorOutput]) -> Vec<(AttemptId, String)> {
    let started = |output: &ExecutorOutput| match output {
        ExecutorOutput::Run(order) => Some((order.attempt.clone(), order.spec.command_line())),
        _ => None,
    };
    outputs.iter().filter_map(started).collect()
}

fn told(outputs: &[ExecutorOutput]) -> Vec<AttemptId> {
    let told = |output: &ExecutorOutput| match output {
        ExecutorOutput::Send(ExecutorMessage::Result(message)) => Some(message.attempt.clone()),
        _ => None,
    };
    outputs.iter().filter_map(told).collect()
}

/// Attempts that are handed back, and whether they had not begun.
fn handed_back(outputs: &[ExecutorOutput]) -> Vec<(AttemptId, bool)> {
    let back = |output: &ExecutorOutput| match output {
        ExecutorOutput::Send(ExecutorMessage::Stopped { attempt, unbegun, .. }) => {
            Some((attempt.clone(), *unbegun))
        }
        _ => None,
    };
    outputs.iter().filter_map(back).collect()
}

fn finish(executor: &mut Executor, now: Now, attempt: AttemptId) -> Vec<ExecutorOutput> {
    let result = Box::new(JobResult { exit: Some(0), ..JobResult::default() });
    give(executor, now, ExecutorInput::Ended { attempt, result })
}

fn micros(micros: u64) -> Now {
    Now { mono: Monotonic(micros), ..Now::default() }
}

#[test]
fn elements_begin_in_order_as_slots_get_free() {
    let mut executor = executor(vec![]);
    register(&mut executor, at(0));
    let outputs = hear(&mut executor, at(0), lease(1, "3-4,9", &["c", "d", "i"]));
    let (third, fourth) = (element(1, 3), element(1, 4));
    assert_eq!(started(&outputs), [(third, "echo c".into()), (fourth.clone(), "echo d".into())]);
    assert!(hear(&mut executor, at(0), lease(1, "9", &["i"])).is_empty(), "it waits already");
    assert!(hear(&mut executor, at(0), lease(2, "5", &[])).is_empty());
    let outputs = finish(&mut executor, at(1), fourth);
    assert_eq!(started(&outputs), [(element(1, 9), "echo i".into())]);
    let outputs = finish(&mut executor, at(1), element(1, 9));
    assert_eq!(started(&outputs), [(element(2, 5), "echo 5".into())]);
}

#[test]
fn results_are_held_back_while_more_waits_and_told_together() {
    let mut executor = executor(vec![]);
    register(&mut executor, at(0));
    hear(&mut executor, at(0), lease(1, "1-5", &[]));
    assert!(told(&finish(&mut executor, micros(1_000), element(1, 1))).is_empty());
    assert!(told(&finish(&mut executor, micros(2_000), element(1, 2))).is_empty());
    let due = micros(1_000).mono.after(limits::RESULTS_TOGETHER_WITHIN);
    assert_eq!(executor.poll_timeout(), Some(due));
    executor.handle_timeout(Now { mono: due, ..Now::default() });
    assert_eq!(told(&drain(&mut executor)), [element(1, 1), element(1, 2)]);
    // The last waits for a slot no more, so nothing holds results back.
    assert_eq!(told(&finish(&mut executor, micros(8_000), element(1, 3))), [element(1, 3)]);
    assert_eq!(told(&finish(&mut executor, micros(8_000), element(1, 4))), [element(1, 4)]);
    // A full load of them does not wait for its time.
    let most = limits::RESULTS_TOGETHER_MAX as u64;
    hear(&mut executor, micros(9_000), lease(2, &format!("1-{}", most / 2), &[]));
    hear(&mut executor, micros(9_000), lease(2, &format!("{}-{}", most / 2 + 1, most + 9), &[]));
    for number in 1..most {
        assert!(told(&finish(&mut executor, micros(9_000), element(2, number))).is_empty());
    }
    let outputs = finish(&mut executor, micros(9_000), element(2, most));
    assert_eq!(told(&outputs).len() as u64, most);
}

#[test]
fn what_has_not_begun_is_handed_back_when_called() {
    let mut executor = executor(vec![]);
    register(&mut executor, at(0));
    hear(&mut executor, at(0), lease(1, "1-4", &[]));
    let outputs = hear(&mut executor, at(1), BrokerMessage::Recall);
    assert_eq!(handed_back(&outputs), [(element(1, 3), true), (element(1, 4), true)]);
    assert_eq!(outputs.len(), 2, "what runs goes on: {outputs:?}");
    assert!(hear(&mut executor, at(1), BrokerMessage::Recall).is_empty());
    // The same may come again, and then begins.
    hear(&mut executor, at(2), lease(2, "3", &[]));
    let outputs = finish(&mut executor, at(2), element(1, 1));
    assert_eq!(started(&outputs), [(element(2, 3), "echo 3".into())]);
    hear(&mut executor, at(3), lease(3, "7-8", &[]));
    let outputs = give(&mut executor, at(3), ExecutorInput::Drain);
    assert_eq!(handed_back(&outputs), [(element(3, 7), true), (element(3, 8), true)]);
}

#[test]
fn one_element_is_stopped_whether_it_runs_or_waits() {
    let mut executor = executor(vec![]);
    register(&mut executor, at(0));
    hear(&mut executor, at(0), lease(1, "1-4", &[]));
    let stop = |number| BrokerMessage::Stop { attempt: element(1, number), reason: String::new() };
    let outputs = hear(&mut executor, at(1), stop(3));
    assert_eq!((outputs.len(), handed_back(&outputs)), (1, vec![(element(1, 3), true)]));
    assert_eq!(words(&hear(&mut executor, at(1), stop(1))), ["terminate"]);
    let result = Box::new(JobResult { signal: Some(15), ..JobResult::default() });
    let ended = ExecutorInput::Ended { attempt: element(1, 1), result };
    let outputs = give(&mut executor, at(2), ended);
    assert_eq!(handed_back(&outputs), [(element(1, 1), false)]);
    assert_eq!(started(&outputs), [(element(1, 4), "echo 4".into())], "3 never begins");
}

#[test]
fn elements_are_acknowledged_by_ranges_and_the_others_are_sent_again() {
    let mut executor = executor(vec![]);
    register(&mut executor, at(0));
    hear(&mut executor, at(0), lease(1, "1-4", &[]));
    for number in 1..=4 {
        finish(&mut executor, at(0), element(1, number));
    }
    // It may name more than there are, and must not cost what it names.
    let most = Ranges::run(3, limits::COUNTER_MAX);
    let acknowledged = |elements| BrokerMessage::Acknowledged {
        attempt: attempt(1),
        elements: Some(elements),
        keep: false,
    };
    assert_eq!(words(&hear(&mut executor, at(1), acknowledged(most))), ["forget", "forget"]);
    let outputs = give(&mut executor, at(2), ExecutorInput::Disconnected);
    assert_eq!(words(&outputs), ["spool", "spool"]);
    let outputs = register(&mut executor, at(3));
    let ExecutorOutput::Send(ExecutorMessage::Hello(hello)) = &outputs[0] else { panic!() };
    assert_eq!(hello.attempts, [element(1, 1), element(1, 2)]);
    assert_eq!(told(&outputs), [element(1, 1), element(1, 2)]);
    let outputs = hear(&mut executor, at(4), acknowledged(Ranges::run(1, 2)));
    assert_eq!(words(&outputs), ["unspool", "forget", "unspool", "forget"]);
    assert!(executor.is_idle());
}

#[test]
fn a_hello_names_what_waits_to_begin() {
    let mut executor = executor(vec![]);
    register(&mut executor, at(0));
    hear(&mut executor, at(0), lease(1, "1-3", &[]));
    give(&mut executor, at(1), ExecutorInput::Disconnected);
    let outputs = give(&mut executor, at(2), ExecutorInput::Connected);
    let ExecutorOutput::Send(ExecutorMessage::Hello(hello)) = &outputs[0] else { panic!() };
    assert_eq!(hello.attempts, [element(1, 1), element(1, 2), element(1, 3)]);
}
