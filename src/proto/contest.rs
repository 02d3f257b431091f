//! Competing results on plain clocks: which one stands, and the rule that decided.
//!
//! Pure. The greater generation goes first; within it, what happened before another result is
//! superseded by it; of what is left, all concurrent, the maximum of one key stands:
//! `(success, fence, attempt, digest)`, or with the oldest attempt first `(success, fence and
//! attempt reversed, digest)`. The fold (fold.rs, `winner`) and `ucp-clock resolve` both call it.
//! Law: the verdicts are the same for every order of arrival (tests/clock.rs,
//! tests/properties/fold.rs).
//! Source: design section 4.

use std::cmp::{Ordering, Reverse};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::proto::clock::{Causality, Clock};
use crate::proto::id::Dot;
use crate::proto::view::{Judgement, Verdict};

/// One of several results of one job. `A` orders attempts, `D` contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contender<'a, A, D> {
    /// Its generation, from 1.
    pub generation: u32,
    /// What it knew of.
    pub clock: &'a Clock,
    /// Whether the work was done.
    pub success: bool,
    /// The fence of its attempt.
    pub fence: u64,
    /// Its attempt.
    pub attempt: A,
    /// What tells contents apart.
    pub digest: D,
    /// The fact that accepted it, where one did.
    pub accept: Option<&'a Dot>,
}

/// Which of concurrent attempts goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", try_from = "String")]
pub enum Preference {
    /// The one with the greatest fence.
    #[default]
    #[serde(rename = "newest-attempt")]
    Newest,
    /// The one with the least fence.
    #[serde(rename = "oldest-attempt")]
    Oldest,
}

impl FromStr for Preference {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "newest-attempt" => Ok(Self::Newest),
            "oldest-attempt" => Ok(Self::Oldest),
            other => Err(format!(
                "field `on_conflict`: {other:?} is neither newest-attempt nor oldest-attempt"
            )),
        }
    }
}

impl TryFrom<String> for Preference {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl<A: Ord, D: Ord> Contender<'_, A, D> {
    /// Compares by the one key: the greater one wins.
    #[must_use]
    pub fn cmp_key(&self, other: &Self, preference: Preference) -> Ordering {
        let attempt = (self.fence, &self.attempt).cmp(&(other.fence, &other.attempt));
        let attempt = match preference {
            Preference::Newest => attempt,
            Preference::Oldest => attempt.reverse(),
        };
        let head = (self.generation, self.success).cmp(&(other.generation, other.success));
        let tail = (&self.digest, self.accept).cmp(&(&other.digest, other.accept));
        head.then(attempt).then(tail)
    }

    fn same(&self, other: &Self) -> bool {
        self.attempt == other.attempt && self.digest == other.digest
    }
}

const fn judged(verdict: Verdict, rule: &'static str) -> Judgement {
    Judgement { verdict, rule }
}

/// Those that no other one knew of, in the greatest generation: all concurrent.
fn concurrent<A: Ord, D: Ord>(all: &[Contender<'_, A, D>]) -> Vec<usize> {
    let newest = all.iter().map(|one| one.generation).max().unwrap_or(0);
    let known_later = |one: &Contender<'_, A, D>| {
        let later = |other: &&Contender<'_, A, D>| {
            other.generation == newest && one.clock.compare(other.clock) == Causality::Before
        };
        all.iter().any(|other| later(&other))
    };
    let stands = |at: &usize| all[*at].generation == newest && !known_later(&all[*at]);
    (0..all.len()).filter(stands).collect()
}

/// The one that stands.
#[must_use]
pub fn winner<A: Ord, D: Ord>(
    all: &[Contender<'_, A, D>],
    preference: Preference,
) -> Option<usize> {
    concurrent(all).into_iter().max_by(|a, b| {
        let (one, other) = (&all[*a], &all[*b]);
        // Reports of one attempt with one content differ in their clocks alone.
        let clocks = || one.clock.iter().cmp(other.clock.iter());
        one.cmp_key(other, preference).then_with(clocks).then(Reverse(a).cmp(&Reverse(b)))
    })
}

/// Judges all; one judgement each, in the same order. The same content of the same attempt is a
/// duplicate of the one with the greatest clock.
#[must_use]
pub fn judge<A: Ord, D: Ord>(
    all: &[Contender<'_, A, D>],
    preference: Preference,
) -> Vec<Judgement> {
    let newest = all.iter().map(|one| one.generation).max().unwrap_or(0);
    let left = concurrent(all);
    let winner = winner(all, preference);
    let alone = left.iter().all(|at| winner.is_some_and(|winner| all[*at].same(&all[winner])));
    let verdict = |at: usize| {
        let one = &all[at];
        if Some(at) == winner {
            let rule = match (alone, all.len()) {
                (true, 1) => "only-result",
                (true, _) => "last-in-history",
                (false, _) => "greatest-key",
            };
            return judged(Verdict::Accepted, rule);
        }
        if winner.is_some_and(|winner| one.same(&all[winner])) {
            return judged(Verdict::Duplicate, "same-attempt-same-content");
        }
        if one.generation < newest {
            return judged(Verdict::Superseded, "greater-generation");
        }
        if !left.contains(&at) {
            return judged(Verdict::Superseded, "happened-before");
        }
        judged(Verdict::Rejected, "concurrent-lesser-key")
    };
    (0..all.len()).map(verdict).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    type One = Contender<'static, u64, &'static str>;

    fn one(clock: &str, success: bool, fence: u64, digest: &'static str) -> One {
        let clock = Box::leak(Box::new(serde_json::from_str(clock).expect("a clock")));
        let accept = None;
        Contender { generation: 1, clock, success, fence, attempt: fence, digest, accept }
    }

    fn rules(all: &[One], preference: Preference) -> Vec<&'static str> {
        judge(all, preference).into_iter().map(|judgement| judgement.rule).collect()
    }

    #[test]
    fn generation_then_history_then_the_key() {
        let mut later = one(r#"{"a":1}"#, false, 1, "x");
        later.generation = 2;
        let all = [one(r#"{"a":9,"b":9}"#, true, 9, "x"), later];
        assert_eq!(rules(&all, Preference::Newest), ["greater-generation", "last-in-history"]);
        let all = [
            one(r#"{"a":1}"#, true, 9, "x"),
            one(r#"{"a":2}"#, false, 2, "y"),
            one(r#"{"b":1}"#, true, 1, "z"),
        ];
        let said = rules(&all, Preference::Newest);
        assert_eq!(said, ["happened-before", "concurrent-lesser-key", "greatest-key"]);
    }

    #[test]
    fn the_preference_turns_fence_and_attempt_around_and_nothing_else() {
        let all = [one(r#"{"a":1}"#, true, 1, "x"), one(r#"{"b":1}"#, true, 2, "y")];
        let (key, lesser) = ("greatest-key", "concurrent-lesser-key");
        assert_eq!(rules(&all, Preference::Newest), [lesser, key]);
        assert_eq!(rules(&all, Preference::Oldest), [key, lesser]);
        let failed = [one(r#"{"a":1}"#, false, 1, "x"), one(r#"{"b":1}"#, true, 2, "y")];
        assert_eq!(rules(&failed, Preference::Oldest), [lesser, key]);
    }

    #[test]
    fn the_same_content_of_the_same_attempt_is_a_duplicate() {
        let all = [one(r#"{"a":1}"#, true, 1, "x"), one(r#"{"b":1}"#, true, 1, "x")];
        let said = rules(&all, Preference::Newest);
        // All else is equal, so the greater clock stands.
        assert_eq!(said, ["same-attempt-same-content", "last-in-history"]);
        assert_eq!(rules(&all[..1], Preference::Newest), ["only-result"]);
        assert_eq!(rules(&[], Preference::Newest), [] as [&str; 0]);
    }
}
