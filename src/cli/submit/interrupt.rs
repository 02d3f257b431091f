//! Signals to a program that waits for jobs.
//!
//! Ctrl-C (SIGINT) means "end it", SIGTERM and SIGHUP mean "leave it to itself". Registered only
//! by commands that wait: all others die of a signal as any program does.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli::exit::Exit;
use crate::cli::report::Failure;

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interrupt {
    /// End what was begun.
    Cancel,
    /// Go away, and let it run.
    Detach,
}

/// The signals that are attended to.
pub struct Interrupts {
    int: Signal,
    term: Signal,
    hup: Signal,
}

impl Interrupts {
    /// Begins to attend to signals.
    ///
    /// # Errors
    /// The system refuses.
    pub fn new() -> Result<Self, Failure> {
        let register = |kind| {
            signal(kind).map_err(|error| {
                Failure::new(Exit::Bug, format_args!("cannot attend to signals: {error}"))
            })
        };
        Ok(Self {
            int: register(SignalKind::interrupt())?,
            term: register(SignalKind::terminate())?,
            hup: register(SignalKind::hangup())?,
        })
    }

    /// Waits for the next one.
    pub async fn next(&mut self) -> Interrupt {
        tokio::select! {
            _ = self.int.recv() => Interrupt::Cancel,
            _ = self.term.recv() => Interrupt::Detach,
            _ = self.hup.recv() => Interrupt::Detach,
        }
    }
}
