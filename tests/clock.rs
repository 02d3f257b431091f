//! `ucp-clock`: a filter, so its tests are texts in and texts out; the last ones pipe a real
//! broker's facts through it.

mod common;

use predicates::prelude::PredicateBooleanExt;
use predicates::str::{contains, is_empty};
use serde_json::Value;

use common::TestEnv;

fn clock(env: &TestEnv) -> assert_cmd::Command {
    let mut command = assert_cmd::Command::from_std(env.command("ucp-clock"));
    command.timeout(common::DEADLINE);
    command
}

fn lines(bytes: &[u8]) -> Vec<Value> {
    let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| serde_json::from_slice(line).expect("a line of JSON")).collect()
}

#[test]
fn compare_says_a_word_or_an_exit_status() {
    let env = TestEnv::new();
    for (a, b, word) in [
        (r#"{"n":1}"#, r#"{"n":2}"#, "before"),
        (r#"{"n":2}"#, r#"{"n":1,"s":0}"#, "after"),
        (r#"{"n":1}"#, r#"{"n":1,"s":0}"#, "equal"),
        (r#"{"n":1}"#, r#"{"s":1}"#, "concurrent"),
    ] {
        clock(&env).args(["compare", a, b]).assert().success().stdout(format!("{word}\n"));
        clock(&env).args(["compare", a, b, "--is", word]).assert().success().stdout("");
        let other = if word == "equal" { "before" } else { "equal" };
        clock(&env).args(["compare", a, b, "--is", other]).assert().code(1).stdout("").stderr("");
    }
    clock(&env).args(["compare", "{}", "{}", "--is", "same"]).assert().code(64);
}

#[test]
fn clocks_come_from_arguments_files_and_stdin() {
    let env = TestEnv::new();
    std::fs::write(env.path("a.json"), "{\"n\": 3}\n").expect("written");
    let merge = ["merge", "@a.json", "-", r#"{"s":1}"#];
    let merged = "{\"n\":4,\"s\":2}\n";
    clock(&env).args(merge).write_stdin(r#"{"n":4,"s":2}"#).assert().success().stdout(merged);
    clock(&env).args(["tick", "n", "@a.json"]).assert().success().stdout("{\"n\":4}\n");
    clock(&env).args(["tick", "n"]).assert().success().stdout("{\"n\":1}\n");
    clock(&env).args(["compare", "-", "-"]).write_stdin("{}").assert().code(64);
    clock(&env).args(["tick", "n", "@none"]).assert().code(66).stderr(contains("none"));
    for bad in ["[]", "{", r#"{"n":-1}"#, r#"{"n":1,"n":2}"#, r#"{"n":9007199254740992}"#] {
        let hint = contains("is no clock").and(contains("hint: a clock is"));
        clock(&env).args(["tick", "n", bad]).assert().code(65).stdout("").stderr(hint);
    }
    let full = r#"{"n":9007199254740991}"#;
    clock(&env).args(["tick", "n", full]).assert().code(65).stderr(contains("at its end"));
}

#[test]
fn a_clock_with_10000_entries_is_merged_and_one_more_is_refused() {
    let env = TestEnv::new();
    let of = |count: usize| {
        let entries: Vec<_> = (0..count).map(|n| format!("\"log-{n:05}\":{}", n + 1)).collect();
        format!("{{{}}}", entries.join(","))
    };
    std::fs::write(env.path("most"), of(10_000)).expect("written");
    std::fs::write(env.path("over"), of(10_001)).expect("written");
    let merged = clock(&env).args(["merge", "@most", "@most"]).assert().success();
    assert_eq!(merged.get_output().stdout, format!("{}\n", of(10_000)).into_bytes());
    clock(&env).args(["merge", "@over"]).assert().code(65).stderr(contains("10000 entries"));
    clock(&env).args(["tick", "log-x", "@most"]).assert().code(65).stderr(contains("10000"));
}

#[test]
fn resolve_puts_the_accepted_first_and_keeps_every_member() {
    let env = TestEnv::new();
    let input = concat!(
        r#"{"clock":{"s":1},"exit":1,"note":1.50}"#,
        "\n",
        r#"{"clock":{"n":1},"exit":0,"big":123456789012345678901234567890}"#,
        "\n",
        r#"{"clock":{"n":2},"exit":0,"verdict":"none"}"#,
        "\n"
    );
    let output = clock(&env).arg("resolve").write_stdin(input).assert().success();
    let text = String::from_utf8(output.get_output().stdout.clone()).expect("text");
    let said: Vec<&str> = text.lines().collect();
    assert_eq!(said[0], r#"{"clock":{"n":2},"exit":0,"verdict":"accepted","rule":"greatest-key"}"#);
    assert!(said.iter().any(|line| line.contains("\"note\":1.50,\"verdict\":\"rejected\"")));
    assert!(said.iter().any(|line| line.contains("7890,\"verdict\":\"superseded\"")), "{text}");
    let back: String = input.lines().rev().map(|line| format!("{line}\n")).collect();
    clock(&env).arg("resolve").write_stdin(back).assert().success().stdout(text);
}

#[test]
fn bad_lines_are_named_and_the_filter_goes_on() {
    let env = TestEnv::new();
    let good = r#"{"actor":"n","clock":{"n":1}}"#;
    let input = format!("no json\n{good}\n{{\"clock\":{{}}}}\n\n{}\n", "[".repeat(10_000));
    for command in ["sort", "check"] {
        let named = contains("line 1:").and(contains("line 3:")).and(contains("line 5:"));
        let run = clock(&env).arg(command).write_stdin(input.as_str()).assert().code(65);
        run.stderr(named).stdout(contains(if command == "sort" { good } else { "\"events\":1" }));
    }
    clock(&env)
        .arg("resolve")
        .write_stdin("{\"clock\":{\"n\":1},\"n\":1,\"n\":1}\n")
        .assert()
        .code(65)
        .stderr(contains("`n` stands twice"));
}

#[test]
fn sort_gives_one_order_for_every_arrival() {
    let env = TestEnv::new();
    let lines = [
        r#"{"actor":"n","clock":{"n":1},"text":"first  "}"#,
        r#"{"dot":["s",1],"clock":{"n":1,"s":1}}"#,
        r#"{"actor":"n","clock":{"n":2,"s":1}}"#,
    ];
    let sorted: String = lines.iter().map(|line| format!("{line}\n")).collect();
    for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
        let input: String = order.iter().map(|at| format!("{}\r\n", lines[*at])).collect();
        clock(&env).arg("sort").write_stdin(input).assert().success().stdout(sorted.clone());
    }
    let circle = "{\"actor\":\"n\",\"clock\":{\"n\":1,\"s\":1}}\n\
                  {\"actor\":\"s\",\"clock\":{\"n\":1,\"s\":1}}\n";
    clock(&env).arg("sort").write_stdin(circle).assert().code(65).stderr(contains("n.1"));
}

#[test]
fn check_finds_each_kind_of_fault() {
    let env = TestEnv::new();
    for (input, fault) in [
        ("{\"dot\":[\"n\",2],\"clock\":{\"n\":2}}\n", "gap"),
        (
            "{\"dot\":[\"n\",1],\"clock\":{\"n\":1}}\n{\"dot\":[\"n\",1],\"clock\":{\"n\":1},\"x\":1}\n",
            "reused-dot",
        ),
        (
            "{\"actor\":\"s\",\"clock\":{\"n\":1,\"s\":1}}\n{\"actor\":\"n\",\"clock\":{\"n\":1}}\n",
            "effect-before-cause",
        ),
        ("{\"actor\":\"s\",\"clock\":{\"n\":1,\"s\":1}}\n", "missing-cause"),
    ] {
        let run = clock(&env).arg("check").write_stdin(input).assert().code(1);
        let said = lines(&run.get_output().stdout);
        assert_eq!(said.len(), 2, "{said:?}");
        assert_eq!((&said[0]["type"], &said[0]["fault"]), (&"fault".into(), &fault.into()));
        assert_eq!((&said[1]["type"], &said[1]["ok"]), (&"check".into(), &false.into()));
    }
    let gap = "{\"dot\":[\"n\",2],\"clock\":{\"n\":2}}\n";
    clock(&env).args(["check", "--partial"]).write_stdin(gap).assert().success();
}

#[test]
fn a_closed_pipe_ends_it_quietly() {
    let env = TestEnv::new();
    let line = r#"{"actor":"n","clock":{"n":1}}"#;
    let program = env.command("ucp-clock").get_program().to_owned();
    let script = "yes \"$2\" | head -n 20000 | \"$1\" sort | head -n 1";
    let mut shell = env.command("ucp-clock");
    drop(std::mem::replace(&mut shell, std::process::Command::new("sh")));
    let run = shell.args(["-c", script, "sh"]).arg(program).arg(line).output().expect("it runs");
    assert_eq!(String::from_utf8_lossy(&run.stdout), format!("{line}\n"));
    assert_eq!(String::from_utf8_lossy(&run.stderr), "");
}

#[test]
fn a_real_history_is_checked_sorted_and_drawn() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _executor = env.executor("van", 1);
    env.submit().args(["--name", "a<b", "--", "true"]).assert().success();
    env.submit().args(["--retries", "1", "--", "false"]).assert().code(1);
    let facts = env.run("ucp-broker", &["facts"]).stdout;
    let check = clock(&env).arg("check").write_stdin(facts.clone()).assert().success();
    assert_eq!(lines(&check.get_output().stdout)[0]["ok"], true);
    let sorted = clock(&env).arg("sort").write_stdin(facts.clone()).assert().success();
    assert_eq!(sorted.get_output().stdout, facts, "one log: commit order is the causal order");
    let draw = |form: &str| {
        let run = clock(&env).args(["draw", "--format", form]).write_stdin(facts.clone()).assert();
        String::from_utf8(run.success().get_output().stdout.clone()).expect("text")
    };
    let text = draw("text");
    assert!(text.contains("reported exit 0: accepted") && text.contains("van-"), "{text}");
    let shiviz = draw("shiviz");
    assert!(shiviz.starts_with("(?<event>.*)\\n(?<host>\\S*) (?<clock>{.*})\n\n"), "{shiviz}");
    let svg = draw("svg");
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n") && svg.contains("a&lt;b"));
    let marks = |text: &str| text.matches("<g><title>").count();
    assert_eq!(marks(&svg), text.lines().count());
    let job = lines(&facts).into_iter().find_map(|fact| fact["job"].as_str().map(str::to_owned));
    let job = job.expect("a job");
    let mut one = clock(&env);
    let run = one.args(["draw", "--format", "text", "--job", &job[24..]]).write_stdin(facts);
    let drawn = run.assert().success().stdout(contains("false").not()).stderr(is_empty());
    assert!(drawn.get_output().stdout.len() < text.len());
}
