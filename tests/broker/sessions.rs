//! Sessions: what an executor may say, and what it is told.

use serde_json::json;
use ucp::proto::limits;
use ucp::proto::message::{BrokerMessage, ExecutorMessage};

use crate::common::{TestEnv, wait_until};
use crate::peer::{Http, Played, hello, wrote};

fn refusal(executor: &mut Played) -> String {
    match executor.hear() {
        Some(BrokerMessage::Refused { code, .. }) => {
            assert_eq!(executor.hear(), None, "the session ends");
            code
        }
        other => panic!("no refusal but {other:?}"),
    }
}

#[test]
fn an_executor_is_registered_gets_work_and_is_acknowledged() {
    let env = TestEnv::new();
    let broker = env.broker();
    let http = Http(env.socket());
    let mut executor = Played::join(&env.socket(), hello("van", 1));
    let seen = http.get("/v1/executors").lines();
    assert_eq!(
        (&seen[0]["executor"], &seen[0]["state"]),
        (&json!("van-00000001"), &json!("alive"))
    );
    let load = hello("van", 1).load;
    executor.say(&ExecutorMessage::Heartbeat { load, draining: false, number: 0 });
    assert_eq!(executor.hear(), Some(BrokerMessage::Heard { number: 0 }));

    let id = http.submit(&json!({"command": ["echo", "hi"]}));
    let order = executor.start();
    assert_eq!(order.job.to_string(), id);
    assert_eq!(order.spec.command, ["echo", "hi"]);
    executor.report(&order, wrote(b"hi\n", b""));
    let result = http.get(&format!("/v1/jobs/{id}?until=accepted")).json();
    assert_eq!((&result["state"], &result["stdout"]), (&json!("succeeded"), &json!("hi\n")));
    assert_eq!((&result["final"], &result["verdict"]), (&json!(true), &json!("accepted")));
    let shown = http.get(&format!("/v1/jobs/{id}")).json();
    assert_eq!(shown["results"][0]["result"]["stdout"]["text"], "hi\n");
    let output = env.run("ucp-broker", &["executors"]);
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(table.starts_with("executor") && table.contains("van-00000001  alive"), "{table}");
    assert_eq!(broker.stderr(), "");
}

#[test]
fn who_does_not_say_hello_is_refused() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let mut silent = Played::upgrade(&env.socket());
    let load = hello("van", 1).load;
    silent.say(&ExecutorMessage::Heartbeat { load, draining: false, number: 0 });
    assert_eq!(refusal(&mut silent), "no-hello");
    let mut newer = hello("van", 1);
    newer.v += 1;
    let mut other = Played::upgrade(&env.socket());
    other.say(&ExecutorMessage::Hello(newer));
    assert_eq!(refusal(&mut other), "protocol-version");
    let mut noisy = Played::upgrade(&env.socket());
    noisy.say_line("\u{1}garbage");
    assert_eq!(refusal(&mut noisy), "bad-message");
}

#[test]
fn a35_unknown_messages_are_passed_over_and_garbage_ends_the_session() {
    let env = TestEnv::new();
    let mut broker = env.broker();
    let http = Http(env.socket());
    let mut executor = Played::join(&env.socket(), hello("van", 1));
    executor.say_line(r#"{"type":"weather","sky":"grey"}"#);
    let load = hello("van", 1).load;
    executor.say(&ExecutorMessage::Heartbeat { load, draining: false, number: 0 });
    assert_eq!(executor.hear(), Some(BrokerMessage::Heard { number: 0 }));
    executor.say_line(r#"{"type":"stopped"}"#);
    assert_eq!(refusal(&mut executor), "bad-message");

    let mut executor = Played::join(&env.socket(), hello("lorry", 1));
    executor.say_line(&"x".repeat(limits::LINE_BYTES_MAX + 1));
    assert_eq!(refusal(&mut executor), "bad-message");
    assert!(broker.is_alive());
    assert_eq!(http.get("/healthz").status, 200);
}

#[test]
fn an_executor_that_goes_away_loses_its_attempts_after_the_grace() {
    let env = TestEnv::new();
    let _broker = env.broker_with(&["--reconnect-grace", "50ms"]);
    let http = Http(env.socket());
    let mut executor = Played::join(&env.socket(), hello("van", 1));
    let id = http.submit(&json!({"command": ["true"]}));
    let first = executor.start();
    drop(executor);
    wait_until("the attempt is lost", || {
        let shown = http.get(&format!("/v1/jobs/{id}")).json();
        (shown["attempts"][0]["state"] == "lost").then_some(())
    });
    let mut other = Played::join(&env.socket(), hello("lorry", 1));
    let second = other.start();
    assert!(second.job == first.job && second.attempt != first.attempt);
    other.report(&second, wrote(b"", b""));
    let result = http.get(&format!("/v1/jobs/{id}?until=accepted")).json();
    assert_eq!(result["executor"], "lorry-00000001");
}

#[test]
fn a_silent_executor_is_given_up() {
    let env = TestEnv::new();
    let _broker = env.broker_with(&["--suspect-after", "100ms", "--lost-after", "200ms"]);
    let mut executor = Played::join(&env.socket(), hello("van", 1));
    assert_eq!(executor.hear(), None, "the broker closes the session of a silent executor");
    assert!(Http(env.socket()).get("/v1/executors").lines().is_empty());
}

#[tokio::test(flavor = "current_thread")]
async fn a_living_process_is_told_from_one_that_ended() {
    use std::process::{Command, Stdio};
    use std::time::Duration;
    use ucp::runtime::session::peer::Peer;

    let mut child =
        Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("cat");
    let peer = Peer::watch(i32::try_from(child.id()).ok());
    assert!(!peer.is_gone_within(Duration::ZERO).await);
    child.kill().expect("it lives");
    assert!(peer.is_gone_within(Duration::from_secs(20)).await);
    let _ = child.wait();
    assert!(!Peer::watch(None).is_gone_within(Duration::ZERO).await);
}
