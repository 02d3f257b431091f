//! An operator declares an executor lost.

use super::*;

fn declare(bench: &mut Bench, name: &str) -> Vec<Output> {
    let executor = name.parse().expect("a name");
    bench.request(Request::DeclareLost { executor, reason: "it burnt".into() })
}

#[test]
fn its_attempts_are_lost_and_run_elsewhere_at_once() {
    let mut bench = Bench::new();
    bench.connect(1, 2, vec![]);
    let (first, second) = (bench.submit(spec()), bench.submit(spec()));
    bench.connect(2, 2, vec![]);
    let outputs = declare(&mut bench, "van1-00000001");
    assert_eq!(bench.kinds()[5..], ["lost", "lost", "deployed", "deployed"]);
    let declared = outputs.iter().find_map(|output| match output {
        Output::Reply { reply: Reply::DeclaredLost { executor, attempts }, .. } => {
            Some((executor.to_string(), attempts.len()))
        }
        _ => None,
    });
    assert_eq!(declared, Some(("van1-00000001".to_owned(), 2)));
    let closed = |output: &Output| matches!(output, Output::Close { session } if session.0 == 1);
    assert!(outputs.iter().any(closed), "it is connected, so its session ends: {outputs:?}");
    let moved: Vec<_> = starts(&outputs).into_iter().map(|order| order.job).collect();
    assert_eq!(moved, [first, second]);
    let lost = bench.durable.iter().find_map(|sealed| match &sealed.fact.body {
        Body::Lost(ending) => Some(ending.clone()),
        _ => None,
    });
    let lost = lost.expect("two are");
    assert!(lost.reason == "it burnt" && lost.unproven.is_some(), "{lost:?}");
    assert_eq!(outputs.len(), 5, "{outputs:?}");
}

#[test]
fn one_that_comes_back_is_told_to_stop_what_counts_no_more() {
    let mut bench = Bench::new();
    bench.connect(1, 1, vec![]);
    let job = bench.submit(spec());
    let gone = start_of_last(&mut bench).attempt;
    declare(&mut bench, "van1-00000001");
    assert_eq!(bench.state(job), JobState::Waiting);
    let outputs = bench.connect(3, 1, vec![]);
    assert_eq!(starts(&outputs).len(), 1, "another takes the job");
    let mut again = hello(1, 1, vec![gone.clone()]);
    again.attempts = vec![gone.clone()];
    let outputs =
        bench.input(Input::SessionOpened { session: SessionId(9), hello: again, local: true });
    let stopped = outputs.iter().any(|output| {
        matches!(output, Output::Send { message: BrokerMessage::Stop { attempt, .. }, .. }
            if *attempt == gone)
    });
    assert!(stopped && starts(&outputs).is_empty(), "{outputs:?}");
}

#[test]
fn one_that_is_unknown_is_refused_and_nothing_changes() {
    let mut bench = Bench::new();
    bench.connect(1, 1, vec![]);
    let said = refusal(&declare(&mut bench, "van9-00000001"));
    assert!(matches!(said, Refusal::NoExecutor(_)) && !said.is_retryable());
    assert_eq!((said.code(), bench.kinds()), ("no-executor", vec!["joined"]));
    assert!(matches!(&declare(&mut bench, "van1-00000001")[..], [
        Output::Close { .. },
        Output::Reply { reply: Reply::DeclaredLost { attempts, .. }, .. }
    ] if attempts.is_empty()));
    let said = refusal(&declare(&mut bench, "van1-00000001"));
    assert!(matches!(said, Refusal::NoExecutor(_)), "it is known no more");
}
