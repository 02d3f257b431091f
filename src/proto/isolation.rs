//! What keeps a job apart from the machine and from other jobs, mechanism by mechanism.
//!
//! Pure. An executor says it of itself (in its hello), each result says it of its attempt. Shape:
//! for people and scripts a map from a mechanism's word to a word for how it stands; inside a
//! stored result one letter for each mechanism in the order of [`Mechanism::ALL`], `-` where it
//! does not apply, so that it costs a few bytes a job. Mechanisms are only ever added at the end.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// One way in which a job is kept apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mechanism {
    /// A process group of its own, killed as a whole.
    ProcessGroup,
    /// No descriptor of the executor is open in the job.
    Descriptors,
    /// No program that the job starts gains rights (`PR_SET_NO_NEW_PRIVS`).
    NoNewPrivileges,
    /// Resource limits: no core files, bounded descriptors, memory where no cgroup bounds it.
    Rlimits,
    /// Writes reach the job's own directories alone (Landlock).
    LandlockFiles,
    /// Signals reach the job's own processes alone (Landlock scopes).
    LandlockSignals,
    /// A cgroup of its own, killed as a whole, so that its emptiness is proven (cgroup v2).
    CgroupKill,
    /// The cgroup bounds the job's memory.
    CgroupMemory,
    /// The cgroup bounds the number of the job's processes.
    CgroupProcesses,
    /// WebAssembly: nothing but the job's own directory and its streams can be named.
    WasmSandbox,
    /// WebAssembly: linear memory and tables are bounded.
    WasmMemory,
    /// WebAssembly: a running module is interrupted at the end of its time.
    WasmEpoch,
}

impl Mechanism {
    /// All, in the order of the compact form.
    pub const ALL: [Self; 12] = [
        Self::ProcessGroup,
        Self::Descriptors,
        Self::NoNewPrivileges,
        Self::Rlimits,
        Self::LandlockFiles,
        Self::LandlockSignals,
        Self::CgroupKill,
        Self::CgroupMemory,
        Self::CgroupProcesses,
        Self::WasmSandbox,
        Self::WasmMemory,
        Self::WasmEpoch,
    ];

    /// The mechanism's word.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::ProcessGroup => "process-group",
            Self::Descriptors => "descriptors",
            Self::NoNewPrivileges => "no-new-privileges",
            Self::Rlimits => "rlimits",
            Self::LandlockFiles => "landlock-files",
            Self::LandlockSignals => "landlock-signals",
            Self::CgroupKill => "cgroup-kill",
            Self::CgroupMemory => "cgroup-memory",
            Self::CgroupProcesses => "cgroup-processes",
            Self::WasmSandbox => "wasm-sandbox",
            Self::WasmMemory => "wasm-memory",
            Self::WasmEpoch => "wasm-epoch",
        }
    }
}

/// How a mechanism stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Enforcement {
    /// It is in force.
    Enforced,
    /// The kernel does not have it.
    Absent,
    /// The kernel has it, and does not let this executor use it.
    Refused,
    /// It was not asked for (`--isolation none`).
    Off,
}

impl Enforcement {
    /// The word for it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Enforced => "enforced",
            Self::Absent => "absent",
            Self::Refused => "refused",
            Self::Off => "off",
        }
    }

    const fn letter(self) -> char {
        match self {
            Self::Enforced => 'e',
            Self::Absent => 'a',
            Self::Refused => 'r',
            Self::Off => 'o',
        }
    }

    const fn from_letter(letter: char) -> Option<Self> {
        match letter {
            'e' => Some(Self::Enforced),
            'a' => Some(Self::Absent),
            'r' => Some(Self::Refused),
            'o' => Some(Self::Off),
            _ => None,
        }
    }
}

/// How each mechanism stands that applies.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Isolation(
    #[serde(deserialize_with = "crate::proto::unique::map")] pub BTreeMap<Mechanism, Enforcement>,
);

impl Isolation {
    /// That of every WASI job: it is part of the WebAssembly engine.
    #[must_use]
    pub fn wasm() -> Self {
        let all = [Mechanism::WasmSandbox, Mechanism::WasmMemory, Mechanism::WasmEpoch];
        Self(all.into_iter().map(|mechanism| (mechanism, Enforcement::Enforced)).collect())
    }

    /// Whether nothing is known.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        self.0.is_empty()
    }

    /// Sets how a mechanism stands.
    pub fn set(&mut self, mechanism: Mechanism, enforcement: Enforcement) {
        self.0.insert(mechanism, enforcement);
    }

    /// Whether a mechanism is in force.
    #[must_use]
    pub fn enforces(&self, mechanism: Mechanism) -> bool {
        self.0.get(&mechanism) == Some(&Enforcement::Enforced)
    }

    /// One letter for each mechanism, as it stands inside a stored result.
    #[must_use]
    pub fn letters(&self) -> String {
        let letter = |mechanism| self.0.get(mechanism).map_or('-', |held| held.letter());
        let all: String = Mechanism::ALL.iter().map(letter).collect();
        all.trim_end_matches('-').to_owned()
    }

    /// Reads [`Isolation::letters`]. Letters and places of a later version are passed over.
    #[must_use]
    pub fn from_letters(text: &str) -> Self {
        let read = |(mechanism, letter): (&Mechanism, char)| {
            Some((*mechanism, Enforcement::from_letter(letter)?))
        };
        Self(Mechanism::ALL.iter().zip(text.chars()).filter_map(read).collect())
    }
}

/// `process-group enforced, landlock-files absent`, for tables.
impl fmt::Display for Isolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (mechanism, enforcement)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{} {}", mechanism.word(), enforcement.word())?;
        }
        Ok(())
    }
}

/// The compact form, for `#[serde(with)]`.
pub mod letters {
    use super::{Deserialize, Deserializer, Isolation, Serializer};

    /// Writes the letters.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(value: &Isolation, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&value.letters())
    }

    /// Reads the letters.
    ///
    /// # Errors
    /// There is no text.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Isolation, D::Error> {
        String::deserialize(deserializer).map(|text| Isolation::from_letters(&text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_round_trip_and_bear_with_a_later_version() {
        let mut isolation = Isolation::default();
        assert_eq!(isolation.letters(), "");
        isolation.set(Mechanism::ProcessGroup, Enforcement::Enforced);
        isolation.set(Mechanism::LandlockFiles, Enforcement::Absent);
        isolation.set(Mechanism::CgroupKill, Enforcement::Refused);
        isolation.set(Mechanism::Rlimits, Enforcement::Off);
        assert_eq!(isolation.letters(), "e--oa-r");
        assert_eq!(Isolation::from_letters("e--oa-r"), isolation);
        assert_eq!(Isolation::from_letters("e--oa-rz-------eee"), isolation);
        assert_eq!(Isolation::from_letters(&Isolation::wasm().letters()), Isolation::wasm());
    }

    #[test]
    fn words_are_those_of_the_json() {
        for mechanism in Mechanism::ALL {
            let json = serde_json::to_string(&mechanism).expect("a word");
            assert_eq!(json, format!("\"{}\"", mechanism.word()));
        }
        let json = serde_json::to_string(&Isolation::wasm()).expect("a map");
        let said =
            r#"{"wasm-sandbox":"enforced","wasm-memory":"enforced","wasm-epoch":"enforced"}"#;
        assert_eq!(json, said);
        assert_eq!(Isolation::wasm().to_string().split(", ").count(), 3);
    }
}
