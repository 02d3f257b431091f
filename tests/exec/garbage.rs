//! An executor between a broker that makes no sense and one that does.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

/// Takes sessions and answers each with these bytes; counts them.
fn garbling(path: &Path, says: &'static [u8]) -> Arc<AtomicU32> {
    let listener = UnixListener::bind(path).expect("a socket");
    let sessions = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&sessions);
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let count = Arc::clone(&count);
            std::thread::spawn(move || {
                let mut reader = BufReader::new(stream.try_clone().expect("a second handle"));
                let mut line = String::new();
                while line != "\r\n" {
                    line.clear();
                    if reader.read_line(&mut line).unwrap_or(0) == 0 {
                        return;
                    }
                }
                let head = "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\n\
                            upgrade: ucp-session/1\r\n\r\n";
                let mut writer = &stream;
                let _ = writer.write_all(head.as_bytes()).and_then(|()| writer.write_all(says));
                count.fetch_add(1, Ordering::SeqCst);
                // Until the executor has had enough.
                while reader.read_line(&mut line).is_ok_and(|size| size > 0) {}
            });
        }
    });
    sessions
}

const WELCOME: &[u8] = b"{\"type\":\"welcome\",\"log\":\"liar-00000001\"}\n\xff\xfe garbage\n";

#[test]
fn a35_an_executor_leaves_a_broker_that_makes_no_sense_for_another() {
    for says in [b"\0\xffgarbage\n" as &[u8], b"{\"type\":\"start\"}\n", WELCOME] {
        let env = TestEnv::new();
        let _broker = env.broker();
        let liar = env.path("liar.sock");
        let _sessions = garbling(&liar, says);
        let (liar, honest) = (liar.display().to_string(), env.socket().display().to_string());
        let mut executor = env.executor_with("van", &["--broker", &liar, "--broker", &honest]);
        let job = submit(&env, &[], "echo done");
        assert_eq!(result(&env, &job)["stdout"], "done\n");
        assert!(executor.is_alive());
    }
}

#[test]
fn a35_an_executor_with_no_other_broker_comes_back_with_pauses() {
    let env = TestEnv::new();
    let place = env.socket();
    std::fs::create_dir_all(place.parent().expect("a directory")).expect("a run directory");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(place.parent().expect("a directory"), mode).expect("its mode");
    let liar = env.path("liar.sock");
    let sessions = garbling(&liar, WELCOME);
    let mut command = env.command("ucp-exec");
    command.args(["--name", "van", "--broker", &liar.display().to_string()]);
    let begin = crate::common::Began::now();
    let mut executor = Daemon::start(command, &env.path("van.err"));
    wait_until("it has come again", || (sessions.load(Ordering::SeqCst) >= 8).then_some(()));
    let least = ucp::proto::limits::REJOIN_PAUSE_MAX / 2 * 6;
    assert!(begin.elapsed() > least, "8 sessions within {:?}", begin.elapsed());
    assert!(executor.is_alive());
}
