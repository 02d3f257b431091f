//! The moment until which an attempt may run, as those see it who have to end it.
//!
//! Decides nothing: the core grants and puts off. The spawner learns it by its socket; a module's
//! thread reads it here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::proto::time::Monotonic;
use crate::runtime::entropy;

/// No lease: the attempt may run for as long as it likes.
const NONE: u64 = u64::MAX;

/// An attempt's lease; clones are the same.
#[derive(Debug, Clone)]
pub struct Lease(Arc<AtomicU64>);

impl Default for Lease {
    fn default() -> Self {
        Self(Arc::new(AtomicU64::new(NONE)))
    }
}

impl Lease {
    /// The attempt may run until this moment and no longer.
    pub fn set(&self, until: Monotonic) {
        self.0.store(until.0, Ordering::Relaxed);
    }

    /// When it is over; never where there is none.
    #[must_use]
    pub fn until(&self) -> Option<Monotonic> {
        Some(self.0.load(Ordering::Relaxed)).filter(|until| *until != NONE).map(Monotonic)
    }

    /// Whether it is over at this moment.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.until().is_some_and(|until| until <= entropy::now().mono)
    }
}
