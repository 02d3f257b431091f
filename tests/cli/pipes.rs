//! Readers that go away, or read slowly: we end quietly, and hold little.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdout, Stdio};

use crate::common::{TestEnv, wait_until};

/// More than any buffer between a job and its reader.
const LONG_BYTES: usize = 48 << 20;
/// What a client may hold at the most: itself, and what is bounded by its limits.
const MEMORY_KB_MAX: u64 = 96 << 10;

fn started(env: &TestEnv, arguments: &[&str]) -> (Child, ChildStdout) {
    let mut submit = env.command("ucp-submit");
    submit.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = submit.spawn().expect("it starts");
    let stdout = child.stdout.take().expect("it is piped");
    (child, stdout)
}

fn peak_kb(child: &Child) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).expect("it runs");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    peak.trim().trim_end_matches(" kB").parse().expect("a number")
}

#[test]
fn a_reader_that_has_gone_ends_every_command_quietly() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _executor = env.executor("one", 2);
    let job = env.run("ucp-submit", &["--detach", "--", "echo", "x"]).stdout;
    let job = String::from_utf8(job).expect("an id").trim().to_owned();
    env.submit().args(["wait", &job]).assert().success();
    for arguments in [
        &["list"][..],
        &["list", "--json"],
        &["show", &job],
        &["why", &job],
        &["wait", &job],
        &["output", &job],
        &["--json", "--", "true"],
        &["--detach", "--", "true"],
        &["--help"],
    ] {
        let (child, stdout) = started(&env, arguments);
        drop(stdout);
        let output = child.wait_with_output().expect("it ends");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{arguments:?}");
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
    }
}

#[test]
fn a_status_reader_that_has_gone_changes_nothing() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _executor = env.executor("one", 2);
    let submit = env.command("ucp-submit");
    let mut shell = std::process::Command::new("sh");
    // Descriptor 3 is a pipe whose reader has ended.
    shell.args(["-c", "{ \"$0\" \"$@\"; echo $? >code; } 3>&1 >out | : "]);
    shell.arg(submit.get_program()).args(["--status-fd", "3", "--", "sh", "-c", "echo x; exit 4"]);
    shell.env("XDG_RUNTIME_DIR", env.path("run")).current_dir(env.path(""));
    assert!(shell.status().expect("it starts").success());
    wait_until("it has ended", || (!env.lines("code").is_empty()).then_some(()));
    assert_eq!((env.lines("code"), env.lines("out")), (vec!["4".into()], vec!["x".into()]));
}

#[test]
fn a_slow_reader_costs_no_memory() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _executor = env.executor("one", 2);
    let script = format!("head -c {LONG_BYTES} /dev/zero");
    let done = env.path("done").display().to_string();
    let whole = format!("{script}; touch {done}");
    let (child, mut stdout) = started(&env, &["--", "sh", "-c", &whole]);
    let mut first = [0; 1];
    stdout.read_exact(&mut first).expect("output");
    // The job is not held up by us: it ends while next to nothing was read.
    wait_until("the job has written all", || env.path("done").exists().then_some(()));
    assert!(peak_kb(&child) < MEMORY_KB_MAX, "{} kB", peak_kb(&child));
    let mut size = 1;
    let mut piece = vec![0; 1 << 20];
    loop {
        match stdout.read(&mut piece).expect("output") {
            0 => break,
            length => size += length,
        }
        if size < LONG_BYTES {
            assert!(peak_kb(&child) < MEMORY_KB_MAX, "{} kB", peak_kb(&child));
        }
    }
    assert_eq!(size, LONG_BYTES);
    assert!(child.wait_with_output().expect("it ends").status.success());
}

#[test]
fn a_slow_reader_of_many_results_costs_no_memory() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _executor = env.executor("one", 4);
    let mut each = env.command("ucp-submit");
    each.args(["--each", "--", "sh", "-c", "head -c 30000 /dev/zero | tr '\\0' x"]);
    each.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut each = each.spawn().expect("it starts");
    let mut stdin = each.stdin.take().expect("it is piped");
    for number in 0..400 {
        stdin.write_all(format!("{number}\n").as_bytes()).expect("written");
    }
    drop(stdin);
    wait_until("all have ended", || {
        let status = env.run("ucp-broker", &["status", "--json"]).stdout;
        let status: serde_json::Value = serde_json::from_slice(&status).ok()?;
        (status["jobs"]["succeeded"] == 400).then_some(())
    });
    assert!(peak_kb(&each) < MEMORY_KB_MAX, "{} kB", peak_kb(&each));
    let stdout = BufReader::new(each.stdout.take().expect("it is piped"));
    assert_eq!(stdout.lines().count(), 400);
    assert!(each.wait().expect("it ends").success());
}
