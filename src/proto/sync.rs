//! Anti-entropy: which of the facts that came from elsewhere can be taken, and in which order.
//!
//! Pure; moves nothing (runtime/sync.rs does). A round compares [`Mark`]s, the ends of logs, and
//! each side sends the facts above the other's. Facts come in any order, any number of times, from
//! whoever has them; with them come marks that say what the chain of a log is at some seq.
//!
//! Laws: a fact is taken only as the next of its log, only up to a mark whose chain hash its line
//! leads to, and only when everything that its clock covers is held. So what is held is always
//! causally closed, and "happened before" is a comparison of clocks with the version vector.
//! Whatever cannot be taken yet is handed back, and nothing of a log is taken behind a fault.
//! Tested in tests/properties/sync.rs.
//! Source: design section 3; dotted version vectors, Preguiça et al. 2010; anti-entropy, Demers et
//! al. 1987.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::proto::fact::{Body, Fact, SealedFact, chain_next};
use crate::proto::id::{Digest, Dot, LogId};
use crate::proto::limits;
use crate::proto::log::{Head, Logs};

/// The end of a log, or a place in it, as somebody holds it. JSON: `["north-7f3a51c2",41,"<hex>"]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// The log.
    pub log: LogId,
    /// The seq there; 0 for the beginning.
    pub seq: u64,
    /// The chain hash there.
    pub chain: Digest,
}

impl Serialize for Mark {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (&self.log, self.seq, &self.chain).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Mark {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (log, seq, chain) = <(LogId, u64, Digest)>::deserialize(deserializer)?;
        if seq > limits::COUNTER_MAX {
            return Err(serde::de::Error::custom("a seq is below 2^53"));
        }
        Ok(Self { log, seq, chain })
    }
}

/// The marks at the ends of all logs.
#[must_use]
pub fn marks(logs: &Logs) -> Vec<Mark> {
    let mark =
        |(log, head): (&LogId, &Head)| Mark { log: log.clone(), seq: head.seq, chain: head.chain };
    logs.iter().map(mark).collect()
}

/// A fact that came from elsewhere, with its line as it came; its chain is not known to be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// What it says.
    pub fact: Arc<Fact>,
    /// Its line, without a newline.
    pub line: Arc<str>,
}

/// Why nothing more of a log is taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncFault {
    /// The log.
    pub log: LogId,
    /// Where.
    pub seq: u64,
    /// What is wrong.
    pub kind: FaultKind,
}

/// What is wrong with a log that came from elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FaultKind {
    /// Its chain hash is another: a byte was changed on one side, or two processes wrote the log.
    Forked,
    /// It is the log that this broker writes, and goes further than that broker wrote.
    Own,
    /// A fact is none that a broker writes: its spec is not valid, it counts further than any
    /// broker would, or its log does not begin as a log does.
    Unsound,
    /// More logs are held than may be.
    TooMany,
}

impl fmt::Display for SyncFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { log, seq, kind } = self;
        match kind {
            FaultKind::Forked => write!(
                f,
                "log {log} is damaged or forked: up to seq {seq} its chain hash is another here"
            ),
            FaultKind::Own => write!(
                f,
                "log {log} is written by this broker, and came with a seq {seq} that it never \
                 wrote: its data directory was copied, or is an older copy of itself"
            ),
            FaultKind::Unsound => {
                write!(f, "fact {log}.{seq} is none that a broker writes, so its log ends here")
            }
            FaultKind::TooMany => {
                write!(f, "log {log} is not taken: more than {} are held", limits::LOGS_MAX)
            }
        }
    }
}

/// What is to be done with facts that came.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Sorted {
    /// To be taken, in this order, which is a causal one.
    pub take: Vec<SealedFact>,
    /// How many are held already.
    pub known: u64,
    /// What cannot be taken yet: something before it, or its mark, is missing.
    pub left: Vec<Received>,
    /// Logs of which nothing more is taken.
    pub faults: Vec<SyncFault>,
}

/// Sorts out which of the facts that came can be taken. `own` is the log that nobody else writes.
#[must_use]
pub fn sort_out(logs: &Logs, own: &LogId, facts: Vec<Received>, marks: &[Mark]) -> Sorted {
    let mut sorted = Sorted::default();
    let mut came: BTreeMap<LogId, BTreeMap<u64, Received>> = BTreeMap::new();
    let mut twofold: BTreeSet<Dot> = BTreeSet::new();
    for received in facts {
        let dot = &received.fact.dot;
        if dot.seq <= logs.head(&dot.log).seq {
            sorted.known += 1;
            continue;
        }
        let of_log = came.entry(dot.log.clone()).or_default();
        match of_log.get(&dot.seq) {
            Some(other) if other.line != received.line => drop(twofold.insert(dot.clone())),
            Some(_) => sorted.known += 1,
            None => drop(of_log.insert(dot.seq, received)),
        }
    }
    let mut places: BTreeMap<&LogId, BTreeMap<u64, &Digest>> = BTreeMap::new();
    for mark in marks {
        places.entry(&mark.log).or_default().insert(mark.seq, &mark.chain);
    }
    let mut proven: BTreeMap<LogId, Vec<(Received, Digest)>> = BTreeMap::new();
    let mut known_logs = logs.iter().count();
    for (log, of_log) in came {
        if logs.head(&log).seq == 0 {
            known_logs += 1;
        }
        if known_logs > limits::LOGS_MAX {
            sorted.faults.push(SyncFault { log, seq: 1, kind: FaultKind::TooMany });
            continue;
        }
        if log == *own {
            let seq = of_log.keys().next().copied().unwrap_or_default();
            sorted.faults.push(SyncFault { log, seq, kind: FaultKind::Own });
            continue;
        }
        let none = BTreeMap::new();
        let places = places.get(&log).unwrap_or(&none);
        let (taken, left, fault) = prove((logs, own, &log), of_log, places, &twofold);
        sorted.left.extend(left);
        sorted.faults.extend(fault);
        proven.insert(log, taken);
    }
    order(logs, proven, &mut sorted);
    sorted
}

/// Parts the facts of one log into those whose chain a mark proves, and the rest.
#[allow(clippy::type_complexity)]
fn prove(
    (logs, own, log): (&Logs, &LogId, &LogId),
    facts: BTreeMap<u64, Received>,
    places: &BTreeMap<u64, &Digest>,
    twofold: &BTreeSet<Dot>,
) -> (Vec<(Received, Digest)>, Vec<Received>, Option<SyncFault>) {
    let (mut chained, mut proven, mut fault) = (vec![], 0, None);
    let mut left = vec![];
    let mut at = logs.head(log);
    for (seq, received) in facts {
        if seq != at.seq + 1 || fault.is_some() {
            left.push(received);
            continue;
        }
        let failed = |kind| Some(SyncFault { log: log.clone(), seq, kind });
        if twofold.contains(&received.fact.dot) {
            fault = failed(FaultKind::Forked);
        } else if !is_sound(logs, own, &received.fact) {
            fault = failed(FaultKind::Unsound);
        }
        at = Head { seq, chain: chain_next(&at.chain, &received.line) };
        match places.get(&seq) {
            _ if fault.is_some() => {
                left.push(received);
                continue;
            }
            Some(chain) if **chain != at.chain => {
                fault = failed(FaultKind::Forked);
                left.push(received);
                continue;
            }
            Some(_) => proven = chained.len() + 1,
            None => {}
        }
        chained.push((received, at.chain));
    }
    let unproven = chained.split_off(proven);
    let mut rest: Vec<_> = unproven.into_iter().map(|(received, _)| received).collect();
    // What lies behind a fault would only come again.
    if fault.is_none() {
        rest.append(&mut left);
    } else {
        rest.clear();
    }
    (chained, rest, fault)
}

/// Whether a fact is one that a broker writes: within all bounds, as what follows counts on from
/// it, and true to its place.
fn is_sound(logs: &Logs, own: &LogId, fact: &Fact) -> bool {
    // What a result brings along of our own log is there, or never was.
    let is_known =
        |carried: &Fact| carried.dot.log != *own || carried.dot.seq <= logs.head(own).seq;
    let begins = fact.dot.seq > 1 || matches!(fact.body, Body::Joined(_));
    let carried = fact.carried();
    begins
        && is_bounded(fact)
        && carried.iter().all(|carried| is_bounded(carried) && is_known(carried))
}

fn is_bounded(fact: &Fact) -> bool {
    let fence = match &fact.body {
        Body::Deployed(body) => body.fence,
        Body::Accepted(body) => body.fence,
        Body::Submitted(body) if body.spec.validate().is_err() => return false,
        _ => 0,
    };
    let most = match fact.lease() {
        Some(_) => limits::LEASE_ELEMENTS_MAX,
        None => limits::ARRAY_ELEMENTS_MAX,
    };
    fence <= limits::CARRIED_FENCE_MAX
        && fact.generation <= limits::CARRIED_GENERATION_MAX
        && fact.elements.as_ref().is_none_or(|elements| elements.len() <= most)
}

/// Takes from all logs what is next there and has its causes, until nothing is left or something is
/// missing. A log that waits is looked at again when the one that it waits for went on.
fn order(logs: &Logs, proven: BTreeMap<LogId, Vec<(Received, Digest)>>, sorted: &mut Sorted) {
    let mut held: BTreeMap<LogId, u64> = logs.vector();
    let mut due: VecDeque<LogId> = proven.keys().cloned().collect();
    let mut rest: BTreeMap<LogId, _> =
        proven.into_iter().map(|(log, facts)| (log, facts.into_iter().peekable())).collect();
    let mut waiting: BTreeMap<String, Vec<LogId>> = BTreeMap::new();
    while let Some(log) = due.pop_front() {
        let Some(facts) = rest.get_mut(&log) else { continue };
        let before = sorted.take.len();
        while let Some((received, _)) = facts.peek() {
            let missing = received.fact.clock.iter().find(|(actor, seq)| {
                let of_own = actor.as_str() == log.as_str();
                !of_own && held.get(actor.as_str()).is_none_or(|held| held < seq)
            });
            if let Some((actor, _)) = missing {
                waiting.entry(actor.to_string()).or_default().push(log.clone());
                break;
            }
            let Some((Received { fact, line }, chain)) = facts.next() else { break };
            match held.get_mut(&log) {
                Some(seq) => *seq = fact.dot.seq,
                None => drop(held.insert(log.clone(), fact.dot.seq)),
            }
            sorted.take.push(SealedFact { fact, line, chain });
        }
        if sorted.take.len() > before {
            due.extend(waiting.remove(log.as_str()).into_iter().flatten());
        }
    }
    sorted.left.extend(rest.into_values().flatten().map(|(received, _)| received));
}
