//! The orderly stop: a first SIGTERM, SIGINT or SIGHUP asks for it, a second is obeyed at once.
//!
//! Other signals keep their meaning, but a closed pipe is an error value, never a signal (the
//! Rust runtime ignores SIGPIPE).

use std::io;

use nix::libc;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that ask a daemon to stop.
#[derive(Debug)]
pub struct Stop {
    terminate: Signal,
    interrupt: Signal,
    /// Absent where it was ignored at the start, as by nohup(1).
    hangup: Option<Signal>,
}

impl Stop {
    /// Begins to listen; from now on the signals do not end the process by themselves.
    ///
    /// # Errors
    /// The system refused.
    pub fn listen() -> io::Result<Self> {
        let named = |error| io::Error::other(format!("cannot listen for signals: {error}"));
        Ok(Self {
            terminate: signal(SignalKind::terminate()).map_err(named)?,
            interrupt: signal(SignalKind::interrupt()).map_err(named)?,
            hangup: hangup().map_err(named)?,
        })
    }

    /// Waits for the next of them and says its number.
    pub async fn next(&mut self) -> i32 {
        let (kind, gone) = tokio::select! {
            got = self.terminate.recv() => (SignalKind::terminate(), got.is_none()),
            got = self.interrupt.recv() => (SignalKind::interrupt(), got.is_none()),
            got = next_of(&mut self.hangup) => (SignalKind::hangup(), got.is_none()),
        };
        if gone {
            // The runtime is going down, so no signal will come any more.
            std::future::pending::<()>().await;
        }
        kind.as_raw_value()
    }
}

/// Begins to listen for SIGHUP, unless it was ignored at the start.
///
/// # Errors
/// The system refused.
pub fn hangup() -> io::Result<Option<Signal>> {
    if is_ignored(libc::SIGHUP) { Ok(None) } else { signal(SignalKind::hangup()).map(Some) }
}

/// The next signal of a kind that may not be listened for.
pub async fn next_of(signal: &mut Option<Signal>) -> Option<()> {
    match signal {
        Some(signal) => signal.recv().await,
        None => std::future::pending().await,
    }
}

/// Whether this process was started with a signal ignored: a bit of `SigIgn` in proc(5).
fn is_ignored(number: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
    mask.is_some_and(|mask| mask & (1 << (number - 1)) != 0)
}
