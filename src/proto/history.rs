//! Histories: events with vector clocks, their causal order, and what is wrong with them.
//!
//! Pure. An event is a JSON object with `clock` and with `dot` (`["log", 41]`) or `actor`; other
//! members are nobody's business here. Its place is (actor, seq): the dot, or the actor with its
//! own entry in the clock. A clock entry (actor, n) says that the event knew of that actor's
//! events up to n, as far as they are about its own subject (`job`).
//! Causes of an event: the one before it in its actor's sequence, and for each other entry the
//! last event of that actor up to it.
//! Law: [`Graph::order`] is the same for every order of arrival, and no event stands before a
//! cause (tests/properties/history.rs).
//! Source: Lamport 1978 for levels; Mattern 1989 for clocks of events.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::proto::clock::Clock;
use crate::proto::id::{ActorId, Digest, Dot};
use crate::proto::limits;

/// One event's place and what it knew of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Whose it is.
    pub actor: ActorId,
    /// Its place among that actor's events, from 1.
    pub seq: u64,
    /// What it knew of, itself included.
    pub clock: Clock,
    /// What it is about; events about different things have clocks of their own.
    pub subject: Option<String>,
}

/// Why a line is no event. Trying again cannot help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EventError {
    /// Not a JSON object with the members of an event.
    #[error("not an event: {0}")]
    Json(String),
    /// Neither `dot` nor `actor`, or both.
    #[error("an event has either `dot` or `actor` beside `clock`")]
    Place,
    /// The actor has no entry in its own clock.
    #[error("the clock has no entry for its own actor {0}")]
    NoEntry(ActorId),
    /// The own entry is not the dot's seq.
    #[error("the clock of {dot} counts its own log at {entry}")]
    OwnEntry {
        /// The dot.
        dot: Dot,
        /// What the clock says.
        entry: u64,
    },
}

#[derive(Deserialize)]
struct RawEvent {
    clock: Clock,
    #[serde(default)]
    dot: Option<Dot>,
    #[serde(default)]
    actor: Option<ActorId>,
    #[serde(default)]
    job: Option<serde_json::Value>,
}

impl Event {
    /// Reads an event from its line.
    ///
    /// # Errors
    /// [`EventError`].
    pub fn parse(line: &str) -> Result<Self, EventError> {
        let raw: RawEvent = serde_json::from_str(line)
            .map_err(|error| EventError::Json(error.to_string().replace(" at line 1", " at")))?;
        let subject = raw.job.map(|job| match job {
            serde_json::Value::String(text) => text,
            other => other.to_string(),
        });
        match (raw.dot, raw.actor) {
            (Some(dot), None) => {
                let entry = raw.clock.seq(&dot.log);
                if entry != dot.seq {
                    return Err(EventError::OwnEntry { dot, entry });
                }
                let (actor, seq) = (dot.log.actor(), dot.seq);
                Ok(Self { actor, seq, clock: raw.clock, subject })
            }
            (None, Some(actor)) => match raw.clock.get(&actor) {
                0 => Err(EventError::NoEntry(actor)),
                seq => Ok(Self { actor, seq, clock: raw.clock, subject }),
            },
            _ => Err(EventError::Place),
        }
    }
}

/// An event's number in a [`Graph`], in order of arrival.
pub type Index = usize;

/// Events that depend on each other in a circle: their clocks contradict each other.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{first} and {second} are each a cause of the other")]
pub struct Circle {
    /// One of them, as `ACTOR.SEQ`.
    pub first: String,
    /// Another.
    pub second: String,
}

#[derive(Debug, Clone, Copy)]
struct Node {
    actor: u32,
    seq: u64,
    /// A number that tells lines of one place apart, the same in every order of arrival.
    tie: u64,
    entries: (u32, u32),
}

/// Many events, compact: 40 bytes each and 16 for each entry of a clock.
#[derive(Debug, Default)]
pub struct Graph {
    names: Vec<ActorId>,
    numbers: BTreeMap<ActorId, u32>,
    nodes: Vec<Node>,
    entries: Vec<(u32, u64)>,
}

/// The graph is full; the text names the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a history has at most {max} events", max = limits::HISTORY_EVENTS_MAX)]
pub struct Full;

impl Graph {
    /// No events.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many events there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    fn number(&mut self, actor: &ActorId) -> u32 {
        if let Some(number) = self.numbers.get(actor) {
            return *number;
        }
        let number = u32::try_from(self.names.len()).expect("fewer actors than clock entries");
        self.names.push(actor.clone());
        self.numbers.insert(actor.clone(), number);
        number
    }

    /// Adds an event; `tie` is a digest of its line.
    ///
    /// # Errors
    /// [`Full`].
    pub fn add(&mut self, event: &Event, tie: u64) -> Result<Index, Full> {
        if self.nodes.len() >= limits::HISTORY_EVENTS_MAX {
            return Err(Full);
        }
        let from = u32::try_from(self.entries.len()).map_err(|_| Full)?;
        for (actor, counter) in event.clock.iter().filter(|(actor, _)| **actor != event.actor) {
            let number = self.number(actor);
            self.entries.push((number, counter));
        }
        let to = u32::try_from(self.entries.len()).map_err(|_| Full)?;
        let actor = self.number(&event.actor);
        self.nodes.push(Node { actor, seq: event.seq, tie, entries: (from, to) });
        Ok(self.nodes.len() - 1)
    }

    fn name(&self, node: Index) -> String {
        let node = &self.nodes[node];
        format!("{}.{}", self.names[node.actor as usize], node.seq)
    }

    /// For each actor its events in order of their seq.
    fn sequences(&self) -> Vec<Vec<Index>> {
        let mut sequences = vec![vec![]; self.names.len()];
        for (index, node) in self.nodes.iter().enumerate() {
            sequences[node.actor as usize].push(index);
        }
        for sequence in &mut sequences {
            sequence.sort_unstable_by_key(|index| (self.nodes[*index].seq, self.nodes[*index].tie));
        }
        sequences
    }

    /// The last event of `sequence` with at most this seq.
    fn last_up_to(&self, sequence: &[Index], seq: u64) -> Option<Index> {
        let end = sequence.partition_point(|index| self.nodes[*index].seq <= seq);
        end.checked_sub(1).map(|at| sequence[at])
    }

    fn causes<'a>(
        &'a self,
        sequences: &'a [Vec<Index>],
        index: Index,
    ) -> impl Iterator<Item = Index> + 'a {
        let node = &self.nodes[index];
        let before = node.seq.checked_sub(1);
        let own = before.and_then(|seq| self.last_up_to(&sequences[node.actor as usize], seq));
        let entries = &self.entries[node.entries.0 as usize..node.entries.1 as usize];
        let others = entries
            .iter()
            .filter_map(|(actor, counter)| self.last_up_to(&sequences[*actor as usize], *counter));
        own.into_iter().chain(others)
    }

    /// The causes of each event, by the numbers that [`Graph::add`] gave.
    #[must_use]
    pub fn all_causes(&self) -> Vec<Vec<Index>> {
        let sequences = self.sequences();
        (0..self.nodes.len()).map(|index| self.causes(&sequences, index).collect()).collect()
    }

    /// One plus the greatest level of any cause, for each event (Lamport's clock).
    fn levels(&self) -> Result<Vec<u64>, Circle> {
        const UNKNOWN: u64 = 0;
        const OPEN: u64 = u64::MAX;
        let sequences = self.sequences();
        let mut levels = vec![UNKNOWN; self.nodes.len()];
        let mut stack = vec![];
        for start in 0..self.nodes.len() {
            stack.push(start);
            while let Some(&index) = stack.last() {
                if !matches!(levels[index], UNKNOWN | OPEN) {
                    stack.pop();
                    continue;
                }
                let first_visit = levels[index] == UNKNOWN;
                levels[index] = OPEN;
                let mut level = 0;
                let depth = stack.len();
                for cause in self.causes(&sequences, index) {
                    match levels[cause] {
                        UNKNOWN => stack.push(cause),
                        OPEN if first_visit => {
                            return Err(Circle {
                                first: self.name(cause),
                                second: self.name(index),
                            });
                        }
                        known => level = level.max(known),
                    }
                }
                if stack.len() == depth {
                    levels[index] = level + 1;
                    stack.pop();
                }
            }
        }
        Ok(levels)
    }

    /// All events in a causal order: by level, then actor, then seq.
    ///
    /// # Errors
    /// [`Circle`]: no order exists.
    pub fn order(&self) -> Result<Vec<Index>, Circle> {
        let levels = self.levels()?;
        let mut order: Vec<Index> = (0..self.nodes.len()).collect();
        order.sort_unstable_by_key(|index| {
            let node = &self.nodes[*index];
            (levels[*index], &self.names[node.actor as usize], node.seq, node.tie)
        });
        Ok(order)
    }
}

/// What is wrong with a history at one place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// A stable word: `gap`, `reused-dot`, `effect-before-cause`, `missing-cause`, `regress`.
    pub kind: &'static str,
    /// The event, as `ACTOR.SEQ`.
    pub event: String,
    /// What is wrong, in words.
    pub detail: String,
}

/// What a checker keeps of one actor: 16 bytes for each of its events.
#[derive(Debug, Default)]
struct Seen {
    /// The digest of the line of each event.
    lines: BTreeMap<u64, u64>,
    last: u64,
}

/// Checks a history as its lines come.
#[derive(Debug, Default)]
pub struct Checker {
    actors: BTreeMap<ActorId, Seen>,
    /// Entries of clocks that were ahead of what had come: (actor, counter) → the first event.
    ahead: BTreeMap<(ActorId, u64), String>,
    /// The last clock of each actor about each subject, by a hash of its name.
    last: BTreeMap<(ActorId, u64), Clock>,
    events: u64,
    faults: u64,
}

impl Checker {
    /// Nothing has come.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Events so far.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.events
    }

    /// Faults so far.
    #[must_use]
    pub fn faults(&self) -> u64 {
        self.faults
    }

    /// Takes the next event; `line` is a digest of its line.
    pub fn take(&mut self, event: &Event, line: u64) -> Vec<Fault> {
        self.events += 1;
        let name = format!("{}.{}", event.actor, event.seq);
        let mut found = vec![];
        let mut add = |kind, detail| found.push(Fault { kind, event: name.clone(), detail });
        let seen = self.actors.entry(event.actor.clone()).or_default();
        if let Some(before) = seen.lines.get(&event.seq) {
            if *before != line {
                add("reused-dot", "the same place holds two different events".into());
            }
        } else {
            if event.seq < seen.last {
                let last = seen.last;
                add("effect-before-cause", format!("{}.{last} stands before it", event.actor));
            }
            seen.lines.insert(event.seq, line);
            seen.last = seen.last.max(event.seq);
            for (actor, counter) in event.clock.iter().filter(|(actor, _)| **actor != event.actor) {
                let held = self.actors.get(actor).is_some_and(|seen| seen.last >= counter);
                if !held {
                    let key = (actor.clone(), counter);
                    self.ahead.entry(key).or_insert_with(|| name.clone());
                }
            }
            let subject = short_hash(event.subject.as_deref().unwrap_or_default());
            let before = self.last.insert((event.actor.clone(), subject), event.clock.clone());
            let fell = before.and_then(|before| {
                let fell = |(actor, counter): &(&ActorId, u64)| event.clock.get(actor) < *counter;
                before.iter().find(fell).map(|(actor, counter)| (actor.clone(), counter))
            });
            if let Some((actor, counter)) = fell {
                let now = event.clock.get(&actor);
                add("regress", format!("its entry for {actor} fell from {counter} to {now}"));
            }
        }
        self.faults += found.len() as u64;
        found
    }

    /// All has come: what can only be told now. `partial` histories may have gaps.
    pub fn finish(&mut self, partial: bool) -> Vec<Fault> {
        let mut found = vec![];
        for ((actor, counter), event) in std::mem::take(&mut self.ahead) {
            let held =
                self.actors.get(&actor).is_some_and(|seen| seen.lines.contains_key(&counter));
            if held {
                let detail = format!("it knows of {actor}.{counter}, which comes later");
                found.push(Fault { kind: "effect-before-cause", event, detail });
            } else if !partial {
                let detail = format!("it knows of {actor}.{counter}, which is not there");
                found.push(Fault { kind: "missing-cause", event, detail });
            }
        }
        if !partial {
            for (actor, seen) in &self.actors {
                found.extend(gaps(actor, seen));
            }
        }
        self.faults += found.len() as u64;
        found
    }
}

/// The first eight bytes of a digest, for telling lines and subjects apart.
#[must_use]
pub fn short_hash(text: &str) -> u64 {
    let Digest(bytes) = Digest::of(text.as_bytes());
    bytes.iter().take(8).fold(0, |hash, byte| hash << 8 | u64::from(*byte))
}

fn gaps(actor: &ActorId, seen: &Seen) -> Vec<Fault> {
    let mut found = vec![];
    let mut next = 1;
    for seq in seen.lines.keys() {
        if *seq > next {
            let detail = match seq - next {
                1 => format!("{actor}.{next} is missing before it"),
                count => format!("{actor}.{next} and {} more are missing before it", count - 1),
            };
            found.push(Fault { kind: "gap", event: format!("{actor}.{seq}"), detail });
        }
        next = seq + 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(line: &str) -> Event {
        Event::parse(line).expect(line)
    }

    fn kinds(lines: &[&str], partial: bool) -> Vec<&'static str> {
        let mut checker = Checker::new();
        let mut found = vec![];
        for (number, line) in lines.iter().enumerate() {
            let tie = u64::from(line.contains("again")) * number as u64;
            found.extend(checker.take(&event(line), tie));
        }
        found.extend(checker.finish(partial));
        assert_eq!(checker.faults(), found.len() as u64);
        found.into_iter().map(|fault| fault.kind).collect()
    }

    const A1: &str = r#"{"actor":"a","clock":{"a":1}}"#;
    const A2: &str = r#"{"dot":["a",2],"clock":{"a":2,"b":1}}"#;
    const A3: &str = r#"{"actor":"a","clock":{"a":3}}"#;
    const B1: &str = r#"{"actor":"b","clock":{"a":1,"b":1},"x":[1]}"#;

    #[test]
    fn places_come_from_dot_or_actor() {
        assert_eq!((event(A2).actor.as_str(), event(A2).seq), ("a", 2));
        assert_eq!((event(B1).actor.as_str(), event(B1).seq), ("b", 1));
        for bad in [
            "1",
            "{}",
            r#"{"clock":{"a":1}}"#,
            r#"{"clock":{"a":1},"actor":"b"}"#,
            r#"{"clock":{"a":1},"dot":["a",2]}"#,
            r#"{"clock":{"a":1},"dot":["a",1],"actor":"a"}"#,
            r#"{"clock":{"a":1,"a":1},"actor":"a"}"#,
            r#"{"clock":{"a":9007199254740992},"actor":"a"}"#,
        ] {
            assert!(Event::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_order_is_causal_and_the_same_for_every_arrival() {
        let lines = [A1, B1, A2, A3];
        for shift in 0..lines.len() {
            let mut graph = Graph::new();
            let mut arrived: Vec<&str> = lines.to_vec();
            arrived.rotate_left(shift);
            arrived.swap(0, 2);
            for line in &arrived {
                graph.add(&event(line), 0).expect("room");
            }
            let order: Vec<&str> =
                graph.order().expect("an order").into_iter().map(|at| arrived[at]).collect();
            assert_eq!(order, lines);
        }
    }

    #[test]
    fn a_circle_is_named() {
        let mut graph = Graph::new();
        for line in
            [r#"{"actor":"a","clock":{"a":1,"b":1}}"#, r#"{"actor":"b","clock":{"a":1,"b":1}}"#]
        {
            graph.add(&event(line), 0).expect("room");
        }
        let said = graph.order().expect_err("a circle").to_string();
        assert!(said.contains("a.1") && said.contains("b.1"), "{said}");
    }

    #[test]
    fn each_fault_has_its_word() {
        assert_eq!(kinds(&[A1, B1, A2], false), [] as [&str; 0]);
        assert_eq!(kinds(&[A1, A2, B1], false), ["effect-before-cause"]);
        assert_eq!(kinds(&[A2, A1, B1], false).first(), Some(&"effect-before-cause"));
        assert_eq!(kinds(&[A1, A2], false), ["missing-cause"]);
        assert_eq!(kinds(&[A1, A2], true), [] as [&str; 0]);
        assert_eq!(kinds(&[A1, A3], false), ["gap"]);
        assert_eq!(kinds(&[A1, B1, A2, A3], false), ["regress"]);
        let again = r#"{"actor":"a","clock":{"a":1},"again":true}"#;
        assert_eq!(kinds(&[A1, again], false), ["reused-dot"]);
        assert_eq!(kinds(&[A1, A1], false), [] as [&str; 0]);
    }
}
