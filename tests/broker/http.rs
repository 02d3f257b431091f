//! The routes, as any HTTP client sees them.

use std::io::{Read, Write};

use serde_json::json;
use ucp::proto::id::Digest;
use ucp::proto::limits;

use crate::common::TestEnv;
use crate::peer::{Http, Live, Played, hello, read_answer, wrote};

/// Method, path, type and body of a request; status and code of its answer.
type Case<'a> = (&'a str, &'a str, &'a str, &'a [u8], u16, &'a str);

const JSON: &str = "application/json";
const NDJSON: &str = "application/x-ndjson";

#[test]
fn the_ready_line_names_every_address_and_each_answers() {
    let env = TestEnv::new();
    let second = env.path("second.sock");
    let flag = format!("unix:{}", second.display());
    let broker = env.broker_with(&["--listen", "http://127.0.0.1:0", "--listen", &flag]);
    let listen: Vec<&str> = broker.ready["listen"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|a| a.as_str())
        .collect();
    assert_eq!(listen.len(), 3, "{listen:?}");
    assert_eq!(listen[0], format!("unix:{}", env.socket().display()));
    assert_eq!(listen[2], flag);
    for address in listen {
        let output = env.run("ucp-broker", &["status", "--json", "--broker", address]);
        assert!(output.status.success(), "{address}: {output:?}");
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(status["log"], broker.ready["log"]);
        assert_eq!(status["pid"], broker.pid());
    }
}

#[test]
fn a_job_is_taken_and_told_about() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let http = Http(env.socket());
    let body = br#"{"index":4,"spec":{"command":["true"],"name":"first"}}"#;
    let taken = http.ask("POST", "/v1/jobs", JSON, body);
    assert_eq!(taken.status, 201);
    let line = taken.json();
    assert_eq!(
        (&line["type"], &line["index"], &line["known"]),
        (&json!("submitted"), &json!(4), &json!(false))
    );
    let id = line["job"].as_str().expect("an id");
    assert!(taken.head.contains(&format!("location: /v1/jobs/{id}")), "{}", taken.head);

    let shown = http.get(&format!("/v1/jobs/{}", &id[id.len() - 8..])).json();
    assert_eq!((&shown["job"], &shown["state"]), (&json!(id), &json!("waiting")));
    assert!(shown["observed"].is_object());
    let shown = http.get(&format!("/v1/jobs/{id}?facts_only=1")).json();
    assert!(shown.get("observed").is_none(), "{shown}");
    let why = http.get(&format!("/v1/jobs/{id}/why")).json();
    assert_eq!(why["reasons"], json!(["no executor is connected"]));
    let listed = http.get("/v1/jobs?state=waiting").lines();
    assert_eq!((listed.len(), &listed[0]["name"]), (1, &json!("first")));
    assert!(http.get("/v1/jobs?state=parked").lines().is_empty());

    let body = br#"{"reason":"not needed"}"#;
    let cancelled = http.ask("POST", &format!("/v1/jobs/{id}/cancel"), JSON, body).json();
    assert_eq!(cancelled["state"], "cancelled");
    let ended = http.get(&format!("/v1/jobs/{id}?until=accepted")).json();
    assert_eq!((&ended["type"], &ended["reason"]), (&json!("result"), &json!("not needed")));
    let again = http.ask("POST", &format!("/v1/jobs/{id}/cancel"), "", b"");
    assert_eq!((again.status, &again.json()["code"]), (409, &json!("has-ended")));
    let rerun = http.ask("POST", &format!("/v1/jobs/{id}/rerun"), "", b"").json();
    assert_eq!(rerun["state"], "waiting");
}

#[test]
fn a31_many_jobs_are_taken_line_by_line_and_repeats_are_known() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let http = Http(env.socket());
    let id = "0197a5c0-0000-7000-8000-000000000001";
    let lines = format!(
        "{}\n\nno job\n{}\n{}\n{}",
        json!({"index": 1, "id": id, "spec": {"command": ["true"]}}),
        json!({"index": 2, "id": id, "spec": {"command": ["true"]}}),
        json!({"index": 3, "id": id, "spec": {"command": ["false"]}}),
        json!({"index": 4, "spec": {"command": ["true"], "key": "k"}}),
    );
    let answer = http.ask("POST", "/v1/jobs", NDJSON, lines.as_bytes());
    assert_eq!(answer.status, 200);
    let mut lines = answer.lines();
    let bad = lines.iter().position(|line| line["code"] == "bad-spec").expect("line 3 is bad");
    let bad = lines.remove(bad);
    assert!(bad["detail"].as_str().expect("words").starts_with("line 3: "), "{bad}");
    let told: Vec<_> =
        lines.iter().map(|l| (l["index"].clone(), l["known"].clone(), l["code"].clone())).collect();
    let none = serde_json::Value::Null;
    let expected = [
        (json!(1), json!(false), none.clone()),
        (json!(2), json!(true), none.clone()),
        (json!(3), none.clone(), json!("id-taken")),
        (json!(4), json!(false), none),
    ];
    assert_eq!(told, expected);
}

#[test]
fn results_stream_out_while_jobs_stream_in() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let http = Http(env.socket());
    let mut executor = Played::join(&env.socket(), hello("van", 4));
    let mut stream = http.connect();
    let head = format!(
        "POST /v1/jobs?until=accepted HTTP/1.1\r\nhost: x\r\ncontent-type: {NDJSON}\r\n\
         transfer-encoding: chunked\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).expect("the broker reads");
    let send = |stream: &mut std::os::unix::net::UnixStream, index: u64| {
        let line = format!("{}\n", json!({"index": index, "spec": {"command": ["a"]}}));
        let chunk = format!("{:x}\r\n{line}\r\n", line.len());
        stream.write_all(chunk.as_bytes()).expect("the broker reads");
    };
    send(&mut stream, 0);
    let mut live = Live::new(stream.try_clone().expect("a second handle"));
    for index in 0..3 {
        let submitted = live.line().expect("an answer while the request is open");
        assert_eq!((&submitted["type"], &submitted["index"]), (&json!("submitted"), &json!(index)));
        let order = executor.start();
        executor.report(&order, wrote(b"out\n", &[0xff]));
        let result = live.line().expect("a result while the request is open");
        assert_eq!((&result["type"], &result["index"]), (&json!("result"), &json!(index)));
        assert_eq!((&result["stdout"], &result["stderr"]), (&json!("out\n"), &json!("/w==")));
        assert_eq!(result["stderr_encoding"], "base64");
        if index < 2 {
            send(&mut stream, index + 1);
        }
    }
    stream.write_all(b"0\r\n\r\n").expect("the broker reads");
    assert!(live.line().is_none());
}

#[test]
fn a35_what_is_wrong_is_answered_by_a_problem_document() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let http = Http(env.socket());
    let absent = "/v1/jobs/0197a5c0-0000-7000-8000-00000000000f";
    let deep = [b"[".repeat(100_000), b"]".repeat(100_000)].concat();
    let large = vec![b' '; limits::LINE_BYTES_MAX + 1];
    let spec = br#"{"spec":{"command":["true"],"needs":{"cores":0}}}"#;
    let zeros = format!("/v1/blobs/{}", "0".repeat(64));
    let cases: &[Case<'_>] = &[
        ("GET", "/", "", b"", 404, "no-route"),
        ("GET", "/v1", "", b"", 404, "no-route"),
        ("GET", "/v2/jobs", "", b"", 404, "no-route"),
        ("GET", absent, "", b"", 404, "not-found"),
        ("GET", &format!("{absent}/output?follow=1"), "", b"", 404, "not-found"),
        ("GET", "/v1/jobs/%ff", "", b"", 404, "not-found"),
        ("PUT", "/v1/jobs", "", b"", 405, "wrong-method"),
        ("GET", "/v1/jobs/x/cancel", "", b"", 405, "wrong-method"),
        ("POST", "/v1/status", "", b"", 405, "wrong-method"),
        ("POST", "/v1/jobs", "", b"{}", 415, "wrong-type"),
        ("POST", "/v1/jobs", "text/plain", b"{}", 415, "wrong-type"),
        ("POST", "/v1/jobs", JSON, b"", 422, "bad-spec"),
        ("POST", "/v1/jobs", JSON, b"{", 422, "bad-spec"),
        ("POST", "/v1/jobs", JSON, b"\xff", 400, "bad-encoding"),
        ("POST", "/v1/jobs", JSON, spec, 422, "bad-spec"),
        ("POST", "/v1/jobs", JSON, &deep, 422, "bad-spec"),
        ("POST", "/v1/jobs", JSON, &large, 413, "too-large"),
        ("POST", "/v1/jobs?until=never", JSON, b"{}", 400, "bad-parameter"),
        ("GET", "/v1/jobs?limit=-1", "", b"", 400, "bad-parameter"),
        ("GET", "/v1/jobs?limit=99999999", "", b"", 422, "too-many"),
        ("GET", "/v1/jobs?state=happy", "", b"", 400, "bad-parameter"),
        ("GET", "/v1/facts?order=1", "", b"", 400, "bad-parameter"),
        ("GET", "/v1/facts?sorted=1&follow=1", "", b"", 400, "bad-parameter"),
        ("GET", &zeros, "", b"", 404, "no-blob"),
        ("PUT", &zeros, "", b"x", 422, "wrong-digest"),
        ("GET", "/v1/blobs/..", "", b"", 400, "bad-digest"),
        ("POST", "/v1/executors/session", "", b"", 426, "no-upgrade"),
    ];
    for (method, path, kind, body, status, code) in cases {
        let answer = http.ask(method, path, kind, body);
        let said = answer.json();
        assert_eq!(
            (answer.status, &said["code"]),
            (*status, &json!(code)),
            "{method} {path}: {said}"
        );
        assert!(answer.head.contains("application/problem+json"), "{}", answer.head);
        assert_eq!((&said["type"], &said["status"]), (&json!("problem"), &json!(status)));
        assert!(!said["detail"].as_str().expect("words").is_empty());
    }
    assert!(http.get("/v1/jobs").lines().is_empty(), "nothing of it changed anything");
}

#[test]
fn a35_garbage_ends_its_own_connection_only() {
    let env = TestEnv::new();
    let mut broker = env.broker();
    let http = Http(env.socket());
    let noise: Vec<u8> =
        (0..100_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let head = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(limits::HTTP_HEAD_BYTES_MAX));
    let chunk = "POST /v1/jobs HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-ndjson\r\n\
                 transfer-encoding: chunked\r\n\r\nzz\r\n";
    let pieces: [&[u8]; 5] = [b"\0", &noise, head.as_bytes(), chunk.as_bytes(), b"GET / HTT"];
    for piece in pieces {
        let mut stream = http.connect();
        let _ = stream.write_all(piece);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = vec![];
        let _ = stream.read_to_end(&mut answer);
        let text = String::from_utf8_lossy(&answer);
        assert!(
            answer.is_empty() || text.starts_with("HTTP/1.1 4") || text.starts_with("HTTP/1.1 200"),
            "{text}"
        );
    }
    assert!(broker.is_alive());
    assert_eq!(http.get("/healthz").json()["ok"], true);
}

#[test]
fn a35_a_line_that_is_too_long_is_refused_and_the_next_is_taken() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let http = Http(env.socket());
    let mut body = vec![b'x'; limits::LINE_BYTES_MAX + 2];
    body.extend_from_slice(b"\n{\"index\":2,\"spec\":{\"command\":[\"true\"]}}\n");
    let lines = http.ask("POST", "/v1/jobs", NDJSON, &body).lines();
    assert_eq!(lines.len(), 2);
    assert_eq!((&lines[0]["code"], &lines[1]["index"]), (&json!("bad-line"), &json!(2)));
}

#[test]
fn blobs_are_kept_by_their_digest() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let http = Http(env.socket());
    let content: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    let path = format!("/v1/blobs/{}", Digest::of(&content));
    assert_eq!(http.ask("HEAD", &path, "", b"").status, 404);
    let kept = http.ask("PUT", &path, "", &content);
    assert_eq!((kept.status, &kept.json()["size"]), (201, &json!(content.len())));
    let head = http.ask("HEAD", &path, "", b"");
    assert!(head.head.contains(&format!("content-length: {}", content.len())), "{}", head.head);
    assert!(http.get(&path).body == content);
}

#[test]
fn facts_are_printed_as_written_and_followed() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let http = Http(env.socket());
    let first = http.submit(&json!({"command": ["true"]}));
    let mut live = Live::new(http.begin("GET", "/v1/facts?follow=1", "", b""));
    let kinds = [live.line(), live.line()].map(|line| line.expect("a fact")["kind"].clone());
    assert_eq!(kinds, [json!("joined"), json!("submitted")]);
    let second = http.submit(&json!({"command": ["false"]}));
    assert_eq!(live.line().expect("the new fact")["job"], json!(second));

    let output = env.run("ucp-broker", &["facts"]);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), http.get("/v1/facts").text());
    let output = env.run("ucp-broker", &["facts", "--sorted", "--job", &first]);
    let facts = String::from_utf8_lossy(&output.stdout);
    assert_eq!((facts.lines().count(), facts.contains(&first)), (1, true), "{facts}");
}

#[test]
fn a_request_that_is_dropped_leaves_nothing_behind() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let http = Http(env.socket());
    let id = http.submit(&json!({"command": ["true"]}));
    let waiting = http.begin("GET", &format!("/v1/jobs/{id}?until=accepted"), "", b"");
    let other = http.begin("GET", &format!("/v1/jobs/{id}?until=accepted"), "", b"");
    drop(waiting);
    http.ask("POST", &format!("/v1/jobs/{id}/cancel"), "", b"");
    assert_eq!(read_answer(other).json()["state"], "cancelled");
    assert_eq!(http.get("/v1/audit").json()["ok"], true);
}
