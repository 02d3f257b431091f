//! Many jobs: a filter that streams, loses nothing, and goes on after a bad line.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use predicates::prelude::PredicateBooleanExt;
use predicates::str::contains;
use serde_json::Value;

use crate::common::{TestEnv, wait_until};

fn parsed(bytes: &[u8]) -> Vec<Value> {
    let text = String::from_utf8(bytes.to_vec()).expect("text");
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

fn numbers(count: u64) -> String {
    (1..=count).map(|number| format!("{number}\n")).collect()
}

#[test]
fn a9_a_thousand_lines_are_a_thousand_jobs_that_each_run_once() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _executors = [env.executor("one", 4), env.executor("two", 4)];
    let runs = env.path("runs").display().to_string();
    let script = format!("echo $UCP_JOB_ITEM >> {runs}; echo $(($UCP_JOB_ITEM * 2))");
    let mut each = env.submit();
    let each = each.args(["--each", "--", "sh", "-c", &script]).write_stdin(numbers(1000));
    let output = each.assert().success().stderr("").get_output().stdout.clone();
    let results = parsed(&output);
    assert_eq!(results.len(), 1000);
    for result in &results {
        let item: u64 = result["item"].as_str().expect("an item").parse().expect("a number");
        assert_eq!(result["index"], item);
        assert_eq!(result["state"], "succeeded");
        assert_eq!(result["stdout"], format!("{}\n", item * 2));
    }
    let mut ran = env.lines("runs");
    assert_eq!(ran.len(), 1000);
    ran.sort();
    ran.dedup();
    assert_eq!(ran.len(), 1000);
}

#[test]
fn a9_a_broker_killed_in_between_changes_no_result_and_repeats_no_run() {
    let env = TestEnv::new();
    let mut broker = env.broker();
    let _executors = [env.executor("one", 2), env.executor("two", 2)];
    let runs = env.path("runs").display().to_string();
    let script = format!("echo $UCP_JOB_ITEM >> {runs}; echo {{}}");
    let mut each = env.command("ucp-submit");
    let each = each.args(["--each", "--", "sh", "-c", &script]);
    let each = each.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut each = each.spawn().expect("it starts");
    let mut stdin = each.stdin.take().expect("it is piped");
    stdin.write_all(numbers(300).as_bytes()).expect("written");
    for seen in [20, 120, 220] {
        wait_until("some jobs ran", || (env.lines("runs").len() >= seen).then_some(()));
        broker.kill();
        broker = env.broker();
    }
    drop(stdin);
    let output = each.wait_with_output().expect("it ends");
    let results = parsed(&output.stdout);
    let items: BTreeSet<_> = results.iter().map(|line| line["index"].as_u64()).collect();
    assert_eq!((results.len(), items.len()), (300, 300));
    assert!(results.iter().all(|line| line["state"] == "succeeded"));
    let ran: BTreeSet<_> = env.lines("runs").into_iter().collect();
    assert_eq!((env.lines("runs").len(), ran.len()), (300, 300));
    assert!(String::from_utf8_lossy(&output.stderr).contains("does not answer"));
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn a_result_comes_before_the_input_ends() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _executor = env.executor("one", 2);
    let mut each = env.command("ucp-submit");
    let each = each.args(["--each", "--", "echo", "<{}>"]).stdin(Stdio::piped());
    let mut each = each.stdout(Stdio::piped()).spawn().expect("it starts");
    let mut stdin = each.stdin.take().expect("it is piped");
    let mut lines = BufReader::new(each.stdout.take().expect("it is piped")).lines();
    for item in ["one", "two words", "drei"] {
        stdin.write_all(format!("{item}\n").as_bytes()).expect("written");
        let line: Value =
            serde_json::from_str(&lines.next().expect("a line").expect("text")).expect("JSON");
        assert_eq!(line["item"], item);
        assert_eq!(line["stdout"], format!("<{item}>\n"));
    }
    drop(stdin);
    assert!(each.wait().expect("it ends").success());
}

#[test]
fn some_failed_jobs_end_with_1_and_none_at_all_with_0() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _executor = env.executor("one", 2);
    let mut some = env.submit();
    some.args(["--each", "--", "sh", "-c", "exit {}"]).write_stdin("0\n1\n0\n").assert().code(1);
    env.submit().args(["--each", "--", "true"]).write_stdin("").assert().code(0).stdout("");
}

#[test]
fn bad_lines_are_told_with_number_and_field_and_the_others_run() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _executor = env.executor("one", 2);
    let lines = concat!(
        "{\"command\":[\"echo\",\"1\"]}\n",
        "{\"comand\":[\"echo\",\"2\"]}\n",
        "no json\n",
        "{\"command\":[\"echo\",\"4\"],\"retries\":-1}\n",
        "\n",
        "{\"command\":[\"echo\",\"6\"]}",
    );
    let said = contains("line 2: unknown field `comand`, did you mean `command`?")
        .and(contains("line 3: "))
        .and(contains("line 4: "));
    let mut jsonl = env.submit();
    let output = jsonl.arg("--jsonl").write_stdin(lines).assert().code(65).stderr(said);
    let mut indices: Vec<_> = parsed(&output.get_output().stdout)
        .iter()
        .map(|line| (line["index"].as_u64(), line["stdout"].as_str().map(str::to_owned)))
        .collect();
    indices.sort();
    assert_eq!(indices, [(Some(1), Some("1\n".into())), (Some(6), Some("6\n".into()))]);
}

#[test]
fn a_line_that_is_too_long_once_wrapped_ends_nothing_else() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _executor = env.executor("one", 2);
    // Texts as long as may be, and a last one that fills the line up to what a job may be.
    let text = format!("\"{}\",", "x".repeat(130_000)).repeat(16);
    let last = "x".repeat((2 << 20) - 20 - text.len());
    let lines = format!("{{\"command\":[\"true\"]}}\n{{\"command\":[{text}\"{last}\"]}}\n");
    let lines = format!("{lines}{{\"command\":[\"true\"]}}\n");
    let said = contains("ucp-submit: line 2: a job is over ").and(contains("line 2").count(1));
    let mut jsonl = env.submit();
    let output = jsonl.arg("--jsonl").write_stdin(lines).assert().code(65).stderr(said);
    assert_eq!(parsed(&output.get_output().stdout).len(), 2);
}

#[test]
fn detach_prints_ids_that_wait_takes_from_stdin() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _executor = env.executor("one", 2);
    let mut each = env.submit();
    let each = each.args(["--each", "--detach", "--", "echo", "{}"]).write_stdin("a\nb\nc\n");
    let ids = each.assert().success().get_output().stdout.clone();
    assert_eq!(ids.iter().filter(|byte| **byte == b'\n').count(), 3);
    let waited = env.submit().args(["wait", "-"]).write_stdin(ids).assert().success();
    let lines = parsed(&waited.get_output().stdout);
    let mut outputs: Vec<_> = lines
        .iter()
        .map(|line| (line["item"].as_str().expect("text"), line["stdout"].as_str().expect("text")))
        .collect();
    outputs.sort_unstable();
    assert_eq!(outputs, [("a", "a\n"), ("b", "b\n"), ("c", "c\n")]);
}

#[test]
fn a_reader_that_goes_away_ends_the_filter_quietly() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _executor = env.executor("one", 2);
    let mut each = env.command("ucp-submit");
    let each = each.args(["--each", "--", "echo", "{}"]).stdin(Stdio::piped());
    let mut each = each.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let mut stdin = each.stdin.take().expect("it is piped");
    let mut lines = BufReader::new(each.stdout.take().expect("it is piped")).lines();
    stdin.write_all(b"1\n").expect("written");
    lines.next().expect("a line").expect("text");
    drop(lines);
    stdin.write_all(b"2\n").expect("written");
    // Stdin stays open: it is the closed stdout that ends the filter.
    let status = wait_until("the filter ends", || each.try_wait().expect("a child of ours"));
    assert_eq!(status.code(), Some(0));
    drop(stdin);
    let output = each.wait_with_output().expect("it ended");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn items_may_end_with_nul_and_replace_another_text() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _executor = env.executor("one", 2);
    let script = "printf '<%s>' \"$1\" \"$UCP_JOB_ITEM\"";
    let flags = ["--each", "-0", "-I", "%%", "--keep-order", "--", "sh", "-c", script, "{}", "a%%"];
    let items = b"two\nlines\0\0 x \r\0\xff\0last".to_vec();
    let output = env.submit().args(flags).write_stdin(items).assert().success().stderr("");
    let lines = parsed(&output.get_output().stdout);
    let shown: Vec<_> = lines.iter().map(|l| (&l["index"], &l["item"], &l["stdout"])).collect();
    let text = |text: &str| Value::from(text);
    assert_eq!(shown[0], (&1.into(), &text("two\nlines"), &text("<atwo\nlines><two\nlines>")));
    assert_eq!(shown[1], (&2.into(), &text(""), &text("<a><>")));
    assert_eq!(shown[2], (&3.into(), &text(" x \r"), &text("<a x \r>< x \r>")));
    assert_eq!((shown[3].1, &lines[3]["item_encoding"]), (&text("/w=="), &text("base64")));
    assert_eq!(lines[3]["encoding"], "base64");
    assert_eq!(shown[4], (&5.into(), &text("last"), &text("<alast><last>")));
    assert_eq!(shown.len(), 5);
}

#[test]
fn results_keep_the_order_of_their_lines_if_asked() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _executor = env.executor("one", 4);
    let (go, seen) = (env.path("go").display().to_string(), env.path("seen").display().to_string());
    // The first line ends last; a bad one in between holds nothing up.
    let wait =
        format!("echo $1 >> {seen}; test $1 != 1 || until test -e {go}; do sleep 0.01; done");
    let job = |number: u32| {
        let command = ["sh", "-c", &wait, "sh", &number.to_string()].map(str::to_owned);
        serde_json::json!({ "command": command }).to_string()
    };
    let jobs = [job(1), job(2), "no json".to_owned(), job(4), job(5)].join("\n");
    let mut jsonl = env.command("ucp-submit");
    let jsonl = jsonl.args(["--jsonl", "--keep-order"]).stdin(Stdio::piped());
    let jsonl = jsonl.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut jsonl = jsonl.spawn().expect("it starts");
    let mut stdin = jsonl.stdin.take().expect("it is piped");
    stdin.write_all(jobs.as_bytes()).expect("written");
    drop(stdin);
    let succeeded = || {
        let rows = env.run("ucp-submit", &["list", "--state", "succeeded", "--json"]).stdout;
        parsed(&rows).len()
    };
    wait_until("the others have ended", || (succeeded() == 3).then_some(()));
    std::fs::write(&go, "").expect("a file");
    let output = jsonl.wait_with_output().expect("it ends");
    let indices: Vec<_> =
        parsed(&output.stdout).iter().map(|line| line["index"].as_u64().expect("one")).collect();
    assert_eq!((indices, output.status.code()), (vec![1, 2, 4, 5], Some(65)));
}
