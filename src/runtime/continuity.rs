//! The proof that a log goes on: one small locked file in the run directory.
//!
//! Problem: a store may be an old copy (a restored backup, a cloned directory). Who goes on writing
//! its log would give dots a second time. Idea: the end of the log is also kept where no backup
//! reaches and no reboot survives. Algorithm: `RUN_DIR/LOG.head` holds the boot and the head of the
//! log, locked for the life of the process and rewritten after every commit, before anything that
//! depends on the commit leaves. A log goes on only if its file is there, not locked by another
//! process, of this boot, and names a head that the store's chain contains. In every other case a
//! fresh log is begun, which is always safe.
//!
//! It does not see a whole virtual machine that is set back: memory goes back with the disk. That
//! shows when such a broker meets a peer that holds more of its log.
//! Shape: one line of `HEAD_BYTES` bytes, padded with blanks, so that one write replaces it whole:
//! `{"v":1,"boot":"…","log":"north-7f3a51c2","seq":41,"chain":"…"}`.
//! Law: no dot is used twice (I5, A18; tests in `continuity/tests.rs`).

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::proto::broker::Opening;
use crate::proto::fact::chain_start;
use crate::proto::id::{Digest, IdError, LogId};
use crate::proto::log::Head;
use crate::proto::rng::Rng;
use crate::runtime::rundir::try_lock_file;

#[cfg(test)]
mod tests;

/// The version of the file's format.
const HEAD_VERSION: u32 = 1;
/// The size of the file: the members with the longest name and the greatest seq, and room.
const HEAD_BYTES: usize = 320;
/// What the name of a head file ends with.
const HEAD_SUFFIX: &str = ".head";
/// Names that are drawn before it is held that the run directory, not chance, is in the way.
const DRAWS_MAX: usize = 16;

/// Why a log can be neither continued nor begun.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ContinuityError {
    /// The broker's name makes no log's name. Nothing changed; trying again cannot help.
    #[error("no log can be named after the broker")]
    Name(#[from] IdError),
    /// The file of a fresh log cannot be created and locked. No log was begun.
    #[error("cannot create {}", path.display())]
    Create {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The head cannot be written: what was committed is durable, but nothing that depends on it
    /// may leave. After a restart the log goes on or a fresh one is begun, both of which is safe.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// Why a log that was written before is not continued.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Doubt {
    /// There is no file: another host, another run directory, or a reboot.
    #[error("its continuity file is not in the run directory")]
    Absent,
    /// Another process writes the log now: the data directory was cloned.
    #[error("another process writes it now: the data directory is a copy")]
    Locked,
    /// The file is of another boot of the machine.
    #[error("the machine has been booted since")]
    OtherBoot,
    /// The file names a head beyond the store's: the store is an old copy.
    #[error("the store ends at {held}, but {written} facts were written: the store is an old copy")]
    Ahead {
        /// The last seq in the store.
        held: u64,
        /// The last seq that was written.
        written: u64,
    },
    /// The store has another fact at the head's place: the log was forked.
    #[error("the store has another fact than was written at {0}: the log is forked")]
    Forked(u64),
    /// The file cannot be read, or is not what was written.
    #[error("its continuity file cannot be read: {0}")]
    Unreadable(String),
    /// The broker was given another name.
    #[error("the broker has another name now")]
    Renamed,
}

/// What is known at a broker's start, besides its store.
#[derive(Debug, Clone, Copy)]
pub struct Start<'a> {
    /// The run directory.
    pub run_dir: &'a Path,
    /// The broker's name, from which a fresh log's is made.
    pub name: &'a str,
    /// The kernel's id of this boot.
    pub boot_id: &'a str,
    /// 64 random bits.
    pub seed: u64,
}

/// Which log to write, and the claim to it.
#[derive(Debug)]
pub struct Proof {
    /// What the core is told.
    pub opening: Opening,
    /// The claim, which the store's writer keeps.
    pub continuity: Continuity,
    /// Why the log that was written before is not continued.
    pub doubt: Option<Doubt>,
}

/// The claim to a log: nobody else on this boot of the machine writes it. Its file outlives it.
#[derive(Debug)]
pub struct Continuity {
    file: File,
    path: PathBuf,
    boot_id: String,
    log: LogId,
}

#[derive(Serialize, Deserialize)]
struct HeadLine {
    v: u32,
    boot: String,
    log: LogId,
    seq: u64,
    chain: Digest,
}

impl Continuity {
    /// The log.
    #[must_use]
    pub fn log(&self) -> &LogId {
        &self.log
    }

    /// A claim whose file is some other file, for tests of what happens when it cannot be written.
    #[cfg(test)]
    pub(crate) fn at(path: &str, log: LogId) -> Self {
        let file = OpenOptions::new().write(true).open(path).expect("it can be opened");
        Self { file, path: path.into(), boot_id: "a boot".into(), log }
    }

    /// Writes down how far the log goes; its facts must be durable.
    ///
    /// # Errors
    /// [`ContinuityError::Write`]; what the file holds is unknown.
    pub fn record(&self, head: &Head) -> Result<(), ContinuityError> {
        let line = HeadLine {
            v: HEAD_VERSION,
            boot: self.boot_id.clone(),
            log: self.log.clone(),
            seq: head.seq,
            chain: head.chain,
        };
        let text = serde_json::to_string(&line).expect("numbers and texts only");
        let text = format!("{text:<width$}\n", width = HEAD_BYTES - 1);
        self.file
            .write_all_at(text.as_bytes(), 0)
            .map_err(|source| ContinuityError::Write { path: self.path.clone(), source })
    }
}

/// Finds out whether the log that the store wrote last goes on, and claims it or a fresh one.
/// `chain_at` tells the chain hash of a log in the store at a seq from 1.
///
/// # Errors
/// [`ContinuityError`]; no log is claimed.
pub fn prove(
    start: &Start<'_>,
    last: Option<(LogId, Head)>,
    chain_at: impl Fn(&LogId, u64) -> Option<Digest>,
) -> Result<Proof, ContinuityError> {
    let proof = prove_last(start, last, chain_at)?;
    sweep(start);
    Ok(proof)
}

fn prove_last(
    start: &Start<'_>,
    last: Option<(LogId, Head)>,
    chain_at: impl Fn(&LogId, u64) -> Option<Digest>,
) -> Result<Proof, ContinuityError> {
    let Some((old, held)) = last else {
        return begin(start, None, None, chain_at);
    };
    let path = head_path(start.run_dir, &old);
    match claim(start, &path, &old, &held, &chain_at) {
        Ok(file) => {
            let boot_id = start.boot_id.to_owned();
            let continuity = Continuity { file, path, boot_id, log: old.clone() };
            Ok(Proof { opening: Opening::Continue(old), continuity, doubt: None })
        }
        Err(doubt) => begin(start, Some(old), Some(doubt), chain_at),
    }
}

fn head_path(run_dir: &Path, log: &LogId) -> PathBuf {
    run_dir.join(format!("{log}{HEAD_SUFFIX}"))
}

/// The locked file of a log that goes on. A file that disproves it is removed: that log is closed.
fn claim(
    start: &Start<'_>,
    path: &Path,
    log: &LogId,
    held: &Head,
    chain_at: impl Fn(&LogId, u64) -> Option<Digest>,
) -> Result<File, Doubt> {
    let unreadable = |source: io::Error| Doubt::Unreadable(source.to_string());
    match path.symlink_metadata() {
        Ok(found) if found.is_file() => {}
        Ok(_) => return Err(Doubt::Unreadable("it is not a file".into())),
        Err(gone) if gone.kind() == io::ErrorKind::NotFound => return Err(Doubt::Absent),
        Err(source) => return Err(unreadable(source)),
    }
    let file = try_lock_file(path).map_err(unreadable)?.ok_or(Doubt::Locked)?;
    let judged = read(&file).map_err(Doubt::Unreadable).and_then(|line| {
        if line.log != *log {
            return Err(Doubt::Unreadable(format!("it is of log {}", line.log)));
        }
        if line.boot != start.boot_id {
            return Err(Doubt::OtherBoot);
        }
        if line.seq > held.seq {
            return Err(Doubt::Ahead { held: held.seq, written: line.seq });
        }
        let chain = if line.seq == 0 { Some(chain_start(log)) } else { chain_at(log, line.seq) };
        if chain != Some(line.chain) {
            return Err(Doubt::Forked(line.seq));
        }
        let own = log.as_str().rsplit_once('-').is_some_and(|(name, _)| name == start.name);
        if own { Ok(()) } else { Err(Doubt::Renamed) }
    });
    if judged.is_err() {
        let _ = std::fs::remove_file(path);
    }
    judged.map(|()| file)
}

fn read(file: &File) -> Result<HeadLine, String> {
    let mut text = String::new();
    let read = file.take(2 * HEAD_BYTES as u64).read_to_string(&mut text);
    read.map_err(|error| error.to_string())?;
    let line: HeadLine = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    if line.v == HEAD_VERSION { Ok(line) } else { Err(format!("it is of version {}", line.v)) }
}

fn begin(
    start: &Start<'_>,
    continues: Option<LogId>,
    doubt: Option<Doubt>,
    chain_at: impl Fn(&LogId, u64) -> Option<Digest>,
) -> Result<Proof, ContinuityError> {
    let mut rng = Rng::from_seed(start.seed);
    let mut draws = 0;
    loop {
        draws += 1;
        let log: LogId = format!("{}-{:08x}", start.name, rng.next_u64() >> 32).parse()?;
        let path = head_path(start.run_dir, &log);
        let is_new = chain_at(&log, 1).is_none() && continues.as_ref() != Some(&log);
        let created = match is_new {
            true => create(&path),
            false => Err(io::ErrorKind::AlreadyExists.into()),
        };
        let file = match created {
            Ok(file) => file,
            Err(taken) if taken.kind() == io::ErrorKind::AlreadyExists && draws < DRAWS_MAX => {
                continue;
            }
            Err(source) => return Err(ContinuityError::Create { path, source }),
        };
        let continuity =
            Continuity { file, path, boot_id: start.boot_id.to_owned(), log: log.clone() };
        continuity.record(&Head { seq: 0, chain: chain_start(&log) })?;
        return Ok(Proof { opening: Opening::Fresh { log, continues }, continuity, doubt });
    }
}

fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create_new(true).mode(0o600).open(path)?;
    file.try_lock()?;
    Ok(file)
}

/// Removes head files of other boots: they prove nothing any more. Those of this boot are not even
/// locked for a moment, so that a broker that starts beside us finds its own free.
fn sweep(start: &Start<'_>) {
    for entry in start.run_dir.read_dir().into_iter().flatten().flatten() {
        let path = entry.path();
        let is_head = path.to_str().is_some_and(|path| path.ends_with(HEAD_SUFFIX));
        if !is_head || !entry.file_type().is_ok_and(|kind| kind.is_file()) {
            continue;
        }
        let found = File::open(&path).map_err(|error| error.to_string());
        if found.and_then(|file| read(&file)).is_ok_and(|line| line.boot != start.boot_id)
            && let Ok(Some(_lock)) = try_lock_file(&path)
        {
            let _ = std::fs::remove_file(&path);
        }
    }
}
