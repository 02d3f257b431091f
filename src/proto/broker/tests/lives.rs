//! Executors that end and begin again, and what is proven of their jobs.

use super::*;

/// What the last `lost` fact says could not be proven.
fn unproven(bench: &Bench) -> Option<String> {
    let lost = bench.durable.iter().rev().find_map(|sealed| match &sealed.fact.body {
        crate::proto::fact::Body::Lost(body) => Some(body.unproven.clone()),
        _ => None,
    });
    lost.expect("an attempt was lost")
}

#[test]
fn a_lost_attempt_says_whether_its_processes_are_surely_gone() {
    let mut bench = Bench::new();
    bench.submit(JobSpec { max_lost: 100, ..spec() });
    let mut number = 0;
    for (process_gone, tree_gone, proven) in
        [(true, true, true), (true, false, false), (false, false, false)]
    {
        number += 1;
        bench.connect(number, 1, vec![]);
        let session = SessionId(number);
        bench.input(Input::SessionClosed { session, process_gone, tree_gone });
        bench.pass(limits::RECONNECT_GRACE);
        bench.pass(limits::RETRY_BACKOFF_MAX);
        assert_eq!(unproven(&bench).is_none(), proven, "{process_gone} {tree_gone}");
    }
    // A restart: proven by a reboot, or by cgroups in both lives.
    for (boot, before, after, proven) in [
        ("other", None, None, true),
        ("boot", Some("/c/a"), Some("/c/b"), true),
        ("boot", Some("/c/a"), None, false),
        ("boot", None, Some("/c/b"), false),
    ] {
        let mut first = hello(9, 1, vec![]);
        first.cgroup = before.map(str::to_owned);
        first.incarnation.life = number;
        number += 1;
        let session = SessionId(number);
        bench.input(Input::SessionOpened { session, hello: first.clone(), local: true });
        bench.pass(limits::RETRY_BACKOFF_MAX / 100);
        let closed = Input::SessionClosed { session, process_gone: false, tree_gone: false };
        bench.input(closed);
        let mut second = first;
        (second.incarnation.life, second.incarnation.boot) = (number, boot.to_owned());
        second.cgroup = after.map(str::to_owned);
        number += 1;
        let session = SessionId(number);
        bench.input(Input::SessionOpened { session, hello: second, local: true });
        assert_eq!(unproven(&bench).is_none(), proven, "{boot} {before:?} {after:?}");
        bench.input(Input::SessionClosed { session, process_gone: true, tree_gone: proven });
        bench.pass(limits::RETRY_BACKOFF_MAX);
    }
}

#[test]
fn an_attempt_of_an_earlier_life_of_its_executor_is_lost_and_waits_where_unproven() {
    let mut bench = Bench::new();
    bench.connect(1, 1, vec![]);
    let job = bench.submit(spec());
    bench.input(Input::SessionClosed {
        session: SessionId(1),
        process_gone: false,
        tree_gone: false,
    });
    let mut again = hello(1, 1, vec![]);
    again.incarnation.life = 99;
    let opened = Input::SessionOpened { session: SessionId(2), hello: again.clone(), local: true };
    assert!(starts(&bench.input(opened)).is_empty(), "processes may be left: it waits");
    assert_eq!(bench.kinds()[3..], ["lost"]);
    bench.input(Input::Message {
        session: SessionId(2),
        message: ExecutorMessage::Heartbeat { load: again.load, draining: false, number: 1 },
    });
    let mut outputs = bench.pass(limits::LOST_AFTER - Duration::from_millis(3_500));
    bench.input(Input::Message {
        session: SessionId(2),
        message: ExecutorMessage::Heartbeat { load: again.load, draining: false, number: 2 },
    });
    outputs.extend(bench.pass(limits::SUSPECT_AFTER - Duration::from_millis(100)));
    assert!(starts(&outputs).is_empty());
    bench.input(Input::Message {
        session: SessionId(2),
        message: ExecutorMessage::Heartbeat { load: again.load, draining: false, number: 3 },
    });
    let outputs = bench.pass(limits::SUSPECT_AFTER - Duration::from_millis(100));
    assert_eq!(starts(&outputs).len(), 1, "a further attempt");
    assert_eq!(bench.kinds()[3..], ["lost", "deployed"]);
    assert_eq!(bench.state(job), JobState::Running);
}
