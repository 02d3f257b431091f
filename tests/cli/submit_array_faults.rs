//! Arrays while things break: brokers and executors that are killed, signals, readers that go.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::Value;

use crate::common::{TestEnv, wait_until};

fn parsed(bytes: &[u8]) -> Vec<Value> {
    let text = String::from_utf8(bytes.to_vec()).expect("text");
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

fn array(env: &TestEnv, flags: &[&str], script: &str) -> Child {
    let mut array = env.command("ucp-submit");
    let array = array.args(flags).args(["--", "sh", "-c", script]).stdin(Stdio::null());
    array.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts")
}

fn signal(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
    nix::sys::signal::kill(pid, signal).expect("it is there");
}

fn indices(lines: &[Value]) -> BTreeSet<u64> {
    lines.iter().map(|line| line["index"].as_u64().expect("a number")).collect()
}

/// Counts the elements in a state, over all arrays.
fn count(env: &TestEnv, state: &str) -> u64 {
    let rows = parsed(&env.run("ucp-submit", &["list", "--json"]).stdout);
    rows.iter().filter_map(|row| row["elements"][state].as_u64()).sum()
}

#[test]
fn a_broker_killed_in_the_middle_changes_no_result_and_repeats_no_run() {
    for flags in [&["--array", "1-400"][..], &["--array", "1-400", "--keep-order"]] {
        let env = TestEnv::new();
        let mut broker = env.broker();
        let _executors = [env.executor("one", 2), env.executor("two", 2)];
        let runs = env.path("runs").display().to_string();
        let array = array(&env, flags, &format!("echo {{}} >> {runs}; echo {{}}"));
        for seen in [20, 150, 300] {
            wait_until("some elements ran", || (env.lines("runs").len() >= seen).then_some(()));
            broker.kill();
            broker = env.broker();
        }
        let output = array.wait_with_output().expect("it ends");
        let lines = parsed(&output.stdout);
        assert_eq!((lines.len(), indices(&lines).len()), (400, 400));
        for line in &lines {
            assert_eq!(line["state"], "succeeded", "{line}");
            assert_eq!(line["stdout"], format!("{}\n", line["index"]));
        }
        if flags.contains(&"--keep-order") {
            assert!(lines.is_sorted_by_key(|line| line["index"].as_u64()));
        }
        let ran: BTreeSet<_> = env.lines("runs").into_iter().collect();
        assert_eq!((env.lines("runs").len(), ran.len()), (400, 400));
        assert_eq!(output.status.code(), Some(0));
        let audit = env.run("ucp-broker", &["audit"]);
        assert!(audit.status.success(), "{}", String::from_utf8_lossy(&audit.stdout));
    }
}

#[test]
fn an_executor_killed_in_the_middle_takes_no_element_with_it() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let first = env.executor("one", 2);
    let (runs, go) = (env.path("runs").display().to_string(), env.path("go"));
    let script = format!(
        "echo {{}} >> {runs}; test {{}} -le 40 || until test -e {}; do sleep 0.01; done; echo {{}}",
        go.display()
    );
    let array = array(&env, &["--array", "1-100"], &script);
    wait_until("two hold both slots", || (env.lines("runs").len() >= 42).then_some(()));
    let _second = env.executor("two", 2);
    first.kill();
    std::fs::write(go, "").expect("a file");
    let output = array.wait_with_output().expect("it ends");
    let lines = parsed(&output.stdout);
    assert_eq!((lines.len(), indices(&lines).len()), (100, 100));
    assert!(lines.iter().all(|line| line["state"] == "succeeded"));
    assert_eq!(output.status.code(), Some(0));
    let executors: BTreeSet<_> = lines.iter().map(|line| line["executor"].to_string()).collect();
    assert_eq!(executors.len(), 2, "{executors:?}");
    // What had begun there began once more, and nothing else.
    let ran = env.lines("runs").len();
    assert!((100..=102).contains(&ran), "{ran} runs");
}

#[test]
fn ctrl_c_cancels_what_has_not_ended_and_term_leaves_it() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _executor = env.executor("one", 2);
    let go = env.path("go").display().to_string();
    let script = format!("test {{}} = 1 || until test -e {go}; do sleep 0.01; done");
    let cancelled = array(&env, &["--array", "1-50"], &script);
    wait_until("one ended", || (count(&env, "succeeded") == 1).then_some(()));
    signal(&cancelled, Signal::SIGINT);
    let output = cancelled.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.contains("cancelling the array; press Ctrl-C again"), "{said}");
    let lines = parsed(&output.stdout);
    assert_eq!((lines.len(), indices(&lines).len()), (50, 50));
    let well = lines.iter().filter(|line| line["state"] == "succeeded").count();
    assert_eq!((well, lines.iter().filter(|line| line["state"] == "cancelled").count()), (1, 49));
    assert_eq!((count(&env, "running"), count(&env, "waiting")), (0, 0));

    let left = array(&env, &["--array", "1-5"], &script);
    wait_until("another ended", || (count(&env, "succeeded") == 2).then_some(()));
    signal(&left, Signal::SIGTERM);
    let output = left.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(126), "{said}");
    assert!(said.contains("outcome unknown: detached, the array goes on"), "{said}");
    let hint = said.lines().find_map(|line| line.strip_prefix("hint: 'ucp-submit wait "));
    let job = hint.and_then(|rest| rest.split('\'').next()).expect("it says how to go on");
    std::fs::write(&go, "").expect("a file");
    let waited = env.submit().args(["wait", job]).assert().success();
    assert_eq!(parsed(&waited.get_output().stdout).len(), 5);
}

#[test]
fn a_reader_that_goes_away_ends_the_command_quietly() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _executor = env.executor("one", 2);
    let mut array = array(&env, &["--array", "1-100000"], "echo {}");
    let mut lines = BufReader::new(array.stdout.take().expect("it is piped")).lines();
    lines.next().expect("a line").expect("text");
    drop(lines);
    let output = array.wait_with_output().expect("it ends");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn a_slow_reader_gets_every_line() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _executor = env.executor("one", 4);
    // Lines of 8 KiB: no pipe holds many of them.
    let mut array = array(&env, &["--array", "1-300"], "printf '%8000d' {}");
    wait_until("all have ended", || (count(&env, "succeeded") == 300).then_some(()));
    assert_eq!(array.try_wait().expect("a child of ours"), None, "nobody has read");
    let output = array.wait_with_output().expect("it ends");
    let lines = parsed(&output.stdout);
    assert_eq!((lines.len(), indices(&lines).len()), (300, 300));
    assert!(lines.iter().all(|line| {
        let number = line["stdout"].as_str().and_then(|text| text.trim().parse::<u64>().ok());
        number == line["index"].as_u64()
    }));
    assert_eq!(output.status.code(), Some(0));
}
