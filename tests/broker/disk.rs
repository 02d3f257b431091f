//! A full disk: nothing is taken in, everything else goes on, and it ends by itself.
//!
//! The data directory is a small file system of its own, which only root may mount; elsewhere
//! these tests say loudly that they did not run.

#![allow(clippy::print_stderr, reason = "a test that did not run says so")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use ucp::proto::id::Digest;

use crate::common::{Daemon, TestEnv, wait_until};
use crate::peer::{Http, Played, hello, wrote};

const JSON: &str = "application/json";

/// A file system of 48 MiB, gone at the end.
struct Small(PathBuf);

impl Small {
    fn mount(at: PathBuf) -> Option<Self> {
        std::fs::create_dir(&at).expect("a directory");
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", "size=48m,mode=700", "tmpfs"]).arg(&at);
        if command.output().is_ok_and(|output| output.status.success()) {
            return Some(Self(at));
        }
        eprintln!("SKIPPED: no file system may be mounted here (root is needed)");
        None
    }

    fn broker(&self, env: &TestEnv) -> Daemon {
        env.broker_with(&["--data", self.0.to_str().expect("text")])
    }

    /// Takes all space that is left.
    fn fill(&self) {
        let ballast = self.0.join("ballast");
        let mut file = std::fs::File::options().create(true).append(true).open(ballast);
        let file = file.as_mut().expect("a file");
        for size in [1 << 20, 1 << 12, 1] {
            while file.write_all(&vec![b'x'; size]).is_ok() {}
        }
    }

    fn free(&self) {
        std::fs::remove_file(self.0.join("ballast")).expect("it was filled");
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

fn job(size: usize) -> Vec<u8> {
    json!({"spec": {"command": ["true", "x".repeat(size)]}}).to_string().into_bytes()
}

/// Submits until the broker says that its disk is full, and gives the jobs that it took.
fn submit_until_full(http: &Http, small: &Small) -> Vec<String> {
    let mut taken = vec![];
    wait_until("the disk is full", || {
        small.fill();
        let answer = http.ask("POST", "/v1/jobs", JSON, &job(100_000));
        let said = answer.json();
        if answer.status == 201 {
            taken.push(said["job"].as_str().expect("an id").to_owned());
            return None;
        }
        assert_eq!((answer.status, &said["code"]), (507, &json!("disk-full")), "{said}");
        assert_eq!(said["retryable"], true);
        assert!(said["hint"].as_str().is_some_and(|hint| hint.contains("make room")), "{said}");
        Some(())
    });
    taken
}

fn submit_when_there_is_room(http: &Http) -> String {
    wait_until("the broker takes jobs again", || {
        let answer = http.ask("POST", "/v1/jobs", JSON, &job(1));
        (answer.status == 201).then(|| answer.json()["job"].as_str().expect("an id").to_owned())
    })
}

fn assert_holds(http: &Http, jobs: &[String]) {
    let listed: Vec<_> = http.get("/v1/jobs").lines();
    for job in jobs {
        assert!(listed.iter().any(|line| line["job"] == json!(job)), "{job} is lost");
    }
}

fn assert_books(env: &TestEnv, http: &Http, broker: Daemon, data: &Path) {
    assert_eq!(http.get("/v1/audit").json()["ok"], true);
    broker.kill();
    let check = env.run("ucp-broker", &["check", "--data", data.to_str().expect("text")]);
    assert!(check.status.success(), "{check:?}");
}

#[test]
fn a19_a_full_disk_refuses_what_is_new_and_serves_what_is_there() {
    let env = TestEnv::new();
    let Some(small) = Small::mount(env.path("small")) else { return };
    let broker = small.broker(&env);
    let http = Http(env.socket());
    let mut executor = Played::join(&env.socket(), hello("van", 1));
    let running = http.submit(&json!({"command": ["true"]}));
    let order = executor.start();
    let mut jobs = submit_until_full(&http, &small);
    jobs.push(running.clone());

    // All that only reads, and the session, go on.
    assert_holds(&http, &jobs);
    assert_eq!(http.get("/v1/status").status, 200);
    assert_eq!(http.get("/healthz").json()["ok"], true);
    let unready = http.get("/readyz");
    assert_eq!((unready.status, &unready.json()["code"]), (503, &json!("disk-full")));
    assert!(http.get("/metrics").text().contains("ucp_store_disk{state=\"full\"} 1\n"));
    assert_eq!(http.get(&format!("/v1/jobs/{running}")).json()["state"], "running");
    assert_eq!(http.get(&format!("/v1/jobs/{running}/why")).status, 200);
    assert_eq!(http.get("/v1/executors").lines().len(), 1);
    assert_eq!(http.get("/v1/audit").json()["ok"], true);
    let load = hello("van", 1).load;
    executor.say(&ucp::proto::message::ExecutorMessage::Heartbeat {
        load,
        draining: false,
        number: 0,
    });
    assert!(executor.hear().is_some(), "it is heard");
    for order in [format!("jobs/{running}/cancel"), "executors/van-00000001/lost".into()] {
        assert_eq!(http.ask("POST", &format!("/v1/{order}"), "", b"").status, 507, "{order}");
    }
    let content = vec![7; 3_000_000];
    let blob = format!("/v1/blobs/{}", Digest::of(&content));
    assert_eq!(http.ask("PUT", &blob, "", &content).status, 507);
    let lines = [job(1), job(1)].join(&b'\n');
    let lines = http.ask("POST", "/v1/jobs?until=accepted", "application/x-ndjson", &lines).lines();
    assert_eq!(lines.iter().filter(|line| line["code"] == "disk-full").count(), 2, "{lines:?}");
    let output = env.run("ucp-submit", &["--detach", "--", "true"]);
    assert_eq!(output.status.code(), Some(75), "{output:?}");

    // A result stays with its executor, which brings it again.
    executor.send_result(&order, wrote(b"done\n", b""));
    executor.say(&ucp::proto::message::ExecutorMessage::Heartbeat {
        load,
        draining: false,
        number: 0,
    });
    assert!(matches!(executor.hear(), Some(ucp::proto::message::BrokerMessage::Heard { .. })));
    small.free();
    jobs.push(submit_when_there_is_room(&http));
    while executor.hear().is_some() {}
    let mut again = hello("van", 1);
    again.attempts.push(order.attempt.clone());
    let mut executor = Played::join(&env.socket(), again);
    executor.report(&order, wrote(b"done\n", b""));
    let shown = http.get(&format!("/v1/jobs/{running}")).json();
    assert_eq!((&shown["state"], &shown["attempts"][1]), (&json!("succeeded"), &json!(null)));
    assert_eq!(http.ask("PUT", &blob, "", &content).status, 201);
    assert_holds(&http, &jobs);
    assert_books(&env, &http, broker, &small.0);
}

#[test]
fn a19_kill_9_on_a_full_disk_loses_nothing_that_was_acknowledged() {
    let env = TestEnv::new();
    let Some(small) = Small::mount(env.path("small")) else { return };
    let broker = small.broker(&env);
    let http = Http(env.socket());
    let mut jobs = submit_until_full(&http, &small);
    jobs.extend(submit_until_full(&http, &small));
    broker.kill();
    small.free();
    let broker = small.broker(&env);
    assert_holds(&http, &jobs);
    jobs.push(submit_when_there_is_room(&http));
    assert_books(&env, &http, broker, &small.0);
    // It is full from the start: it serves what it has.
    std::fs::remove_file(small.0.join("reserve")).expect("the reserve");
    let mut file = std::fs::File::create(small.0.join("ballast")).expect("a file");
    while Command::new("df").arg("--output=avail").arg(&small.0).output().is_ok_and(|output| {
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines()
            .nth(1)
            .and_then(|line| line.trim().parse().ok())
            .is_some_and(|free: u64| free > 2048)
    }) {
        file.write_all(&vec![b'x'; 256 << 10]).expect("there is room");
    }
    drop(file);
    let broker = small.broker(&env);
    assert_eq!(http.ask("POST", "/v1/jobs", JSON, &job(1)).status, 507);
    assert_holds(&http, &jobs);
    small.free();
    submit_when_there_is_room(&http);
    drop(broker);
}

#[test]
fn a19_a_broker_that_is_stopped_on_a_full_disk_ends_in_order() {
    let env = TestEnv::new();
    let Some(small) = Small::mount(env.path("small")) else { return };
    let mut broker = small.broker(&env);
    let http = Http(env.socket());
    let jobs = submit_until_full(&http, &small);
    broker.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(broker.wait().code(), Some(0), "{}", broker.stderr());
    small.free();
    let broker = small.broker(&env);
    assert_holds(&http, &jobs);
    assert_books(&env, &http, broker, &small.0);
}
