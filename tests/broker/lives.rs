//! A broker's lives: starts, ends of all kinds, and what must be the same afterwards.

use std::os::unix::net::UnixDatagram;

use nix::sys::signal::Signal;
use serde_json::json;
use ucp::proto::message::BrokerMessage;

use crate::common::{Daemon, TestEnv};
use crate::peer::{Http, Played, hello, wrote};

fn log(broker: &Daemon) -> String {
    broker.ready["log"].as_str().expect("a log").to_owned()
}

fn said(output: &std::process::Output) -> (Option<i32>, String) {
    assert!(output.stdout.is_empty(), "{output:?}");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a1_kill_9_and_a_new_start_keep_every_job_and_the_log() {
    let env = TestEnv::new();
    let broker = env.broker();
    let http = Http(env.socket());
    let first = log(&broker);
    let mut jobs = vec![];
    for _ in 0..5 {
        jobs.push(http.submit(&json!({"command": ["true"]})));
    }
    let before = http.get("/v1/status").json();
    broker.kill();
    assert!(env.socket().exists(), "a killed broker leaves its socket");

    let broker = env.broker();
    assert_eq!(log(&broker), first, "the log goes on");
    let after = http.get("/v1/status").json();
    assert_eq!((&before["digest"], &before["vector"]), (&after["digest"], &after["vector"]));
    let listed: Vec<_> =
        http.get("/v1/jobs").lines().iter().rev().map(|l| l["job"].clone()).collect();
    assert_eq!(listed, jobs);
    let audit = env.run("ucp-broker", &["audit"]);
    assert!(audit.status.success(), "{audit:?}");
    assert!(String::from_utf8_lossy(&audit.stdout).contains("5 submitted = 5 waiting"));
}

#[test]
fn what_ran_during_a_kill_goes_on_and_is_not_run_twice() {
    let env = TestEnv::new();
    let broker = env.broker();
    let http = Http(env.socket());
    let mut executor = Played::join(&env.socket(), hello("van", 1));
    let id = http.submit(&json!({"command": ["true"]}));
    let order = executor.start();
    broker.kill();
    assert_eq!(executor.hear(), None);
    let _broker = env.broker();
    let mut again = hello("van", 1);
    again.attempts.push(order.attempt.clone());
    let mut executor = Played::join(&env.socket(), again);
    executor.report(&order, wrote(b"done\n", b""));
    let shown = http.get(&format!("/v1/jobs/{id}")).json();
    assert_eq!(shown["state"], "succeeded");
    assert_eq!(shown["attempts"].as_array().map(Vec::len), Some(1));
}

#[test]
fn a18_without_proof_a_fresh_log_carries_the_jobs_on() {
    let env = TestEnv::new();
    let broker = env.broker();
    let http = Http(env.socket());
    let first = log(&broker);
    let job = http.submit(&json!({"command": ["true"]}));
    broker.kill();
    std::fs::remove_file(env.path(&format!("run/ucp/{first}.head"))).expect("the head file");

    let broker = env.broker();
    assert_ne!(log(&broker), first, "a log whose end nobody proves is closed");
    let facts = http.get("/v1/facts").lines();
    let joined = facts.last().expect("the fresh log's first fact");
    assert_eq!(joined["body"]["continues"]["log"], json!(first));
    assert_eq!(joined["body"]["continues"]["last_seq"], json!(2));
    let shown = http.get(&format!("/v1/jobs/{job}")).json();
    assert_eq!((&shown["state"], &shown["owner"]), (&json!("waiting"), &json!(log(&broker))));
    assert_eq!(http.get("/v1/audit").json()["ok"], true);
}

#[test]
fn one_data_directory_has_one_broker() {
    let env = TestEnv::new();
    let broker = env.broker();
    let (status, stderr) = said(&env.run("ucp-broker", &["--name", "other"]));
    assert_eq!(status, Some(75), "{stderr}");
    let first = stderr.lines().next().expect("a line");
    assert!(
        first.contains(&format!("in use by another process, pid {}", broker.pid())),
        "{stderr}"
    );
    assert!(stderr.lines().nth(1).is_some_and(|line| line.starts_with("hint: ")), "{stderr}");
}

#[test]
fn a18_a_copy_of_a_live_brokers_data_directory_is_refused() {
    let env = TestEnv::new();
    let broker = env.broker();
    let http = Http(env.socket());
    http.submit(&json!({"command": ["true"]}));
    let data = env.path("state/ucp/broker");
    let copy = env.path("copy");
    std::fs::create_dir(&copy).expect("a directory");
    std::fs::set_permissions(&copy, std::os::unix::fs::PermissionsExt::from_mode(0o700))
        .expect("its mode");
    for entry in std::fs::read_dir(&data).expect("the data directory").flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_file()) {
            std::fs::copy(entry.path(), copy.join(entry.file_name())).expect("a copied file");
        }
    }
    let copy = copy.to_str().expect("text");
    let (status, stderr) = said(&env.run("ucp-broker", &["--data", copy]));
    assert_eq!(status, Some(78), "{stderr}");
    assert!(stderr.contains("is a copy"), "{stderr}");
    assert_eq!(http.get("/v1/status").json()["log"], json!(log(&broker)));
    assert_eq!(http.get("/v1/audit").json()["ok"], true);
}

#[test]
fn two_brokers_share_a_run_directory() {
    let env = TestEnv::new();
    let first = env.broker();
    let second = env.broker_with(&["--data", env.path("b").to_str().expect("text")]);
    let listen = &second.ready["listen"][0];
    let named = env.path(&format!("run/ucp/broker-{}.sock", log(&second)));
    assert_eq!(listen, &json!(format!("unix:{}", named.display())));
    assert_eq!(Http(named).get("/v1/status").json()["log"], second.ready["log"]);
    assert_eq!(Http(env.socket()).get("/v1/status").json()["log"], first.ready["log"]);
}

#[test]
fn other_machines_are_not_let_in_unguarded() {
    let env = TestEnv::new();
    let (status, stderr) = said(&env.run("ucp-broker", &["--listen", "http://0.0.0.0:0"]));
    assert_eq!(status, Some(78), "{stderr}");
    assert!(stderr.contains("hint: ") && stderr.contains("--insecure-plaintext"), "{stderr}");
    assert!(!env.socket().exists());
    let flags = ["--listen", "http://0.0.0.0:0", "--insecure-plaintext"];
    let broker = env.broker_with(&flags);
    assert!(broker.ready["listen"][1].as_str().is_some_and(|a| a.starts_with("http://0.0.0.0:")));
}

#[test]
fn a_signal_ends_it_cleanly() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let env = TestEnv::new();
        let mut broker = env.broker();
        let http = Http(env.socket());
        let mut executor = Played::join(&env.socket(), hello("van", 1));
        let id = http.submit(&json!({"command": ["true"]}));
        let waiting = http.begin("GET", &format!("/v1/jobs/{id}?until=accepted"), "", b"");
        broker.signal(signal);
        assert_eq!(broker.wait().code(), Some(0), "{}", broker.stderr());
        assert!(!env.socket().exists(), "the socket is removed");
        let refused = crate::peer::read_answer(waiting);
        assert_eq!((refused.status, &refused.json()["code"]), (503, &json!("shutting-down")));
        executor.start();
        assert_eq!(executor.hear(), Some(BrokerMessage::Leaving));
        assert_eq!(executor.hear(), None);
    }
}

#[test]
fn the_supervisor_is_told() {
    let env = TestEnv::new();
    let path = env.path("notify");
    let supervisor = UnixDatagram::bind(&path).expect("a socket");
    supervisor.set_read_timeout(Some(crate::common::DEADLINE)).expect("a timeout");
    let mut command = env.command("ucp-broker");
    command.env("NOTIFY_SOCKET", &path);
    let mut broker = Daemon::start(command, &env.path("broker.err"));
    let told = || {
        let mut buffer = [0; 1024];
        let size = supervisor.recv(&mut buffer).expect("a datagram");
        String::from_utf8_lossy(&buffer[..size]).into_owned()
    };
    assert!(told().starts_with("READY=1\nSTATUS="));
    assert_eq!(broker.line()["ready"], true);
    broker.signal(Signal::SIGTERM);
    assert_eq!(told(), "STOPPING=1\nSTATUS=stopping\n");
    assert!(broker.wait().success());
}

#[test]
fn flags_have_twins_and_wrong_ones_are_named() {
    let env = TestEnv::new();
    let mut command = env.command("ucp-broker");
    command.env("UCP_BROKER_NAME", "north");
    let mut broker = Daemon::start(command, &env.path("broker.err"));
    assert!(broker.line()["log"].as_str().is_some_and(|log| log.starts_with("north-")));
    broker.kill();
    for (flags, status, word) in [
        (&["--suspect-after", "5s"][..], 64, "--lost-after"),
        (&["--name", "a b"], 64, "--name"),
        (&["--peer", "nowhere"], 64, "--peer"),
        (&["--sync-max-rate", "0"], 64, "--sync-max-rate"),
        (&["--listen", "nowhere"], 64, "--listen"),
        (&["--data", "/dev/null/x"], 73, "/dev/null"),
        (&["frobnicate"], 64, "frobnicate"),
    ] {
        let (found, stderr) = said(&env.run("ucp-broker", flags));
        assert!(found == Some(status) && stderr.contains(word), "{flags:?}: {found:?} {stderr}");
    }
}

#[test]
fn questions_without_a_broker_end_with_69() {
    let env = TestEnv::new();
    for question in ["status", "executors", "audit", "facts"] {
        let flags = [question, "--connect-timeout", "10ms"];
        let (status, stderr) = said(&env.run("ucp-broker", &flags));
        assert_eq!(status, Some(69), "{stderr}");
        assert!(stderr.starts_with("ucp-broker: no broker reachable: "), "{stderr}");
    }
}
