//! Jobs that must not overlap, and their home.

use predicates::prelude::PredicateBooleanExt;
use predicates::str::contains;
use serde_json::Value;

use crate::common::TestEnv;

fn spec_of(env: &TestEnv, job: &str) -> Value {
    let shown = env.run("ucp-submit", &["show", job.trim(), "--json"]);
    let shown: Value = serde_json::from_slice(&shown.stdout).expect("one line");
    shown["spec"].clone()
}

#[test]
fn a_key_without_a_home_is_wrong_usage_that_says_why_and_what_to_do() {
    let env = TestEnv::new();
    let said = || contains("else each half of a cut network").and(contains("'ucp-broker status'"));
    let flags = ["--overlap", "forbid", "--key", "k", "--", "true"];
    env.submit().args(flags).assert().code(64).stdout("").stderr(said());
    let twins = [("UCP_SUBMIT_OVERLAP", "forbid"), ("UCP_SUBMIT_KEY", "k")];
    env.submit().envs(twins).args(["--", "true"]).assert().code(64).stderr(said());
    for (flag, value, words) in [
        ("--overlap", "never", "neither allow nor forbid"),
        ("--on-conflict", "newest", "neither newest-attempt nor oldest-attempt"),
        ("--home", "a b", "'ucp-broker status' names a broker's"),
    ] {
        let said = contains(flag).and(contains(words));
        env.submit().args([flag, value, "--", "true"]).assert().code(64).stderr(said);
    }
}

#[test]
fn flags_and_their_twins_go_into_the_spec_and_the_job_runs_under_a_lease() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _executor = env.executor("one", 1);
    let status = env.run("ucp-broker", &["status", "--json"]).stdout;
    let status: Value = serde_json::from_slice(&status).expect("one line");
    let log = status["log"].as_str().expect("a log");
    let flags = ["--overlap", "forbid", "--home", log, "--on-conflict", "oldest-attempt"];
    let all = [&flags[..], &["--key", "k", "--detach", "--", "true"]].concat();
    let job = String::from_utf8(env.run("ucp-submit", &all).stdout).expect("an id");
    env.submit().args(["wait", job.trim()]).assert().success();
    let spec = spec_of(&env, &job);
    assert_eq!((&spec["overlap"], &spec["home"]), (&"forbid".into(), &log.into()));
    assert_eq!((&spec["on_conflict"], &spec["key"]), (&"oldest-attempt".into(), &"k".into()));
    let facts = String::from_utf8(env.run("ucp-broker", &["facts"]).stdout).expect("text");
    assert!(facts.contains("\"lease_ms\":5000"), "{facts}");

    let twins = [
        ("UCP_SUBMIT_OVERLAP", "forbid"),
        ("UCP_SUBMIT_ON_CONFLICT", "oldest-attempt"),
        ("UCP_SUBMIT_HOME", log),
        ("UCP_SUBMIT_MAX_LOST", "7"),
    ];
    let run = env.submit().envs(twins).args(["--detach", "--", "true"]).assert().success();
    let job = String::from_utf8(run.get_output().stdout.clone()).expect("an id");
    let spec = spec_of(&env, &job);
    assert_eq!((&spec["overlap"], &spec["max_lost"]), (&"forbid".into(), &7.into()));
    assert_eq!((&spec["home"], &spec["on_conflict"]), (&log.into(), &"oldest-attempt".into()));
}

#[test]
fn a_broker_that_is_not_the_home_says_so_and_it_may_be_tried_again() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let flags = ["--home", "north-1f2e3d4c", "--", "true"];
    let said = contains("only broker north-1f2e3d4c may take this job").and(contains("hint: "));
    env.submit().args(flags).assert().code(75).stdout("").stderr(said);
    let output = env.submit().arg("--json").args(flags).assert().code(75).get_output().clone();
    let said = String::from_utf8(output.stderr).expect("text");
    let problem = said.lines().find(|line| line.starts_with('{')).expect("a problem");
    let problem: Value = serde_json::from_str(problem).expect("a problem");
    assert_eq!((&problem["code"], &problem["retryable"]), (&"home-elsewhere".into(), &true.into()));
}
