//! Arrays: facts about many elements, and each element's own fate.

use super::*;
use crate::proto::message::StartOrder;
use crate::proto::ranges::Ranges;
use crate::proto::view::JobView;

/// How long short attempts take.
const SHORT_US: u64 = 1_000;

fn array(elements: &str) -> JobSpec {
    JobSpec { array: Some(elements.parse().expect("ranges")), ..spec() }
}

fn attempts(orders: &[StartOrder]) -> Vec<StartOrder> {
    orders.iter().cloned().flat_map(StartOrder::each).collect()
}

/// What an executor says of an attempt that ended.
fn result(start: &StartOrder, exit: i32) -> ExecutorMessage {
    let time = "2026-01-02T03:04:05.000Z".to_owned();
    let result = JobResult {
        exit: Some(exit),
        started_at: time.clone(),
        ended_at: time,
        ..JobResult::default()
    };
    ExecutorMessage::Result(Box::new(ResultMessage {
        attempt: start.attempt.clone(),
        job: start.job,
        generation: start.generation,
        result,
        clock: start.clock.clone(),
        took_us: Some(SHORT_US),
        carried: vec![],
    }))
}

/// Hands over messages that come in together.
fn say(bench: &mut Bench, session: u64, messages: Vec<ExecutorMessage>) -> Vec<Output> {
    for message in messages {
        let session = SessionId(session);
        bench.broker.handle_input(bench.now, Input::Message { session, message });
    }
    bench.drain()
}

fn report(bench: &mut Bench, session: u64, starts: &[StartOrder], exit: i32) -> Vec<Output> {
    let results = starts.iter().map(|start| result(start, exit)).collect();
    say(bench, session, results)
}

fn submit(bench: &mut Bench, spec: JobSpec) -> (JobId, Vec<Output>) {
    let submission = Submission { index: 0, id: None, spec: Arc::new(spec) };
    let outputs = bench.request(Request::Submit { submissions: vec![submission], watch: true });
    (outputs.iter().find_map(submitted).expect("it is taken"), outputs)
}

/// Has an executor end a job in no time, so that it is believed to be quick.
fn make_quick(bench: &mut Bench, session: u64) {
    let (_, outputs) = submit(bench, spec());
    let start = starts(&outputs);
    report(bench, session, &start, 0);
}

fn element(job: JobId, element: u64) -> JobRef {
    JobRef(TaskId::new(job, Some(element)).to_string())
}

fn view(bench: &mut Bench, job: &JobRef) -> JobView {
    match &bench.request(Request::Show { job: job.clone() })[..] {
        [Output::Reply { reply: Reply::Job(view), .. }] => (**view).clone(),
        other => panic!("{other:?}"),
    }
}

fn states(bench: &mut Bench, job: JobId) -> String {
    let elements = view(bench, &JobRef(job.to_string())).elements;
    let shown = elements.iter().map(|(state, elements)| format!("{} {elements}", state.word()));
    shown.collect::<Vec<_>>().join("; ")
}

fn covered(order: &StartOrder) -> String {
    order.elements.as_ref().map_or(String::new(), Ranges::to_string)
}

/// Kind, generation and elements of each fact from one on.
fn facts(bench: &Bench, from: usize) -> Vec<String> {
    let told = |sealed: &SealedFact| {
        let fact = &sealed.fact;
        let elements = fact.elements.as_ref().map_or("all".to_owned(), Ranges::to_string);
        format!("{} {} {elements}", fact.body.kind(), fact.generation)
    };
    bench.durable[from..].iter().map(told).collect()
}

fn told(outputs: &[Output]) -> Vec<u64> {
    ends(outputs).iter().map(|ended| ended.element.expect("an element")).collect()
}

fn acknowledged(outputs: &[Output]) -> Vec<String> {
    let each = |output: &Output| match output {
        Output::Send { message: BrokerMessage::Acknowledged { attempt, elements, .. }, .. } => {
            Some(format!("{attempt} {}", elements.clone().unwrap_or_default()))
        }
        _ => None,
    };
    outputs.iter().filter_map(each).collect()
}

fn close(bench: &mut Bench, session: u64) -> Vec<Output> {
    let session = SessionId(session);
    bench.input(Input::SessionClosed { session, process_gone: true, tree_gone: true })
}

#[test]
fn one_fact_deploys_many_and_what_comes_in_together_is_told_by_one() {
    let mut bench = Bench::new();
    bench.connect(1, 8, vec![]);
    let (job, outputs) = submit(&mut bench, array("1-9,20"));
    let orders = starts(&outputs);
    assert_eq!(orders.iter().map(covered).collect::<Vec<_>>(), ["1-8"]);
    assert_eq!(facts(&bench, 1), ["submitted 1 all", "deployed 1 1-8"]);
    let running = attempts(&orders);
    let (lease, at) = (orders[0].attempt.to_string(), bench.durable.len());

    let outputs = report(&mut bench, 1, &running[..4], 0);
    assert_eq!(facts(&bench, at)[..2], ["reported 1 1-4", "accepted 1 1-4"]);
    assert_eq!(acknowledged(&outputs), [format!("{lease} 1-4")]);
    assert_eq!(told(&outputs), [1, 2, 3, 4]);
    let Body::Reported(body) = &bench.durable[at].fact.body else { panic!() };
    assert_eq!((body.runs.len(), body.attempt.to_string()), (4, lease.clone()));
    assert_eq!(starts(&outputs).iter().map(covered).collect::<Vec<_>>(), ["9,20"]);

    // Of one lease, but not the same content: a fact for each.
    let at = bench.durable.len();
    let differing = vec![result(&running[4], 0), result(&running[5], 3), result(&running[6], 0)];
    let outputs = say(&mut bench, 1, differing);
    let mut written = facts(&bench, at);
    written.sort();
    assert_eq!(written, ["accepted 1 5,7", "accepted 1 6", "reported 1 5,7", "reported 1 6"]);
    assert_eq!(acknowledged(&outputs), [format!("{lease} 5-7")]);
    let states_now = "running 8-9,20; succeeded 1-5,7; failed 6";
    assert_eq!(states(&mut bench, job), states_now);
}

#[test]
fn the_same_result_again_is_acknowledged_and_writes_nothing() {
    let mut bench = Bench::new();
    bench.connect(1, 4, vec![]);
    let (_, outputs) = submit(&mut bench, array("1-4"));
    let running = attempts(&starts(&outputs));
    report(&mut bench, 1, &running, 0);
    let written = bench.durable.len();
    for _ in 0..100 {
        let outputs = report(&mut bench, 1, &running, 0);
        assert_eq!((outputs.len(), acknowledged(&outputs).len()), (1, 1), "{outputs:?}");
    }
    assert_eq!(bench.durable.len(), written);
}

#[test]
fn the_element_that_failed_is_tried_again_and_no_other() {
    let mut bench = Bench::new();
    bench.connect(1, 4, vec![]);
    let (job, outputs) = submit(&mut bench, JobSpec { retries: 1, ..array("1-4") });
    let running = attempts(&starts(&outputs));
    let well = [running[0].clone(), running[1].clone(), running[3].clone()];
    report(&mut bench, 1, &well, 0);
    let outputs = report(&mut bench, 1, &running[2..3], 7);
    assert!(ends(&outputs).is_empty() && starts(&outputs).is_empty(), "{outputs:?}");
    assert_eq!(states(&mut bench, job), "waiting 3; succeeded 1-2,4");
    let orders = starts(&bench.pass(limits::RETRY_BACKOFF_FIRST));
    assert_eq!((orders.len(), covered(&orders[0]), orders[0].fence), (1, "3".to_owned(), 2));
    let ended = ends(&report(&mut bench, 1, &attempts(&orders), 8));
    assert_eq!((ended[0].element, ended[0].state), (Some(3), JobState::Failed));
    assert_eq!(bench.state(job), JobState::Failed);
    assert_eq!(view(&mut bench, &element(job, 3)).attempts.len(), 2);
    assert_eq!(view(&mut bench, &element(job, 4)).attempts.len(), 1);
}

#[test]
fn a_lost_executors_elements_go_elsewhere_one_by_one_and_wait_behind_nobody() {
    let mut bench = Bench::new();
    bench.connect(2, 2, vec![]);
    make_quick(&mut bench, 2);
    let (_, outputs) = submit(&mut bench, spec());
    let busy = starts(&outputs).remove(0);
    bench.connect(1, 4, vec![]);
    let (job, outputs) = submit(&mut bench, array("1-4"));
    let orders = starts(&outputs);
    assert_eq!(orders.iter().map(covered).collect::<Vec<_>>(), ["1-4"]);
    let ends_well = attempts(&orders).remove(0);
    report(&mut bench, 1, &[ends_well], 0);

    let at = bench.durable.len();
    let moved = starts(&close(&mut bench, 1));
    assert_eq!(moved.iter().map(covered).collect::<Vec<_>>(), ["2"], "one slot is free");
    assert_eq!(facts(&bench, at), ["lost 1 2-4", "deployed 1 2"]);
    // The executor is quick, so more would be given ahead; these are not, and nothing is in
    // front of them.
    let (_, outputs) = submit(&mut bench, spec());
    assert!(starts(&outputs).is_empty(), "{outputs:?}");
    let next = starts(&report(&mut bench, 2, &attempts(&moved), 0));
    assert_eq!(next.iter().map(covered).collect::<Vec<_>>(), ["3"]);
    let last = starts(&report(&mut bench, 2, &[busy], 0));
    assert_eq!(covered(&last[0]), "4");
    assert_eq!(last.len(), 2, "now others may wait behind: {last:?}");
    report(&mut bench, 2, &attempts(&[next[0].clone(), last[0].clone()]), 0);
    assert_eq!(bench.state(job), JobState::Succeeded);
    assert_eq!(view(&mut bench, &element(job, 1)).attempts.len(), 1);
    assert_eq!(view(&mut bench, &element(job, 4)).attempts.len(), 2);
}

#[test]
fn an_element_that_takes_down_executors_is_parked_alone() {
    let mut bench = Bench::new();
    let (job, _) = submit(&mut bench, JobSpec { max_lost: 2, ..array("1-3") });
    for number in 1..=2 {
        let outputs = bench.connect(number, 1, vec![]);
        // The first is always the same one: it goes before those that lost none.
        assert_eq!(covered(&starts(&outputs)[0]), "1");
        close(&mut bench, number);
        bench.pass(limits::RETRY_BACKOFF_FIRST);
    }
    assert_eq!(states(&mut bench, job), "waiting 2-3; parked 1");
    let outputs = bench.request(Request::Why { job: element(job, 1) });
    let [Output::Reply { reply: Reply::Why(why), .. }] = &outputs[..] else { panic!() };
    assert!(why.reasons[0].contains("it took down 2 executors"), "{:?}", why.reasons);
    bench.request(Request::Rerun { job: element(job, 1), reason: "again".into() });
    assert_eq!(states(&mut bench, job), "waiting 1-3");
}

#[test]
fn what_does_not_begin_at_a_slow_executor_goes_to_one_that_is_free() {
    let mut bench = Bench::new();
    bench.connect(1, 2, vec![]);
    make_quick(&mut bench, 1);
    let (job, outputs) = submit(&mut bench, array("1-50"));
    let orders = starts(&outputs);
    assert_eq!(orders.iter().map(covered).collect::<Vec<_>>(), ["1-50"], "it is quick");
    bench.connect(2, 2, vec![]);
    let recalled = |outputs: &[Output]| {
        let recall = |output: &Output| match output {
            Output::Send { session, message: BrokerMessage::Recall } => Some(session.0),
            _ => None,
        };
        outputs.iter().filter_map(recall).collect::<Vec<_>>()
    };
    let outputs = bench.pass(limits::RECALL_AFTER / 2);
    assert!(recalled(&outputs).is_empty(), "{outputs:?}");
    let outputs = bench.pass(limits::RECALL_AFTER / 2);
    assert_eq!((outputs.len(), recalled(&outputs)), (1, vec![1]), "{outputs:?}");

    let at = bench.durable.len();
    let unbegun = attempts(&orders).into_iter().skip(2);
    let unbegun = unbegun.map(|start| ExecutorMessage::Stopped {
        attempt: start.attempt,
        unbegun: true,
        reason: None,
    });
    let outputs = say(&mut bench, 1, unbegun.collect());
    assert_eq!(facts(&bench, at), ["revoked 1 3-50", "deployed 1 3-4"]);
    let moved: Vec<_> = outputs
        .iter()
        .filter_map(|output| match output {
            Output::Send { session, message: BrokerMessage::Start(order) } => {
                Some((session.0, covered(order), order.fence))
            }
            _ => None,
        })
        .collect();
    assert_eq!(moved, [(2, "3-4".to_owned(), 2)], "the slow one has no slot to give");
    // It counts neither as tried nor as lost, and nothing waits for it.
    let outputs = bench.request(Request::Why { job: element(job, 5) });
    let [Output::Reply { reply: Reply::Why(why), .. }] = &outputs[..] else { panic!() };
    let said = why.reasons.join("; ");
    assert!(!["tried again", "failed", "lost"].iter().any(|word| said.contains(word)), "{said}");
    let shown = view(&mut bench, &element(job, 5));
    assert_eq!(shown.attempts[0].reason.as_deref(), Some("it had not begun"));
}

#[test]
fn one_element_is_cancelled_and_begun_again() {
    let mut bench = Bench::new();
    bench.connect(1, 2, vec![]);
    let (job, outputs) = submit(&mut bench, array("1-4"));
    let running = attempts(&starts(&outputs));
    let at = bench.durable.len();
    let reason = "not needed".to_owned();
    for (number, is_stopped) in [(4, false), (1, true)] {
        let job = element(job, number);
        let outputs = bench.request(Request::Cancel { job, reason: reason.clone() });
        let stopped = outputs.iter().any(|output| {
            matches!(output, Output::Send { message: BrokerMessage::Stop { attempt, .. }, .. }
                if *attempt == running[0].attempt)
        });
        assert_eq!((told(&outputs), stopped), (vec![number], is_stopped), "{outputs:?}");
    }
    assert_eq!(facts(&bench, at), ["cancelled 1 4", "cancelled 1 1"]);
    assert_eq!(states(&mut bench, job), "waiting 3; running 2; cancelled 1,4");
    let again = |bench: &mut Bench, number: u64| {
        bench.request(Request::Rerun { job: element(job, number), reason: String::new() })
    };
    assert!(matches!(refusal(&again(&mut bench, 3)), Refusal::NotEnded { .. }));
    assert!(matches!(refusal(&again(&mut bench, 9)), Refusal::NotFound(_)));
    again(&mut bench, 4);
    assert_eq!(facts(&bench, at + 2), ["rerun 2 4"]);
    // Elements of different generations are never in one fact.
    let freed = say(
        &mut bench,
        1,
        vec![
            ExecutorMessage::Stopped {
                attempt: running[0].attempt.clone(),
                unbegun: false,
                reason: None,
            },
            result(&running[1], 0),
        ],
    );
    let orders = starts(&freed);
    let each: Vec<_> = orders.iter().map(|order| (order.generation, covered(order))).collect();
    assert_eq!(each, [(1, "3".to_owned()), (2, "4".to_owned())]);
    report(&mut bench, 1, &attempts(&orders), 0);
    assert_eq!(states(&mut bench, job), "succeeded 2-4; cancelled 1");
}

#[test]
fn a_watcher_is_told_no_more_than_it_takes() {
    let mut bench = Bench::new();
    let config = BrokerConfig { elements_told_max: 3, ..BrokerConfig::default() };
    bench.broker = Broker::new(config, Rng::from_seed(1));
    let log = "north-00000001".parse().expect("a name");
    bench.broker.open(bench.now, Opening::Fresh { log, continues: None });
    bench.drain();
    bench.connect(1, 12, vec![]);
    let (job, outputs) = submit(&mut bench, array("1-12"));
    let running = attempts(&starts(&outputs));
    assert_eq!(told(&report(&mut bench, 1, &running, 0)), [1, 2, 3]);
    assert!(bench.pass(Duration::from_secs(1)).is_empty());
    let take = |bench: &mut Bench, count| told(&bench.request(Request::Taken { count }));
    assert_eq!(take(&mut bench, 1), [4]);
    assert_eq!(take(&mut bench, 100), [5, 6, 7], "no more than at once");
    // Another one has a credit of its own, and begins with the first.
    let (request, body) =
        (RequestId(2), Request::Watch { job: JobRef(job.to_string()), attempts: false });
    let outputs = bench.input(Input::Request { request, body });
    assert!(matches!(
        outputs[0],
        Output::Reply { request: RequestId(2), reply: Reply::Watched { elements: 12 } }
    ));
    assert_eq!(told(&outputs), [1, 2, 3]);
    bench.input(Input::RequestClosed { request });
    let body = Request::Taken { count: 3 };
    assert!(bench.input(Input::Request { request, body }).is_empty());
    assert_eq!(take(&mut bench, 3), [8, 9, 10]);
    assert_eq!(take(&mut bench, 3), [11, 12]);
    assert!(take(&mut bench, 3).is_empty(), "each is told once");
}

#[test]
fn a_broker_that_starts_again_goes_on_in_the_midst_of_an_array() {
    let mut first = Bench::new();
    first.connect(1, 3, vec![]);
    let (job, outputs) = submit(&mut first, JobSpec { retries: 1, ..array("1-9") });
    let running = attempts(&starts(&outputs));
    report(&mut first, 1, &running[..1], 0);
    let outputs = report(&mut first, 1, &running[1..2], 1);
    assert!(ends(&outputs).is_empty());
    first.request(Request::Cancel { job: element(job, 9), reason: "not needed".into() });
    let states_before = states(&mut first, job);
    let mut held = last_deployed(&first);
    held.remove(9);

    let mut second = Bench::over(first.durable.clone());
    let log = "north-00000001".parse().expect("a name");
    second.broker.open(second.now, Opening::Continue(log));
    assert!(second.drain().is_empty());
    assert_eq!(states(&mut second, job), states_before);
    for number in 1..=9 {
        let (before, after) = (element(job, number), element(job, number));
        let (before, mut after) = (view(&mut first, &before), view(&mut second, &after));
        after.observed.clone_from(&before.observed);
        assert_eq!(after, before);
    }
    // The executor held element 3 and had never heard of the others: they are ordered again.
    let announced = vec![running[2].attempt.clone()];
    let outputs = second.connect(1, 3, announced);
    let mut again: Vec<_> = starts(&outputs).iter().map(covered).collect();
    again.sort();
    assert_eq!(again, held.iter().map(|e| e.to_string()).collect::<Vec<_>>());
    let mut left = attempts(&starts(&outputs));
    left.push(running[2].clone());
    while !left.is_empty() {
        let outputs = report(&mut second, 1, &left, 0);
        left = attempts(&starts(&outputs));
        if left.is_empty() {
            left = attempts(&starts(&second.pass(limits::RETRY_BACKOFF_MAX)));
        }
    }
    assert_eq!(states(&mut second, job), "succeeded 1-8; cancelled 9");
    let accepts: u64 = second
        .durable
        .iter()
        .filter(|sealed| matches!(sealed.fact.body, Body::Accepted(_)))
        .map(|sealed| sealed.fact.elements.as_ref().map_or(0, Ranges::len))
        .sum();
    assert_eq!(accepts, 8, "each element's result is accepted once");
}

/// The elements that were deployed after the first lease.
fn last_deployed(bench: &Bench) -> Ranges {
    let mut leases = bench.durable.iter().filter(|s| matches!(s.fact.body, Body::Deployed(_)));
    leases.next();
    let mut later = Ranges::default();
    leases.filter_map(|s| s.fact.elements.as_ref()).for_each(|elements| later.extend(elements));
    later
}

#[test]
fn an_array_is_skipped_in_the_generation_of_each_element() {
    let mut bench = Bench::new();
    bench.connect(1, 1, vec![]);
    let (other, outputs) = submit(&mut bench, spec());
    let other_start = starts(&outputs).remove(0);
    let (job, _) = submit(&mut bench, JobSpec { after: vec![other], ..array("1-4") });
    bench.request(Request::Cancel { job: element(job, 2), reason: String::new() });
    bench.request(Request::Rerun { job: element(job, 2), reason: String::new() });
    bench.request(Request::Cancel { job: element(job, 3), reason: String::new() });
    assert_eq!(states(&mut bench, job), "waiting 1-2,4; cancelled 3");
    let at = bench.durable.len();
    let outputs = bench.finish(1, &other_start, 1);
    let mut skipped = facts(&bench, at + 2);
    skipped.sort();
    assert_eq!(skipped, ["skipped 1 1,4", "skipped 2 2"]);
    assert_eq!(states(&mut bench, job), "cancelled 3; skipped 1-2,4");
    // Element 2 was told when it was cancelled, and is told once.
    let skipped = ends(&outputs).into_iter().filter(|ended| ended.job == job);
    let told: Vec<_> = skipped.map(|ended| (ended.element, ended.reason)).collect();
    let reason = Some(format!("job {other} ended as failed"));
    assert_eq!(told, [(Some(1), reason.clone()), (Some(4), reason.clone())]);
    let second = view(&mut bench, &element(job, 2)).ended.expect("it ended");
    assert_eq!((second.generation, second.reason), (2, reason));
    assert!(starts(&bench.pass(limits::RETRY_BACKOFF_MAX)).is_empty());
}
