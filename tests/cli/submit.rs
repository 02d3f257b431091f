//! One job: its output, its status, its standard input, and what befalls it meanwhile.

use std::io::{Read, Write};
use std::process::Stdio;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use predicates::prelude::PredicateBooleanExt;
use predicates::str::contains;

use crate::common::{TestEnv, wait_until};

/// Holds a job until `release` is called, and tells that it runs.
struct Latch<'a> {
    env: &'a TestEnv,
    name: &'static str,
}

impl Latch<'_> {
    fn script(&self) -> String {
        let (begun, go) = (self.begun(), self.go());
        format!("touch {begun}; until test -e {go}; do sleep 0.01; done")
    }

    fn begun(&self) -> String {
        self.env.path(&format!("{}.begun", self.name)).display().to_string()
    }

    fn go(&self) -> String {
        self.env.path(&format!("{}.go", self.name)).display().to_string()
    }

    fn wait(&self) {
        let begun = std::path::PathBuf::from(self.begun());
        wait_until("the job runs", || begun.exists().then_some(()));
    }

    fn release(&self) {
        std::fs::write(self.go(), "").expect("a file");
    }
}

#[test]
fn echo_hi_needs_no_flag_no_file_and_no_sleep() {
    let env = TestEnv::new();
    // All three at once: each waits for what it needs.
    let mut submit = env.command("ucp-submit");
    let submit = submit.args(["--", "echo", "hi"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let submit = submit.stdin(Stdio::null()).spawn().expect("it starts");
    let executor = env.command("ucp-exec");
    let executor = crate::common::Daemon::start(executor, &env.path("exec.err"));
    let broker = env.broker();
    let output = submit.wait_with_output().expect("it ends");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "hi\n");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert!(output.status.success());
    drop((executor, broker));
}

#[test]
fn stdout_and_stderr_go_to_ours_and_the_status_is_the_jobs_own() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _executor = env.executor("one", 2);
    let script = "printf 'a\\0b'; printf err >&2; exit 7";
    env.submit().args(["--", "sh", "-c", script]).assert().code(7).stdout("a\0b").stderr("err");
    let script = "kill -TERM $$";
    env.submit().args(["--", "sh", "-c", script]).assert().code(143).stdout("").stderr("");
}

#[test]
fn stdin_reaches_the_job_inline_and_as_a_blob() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _executor = env.executor("one", 2);
    let cat = ["--stdin", "-", "--", "cat"];
    env.submit().args(cat).write_stdin("x\n").assert().success().stdout("x\n").stderr("");
    let binary: Vec<u8> = (0..=255).cycle().take(3_000).collect();
    env.submit().args(cat).write_stdin(binary.clone()).assert().success().stdout(binary);
    let long: Vec<u8> = (0..=250).cycle().take(3_000_000).collect();
    env.submit().args(cat).write_stdin(long.clone()).assert().success().stdout(long.clone());
    std::fs::write(env.path("file"), &long).expect("a file");
    env.submit().args(["--stdin", "file", "--", "cat"]).assert().success().stdout(long);
}

#[test]
fn stdin_is_empty_unless_asked_for_and_one_hint_says_so() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _executor = env.executor("one", 2);
    let hint = contains("hint: ").count(1).and(contains("--stdin -"));
    let mut cat = env.submit();
    cat.args(["--", "cat"]).write_stdin("x").assert().success().stdout("").stderr(hint);
    let run = env.run("ucp-submit", &["--", "cat"]);
    assert_eq!((run.stdout.as_slice(), run.stderr.as_slice()), (&b""[..], &b""[..]));
}

#[test]
fn output_comes_while_the_job_runs() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _executor = env.executor("one", 2);
    let latch = Latch { env: &env, name: "live" };
    let script = format!("echo first; {}; echo second", latch.script());
    let mut submit = env.command("ucp-submit");
    let submit = submit.args(["--", "sh", "-c", &script]).stdin(Stdio::null());
    let mut submit = submit.stdout(Stdio::piped()).spawn().expect("it starts");
    let mut stdout = submit.stdout.take().expect("it is piped");
    let mut first = [0; 6];
    stdout.read_exact(&mut first).expect("output");
    assert_eq!(&first, b"first\n");
    latch.release();
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).expect("output");
    assert_eq!(rest, "second\n");
    assert!(submit.wait().expect("it ends").success());
}

#[test]
fn a_broker_that_starts_again_is_noticed_on_stderr_alone() {
    let env = TestEnv::new();
    let broker = env.broker();
    let _executor = env.executor("one", 2);
    let latch = Latch { env: &env, name: "held" };
    let script = format!("echo before; {}; echo after; exit 3", latch.script());
    let mut submit = env.command("ucp-submit");
    let submit = submit.args(["--", "sh", "-c", &script]).stdin(Stdio::null());
    let submit = submit.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    latch.wait();
    broker.kill();
    let _broker = env.broker();
    latch.release();
    let output = submit.wait_with_output().expect("it ends");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "before\nafter\n");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("does not answer") && said.contains("answers, going on"), "{said}");
    assert_eq!(output.status.code(), Some(3));
}

#[test]
fn ctrl_c_cancels_and_term_and_hup_detach() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _executor = env.executor("one", 2);
    for (signal, code, word) in [
        (Signal::SIGINT, 130, "cancelled"),
        (Signal::SIGTERM, 126, "detached"),
        (Signal::SIGHUP, 126, "detached"),
    ] {
        let latch = Latch { env: &env, name: signal.as_str() };
        let mut submit = env.command("ucp-submit");
        let submit = submit.args(["--", "sh", "-c", &latch.script()]).stdin(Stdio::null());
        let submit = submit.stderr(Stdio::piped()).spawn().expect("it starts");
        latch.wait();
        let pid = i32::try_from(submit.id()).expect("a pid");
        nix::sys::signal::kill(Pid::from_raw(pid), signal).expect("it is there");
        let output = submit.wait_with_output().expect("it ends");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.lines().any(|line| line.starts_with("ucp-submit: 0") && line.contains(word)));
        latch.release();
    }
}

#[test]
fn ctrl_c_waits_until_the_processes_of_the_job_are_gone() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _executor = env.executor("one", 1);
    let script = "trap '' TERM; echo $$ >\"$0\"; while :; do sleep 0.01; done";
    let mut submit = env.command("ucp-submit");
    let submit = submit.args(["--", "sh", "-c", script]).arg(env.path("pid")).stdin(Stdio::null());
    let mut submit = submit.stderr(Stdio::null()).spawn().expect("it starts");
    let job = wait_until("the job runs", || env.lines("pid").first()?.parse::<i32>().ok());
    let pid = i32::try_from(submit.id()).expect("a pid");
    nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGINT).expect("it is there");
    assert_eq!(submit.wait().expect("it ends").code(), Some(130));
    let gone = nix::sys::signal::kill(Pid::from_raw(job), None);
    assert_eq!(gone, Err(nix::errno::Errno::ESRCH), "it was killed and reaped before we ended");
}

#[test]
fn a_closed_pipe_ends_the_job_and_us_quietly() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _executor = env.executor("one", 2);
    let mut submit = env.command("ucp-submit");
    let submit = submit.args(["--", "timeout", "60", "yes"]).stdin(Stdio::null());
    let mut submit =
        submit.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let mut some = [0; 100];
    submit.stdout.take().expect("it is piped").read_exact(&mut some).expect("output");
    let output = submit.wait_with_output().expect("it ends");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(output.status.code(), Some(0));
    wait_until("the job is cancelled", || {
        let listed = env.run("ucp-submit", &["list", "--state", "cancelled", "--json"]);
        (!listed.stdout.is_empty()).then_some(())
    });
}

#[test]
fn json_prints_the_result_line_alone() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _executor = env.executor("one", 2);
    let run =
        env.run("ucp-submit", &["--json", "--", "sh", "-c", "echo out; echo err >&2; exit 4"]);
    let line: serde_json::Value = serde_json::from_slice(&run.stdout).expect("one line");
    assert_eq!(line["type"], "result");
    assert_eq!((&line["state"], &line["exit"]), (&"failed".into(), &4.into()));
    assert_eq!((&line["stdout"], &line["stderr"]), (&"out\n".into(), &"err\n".into()));
    assert_eq!(run.status.code(), Some(4));
    assert_eq!(String::from_utf8_lossy(&run.stderr), "");
}

#[test]
fn flags_reach_the_job() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _executor = env.executor_with("one", &["--slots", "2", "--label", "gpu=a100"]);
    let run = env.submit().args(["--env", "A=b c", "--", "sh", "-c", "printf \"$A\""]).assert();
    run.success().stdout("b c");
    let first = env.run("ucp-submit", &["--detach", "--name", "first", "--", "true"]);
    let first = String::from_utf8(first.stdout).expect("an id");
    let after = ["--after", first.trim(), "--needs", "label=gpu", "--precedence", "flash"];
    env.submit().args(after).args(["--", "echo", "after"]).assert().success().stdout("after\n");
    let mut retried = env.submit();
    let script = "test -e again || { touch again; exit 1; }";
    let script = format!("cd {}; {script}", env.path("").display());
    retried.args(["--retries", "1", "--", "sh", "-c", &script]).assert().success();
    let keyed = || env.run("ucp-submit", &["--detach", "--key", "k", "--", "echo", "one"]).stdout;
    assert_eq!(keyed(), keyed());
}

#[test]
fn the_environment_stands_for_flags_and_flags_win() {
    let env = TestEnv::new();
    let broker = env.broker();
    let _executor = env.executor("one", 2);
    let mut twin = env.submit();
    twin.env("UCP_SUBMIT_TIMEOUT", "100ms").args(["--", "sleep", "60"]).assert().code(124);
    let mut wins = env.submit();
    wins.env("UCP_SUBMIT_TIMEOUT", "1ms").args(["--timeout", "50s", "--", "true"]).assert().code(0);
    let address = broker.ready["listen"][0].as_str().expect("an address").to_owned();
    let mut named = env.submit();
    named.env("UCP_BROKER", format!("unix:/nowhere {address}")).env("XDG_RUNTIME_DIR", "/nowhere");
    named.args(["--", "echo", "found"]).assert().success().stdout("found\n");
}

#[test]
fn a_signal_to_a_job_that_writes_much_is_not_held_up_by_a_slow_reader() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _executor = env.executor("one", 2);
    let mut submit = env.command("ucp-submit");
    let submit = submit.args(["--", "timeout", "60", "yes"]).stdin(Stdio::null());
    let mut submit =
        submit.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let mut stdout = submit.stdout.take().expect("it is piped");
    let mut some = [0; 100];
    stdout.read_exact(&mut some).expect("output");
    let pid = Pid::from_raw(i32::try_from(submit.id()).expect("a pid"));
    nix::sys::signal::kill(pid, Signal::SIGTERM).expect("it is there");
    let output = submit.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(126));
    let job = String::from_utf8_lossy(&output.stderr).split(' ').nth(1).map(str::to_owned);
    let job = job.expect("an id").trim_end_matches(':').to_owned();
    env.submit().args(["cancel", &job]).assert().success();
    std::io::stdout().flush().expect("flushed");
}
