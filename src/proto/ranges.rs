//! Sets of numbers that come in runs: the elements of an array.
//!
//! Pure. Text and JSON: runs in ascending order that neither overlap nor touch, `"1-64,70"`; what
//! is read may be in any order and may touch. Invariant: a run ends before the next begins, with
//! at least one number between them, so that equal sets have equal texts.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::proto::limits;

/// A set of numbers from 0 to 2^53 - 1.
#[derive(Clone, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub struct Ranges {
    /// First to last, inclusive.
    runs: BTreeMap<u64, u64>,
    len: u64,
}

/// Why a text is no set of numbers. Nothing changed; trying again cannot help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no range: numbers and runs like 1-1000,2000 are expected, none over 2^53 - 1")]
pub struct RangesError(String);

impl Ranges {
    /// The set of no numbers.
    pub const EMPTY: Self = Self { runs: BTreeMap::new(), len: 0 };

    /// The set of one number.
    #[must_use]
    pub fn one(number: u64) -> Self {
        Self::run(number, number)
    }

    /// The numbers from `first` to `last`; nothing where `last` is the lesser.
    #[must_use]
    pub fn run(first: u64, last: u64) -> Self {
        let mut ranges = Self::default();
        ranges.insert_run(first, last);
        ranges
    }

    /// How many numbers there are.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The least number.
    #[must_use]
    pub fn first(&self) -> Option<u64> {
        self.runs.first_key_value().map(|(first, _)| *first)
    }

    /// The greatest number.
    #[must_use]
    pub fn last(&self) -> Option<u64> {
        self.runs.last_key_value().map(|(_, last)| *last)
    }

    /// Whether a number is in the set.
    #[must_use]
    pub fn contains(&self, number: u64) -> bool {
        self.runs.range(..=number).next_back().is_some_and(|(_, last)| number <= *last)
    }

    /// The runs, ascending, first and last inclusive.
    pub fn runs(&self) -> impl DoubleEndedIterator<Item = (u64, u64)> + Clone {
        self.runs.iter().map(|(first, last)| (*first, *last))
    }

    /// The numbers, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u64> {
        self.runs().flat_map(|(first, last)| first..=last)
    }

    /// Adds a number.
    pub fn insert(&mut self, number: u64) {
        self.insert_run(number, number);
    }

    /// Adds the numbers from `first` to `last`.
    pub fn insert_run(&mut self, first: u64, last: u64) {
        if first > last {
            return;
        }
        let (mut from, mut to) = (first, last);
        let touching: Vec<u64> = self
            .runs
            .range(..=last.saturating_add(1))
            .rev()
            .take_while(|(_, end)| end.saturating_add(1) >= first)
            .map(|(start, _)| *start)
            .collect();
        for start in touching {
            if let Some(end) = self.runs.remove(&start) {
                self.len -= end - start + 1;
                (from, to) = (from.min(start), to.max(end));
            }
        }
        self.runs.insert(from, to);
        self.len += to - from + 1;
    }

    /// Takes a number out.
    pub fn remove(&mut self, number: u64) {
        self.remove_run(number, number);
    }

    /// Takes the numbers from `first` to `last` out.
    pub fn remove_run(&mut self, first: u64, last: u64) {
        let overlapping: Vec<(u64, u64)> = self
            .runs
            .range(..=last)
            .rev()
            .take_while(|(_, end)| **end >= first)
            .map(|(start, end)| (*start, *end))
            .collect();
        for (start, end) in overlapping {
            self.runs.remove(&start);
            self.len -= end - start + 1;
            if start < first {
                self.runs.insert(start, first - 1);
                self.len += first - start;
            }
            if end > last {
                self.runs.insert(last + 1, end);
                self.len += end - last;
            }
        }
    }

    /// Adds all of another set.
    pub fn extend(&mut self, other: &Self) {
        for (first, last) in other.runs() {
            self.insert_run(first, last);
        }
    }

    /// Takes all of another set out.
    pub fn subtract(&mut self, other: &Self) {
        for (first, last) in other.runs() {
            self.remove_run(first, last);
        }
    }

    /// What is in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let mut both = Self::default();
        let (few, many) =
            if self.runs.len() <= other.runs.len() { (self, other) } else { (other, self) };
        for (first, last) in few.runs() {
            for (start, end) in many.runs_within(first, last) {
                both.insert_run(start, end);
            }
        }
        both
    }

    /// What lies from `first` to `last`.
    #[must_use]
    pub fn within(&self, first: u64, last: u64) -> Self {
        let mut part = Self::default();
        for (start, end) in self.runs_within(first, last) {
            part.insert_run(start, end);
        }
        part
    }

    /// The runs of what lies from `first` to `last`, descending.
    pub fn runs_within(&self, first: u64, last: u64) -> impl Iterator<Item = (u64, u64)> {
        let runs = self.runs.range(..=last).rev().take_while(move |(_, end)| **end >= first);
        runs.map(move |(start, end)| ((*start).max(first), (*end).min(last)))
    }

    /// Up to `count` of the least numbers.
    #[must_use]
    pub fn first_of(&self, count: u64) -> Self {
        let mut first_of = Self::default();
        for (first, last) in self.runs() {
            let left = count - first_of.len();
            if left == 0 {
                break;
            }
            first_of.insert_run(first, last.min(first.saturating_add(left - 1)));
        }
        first_of
    }

    /// Takes up to `count` of the least numbers out and returns them.
    #[must_use]
    pub fn take_first(&mut self, count: u64) -> Self {
        let mut taken = Self::default();
        while taken.len() < count
            && let Some((first, last)) = self.runs.first_key_value().map(|(a, b)| (*a, *b))
        {
            let end = last.min(first + (count - taken.len()) - 1);
            taken.insert_run(first, end);
            self.remove_run(first, end);
        }
        taken
    }
}

impl FromIterator<u64> for Ranges {
    fn from_iter<I: IntoIterator<Item = u64>>(numbers: I) -> Self {
        let mut ranges = Self::default();
        numbers.into_iter().for_each(|number| ranges.insert(number));
        ranges
    }
}

impl fmt::Display for Ranges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (first, last)) in self.runs().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            if first == last {
                write!(f, "{comma}{first}")?;
            } else {
                write!(f, "{comma}{first}-{last}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Ranges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ranges({self})")
    }
}

impl FromStr for Ranges {
    type Err = RangesError;
    fn from_str(text: &str) -> Result<Self, RangesError> {
        let bad = || RangesError(text.chars().take(80).collect());
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            text.parse().ok().filter(|n| digits && *n <= limits::COUNTER_MAX).ok_or_else(bad)
        };
        let mut ranges = Self::default();
        if text.is_empty() {
            return Ok(ranges);
        }
        for run in text.split(',') {
            let (first, last) = run.split_once('-').unwrap_or((run, run));
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(bad());
            }
            ranges.insert_run(first, last);
        }
        Ok(ranges)
    }
}

impl Serialize for Ranges {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Ranges {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn runs_join_and_part_like_a_plain_set() {
        // A walk through all states of a small set, beside one that cannot be wrong.
        let (mut ranges, mut plain) = (Ranges::default(), BTreeSet::new());
        let mut rng = crate::proto::rng::Rng::from_seed(7);
        for _ in 0..5_000 {
            let (first, add) = (rng.next_u64() % 40, rng.next_u64().is_multiple_of(2));
            let last = first + rng.next_u64() % 6;
            if add {
                ranges.insert_run(first, last);
                plain.extend(first..=last);
            } else {
                ranges.remove_run(first, last);
                plain.retain(|n| !(first..=last).contains(n));
            }
            assert!(ranges.iter().eq(plain.iter().copied()), "{ranges} is not {plain:?}");
            assert_eq!(ranges.len(), plain.len() as u64);
            assert!(ranges.runs().zip(ranges.runs().skip(1)).all(|(a, b)| a.1 + 1 < b.0));
            assert_eq!(ranges.to_string().parse(), Ok(ranges.clone()));
            assert!(ranges.within(first, last).iter().eq(plain.range(first..=last).copied()));
        }
    }

    #[test]
    fn the_least_are_taken_first() {
        let mut ranges: Ranges = "1-3,7,9-20".parse().expect("ranges");
        assert_eq!(ranges.take_first(5).to_string(), "1-3,7,9");
        assert_eq!(ranges.to_string(), "10-20");
        assert_eq!(ranges.take_first(100).len(), 11);
        assert!(ranges.is_empty() && ranges.take_first(1).is_empty());
    }

    #[test]
    fn bad_texts_are_refused() {
        for text in ["a", "1-", "-1", "2-1", "1,,2", "+1", "1-9007199254740992", "1 - 2"] {
            assert!(text.parse::<Ranges>().is_err(), "{text}");
        }
        assert_eq!("3,1-2,2-2".parse::<Ranges>().map(|r| r.to_string()), Ok("1-3".to_owned()));
    }
}
