//! Peers that are hostile, broken or slow: each is answered or cut off, and nobody else notices.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use serde_json::{Value, json};
use ucp::proto::limits;
use ucp::proto::message::{BrokerMessage, ExecutorMessage};

use crate::common::{Began, DEADLINE, Daemon, TestEnv, wait_until};
use crate::peer::{Http, Played, hello, read_answer, read_head, wrote};

const JSON: &str = "application/json";

fn refused(http: &Http, body: &str) -> String {
    let answer = http.ask("POST", "/v1/jobs", JSON, body.as_bytes());
    let said = answer.json();
    assert_eq!((answer.status, &said["code"]), (422, &json!("bad-spec")), "{body:.200}: {said}");
    said["detail"].as_str().expect("words").to_owned()
}

fn heartbeat() -> ExecutorMessage {
    ExecutorMessage::Heartbeat { load: hello("van", 1).load, draining: false, number: 0 }
}

fn memory(broker: &Daemon, line: &str) -> u64 {
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", broker.pid())).expect("it runs");
    let found = status.lines().find_map(|found| found.strip_prefix(line)).expect("a line");
    found.trim().strip_suffix(" kB").expect("kB").parse::<u64>().expect("a number") << 10
}

/// The books are right while it runs, and the store is whole afterwards.
fn assert_sound(env: &TestEnv, mut broker: Daemon) {
    assert!(broker.is_alive());
    let http = Http(env.socket());
    assert_eq!(http.get("/healthz").json()["ok"], true);
    let audit = http.get("/v1/audit").json();
    assert_eq!(audit["ok"], true, "{audit}");
    broker.kill();
    let check = env.run("ucp-broker", &["check"]);
    assert!(check.status.success(), "{check:?}");
}

#[test]
fn a35_a_key_that_comes_twice_is_refused_by_its_name() {
    let env = TestEnv::new();
    let broker = env.broker();
    let http = Http(env.socket());
    for (body, name) in [
        (r#"{"index":1,"index":2,"spec":{"command":["a"]}}"#, "index"),
        (r#"{"spec":{"command":["a"]},"spec":{"command":["b"]}}"#, "spec"),
        (r#"{"spec":{"command":["a"],"command":["b"]}}"#, "command"),
        (r#"{"spec":{"command":["a"],"needs":{"cores":1,"cores":2}}}"#, "cores"),
        (r#"{"spec":{"command":["a"],"env":{"TWIN":"1","TWIN":"1"}}}"#, "TWIN"),
        (r#"{"spec":{"command":["a"],"inputs":{"f":{"text":"1"},"f":{"text":"2"}}}}"#, "f"),
    ] {
        let detail = refused(&http, body);
        assert!(detail.contains(name), "{body}: {detail}");
    }
    let hello = serde_json::to_string(&ExecutorMessage::Hello(hello("van", 1))).expect("a message");
    let twice = hello.replacen(r#""labels":{"#, r#""labels":{"gpu":"a","gpu":"b""#, 1);
    assert_ne!(hello, twice);
    let mut executor = Played::upgrade(&env.socket());
    executor.say_line(&twice);
    match executor.hear() {
        Some(BrokerMessage::Refused { code, detail }) => {
            assert!(code == "bad-message" && detail.contains("gpu"), "{code}: {detail}");
        }
        other => panic!("no refusal but {other:?}"),
    }
    assert!(http.get("/v1/jobs").lines().is_empty());
    assert_sound(&env, broker);
}

#[test]
fn a35_numbers_and_texts_beyond_their_bounds_are_refused() {
    let env = TestEnv::new();
    let broker = env.broker();
    let http = Http(env.socket());
    let deep = format!("{}1{}", "[".repeat(10_000), "]".repeat(10_000));
    let deep_spec = format!(r#"{{"spec":{{"command":["a"],"needs":{deep}}}}}"#);
    let deep_unknown = format!(r#"{{"weather":{deep},"spec":{{"command":["a"]}}}}"#);
    for body in [
        r#"{"index":9007199254740992,"spec":{"command":["a"]}}"#,
        r#"{"index":18446744073709551616,"spec":{"command":["a"]}}"#,
        r#"{"index":-1,"spec":{"command":["a"]}}"#,
        r#"{"index":1.5,"spec":{"command":["a"]}}"#,
        r#"{"index":1e400,"spec":{"command":["a"]}}"#,
        r#"{"spec":{"command":["a"],"retries":99999999999999999999999999}}"#,
        r#"{"spec":{"command":["a"],"timeout":"99999999999999999999s"}}"#,
        r#"{"spec":{"command":["a"],"needs":{"memory":"99999999999999999999G"}}}"#,
        r#"{"spec":{"command":["a\u0000b"]}}"#,
        r#"{"spec":{"command":["a"],"env":{"A\u0000":"1"}}}"#,
        r#"{"spec":{"command":["a"],"env":{"A":"\u0000"}}}"#,
        r#"{"spec":{"command":["a"],"inputs":{"a\u0000":{"text":""}}}}"#,
        "{\"spec\":{\"command\":[\"a\0\"]}}",
        r#"{"spec":{"command":["\ud800"]}}"#,
        &deep,
        &deep_spec,
        &deep_unknown,
    ] {
        refused(&http, body);
    }
    let last = r#"{"index":9007199254740991,"spec":{"command":["a"]}}"#;
    let taken = http.ask("POST", "/v1/jobs", JSON, last.as_bytes());
    assert_eq!((taken.status, &taken.json()["index"]), (201, &json!(9_007_199_254_740_991_u64)));
    assert_sound(&env, broker);
}

#[test]
fn a35_an_executor_says_what_it_likes_and_others_work_on() {
    let env = TestEnv::new();
    let broker = env.broker_with(&["--reconnect-grace", "50ms"]);
    let http = Http(env.socket());
    let mut honest = Played::join(&env.socket(), hello("honest", 1));
    let id = http.submit(&json!({"command": ["true"]}));
    let order = honest.start();

    // Results of attempts that it never had: of another executor, of no log, of no job.
    let mut liar = Played::join(&env.socket(), hello("liar", 1));
    let mut stolen = order.clone();
    liar.send_result(&stolen, wrote(b"stolen\n", b""));
    stolen.attempt = "nowhere-00000001.7".parse().expect("an attempt");
    liar.send_result(&stolen, wrote(b"", b""));
    stolen.job = "0197a5c0-0000-7000-8000-00000000000f".parse().expect("an id");
    stolen.generation = u32::MAX;
    liar.send_result(&stolen, wrote(b"", b""));
    let mut huge = wrote(b"", b"");
    huge.cpu_us = limits::COUNTER_MAX + 1;
    liar.send_result(&order, huge);
    drop(liar);
    let mut noisy = Played::join(&env.socket(), hello("noisy", 1));
    let line = serde_json::to_string(&heartbeat()).expect("a message");
    let long = line.replacen('{', &format!("{{\"noise\":\"{}\",", "x".repeat(1 << 20)), 1);
    for _ in 0..20 {
        noisy.say_line(&long);
        while !matches!(noisy.hear().expect("only its fields count"), BrokerMessage::Heard { .. }) {
        }
    }
    noisy.say_line(r#"{"type":"result"}"#);
    while !matches!(noisy.hear().expect("it is refused"), BrokerMessage::Refused { .. }) {}
    let mut binary = Played::join(&env.socket(), hello("binary", 1));
    binary.stream.write_all(b"\xff\xfe\0\n").expect("the broker reads");
    assert!(matches!(binary.hear(), Some(BrokerMessage::Refused { .. })));

    honest.say(&heartbeat());
    assert!(honest.hear().is_some());
    let shown = http.get(&format!("/v1/jobs/{id}")).json();
    assert_eq!(shown["state"], "running", "{shown}");
    assert_eq!(shown["attempts"].as_array().map(Vec::len), Some(1), "{shown}");
    assert_sound(&env, broker);
}

#[test]
fn a35_half_a_line_and_then_silence_is_silence() {
    let env = TestEnv::new();
    let broker = env.broker_with(&["--suspect-after", "100ms", "--lost-after", "200ms"]);
    let mut executor = Played::join(&env.socket(), hello("van", 1));
    let line = serde_json::to_vec(&heartbeat()).expect("a message");
    executor.stream.write_all(&line[..line.len() / 2]).expect("the broker reads");
    assert_eq!(executor.hear(), None, "the session is closed");
    assert!(Http(env.socket()).get("/v1/executors").lines().is_empty());
    assert_sound(&env, broker);
}

#[test]
fn a35_clients_that_do_not_read_take_little_memory_and_nobodys_time() {
    let env = TestEnv::new();
    let broker = env.broker();
    let http = Http(env.socket());
    let spec = json!({"command": ["true", "x".repeat(100_000)]});
    for _ in 0..300 {
        http.submit(&spec);
    }
    let before = memory(&broker, "VmRSS:");
    let asked = ["/v1/facts", "/v1/jobs?limit=1000", "/v1/facts?follow=1"];
    let deaf: Vec<UnixStream> =
        (0..60).map(|number| http.begin("GET", asked[number % asked.len()], "", b"")).collect();
    // They got their first piece, so the broker is at work for each of them.
    for mut stream in &deaf {
        stream.read_exact(&mut [0; 1]).expect("an answer begins");
    }
    let begin = Began::now();
    for _ in 0..50 {
        assert_eq!(http.get("/healthz").status, 200);
    }
    assert!(begin.elapsed() < DEADLINE, "{:?}", begin.elapsed());
    let more = memory(&broker, "VmHWM:").saturating_sub(before);
    assert!(more < 96 << 20, "60 that do not read take {more} bytes");
    drop(deaf);
    assert_sound(&env, broker);
}

#[test]
fn a35_a_head_that_is_too_long_is_told_so() {
    let env = TestEnv::new();
    let broker = env.broker();
    let http = Http(env.socket());
    let mut stream = http.connect();
    let long = "y".repeat(3 * limits::HTTP_HEAD_BYTES_MAX);
    let _ = stream.write_all(format!("GET / HTTP/1.1\r\nhost: x\r\nx: {long}\r\n\r\n").as_bytes());
    let mut text = String::new();
    let _ = stream.read_to_string(&mut text);
    assert!(text.starts_with("HTTP/1.1 431 "), "{text:?}");
    assert_sound(&env, broker);
}

#[test]
fn a35_ten_thousand_idle_connections_do_not_hold_up_one_that_works() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("as many as may be");
    let count = usize::try_from(most).unwrap_or(usize::MAX).saturating_sub(2_000).min(10_000);
    assert!(count > 500, "{most} descriptors are too few to say anything");
    let env = TestEnv::new();
    let broker = env.broker();
    let http = Http(env.socket());
    let mut executor = Played::join(&env.socket(), hello("van", 1));
    let idle: Vec<UnixStream> = (0..count).map(|_| http.connect()).collect();
    let begin = Began::now();
    let id = http.submit(&json!({"command": ["true"]}));
    let order = executor.start();
    executor.report(&order, wrote(b"", b""));
    assert_eq!(http.get(&format!("/v1/jobs/{id}?until=accepted")).json()["state"], "succeeded");
    assert!(begin.elapsed() < DEADLINE, "{:?}", begin.elapsed());
    let taken = memory(&broker, "VmRSS:");
    assert!(taken < 512 << 20, "{count} idle connections take {taken} bytes");
    for mut stream in idle.iter().step_by(count / 10).map(|one| one.try_clone().expect("a handle"))
    {
        let ask = b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        stream.write_all(ask).expect("it is open");
        assert_eq!(read_answer(stream).status, 200);
    }
    drop(idle);
    assert_sound(&env, broker);
}

/// A broker whose system gives it so few descriptors.
fn broker_of(env: &TestEnv, descriptors: u32) -> Daemon {
    let mut command = std::process::Command::new("sh");
    let plain = env.command("ucp-broker");
    command.args(["-c", &format!("ulimit -n {descriptors}; exec \"$0\"")]);
    command.arg(plain.get_program()).current_dir(env.path(""));
    for (name, value) in plain.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let mut broker = Daemon::start(command, &env.path("broker.err"));
    broker.ready = broker.line();
    broker
}

#[test]
fn a35_connections_beyond_the_descriptors_are_turned_away() {
    let env = TestEnv::new();
    let broker = broker_of(&env, 64);
    let http = Http(env.socket());
    let mut executor = Played::join(&env.socket(), hello("van", 1));
    let id = http.submit(&json!({"command": ["true"]}));
    let order = executor.start();
    let crowd: Vec<UnixStream> = (0..100).map(|_| http.connect()).collect();
    let text = wait_until("somebody is told why", || {
        // One of too many at one time may find the connection broken before it reads.
        let mut text = String::new();
        let _ = http.connect_and_ask("GET", "/healthz")?.read_to_string(&mut text);
        text.contains("\r\n\r\n{").then_some(text)
    });
    assert!(text.starts_with("HTTP/1.1 503 ") && text.contains(r#""retryable":true"#), "{text}");
    assert!(text.contains(r#""code":"too-many-connections""#), "{text}");
    executor.say(&heartbeat());
    assert!(matches!(executor.hear(), Some(BrokerMessage::Heard { .. })));
    executor.report(&order, wrote(b"", b""));
    drop(crowd);
    wait_until("connections are taken again", || {
        let answer = read_answer(http.connect_and_ask("GET", &format!("/v1/jobs/{id}"))?);
        (answer.status == 200).then(|| assert_eq!(answer.json()["state"], "succeeded"))
    });
    assert_sound(&env, broker);
}

#[test]
fn a35_without_descriptors_sessions_go_on_and_connections_come_back() {
    let env = TestEnv::new();
    let broker = env.broker();
    let http = Http(env.socket());
    let mut executor = Played::join(&env.socket(), hello("van", 1));
    let id = http.submit(&json!({"command": ["true"]}));
    let order = executor.start();
    let open = std::fs::read_dir(format!("/proc/{}/fd", broker.pid())).expect("it runs").count();
    let limit = format!("--nofile={}", open + 5);
    let pid = broker.pid().to_string();
    let set = std::process::Command::new("prlimit").args(["--pid", &pid, &limit]).status();
    assert!(set.expect("prlimit is part of util-linux").success());
    let crowd: Vec<UnixStream> = (0..100).map(|_| http.connect()).collect();
    wait_until("no descriptor is left", || {
        broker.stderr().contains("no connection can be taken").then_some(())
    });
    executor.say(&heartbeat());
    assert!(matches!(executor.hear(), Some(BrokerMessage::Heard { .. })));
    executor.report(&order, wrote(b"", b""));
    drop(crowd);
    let shown = http.get(&format!("/v1/jobs/{id}"));
    assert_eq!((shown.status, &shown.json()["state"]), (200, &json!("succeeded")));
    assert_eq!(broker.stderr().matches("no connection can be taken").count(), 1, "said once");
    assert_sound(&env, broker);
}

#[test]
fn a35_a_data_directory_of_a_newer_version_is_refused_and_not_touched() {
    let env = TestEnv::new();
    env.broker().kill();
    let data = env.path("state/ucp/broker");
    let store = data.join("broker.db");
    let connection = rusqlite::Connection::open(&store).expect("a store");
    connection
        .execute_batch(
            "UPDATE meta SET value = '99' WHERE key = 'schema'; PRAGMA wal_checkpoint(TRUNCATE);",
        )
        .expect("changed");
    drop(connection);
    let before = std::fs::read(&store).expect("readable");
    for arguments in [&[][..], &["check"]] {
        let output = env.run("ucp-broker", arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && output.status.code() != Some(101), "{said}");
        assert!(said.contains("version 99") && said.contains("hint: "), "{said}");
        assert!(std::fs::read(&store).expect("readable") == before, "{arguments:?} changed it");
    }
}

#[test]
fn a35_a_stream_with_a_line_that_is_too_long_goes_on_behind_it() {
    let env = TestEnv::new();
    let broker = env.broker();
    let http = Http(env.socket());
    let good = r#"{"index":7,"spec":{"command":["true"]}}"#;
    let long = "x".repeat(limits::LINE_BYTES_MAX + 1);
    let body = format!("{good}\n{long}\n{}\n", good.replace('7', "8"));
    let lines = http.ask("POST", "/v1/jobs", "application/x-ndjson", body.as_bytes()).lines();
    let problem = lines.iter().find(|line| line["type"] == "problem").expect("it is told");
    let detail = problem["detail"].as_str().expect("words");
    assert!(detail.contains("line 2") && detail.contains("4194304"), "{detail}");
    let mut taken: Vec<&Value> =
        lines.iter().filter(|line| line["type"] == "submitted").map(|l| &l["index"]).collect();
    taken.sort_by_key(|index| index.as_u64());
    assert_eq!(taken, [&json!(7), &json!(8)]);
    assert_sound(&env, broker);
}

#[test]
fn a_connection_is_usable_after_a_refusal() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let http = Http(env.socket());
    let stream = http.connect();
    let mut reader = std::io::BufReader::new(stream.try_clone().expect("a second handle"));
    for (body, status) in [("{", "422"), (r#"{"spec":{"command":["true"]}}"#, "201")] {
        let head = format!(
            "POST /v1/jobs HTTP/1.1\r\nhost: x\r\ncontent-type: {JSON}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        (&stream).write_all(head.as_bytes()).expect("the broker reads");
        let head = read_head(&mut reader);
        assert!(head.starts_with(&format!("http/1.1 {status} ")), "{head}");
        let size = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let size = size.expect("a length").trim().parse().expect("a number");
        reader.read_exact(&mut vec![0; size]).expect("the body");
    }
}
