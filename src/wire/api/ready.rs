//! What daemons print once they are ready.
//!
//! Pure.

use serde::{Deserialize, Serialize};

use super::Kind;
use crate::proto::id::{ExecutorId, LogId};

/// A daemon is ready. `type`: `ready`; printed once on stdout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokerReadyLine {
    /// `ready`.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// True.
    pub ready: bool,
    /// The log it writes.
    pub log: LogId,
    /// Its process id.
    pub pid: u32,
    /// Where it listens.
    pub listen: Vec<String>,
}

/// An executor is registered. `type`: `ready`; printed on stdout at each registration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecutorReadyLine {
    /// `ready`.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// True.
    pub ready: bool,
    /// The executor.
    pub executor: ExecutorId,
    /// Its process id.
    pub pid: u32,
    /// The broker's address.
    pub broker: String,
}
