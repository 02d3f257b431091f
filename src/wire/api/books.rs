//! The lines in which a broker tells about itself: how it stands, and whether its books add up.
//!
//! Pure. One struct a line, as in api.rs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Kind, PeerLine};
use crate::proto::id::{Digest, LogId};
use crate::proto::view::{JobState, StatusView};

/// The broker at a glance. `type`: `status`. Answer to `GET /v1/status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusLine {
    /// `status`.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// The log it writes.
    pub log: LogId,
    /// Its version.
    pub version: Kind,
    /// Its process id.
    pub pid: u32,
    /// Time since it opened its log, in seconds.
    pub uptime_s: u64,
    /// The version vector.
    pub vector: BTreeMap<LogId, u64>,
    /// The hash of what it holds.
    pub digest: Digest,
    /// Jobs in each state.
    pub jobs: BTreeMap<String, u64>,
    /// Executors with a session.
    pub executors: u64,
    /// Other brokers; none is known to a broker that stands alone.
    pub peers: Vec<PeerLine>,
    /// Active emergencies.
    pub emergencies: Vec<serde_json::Value>,
    /// What is final: with one broker every outcome is at once, with several none yet.
    pub stable: StableShown,
}

/// How far outcomes are final.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StableShown {
    /// What every broker of the roster holds.
    pub cut: BTreeMap<LogId, u64>,
    /// The logs that it waits for.
    pub waits_for: Vec<LogId>,
}

impl StatusLine {
    /// The line of a broker's status.
    #[must_use]
    pub fn new(view: &StatusView, peers: Vec<PeerLine>, version: &'static str, pid: u32) -> Self {
        let count = |state: &JobState| view.jobs.get(state).copied().unwrap_or(0);
        let jobs = JobState::ALL.iter().map(|state| (state.word().to_owned(), count(state)));
        Self {
            kind: "status".into(),
            log: view.log.clone(),
            version: version.into(),
            pid,
            uptime_s: view.uptime_ms / 1000,
            vector: view.vector.clone(),
            digest: view.digest,
            jobs: jobs.collect(),
            executors: view.executors,
            peers,
            emergencies: vec![],
            stable: StableShown {
                cut: if view.waits_for.is_empty() { view.vector.clone() } else { BTreeMap::new() },
                waits_for: view.waits_for.clone(),
            },
        }
    }
}

/// The answer to `GET /v1/audit`. `type`: `audit`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditLine {
    /// `audit`.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// Whether everything adds up.
    pub ok: bool,
    /// The books of each log.
    pub logs: BTreeMap<LogId, AuditedLog>,
    /// One sentence for each fault.
    pub faults: Vec<String>,
}

/// The books of one log: submitted = waiting + running + parked + ended.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AuditedLog {
    /// The last seq that the core holds.
    pub seq: u64,
    /// The last seq that the store holds.
    pub stored_seq: u64,
    /// Jobs that were born in it.
    pub submitted: u64,
    /// Jobs that wait.
    pub waiting: u64,
    /// Jobs that run.
    pub running: u64,
    /// Jobs that are parked.
    pub parked: u64,
    /// Jobs that ended.
    pub ended: u64,
}
