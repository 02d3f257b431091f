//! Live output: relayed while it comes, made whole from the result.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use ucp::proto::id::Digest;
use ucp::proto::limits;
use ucp::proto::message::{BrokerMessage, ExecutorMessage, OutputChunk, StreamName};
use ucp::proto::result::Stream;

use crate::common::TestEnv;
use crate::peer::{Http, Live, Played, hello, wrote};

fn chunk(follow: u64, offset: u64, bytes: &[u8]) -> ExecutorMessage {
    let base64 = STANDARD.encode(bytes);
    ExecutorMessage::Output(OutputChunk { follow, stream: StreamName::Stdout, offset, base64 })
}

fn follow(executor: &mut Played) -> (u64, Option<u64>, Option<u64>, u64) {
    match executor.hear() {
        Some(BrokerMessage::Follow { follow, stdout_from, stderr_from, window, .. }) => {
            (follow, stdout_from, stderr_from, window)
        }
        other => panic!("nobody follows but {other:?}"),
    }
}

/// Reads the answer to its end: the bytes of both streams and the result line.
fn rest(live: &mut Live) -> ([Vec<u8>; 2], serde_json::Value) {
    let mut streams = [vec![], vec![]];
    loop {
        let line = live.line().expect("a result comes last");
        if line["type"] == "result" {
            assert!(live.line().is_none(), "nothing follows the result");
            return (streams, line);
        }
        if line["type"] == "attempt" {
            continue;
        }
        let stream = &mut streams[usize::from(line["stream"] == "stderr")];
        let bytes = STANDARD.decode(line["base64"].as_str().expect("text")).expect("base64");
        assert_eq!(line["offset"], json!(stream.len()), "each byte once");
        stream.extend(bytes);
    }
}

#[test]
fn output_is_relayed_while_the_job_runs_and_completed_from_the_result() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let http = Http(env.socket());
    let mut executor = Played::join(&env.socket(), hello("van", 1));
    let id = http.submit(&json!({"command": ["chatter"]}));
    let order = executor.start();
    let path = format!("/v1/jobs/{id}/output?follow=1&stdout_from=0&stderr_from=0");
    let mut live = Live::new(http.begin("GET", &path, "", b""));
    let attempt = live.line().expect("the attempt that runs");
    assert_eq!(
        (&attempt["type"], &attempt["executor"]),
        (&json!("attempt"), &json!("van-00000001"))
    );
    let (number, stdout_from, stderr_from, window) = follow(&mut executor);
    assert_eq!((stdout_from, stderr_from, window), (Some(0), Some(0), limits::OUTPUT_WINDOW_BYTES));
    executor.say(&chunk(number, 0, b"one\n"));
    let line = live.line().expect("what was said");
    assert_eq!((&line["offset"], &line["base64"]), (&json!(0), &json!(STANDARD.encode("one\n"))));
    // A piece that does not follow is never passed on.
    executor.say(&chunk(number, 9, b"hole"));
    executor.report(&order, wrote(b"one\ntwo\n", b"oops\n"));
    let line = live.line().expect("the rest of the result");
    assert_eq!((&line["offset"], &line["base64"]), (&json!(4), &json!(STANDARD.encode("two\n"))));
    let line = live.line().expect("the other stream");
    assert_eq!(
        (&line["stream"], &line["base64"]),
        (&json!("stderr"), &json!(STANDARD.encode("oops\n")))
    );
    assert_eq!(live.line().expect("the result")["type"], "result");
    assert!(live.line().is_none());
}

#[test]
fn a_client_that_comes_again_goes_on_where_it_was() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let http = Http(env.socket());
    let mut executor = Played::join(&env.socket(), hello("van", 1));
    let id = http.submit(&json!({"command": ["chatter"]}));
    let order = executor.start();
    executor.report(&order, wrote(b"0123456789", b"err"));
    let ask = |query: &str| http.get(&format!("/v1/jobs/{id}/output?{query}")).lines();
    let lines = ask(&format!("stdout_from=4&attempt={}", order.attempt));
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert_eq!(
        (&lines[0]["offset"], &lines[0]["base64"]),
        (&json!(4), &json!(STANDARD.encode("456789")))
    );
    // Offsets into another attempt count from the beginning.
    let lines = ask("stdout_from=4&attempt=other-00000001.3");
    assert_eq!((&lines[0]["type"], &lines[1]["offset"]), (&json!("attempt"), &json!(0)));
    let lines = ask("follow=1");
    let kinds: Vec<_> = lines.iter().map(|line| line["type"].clone()).collect();
    assert_eq!(kinds, ["attempt", "result"], "no stream was asked for");
}

#[test]
fn output_that_is_not_there_yet_is_sent_to_followers_only() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let http = Http(env.socket());
    let id = http.submit(&json!({"command": ["chatter"]}));
    let refused = http.get(&format!("/v1/jobs/{id}/output?stdout_from=0"));
    assert_eq!((refused.status, &refused.json()["code"]), (409, &json!("not-ended")));
}

#[test]
fn long_output_flows_within_its_window_and_ends_as_the_blob_says() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let http = Http(env.socket());
    let content: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 253) as u8).collect();
    let digest = Digest::of(&content);
    assert_eq!(http.ask("PUT", &format!("/v1/blobs/{digest}"), "", &content).status, 201);
    let mut executor = Played::join(&env.socket(), hello("van", 1));
    let id = http.submit(&json!({"command": ["chatter"]}));
    let order = executor.start();
    let path = format!("/v1/jobs/{id}/output?follow=1&stdout_from=0");
    let mut live = Live::new(http.begin("GET", &path, "", b""));
    let (number, _, none, mut window) = follow(&mut executor);
    assert_eq!(none, None);
    let mut sent = 0;
    let reading = std::thread::spawn(move || rest(&mut live));
    // The live part breaks off in the middle; the result's blob has it all.
    while sent < 2_000_000 {
        let size = window.min(limits::OUTPUT_CHUNK_BYTES as u64);
        if size == 0 {
            match executor.hear() {
                Some(BrokerMessage::Window { follow, bytes }) => {
                    assert_eq!(follow, number);
                    window += bytes;
                }
                other => panic!("nothing more is granted but {other:?}"),
            }
            continue;
        }
        let piece = &content[sent as usize..(sent + size) as usize];
        executor.say(&chunk(number, sent, piece));
        (sent, window) = (sent + size, window - size);
    }
    let mut result = wrote(b"", b"");
    result.stdout = Stream::blob(content.len() as u64, digest, false);
    let message = ucp::proto::message::ResultMessage {
        attempt: order.attempt.clone(),
        job: order.job,
        generation: order.generation,
        result,
        clock: ucp::proto::clock::Clock::default(),
        took_us: None,
        carried: vec![],
    };
    executor.say(&ExecutorMessage::Result(Box::new(message)));
    let ([stdout, stderr], result) = reading.join().expect("the reader ends");
    assert!(stdout == content && stderr.is_empty());
    assert_eq!(result["stdout_blob"], json!(digest.to_string()));
}

#[test]
fn an_executor_that_sends_more_than_was_granted_loses_the_follower_only() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let http = Http(env.socket());
    let mut executor = Played::join(&env.socket(), hello("van", 1));
    let id = http.submit(&json!({"command": ["chatter"]}));
    let order = executor.start();
    let path = format!("/v1/jobs/{id}/output?follow=1&stdout_from=0");
    let mut live = Live::new(http.begin("GET", &path, "", b""));
    let (number, _, _, window) = follow(&mut executor);
    let piece = vec![b'x'; window as usize + 1];
    executor.say(&chunk(number, 0, &piece));
    executor.report(&order, wrote(b"little", b""));
    let ([stdout, _], _) = rest(&mut live);
    assert_eq!(stdout, b"little");
}
