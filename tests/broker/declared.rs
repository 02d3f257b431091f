//! `ucp-broker declare-lost` with real executors: one that is stopped and one that is well.

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::common::{TestEnv, wait_until};
use crate::peer::{Http, Played, hello};

fn executor(http: &Http, name: &str) -> Option<Value> {
    let lines = http.get("/v1/executors").lines();
    lines.into_iter().find(|line| line["executor"] == name)
}

#[test]
fn the_jobs_of_a_stopped_executor_run_elsewhere_at_once_and_it_may_come_back() {
    let env = TestEnv::new();
    let _broker = env.broker_with(&["--suspect-after", "20m", "--lost-after", "30m"]);
    let http = Http(env.socket());
    let van = env.executor("van", 1);
    let name = van.ready["executor"].as_str().expect("a name").to_owned();
    let first = env.path("first");
    let script = format!("if mkdir {0}; then exec sleep 1000; fi; echo second", first.display());
    let job = http.submit(&json!({"command": ["sh", "-c", script]}));
    wait_until("the job runs", || first.exists().then_some(()));
    van.signal(Signal::SIGSTOP);
    let lorry = env.executor("lorry", 1);

    let declared = env.run("ucp-broker", &["declare-lost", &name, "--reason", "it burnt"]);
    assert!(declared.status.success() && declared.stderr.is_empty(), "{declared:?}");
    let said = String::from_utf8_lossy(&declared.stdout).into_owned();
    assert_eq!(said, format!("executor {name} is lost with 1 attempt\n"));
    let result = http.get(&format!("/v1/jobs/{job}?until=accepted")).json();
    assert_eq!((&result["state"], &result["stdout"]), (&json!("succeeded"), &json!("second\n")));
    assert_eq!(result["executor"], lorry.ready["executor"]);
    let lost = &http.get(&format!("/v1/jobs/{job}")).json()["attempts"][0];
    let reason = "an operator declared its executor lost: it burnt";
    assert_eq!((&lost["state"], &lost["reason"]), (&json!("lost"), &json!(reason)));
    assert!(lost["unproven"].is_string(), "{lost}");
    assert!(executor(&http, &name).is_none());

    van.signal(Signal::SIGCONT);
    let back = wait_until("it is back and has stopped what counts no more", || {
        executor(&http, &name).filter(|van| van["attempts"] == json!([]))
    });
    assert_eq!(back["state"], "alive");
    assert_eq!(http.get("/v1/audit").json()["ok"], true);
}

#[test]
fn an_executor_that_is_well_is_cut_off_and_comes_back() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let van = env.executor("van", 1);
    let name = van.ready["executor"].as_str().expect("a name").to_owned();
    let declared = env.run("ucp-broker", &["declare-lost", &name, "--json"]);
    let said: Value = serde_json::from_slice(&declared.stdout).expect("one line");
    assert_eq!(said, json!({"type": "lost", "executor": name, "attempts": []}));
    let http = Http(env.socket());
    wait_until("it is back", || executor(&http, &name).filter(|van| van["state"] == "alive"));
    env.submit().args(["--", "true"]).assert().success();
}

#[test]
fn an_unknown_executor_is_absent() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let unknown = env.run("ucp-broker", &["declare-lost", "van-00000001", "--json"]);
    assert_eq!((unknown.status.code(), unknown.stdout.len()), (Some(66), 0), "{unknown:?}");
    let said = String::from_utf8_lossy(&unknown.stderr).into_owned();
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines[0], "ucp-broker: no executor van-00000001 is known here");
    assert!(lines[1].starts_with("hint: 'ucp-broker executors'"), "{said}");
    let document: Value = serde_json::from_str(lines[2]).expect("a problem document");
    assert_eq!((&document["code"], &document["status"]), (&json!("no-executor"), &json!(404)));
    let usage = env.run("ucp-broker", &["declare-lost", "a/b"]);
    assert_eq!(usage.status.code(), Some(64), "{usage:?}");
    let http = Http(env.socket());
    let odd = http.ask("POST", "/v1/executors/%2f/lost", "", b"");
    assert_eq!((odd.status, &odd.json()["code"]), (404, &json!("no-executor")));
    let _van = Played::join(&env.socket(), hello("van", 1));
    let long = json!({"reason": "x".repeat(2_000)}).to_string();
    let path = "/v1/executors/van-00000001/lost";
    let refused = http.ask("POST", path, "application/json", long.as_bytes());
    assert_eq!((refused.status, &refused.json()["code"]), (422, &json!("bad-body")));
    assert_eq!(http.ask("POST", path, "", b"").status, 200);
}
