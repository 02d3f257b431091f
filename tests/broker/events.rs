//! `GET /v1/events`: what happens, live.

use std::io::{BufRead, BufReader, Write};

use serde_json::{Value, json};
use ucp::proto::limits;

use crate::common::TestEnv;
use crate::peer::{Http, Live, Played, hello, read_chunk, read_head, wrote};

fn follow(http: &Http, query: &str) -> Live {
    Live::new(http.begin("GET", &format!("/v1/events{query}"), "", b""))
}

/// The next event, which must be this one.
fn next(live: &mut Live, word: &str) -> Value {
    let line = live.line().expect("the stream goes on");
    assert_eq!((&line["type"], &line["event"]), (&json!("event"), &json!(word)), "{line}");
    assert!(line["at"].as_str().is_some_and(|at| at.ends_with('Z')), "{line}");
    line
}

#[test]
fn what_happens_is_told_in_order_and_only_when_it_is_durable() {
    let env = TestEnv::new();
    let _broker = env.broker_with(&["--reconnect-grace", "20ms"]);
    let http = Http(env.socket());
    let mut live = follow(&http, "");
    let mut executor = Played::join(&env.socket(), hello("van", 1));
    assert_eq!(next(&mut live, "executor-joined")["executor"], "van-00000001");
    let job = http.submit(&json!({"command": ["true"], "retries": 0}));
    let order = executor.start();
    executor.report(&order, wrote(b"", b""));
    let mut told = vec![];
    for word in ["submitted", "deployed", "reported", "accepted"] {
        let line = next(&mut live, word);
        assert_eq!((&line["job"], &line["gen"]), (&json!(job), &json!(1)), "{line}");
        let facts = http.get(&format!("/v1/facts?job={job}")).lines();
        let stored = facts.iter().find(|fact| fact["dot"] == line["dot"]).expect("it is durable");
        assert_eq!((&stored["kind"], &stored["at"]), (&json!(word), &line["at"]));
        told.push(line);
    }
    let attempt = json!(order.attempt);
    assert!(told[1..].iter().all(|line| line["attempt"] == attempt), "{told:?}");
    assert_eq!(told[1]["executor"], "van-00000001");
    assert_eq!((&told[2]["exit"], &told[3]["success"]), (&json!(0), &json!(true)));

    let second = http.submit(&json!({"command": ["true"]}));
    next(&mut live, "submitted");
    next(&mut live, "deployed");
    executor.start();
    drop(executor);
    assert_eq!(next(&mut live, "executor-left")["executor"], "van-00000001");
    let lost = next(&mut live, "lost");
    assert_eq!((&lost["job"], &lost["executor"]), (&json!(second), &json!("van-00000001")));
    assert!(lost["reason"].is_string(), "{lost}");
    let cancel = http.ask("POST", &format!("/v1/jobs/{second}/cancel"), "", br#"{"reason":"r"}"#);
    assert_eq!(cancel.status, 200);
    assert_eq!(next(&mut live, "cancelled")["reason"], "r");
    http.ask("POST", &format!("/v1/jobs/{second}/rerun"), "", b"");
    assert_eq!(next(&mut live, "rerun")["gen"], 2);
}

#[test]
fn readers_choose_jobs_and_events() {
    let env = TestEnv::new();
    let mut broker = env.broker();
    let http = Http(env.socket());
    let mut executor = Played::join(&env.socket(), hello("van", 1));
    let first = http.submit(&json!({"command": ["true"]}));
    let order = executor.start();
    let mut of_job = follow(&http, &format!("?job={}", &first[first.len() - 8..]));
    let mut of_kind = follow(&http, "?event=accepted,cancelled");
    let mut of_both = follow(&http, &format!("?job={first}&event=reported"));
    let second = http.submit(&json!({"command": ["true"]}));
    http.ask("POST", &format!("/v1/jobs/{second}/cancel"), "", b"");
    executor.report(&order, wrote(b"", b""));
    assert_eq!(next(&mut of_kind, "cancelled")["job"], second);
    assert_eq!(next(&mut of_kind, "accepted")["job"], first);
    next(&mut of_job, "reported");
    next(&mut of_job, "accepted");
    next(&mut of_both, "reported");
    for (query, status, code) in [
        ("?event=weather", 400, "bad-parameter"),
        ("?event=", 400, "bad-parameter"),
        ("?since=1", 400, "bad-parameter"),
        ("?job=0197a5c0-0000-7000-8000-00000000000f", 404, "not-found"),
    ] {
        let refused = http.get(&format!("/v1/events{query}"));
        assert_eq!((refused.status, &refused.json()["code"]), (status, &json!(code)), "{query}");
    }
    // Each reader is told of the end, and no answer looks broken.
    broker.signal(nix::sys::signal::Signal::SIGTERM);
    for mut live in [of_job, of_kind, of_both] {
        let end = live.line().expect("the last line");
        assert_eq!(end, json!({"type": "end", "reason": "the broker is shutting down"}));
        assert!(live.line().is_none());
    }
    assert_eq!(broker.wait().code(), Some(0));
}

#[test]
fn browsers_get_server_sent_events() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let http = Http(env.socket());
    let mut stream = http.connect();
    let head = "GET /v1/events HTTP/1.1\r\nhost: x\r\naccept: text/event-stream\r\n\r\n";
    stream.write_all(head.as_bytes()).expect("the broker reads");
    let mut reader = BufReader::new(stream);
    let head = read_head(&mut reader);
    assert!(head.contains("content-type: text/event-stream\r\n"), "{head}");
    let job = http.submit(&json!({"command": ["true"]}));
    let mut text = String::new();
    while !text.ends_with("\n\n") {
        text += &String::from_utf8(read_chunk(&mut reader).expect("more")).expect("UTF-8");
    }
    let lines: Vec<_> = text.lines().collect();
    assert_eq!((lines[0], lines.len()), ("event: submitted", 3), "{text:?}");
    let data: Value =
        serde_json::from_str(lines[1].strip_prefix("data: ").expect("data")).expect("JSON");
    assert_eq!((&data["job"], lines[2]), (&json!(job), ""));
}

#[test]
fn i10_a_reader_that_does_not_read_misses_events_and_is_told_how_many() {
    let env = TestEnv::new();
    let _broker = env.broker_with(&["--durability", "os"]);
    let http = Http(env.socket());
    let mut slow = BufReader::new(http.begin("GET", "/v1/events", "", b""));
    read_head(&mut slow);
    let count = 2 * limits::EVENTS_HELD_MAX as u64;
    let line = json!({"spec": {"command": ["true"]}}).to_string() + "\n";
    // So many at a time that the answers fit between us while nobody reads them.
    let body = line.repeat(512);
    for _ in 0..count / 512 {
        let taken = http.ask("POST", "/v1/jobs", "application/x-ndjson", body.as_bytes());
        assert_eq!(taken.text().lines().count(), 512);
    }
    // It begins to read: what it got, what it missed and what came then is all there was.
    let (mut told, mut missed, mut last) = (0, 0, 1);
    let mut held = String::new();
    while told + missed < count {
        held += &String::from_utf8(read_chunk(&mut slow).expect("more")).expect("UTF-8");
        let whole = held.rfind('\n').map_or(0, |end| end + 1);
        let rest = held.split_off(whole);
        for line in std::mem::replace(&mut held, rest).lines() {
            let line: Value = serde_json::from_str(line).expect("JSON");
            if line["type"] == "gap" {
                let gap = line["missed"].as_u64().expect("a number");
                missed += gap;
                last += gap;
            } else {
                told += 1;
                last += 1;
                assert_eq!(line["dot"][1], last, "events come in order, none twice");
            }
        }
    }
    assert!(missed > 0 && told + missed == count, "{told} told, {missed} missed");
}

#[test]
fn readers_are_bounded_and_those_that_go_make_room() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let http = Http(env.socket());
    let mut readers: Vec<_> = (0..limits::EVENT_READERS_MAX).map(|_| follow(&http, "")).collect();
    let refused = http.get("/v1/events");
    assert_eq!((refused.status, &refused.json()["code"]), (503, &json!("too-many-readers")));
    readers.pop();
    crate::common::wait_until("there is room for another", || {
        let stream = http.begin("GET", "/v1/events?event=lost", "", b"");
        let mut reader = BufReader::new(stream.try_clone().expect("a second handle"));
        let mut first = String::new();
        reader.read_line(&mut first).expect("the head");
        if first.contains(" 200 ") {
            return Some(());
        }
        drop(reader);
        drop(stream);
        None
    });
}
