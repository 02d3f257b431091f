//! Socket activation: the parent binds, the broker serves, the socket stays the parent's.

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;

use crate::common::{Daemon, TestEnv, wait_until};

/// A command whose descriptor 3 will be what it is given as standard input; it is told that
/// `count` were handed over.
fn handed(env: &TestEnv, count: &str, arguments: &[&str]) -> Command {
    let broker = env.command("ucp-broker");
    let script = format!(
        "exec 3<&0 4<&- </dev/null; LISTEN_PID=$$ LISTEN_FDS={count} LISTEN_FDNAMES=front; \
         export LISTEN_PID LISTEN_FDS LISTEN_FDNAMES; exec \"$0\" \"$@\""
    );
    let mut command = Command::new("sh");
    command.args(["-c", &script]).arg(broker.get_program()).args(arguments);
    command.current_dir(env.path(""));
    for (name, value) in broker.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}

fn start(env: &TestEnv, socket: impl Into<OwnedFd>, arguments: &[&str]) -> Daemon {
    let command = handed(env, "1", arguments);
    let stdin = Stdio::from(socket.into());
    let mut broker = Daemon::start_with(command, stdin, &env.path("broker.err"));
    broker.ready = broker.line();
    broker
}

#[test]
fn a_unix_socket_that_is_handed_over_replaces_the_default_one_and_stays() {
    let env = TestEnv::new();
    let path = env.path("handed.sock");
    let socket = UnixListener::bind(&path).expect("a socket");
    let address = format!("unix:{}", path.display());
    let kept = socket.try_clone().expect("a descriptor");
    let mut broker = start(&env, kept, &["--listen", "http://127.0.0.1:0"]);
    let listen = broker.ready["listen"].as_array().expect("addresses").clone();
    assert_eq!(listen[0], address.as_str());
    assert!(listen[1].as_str().expect("text").starts_with("http://127.0.0.1:"), "{listen:?}");
    assert_eq!(listen.len(), 2);
    assert!(!env.socket().exists(), "the default socket is not made");
    let environment = std::fs::read(format!("/proc/{}/environ", broker.pid())).expect("ours");
    assert!(String::from_utf8_lossy(&environment).contains("LISTEN_FDS=1"), "it was handed over");
    let status = env.run("ucp-broker", &["status", "--broker", &address]);
    assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));
    broker.signal(Signal::SIGTERM);
    assert!(broker.wait().success());
    assert!(path.exists(), "the file is the supervisor's");
    // Who comes while no broker runs waits in the socket, and the next broker answers.
    let waiting = UnixStream::connect(&path).expect("the supervisor still listens");
    let next = start(&env, socket, &[]);
    assert_eq!(next.ready["listen"], serde_json::json!([address]));
    let (mut reader, mut writer) = (waiting.try_clone().expect("a descriptor"), waiting);
    let request = "GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    std::io::Write::write_all(&mut writer, request.as_bytes()).expect("it is read");
    let mut answer = String::new();
    std::io::Read::read_to_string(&mut reader, &mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[test]
fn a_tcp_socket_that_is_handed_over_keeps_the_rule_for_other_machines() {
    let env = TestEnv::new();
    let socket = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!("http://{}", socket.local_addr().expect("an address"));
    let broker = start(&env, socket, &[]);
    assert_eq!(broker.ready["listen"], serde_json::json!([address]));
    assert!(env.run("ucp-broker", &["status", "--broker", &address]).status.success());
    drop(broker);
    let open = || TcpListener::bind("0.0.0.0:0").expect("a port");
    refused(&env, "1", open().into(), "nothing guards it");
    let broker = start(&env, open(), &["--insecure-plaintext"]);
    let listen = broker.ready["listen"][0].as_str().expect("text").to_owned();
    assert!(listen.starts_with("http://0.0.0.0:"), "{listen}");
}

/// The broker ends with 78 and says why.
fn refused(env: &TestEnv, count: &str, descriptor: OwnedFd, why: &str) {
    let mut command = handed(env, count, &[]);
    let output = command.stdin(Stdio::from(descriptor)).output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(78), "{said}");
    assert!(said.starts_with("ucp-broker: ") && said.contains(why), "{said}");
    assert!(said.contains("\nhint: ") && output.stdout.is_empty(), "{said}");
}

#[test]
fn what_cannot_be_listened_on_is_refused_by_name() {
    let env = TestEnv::new();
    let file = std::fs::File::create(env.path("file")).expect("room");
    refused(&env, "1", file.into(), "descriptor 3 (front), which was handed over, is no socket");
    let (one, _other) = UnixStream::pair().expect("a pair");
    refused(&env, "1", one.into(), "does not listen");
    let datagram = UnixDatagram::bind(env.path("datagram")).expect("a socket");
    refused(&env, "1", datagram.into(), "is no stream socket");
    let name = format!("ucp-test{}", env.path("x").display());
    let name = SocketAddr::from_abstract_name(name);
    let hidden = UnixListener::bind_addr(&name.expect("a name")).expect("a socket");
    refused(&env, "1", hidden.into(), "has no path, so no mode guards it");
    for (count, why) in [("2", "descriptor 4, which"), ("many", "$LISTEN_FDS"), ("999", "$LISTEN")]
    {
        let socket = UnixListener::bind(env.path(count)).expect("a socket");
        refused(&env, count, socket.into(), why);
    }
}

#[test]
fn what_is_meant_for_another_process_is_left_alone() {
    let env = TestEnv::new();
    let mut command = env.command("ucp-broker");
    command.env("LISTEN_PID", "1").env("LISTEN_FDS", "1");
    let mut broker = Daemon::start(command, &env.path("broker.err"));
    let listen = broker.line()["listen"].clone();
    assert_eq!(listen, serde_json::json!([format!("unix:{}", env.socket().display())]));
}

#[test]
fn systemd_hands_over_several_sockets_with_names() {
    let env = TestEnv::new();
    let broker = env.command("ucp-broker");
    let path = env.path("several.sock");
    let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr());
    let port = port.expect("a free port").to_string();
    let mut command = Command::new("systemd-socket-activate");
    command.arg("-l").arg(&path).args(["-l", &port, "--fdname=front:back"]);
    for name in ["XDG_RUNTIME_DIR", "XDG_STATE_HOME"] {
        let value = broker.get_envs().find(|(held, _)| *held == name).and_then(|(_, value)| value);
        let value = value.expect("the place's directory").to_string_lossy().into_owned();
        command.arg(format!("--setenv={name}={value}"));
    }
    command.arg(broker.get_program());
    if let Err(error) = Command::new("systemd-socket-activate").arg("--version").output() {
        crate::skipped(&format!("systemd-socket-activate cannot be run ({error})"));
        return;
    }
    let mut broker = Daemon::start(command, &env.path("broker.err"));
    // The first who comes starts it.
    let _first = wait_until("it listens", || UnixStream::connect(&path).ok());
    let listen = broker.line()["listen"].clone();
    let expected = [format!("unix:{}", path.display()), format!("http://{port}")];
    assert_eq!(listen, serde_json::json!(expected));
    for address in expected {
        let status = env.run("ucp-broker", &["status", "--broker", &address]);
        assert!(status.status.success(), "{address}");
    }
}
