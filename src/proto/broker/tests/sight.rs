//! Silence, the broker's own pauses and doubts, and executors that fail everything.

use super::reappear::{beat, pass_with};
use super::*;

fn join(bench: &mut Bench, number: u64, local: bool) {
    let (session, hello) = (SessionId(number), hello(number, 1, vec![]));
    bench.input(Input::SessionOpened { session, hello, local });
}

#[test]
fn time_in_which_the_broker_stood_still_is_nobody_s_silence() {
    let mut bench = Bench::new();
    join(&mut bench, 1, true);
    let job = bench.submit(spec());
    bench.pass(Duration::from_secs(1));
    // As after SIGSTOP and SIGCONT: the clock is far on, and no timer was served.
    bench.now.mono = bench.now.mono.after(Duration::from_secs(60));
    bench.broker.handle_timeout(bench.now);
    bench.drain();
    assert_eq!(bench.state(job), JobState::Running);
    assert_eq!(bench.broker.status().detection.own_pauses, 1);
    bench.pass(limits::LOST_AFTER);
    assert_eq!(bench.state(job), JobState::Waiting, "from then on it counts");
    assert_eq!(bench.broker.status().detection.lost_silent, 1);
}

#[test]
fn a39_a_broker_that_loses_sight_of_most_at_once_doubts_its_own_link() {
    let mut bench = Bench::new();
    (1..=3).for_each(|number| join(&mut bench, number, false));
    let jobs: Vec<JobId> = (0..3).map(|_| bench.submit(spec())).collect();
    bench.pass(limits::LOST_AFTER);
    let running = |bench: &mut Bench| {
        jobs.iter().filter(|job| bench.state(**job) == JobState::Running).count()
    };
    assert_eq!(running(&mut bench), 3, "it holds back");
    assert_eq!(bench.broker.status().detection.doubts, 3);
    let outputs = bench.request(Request::Executors);
    let [Output::Reply { reply: Reply::Executors(views), .. }] = &outputs[..] else { panic!() };
    assert!(views.iter().all(|view| view.state == "doubted"), "{views:?}");
    // One is heard of again, the others are lost in the end.
    beat(&mut bench, 2);
    pass_with(&mut bench, limits::LOST_AFTER, &[2]);
    assert_eq!(running(&mut bench), 1);
}

#[test]
fn a39_one_of_three_is_lost_in_time_and_so_are_all_on_the_same_host() {
    let mut bench = Bench::new();
    (1..=3).for_each(|number| join(&mut bench, number, false));
    let job = bench.submit(spec());
    let order = start_of_last(&mut bench);
    let there: u64 = (1..=3)
        .find(|number| {
            let name = hello(*number, 1, vec![]).executor;
            bench.broker.fleet.seats[&name].assigned.contains_key(&order.attempt)
        })
        .expect("it is somewhere");
    let others: Vec<u64> = (1..=3).filter(|number| *number != there).collect();
    pass_with(&mut bench, limits::LOST_AFTER, &others);
    assert_ne!(start_of_last(&mut bench).attempt, order.attempt, "it runs elsewhere");
    assert_eq!(bench.state(job), JobState::Running);

    let mut bench = Bench::new();
    (1..=3).for_each(|number| join(&mut bench, number, true));
    bench.submit(spec());
    bench.pass(limits::LOST_AFTER);
    assert_eq!(bench.broker.status().detection.doubts, 0, "no link lies between");
    assert_eq!(bench.broker.status().detection.lost_silent, 3);
}

/// Both executors get a job; the first fails whatever it gets.
fn round(bench: &mut Bench) -> usize {
    round_with(bench, |executor| executor == 1)
}

/// Two jobs are run, and fail where it is said; how many went to the first executor.
fn round_with(bench: &mut Bench, fails: fn(u64) -> bool) -> usize {
    let mut orders = vec![];
    for _ in 0..2 {
        let submission = Submission { index: 0, id: None, spec: Arc::new(spec()) };
        let request = Request::Submit { submissions: vec![submission], watch: false };
        for output in bench.request(request) {
            if let Output::Send { session, message: BrokerMessage::Start(order) } = output {
                orders.push((session, order));
            }
        }
    }
    for (session, order) in &orders {
        let message = ResultMessage {
            attempt: order.attempt.clone(),
            job: order.job,
            generation: 1,
            result: JobResult { exit: Some(i32::from(fails(session.0))), ..JobResult::default() },
            clock: order.clock.clone(),
            took_us: Some(1_000),
            carried: vec![],
        };
        let message = ExecutorMessage::Result(Box::new(message));
        bench.broker.handle_input(bench.now, Input::Message { session: *session, message });
    }
    let at_first = orders.iter().filter(|(session, _)| session.0 == 1).count();
    bench.drain();
    at_first
}

#[test]
fn an_executor_that_fails_everything_fast_is_left_alone_while_others_do_well() {
    let mut bench = Bench::new();
    join(&mut bench, 1, true);
    join(&mut bench, 2, true);
    for _ in 0..limits::FAILS_FAST_MIN {
        assert_eq!(round(&mut bench), 1);
    }
    assert_eq!(bench.broker.status().detection.avoided, 1);
    assert_eq!(round(&mut bench), 0, "it is left alone");
    bench.now.mono = bench.now.mono.after(limits::AVOID_FAILING_FIRST / 2);
    beat(&mut bench, 1);
    beat(&mut bench, 2);
    assert_eq!(round(&mut bench), 0);
    // Where nobody else could do it, it is better than nothing.
    let session = SessionId(2);
    bench.input(Input::SessionClosed { session, process_gone: true, tree_gone: true });
    assert!(round(&mut bench) > 0);
}

#[test]
fn an_executor_that_was_left_alone_and_does_well_is_wanted_again_at_once() {
    let mut bench = Bench::new();
    join(&mut bench, 1, true);
    join(&mut bench, 2, true);
    (0..limits::FAILS_FAST_MIN).for_each(|_| assert_eq!(round(&mut bench), 1));
    let session = SessionId(2);
    bench.input(Input::SessionClosed { session, process_gone: true, tree_gone: true });
    assert!(round_with(&mut bench, |_| false) > 0, "nobody else could do it");
    join(&mut bench, 3, true);
    assert_eq!(round(&mut bench), 1);
}

#[test]
fn one_that_drained_and_left_is_not_lost_and_raises_no_doubt() {
    let mut bench = Bench::new();
    (1..=3).for_each(|number| join(&mut bench, number, false));
    let load = hello(1, 1, vec![]).load;
    let message = ExecutorMessage::Heartbeat { load, draining: true, number: 1 };
    bench.input(Input::Message { session: SessionId(1), message });
    let session = SessionId(1);
    bench.input(Input::SessionClosed { session, process_gone: false, tree_gone: false });
    let outputs = bench.request(Request::Executors);
    let [Output::Reply { reply: Reply::Executors(views), .. }] = &outputs[..] else { panic!() };
    assert_eq!(views.len(), 2);
    pass_with(&mut bench, limits::LOST_AFTER, &[2, 3]);
    let seen = bench.broker.status().detection;
    assert_eq!((seen.lost_away, seen.lost_silent, seen.doubts), (0, 0, 0));
}
