//! `--status-fd`, `--until`, arguments of any bytes, and the limits as a client meets them.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::process::Command;

use predicates::prelude::PredicateBooleanExt;
use predicates::str::contains;
use serde_json::Value;

use crate::common::TestEnv;

/// `ucp-submit` started by a shell that opens descriptor 3 onto the file `status`.
fn with_status(env: &TestEnv, arguments: &[&str], stdin: &str) -> assert_cmd::assert::Assert {
    let submit = env.command("ucp-submit");
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec \"$0\" \"$@\" 3>>status"]).arg(submit.get_program()).args(arguments);
    for (name, value) in submit.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell.current_dir(env.path(""));
    assert_cmd::Command::from_std(shell).write_stdin(stdin).assert()
}

fn told(env: &TestEnv) -> Vec<Value> {
    let lines = env.lines("status");
    std::fs::remove_file(env.path("status")).expect("it was there");
    lines.iter().map(|line| serde_json::from_str(line).expect("a line")).collect()
}

#[test]
fn the_result_line_is_on_the_descriptor_and_the_output_alone_on_stdout() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _executor = env.executor("one", 2);
    let three = ["--status-fd", "3"];
    let script = ["--", "sh", "-c", "echo out; exit 7"];
    with_status(&env, &[&three[..], &script].concat(), "").code(7).stdout("out\n").stderr("");
    let lines = told(&env);
    assert_eq!((lines.len(), &lines[0]["type"]), (1, &"result".into()));
    assert_eq!((&lines[0]["exit"], &lines[0]["stdout"]), (&7.into(), &"out\n".into()));
    let late = ["--timeout", "100ms", "--", "sleep", "60"];
    with_status(&env, &[&three[..], &late].concat(), "").code(124);
    assert_eq!(told(&env)[0]["timed_out"], true);
    let each = ["--each", "--until", "final", "--", "echo", "{}"];
    let run = with_status(&env, &[&three[..], &each].concat(), "a\nb\n").success();
    let printed = String::from_utf8(run.get_output().stdout.clone()).expect("text");
    assert_eq!(printed.lines().count(), 2);
    assert_eq!(env.lines("status"), printed.lines().collect::<Vec<_>>());
}

#[test]
fn an_unknown_end_is_told_as_such() {
    let env = TestEnv::new();
    let broker = env.broker();
    let begun = env.path("begun");
    let _executor = env.executor("one", 2);
    let script = format!("touch {}; exec sleep 600", begun.display());
    let mut shell = Command::new("sh");
    let submit = env.command("ucp-submit");
    shell.args(["-c", "exec \"$0\" \"$@\" 3>status 2>said"]).arg(submit.get_program());
    shell.args(["--status-fd", "3", "--", "sh", "-c", &script]);
    shell.env("XDG_RUNTIME_DIR", env.path("run")).current_dir(env.path(""));
    let mut child = shell.stdin(std::process::Stdio::null()).spawn().expect("it starts");
    crate::common::wait_until("it runs", || begun.exists().then_some(()));
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("it is there");
    assert_eq!(child.wait().expect("it ends").code(), Some(126));
    let lines = told(&env);
    assert_eq!((&lines[0]["type"], &lines[0]["reason"]), (&"unknown".into(), &"detached".into()));
    assert!(lines[0]["job"].is_string());
    drop(broker);
}

#[test]
fn a_bad_descriptor_is_wrong_usage_at_once() {
    let env = TestEnv::new();
    for number in ["9", "-1", "x"] {
        let flag = format!("--status-fd={number}");
        env.submit().args([&*flag, "--", "true"]).assert().code(64).stderr(contains("--status-fd"));
    }
    let submit = env.command("ucp-submit");
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec \"$0\" \"$@\" 3</dev/null"]).arg(submit.get_program());
    shell.args(["--status-fd", "3", "--", "true"]);
    let mut shell = assert_cmd::Command::from_std(shell);
    shell.assert().code(64).stderr(contains("open for reading only"));
}

#[test]
fn arguments_variables_and_items_may_be_any_bytes() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _executor = env.executor("one", 2);
    let strange = OsStr::from_bytes(b"a\xffb");
    let mut echo = env.submit();
    echo.args(["--", "printf", "%s"]).arg(strange).assert().success().stdout(&b"a\xffb"[..]);
    let mut variable = env.submit();
    variable.arg("--env").arg(OsStr::from_bytes(b"X=\xfe"));
    variable.args(["--", "sh", "-c", "printf %s \"$X\""]).assert().success().stdout(&b"\xfe"[..]);
    let mut each = env.submit();
    let each = each.args(["--each", "--", "printf", "<%s>%s", "{}"]).write_stdin(&b"\xff\n"[..]);
    let output = each.assert().success().get_output().stdout.clone();
    let line: Value = serde_json::from_slice(&output).expect("a line");
    assert_eq!((&line["item"], &line["item_encoding"]), (&"/w==".into(), &"base64".into()));
    assert_eq!((&line["stdout"], &line["encoding"]), (&"PP8+".into(), &"base64".into()));
    assert!(output.starts_with(b"{\"type\":\"result\",\"job\":\""));
    let text = String::from_utf8(output).expect("text");
    assert!(text.contains("\"index\":1,\"item\":\"/w==\",\"item_encoding\":\"base64\",\"state\""));
    env.submit().args(["list"]).assert().success();
}

#[test]
fn limits_are_clear_errors() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _executor = env.executor("one", 2);
    // The kernel takes no argument that is too long: one only becomes so with its item.
    let mut long = env.submit();
    long.args(["--each", "--", "echo", "{}{}"]).write_stdin("x".repeat(70_000) + "\n");
    let words = contains("line 1: field `command`: one of the texts is over 131071 bytes");
    long.assert().code(65).stdout("").stderr(words);
    let value = "v".repeat(100_000);
    let mut large = env.submit();
    for number in 0..10 {
        large.args(["--env", &format!("V{number}={value}")]);
    }
    large.args(["--", "sh", "-c", "printf %s \"$V0$V9\" | wc -c"]);
    large.assert().success().stdout("200000\n");
    let variables: Vec<_> = (0..22).map(|n| format!("\"V{n}\":\"{value}\"")).collect();
    let line = format!("{{\"command\":[\"env\"],\"env\":{{{}}}}}\n", variables.join(","));
    let mut over = env.submit();
    let words = contains("line 1: a job is over 2097152 bytes of JSON");
    over.arg("--jsonl").write_stdin(line).assert().code(65).stdout("").stderr(words);
    let mut after = env.submit();
    for number in 0..1_001 {
        after.args(["--after", &format!("00000000-0000-0000-0000-{number:012}")]);
    }
    let words = contains("--after is given 1001 times, at most 1000");
    after.args(["--", "true"]).assert().code(64).stdout("").stderr(words);
    let mut outputs = env.submit();
    for number in 0..1_001 {
        outputs.args(["--out", &number.to_string()]);
    }
    let words = contains("field `outputs`: at most 1000");
    outputs.args(["--", "true"]).assert().code(64).stderr(words.and(contains("wrong usage")));
}
