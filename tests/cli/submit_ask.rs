//! Questions about jobs, and the two orders to them.

use predicates::prelude::PredicateBooleanExt;
use predicates::str::contains;
use serde_json::Value;
use ucp::proto::isolation::{Enforcement, Mechanism};
use ucp::proto::result::{JobResult, OutputFile};

use crate::common::{TestEnv, wait_until};
use crate::peer::{Played, hello, wrote};

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
    let alone = detached(&env, &["--needs", "label=gpu", "--name", "train", "--", "true"]);
    let none = contains("waiting (train)\n").and(contains("no executor is connected"));
    env.submit().args(["why", &alone]).assert().success().stdout(none);
    let _executor = env.executor("one", 2);
    env.submit().args(["why", &alone]).assert().success().stdout(contains("needs label gpu"));
    let line = one(&env.run("ucp-submit", &["why", &alone, "--json"]).stdout);
    assert_eq!((&line["type"], &line["state"]), (&"why".into(), &"waiting".into()));
    assert_eq!(line["name"], "train");
    let behind = detached(&env, &["--after", &alone, "--", "true"]);
    let other = contains(format!("it waits for job {alone}, which is waiting"));
    env.submit().args(["why", &behind]).assert().success().stdout(other);
    let many = detached(&env, &["--needs", "cores=3", "--", "true"]);
    let cores = contains("needs more cores than its 2 slots");
    env.submit().args(["why", &many]).assert().success().stdout(cores);
}

#[test]
fn why_tells_where_a_job_runs_and_how_one_ended() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _executor = env.executor("one", 1);
    let held = detached(&env, &["--", "sleep", "600"]);
    wait_until("it runs", || {
        let line = one(&env.run("ucp-submit", &["why", &held, "--json"]).stdout);
        let running = line["running"][0].clone();
        running["executor"].as_str().filter(|name| name.starts_with("one-"))?;
        running["since"].as_str()?;
        running["heard_ms"].as_u64()
    });
    let place =
        contains("running\n  it runs on one-").and(contains(" since 2")).and(contains("heard"));
    env.submit().args(["why", &held]).assert().success().stdout(place);
    let next = detached(&env, &["--", "true"]);
    let busy = contains("all its slots are taken: 1 attempt on 1 slots");
    env.submit().args(["why", &next]).assert().success().stdout(busy);
    env.submit().args(["cancel", &held]).assert().success();
    env.submit().args(["wait", &next]).assert().success();
    let ended = contains("succeeded\n  it ended with status 0 on one-");
    env.submit().args(["why", &next]).assert().success().stdout(ended);
    env.submit().args(["why", &held]).assert().success().stdout(contains("cancelled by a client"));
}

#[test]
fn a28_why_tells_of_a_parked_job_what_befell_it_and_what_releases_it() {
    let env = TestEnv::new();
    let _broker = env.broker_with(&["--reconnect-grace", "1ms"]);
    let job = detached(&env, &["--max-lost", "1", "--name", "poison", "--", "x"]);
    let mut executor = Played::join(&env.socket(), hello("played", 1));
    executor.start();
    drop(executor);
    wait_until("it is parked", || {
        let line = one(&env.run("ucp-submit", &["why", &job, "--json"]).stdout);
        (line["state"] == "parked").then_some(())
    });
    let told = contains("parked (poison)")
        .and(contains(format!("'ucp-submit rerun {job}' releases it")))
        .and(contains("on played-00000001 is lost: "));
    env.submit().args(["why", &job]).assert().success().stdout(told);
    let page = contains("name        poison").and(contains("lost")).and(contains("parked"));
    env.submit().args(["show", &job]).assert().success().stdout(page);
    let waited = contains("\"state\":\"parked\"");
    env.submit().args(["wait", &job]).assert().code(1).stdout(waited);
}

#[test]
fn show_and_executors_tell_of_isolation_outputs_and_errors() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let mut said = hello("played", 1);
    said.capability.isolation.set(Mechanism::ProcessGroup, Enforcement::Enforced);
    said.capability.isolation.set(Mechanism::CgroupKill, Enforcement::Refused);
    let mut executor = Played::join(&env.socket(), said);
    let table = env.run("ucp-broker", &["executors"]).stdout;
    let table = String::from_utf8(table).expect("text");
    assert!(table.contains("isolation"), "{table}");
    assert!(table.contains("native+wasi") && table.contains("without cgroup-kill"), "{table}");
    let line = one(&env.run("ucp-broker", &["executors", "--json"]).stdout);
    assert_eq!(line["incarnation"], serde_json::json!({"boot": "boot", "life": 7}));
    assert_eq!(line["capability"]["isolation"]["cgroup-kill"], "refused");
    assert!(table.contains("lost in") && table.contains("  local  "), "{table}");
    assert_eq!((&line["state"], &line["local"]), (&"alive".into(), &true.into()));
    assert!(line["lost_in_ms"].as_u64().is_some_and(|left| left <= 5_000), "{line}");
    assert!(line.get("equivocations").is_none(), "{line}");
    let job = detached(&env, &["--out", "a", "--", "x"]);
    let order = executor.start();
    let mut result = JobResult {
        error: Some("output \"a\" was not made".into()),
        unproven: Some("whether its processes are gone".into()),
        ..wrote(b"", b"")
    };
    let blob = ucp::proto::id::Digest::of(b"x");
    result.outputs.insert("b".into(), OutputFile { size: 1, blob, executable: true });
    result.isolation.set(Mechanism::LandlockFiles, Enforcement::Absent);
    executor.report(&order, result);
    let page = contains("error       output \"a\" was not made")
        .and(contains("unproven    whether its processes are gone"))
        .and(contains("isolation   landlock-files absent"))
        .and(contains("output      b, 1 bytes, executable"));
    env.submit().args(["show", &job]).assert().success().stdout(page);
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
