//! Valid traffic with seeded damage: whatever comes, the broker answers on and its books are right.
//!
//! The damage follows from the seed alone, so that a failure is seen again.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use serde_json::json;
use ucp::proto::id::Digest;
use ucp::proto::message::ExecutorMessage;
use ucp::proto::rng::Rng;

use crate::common::TestEnv;
use crate::peer::{Http, hello};

/// What numbers, texts and structure are replaced by.
const SPICE: [&str; 14] = [
    "9007199254740992",
    "-1",
    "1e999",
    "0",
    "\"\"",
    "null",
    "{}",
    "[[[[",
    "\0",
    "\r\n",
    "\u{7f}",
    "\"a\":1,\"a\":2",
    "\\ud800",
    "18446744073709551615",
];

fn damage(rng: &mut Rng, valid: &[u8]) -> Vec<u8> {
    let mut bytes = valid.to_vec();
    for _ in 0..=rng.below(3) {
        let place = |rng: &mut Rng, length: usize| {
            usize::try_from(rng.below(length as u64 + 1)).expect("a place")
        };
        let from = place(rng, bytes.len());
        let to = (from + place(rng, 16)).min(bytes.len());
        match rng.below(6) {
            0 => bytes.truncate(from),
            1 => drop(bytes.drain(from..to)),
            2 => {
                let again = bytes[from..to].to_vec();
                bytes.splice(to..to, again);
            }
            3 if from < bytes.len() => bytes[from] ^= 1 << rng.below(8),
            4 => {
                let length = place(rng, 32);
                let noise: Vec<u8> = (0..length).map(|_| rng.next_u64().to_le_bytes()[0]).collect();
                bytes.splice(from..to, noise);
            }
            _ => {
                let spice = SPICE[place(rng, SPICE.len() - 1)];
                bytes.splice(from..to, spice.bytes());
            }
        }
    }
    bytes
}

fn requests(job: &str) -> Vec<Vec<u8>> {
    let digest = Digest::of(b"content");
    let spec = json!({"command": ["true"], "env": {"A": "b"}, "needs": {"cores": 2},
        "inputs": {"f": {"text": "x"}}, "timeout": "5s", "key": "k", "retries": 3});
    let one = json!({"index": 5, "spec": spec}).to_string();
    let body = |line: &str, kind: &str, body: &str| {
        format!(
            "{line} HTTP/1.1\r\nhost: x\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: x\r\nrange: bytes=2-5\r\n\r\n");
    let mut found = vec![
        body("POST /v1/jobs", "application/json", &one),
        body("POST /v1/jobs", "application/x-ndjson", &format!("{one}\n{one}\n")),
        body(&format!("POST /v1/jobs/{job}/cancel"), "application/json", r#"{"reason":"why"}"#),
        body(&format!("POST /v1/jobs/{job}/rerun"), "application/json", ""),
        body(&format!("PUT /v1/blobs/{digest}"), "application/octet-stream", "content"),
        format!(
            "PUT /v1/blobs/{digest} HTTP/1.1\r\nhost: x\r\ncontent-range: bytes 3-6/7\r\n\
             content-length: 4\r\n\r\ntent"
        ),
        format!(
            "POST /v1/jobs HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-ndjson\r\n\
             transfer-encoding: chunked\r\n\r\n{:x}\r\n{one}\r\n0\r\n\r\n",
            one.len()
        ),
        format!("HEAD /v1/blobs/{digest} HTTP/1.1\r\nhost: x\r\n\r\n"),
    ];
    let paths = ["/v1/jobs?limit=3&state=waiting", "/v1/status", "/v1/executors", "/v1/audit"];
    found.extend(paths.map(get));
    found.extend(
        [format!("/v1/facts?sorted=1&job={job}"), format!("/v1/jobs/{job}?facts_only=1")]
            .map(|p| get(&p)),
    );
    found.extend([format!("/v1/jobs/{job}/why"), format!("/v1/blobs/{digest}")].map(|p| get(&p)));
    found.into_iter().map(String::into_bytes).collect()
}

/// What an executor says in its life, a line each.
fn session(job: &str) -> Vec<u8> {
    let hello =
        serde_json::to_string(&ExecutorMessage::Hello(hello("fuzz", 2))).expect("a message");
    let load = serde_json::to_value(crate::peer::hello("fuzz", 2).load).expect("a load");
    let rest = [
        json!({"type": "heartbeat", "load": load, "draining": false}),
        json!({"type": "started", "attempt": "north-00000001.3"}),
        json!({"type": "output", "follow": 1, "stream": "stdout", "offset": 0, "base64": "YWJj"}),
        json!({"type": "result", "attempt": "north-00000001.3", "job": job, "gen": 1, "clock": {"a-00000001": 4},
            "result": {"exit": 0, "stdout": {"size": 1, "text": "x"}, "started_at": "2026-01-01T00:00:00.000Z",
            "ended_at": "2026-01-01T00:00:01.000Z"}}),
    ];
    let head = "POST /v1/executors/session HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\n\
                upgrade: ucp-session/1\r\n\r\n";
    let mut text = format!("{head}{hello}\n");
    for line in rest {
        text.push_str(&format!("{line}\n"));
    }
    text.into_bytes()
}

/// Sends bytes, ends, and reads until the broker ends as well.
fn throw(http: &Http, bytes: &[u8]) {
    let mut stream: UnixStream = http.connect();
    // It may refuse before it has read everything.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = vec![];
    if let Err(error) = stream.read_to_end(&mut answer) {
        let passes = error.kind() == std::io::ErrorKind::ConnectionReset;
        assert!(passes, "no end after {:?}: {error}", String::from_utf8_lossy(bytes));
    }
}

#[test]
fn a35_damaged_traffic_neither_ends_the_broker_nor_its_books() {
    let env = TestEnv::new();
    let mut broker = env.broker_with(&["--reconnect-grace", "10ms"]);
    let http = Http(env.socket());
    let job = http.submit(&json!({"command": ["true"]}));
    let (requests, session) = (requests(&job), session(&job));
    let mut rng = Rng::from_seed(35);
    for number in 0..3_000 {
        let valid = match number % 4 {
            0 => &session,
            _ => &requests[usize::try_from(rng.below(requests.len() as u64)).expect("a place")],
        };
        throw(&http, &damage(&mut rng, valid));
        if number % 500 == 0 {
            assert_eq!(http.get("/healthz").status, 200, "after {number}");
        }
    }
    for valid in requests.iter().chain([&session]) {
        throw(&http, valid);
    }
    assert!(broker.is_alive());
    let audit = http.get("/v1/audit").json();
    assert_eq!(audit["ok"], true, "{audit}");
    assert!(!broker.stderr().contains("panicked"), "{}", broker.stderr());
    broker.kill();
    let check = env.run("ucp-broker", &["check"]);
    assert!(check.status.success(), "{check:?}");
}
