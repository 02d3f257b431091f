//! What came of one attempt: exit, output, times; and the digest that names its content.
//!
//! Pure. The content digest covers exit or signal, error, outputs and both streams, never times
//! or clocks: two attempts that did the same work have the same content.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::proto::id::Digest;
use crate::proto::isolation::{self, Isolation};
use crate::proto::limits;
use crate::proto::time::WallTime;
use crate::proto::unique;

/// What a job wrote to one of its streams.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Stream {
    /// Bytes kept.
    pub size: u64,
    /// The content, where it is short and UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The content in base64 (RFC 4648 section 4), where it is short and not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base64: Option<String>,
    /// The content as a blob, where it is long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blob: Option<Digest>,
    /// Whether more was written than [`limits::OUTPUT_BYTES_MAX`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
}

impl Stream {
    /// A stream whose content is kept inline; at most [`limits::OUTPUT_INLINE_BYTES_MAX`] bytes.
    #[must_use]
    pub fn inline(bytes: Vec<u8>) -> Self {
        debug_assert!(bytes.len() <= limits::OUTPUT_INLINE_BYTES_MAX);
        let size = bytes.len() as u64;
        match String::from_utf8(bytes) {
            Ok(text) if text.is_empty() => Self::default(),
            Ok(text) => Self { size, text: Some(text), ..Self::default() },
            Err(error) => {
                let base64 = Some(STANDARD.encode(error.as_bytes()));
                Self { size, base64, ..Self::default() }
            }
        }
    }

    /// A stream whose content is a blob.
    #[must_use]
    pub fn blob(size: u64, digest: Digest, truncated: bool) -> Self {
        Self { size, blob: Some(digest), truncated, ..Self::default() }
    }

    /// Whether nothing was written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.size == 0 && !self.truncated
    }

    /// The inline content; nothing where it is a blob or was left out of memory.
    #[must_use]
    pub fn bytes(&self) -> Option<Vec<u8>> {
        match (&self.text, &self.base64) {
            (Some(text), _) => Some(text.clone().into_bytes()),
            (None, Some(base64)) => STANDARD.decode(base64).ok(),
            (None, None) => (self.size == 0).then(Vec::new),
        }
    }

    fn digest(&self) -> Digest {
        match (self.blob, &self.text) {
            (Some(digest), _) => digest,
            (None, Some(text)) => Digest::of(text.as_bytes()),
            (None, None) if self.base64.is_none() => Digest::NOTHING,
            (None, None) => Digest::of(&self.bytes().unwrap_or_default()),
        }
    }

    /// Bytes of memory that the inline content takes.
    #[must_use]
    pub fn inline_bytes(&self) -> usize {
        self.text.as_ref().map_or(0, String::len) + self.base64.as_ref().map_or(0, String::len)
    }

    /// Whether the fields agree: at most one form of content, and its size as said.
    #[must_use]
    pub fn is_consistent(&self) -> bool {
        let forms = [self.text.is_some(), self.base64.is_some(), self.blob.is_some()];
        match forms.iter().filter(|held| **held).count() {
            0 => self.size == 0,
            1 if self.blob.is_some() => (1..=limits::COUNTER_MAX).contains(&self.size),
            1 => {
                self.size <= limits::OUTPUT_INLINE_BYTES_MAX as u64
                    && self.bytes().is_some_and(|bytes| bytes.len() as u64 == self.size)
            }
            _ => false,
        }
    }
}

/// A file that an attempt left behind; its content is a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputFile {
    /// Its size in bytes.
    pub size: u64,
    /// Its content.
    pub blob: Digest,
    /// Whether it may be executed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub executable: bool,
}

/// When one of several elements with the same result ran, and what it used. JSON: a list of four
/// numbers in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(from = "[u64; 4]", into = "[u64; 4]")]
pub struct Run {
    /// Milliseconds from the result's `started_at` to the start of this run.
    pub begun_ms: u64,
    /// Milliseconds that it took.
    pub took_ms: u64,
    /// CPU time in microseconds.
    pub cpu_us: u64,
    /// The largest resident set in bytes.
    pub memory_max: u64,
}

impl From<[u64; 4]> for Run {
    fn from([begun_ms, took_ms, cpu_us, memory_max]: [u64; 4]) -> Self {
        Self { begun_ms, took_ms, cpu_us, memory_max }
    }
}

impl From<Run> for [u64; 4] {
    fn from(run: Run) -> Self {
        [run.begun_ms, run.took_ms, run.cpu_us, run.memory_max]
    }
}

/// What came of one attempt.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct JobResult {
    /// The exit status; 127 where the program was not found, 126 where it could not be executed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<i32>,
    /// The signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Why it could not run, or did not do what its spec says, in words; a trap of a WASI module.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Whether it was ended because its time was over.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub timed_out: bool,
    /// Standard output.
    #[serde(default, skip_serializing_if = "Stream::is_empty")]
    pub stdout: Stream,
    /// Standard error.
    #[serde(default, skip_serializing_if = "Stream::is_empty")]
    pub stderr: Stream,
    /// The files that it left behind and its spec names, by path.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[serde(deserialize_with = "unique::map")]
    pub outputs: BTreeMap<String, OutputFile>,
    /// What kept it apart from the machine.
    #[serde(default, with = "isolation::letters", skip_serializing_if = "Isolation::is_unknown")]
    pub isolation: Isolation,
    /// What could not be proven of its end, in words; absent where no process of it is left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unproven: Option<String>,
    /// The executor's wall clock at the start; for people.
    pub started_at: String,
    /// The executor's wall clock at the end; for people.
    pub ended_at: String,
    /// CPU time of the job's main process and the children it waited for, in microseconds.
    #[serde(default)]
    pub cpu_us: u64,
    /// The largest resident set of those, in bytes.
    #[serde(default)]
    pub memory_max: u64,
}

impl JobResult {
    /// Whether the job did its work.
    #[must_use]
    pub fn is_success(&self) -> bool {
        self.exit == Some(0) && !self.timed_out && self.error.is_none()
    }

    /// The digest of the content.
    #[must_use]
    pub fn digest(&self) -> Digest {
        let mut content = String::with_capacity(256);
        for (name, value) in [("exit ", self.exit), ("\nsignal ", self.signal)] {
            content.push_str(name);
            match value {
                Some(number) => content.push_str(&number.to_string()),
                None => content.push('-'),
            }
        }
        let truth = |value: bool| if value { "true" } else { "false" };
        content.push_str("\nerror ");
        content.push_str(self.error.as_deref().unwrap_or("-"));
        content.push_str("\ntimed_out ");
        content.push_str(truth(self.timed_out));
        for (name, stream) in [("\nstdout ", &self.stdout), ("\nstderr ", &self.stderr)] {
            content.push_str(name);
            content.push_str(blake3::Hash::from_bytes(stream.digest().0).to_hex().as_str());
            content.push(' ');
            content.push_str(truth(stream.truncated));
        }
        content.push('\n');
        for (path, file) in &self.outputs {
            let OutputFile { size, blob, executable } = file;
            content.push_str(&format!("output {path:?} {size} {blob} {executable}\n"));
        }
        Digest::of(content.as_bytes())
    }

    /// Whether the fields agree with each other and every number is one that all readers keep.
    #[must_use]
    pub fn is_consistent(&self) -> bool {
        let sizes = self.outputs.values().map(|file| file.size);
        let mut numbers = sizes.chain([self.cpu_us, self.memory_max]);
        self.stdout.is_consistent()
            && self.stderr.is_consistent()
            && numbers.all(|number| number <= limits::COUNTER_MAX)
    }

    /// Bytes of memory that the inline outputs take.
    #[must_use]
    pub fn inline_bytes(&self) -> usize {
        self.stdout.inline_bytes() + self.stderr.inline_bytes()
    }

    /// Brings results that differ only in when they ran, and how expensively, into one; nothing
    /// where they differ in more, or their times are no times of ours.
    #[must_use]
    pub fn merge_runs(results: &[&Self]) -> Option<(Self, Vec<Run>)> {
        let (first, others) = results.split_first()?;
        if others.is_empty() {
            return first.as_one_run();
        }
        let plain = first.without_run();
        if others.iter().any(|other| other.without_run() != plain) {
            return None;
        }
        let times: Option<Vec<_>> = results
            .iter()
            .map(|result| {
                let started = WallTime::parse(&result.started_at)?;
                Some((started.0, WallTime::parse(&result.ended_at)?.0.max(started.0)))
            })
            .collect();
        let times = times?;
        let start = times.iter().map(|(started, _)| *started).min()?;
        let end = times.iter().map(|(_, ended)| *ended).max()?;
        let runs = results.iter().zip(&times).map(|(result, (started, ended))| Run {
            begun_ms: started - start,
            took_ms: ended - started,
            cpu_us: result.cpu_us,
            memory_max: result.memory_max,
        });
        let started_at = WallTime(start).to_string();
        let ended_at = WallTime(end).to_string();
        Some((Self { started_at, ended_at, ..plain }, runs.collect()))
    }

    /// A single result as if it had been brought together from several.
    fn as_one_run(&self) -> Option<(Self, Vec<Run>)> {
        let started = WallTime::parse(&self.started_at)?;
        let ended = WallTime::parse(&self.ended_at)?.max(started);
        let run = Run { took_ms: ended.0 - started.0, ..self.run() };
        let ended_at = ended.to_string();
        Some((Self { ended_at, cpu_us: 0, memory_max: 0, ..self.clone() }, vec![run]))
    }

    /// When it ran and what it used, as far as its times are times of ours.
    #[must_use]
    pub fn run(&self) -> Run {
        let time = |text: &str| WallTime::parse(text).unwrap_or_default().0;
        let took_ms = time(&self.ended_at).saturating_sub(time(&self.started_at));
        Run { begun_ms: 0, took_ms, cpu_us: self.cpu_us, memory_max: self.memory_max }
    }

    fn without_run(&self) -> Self {
        let (started_at, ended_at) = (String::new(), String::new());
        Self { started_at, ended_at, cpu_us: 0, memory_max: 0, ..self.clone() }
    }

    /// The result of one of the runs that were brought into this one.
    #[must_use]
    pub fn of_run(&self, run: &Run) -> Self {
        let start = WallTime::parse(&self.started_at).unwrap_or_default().0;
        let begun = start.saturating_add(run.begun_ms);
        Self {
            started_at: WallTime(begun).to_string(),
            ended_at: WallTime(begun.saturating_add(run.took_ms)).to_string(),
            cpu_us: run.cpu_us,
            memory_max: run.memory_max,
            ..self.clone()
        }
    }
}
