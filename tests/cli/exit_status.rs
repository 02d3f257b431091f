//! The table of exit statuses, row by row, with real commands.

use std::os::unix::fs::PermissionsExt;

use predicates::prelude::PredicateBooleanExt;
use predicates::str::{contains, is_empty, starts_with};
use serde_json::Value;
use ucp::proto::result::JobResult;

use crate::common::{TestEnv, wait_until};
use crate::peer::{Played, hello, read_head, wrote};

#[test]
fn row_0_help_and_version_go_to_stdout() {
    let env = TestEnv::new();
    env.submit().arg("--help").assert().code(0).stdout(contains("--each")).stderr("");
    env.submit().arg("--version").assert().code(0).stdout(starts_with("ucp-submit ")).stderr("");
}

#[test]
fn row_64_wrong_usage_names_the_flag_and_the_fix() {
    let env = TestEnv::new();
    for (arguments, what, hint) in [
        (&["--timeout", "5", "--", "true"][..], "'--timeout", "hint: "),
        (&["--timeot", "5s", "--", "true"], "'--timeot'", "hint: did you mean --timeout?"),
        (&["echo", "hi"], "'echo'", "hint: a command stands after '--', as in: ucp-submit -- echo"),
        (&[], "no command", "hint: put it after '--'"),
        (&["--needs", "core=2", "--", "true"], "--needs core=2", "hint: "),
        (&["--each", "--jsonl"], "--jsonl", "hint: "),
        (&["list", "--state", "done"], "--state", "succeeded"),
        (&["show", "not-an-id"], "not-an-id", "hint: "),
        (&["wait"], "ID", "hint: "),
    ] {
        let said = starts_with("ucp-submit: wrong usage: ").and(contains(what)).and(contains(hint));
        env.submit().args(arguments).assert().code(64).stdout("").stderr(said);
    }
}

#[test]
fn row_66_and_65_absent_and_bad_input() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let said = starts_with("ucp-submit: cannot read nowhere: ");
    let absent = ["--stdin", "nowhere", "--", "cat"];
    env.submit().args(absent).assert().code(66).stdout("").stderr(said);
    let said = contains("no job").and(contains("hint: 'ucp-submit list'"));
    env.submit().args(["show", "abcdef"]).assert().code(66).stdout("").stderr(said);
    let mut wait = env.submit();
    wait.args(["wait", "-"]).write_stdin("what?").assert().code(65).stderr(contains("what?"));
}

#[test]
fn row_69_no_broker_says_where_it_looked() {
    let env = TestEnv::new();
    let socket = env.socket().display().to_string();
    for arguments in [&["--", "true"][..], &["list"], &["--detach", "--", "true"], &["wait", "ab"]]
    {
        let said = starts_with("ucp-submit: no broker reachable: ")
            .and(contains("hint: looked at "))
            .and(contains(&*socket));
        let mut submit = env.submit();
        submit.args(["--connect-timeout", "50ms"]).args(arguments);
        submit.assert().code(69).stdout("").stderr(said);
    }
    let mut each = env.submit();
    each.args(["--connect-timeout", "50ms", "--each", "--", "true"]).write_stdin("1\n");
    each.assert().code(69).stdout("");
}

#[test]
fn with_json_a_problem_document_is_on_stderr() {
    let env = TestEnv::new();
    let run = env.run("ucp-submit", &["--json", "--connect-timeout", "1ms", "list"]);
    let said = String::from_utf8(run.stderr).expect("text");
    let document: Value = serde_json::from_str(said.lines().last().expect("a line")).expect("JSON");
    assert_eq!((&document["type"], &document["code"]), (&"problem".into(), &"no-broker".into()));
    assert_eq!(document["retryable"], true);
    assert_eq!(run.status.code(), Some(69));
}

#[test]
fn row_75_a_full_queue() {
    let env = TestEnv::new();
    let _broker = env.broker_with(&["--max-queued", "1"]);
    env.submit().args(["--detach", "--", "true"]).assert().code(0);
    let said = contains("hint: ");
    env.submit().args(["--detach", "--", "false"]).assert().code(75).stdout("").stderr(said);
}

#[test]
fn row_77_and_78_a_strange_run_directory_and_a_bad_address() {
    let env = TestEnv::new();
    let strange = env.path("run/ucp");
    std::fs::create_dir(&strange).expect("a directory");
    std::fs::set_permissions(&strange, std::fs::Permissions::from_mode(0o777)).expect("its mode");
    let path = strange.display().to_string();
    env.submit().arg("list").assert().code(77).stdout("").stderr(contains(path));
    let mut bad = env.submit();
    bad.env("UCP_BROKER", "gopher://x").args(["list"]).assert().code(78).stderr(contains("gopher"));
    let mut tls = env.submit();
    tls.env("UCP_BROKER", "https://x:1").args(["list"]).assert().code(78).stderr(contains("TLS"));
}

#[test]
fn rows_124_to_130_are_ours_and_have_a_reason() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _executor = env.executor("one", 2);
    let own = |word: &str| starts_with("ucp-submit: 0").and(contains(word.to_owned()));
    let mut late = env.submit();
    late.args(["--timeout", "100ms", "--", "sleep", "60"]);
    late.assert().code(124).stdout("").stderr(own("timed out"));
    let mut absent = env.submit();
    absent.args(["--", "there-is-no-such-program"]);
    absent.assert().code(127).stdout("").stderr(own("could not run"));
    let failed = env.run("ucp-submit", &["--detach", "--", "false"]);
    let failed = String::from_utf8(failed.stdout).expect("an id");
    let mut skipped = env.submit();
    skipped.args(["--after", failed.trim(), "--", "true"]);
    skipped.assert().code(125).stderr(own("skipped"));
    let held = env.run("ucp-submit", &["--detach", "--", "sleep", "600"]);
    let held = String::from_utf8(held.stdout).expect("an id");
    let mut waited = env.submit();
    waited.args(["wait", held.trim(), "--timeout", "10ms"]);
    waited.assert().code(126).stdout("").stderr(own("outcome unknown"));
    env.submit().args(["cancel", held.trim()]).assert().code(0).stderr(is_empty());
}

#[test]
fn row_130_somebody_else_cancels() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _executor = env.executor("one", 2);
    let mut submit = env.command("ucp-submit");
    submit.args(["--", "sleep", "600"]).stdin(std::process::Stdio::null());
    let submit = submit.stderr(std::process::Stdio::piped()).spawn().expect("it starts");
    let job = wait_until("it runs", || {
        let listed = env.run("ucp-submit", &["list", "--state", "running", "--json"]).stdout;
        let line: Value = serde_json::from_slice(&listed).ok()?;
        line["job"].as_str().map(str::to_owned)
    });
    env.submit().args(["cancel", &job]).assert().code(0);
    let output = submit.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(130));
    assert!(String::from_utf8_lossy(&output.stderr).contains(&format!("{job}: cancelled")));
}

#[test]
fn row_1_the_answer_is_no() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _executor = env.executor("one", 2);
    let ended = env.run("ucp-submit", &["--detach", "--", "true"]).stdout;
    let ended = String::from_utf8(ended).expect("an id").trim().to_owned();
    env.submit().args(["wait", &ended]).assert().code(0);
    let said = contains("cannot cancel: ");
    env.submit().args(["cancel", &ended]).assert().code(1).stdout("").stderr(said);
    env.submit().args(["--each", "--", "false"]).write_stdin("a\n").assert().code(1);
}

#[test]
fn row_73_and_74_what_cannot_be_created_or_written() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _executor = env.executor("one", 2);
    std::fs::write(env.path("file"), "").expect("a file");
    let said = starts_with("ucp-submit: cannot create file/x: ");
    let create = ["--out-dir", "file/x", "--", "true"];
    env.submit().args(create).assert().code(73).stdout("").stderr(said);
    let full = std::fs::File::options().write(true).open("/dev/full").expect("it is there");
    let mut list = env.command("ucp-submit");
    let list = list.args(["--json", "--", "true"]).stdout(full).output().expect("it starts");
    let said = String::from_utf8_lossy(&list.stderr).into_owned();
    assert_eq!(list.status.code(), Some(74), "{said}");
    assert!(said.starts_with("ucp-submit: cannot write to stdout: "), "{said}");
}

#[test]
fn row_76_somebody_else_answers() {
    let env = TestEnv::new();
    let socket = env.path("strange.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
    let strange = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        let mut reader = std::io::BufReader::new(stream.try_clone().expect("a second handle"));
        read_head(&mut reader);
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nhi\n";
        std::io::Write::write_all(&mut stream, answer).expect("the client reads");
    });
    let address = format!("unix:{}", socket.display());
    let said = contains("the broker's answer is not understood").and(contains("hint: "));
    let show = ["--broker", &address, "show", "abcdef"];
    env.submit().args(show).assert().code(76).stdout("").stderr(said);
    strange.join().expect("it ends");
}

#[test]
fn row_125_an_output_that_was_not_made_and_a_parked_job() {
    let env = TestEnv::new();
    let _broker = env.broker_with(&["--reconnect-grace", "1ms"]);
    let run = |arguments: &[&str], result: Option<JobResult>| {
        let mut executor = Played::join(&env.socket(), hello("played", 1));
        let mut submit = env.command("ucp-submit");
        submit.args(["--json"]).args(arguments).stdin(std::process::Stdio::null());
        submit.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        let submit = submit.spawn().expect("it starts");
        let order = executor.start();
        if let Some(result) = result {
            executor.report(&order, result);
        }
        drop(executor);
        submit.wait_with_output().expect("it ends")
    };
    let missing = Some("output \"x\" was not made".to_owned());
    let missing = JobResult { error: missing, ..wrote(b"", b"") };
    for (arguments, result, words) in [
        (&["--out", "x", "--", "true"][..], Some(missing), "output \"x\" was not made"),
        (&["--max-lost", "1", "--", "true"], None, "parked: "),
    ] {
        let output = run(arguments, result);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(125), "{said}");
        assert!(said.starts_with("ucp-submit: 0") && said.contains(words), "{said}");
    }
}

#[test]
fn rows_of_the_job_itself_its_status_126_127_and_128_plus_the_signal() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _executor = env.executor("one", 2);
    std::fs::write(env.path("plain"), "").expect("a file");
    let plain = env.path("plain").display().to_string();
    for (command, code) in [
        (&["sh", "-c", "exit 42"][..], 42),
        (&["sh", "-c", "kill -KILL $$"], 137),
        (&["there-is-no-such-program"], 127),
        (&[&*plain], 126),
    ] {
        env.submit().arg("--").args(command).assert().code(code).stdout("");
    }
}
