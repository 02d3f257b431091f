//! sd_notify: ready, status, alive, stopping, over a real datagram socket.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::common::{DEADLINE, Daemon, TestEnv, wait_until};

/// What the daemons are told to bear: fed twice as often.
const WATCHDOG: Duration = Duration::from_millis(200);

/// The supervisor's end.
struct Heard {
    socket: UnixDatagram,
    address: String,
}

impl Heard {
    fn at(env: &TestEnv, name: &str) -> Self {
        let path = env.path(name);
        let socket = UnixDatagram::bind(&path).expect("a socket");
        socket.set_read_timeout(Some(DEADLINE)).expect("a deadline");
        Self { socket, address: path.display().to_string() }
    }

    fn without_file(env: &TestEnv) -> Self {
        let name = format!("ucp-test{}", env.path("notify").display());
        let address = SocketAddr::from_abstract_name(&name).expect("a name");
        let socket = UnixDatagram::bind_addr(&address).expect("a socket");
        socket.set_read_timeout(Some(DEADLINE)).expect("a deadline");
        Self { socket, address: format!("@{name}") }
    }

    fn next(&self) -> Option<String> {
        let mut buffer = [0; 4096];
        let size = self.socket.recv(&mut buffer).ok()?;
        Some(String::from_utf8(buffer[..size].to_vec()).expect("text"))
    }

    /// The next datagram with this in it.
    fn until(&self, what: &str) -> String {
        wait_until(what, || {
            let found = self.next().unwrap_or_else(|| panic!("nobody says {what}"));
            found.contains(what).then_some(found)
        })
    }

    /// Whether nothing comes for so long.
    fn is_silent_for(&self, while_: Duration) -> bool {
        self.socket.set_nonblocking(true).expect("a mode");
        while self.next().is_some() {}
        self.socket.set_nonblocking(false).expect("a mode");
        self.socket.set_read_timeout(Some(while_)).expect("a deadline");
        let silent = self.next().is_none();
        self.socket.set_read_timeout(Some(DEADLINE)).expect("a deadline");
        silent
    }
}

fn supervised(env: &TestEnv, program: &str, heard: &Heard) -> Daemon {
    let mut command = env.command(program);
    command.env("NOTIFY_SOCKET", &heard.address);
    command.env("WATCHDOG_USEC", WATCHDOG.as_micros().to_string());
    let mut daemon = Daemon::start(command, &env.path(&format!("{program}.err")));
    daemon.ready = daemon.line();
    daemon
}

#[test]
fn a_broker_says_that_it_is_ready_how_it_stands_and_that_it_stops() {
    let env = TestEnv::new();
    let heard = Heard::at(&env, "notify");
    let mut broker = supervised(&env, "ucp-broker", &heard);
    let log = broker.ready["log"].as_str().expect("a log").to_owned();
    let first = heard.next().expect("a datagram");
    assert!(first.starts_with(&format!("READY=1\nSTATUS={log} on unix:")), "{first}");
    env.submit().args(["--detach", "--", "true"]).assert().code(0);
    heard.until(&format!("STATUS={log}: jobs 1 waiting, 0 running, 0 parked; executors 0"));
    let _executor = env.executor("one", 1);
    heard.until("jobs 0 waiting, 0 running, 0 parked; executors 1");
    broker.signal(Signal::SIGTERM);
    heard.until("STOPPING=1");
    assert!(broker.wait().success());
}

#[test]
fn an_executor_says_which_broker_it_is_joined_to_and_looks_for_it_when_it_is_gone() {
    let env = TestEnv::new();
    let heard = Heard::without_file(&env);
    let broker = env.broker();
    let log = broker.ready["log"].as_str().expect("a log").to_owned();
    let mut executor = supervised(&env, "ucp-exec", &heard);
    let ready = heard.until("READY=1");
    assert!(ready.contains(&format!("STATUS=joined to {log} at unix:")), "{ready}");
    broker.kill();
    heard.until("STATUS=looking for a broker; attempts here 0");
    let _broker = env.broker();
    let again = heard.until("STATUS=joined to ");
    assert!(!again.contains("READY=1"), "it is ready once: {again}");
    executor.signal(Signal::SIGTERM);
    heard.until("STOPPING=1");
    assert!(executor.wait().success());
}

#[test]
fn a_daemon_that_is_stopped_no_longer_feeds_the_watchdog_and_goes_on_when_it_may() {
    let env = TestEnv::new();
    let heard = Heard::at(&env, "notify-broker");
    let broker = supervised(&env, "ucp-broker", &heard);
    let of_executor = Heard::at(&env, "notify-executor");
    let executor = supervised(&env, "ucp-exec", &of_executor);
    for (daemon, heard) in [(&executor, &of_executor), (&broker, &heard)] {
        for _ in 0..3 {
            heard.until("WATCHDOG=1");
        }
        daemon.signal(Signal::SIGSTOP);
        let pid = daemon.pid();
        wait_until("it is stopped", || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it is there");
            stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T')).then_some(())
        });
        assert!(heard.is_silent_for(WATCHDOG * 4), "a stopped process feeds the watchdog");
        daemon.signal(Signal::SIGCONT);
        heard.until("WATCHDOG=1");
    }
}

#[test]
fn a_watchdog_for_another_process_is_not_fed() {
    let env = TestEnv::new();
    let heard = Heard::at(&env, "notify");
    let mut command = env.command("ucp-broker");
    command.env("NOTIFY_SOCKET", &heard.address);
    command.env("WATCHDOG_USEC", "20000").env("WATCHDOG_PID", "1");
    let mut broker = Daemon::start(command, &env.path("broker.err"));
    broker.line();
    heard.until("READY=1");
    assert!(heard.is_silent_for(WATCHDOG), "the watchdog is not ours");
}
