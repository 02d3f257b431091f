//! What jobs need and what executors have.
//!
//! Pure. `Needs` is part of a job's spec, `Capability` of an executor's hello, `Load` of its
//! heartbeats. Shapes: cores count, memory and disk in bytes, battery and free CPU in percent.
//! A label needed as `gpu` fits any value, as `gpu=a100` just that one.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::proto::isolation::Isolation;
use crate::proto::unique;
use crate::proto::units::Size;

/// What a job needs of the executor that runs it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Needs {
    /// Slots that the job occupies; at least 1.
    #[serde(skip_serializing_if = "is_one")]
    pub cores: u32,
    /// Memory that is set aside for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Size>,
    /// Free disk space at its start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<Size>,
    /// Percent of battery at its start; an executor without battery always fits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub battery: Option<u8>,
    /// Percent of free CPU at its start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_free: Option<u8>,
    /// Labels, `KEY` or `KEY=VALUE`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // the shape that serde asks for
fn is_one(cores: &u32) -> bool {
    *cores == 1
}

impl Default for Needs {
    fn default() -> Self {
        Self { cores: 1, memory: None, disk: None, battery: None, cpu_free: None, labels: vec![] }
    }
}

impl Needs {
    /// Whether nothing but one slot is needed.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// By what a job is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A program of the executor's machine.
    Native,
    /// A WebAssembly module with WASI preview 1.
    Wasm,
}

/// What an executor has as long as it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capability {
    /// Single-core jobs that it runs at one time.
    pub slots: u32,
    /// Memory for jobs.
    pub memory: Size,
    /// Labels with their values.
    #[serde(default, deserialize_with = "unique::map")]
    pub labels: BTreeMap<String, String>,
    /// The processor's architecture, as `uname -m` says.
    #[serde(default)]
    pub arch: String,
    /// Whether it runs native commands.
    #[serde(default)]
    pub native: bool,
    /// Whether it runs WASI modules.
    #[serde(default)]
    pub wasm: bool,
    /// What keeps native jobs apart from each other and from the machine.
    #[serde(default, skip_serializing_if = "Isolation::is_unknown")]
    pub isolation: Isolation,
}

/// What an executor has at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Load {
    /// Free space where jobs write.
    pub disk_free: Size,
    /// Percent of CPU not used in the last minute, over all cores.
    pub cpu_free: u8,
    /// Percent of battery; absent where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub battery: Option<u8>,
}

/// Slots and memory that attempts occupy on an executor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Occupied {
    /// Slots.
    pub cores: u64,
    /// Bytes.
    pub memory: u64,
}

impl Occupied {
    /// Adds what one more job occupies.
    pub fn add(&mut self, needs: &Needs) {
        self.cores += u64::from(needs.cores);
        self.memory += needs.memory.map_or(0, |size| size.0);
    }

    /// Takes away what an ended job occupied.
    pub fn remove(&mut self, needs: &Needs) {
        self.cores = self.cores.saturating_sub(u64::from(needs.cores));
        self.memory = self.memory.saturating_sub(needs.memory.map_or(0, |size| size.0));
    }
}

/// The first requirement that an executor does not meet; the text says so to people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unmet {
    /// It has fewer slots in all.
    Cores(u32),
    /// It has less memory in all.
    Memory(Size),
    /// A label is absent or has another value.
    Label(String),
    /// It does not run native commands.
    Native,
    /// It does not run WASI modules.
    Wasm,
    /// Too little free disk at the moment.
    Disk(Size),
    /// Too little battery at the moment.
    Battery(u8),
    /// Too little free CPU at the moment.
    CpuFree(u8),
    /// All slots or the memory are taken at the moment.
    Busy,
}

impl fmt::Display for Unmet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cores(has) => write!(f, "needs more cores than its {has} slots"),
            Self::Memory(has) => write!(f, "needs more memory than its {has}"),
            Self::Label(label) => write!(f, "needs label {label}"),
            Self::Native => write!(f, "runs no native commands"),
            Self::Wasm => write!(f, "runs no WASI modules"),
            Self::Disk(has) => write!(f, "needs more disk than the {has} that are free"),
            Self::Battery(has) => write!(f, "needs more battery than its {has} %"),
            Self::CpuFree(has) => write!(f, "needs more free CPU than its {has} %"),
            Self::Busy => write!(f, "all its slots are taken"),
        }
    }
}

/// Whether an executor could ever run a job with these needs.
///
/// # Errors
/// The first requirement that it can never meet as it is.
pub fn capable(kind: Kind, needs: &Needs, capability: &Capability) -> Result<(), Unmet> {
    match kind {
        Kind::Native if !capability.native => return Err(Unmet::Native),
        Kind::Wasm if !capability.wasm => return Err(Unmet::Wasm),
        Kind::Native | Kind::Wasm => {}
    }
    if needs.cores > capability.slots {
        return Err(Unmet::Cores(capability.slots));
    }
    if needs.memory.is_some_and(|size| size > capability.memory) {
        return Err(Unmet::Memory(capability.memory));
    }
    let has = |label: &str| match label.split_once('=') {
        Some((key, value)) => capability.labels.get(key).is_some_and(|held| held == value),
        None => capability.labels.contains_key(label),
    };
    match needs.labels.iter().find(|label| !has(label)) {
        Some(label) => Err(Unmet::Label(label.clone())),
        None => Ok(()),
    }
}

/// Whether an executor can run a job with these needs right now.
///
/// # Errors
/// The first requirement that it does not meet.
pub fn fits(
    kind: Kind,
    needs: &Needs,
    capability: &Capability,
    load: &Load,
    occupied: &Occupied,
) -> Result<(), Unmet> {
    capable(kind, needs, capability)?;
    if needs.disk.is_some_and(|size| size > load.disk_free) {
        return Err(Unmet::Disk(load.disk_free));
    }
    if let (Some(needed), Some(has)) = (needs.battery, load.battery)
        && needed > has
    {
        return Err(Unmet::Battery(has));
    }
    if needs.cpu_free.is_some_and(|needed| needed > load.cpu_free) {
        return Err(Unmet::CpuFree(load.cpu_free));
    }
    let memory = occupied.memory + needs.memory.map_or(0, |size| size.0);
    let cores = occupied.cores + u64::from(needs.cores);
    if cores > u64::from(capability.slots) || memory > capability.memory.0 {
        return Err(Unmet::Busy);
    }
    Ok(())
}
