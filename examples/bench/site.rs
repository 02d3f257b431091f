//! A broker and an executor of their own for a measurement.
//!
//! They run in a new directory that goes with them, over a Unix socket. They end with the site,
//! and are killed when this process ends in any other way.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::measure::{Outcome, timed};

/// How long a daemon may take until it is ready, in milliseconds.
const READY_WITHIN_MS: u16 = 60_000;

/// Where everything is.
pub struct Place {
    /// The programs' directory.
    pub bin: PathBuf,
    /// Where sites are made, on the disk that counts.
    pub folder: PathBuf,
    /// The executor's slots, and the threads of a floor.
    pub slots: usize,
}

impl Place {
    /// One of our programs.
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }

    /// A file with such a text in it.
    pub fn file(&self, name: &str, text: &str) -> Outcome<PathBuf> {
        let path = self.folder.join(name);
        fs::write(&path, text)?;
        Ok(path)
    }
}

/// A broker, and perhaps an executor.
pub struct Site<'a> {
    place: &'a Place,
    folder: PathBuf,
    broker: Option<Child>,
    executor: Option<Child>,
}

impl<'a> Site<'a> {
    /// A broker with nothing in it.
    pub fn new(place: &'a Place) -> Outcome<Self> {
        let folder = place.folder.join("site");
        fs::create_dir(&folder)?;
        let mut site = Self { place, folder, broker: None, executor: None };
        site.start_broker()?;
        Ok(site)
    }

    /// A broker with an executor of such isolation.
    pub fn whole(place: &'a Place, isolation: &str) -> Outcome<Self> {
        let mut site = Self::new(place)?;
        site.start_executor(isolation)?;
        Ok(site)
    }

    /// Starts the broker; how long it took until it was ready.
    pub fn start_broker(&mut self) -> Outcome<f64> {
        let mut command = Command::new(self.place.program("ucp-broker"));
        command.args(["serve", "--name", "bench", "--data"]).arg(self.data());
        command.arg("--run-dir").arg(self.folder.join("run"));
        let (daemon, took) = timed(|| self.start(&mut command))?;
        self.broker = Some(daemon);
        Ok(took)
    }

    /// Starts the executor, and waits until the broker has it.
    pub fn start_executor(&mut self, isolation: &str) -> Outcome<()> {
        let mut command = Command::new(self.place.program("ucp-exec"));
        command.args(["serve", "--name", "bench", "--isolation", isolation, "--data"]);
        command.arg(self.folder.join("exec"));
        command.args(["--slots", &self.place.slots.to_string()]);
        self.executor = Some(self.start(&mut command)?);
        Ok(())
    }

    fn start(&self, command: &mut Command) -> Outcome<Child> {
        command.env("UCP_BROKER", self.address()).stdin(Stdio::null()).stdout(Stdio::piped());
        command.stderr(File::create(self.folder.join("daemon.err"))?);
        die_with_us(command);
        let mut daemon = command.spawn()?;
        // It stays open, as a daemon ends when nobody can hear it.
        let stdout = daemon.stdout.as_mut().ok_or("no stdout")?;
        if !matches!(said_ready(stdout), Ok(true)) {
            daemon.kill()?;
            daemon.wait()?;
            let words = fs::read_to_string(self.folder.join("daemon.err"))?;
            return Err(format!("a daemon is not ready: {words}").into());
        }
        Ok(daemon)
    }

    /// Asks the broker to end, and waits until it has.
    pub fn stop_broker(&mut self) -> Outcome<()> {
        end(&mut self.broker, Signal::SIGTERM)
    }

    /// Kills the broker.
    pub fn crash_broker(&mut self) -> Outcome<()> {
        end(&mut self.broker, Signal::SIGKILL)
    }

    /// Asks the executor to end, and waits until it has.
    pub fn stop_executor(&mut self) -> Outcome<()> {
        end(&mut self.executor, Signal::SIGTERM)
    }

    /// The broker's process.
    pub fn broker(&self) -> u32 {
        self.broker.as_ref().map_or(0, Child::id)
    }

    /// The executor's process.
    pub fn executor(&self) -> u32 {
        self.executor.as_ref().map_or(0, Child::id)
    }

    /// The broker's data.
    pub fn data(&self) -> PathBuf {
        self.folder.join("broker")
    }

    /// A file of this site.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The broker's socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("run/broker.sock")
    }

    fn address(&self) -> String {
        format!("unix:{}", self.socket().display())
    }

    /// One of our programs, to be run against this broker.
    pub fn command(&self, name: &str) -> Command {
        let mut command = Command::new(self.place.program(name));
        command.env("UCP_BROKER", self.address()).stdin(Stdio::null());
        command
    }

    /// What keeps the executor's jobs apart, in words.
    pub fn isolation(&self) -> Outcome<String> {
        let answer = self.command("ucp-broker").args(["executors", "--json"]).output()?;
        let line: Value = serde_json::from_slice(&answer.stdout)?;
        let levels = line["capability"]["isolation"].as_object().ok_or("no isolation is told")?;
        let such = |wanted: &str| {
            let names = levels.iter().filter(|(_, level)| *level == wanted);
            let names: Vec<&str> = names.map(|(name, _)| name.as_str()).collect();
            if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
        };
        Ok(format!("enforced: {}; absent: {}", such("enforced"), such("absent")))
    }
}

impl Drop for Site<'_> {
    fn drop(&mut self) {
        // What does not end now dies with this process.
        let _ = end(&mut self.executor, Signal::SIGTERM);
        let _ = end(&mut self.broker, Signal::SIGTERM);
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// The process is killed when the thread that starts it ends, which must be the main one.
pub fn die_with_us(command: &mut Command) {
    let arm = || Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?);
    // SAFETY: it makes one system call and allocates nothing.
    unsafe { command.pre_exec(arm) };
}

fn said_ready(stdout: &mut ChildStdout) -> Outcome<bool> {
    let mut ready = [PollFd::new(stdout.as_fd(), PollFlags::POLLIN)];
    if poll(&mut ready, PollTimeout::from(READY_WITHIN_MS))? == 0 {
        return Ok(false);
    }
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    Ok(line.contains("\"ready\":true"))
}

fn end(daemon: &mut Option<Child>, signal: Signal) -> Outcome<()> {
    if let Some(mut daemon) = daemon.take() {
        kill(Pid::from_raw(i32::try_from(daemon.id())?), signal)?;
        daemon.wait()?;
    }
    Ok(())
}

/// How many lines a file has.
pub fn lines(path: &Path) -> Outcome<usize> {
    let mut file = BufReader::with_capacity(1 << 16, File::open(path)?);
    let mut count = 0;
    loop {
        let held = std::io::BufRead::fill_buf(&mut file)?;
        if held.is_empty() {
            return Ok(count);
        }
        count += held.iter().filter(|byte| **byte == b'\n').count();
        let length = held.len();
        file.consume(length);
    }
}
