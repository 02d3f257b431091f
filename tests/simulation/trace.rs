//! The trace of one seed: a line for everything that happens, only when asked for.
//!
//! Formats nothing while it is off: the macro `trace!` looks first.

use std::fmt::Arguments;

/// Where the trace goes.
#[derive(Default)]
pub struct Trace {
    /// Whether anybody reads it.
    pub on: bool,
}

impl Trace {
    /// Writes one line.
    pub fn line(&self, now: u64, text: Arguments<'_>) {
        println!("{:>4}.{:06} {text}", now / 1_000_000, now % 1_000_000);
    }
}

/// Writes a line to a world's trace if it is on.
macro_rules! trace {
    ($world:expr, $($text:tt)*) => {
        if $world.trace.on {
            $world.trace.line($world.now, format_args!($($text)*));
        }
    };
}
pub(crate) use trace;
