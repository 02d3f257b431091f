//! The lines of sync: how far logs are held, and facts on their way from one broker to another.
//!
//! Pure. A stream of facts is JSON Lines: the facts as they were written, and between them frames,
//! objects whose first member is `type` (a fact's is `v`). Marks prove what came before them; the
//! last frame says what the sender holds, and has room for a signature. A stream that breaks off,
//! comes twice, or has its lines in another order is safe: what cannot be proven is not taken.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Kind;
use crate::proto::fact::{Fact, FactError};
use crate::proto::id::{Digest, LogId};
use crate::proto::sync::{Mark, Received, SyncFault};

/// The version of the stream.
pub const SYNC_VERSION: u32 = 1;

/// How far a broker holds each log. `type`: `sync`. Answer to `GET /v1/sync`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncLine {
    /// `sync`.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// The version of the stream that it speaks.
    pub v: u32,
    /// The log that it writes.
    pub log: LogId,
    /// Whether it holds just what the digest in the question stands for; then nothing follows.
    pub equal: bool,
    /// One hash over the ends of all logs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// The ends of all logs, `[LOG,SEQ,CHAIN]`, in order of their names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logs: Vec<Mark>,
}

/// What the asker holds: only facts beyond it are wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Since {
    /// A version vector.
    Vector(BTreeMap<LogId, u64>),
    /// The ends of logs with their chain hashes, which are compared before they are believed.
    Marks(Vec<Mark>),
}

impl Since {
    /// The version vector.
    #[must_use]
    pub fn vector(&self) -> BTreeMap<LogId, u64> {
        match self {
            Self::Vector(vector) => vector.clone(),
            Self::Marks(marks) => marks.iter().map(|mark| (mark.log.clone(), mark.seq)).collect(),
        }
    }
}

/// The body of `POST /v1/sync/export`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportAsk {
    /// What the asker holds.
    pub since: Since,
}

/// A line of a stream of facts that is no fact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Frame {
    /// The beginning.
    Export {
        /// The version of the stream.
        v: u32,
        /// The log that the sender writes.
        log: LogId,
        /// What it leaves out, as the other side holds it.
        since: BTreeMap<LogId, u64>,
    },
    /// What the chains are at some of the facts before.
    Marks {
        /// `[LOG,SEQ,CHAIN]`.
        marks: Vec<Mark>,
    },
    /// A log is left out.
    Fault {
        /// Which, and why.
        fault: SyncFault,
    },
    /// The end: nothing is missing.
    ExportEnd {
        /// What the sender held when it began.
        vector: BTreeMap<LogId, u64>,
        /// The hash of that.
        digest: Digest,
    },
    /// A frame of a newer version.
    #[serde(other)]
    Unknown,
}

/// A line of a stream of facts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SyncItem {
    /// A fact.
    Fact(Received),
    /// Something about the facts.
    Frame(Frame),
}

/// Why a line of a stream is none. Nothing of it is taken over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SyncLineError {
    /// It is no fact.
    #[error(transparent)]
    Fact(#[from] FactError),
    /// It is no frame.
    #[error("not a frame: {0}")]
    Frame(String),
    /// The stream is of another version than ours.
    #[error("the stream is of version {0}, this program knows {SYNC_VERSION}")]
    Version(u32),
}

impl SyncItem {
    /// Reads a line.
    ///
    /// # Errors
    /// [`SyncLineError`].
    pub fn parse(line: &str) -> Result<Self, SyncLineError> {
        if !line.starts_with("{\"type\"") {
            let fact = Fact::parse(line)?.into();
            return Ok(Self::Fact(Received { fact, line: line.into() }));
        }
        let frame = serde_json::from_str(line);
        match frame.map_err(|error| SyncLineError::Frame(error.to_string()))? {
            Frame::Export { v, .. } if v != SYNC_VERSION => Err(SyncLineError::Version(v)),
            frame => Ok(Self::Frame(frame)),
        }
    }
}

/// What became of a stream of facts. `type`: `import`. Answer to `POST /v1/sync/import`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportLine {
    /// `import`.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// Facts that were taken; they are durable.
    pub new: u64,
    /// Facts that were held before.
    pub known: u64,
    /// Facts that were not taken, as something before them is missing, or what proves them.
    pub waiting: u64,
    /// Logs of which nothing more was taken.
    pub faults: Vec<SyncFault>,
    /// Lines that are none, the first few of them, in words.
    pub bad: Vec<String>,
    /// How many of those there were.
    pub bad_lines: u64,
    /// What is held now.
    pub vector: BTreeMap<LogId, u64>,
    /// The hash of that.
    pub digest: Digest,
}

/// One round of anti-entropy. `type`: `round`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoundLine {
    /// `round`.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// The log of the one from whose side things are named.
    pub from: LogId,
    /// The log of the other.
    pub with: LogId,
    /// Facts that the other took.
    pub sent: u64,
    /// Facts that this one took.
    pub received: u64,
    /// Bytes of the streams of facts on their way there.
    pub bytes_out: u64,
    /// And back.
    pub bytes_in: u64,
    /// Whether both hold the same now.
    pub equal: bool,
    /// How long it took.
    pub ms: u64,
    /// What is wrong with logs of either side.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<SyncFault>,
}

/// A log that two brokers hold differently. `type`: `diff`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiffLine {
    /// `diff`.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// Which.
    pub log: LogId,
    /// How far the first holds it.
    pub first: u64,
    /// How far the second does.
    pub second: u64,
    /// Whether it is damaged or forked on one side: they hold equally much, and not the same.
    pub forked: bool,
}

/// Who says it can be asked at these addresses. The body of `POST /v1/peers`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Introduction {
    /// The log that it writes.
    pub log: LogId,
    /// Where it listens, the best first.
    pub addresses: Vec<String>,
}

/// Another broker, as this one knows it. `type`: `peer`. A line of `GET /v1/peers`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerLine {
    /// `peer`.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// Where it is.
    pub address: String,
    /// How it became known: `flag`, or `introduced` where it said so itself.
    pub how: Kind,
    /// The log that it writes; unknown until it answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<LogId>,
    /// Whether the last round with it came to its end.
    pub alive: bool,
    /// When the last such round ended, in seconds before now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_sync_s: Option<u64>,
    /// Facts that one of the two lacks, as of then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag: Option<u64>,
    /// Rounds that came to their end.
    pub rounds: u64,
    /// Why it is not used now, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why_not: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_and_facts_are_told_apart() {
        let frame = SyncItem::parse("{\"type\":\"marks\",\"marks\":[]}").expect("a frame");
        assert_eq!(frame, SyncItem::Frame(Frame::Marks { marks: vec![] }));
        let newer = SyncItem::parse("{\"type\":\"signature\",\"by\":1}").expect("a frame");
        assert_eq!(newer, SyncItem::Frame(Frame::Unknown));
        let version = SyncItem::parse("{\"type\":\"export\",\"v\":2,\"log\":\"a-1\",\"since\":{}}");
        assert_eq!(version, Err(SyncLineError::Version(2)));
        assert!(matches!(SyncItem::parse("{\"type\":7}"), Err(SyncLineError::Frame(_))));
        assert!(matches!(SyncItem::parse("{}"), Err(SyncLineError::Fact(_))));
    }

    #[test]
    fn what_is_held_is_a_vector_or_marks() {
        let ask: ExportAsk = serde_json::from_str(r#"{"since":{"a-1":3}}"#).expect("a vector");
        assert_eq!(ask.since.vector().values().sum::<u64>(), 3);
        let chain = Digest::of(b"x");
        let text = format!(r#"{{"since":[["a-1",4,"{chain}"]]}}"#);
        let ask: ExportAsk = serde_json::from_str(&text).expect("marks");
        assert_eq!(ask.since.vector().values().sum::<u64>(), 4);
        assert!(serde_json::from_str::<ExportAsk>(r#"{"since":{},"other":1}"#).is_err());
    }
}
