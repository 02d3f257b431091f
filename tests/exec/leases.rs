//! Attempts of jobs that must not overlap: they end with their lease, whatever becomes of the
//! executor. The broker is played here, so that it can fall silent.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;
use ucp::proto::message::{BrokerMessage, StartOrder};

use super::*;

const LEASE: Duration = Duration::from_secs(1);

/// A broker with one session, which orders one attempt and answers heartbeats as long as it likes.
struct Played {
    silent: Arc<AtomicBool>,
    heard: Arc<Mutex<Vec<Value>>>,
}

fn order(spec: &Value) -> StartOrder {
    StartOrder {
        attempt: "played-00000001.1".parse().expect("an attempt"),
        job: "01890a5d-ac96-774b-bcce-b302099a8057".parse().expect("an id"),
        generation: 1,
        fence: 1,
        clock: ucp::proto::clock::Clock::default(),
        spec: Arc::new(serde_json::from_value(spec.clone()).expect("a spec")),
        elements: None,
        items: vec![],
        lease: Some(LEASE.into()),
        checkpoints: vec![],
        carried: vec![],
    }
}

impl Played {
    fn begin(path: &Path, spec: &Value) -> Self {
        let listener = UnixListener::bind(path).expect("a socket");
        let played = Self { silent: Arc::default(), heard: Arc::default() };
        let (silent, heard) = (Arc::clone(&played.silent), Arc::clone(&played.heard));
        let order = order(spec);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                serve(&stream, &order, &silent, &heard);
            }
        });
        played
    }

    fn said(&self, kind: &str) -> Vec<Value> {
        let heard = self.heard.lock().expect("no panic");
        heard.iter().filter(|message| message["type"] == kind).cloned().collect()
    }

    fn stopped(&self) -> Value {
        wait_until("the attempt is said to be stopped", || self.said("stopped").pop())
    }
}

fn serve(stream: &UnixStream, order: &StartOrder, silent: &AtomicBool, heard: &Mutex<Vec<Value>>) {
    let mut reader = BufReader::new(stream.try_clone().expect("a second handle"));
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
    }
    let mut writer = stream;
    let head = "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\n\
                upgrade: ucp-session/1\r\n\r\n";
    let mut say = |text: String| drop(writer.write_all(text.as_bytes()));
    say(head.to_owned());
    let text = |message: &BrokerMessage| serde_json::to_string(message).expect("JSON") + "\n";
    for line in reader.lines().map_while(Result::ok) {
        let message: Value = serde_json::from_str(&line).expect("a message");
        match message["type"].as_str() {
            Some("hello") => {
                let log = "played-00000001".parse().expect("a log");
                say(text(&BrokerMessage::Welcome { log, heartbeat_max: None, continues: vec![] }));
                say(text(&BrokerMessage::Start(Box::new(order.clone()))));
            }
            Some("heartbeat") if !silent.load(Ordering::SeqCst) => {
                let number = message["number"].as_u64().expect("a number");
                say(text(&BrokerMessage::Heard { number }));
            }
            _ => {}
        }
        heard.lock().expect("no panic").push(message);
    }
}

fn executor(env: &TestEnv, broker: &Path) -> Daemon {
    let broker = broker.display().to_string();
    env.executor_with("leased", &["--broker", &broker, "--heartbeat", "200ms"])
}

/// A job with a daemon that never ends by itself.
fn stubborn(env: &TestEnv) -> Value {
    let script = format!("trap '' TERM; setsid sleep 1000 & {}", held(env, "echo done"));
    json!({ "command": ["sh", "-c", script], "env": { "TEST_MARK": mark(env) } })
}

#[test]
fn a_job_ends_with_its_lease_though_its_executor_stands_still() {
    let env = TestEnv::new();
    let played = Played::begin(&env.path("played.sock"), &stubborn(&env));
    let executor = executor(&env, &env.path("played.sock"));
    wait_for_lines(&env, "up", 1);
    executor.signal(Signal::SIGSTOP);
    wait_until("no process is left", || marked(&mark(&env)).is_empty().then_some(()));
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", executor.pid())).expect("it is");
    assert!(stat.contains(") T "), "it stands still: {stat}");
    assert!(played.said("stopped").is_empty());
    executor.signal(Signal::SIGCONT);
    let stopped = played.stopped();
    assert!(stopped["reason"].as_str().expect("text").contains("lease"), "{stopped}");
    assert!(played.said("result").is_empty());
}

#[test]
fn a_job_goes_on_while_its_lease_is_renewed_and_ends_when_it_is_not() {
    let looping = r#"(module (func (export "_start") (loop $ever (br $ever))))"#;
    for native in [true, false] {
        let env = TestEnv::new();
        let spec = if native { stubborn(&env) } else { json!({ "wasm": { "text": looping } }) };
        let played = Played::begin(&env.path("played.sock"), &spec);
        let mut executor = executor(&env, &env.path("played.sock"));
        if native {
            wait_for_lines(&env, "up", 1);
        }
        let begin = crate::common::Began::now();
        wait_until("its first lease is long over", || (begin.elapsed() > LEASE * 3).then_some(()));
        assert!(played.said("stopped").is_empty());
        assert!(!native || marked(&mark(&env)).len() >= 2, "it runs");
        played.silent.store(true, Ordering::SeqCst);
        let stopped = played.stopped();
        assert!(stopped["reason"].as_str().expect("text").contains("lease"), "{stopped}");
        assert_eq!(marked(&mark(&env)), [0; 0]);
        assert!(played.said("result").is_empty() && executor.is_alive());
    }
}
