//! Signals to a program that waits for jobs.
//!
//! Ctrl-C (SIGINT) means "end it", SIGTERM and SIGHUP mean "leave it to itself". Registered only
//! by commands that wait: all others die of a signal as any program does.

use std::cell::Cell;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;

use crate::cli::exit::Exit;
use crate::cli::report::Failure;
use crate::runtime::signals;

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interrupt {
    /// End what was begun.
    Cancel,
    /// Go away, and let it run.
    Detach,
}

impl Interrupt {
    /// The status of a program that such a signal ends: that of SIGINT or SIGTERM.
    #[must_use]
    pub const fn status(self) -> u8 {
        match self {
            Self::Cancel => 130,
            Self::Detach => 143,
        }
    }
}

/// The signals that are attended to.
pub struct Interrupts {
    int: Signal,
    term: Signal,
    hup: Option<Signal>,
}

impl Interrupts {
    /// Begins to attend to signals.
    ///
    /// # Errors
    /// The system refuses.
    pub fn new() -> Result<Self, Failure> {
        let failed = |error: &std::io::Error| {
            Failure::new(Exit::Bug, format_args!("cannot attend to signals: {error}"))
        };
        let register = |kind| signal(kind).map_err(|error| failed(&error));
        Ok(Self {
            int: register(SignalKind::interrupt())?,
            term: register(SignalKind::terminate())?,
            hup: signals::hangup().map_err(|error| failed(&error))?,
        })
    }

    /// Waits for the next one.
    pub async fn next(&mut self) -> Interrupt {
        tokio::select! {
            _ = self.int.recv() => Interrupt::Cancel,
            _ = self.term.recv() => Interrupt::Detach,
            _ = signals::next_of(&mut self.hup) => Interrupt::Detach,
        }
    }
}

/// Asks a part of the work to stop; on one thread.
#[derive(Debug, Default)]
pub struct Stop {
    why: Cell<Option<Interrupt>>,
    asked: Notify,
}

impl Stop {
    /// Asks it to stop.
    pub fn ask(&self, why: Interrupt) {
        self.why.set(Some(why));
        self.asked.notify_one();
    }

    /// Waits until it is asked.
    pub async fn asked(&self) -> Interrupt {
        loop {
            match self.why.get() {
                Some(why) => return why,
                None => self.asked.notified().await,
            }
        }
    }
}
