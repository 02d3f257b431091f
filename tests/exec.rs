//! The executor with real processes and a real broker: what jobs see, what they leave, how the
//! executor ends.

mod common;

#[path = "exec/checkpoints.rs"]
mod checkpoints;
#[path = "exec/ending.rs"]
mod ending;
#[path = "exec/files.rs"]
mod files;
#[path = "exec/garbage.rs"]
mod garbage;
#[path = "exec/isolation.rs"]
mod isolation;
#[path = "exec/leases.rs"]
mod leases;
#[path = "exec/output.rs"]
mod output;
#[path = "exec/processes.rs"]
mod processes;
#[path = "exec/run.rs"]
mod run;
#[path = "exec/start.rs"]
mod start;
#[path = "exec/wasm.rs"]
mod wasm;

use std::path::PathBuf;

use common::{Daemon, TestEnv, wait_until};
use serde_json::Value;

/// Processes of this machine whose environment has `TEST_MARK=mark`.
fn marked(mark: &str) -> Vec<i32> {
    let wanted = format!("TEST_MARK={mark}");
    let listed = std::fs::read_dir("/proc").expect("/proc is mounted").flatten();
    let pids = listed.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let has = |pid: &i32| {
        let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environ.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes())
    };
    pids.filter(has).collect()
}

/// A mark that no other test of this or any other run has.
fn mark(env: &TestEnv) -> String {
    env.path("").display().to_string()
}

/// Submits a shell script without waiting for it; gives the job's id.
fn submit(env: &TestEnv, arguments: &[&str], script: &str) -> String {
    let mark = format!("TEST_MARK={}", mark(env));
    let fixed = ["--detach", "--env", &mark];
    let command = ["--", "sh", "-c", script];
    let output = env.run("ucp-submit", &[&fixed[..], arguments, &command[..]].concat());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "the job is taken: {said}");
    String::from_utf8(output.stdout).expect("an id").trim().to_owned()
}

/// Waits for a job's end; gives its result line.
fn result(env: &TestEnv, job: &str) -> Value {
    let output = env.run("ucp-submit", &["wait", "--json", job]);
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().next().unwrap_or_else(|| {
        panic!("no result line; stderr: {}", String::from_utf8_lossy(&output.stderr))
    });
    serde_json::from_str(line).expect("a line of JSON")
}

/// Everything about a job.
fn show(env: &TestEnv, job: &str) -> Value {
    let output = env.run("ucp-submit", &["show", "--json", job]);
    serde_json::from_slice(&output.stdout).expect("a line of JSON")
}

/// A script that says in a file that it runs, and waits until another file is there.
fn held(env: &TestEnv, rest: &str) -> String {
    let (up, go) = (env.path("up"), env.path("go"));
    format!(
        "echo up >>{}; until [ -e {} ]; do sleep 0.01; done; {rest}",
        up.display(),
        go.display()
    )
}

fn wait_for_lines(env: &TestEnv, name: &str, count: usize) {
    wait_until(&format!("{name} has {count} lines"), || {
        (env.lines(name).len() >= count).then_some(())
    });
}

fn release(env: &TestEnv) {
    std::fs::write(env.path("go"), "").expect("room");
}

/// The guard of an executor.
fn guard_of(executor: &Daemon) -> i32 {
    only_child(i32::try_from(executor.pid()).expect("a process id"))
}

/// The spawner of an executor.
fn spawner_of(executor: &Daemon) -> i32 {
    only_child(guard_of(executor))
}

fn only_child(pid: i32) -> i32 {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.expect("it lives");
    let child = children.split_whitespace().next().expect("a child");
    child.parse().expect("a process id")
}

fn files(env: &TestEnv, directory: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(env.path(directory)).expect("a directory").flatten();
    entries.map(|entry| entry.path()).collect()
}

/// Bytes that are no text and do not repeat soon.
fn noise(count: u32) -> Vec<u8> {
    let byte = |n: u32| n.wrapping_mul(2_654_435_761).to_be_bytes()[1];
    (0..count).map(byte).collect()
}
