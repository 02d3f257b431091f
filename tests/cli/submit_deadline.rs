//! Deadlines with real processes: what waits expires, what runs is stopped or finishes.

use nix::sys::signal::kill;
use nix::unistd::Pid;
use predicates::prelude::PredicateBooleanExt;
use predicates::str::contains;
use serde_json::Value;

use crate::common::{TestEnv, wait_until};

#[test]
fn a_job_that_nobody_takes_expires_and_says_so_everywhere() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let said = contains(": expired: its deadline of 200ms is over\n").count(1);
    let deadline = ["--deadline", "200ms", "--", "true"];
    env.submit().args(deadline).assert().code(125).stdout("").stderr(said);
    let rows = env.run("ucp-submit", &["list", "--state", "expired", "--json"]);
    let row: Value = serde_json::from_slice(&rows.stdout).expect("one row");
    assert_eq!(row["state"], "expired");
    let job = row["job"].as_str().expect("an id");
    env.submit().args(["why", job]).assert().success().stdout(contains("its deadline of 200ms"));
    let shown = env.run("ucp-submit", &["show", job, "--json"]);
    let shown: Value = serde_json::from_slice(&shown.stdout).expect("one line");
    assert_eq!(shown["spec"]["deadline"], "200ms");
    assert_eq!((&shown["state"], &shown["attempts"]), (&"expired".into(), &Value::Array(vec![])));
    let late = ["--deadline", "1h", "--detach", "--", "true"];
    let waiting = env.run("ucp-submit", &late).stdout;
    let waiting = String::from_utf8(waiting).expect("an id");
    let left = contains("its deadline of 1h is over in").and(contains("then it expires"));
    env.submit().args(["why", waiting.trim()]).assert().success().stdout(left);
}

#[test]
fn a_job_that_runs_is_stopped_at_its_deadline_if_it_says_so() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _executor = env.executor("one", 1);
    let script = "echo $$ > pid.new; mv pid.new \"$0\"; exec sleep 600";
    let pid = env.path("pid");
    let pid = pid.to_str().expect("a path of ours is text");
    let flags = ["--deadline", "5s", "--after-deadline", "stop", "--", "sh", "-c", script, pid];
    let said = contains("expired: its deadline of 5s is over; it was stopped");
    env.submit().args(flags).assert().code(125).stdout("").stderr(said);
    let pid: i32 = env.lines("pid")[0].parse().expect("it ran");
    wait_until("the job is gone", || kill(Pid::from_raw(pid), None).is_err().then_some(()));
}

#[test]
fn a_job_that_runs_may_finish_after_its_deadline() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _executor = env.executor("one", 1);
    let go = env.path("go").display().to_string();
    let script = format!("until test -e {go}; do sleep 0.01; done; echo done");
    let flags = ["--detach", "--deadline", "1s", "--", "sh", "-c", &script];
    let job = String::from_utf8(env.run("ucp-submit", &flags).stdout).expect("an id");
    wait_until("its deadline is over", || {
        let why = env.run("ucp-submit", &["why", job.trim()]).stdout;
        let over = "its deadline of 1s is over: it goes on";
        String::from_utf8_lossy(&why).contains(over).then_some(())
    });
    std::fs::write(env.path("go"), "").expect("a file");
    let done = contains(r#""state":"succeeded""#);
    env.submit().args(["wait", job.trim()]).assert().success().stdout(done);
}

#[test]
fn without_a_broker_a_deadline_holds_as_well() {
    let env = TestEnv::new();
    let spec = r#"{"command":["sleep","600"],"deadline":"200ms","after_deadline":"stop"}"#;
    let run = |spec: &str| {
        let mut command = assert_cmd::Command::from_std(env.command("ucp-exec"));
        command.timeout(crate::common::DEADLINE);
        command.arg("run").write_stdin(spec.to_owned()).assert()
    };
    let expired = || contains(r#""state":"expired""#);
    let said = || contains("expired: its deadline is over");
    run(spec).code(125).stdout(expired()).stderr(said());
    let spec = r#"{"command":["false"],"deadline":"50ms","retries":9}"#;
    run(spec).code(125).stdout(expired()).stderr(said());
    let spec = r#"{"command":["sleep","0.2"],"deadline":"50ms"}"#;
    run(spec).code(0).stdout(contains(r#""state":"succeeded""#));
}
