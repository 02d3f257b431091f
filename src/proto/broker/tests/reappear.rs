//! Attempts and results that come back after they were given up.

use super::*;
use crate::proto::fact::Fact;
use crate::proto::message::StartOrder;

/// An executor connects and announces attempts of known jobs.
pub(super) fn return_of(
    bench: &mut Bench,
    number: u64,
    session: u64,
    held: &[&StartOrder],
) -> Vec<Output> {
    let mut hello = hello(number, 1, held.iter().map(|order| order.attempt.clone()).collect());
    hello.jobs = held.iter().map(|order| order.job).collect();
    let session = SessionId(session);
    bench.input(Input::SessionOpened { session, hello, local: true })
}

pub(super) fn beat(bench: &mut Bench, session: u64) -> Vec<Output> {
    let load = hello(1, 1, vec![]).load;
    let message = ExecutorMessage::Heartbeat { load, draining: false, number: 1 };
    bench.input(Input::Message { session: SessionId(session), message })
}

/// Lets time go by in which these sessions are heard of.
pub(super) fn pass_with(bench: &mut Bench, span: Duration, alive: &[u64]) -> Vec<Output> {
    let mut outputs = vec![];
    let step = Duration::from_millis(500);
    let mut left = span;
    while !left.is_zero() {
        outputs.extend(bench.pass(step.min(left)));
        left = left.saturating_sub(step);
        alive.iter().for_each(|session| outputs.extend(beat(bench, *session)));
    }
    outputs
}

pub(super) fn stops(outputs: &[Output]) -> Vec<AttemptId> {
    let stop = |output: &Output| match output {
        Output::Send { message: BrokerMessage::Stop { attempt, .. }, .. } => Some(attempt.clone()),
        _ => None,
    };
    outputs.iter().filter_map(stop).collect()
}

fn result_of(order: &StartOrder, exit: i32, carried: bool) -> ExecutorMessage {
    ExecutorMessage::Result(Box::new(ResultMessage {
        attempt: order.attempt.clone(),
        job: order.job,
        generation: order.generation,
        result: JobResult { exit: Some(exit), ..JobResult::default() },
        clock: order.clock.clone(),
        took_us: None,
        carried: if carried { order.carried.clone() } else { vec![] },
    }))
}

#[test]
fn a_lost_attempt_that_is_there_again_is_kept_where_nothing_replaced_it() {
    let mut bench = Bench::new();
    bench.connect(1, 1, vec![]);
    let job = bench.submit(JobSpec { max_lost: 1, ..spec() });
    let order = start_of_last(&mut bench);
    bench.pass(limits::LOST_AFTER);
    // It would be parked at the next loss; the one that came back is none.
    assert_eq!(bench.state(job), JobState::Parked);
    let outputs = return_of(&mut bench, 1, 2, &[&order]);
    assert_eq!(stops(&outputs), std::slice::from_ref(&order.attempt), "what is parked is held");

    let job = bench.submit(spec());
    beat(&mut bench, 2);
    let stopped = ExecutorMessage::Stopped { attempt: order.attempt, unbegun: false, reason: None };
    bench.input(Input::Message { session: SessionId(2), message: stopped });
    let order = start_of_last(&mut bench);
    assert_eq!(order.job, job);
    bench.pass(limits::LOST_AFTER);
    assert_eq!(bench.state(job), JobState::Waiting);
    let outputs = return_of(&mut bench, 1, 3, &[&order]);
    assert_eq!((stops(&outputs).len(), starts(&outputs).len()), (0, 0));
    assert_eq!(bench.kinds().last(), Some(&"regained"));
    assert_eq!(bench.state(job), JobState::Running);
    bench.finish(3, &order, 0);
    assert_eq!(bench.state(job), JobState::Succeeded);
}

#[test]
fn a_ghost_is_stopped_only_after_the_attempt_that_replaced_it_was_heard_of() {
    let mut bench = Bench::new();
    bench.connect(1, 1, vec![]);
    let job = bench.submit(spec());
    let first = start_of_last(&mut bench);
    bench.connect(2, 1, vec![]);
    pass_with(&mut bench, limits::LOST_AFTER, &[2]);
    let second = start_of_last(&mut bench);
    assert_ne!(first.attempt, second.attempt);
    let outputs = return_of(&mut bench, 1, 3, &[&first]);
    assert!(stops(&outputs).is_empty(), "it may be the only one that lives");
    bench.now.mono = bench.now.mono.after(Duration::from_millis(1));
    assert_eq!(stops(&beat(&mut bench, 2)), std::slice::from_ref(&first.attempt));
    bench.finish(2, &second, 0);
    assert_eq!(bench.state(job), JobState::Succeeded);
}

#[test]
fn a_ghost_goes_on_where_the_attempt_that_replaced_it_is_lost_too() {
    let mut bench = Bench::new();
    bench.connect(1, 1, vec![]);
    let job = bench.submit(spec());
    let first = start_of_last(&mut bench);
    bench.connect(2, 1, vec![]);
    pass_with(&mut bench, limits::LOST_AFTER, &[2]);
    return_of(&mut bench, 1, 3, &[&first]);
    let session = SessionId(2);
    let outputs =
        bench.input(Input::SessionClosed { session, process_gone: true, tree_gone: true });
    assert!(starts(&outputs).is_empty() && stops(&outputs).is_empty());
    assert_eq!(bench.kinds().last(), Some(&"regained"));
    bench.finish(3, &first, 0);
    assert_eq!(bench.state(job), JobState::Succeeded);
}

#[test]
fn a_result_between_redeployment_and_the_second_end_counts_and_a_later_one_is_late() {
    let mut bench = Bench::new();
    bench.connect(1, 1, vec![]);
    let job = bench.submit(spec());
    let first = start_of_last(&mut bench);
    bench.connect(2, 1, vec![]);
    pass_with(&mut bench, limits::LOST_AFTER, &[2]);
    let second = start_of_last(&mut bench);
    return_of(&mut bench, 1, 3, &[&first]);
    let message = result_of(&first, 0, false);
    let outputs = bench.input(Input::Message { session: SessionId(3), message: message.clone() });
    assert_eq!(bench.state(job), JobState::Succeeded);
    assert_eq!(stops(&outputs), std::slice::from_ref(&second.attempt), "the other is revoked");
    bench.finish(2, &second, 0);
    let outputs = bench.request(Request::Show { job: JobRef(job.to_string()) });
    let [Output::Reply { reply: Reply::Job(view), .. }] = &outputs[..] else { panic!() };
    let rules: Vec<_> = view.results.iter().map(|one| one.judgement.rule).collect();
    assert_eq!(rules, ["first-accepted", "decided-knowing-the-attempt"]);
    assert!(view.results.iter().all(|one| !one.clock.is_empty()));
    // The same result a thousand times changes nothing and writes nothing.
    let written = bench.durable.len();
    for _ in 0..1_000 {
        bench.input(Input::Message { session: SessionId(3), message: message.clone() });
    }
    assert_eq!(bench.durable.len(), written);
}

#[test]
fn a_courier_brings_a_result_with_the_facts_of_its_job() {
    let mut bench = Bench::new();
    bench.connect(1, 1, vec![]);
    let id = bench.submit(spec());
    let deployed = bench.durable.last().map(|sealed| Arc::clone(&sealed.fact));
    let deployed = deployed.expect("it was deployed");
    let carried = bench.broker.job_facts(id).expect("it is known");
    let carried = carried.explanation(&AttemptId::from(deployed.dot.clone()));
    assert_eq!(carried.len(), 2, "submitted and deployed");
    let order = StartOrder { carried, ..start_of_last(&mut bench) };

    let mut other = Bench::over(vec![]);
    let log = "south-00000001".parse().expect("a name");
    other.broker.open(other.now, Opening::Fresh { log, continues: None });
    other.drain();
    let outputs = return_of(&mut other, 1, 1, &[&order]);
    assert!(stops(&outputs).is_empty(), "what belongs to another broker is left alone");
    let message = result_of(&order, 0, true);
    other.input(Input::Message { session: SessionId(1), message });
    assert_eq!(other.state(id), JobState::Succeeded);
    assert_eq!(other.kinds(), ["joined", "reported", "accepted"]);
    let outputs = other.request(Request::Show { job: JobRef(id.to_string()) });
    let [Output::Reply { reply: Reply::Job(view), .. }] = &outputs[..] else { panic!() };
    assert_eq!(view.spec.command_line(), "true");
    assert_eq!(view.owner.as_str(), "north-00000001");
    assert!(!view.ended.as_ref().expect("it ended").is_final, "its own broker may know better");
    // A broker that reads these facts anew says the same.
    let again = Bench::over(other.durable.clone());
    assert_eq!(again.broker.job_facts(id), other.broker.job_facts(id));
    // What is reported carries the lines as they were written.
    let reported = other.durable.iter().find_map(|sealed| match &sealed.fact.body {
        Body::Reported(body) => Some(body.carried.clone()),
        _ => None,
    });
    let facts = reported.expect("it was reported");
    let facts: Vec<Fact> = facts.iter().map(|line| Fact::parse(line).expect("a fact")).collect();
    assert!(facts.contains(&deployed));
}

#[test]
fn facts_that_are_none_or_of_another_job_are_not_carried_on() {
    let mut bench = Bench::new();
    bench.connect(1, 1, vec![]);
    let order = {
        bench.submit(spec());
        start_of_last(&mut bench)
    };
    let mut other = Bench::over(vec![]);
    let log = "south-00000001".parse().expect("a name");
    other.broker.open(other.now, Opening::Fresh { log, continues: None });
    other.drain();
    other.connect(1, 1, vec![]);
    let forged = r#"{"v":1,"dot":["south-00000001",9],"clock":{"south-00000001":9}}"#;
    let carried = vec!["{".into(), forged.into()];
    let ExecutorMessage::Result(mut said) = result_of(&order, 0, false) else { panic!() };
    said.carried = carried;
    let message = ExecutorMessage::Result(said);
    other.input(Input::Message { session: SessionId(1), message });
    assert_eq!(other.kinds(), ["joined", "reported"], "it waits until its job is known");
}

#[test]
fn a_result_is_kept_by_its_executor_until_another_broker_has_it() {
    let mut bench = Bench::over(vec![]);
    let config = BrokerConfig { has_others: true, ..BrokerConfig::default() };
    bench.broker = Broker::new(config, Rng::from_seed(1));
    let log: LogId = "north-00000001".parse().expect("a name");
    bench.broker.open(bench.now, Opening::Fresh { log: log.clone(), continues: None });
    bench.drain();
    bench.connect(1, 1, vec![]);
    bench.submit(spec());
    let order = start_of_last(&mut bench);
    let kept = |outputs: &[Output]| {
        outputs.iter().find_map(|output| match output {
            Output::Send { message: BrokerMessage::Acknowledged { keep, .. }, .. } => Some(*keep),
            _ => None,
        })
    };
    assert_eq!(kept(&bench.finish(1, &order, 0)), Some(true));
    let vector = |seq| BTreeMap::from([(log.clone(), seq)]);
    let released = |outputs: &[Output]| {
        let is = |output: &&Output| {
            matches!(output, Output::Send { message: BrokerMessage::Released { .. }, .. })
        };
        outputs.iter().filter(is).count()
    };
    let outputs = bench.input(Input::HeldElsewhere { by: None, vector: vector(3) });
    assert_eq!(released(&outputs), 0, "the report is the fourth fact");
    let outputs = bench.input(Input::HeldElsewhere { by: None, vector: vector(4) });
    assert_eq!(released(&outputs), 1);
    assert_eq!(kept(&bench.finish(1, &order, 0)), Some(false));
}

/// A broker that never heard of anything, under another name.
fn stranger() -> Bench {
    let mut other = Bench::over(vec![]);
    let log = "south-00000001".parse().expect("a name");
    other.broker.open(other.now, Opening::Fresh { log, continues: None });
    other.drain();
    other
}

/// A job at a broker, its order with the facts that explain it.
fn explained(spec: JobSpec) -> StartOrder {
    let mut bench = Bench::new();
    bench.connect(1, 1, vec![]);
    let id = bench.submit(spec);
    let order = start_of_last(&mut bench);
    let carried = bench.broker.job_facts(id).expect("it is known").explanation(&order.attempt);
    StartOrder { carried, ..order }
}

#[test]
fn a_carried_submission_takes_no_job_away_from_a_broker_that_took_it_itself() {
    let key = Some("k".to_owned());
    let order = explained(JobSpec { key: key.clone(), ..spec() });
    let mut other = stranger();
    // Its name comes first, so that the other's submission is the greater.
    let mut bench = Bench::over(vec![]);
    let log = "aaa-00000001".parse().expect("a name");
    bench.broker.open(bench.now, Opening::Fresh { log, continues: None });
    bench.drain();
    for broker in [&mut other, &mut bench] {
        let job = broker.submit(JobSpec { key: key.clone(), ..spec() });
        assert_eq!(job, order.job, "one job wherever it is submitted");
        broker.connect(1, 1, vec![]);
        let own = start_of_last(broker);
        let message = result_of(&order, 3, true);
        broker.input(Input::Message { session: SessionId(1), message });
        assert_eq!(broker.state(job), JobState::Running);
        broker.finish(1, &own, 3);
        assert_eq!(broker.state(job), JobState::Failed, "it decides itself");
    }
}

#[test]
fn a_result_of_an_element_makes_no_array_of_a_job() {
    let mut bench = Bench::new();
    bench.connect(1, 1, vec![]);
    let job = bench.submit(spec());
    let order = start_of_last(&mut bench);
    let element = AttemptId::new(order.attempt.dot.clone(), Some(3));
    let foreign = AttemptId::new("zz-00000001.5".parse::<AttemptId>().expect("one").dot, Some(3));
    for attempt in [element, foreign] {
        let message = result_of(&StartOrder { attempt, ..order.clone() }, 0, true);
        bench.input(Input::Message { session: SessionId(1), message });
        assert_eq!(bench.state(job), JobState::Running);
    }
    bench.finish(1, &order, 0);
    assert_eq!(bench.state(job), JobState::Succeeded);
}

#[test]
fn carried_numbers_near_the_end_of_all_counters_count_for_nothing() {
    let order = explained(spec());
    for (from, to) in [
        (r#""fence":1"#, r#""fence":9007199254740991"#),
        (r#""gen":1"#, r#""gen":4294967295"#),
        ("van1-00000001", "van9-00000001"),
    ] {
        let mut other = stranger();
        other.connect(1, 1, vec![]);
        let carried = order.carried.iter().map(|line| line.replace(from, to).into()).collect();
        let message = result_of(&StartOrder { carried, ..order.clone() }, 0, true);
        other.input(Input::Message { session: SessionId(1), message });
        assert_eq!(other.kinds(), ["joined", "reported"], "{from}: nothing is accepted");
        assert!(Bench::over(other.durable.clone()).broker.log().is_none(), "it reads back");
    }
}
