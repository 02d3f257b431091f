//! Brokers that take connections and do not answer, and none at all.

use std::os::unix::net::UnixListener;
use std::process::{Child, Stdio};

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use predicates::prelude::PredicateBooleanExt;
use predicates::str::{contains, starts_with};
use ucp::proto::id::Digest;
use ucp::proto::result::OutputFile;

use crate::common::{Daemon, TestEnv, wait_until};
use crate::peer::{Http, Played, hello, wrote};

#[test]
fn a_question_to_a_stopped_broker_ends_with_69() {
    let env = TestEnv::new();
    let broker = env.broker();
    let socket = env.socket().display().to_string();
    broker.signal(Signal::SIGSTOP);
    let known = "00000000-0000-0000-0000-000000000001";
    let questions = [
        &["list"][..],
        &["show", known],
        &["wait", known],
        &["output", known],
        &["cancel", known],
        &["--stdin", "long", "--", "cat"],
    ];
    std::fs::write(env.path("long"), vec![b'x'; 1 << 20]).expect("a file");
    for arguments in questions {
        let said = starts_with("ucp-submit: no broker reachable: ")
            .and(contains(format!("{socket} does not answer\n")))
            .and(contains("hint: looked at "));
        let mut submit = env.submit();
        submit.args(["--connect-timeout", "200ms"]).args(arguments);
        submit.assert().code(69).stdout("").stderr(said);
    }
    let status = env.run("ucp-broker", &["status", "--connect-timeout", "200ms"]);
    let said = String::from_utf8_lossy(&status.stderr).into_owned();
    assert!(said.contains("no broker reachable: ") && said.contains("does not answer"), "{said}");
    assert_eq!(status.status.code(), Some(69));
}

#[test]
fn the_next_place_is_tried_after_one_that_does_not_answer() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _executor = env.executor("one", 2);
    let mute = env.path("mute.sock");
    let _listener = UnixListener::bind(&mute).expect("a socket");
    let both = format!("unix:{} unix:{}", mute.display(), env.socket().display());
    let submit = |arguments: &[&str]| {
        let mut submit = env.submit();
        submit.env("UCP_BROKER", &both).args(["--connect-timeout", "400ms"]).args(arguments);
        submit.assert().code(0)
    };
    submit(&["list"]).stderr("");
    let said = contains("mute.sock does not answer");
    submit(&["--", "echo", "hi"]).stdout("hi\n").stderr(said);
    let mut status = env.command("ucp-broker");
    let status = status.env("UCP_BROKER", &both).args(["status", "--connect-timeout", "400ms"]);
    assert!(status.output().expect("it starts").status.success());
}

fn started(env: &TestEnv, arguments: &[&str]) -> Daemon {
    let mut submit = env.command("ucp-submit");
    submit.args(arguments);
    Daemon::start(submit, &env.path("submit.err"))
}

#[test]
fn a_run_that_was_sent_to_a_stopped_broker_says_so_and_goes_on() {
    let env = TestEnv::new();
    let broker = env.broker();
    let _executor = env.executor("one", 2);
    broker.signal(Signal::SIGSTOP);
    let ran = env.path("ran").display().to_string();
    let script = format!("echo x >> {ran}");
    let mut run = started(&env, &["--connect-timeout", "200ms", "--", "sh", "-c", &script]);
    wait_until("it says so", || run.stderr().contains("does not answer, waiting").then_some(()));
    assert!(run.is_alive());
    broker.signal(Signal::SIGCONT);
    assert!(run.wait().success());
    assert_eq!(env.lines("ran"), ["x"]);
}

#[test]
fn a_wait_that_takes_longer_than_the_connect_timeout_is_not_cut() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _executor = env.executor("one", 2);
    let mut json = env.submit();
    let args = ["--connect-timeout", "100ms", "--json", "--", "sleep", "0.6"];
    json.args(args).assert().code(0).stderr("");
}

/// Waits until a process attends to SIGINT itself, and sends it.
fn interrupt(child: &Child) {
    let status = format!("/proc/{}/status", child.id());
    wait_until("it attends to signals", || {
        let text = std::fs::read_to_string(&status).ok()?;
        let caught = text.lines().find_map(|line| line.strip_prefix("SigCgt:"))?;
        let caught = u64::from_str_radix(caught.trim(), 16).ok()?;
        (caught & 0b10 != 0).then_some(())
    });
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
    nix::sys::signal::kill(pid, Signal::SIGINT).expect("it is there");
}

#[test]
fn ctrl_c_before_a_broker_was_found_submits_nothing() {
    let env = TestEnv::new();
    for mode in [&[][..], &["--json"]] {
        let mut submit = env.command("ucp-submit");
        submit.args(["--connect-timeout", "1h"]).args(mode).args(["--", "true"]);
        submit.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let submit = submit.spawn().expect("it starts");
        interrupt(&submit);
        let output = submit.wait_with_output().expect("it ends");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("nothing was submitted"), "{said}");
        assert_eq!(output.status.code(), Some(130), "{said}");
    }
    let _broker = env.broker();
    env.submit().args(["list", "--json"]).assert().success().stdout("");
}

#[test]
fn a_second_ctrl_c_leaves_the_job_to_itself() {
    let env = TestEnv::new();
    let broker = env.broker();
    let _executor = env.executor("one", 2);
    let begun = env.path("begun");
    let script = format!("touch {}; exec sleep 600", begun.display());
    for many in [&["--each"][..], &[]] {
        let _ = std::fs::remove_file(&begun);
        let mut submit = env.command("ucp-submit");
        submit.args(many).args(["--", "sh", "-c", &script]);
        submit.stdin(Stdio::piped()).stdout(Stdio::null());
        submit.stderr(std::fs::File::create(env.path("said")).expect("a file"));
        let mut submit = submit.spawn().expect("it starts");
        let mut stdin = submit.stdin.take().expect("it is piped");
        std::io::Write::write_all(&mut stdin, b"1\n").expect("written");
        wait_until("the job runs", || begun.exists().then_some(()));
        // A broker that is stopped cancels nothing.
        broker.signal(Signal::SIGSTOP);
        interrupt(&submit);
        let said = || env.lines("said").join("\n");
        wait_until("it says so", || said().contains("cancelling").then_some(()));
        interrupt(&submit);
        let ended = wait_until("it ends", || submit.try_wait().expect("a child of ours"));
        assert_eq!(ended.code(), Some(126), "{}", said());
        assert!(said().contains("outcome unknown: detached"), "{}", said());
        broker.signal(Signal::SIGCONT);
    }
}

#[test]
fn ctrl_c_to_a_filter_without_a_broker_ends_it_at_once() {
    let env = TestEnv::new();
    let mut each = env.command("ucp-submit");
    each.args(["--connect-timeout", "1h", "--each", "--", "true"]);
    each.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut each = each.spawn().expect("it starts");
    let mut stdin = each.stdin.take().expect("it is piped");
    std::io::Write::write_all(&mut stdin, b"1\n2\n").expect("written");
    interrupt(&each);
    // Stdin stays open: it is the signal that ends the filter.
    let output = each.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.contains("cancelling 0 jobs"), "{said}");
    drop(stdin);
}

#[test]
fn ctrl_c_while_files_are_handed_over_submits_nothing() {
    let env = TestEnv::new();
    // Stdin never ends, so what it holds is never whole.
    for mode in [&["--stdin", "-"][..], &["--json", "--in", "-=x"], &["--wasm", "-"]] {
        let mut submit = env.command("ucp-submit");
        submit.args(["--connect-timeout", "1h"]).args(mode);
        if !mode.contains(&"--wasm") {
            submit.args(["--", "true"]);
        }
        submit.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut submit = submit.spawn().expect("it starts");
        let stdin = submit.stdin.take().expect("it is piped");
        interrupt(&submit);
        let output = submit.wait_with_output().expect("it ends");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("nothing was submitted"), "{said}");
        assert_eq!(output.status.code(), Some(130), "{said}");
        drop(stdin);
    }
}

#[test]
fn ctrl_c_while_outputs_are_fetched_leaves_the_result_and_no_half_file() {
    let env = TestEnv::new();
    let broker = env.broker();
    let blob = Digest::of(b"x");
    let mut executor = Played::join(&env.socket(), hello("played", 1));
    let mut submit = env.command("ucp-submit");
    submit.args(["--json", "--out", "f", "--out-dir", "o", "--", "x"]).stdin(Stdio::null());
    submit.stdout(Stdio::piped()).stderr(Stdio::piped());
    let submit = submit.spawn().expect("it starts");
    let order = executor.start();
    let put = Http(env.socket()).ask("PUT", &format!("/v1/blobs/{blob}"), "", b"x");
    assert_eq!(put.status, 201);
    // A pipe in the blob's place never gives its content.
    let digest = blob.to_string();
    let path = env.path(&format!("state/ucp/broker/blobs/{}/{}", &digest[..2], &digest[2..]));
    std::fs::remove_file(&path).expect("it was there");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("a fifo");
    let mut result = wrote(b"out", b"");
    result.outputs.insert("f".into(), OutputFile { size: 1, blob, executable: false });
    executor.report(&order, result);
    wait_until("it fetches", || {
        let begun = std::fs::read_dir(env.path("o")).ok()?.count();
        (begun > 0).then_some(())
    });
    interrupt(&submit);
    let output = submit.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.contains("interrupted before all its files were here"), "{said}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("\"stdout\":\"out\""));
    assert_eq!(std::fs::read_dir(env.path("o")).expect("a directory").count(), 0);
    broker.kill();
}
