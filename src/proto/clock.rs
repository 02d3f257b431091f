//! Vector clocks: who has seen what, without any shared time.
//!
//! Pure: reads no clock, draws no randomness, touches no file.
//! Shape: ordered map actor → counter (events, from 1). An absent actor counts 0, so zero entries
//! are never kept. From outside at most [`limits::CLOCK_ENTRIES_MAX`] entries.
//! Law: `merge` commutes, associates, and changes nothing when repeated; `compare` is the order
//! that `merge` is the least upper bound of (tests/properties/clock.rs).
//! Sources: Fidge 1988; Mattern 1989; Parker et al. 1983 for conflict detection.

use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::proto::id::{ActorId, Dot, LogId};
use crate::proto::limits;

/// How two clocks lie to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Causality {
    /// The first happened before the second.
    Before,
    /// The first happened after the second.
    After,
    /// They are the same.
    Equal,
    /// Neither knew of the other.
    Concurrent,
}

/// A vector clock. JSON: an object of counters, `{"north":3,"van2":1}`, sorted by name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Clock(Vec<(ActorId, u64)>);

impl Clock {
    /// A clock in which nobody has done anything.
    #[must_use]
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// How many actors have an entry.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nobody has done anything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The entries in order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&ActorId, u64)> {
        self.0.iter().map(|(actor, counter)| (actor, *counter))
    }

    fn place(&self, actor: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|(held, _)| held.as_str().cmp(actor))
    }

    /// An actor's counter; 0 for one that has no entry.
    #[must_use]
    pub fn get(&self, actor: &ActorId) -> u64 {
        self.place(actor.as_str()).map_or(0, |at| self.0[at].1)
    }

    /// A log's counter.
    #[must_use]
    pub fn seq(&self, log: &LogId) -> u64 {
        self.place(log.as_str()).map_or(0, |at| self.0[at].1)
    }

    /// Whether the fact with this dot was known when the clock was taken (the dot rule).
    #[must_use]
    pub fn covers(&self, dot: &Dot) -> bool {
        self.seq(&dot.log) >= dot.seq
    }

    /// Raises one entry to at least `counter`.
    pub fn raise(&mut self, actor: &ActorId, counter: u64) {
        match self.place(actor.as_str()) {
            Ok(at) => self.0[at].1 = self.0[at].1.max(counter),
            Err(at) if counter > 0 => self.0.insert(at, (actor.clone(), counter)),
            Err(_) => {}
        }
    }

    /// Raises the entry of a dot's log to at least its seq.
    pub fn raise_to(&mut self, dot: &Dot) {
        match self.place(dot.log.as_str()) {
            Ok(at) => self.0[at].1 = self.0[at].1.max(dot.seq),
            Err(_) => self.raise(&dot.log.actor(), dot.seq),
        }
    }

    /// Counts one event of `actor` and returns its new counter.
    pub fn tick(&mut self, actor: &ActorId) -> u64 {
        let counter = self.get(actor) + 1;
        self.raise(actor, counter);
        counter
    }

    /// Raises every entry to at least the other's: the least clock that covers both.
    pub fn merge(&mut self, other: &Self) {
        for (actor, counter) in other.iter() {
            self.raise(actor, counter);
        }
    }

    /// How this clock lies to `other`.
    #[must_use]
    pub fn compare(&self, other: &Self) -> Causality {
        match (self.at_most(other), other.at_most(self)) {
            (true, true) => Causality::Equal,
            (true, false) => Causality::Before,
            (false, true) => Causality::After,
            (false, false) => Causality::Concurrent,
        }
    }

    /// Whether every entry is at most the other's.
    #[must_use]
    pub fn at_most(&self, other: &Self) -> bool {
        self.iter().all(|(actor, counter)| counter <= other.get(actor))
    }
}

impl FromIterator<(ActorId, u64)> for Clock {
    fn from_iter<I: IntoIterator<Item = (ActorId, u64)>>(entries: I) -> Self {
        let mut clock = Self::new();
        for (actor, counter) in entries {
            clock.raise(&actor, counter);
        }
        clock
    }
}

impl Serialize for Clock {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (actor, counter) in &self.0 {
            map.serialize_entry(actor, counter)?;
        }
        map.end()
    }
}

struct ClockVisitor;

impl<'de> Visitor<'de> for ClockVisitor {
    type Value = Clock;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of counters")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Clock, A::Error> {
        use serde::de::Error;
        let mut entries: Vec<(ActorId, u64)> = Vec::new();
        while let Some((actor, counter)) = map.next_entry::<ActorId, u64>()? {
            if counter > limits::COUNTER_MAX {
                return Err(A::Error::custom(format!("the counter of {actor} is over 2^53 - 1")));
            }
            if entries.len() == limits::CLOCK_ENTRIES_MAX {
                let max = limits::CLOCK_ENTRIES_MAX;
                return Err(A::Error::custom(format!("a clock has at most {max} entries")));
            }
            entries.push((actor, counter));
        }
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        if let Some(twice) = entries.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(A::Error::custom(format!("{} stands twice in a clock", twice[0].0)));
        }
        entries.retain(|(_, counter)| *counter > 0);
        Ok(Clock(entries))
    }
}

impl<'de> Deserialize<'de> for Clock {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ClockVisitor)
    }
}
