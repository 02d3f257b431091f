//! Arrays: one job of many elements, each with a result line, a name and a fate of its own.

use std::collections::BTreeMap;
use std::process::Stdio;

use predicates::prelude::PredicateBooleanExt;
use predicates::str::contains;
use serde_json::{Value, json};

use crate::common::{TestEnv, wait_until};
use crate::peer::Http;

fn parsed(bytes: &[u8]) -> Vec<Value> {
    let text = String::from_utf8(bytes.to_vec()).expect("text");
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

fn indices(lines: &[Value]) -> Vec<u64> {
    lines.iter().map(|line| line["index"].as_u64().expect("a number")).collect()
}

fn by_index(lines: &[Value]) -> BTreeMap<u64, &Value> {
    let lines: BTreeMap<_, _> = indices(lines).into_iter().zip(lines).collect();
    lines
}

fn detached(env: &TestEnv, arguments: &[&str]) -> String {
    let run = env.run("ucp-submit", &[&["--detach", "--array"], arguments].concat());
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let printed = String::from_utf8(run.stdout).expect("an id");
    assert_eq!(printed.lines().count(), 1, "the id alone: {printed}");
    printed.trim().to_owned()
}

fn shown(env: &TestEnv, job: &str) -> Value {
    let shown = env.run("ucp-submit", &["show", job, "--json"]);
    assert!(shown.status.success(), "{}", String::from_utf8_lossy(&shown.stderr));
    parsed(&shown.stdout).remove(0)
}

fn count(env: &TestEnv, job: &str, state: &str) -> u64 {
    shown(env, job)["elements"][state]["count"].as_u64().unwrap_or(0)
}

/// A script that waits for a file, and that file.
fn held(env: &TestEnv) -> (String, std::path::PathBuf) {
    let go = env.path("go");
    (format!("until test -e {}; do sleep 0.01; done", go.display()), go)
}

#[test]
fn each_element_has_a_result_line_with_its_number() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _executor = env.executor("one", 2);
    let array = ["--array", "1-5", "--", "sh", "-c", "echo {}:$UCP_JOB_INDEX"];
    let ran = env.submit().args(array).assert().success().stderr("");
    let lines = parsed(&ran.get_output().stdout);
    assert_eq!(lines.len(), 5);
    let name = lines[0]["job"].as_str().expect("a name").split_once('/').expect("ID/ELEMENT");
    for (index, line) in by_index(&lines) {
        assert_eq!((&line["type"], &line["state"]), (&json!("result"), &json!("succeeded")));
        assert_eq!(line["job"], format!("{}/{index}", name.0));
        assert_eq!(line["stdout"], format!("{index}:{index}\n"));
        assert_eq!(line["attempt"][2], index, "{line}");
        assert_eq!(line["final"], true);
    }
    assert_eq!(by_index(&lines).into_keys().collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
}

#[test]
fn another_text_may_stand_for_the_number() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _executor = env.executor("one", 2);
    let array = ["-I", "%", "--array", "3,7", "--keep-order", "--", "echo", "%-{}-%"];
    let ran = env.submit().args(array).assert().success().stderr("");
    let lines = parsed(&ran.get_output().stdout);
    let printed: Vec<_> = lines.iter().map(|line| &line["stdout"]).collect();
    assert_eq!(printed, ["3-{}-3\n", "7-{}-7\n"]);
}

#[test]
fn results_keep_the_order_of_the_numbers_if_asked() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _executor = env.executor("one", 4);
    let (wait, go) = held(&env);
    let script = format!("test {{}} != 1 || {wait}");
    let mut array = env.command("ucp-submit");
    let array = array.args(["--array", "1,5,9-12", "--keep-order", "--", "sh", "-c", &script]);
    let array = array.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let array = array.spawn().expect("it starts");
    wait_until("all but the first have ended", || {
        let rows = parsed(&env.run("ucp-submit", &["list", "--json"]).stdout);
        (rows.first()?["elements"]["succeeded"] == 5).then_some(())
    });
    std::fs::write(go, "").expect("a file");
    let output = array.wait_with_output().expect("it ends");
    assert_eq!(indices(&parsed(&output.stdout)), [1, 5, 9, 10, 11, 12]);
    assert_eq!((output.stderr.as_slice(), output.status.code()), (&b""[..], Some(0)));
}

#[test]
fn a_detached_array_is_waited_for_and_each_element_tells_of_itself() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _executor = env.executor("one", 2);
    let job = detached(&env, &["1-8", "--name", "eight", "--", "echo", "{}"]);
    let waited = env.submit().args(["wait", &job]).assert().success().stderr("");
    let lines = parsed(&waited.get_output().stdout);
    assert_eq!(by_index(&lines).into_keys().collect::<Vec<_>>(), Vec::from_iter(1..=8));
    let seventh = format!("{job}/7");
    let waited = env.submit().args(["wait", &seventh]).assert().success();
    assert_eq!(parsed(&waited.get_output().stdout)[0]["job"], seventh);
    let whole = shown(&env, &job);
    assert_eq!(whole["elements"], json!({"succeeded": {"count": 8, "elements": "1-8"}}));
    assert_eq!((&whole["job"], &whole["state"]), (&json!(job), &json!("succeeded")));
    assert_eq!(whole["attempts"], json!([]), "they are shown with each element");
    let element = shown(&env, &seventh);
    assert_eq!((&element["job"], &element["state"]), (&json!(seventh), &json!("succeeded")));
    assert_eq!(element["attempts"].as_array().map(Vec::len), Some(1));
    assert_eq!(element["results"][0]["verdict"], "accepted");
    assert_eq!(element["outcome"]["stdout"], "7\n");
    let page = contains("elements    8 succeeded: 1-8").and(contains("eight"));
    env.submit().args(["show", &job]).assert().success().stdout(page);
    let page = contains(&*seventh).and(contains("ATTEMPT")).and(contains("accepted"));
    env.submit().args(["show", &seventh]).assert().success().stdout(page);
    let row = contains("eight [8 succeeded]");
    env.submit().arg("list").assert().success().stdout(row);
    let short = format!("{}/7", &job[24..]);
    env.submit().args(["output", &short]).assert().success().stdout("7\n").stderr("");
    let why = contains("succeeded (eight)\n").and(contains("it ended with status 0 on one-"));
    env.submit().args(["why", &short]).assert().success().stdout(why);
    let why = contains("8 elements succeeded");
    env.submit().args(["why", &job]).assert().success().stdout(why);
    let said = contains("is an array").and(contains(format!("hint: name one, as in {job}/1")));
    env.submit().args(["output", &job]).assert().code(65).stdout("").stderr(said);
    let none = format!("{job}/9");
    for verb in ["show", "why", "output", "wait", "cancel", "rerun"] {
        let said = contains(&*none);
        env.submit().args([verb, &none]).assert().code(66).stdout("").stderr(said);
    }
}

#[test]
fn one_element_is_cancelled_and_run_again_by_itself() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _executor = env.executor("one", 2);
    let (wait, go) = held(&env);
    let job = detached(&env, &["1-9", "--", "sh", "-c", &wait]);
    wait_until("some run", || (count(&env, &job, "running") >= 2).then_some(()));
    // One that waits, and one that runs.
    for element in [7, 1] {
        let name = format!("{job}/{element}");
        let ran = env.submit().args(["cancel", &name]).assert().success();
        let line = parsed(&ran.get_output().stdout).remove(0);
        assert_eq!((&line["job"], &line["state"]), (&json!(name), &json!("cancelled")));
        let told = parsed(&env.run("ucp-submit", &["wait", &name]).stdout).remove(0);
        assert_eq!((&told["job"], &told["state"]), (&json!(name), &json!("cancelled")));
        assert_eq!(told["index"], element);
    }
    let cancelled = &shown(&env, &job)["elements"]["cancelled"];
    assert_eq!(*cancelled, json!({"count": 2, "elements": "1,7"}));
    let why = contains("cancelled").and(contains("cancelled by a client"));
    env.submit().args(["why", &format!("{job}/7")]).assert().success().stdout(why);
    let again = format!("{job}/7");
    env.submit().args(["cancel", &again]).assert().code(1).stderr(contains("has ended: cancelled"));
    env.submit().args(["rerun", &again]).assert().success().stdout(contains("waiting"));
    let said = contains("has not ended");
    env.submit().args(["rerun", &format!("{job}/8")]).assert().code(1).stdout("").stderr(said);
    std::fs::write(go, "").expect("a file");
    let waited = env.run("ucp-submit", &["wait", &job]);
    assert_eq!(waited.status.code(), Some(1), "one was cancelled");
    for (index, line) in by_index(&parsed(&waited.stdout)) {
        let expected = if index == 1 { "cancelled" } else { "succeeded" };
        assert_eq!(line["state"], expected, "{line}");
        assert_eq!(line["gen"], if index == 7 { 2 } else { 1 }, "{line}");
    }
}

#[test]
fn a_whole_array_is_cancelled_and_run_again() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _executor = env.executor("one", 2);
    let (wait, go) = held(&env);
    let script = format!("test {{}} = 3 || {wait}");
    let job = detached(&env, &["1-9", "--", "sh", "-c", &script]);
    let ran = |state| wait_until("they do", || (count(&env, &job, state) > 0).then_some(()));
    ran("running");
    let said = contains("has not ended");
    env.submit().args(["rerun", &job]).assert().code(1).stdout("").stderr(said);
    env.submit().args(["cancel", &format!("{job}/1")]).assert().success();
    ran("succeeded");
    env.submit().args(["cancel", &job]).assert().success().stdout(contains("cancelled"));
    let waited = env.run("ucp-submit", &["wait", &job]);
    assert_eq!(waited.status.code(), Some(1));
    for (index, line) in by_index(&parsed(&waited.stdout)) {
        assert_eq!(line["state"], if index == 3 { "succeeded" } else { "cancelled" });
    }
    assert_eq!(shown(&env, &job)["state"], "cancelled");
    std::fs::write(go, "").expect("a file");
    // All have ended, so all begin again: also what had succeeded.
    env.submit().args(["rerun", &job]).assert().success();
    let waited = env.submit().args(["wait", &job]).assert().success();
    let lines = parsed(&waited.get_output().stdout);
    assert_eq!(lines.len(), 9);
    assert!(lines.iter().all(|line| line["gen"] == 2 && line["state"] == "succeeded"));
}

#[test]
fn failed_elements_are_tried_again_by_themselves_and_tell_in_the_end() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _executor = env.executor("one", 2);
    let runs = env.path("runs").display().to_string();
    // Odd ones fail at first, 4 always.
    let script = format!(
        "echo {{}} >> {runs}; test {{}} != 4 || exit 9
        test $(grep -cx {{}} {runs}) -gt $(({{}} % 2))"
    );
    let array = ["--array", "1-6", "--retries", "1", "--", "sh", "-c", &script];
    let ran = env.submit().args(array).assert().code(1).stderr("");
    let lines = parsed(&ran.get_output().stdout);
    assert_eq!(lines.len(), 6);
    for (index, line) in by_index(&lines) {
        let (state, exit) = if index == 4 { ("failed", 9) } else { ("succeeded", 0) };
        assert_eq!((&line["state"], &line["exit"]), (&json!(state), &json!(exit)), "{line}");
    }
    let ran = env.lines("runs");
    for element in 1..=6 {
        let times = ran.iter().filter(|line| **line == element.to_string()).count();
        assert_eq!(times, if element == 4 || element % 2 == 1 { 2 } else { 1 }, "{element}");
    }
}

#[test]
fn each_element_has_its_files_in_a_directory_of_its_own() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _executor = env.executor("one", 2);
    let job = ["--out", "a/b", "--", "sh", "-c", "mkdir a; echo {} > a/b"];
    let array = [&["--array", "1-3", "--out-dir", "here"], &job[..]].concat();
    env.submit().args(array).assert().success().stderr("");
    let id = detached(&env, &[&["1-3"], &job[..]].concat());
    env.submit().args(["wait", &id, "--out-dir", "later"]).assert().success().stderr("");
    let other = detached(&env, &[&["1-3"], &job[..]].concat());
    let both = ["wait", &id, &other, "--out-dir", "both"];
    env.submit().args(both).assert().success().stderr("");
    for element in 1..=3 {
        for place in ["here", "later", &format!("both/{id}"), &format!("both/{other}")] {
            let lines = env.lines(&format!("{place}/{element}/a/b"));
            assert_eq!(lines, [element.to_string()], "{place}");
        }
    }
    env.submit().args(["output", &format!("{id}/2"), "--out-dir", "one"]).assert().success();
    assert_eq!(env.lines("one/a/b"), ["2"]);
}

#[test]
fn what_is_no_range_is_wrong_usage_in_clear_words() {
    let env = TestEnv::new();
    for bad in ["a", "1-", "-1", "5-2", "1,,2", "1..5", "1-9007199254740992", " 1"] {
        let said = contains(format!("{bad:?} is no range")).and(contains("1-1000,2000"));
        let flag = format!("--array={bad}");
        env.submit().args([&flag, "--", "true"]).assert().code(64).stdout("").stderr(said);
    }
    for bad in ["", "1-10000001"] {
        let said = contains("field `array`: has 1 to 10000000 elements");
        env.submit().args(["--array", bad, "--", "true"]).assert().code(64).stdout("").stderr(said);
    }
    let runs: Vec<_> = (0..10_001).map(|run| (2 * run).to_string()).collect();
    let said = contains("field `array`: at most 10000 runs of numbers");
    let many = ["--array", &runs.join(","), "--", "true"];
    env.submit().args(many).assert().code(64).stdout("").stderr(said);
    for [one, other] in [["--array=1-2", "--each"], ["--array=1-2", "--jsonl"]] {
        env.submit().args([one, other]).assert().code(64).stdout("").stderr(contains(other));
    }
    for taken in ["UCP_JOB_INDEX=1", "UCP_JOB_ITEM=1"] {
        let said = contains("is set for each element of an array");
        let array = ["--array", "1-2", "--env", taken, "--", "true"];
        env.submit().args(array).assert().code(64).stdout("").stderr(said);
    }
}

#[test]
fn a_million_elements_are_one_job_that_is_asked_about_and_cancelled() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let job = detached(&env, &["1-1000000", "--", "sleep", "600"]);
    let row = parsed(&env.run("ucp-submit", &["list", "--json"]).stdout).remove(0);
    assert_eq!(row["elements"], json!({"waiting": 1_000_000}));
    let _executor = env.executor("one", 2);
    wait_until("some run", || (count(&env, &job, "running") == 2).then_some(()));
    env.submit().arg("list").assert().success().stdout(contains("[999998 waiting, 2 running]"));
    let page = contains("elements    999998 waiting: 3-1000000")
        .and(contains("elements    2 running: 1-2"));
    env.submit().args(["show", &job]).assert().success().stdout(page);
    let last = format!("{job}/1000000");
    assert_eq!(shown(&env, &last)["state"], "waiting");
    env.submit().args(["why", &last]).assert().success().stdout(contains("all its slots"));
    env.submit().args(["why", &job]).assert().success().stdout(contains("999998 elements wait"));
    env.submit().args(["cancel", &job]).assert().success().stdout(contains("cancelled"));
    let cancelled = json!({"cancelled": {"count": 1_000_000, "elements": "1-1000000"}});
    assert_eq!(shown(&env, &job)["elements"], cancelled);
    let told = parsed(&env.run("ucp-submit", &["wait", &last]).stdout).remove(0);
    assert_eq!((&told["state"], &told["index"]), (&json!("cancelled"), &json!(1_000_000)));
    let audit = env.run("ucp-broker", &["audit"]);
    assert!(audit.status.success(), "{}", String::from_utf8_lossy(&audit.stdout));
}

#[test]
fn progress_tells_how_far_an_array_is() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _executor = env.executor("one", 2);
    let array = ["--array", "1-20", "--progress", "--", "sh", "-c", "exit $(({} == 4))"];
    let said = contains("20 of 20 done").and(contains("1 failed"));
    let ran = env.submit().args(array).assert().code(1).stderr(said);
    assert_eq!(parsed(&ran.get_output().stdout).len(), 20);
}

#[test]
fn routes_take_the_name_of_an_element() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let http = Http(env.socket());
    let job = http.submit(&json!({"command": ["echo", "{}"], "array": "1-9", "placeholder": "{}"}));
    let waiting = http.get(&format!("/v1/jobs/{job}/7"));
    assert_eq!(waiting.status, 200, "{}", waiting.text());
    assert_eq!(waiting.json()["state"], "waiting");
    let why = http.get(&format!("/v1/jobs/{job}/7/why")).json();
    assert_eq!((&why["job"], &why["state"]), (&json!(format!("{job}/7")), &json!("waiting")));
    let cancelled = http.ask("POST", &format!("/v1/jobs/{job}/8/cancel"), "", b"").json();
    assert_eq!(cancelled["job"], format!("{job}/8"));
    let _executor = env.executor("one", 2);
    let ended = http.get(&format!("/v1/jobs/{job}/7?until=accepted")).json();
    assert_eq!((&ended["job"], &ended["stdout"]), (&json!(format!("{job}/7")), &json!("7\n")));
    let all = http.get(&format!("/v1/jobs/{job}?until=accepted")).lines();
    assert_eq!(by_index(&all).into_keys().collect::<Vec<_>>(), Vec::from_iter(1..=9));
    let rerun = http.ask("POST", &format!("/v1/jobs/{job}/8/rerun"), "", b"");
    assert_eq!((rerun.status, &rerun.json()["job"]), (200, &json!(format!("{job}/8"))));
    let pieces = http.get(&format!("/v1/jobs/{job}/8/output?follow=1")).lines();
    assert_eq!(pieces.last().expect("a line")["state"], "succeeded", "{pieces:?}");
    let shown = http.get(&format!("/v1/jobs/{job}/7")).json();
    assert_eq!((&shown["job"], &shown["state"]), (&json!(format!("{job}/7")), &json!("succeeded")));
    for none in ["10", "0", "99999999999999999999"] {
        let answer = http.get(&format!("/v1/jobs/{job}/{none}"));
        assert_eq!((answer.status, &answer.json()["code"]), (404, &json!("not-found")), "{none}");
    }
}
