//! The facts that a broker holds, seen as logs: how far each goes, and the hash chain of each.
//!
//! Pure. Shape: ordered map log → head (seq of the last fact, chain hash there). A log is held
//! without gaps, so its head says everything: the heads are the *version vector*.
//! Law: [`Logs::extend`] takes just the next fact of a log, and only if its chain hash follows.

use std::collections::BTreeMap;

use crate::proto::fact::{SealedFact, chain_next, chain_start};
use crate::proto::id::{Digest, Dot, LogId};

/// The end of one log as it is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The seq of the last fact; 0 for none.
    pub seq: u64,
    /// The chain hash there.
    pub chain: Digest,
}

/// Why a fact does not continue its log. Nothing changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// The fact is not the next of its log: something is missing or comes twice.
    #[error("{dot} does not follow seq {held} of its log")]
    Gap {
        /// The fact that came.
        dot: Dot,
        /// The last seq held.
        held: u64,
    },
    /// The chain hash is not that of the lines: a byte was changed, or the log is forked.
    #[error("the chain hash of {0} does not follow from its line and the one before")]
    Chain(Dot),
}

/// How far each log is held.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Logs(BTreeMap<LogId, Head>);

impl Logs {
    /// The end of a log; seq 0 for one of which nothing is held.
    #[must_use]
    pub fn head(&self, log: &LogId) -> Head {
        self.0.get(log).copied().unwrap_or_else(|| Head { seq: 0, chain: chain_start(log) })
    }

    /// All logs with their ends, in order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&LogId, &Head)> {
        self.0.iter()
    }

    /// The version vector: the highest contiguous seq of each log.
    #[must_use]
    pub fn vector(&self) -> BTreeMap<LogId, u64> {
        self.0.iter().map(|(log, head)| (log.clone(), head.seq)).collect()
    }

    /// One hash over the sorted list of (log, seq, chain hash): equal exactly for equal holdings.
    #[must_use]
    pub fn digest(&self) -> Digest {
        let mut text = String::new();
        for (log, head) in &self.0 {
            text.push_str(&format!("{log} {} {}\n", head.seq, head.chain));
        }
        Digest::of(text.as_bytes())
    }

    /// Adds a line of our own as the next fact of its log; the chain hash there.
    pub(super) fn write(&mut self, log: &LogId, line: &str) -> Digest {
        let held = self.head(log);
        let head = Head { seq: held.seq + 1, chain: chain_next(&held.chain, line) };
        self.set(log, head);
        head.chain
    }

    /// A fact that is proven to be the next of its log is held.
    pub(super) fn advance(&mut self, sealed: &SealedFact) {
        let dot = &sealed.fact.dot;
        assert!(dot.seq == self.head(&dot.log).seq + 1, "only the next fact of a log is taken");
        self.set(&dot.log, Head { seq: dot.seq, chain: sealed.chain });
    }

    fn set(&mut self, log: &LogId, head: Head) {
        match self.0.get_mut(log) {
            Some(held) => *held = head,
            None => drop(self.0.insert(log.clone(), head)),
        }
    }

    /// Takes the next fact of a log.
    ///
    /// # Errors
    /// [`LogError`] if it is not the next one or its chain hash does not follow; nothing changed.
    pub fn extend(&mut self, sealed: &SealedFact) -> Result<(), LogError> {
        let dot = &sealed.fact.dot;
        let head = self.head(&dot.log);
        if dot.seq != head.seq + 1 {
            return Err(LogError::Gap { dot: dot.clone(), held: head.seq });
        }
        if chain_next(&head.chain, &sealed.line) != sealed.chain {
            return Err(LogError::Chain(dot.clone()));
        }
        self.set(&dot.log, Head { seq: dot.seq, chain: sealed.chain });
        Ok(())
    }
}
