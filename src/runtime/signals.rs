//! The orderly stop: the first SIGTERM or SIGINT asks for it, the second one is obeyed at once.
//!
//! Other signals keep their meaning, but a closed pipe is an error value, never a signal (the
//! Rust runtime ignores SIGPIPE).

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that ask a daemon to stop.
#[derive(Debug)]
pub struct Stop {
    terminate: Signal,
    interrupt: Signal,
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
        })
    }

    /// Waits for the next of them and says its number.
    pub async fn next(&mut self) -> i32 {
        let (kind, gone) = tokio::select! {
            got = self.terminate.recv() => (SignalKind::terminate(), got.is_none()),
            got = self.interrupt.recv() => (SignalKind::interrupt(), got.is_none()),
        };
        if gone {
            // The runtime is going down, so no signal will come any more.
            std::future::pending::<()>().await;
        }
        kind.as_raw_value()
    }
}
