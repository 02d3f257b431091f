//! What the tests with real processes share: a place of their own, daemons that die with the
//! test, and waiting for conditions.
//!
//! Nothing here sleeps to synchronise: [`wait_until`] asks again and again until a deadline, and
//! daemons are ready when they say so. Ports and paths are new for every test, so that all tests
//! may run at one time.

#![allow(dead_code)] // each root of tests uses another part of it
#![allow(clippy::disallowed_methods, reason = "the one place that waits, with a deadline")]
#![allow(clippy::print_stderr, reason = "what a daemon said, when its test fails")]

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long a condition may take to become true before the test fails; long, as machines are slow.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Asks until there is an answer.
///
/// # Panics
/// There was none within [`DEADLINE`].
pub fn wait_until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(begin.elapsed() < DEADLINE, "waited {DEADLINE:?} in vain until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A moment that bounds are counted from.
pub struct Began(Instant);

impl Began {
    /// This moment.
    pub fn now() -> Self {
        Self(Instant::now())
    }

    /// The time since.
    pub fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

/// A place of its own: run directory, data, files; gone at the end.
pub struct TestEnv {
    directory: tempfile::TempDir,
}

impl TestEnv {
    /// A new empty place.
    pub fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("ucp-test-").tempdir();
        let env = Self { directory: directory.expect("a temporary directory") };
        std::fs::create_dir(env.path("run")).expect("a run directory");
        std::fs::create_dir(env.path("state")).expect("a state directory");
        env
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Where the first broker's socket is.
    pub fn socket(&self) -> PathBuf {
        self.path("run/ucp/broker.sock")
    }

    /// The lines of a file in it; none while it is absent.
    pub fn lines(&self, name: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self.path(name)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// One of our commands, with the place's directories and nothing of the caller's settings.
    pub fn command(&self, name: &str) -> Command {
        let mut command = Command::new(program(name));
        self.settle(&mut command);
        command
    }

    fn settle(&self, command: &mut Command) {
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("UCP_") {
                command.env_remove(name);
            }
        }
        command
            .env("XDG_RUNTIME_DIR", self.path("run"))
            .env("XDG_STATE_HOME", self.path("state"))
            .env("NO_COLOR", "1")
            .current_dir(self.directory.path());
    }

    /// `ucp-submit`, to be asserted on; ends after [`DEADLINE`] at the latest.
    pub fn submit(&self) -> assert_cmd::Command {
        let mut command = assert_cmd::Command::from_std(self.command("ucp-submit"));
        command.timeout(DEADLINE);
        command
    }

    /// Runs a command to its end and gives its output.
    pub fn run(&self, name: &str, arguments: &[&str]) -> std::process::Output {
        let mut command = self.command(name);
        command.args(arguments).stdin(Stdio::null()).output().expect("it starts")
    }

    /// A broker that is ready, with its data in `state`.
    pub fn broker(&self) -> Daemon {
        self.broker_with(&[])
    }

    /// A broker with further flags that is ready.
    pub fn broker_with(&self, arguments: &[&str]) -> Daemon {
        self.daemon("ucp-broker", "broker", arguments)
    }

    /// An executor with a name and a data directory of its own that is registered.
    pub fn executor(&self, name: &str, slots: u32) -> Daemon {
        self.executor_with(name, &["--slots", &slots.to_string()])
    }

    /// An executor with a name, a data directory of its own, and further flags, registered.
    pub fn executor_with(&self, name: &str, arguments: &[&str]) -> Daemon {
        let data = self.path(name);
        let data = data.to_str().expect("a path of ours is text");
        let place = self.path("");
        let place = place.to_str().expect("a path of ours is text");
        let fixed = ["--name", name, "--data", data, "--allow-write", place];
        self.daemon("ucp-exec", name, &[&fixed[..], arguments].concat())
    }

    fn daemon(&self, program: &str, name: &str, arguments: &[&str]) -> Daemon {
        let mut command = self.command(program);
        command.args(arguments);
        let mut daemon = Daemon::start(command, &self.path(&format!("{name}.err")));
        daemon.ready = daemon.line();
        assert_eq!(daemon.ready["type"], "ready", "{program} is ready");
        daemon
    }
}

/// Where cargo built a command.
fn program(name: &str) -> &'static str {
    match name {
        "ucp-broker" => env!("CARGO_BIN_EXE_ucp-broker"),
        "ucp-clock" => env!("CARGO_BIN_EXE_ucp-clock"),
        "ucp-exec" => env!("CARGO_BIN_EXE_ucp-exec"),
        "ucp-submit" => env!("CARGO_BIN_EXE_ucp-submit"),
        "ucp-sync" => env!("CARGO_BIN_EXE_ucp-sync"),
        other => panic!("no command is called {other}"),
    }
}

/// A process that runs until it is dropped. Its stderr goes to a file that is shown when a test
/// fails; its stdout is read by the line.
pub struct Daemon {
    child: Child,
    lines: Receiver<String>,
    stderr: PathBuf,
    /// The line with which it said that it is ready.
    pub ready: Value,
}

impl Daemon {
    /// Starts a command.
    pub fn start(command: Command, stderr: &Path) -> Self {
        Self::start_with(command, Stdio::null(), stderr)
    }

    /// Starts a command with something as its standard input.
    pub fn start_with(mut command: Command, stdin: Stdio, stderr: &Path) -> Self {
        let log = File::options().create(true).append(true).open(stderr).expect("a log file");
        command.stdin(stdin).stdout(Stdio::piped()).stderr(log);
        let mut child = command.spawn().expect("it starts");
        let stdout = child.stdout.take().expect("stdout is piped");
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Self { child, lines, stderr: stderr.to_owned(), ready: Value::Null }
    }

    /// The next line of its stdout, as JSON.
    pub fn line(&mut self) -> Value {
        match self.lines.recv_timeout(DEADLINE) {
            Ok(line) => serde_json::from_str(&line).expect("a line of JSON"),
            Err(error) => panic!("no line on stdout ({error}); stderr: {}", self.stderr()),
        }
    }

    /// Everything that it wrote on stderr.
    pub fn stderr(&self) -> String {
        std::fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has not ended.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.pid()).expect("a pid"));
        nix::sys::signal::kill(pid, signal).expect("the process is there");
    }

    /// Ends it with SIGKILL and waits until it is gone.
    pub fn kill(mut self) {
        self.end();
    }

    /// Waits until it ends by itself.
    pub fn wait(&mut self) -> ExitStatus {
        wait_until("the process ends", || self.child.try_wait().expect("a child of ours"))
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.end();
        if std::thread::panicking() {
            eprintln!("--- {}:\n{}", self.stderr.display(), self.stderr());
        }
    }
}
