//! Many lines and a queue that is full, and what Ctrl-C leaves of them.

use std::io::Write;
use std::process::{Child, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::common::{TestEnv, wait_until};

fn numbers(count: u64) -> String {
    (1..=count).map(|number| format!("{number}\n")).collect()
}

fn parsed(bytes: &[u8]) -> Vec<Value> {
    let text = String::from_utf8(bytes.to_vec()).expect("text");
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

/// How many jobs are in a state.
fn count(env: &TestEnv, state: &str) -> u64 {
    let output = env.run("ucp-broker", &["status", "--json"]);
    let Ok(status) = serde_json::from_slice::<Value>(&output.stdout) else { return 0 };
    status["jobs"][state].as_u64().unwrap_or(0)
}

/// A filter with these lines on its stdin, which stays open.
fn filter(env: &TestEnv, flags: &[&str], lines: &str) -> (Child, std::process::ChildStdin) {
    let mut each = env.command("ucp-submit");
    each.args(flags).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut each = each.spawn().expect("it starts");
    let mut stdin = each.stdin.take().expect("it is piped");
    stdin.write_all(lines.as_bytes()).expect("written");
    (each, stdin)
}

fn interrupt(child: &Child) {
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
    kill(pid, Signal::SIGINT).expect("it is there");
}

#[test]
fn lines_that_go_together_pass_a_queue_that_is_smaller() {
    let env = TestEnv::new();
    let _broker = env.broker_with(&["--max-queued", "20"]);
    let _executor = env.executor("one", 2);
    let mut each = env.submit();
    let each = each.args(["--each", "--", "true"]).write_stdin(numbers(300));
    let output = each.assert().success().stderr("").get_output().stdout.clone();
    let mut indices: Vec<_> = parsed(&output).iter().map(|line| line["index"].as_u64()).collect();
    indices.sort_unstable();
    assert_eq!(indices, (1..=300).map(Some).collect::<Vec<_>>());
}

#[test]
fn ctrl_c_forgets_what_a_full_queue_did_not_take() {
    let env = TestEnv::new();
    let _broker = env.broker_with(&["--max-queued", "20"]);
    let _executor = env.executor("one", 2);
    let spec = "{\"command\":[\"sleep\",\"600\"]}\n".repeat(200);
    for (flags, lines) in [
        (&["--each", "--", "sleep", "600"][..], &numbers(200)),
        (&["--each", "--name", "n{}", "--", "sleep", "600"], &numbers(200)),
        (&["--jsonl"], &spec),
    ] {
        let (each, stdin) = filter(&env, flags, lines);
        wait_until("some were taken", || (count(&env, "running") >= 2).then_some(()));
        interrupt(&each);
        drop(stdin);
        let output = each.wait_with_output().expect("it ends");
        assert_eq!(output.status.code(), Some(130), "{flags:?}");
        assert_eq!((count(&env, "running"), count(&env, "waiting")), (0, 0), "{flags:?}");
        let results = parsed(&output.stdout);
        assert!(!results.is_empty() && results.len() < 200, "{flags:?}: {}", results.len());
        assert!(results.iter().all(|line| line["state"] == "cancelled"), "{flags:?}");
    }
}

#[test]
fn nothing_more_is_sent_after_ctrl_c() {
    let env = TestEnv::new();
    let broker = env.broker();
    let pad = "x".repeat(1500);
    let line = format!("{{\"command\":[\"sleep\",\"600\"],\"env\":{{\"PAD\":\"{pad}\"}}}}\n");
    // More than the sockets and the broker take at once.
    let (each, stdin) = filter(&env, &["--jsonl"], &line);
    wait_until("one was taken", || (count(&env, "waiting") >= 1).then_some(()));
    broker.signal(Signal::SIGSTOP);
    let all = line.repeat(10_000);
    let writer = std::thread::spawn(move || {
        // It stops reading when it is interrupted.
        let mut stdin = stdin;
        let _ = stdin.write_all(all.as_bytes());
    });
    let mut status = String::new();
    wait_until("it waits for the broker", || {
        // What the filter has read and cannot pass on: it does not use the processor any more.
        let path = format!("/proc/{}/stat", each.id());
        let before = std::mem::replace(&mut status, std::fs::read_to_string(path).ok()?);
        (before == status).then_some(())
    });
    interrupt(&each);
    broker.signal(Signal::SIGCONT);
    let output = each.wait_with_output().expect("it ends");
    writer.join().expect("it ends with its reader");
    assert_eq!(output.status.code(), Some(130));
    assert_eq!((count(&env, "running"), count(&env, "waiting")), (0, 0));
}
