//! Questions about jobs, and the two orders to them.

use predicates::prelude::PredicateBooleanExt;
use predicates::str::contains;
use serde_json::Value;

use crate::common::{TestEnv, wait_until};

fn detached(env: &TestEnv, arguments: &[&str]) -> String {
    let all = [&["--detach"], arguments].concat();
    let run = env.run("ucp-submit", &all);
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    String::from_utf8(run.stdout).expect("an id").trim().to_owned()
}

fn one(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).expect("one line of JSON")
}

#[test]
fn list_show_and_output_tell_of_a_job_by_the_end_of_its_id() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _executor = env.executor("one", 2);
    let script = "echo out; echo err >&2";
    let job = detached(&env, &["--name", "both", "--", "sh", "-c", script]);
    env.submit().args(["wait", &job]).assert().success();
    let end = &job[24..];
    let listed = env.run("ucp-submit", &["list"]);
    let table = String::from_utf8(listed.stdout).expect("text");
    assert!(table.lines().nth(1).expect("a row").starts_with(end), "{table}");
    assert!(table.contains("succeeded") && table.contains("both"), "{table}");
    let line = one(&env.run("ucp-submit", &["list", "--json", "--limit", "1"]).stdout);
    assert_eq!((&line["type"], &line["job"]), (&"job".into(), &job.as_str().into()));
    let show = one(&env.run("ucp-submit", &["show", end, "--json"]).stdout);
    assert_eq!(show["type"], "show");
    assert_eq!(show["attempts"].as_array().map(Vec::len), Some(1));
    assert_eq!(show["results"][0]["verdict"], "accepted");
    let facts = one(&env.run("ucp-submit", &["show", end, "--json", "--facts-only"]).stdout);
    assert!(facts.get("observed").is_none());
    let page = contains("state       succeeded").and(contains("ATTEMPT")).and(contains("accepted"));
    env.submit().args(["show", end]).assert().success().stdout(page);
    env.submit().args(["output", end]).assert().success().stdout("out\n").stderr("");
    let mut stderr = env.submit();
    stderr.args(["output", end, "--stderr"]).assert().success().stdout("err\n").stderr("");
    let follow = ["output", end, "--follow"];
    env.submit().args(follow).assert().success().stdout("out\n");
}

#[test]
fn wait_tells_each_end_and_whether_all_succeeded() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _executor = env.executor("one", 2);
    let good = detached(&env, &["--", "true"]);
    let bad = detached(&env, &["--", "sh", "-c", "exit 9"]);
    env.submit().args(["wait", &good]).assert().code(0);
    let both = env.run("ucp-submit", &["wait", &good, &bad]);
    assert_eq!(both.status.code(), Some(1));
    let lines: Vec<_> = both.stdout.split(|byte| *byte == b'\n').take(2).map(one).collect();
    assert_eq!((&lines[0]["exit"], &lines[1]["exit"]), (&0.into(), &9.into()));
    let held = detached(&env, &["--", "sleep", "600"]);
    let mut short = env.submit();
    let said = contains("outcome unknown: --timeout ran out").and(contains(&*held));
    short.args(["wait", &held, "--timeout", "50ms"]).assert().code(126).stdout("").stderr(said);
    env.submit().args(["cancel", &held]).assert().success();
}

#[test]
fn a_cancelled_job_ends_and_runs_again_when_told_so() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _executor = env.executor("one", 2);
    let go = env.path("go").display().to_string();
    let script = format!("test -e {go} || sleep 600");
    let job = detached(&env, &["--", "sh", "-c", &script]);
    wait_until("it runs", || {
        let listed = env.run("ucp-submit", &["list", "--state", "running", "--json"]);
        (!listed.stdout.is_empty()).then_some(())
    });
    env.submit().args(["cancel", &job]).assert().success().stdout(contains("cancelled"));
    let result = one(&env.run("ucp-submit", &["wait", &job]).stdout);
    assert_eq!(result["state"], "cancelled");
    let said = contains("cannot cancel: ").and(contains("hint: "));
    env.submit().args(["cancel", &job]).assert().code(1).stdout("").stderr(said);
    std::fs::write(&go, "").expect("a file");
    env.submit().args(["rerun", &job]).assert().success();
    let result = one(&env.run("ucp-submit", &["wait", &job]).stdout);
    assert_eq!((&result["state"], &result["gen"]), (&"succeeded".into(), &2.into()));
}

#[test]
fn why_names_what_a_job_waits_for() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _executor = env.executor("one", 2);
    let job = detached(&env, &["--needs", "label=gpu", "--", "true"]);
    env.submit().args(["why", &job]).assert().success().stdout(contains("gpu"));
    let line = one(&env.run("ucp-submit", &["why", &job, "--json"]).stdout);
    assert_eq!((&line["type"], &line["state"]), (&"why".into(), &"waiting".into()));
}

#[test]
fn the_output_of_a_running_job_can_be_followed_from_its_beginning() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _executor = env.executor("one", 2);
    let go = env.path("go").display().to_string();
    let script = format!("echo first; until test -e {go}; do sleep 0.01; done; echo last");
    let job = detached(&env, &["--", "sh", "-c", &script]);
    wait_until("it runs", || {
        let listed = env.run("ucp-submit", &["list", "--state", "running", "--json"]);
        (!listed.stdout.is_empty()).then_some(())
    });
    let said = contains("has not ended").and(contains("hint: '--follow'"));
    env.submit().args(["output", &job]).assert().code(1).stdout("").stderr(said);
    std::fs::write(&go, "").expect("a file");
    env.submit().args(["output", "--follow", &job]).assert().success().stdout("first\nlast\n");
}
