//! The progress of many jobs: a bar on a terminal, lines if asked for, else nothing.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use nix::libc;

use crate::common::{TestEnv, wait_until};

/// What erases a bar: back to the start of its line, and clear that.
const ERASED: &str = "\r\u{1b}[2K";

/// A terminal that a process has, and what was drawn on it.
struct Screen {
    drawn: Arc<Mutex<Vec<u8>>>,
    end: OwnedFd,
}

impl Screen {
    fn new() -> Self {
        let (master, slave) = open_terminal();
        let drawn = Arc::new(Mutex::new(vec![]));
        let (seen, mut ours) = (Arc::clone(&drawn), File::from(master));
        std::thread::spawn(move || {
            let mut piece = [0; 4096];
            // The read fails once nobody has the other end any more.
            while let Ok(length @ 1..) = ours.read(&mut piece) {
                seen.lock().expect("unpoisoned").extend_from_slice(&piece[..length]);
            }
        });
        Self { drawn, end: slave }
    }

    fn end(&self) -> Stdio {
        self.end.try_clone().expect("a descriptor").into()
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.drawn.lock().expect("unpoisoned")).into_owned()
    }

    fn wait(&self, what: &str) {
        wait_until(what, || self.text().contains(what).then_some(()));
    }

    /// All that was drawn by others before this.
    fn all(self) -> String {
        let mut end = File::from(self.end.try_clone().expect("a descriptor"));
        end.write_all(b"MARK").expect("written");
        self.wait("MARK");
        self.text().replace("MARK", "")
    }
}

/// A new terminal of 100 columns: the side of whoever looks at it, and that of programs.
fn open_terminal() -> (OwnedFd, OwnedFd) {
    let size = libc::winsize { ws_row: 24, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
    let (mut master, mut slave) = (-1, -1);
    let (name, modes) = (std::ptr::null_mut(), std::ptr::null());
    // SAFETY: the pointers are null, which is allowed, or to what lives beyond the call.
    let done =
        unsafe { libc::openpty(&raw mut master, &raw mut slave, name, modes, &raw const size) };
    assert_eq!(done, 0, "a terminal");
    // SAFETY: the call has just opened both, and nobody else has them.
    unsafe { (OwnedFd::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) }
}

fn held(env: &TestEnv) -> String {
    let go = env.path("go").display().to_string();
    format!("until test -e {go}; do sleep 0.01; done; echo out-$1; exit $1")
}

fn each(env: &TestEnv, script: &str, flags: &[&str]) -> Command {
    let mut each = env.command("ucp-submit");
    each.args(["--each"]).args(flags).args(["--", "sh", "-c", script, "sh", "{}"]);
    each.env("TERM", "xterm").stdin(Stdio::piped());
    each
}

fn feed(each: &mut Child, lines: &str) {
    let mut stdin = each.stdin.take().expect("it is piped");
    stdin.write_all(lines.as_bytes()).expect("written");
}

#[test]
fn a_terminal_gets_a_bar_that_is_gone_at_the_end() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _executor = env.executor("one", 2);
    let screen = Screen::new();
    let mut each = each(&env, &held(&env), &[]);
    let each = each.stdout(Stdio::piped()).stderr(screen.end());
    let mut each = each.spawn().expect("it starts");
    feed(&mut each, "0\n0\n1\n");
    screen.wait("0 of 3 done, 3 under way");
    std::fs::write(env.path("go"), "").expect("a file");
    let output = each.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(output.stdout.iter().filter(|byte| **byte == b'\n').count(), 3);
    let drawn = screen.all();
    assert!(drawn.ends_with(ERASED), "{drawn:?}");
    assert!(!drawn.contains('\n'), "nothing stays: {drawn:?}");
    assert!(!drawn.contains("\u{1b}[31m"), "NO_COLOR is set: {drawn:?}");
}

#[test]
fn results_on_the_same_terminal_never_mix_with_the_bar() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _executor = env.executor("one", 2);
    let screen = Screen::new();
    let mut each = each(&env, &held(&env), &[]);
    let each = each.stdout(screen.end()).stderr(screen.end());
    let mut each = each.spawn().expect("it starts");
    feed(&mut each, "0\n0\n");
    screen.wait("0 of 2 done");
    std::fs::write(env.path("go"), "").expect("a file");
    assert!(each.wait().expect("it ends").success());
    let drawn = screen.all();
    // Whatever stands before a result on its line was erased.
    for line in drawn.split('\n').filter(|line| line.contains(r#""type":"result""#)) {
        let begin = line.find('{').expect("a result");
        assert!(begin == 0 || line[..begin].ends_with(ERASED), "{line:?}");
        assert!(line.ends_with("}\r"), "{line:?}");
    }
    assert_eq!(drawn.matches(r#""type":"result""#).count(), 2, "{drawn:?}");
}

#[test]
fn ctrl_c_erases_the_bar() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _executor = env.executor("one", 2);
    let screen = Screen::new();
    let mut each = each(&env, &held(&env), &[]);
    let each = each.stdout(Stdio::piped()).stderr(screen.end());
    let mut each = each.spawn().expect("it starts");
    feed(&mut each, "0\n");
    screen.wait("0 of 1 done");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(each.id()).expect("a pid"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).expect("it is there");
    assert_eq!(each.wait().expect("it ends").code(), Some(130));
    let drawn = screen.all();
    let note = drawn.find("cancelling 1 jobs").expect("a note");
    assert!(drawn[..note].ends_with(&format!("{ERASED}ucp-submit: ")), "{drawn:?}");
    assert!(drawn.ends_with(ERASED) || drawn.ends_with('\n'), "{drawn:?}");
}

#[test]
fn a_pipe_gets_nothing_unless_asked_and_then_lines() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _executor = env.executor("one", 2);
    let script = "sleep 1.2";
    let run = |flags: &[&str]| {
        let mut each = each(&env, script, flags);
        let mut each = each.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
        feed(&mut each, "1\n2\n");
        let output = each.wait_with_output().expect("it ends");
        assert!(output.status.success());
        String::from_utf8(output.stderr).expect("text")
    };
    assert_eq!(run(&[]), "");
    assert_eq!(run(&["--progress", "-q"]), "");
    let said = run(&["--progress"]);
    assert_eq!(said.matches("ucp-submit: 0 of 2 done, 2 under way\n").count(), 1, "{said}");
    assert!(said.contains("ucp-submit: 2 of 2 done, ") && said.ends_with("/s\n"), "{said}");
    assert!(said.lines().count() <= 4, "at most one a second: {said}");
}
