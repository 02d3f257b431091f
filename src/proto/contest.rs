//! Competing results on plain clocks: which one stands, and the rule that decided.
//!
//! Pure. The greater generation goes first; within it, what happened before another result is
//! superseded by it; of what is left, all concurrent, the maximum of one key stands:
//! `(success, fence, attempt, digest)`, or with the oldest attempt first `(success, fence and
//! attempt reversed, digest)`. It is the order of arbitrate.rs without facts.
//! Law: the verdicts are the same for every order of arrival (tests/properties/contest.rs).
//! Source: design section 4.

use std::cmp::Reverse;

use crate::proto::clock::{Causality, Clock};
use crate::proto::view::{Judgement, Verdict};

/// One of several results of one job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contender {
    /// Its generation, from 1.
    pub generation: u64,
    /// What it knew of.
    pub clock: Clock,
    /// Whether the work was done.
    pub success: bool,
    /// The fence of its attempt.
    pub fence: u64,
    /// Its attempt, as text.
    pub attempt: String,
    /// What tells contents apart.
    pub digest: String,
}

/// Which of concurrent attempts goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Preference {
    /// The one with the greatest fence.
    #[default]
    Newest,
    /// The one with the least fence.
    Oldest,
}

type Key<'a> = (bool, (u64, &'a str), Reverse<(u64, &'a str)>, &'a str);

fn key(one: &Contender, preference: Preference) -> Key<'_> {
    let attempt = (one.fence, one.attempt.as_str());
    let none = (0, "");
    let (up, down) = match preference {
        Preference::Newest => (attempt, none),
        Preference::Oldest => (none, attempt),
    };
    (one.success, up, Reverse(down), one.digest.as_str())
}

const fn judged(verdict: Verdict, rule: &'static str) -> Judgement {
    Judgement { verdict, rule }
}

/// Judges all; one judgement each, in the same order. The same content of the same attempt is a
/// duplicate of the one with the greatest clock.
#[must_use]
pub fn judge(all: &[Contender], preference: Preference) -> Vec<Judgement> {
    let newest = all.iter().map(|one| one.generation).max().unwrap_or(0);
    let known_later = |one: &Contender| {
        let later = |other: &&Contender| {
            other.generation == newest && one.clock.compare(&other.clock) == Causality::Before
        };
        all.iter().any(|other| later(&other))
    };
    let left: Vec<usize> = (0..all.len())
        .filter(|at| all[*at].generation == newest && !known_later(&all[*at]))
        .collect();
    let winner = left.iter().copied().max_by(|a, b| {
        let (one, other) = (&all[*a], &all[*b]);
        // Reports of one attempt with one content differ in their clocks alone.
        let clocks = || one.clock.iter().cmp(other.clock.iter());
        key(one, preference).cmp(&key(other, preference)).then_with(clocks).then(b.cmp(a))
    });
    let same = |a: &Contender, b: &Contender| a.attempt == b.attempt && a.digest == b.digest;
    let alone = left.iter().all(|at| winner.is_some_and(|winner| same(&all[*at], &all[winner])));
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
        if winner.is_some_and(|winner| same(one, &all[winner])) {
            return judged(Verdict::Duplicate, "same-attempt-same-content");
        }
        if one.generation < newest {
            return judged(Verdict::Superseded, "greater-generation");
        }
        if known_later(one) {
            return judged(Verdict::Superseded, "happened-before");
        }
        judged(Verdict::Rejected, "concurrent-lesser-key")
    };
    (0..all.len()).map(verdict).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(clock: &str, success: bool, fence: u64, digest: &str) -> Contender {
        let clock = serde_json::from_str(clock).expect("a clock");
        let attempt = format!("north-1.{fence}");
        Contender { generation: 1, clock, success, fence, attempt, digest: digest.to_owned() }
    }

    fn rules(all: &[Contender], preference: Preference) -> Vec<&'static str> {
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
