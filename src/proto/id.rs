//! Identities: one newtype for each thing that has a name.
//!
//! Pure. A name is 1 to [`limits::NAME_BYTES_MAX`] bytes of ASCII letters, digits, `-`, `_`, `.`.
//! Dots order by log name bytewise, then by sequence number; nothing is ordered by time.
//! Sources: dots after Preguiça et al. 2010, "Dotted Version Vectors".

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

use crate::proto::limits;
use crate::proto::rng::Rng;
use crate::proto::time::WallTime;

/// Why a text is no identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdError {
    /// A name is empty, too long, or holds other characters than letters, digits, `-`, `_`, `.`.
    /// Nothing changed; trying again cannot help.
    #[error("{0:?} is no name: use 1 to {max} ASCII letters, digits, '-', '_' or '.'", max = limits::NAME_BYTES_MAX)]
    Name(String),
    /// A job id is no UUID. Nothing changed; trying again cannot help.
    #[error("{0:?} is no job id: a UUID is expected")]
    Job(String),
    /// A digest is not 64 lower-case hexadecimal digits. Nothing changed.
    #[error("{0:?} is no digest: 64 lower-case hexadecimal digits are expected")]
    Digest(String),
    /// An attempt is not written as `LOG.SEQ` or `LOG.SEQ:ELEMENT`. Nothing changed.
    #[error("{0:?} is no attempt: LOG.SEQ or LOG.SEQ:ELEMENT is expected")]
    Attempt(String),
}

fn check_name(text: &str) -> Result<(), IdError> {
    let fits = (1..=limits::NAME_BYTES_MAX).contains(&text.len());
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if fits && text.bytes().all(legal) {
        Ok(())
    } else {
        Err(IdError::Name(text.chars().take(limits::NAME_BYTES_MAX).collect()))
    }
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone)]
        pub struct $name(Arc<str>);

        // Most names that are compared are the same one in memory.
        impl PartialEq for $name {
            fn eq(&self, other: &Self) -> bool {
                Arc::ptr_eq(&self.0, &other.0) || self.0 == other.0
            }
        }

        impl Eq for $name {}

        impl Hash for $name {
            fn hash<H: Hasher>(&self, state: &mut H) {
                self.0.hash(state);
            }
        }

        impl PartialOrd for $name {
            fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
                Some(self.cmp(other))
            }
        }

        impl Ord for $name {
            fn cmp(&self, other: &Self) -> Ordering {
                if Arc::ptr_eq(&self.0, &other.0) {
                    Ordering::Equal
                } else {
                    self.0.cmp(&other.0)
                }
            }
        }

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        // Compares and hashes as its text does.
        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                check_name(text)?;
                Ok(Self(Arc::from(text)))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

name_type!(
    /// Whoever has an entry in a vector clock: a log or an executor.
    ActorId
);
name_type!(
    /// A log: the facts written by one broker, seq 1, 2, 3, … without gaps. `NAME-xxxxxxxx`.
    LogId
);
name_type!(
    /// An executor's lasting identity, kept in its data directory. `NAME-xxxxxxxx`.
    ExecutorId
);

impl LogId {
    /// The log as an actor of vector clocks.
    #[must_use]
    pub fn actor(&self) -> ActorId {
        ActorId(Arc::clone(&self.0))
    }
}

impl ExecutorId {
    /// The executor as an actor of vector clocks; it never enters a fact's own clock.
    #[must_use]
    pub fn actor(&self) -> ActorId {
        ActorId(Arc::clone(&self.0))
    }
}

/// The name of one fact: the log it stands in and its number there, from 1. JSON: `["log", 41]`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Dot {
    /// The log.
    pub log: LogId,
    /// The place in the log, from 1, below 2^53.
    pub seq: u64,
}

impl fmt::Display for Dot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.log, self.seq)
    }
}

impl Serialize for Dot {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (&self.log, self.seq).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Dot {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (log, seq) = <(LogId, u64)>::deserialize(deserializer)?;
        if !(1..=limits::COUNTER_MAX).contains(&seq) {
            return Err(serde::de::Error::custom("a dot's seq is from 1 to 2^53 - 1"));
        }
        Ok(Self { log, seq })
    }
}

/// One execution of a job: the dot of its `deployed` fact, and of an array's job the element that
/// runs, as one such fact may deploy many. Text: `LOG.SEQ` or `LOG.SEQ:ELEMENT`; JSON: as a dot,
/// with the element as a third number.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttemptId {
    /// The fact that deployed it.
    pub dot: Dot,
    /// The element that runs; nothing where the job is no array. In a fact that covers elements by
    /// its own member it is left out.
    pub element: Option<u64>,
}

impl From<Dot> for AttemptId {
    fn from(dot: Dot) -> Self {
        Self { dot, element: None }
    }
}

impl AttemptId {
    /// The attempt at one element that a fact deployed.
    #[must_use]
    pub const fn new(dot: Dot, element: Option<u64>) -> Self {
        Self { dot, element }
    }
}

impl fmt::Display for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.element {
            Some(element) => write!(f, "{}:{element}", self.dot),
            None => self.dot.fmt(f),
        }
    }
}

impl FromStr for AttemptId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let bad = || IdError::Attempt(text.chars().take(limits::NAME_BYTES_MAX * 2).collect());
        let (log, rest) = text.rsplit_once('.').ok_or_else(bad)?;
        let (seq, element) = match rest.split_once(':') {
            Some((seq, element)) => (seq, Some(element.parse().map_err(|_| bad())?)),
            None => (rest, None),
        };
        let seq = seq.parse().map_err(|_| bad())?;
        Ok(Self { dot: Dot { log: log.parse().map_err(|_| bad())?, seq }, element })
    }
}

impl Serialize for AttemptId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.element {
            Some(element) => (&self.dot.log, self.dot.seq, element).serialize(serializer),
            None => self.dot.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for AttemptId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AttemptVisitor;

        impl<'de> serde::de::Visitor<'de> for AttemptVisitor {
            type Value = AttemptId;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(r#"an attempt, as in ["north-7f3a51c2",41] or with an element"#)
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(
                self,
                mut seq: A,
            ) -> Result<AttemptId, A::Error> {
                use serde::de::Error;
                let log = seq.next_element()?.ok_or_else(|| A::Error::invalid_length(0, &self))?;
                let number: u64 =
                    seq.next_element()?.ok_or_else(|| A::Error::invalid_length(1, &self))?;
                let element: Option<u64> = seq.next_element()?;
                if !(1..=limits::COUNTER_MAX).contains(&number)
                    || element.is_some_and(|element| element > limits::COUNTER_MAX)
                {
                    return Err(A::Error::custom(
                        "an attempt's numbers are below 2^53, its seq from 1",
                    ));
                }
                Ok(AttemptId { dot: Dot { log, seq: number }, element })
            }
        }

        deserializer.deserialize_seq(AttemptVisitor)
    }
}

/// What attempts are made of: a job, or one element of an array's job. Text: `JOB` or
/// `JOB/ELEMENT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId {
    /// The job.
    pub job: JobId,
    /// The element; nothing where the job is no array.
    pub element: Option<u64>,
}

impl From<JobId> for TaskId {
    fn from(job: JobId) -> Self {
        Self { job, element: None }
    }
}

impl TaskId {
    /// The task of a job that an attempt is made at.
    #[must_use]
    pub const fn new(job: JobId, element: Option<u64>) -> Self {
        Self { job, element }
    }
}

impl FromStr for TaskId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let Some((job, element)) = text.split_once('/') else {
            return text.parse().map(|job: JobId| job.into());
        };
        let bad = |_| IdError::Job(text.chars().take(limits::NAME_BYTES_MAX).collect());
        Ok(Self { job: job.parse()?, element: Some(element.parse().map_err(bad)?) })
    }
}

impl Serialize for TaskId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TaskId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.element {
            Some(element) => write!(f, "{}/{element}", self.job),
            None => self.job.fmt(f),
        }
    }
}

/// A job, whatever broker took it and however often it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(pub Uuid);

// The order of their bytes, compared as one number.
impl Ord for JobId {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.as_u128().cmp(&other.0.as_u128())
    }
}

impl PartialOrd for JobId {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The name space of job ids made from a key (UUID version 5, RFC 9562).
const KEYED_JOBS: Uuid = Uuid::from_u128(0x3f1d_5f0e_9c1b_5a77_8d54_75c9_0b6e_2a41);

impl JobId {
    /// A fresh id: UUID version 7. Its time is for people; nothing is ordered by it.
    #[must_use]
    pub fn random(wall: WallTime, rng: &mut Rng) -> Self {
        let (high, low) = (rng.next_u64().to_le_bytes(), rng.next_u64().to_le_bytes());
        let mut bytes = [0; 10];
        bytes[..8].copy_from_slice(&high);
        bytes[8..].copy_from_slice(&low[..2]);
        Self(uuid::Builder::from_unix_timestamp_millis(wall.0, &bytes).into_uuid())
    }

    /// The id of a keyed submission: UUID version 5 of the key and the spec's digest, so that
    /// the same key and spec are one job wherever and however often they are given.
    #[must_use]
    pub fn keyed(key: &str, spec: &Digest) -> Self {
        let name = [key.as_bytes(), b"\0", spec.to_string().as_bytes()].concat();
        Self(Uuid::new_v5(&KEYED_JOBS, &name))
    }

    /// Whether its text ends so.
    #[must_use]
    pub fn ends_with(&self, suffix: &str) -> bool {
        let mut text = Uuid::encode_buffer();
        self.0.hyphenated().encode_lower(&mut text).ends_with(suffix)
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl FromStr for JobId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let bad = |_| IdError::Job(text.chars().take(limits::NAME_BYTES_MAX).collect());
        Uuid::parse_str(text).map(Self).map_err(bad)
    }
}

/// A BLAKE3 hash. Text and JSON: 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest of no bytes at all.
    pub const NOTHING: Self = Self([
        0xaf, 0x13, 0x49, 0xb9, 0xf5, 0xf9, 0xa1, 0xa6, 0xa0, 0x40, 0x4d, 0xea, 0x36, 0xdc, 0xc9,
        0x49, 0x9b, 0xcb, 0x25, 0xc9, 0xad, 0xc1, 0x12, 0xb7, 0xcc, 0x9a, 0x93, 0xca, 0xe4, 0x1f,
        0x32, 0x62,
    ]);

    /// The digest of bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(blake3::Hash::from_bytes(self.0).to_hex().as_str())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let bad = || IdError::Digest(text.chars().take(80).collect());
        if text.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(bad());
        }
        let hash = blake3::Hash::from_hex(text).map_err(|_| bad())?;
        Ok(Self(*hash.as_bytes()))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(blake3::Hash::from_bytes(self.0).to_hex().as_str())
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// One process life of an executor: its boot and a number that is new at each start.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Incarnation {
    /// The kernel's boot id, so that "restarted" and "rebooted" are told apart.
    pub boot: String,
    /// Random, drawn at each process start; below 2^53.
    pub life: u64,
}

/// A connection between the broker and one executor; a number of this broker's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// A client's request that waits for replies; a number of this broker's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_of_nothing_is_what_hashing_gives() {
        assert_eq!(Digest::NOTHING, Digest::of(b""));
    }

    #[test]
    fn equal_names_are_equal_wherever_they_lie() {
        let [one, other]: [LogId; 2] = ["north-1", "north-1"].map(|n| n.parse().expect("a name"));
        let later: LogId = "north-2".parse().expect("a name");
        assert!(one == other && one == one.clone() && one != later);
        assert!(one.cmp(&other).is_eq() && one.cmp(&one.clone()).is_eq() && one < later);
    }
}
