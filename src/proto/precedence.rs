//! Precedence: how urgent a job is, and how waiting makes it more so.
//!
//! Pure. The four levels are the procedure words of radio traffic (ACP 125): routine, priority,
//! immediate, flash. Each level is a head start in time: a job is ordered as if it had begun to
//! wait that much earlier. Waiting therefore raises the *effective precedence* of all jobs alike,
//! the order of two jobs never changes while they wait, and nothing starves: a routine job is
//! overtaken by flash jobs for a day at most.
//! Law (I8): of jobs that fit a free executor the one with the least [`Rank`] is deployed first.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::proto::time::Monotonic;

/// The urgency that a job was submitted with, least first.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Precedence {
    /// Ordinary work.
    #[default]
    Routine,
    /// Before routine work that began to wait less than ten minutes earlier.
    Priority,
    /// Before routine work that began to wait less than an hour earlier.
    Immediate,
    /// Before everything that began to wait less than a day earlier.
    Flash,
}

impl Precedence {
    /// All levels, least first.
    pub const ALL: [Self; 4] = [Self::Routine, Self::Priority, Self::Immediate, Self::Flash];

    /// How much earlier than in truth a job of this level counts as waiting.
    #[must_use]
    pub const fn head_start(self) -> Duration {
        match self {
            Self::Routine => Duration::ZERO,
            Self::Priority => Duration::from_secs(600),
            Self::Immediate => Duration::from_secs(3_600),
            Self::Flash => Duration::from_secs(86_400),
        }
    }

    /// The level's word.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Routine => "routine",
            Self::Priority => "priority",
            Self::Immediate => "immediate",
            Self::Flash => "flash",
        }
    }
}

impl fmt::Display for Precedence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for Precedence {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|level| level.word() == text).ok_or_else(|| {
            format!("{text:?} is no precedence: routine, priority, immediate or flash")
        })
    }
}

/// A job's place in the queue: less goes first. Fixed from the moment when the job began to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rank {
    /// Microseconds: when the job began to wait, less its level's head start.
    pub effective: i64,
    /// The order in which the broker met jobs, for those that began to wait together.
    pub arrival: u64,
}

impl Rank {
    /// The rank of a job that began to wait at `since` as the `arrival`th.
    #[must_use]
    pub fn new(precedence: Precedence, since: Monotonic, arrival: u64) -> Self {
        let since = i64::try_from(since.0).unwrap_or(i64::MAX);
        let start = i64::try_from(precedence.head_start().as_micros()).unwrap_or(i64::MAX);
        Self { effective: since.saturating_sub(start), arrival }
    }
}
