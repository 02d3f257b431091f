//! The facts of a broker on disk: the only place that makes facts durable.
//!
//! It decides nothing: facts come sealed from the core and go back as they were written. The job
//! table beside them is derived from the facts, so that `check` can recompute it.
//! Shapes: SQLite in WAL mode, `DATA/broker.db`; `facts.id` is the order of commits, `seq` counts
//! facts of a log from 1. The data directory must be locked by the caller (`rundir::lock_data`).
//! Law: a batch is held whole or not at all, batches in the order in which they were handed in,
//! and `done` is called after the batch is durable (tests in `store/tests.rs`, `tests/store.rs`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension};

use crate::proto::fact::{Fact, FactError, SealedFact};
use crate::proto::id::{Digest, Dot, IdError, LogId};
use crate::proto::log::{Head, LogError, Logs};
use crate::proto::view::JobState;
use crate::runtime::continuity::{Continuity, ContinuityError};

mod check;
mod meter;
mod reader;
mod rows;
mod schema;
mod space;
#[cfg(test)]
mod tests;
mod writer;

pub use check::{Checked, Fault};
pub use meter::CommitMeter;
pub use reader::{Entry, Reader};
pub use schema::SCHEMA_VERSION;
pub use space::Disk;
pub use writer::{Done, Writer};

/// The name of the store's file in its data directory.
pub const STORE_NAME: &str = "broker.db";

/// What a commit waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// The disk: what is committed outlives a power cut.
    #[default]
    Fsync,
    /// The operating system: what is committed outlives every process, but not a power cut.
    Os,
}

/// Why the store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The file cannot be opened or created. Nothing changed; trying again may help.
    #[error("cannot open the store {}", path.display())]
    Open {
        /// The store's file.
        path: PathBuf,
        /// What SQLite says.
        source: rusqlite::Error,
    },
    /// A newer version of this program wrote the store. Nothing changed.
    #[error("the store {} is of version {found}, this program knows version {SCHEMA_VERSION}",
        path.display())]
    Newer {
        /// The store's file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// The file is of another program. Nothing changed.
    #[error("{} is not a store of this program", .0.display())]
    Foreign(PathBuf),
    /// A fact in the store is not what was written. Nothing changed; trying again cannot help.
    #[error("the store {} is damaged at row {row}", path.display())]
    Damaged {
        /// The store's file.
        path: PathBuf,
        /// The row of the fact, counted in the order of commits.
        row: i64,
        /// What is wrong.
        source: Damage,
    },
    /// The store cannot be read. Nothing changed; trying again may help.
    #[error("cannot read the store {}", path.display())]
    Read {
        /// The store's file.
        path: PathBuf,
        /// What SQLite says.
        source: rusqlite::Error,
    },
    /// The store cannot be written: the disk is broken, or full when the writer ends. The
    /// transaction counts as not held (after a failed sync it may still be found at the next start,
    /// whole), and this writer takes no more. Opening the store again may help.
    #[error("cannot write the store {}", path.display())]
    Write {
        /// The store's file.
        path: PathBuf,
        /// What SQLite says.
        source: rusqlite::Error,
    },
    /// A batch does not continue its log. Nothing of the transaction is held, and this writer
    /// takes no more: its core no longer agrees with the store.
    #[error("a batch does not continue what the store {} holds", path.display())]
    Order {
        /// The store's file.
        path: PathBuf,
        /// What is wrong.
        source: LogError,
    },
    /// The batch is durable, but what shows that the log goes on could not be written, so that
    /// nothing may leave that depends on it. This writer takes no more.
    #[error("the log's continuity cannot be kept")]
    Continuity(#[from] ContinuityError),
    /// The disk is full, and what is not durable would have to be waited for. Nothing was lost that
    /// was acknowledged.
    #[error("the disk is full")]
    Full,
    /// The writer has ended. Nothing changed.
    #[error("the store's writer has ended")]
    Closed,
}

impl StoreError {
    /// Whether bytes on the disk are not what was written, so that no trial helps.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Damaged { .. } => true,
            Self::Open { source, .. } | Self::Read { source, .. } | Self::Write { source, .. } => {
                is_damage(source)
            }
            _ => false,
        }
    }

    /// Whether there was no room on the disk, so that the same write succeeds once there is. Room
    /// for the index of the write-ahead log is asked for in another way.
    #[must_use]
    pub fn is_full(&self) -> bool {
        use rusqlite::ffi::SQLITE_IOERR_SHMSIZE;
        match self {
            Self::Write { source, .. } => source.sqlite_error().is_some_and(|error| {
                error.code == rusqlite::ErrorCode::DiskFull
                    || error.extended_code == SQLITE_IOERR_SHMSIZE
            }),
            Self::Continuity(ContinuityError::Write { source, .. }) => {
                use std::io::ErrorKind::{QuotaExceeded, StorageFull};
                matches!(source.kind(), StorageFull | QuotaExceeded)
            }
            _ => false,
        }
    }

    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Newer { .. } => Some("use a program that is as new, or another --data"),
            Self::Foreign(_) => Some("say another place with --data DIR"),
            Self::Write { .. } | Self::Full => {
                Some("make room on the disk and start again: nothing is lost")
            }
            _ if self.is_damage() => Some("'ucp-broker check' tells all that is damaged"),
            _ => None,
        }
    }
}

/// Whether SQLite says that the file is not as SQLite left it.
fn is_damage(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    matches!(error.sqlite_error_code(), Some(DatabaseCorrupt | NotADatabase))
}

/// What is wrong with a stored fact.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Damage {
    /// Its line is no fact.
    #[error(transparent)]
    Fact(#[from] FactError),
    /// Its place or its hash does not follow from the facts before it.
    #[error(transparent)]
    Log(#[from] LogError),
    /// Its line names another place than that at which it is kept.
    #[error("the line of {line} is kept as {kept}")]
    Misplaced {
        /// The dot in the line.
        line: Dot,
        /// The dot under which it is kept.
        kept: Dot,
    },
    /// A column holds something that is never written there.
    #[error("column {0} is not what is written there")]
    Column(&'static str),
    /// It belongs to a log that has no name.
    #[error("its log {0} is not in the store")]
    Unnamed(i64),
    /// A log's name is none.
    #[error("a log's name is none: {0}")]
    Name(#[from] IdError),
}

/// What the store holds, for `audit` to compare with what the core holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StoredBooks {
    /// The highest seq of each log up to which nothing is missing.
    pub vector: BTreeMap<LogId, u64>,
    /// Jobs in each state by the log of their birth. Jobs without birth or state are left out.
    pub states: BTreeMap<LogId, BTreeMap<JobState, u64>>,
}

/// A store that is opened for this process alone.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    connection: Connection,
}

impl Store {
    /// Opens the store of a data directory, creating it where absent.
    ///
    /// # Errors
    /// [`StoreError::Newer`] for a store that a newer version wrote, which is never touched;
    /// [`StoreError::Foreign`]; [`StoreError::Open`]. Nothing that was stored changed.
    pub fn open(data: &Path, durability: Durability) -> Result<Self, StoreError> {
        let path = data.join(STORE_NAME);
        let connection = schema::open_or_create(&path, durability)?;
        Ok(Self { path, connection })
    }

    /// Opens a store that must exist, to look at it.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_existing(data: &Path) -> Result<Self, StoreError> {
        let path = data.join(STORE_NAME);
        let connection = schema::open_existing(&path)?;
        Ok(Self { path, connection })
    }

    /// The store's file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Hands over all facts in the order of their commits, with their chains verified, and
    /// returns how far each log goes.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] at the first fact that is not what was written, or that `each`
    /// refuses; [`StoreError::Read`].
    pub fn load(
        &self,
        mut each: impl FnMut(&SealedFact) -> Result<(), LogError>,
    ) -> Result<Logs, StoreError> {
        let mut logs = Logs::default();
        rows::each(&self.connection, |row| {
            let damaged =
                |source| StoreError::Damaged { path: self.path.clone(), row: row.id, source };
            let sealed = row.seal().map_err(damaged)?;
            logs.extend(&sealed).map_err(|error| damaged(error.into()))?;
            each(&sealed).map_err(|error| damaged(error.into()))
        })
        .map_err(|source| self.unreadable(source))??;
        Ok(logs)
    }

    /// The log that this data directory wrote last, and how far it goes.
    ///
    /// # Errors
    /// [`StoreError::Read`].
    pub fn last_own_log(&self) -> Result<Option<(LogId, Head)>, StoreError> {
        let query = "SELECT l.name, f.seq, f.chain FROM meta m \
             JOIN logs l ON l.name = m.value JOIN facts f ON f.log = l.id \
             WHERE m.key = 'own_log' ORDER BY f.seq DESC LIMIT 1";
        let read = |row: &rusqlite::Row<'_>| {
            let head = Head { seq: rows::seq(row, 1)?, chain: rows::digest(row, 2)? };
            Ok((rows::log(row, 0)?, head))
        };
        let found = self.connection.query_row(query, [], read).optional();
        found.map_err(|source| self.unreadable(source))
    }

    /// The chain hash of a log at one of its facts; nothing where that fact is not held.
    ///
    /// # Errors
    /// [`StoreError::Read`].
    pub fn chain_at(&self, log: &LogId, seq: u64) -> Result<Option<Digest>, StoreError> {
        let query = "SELECT f.chain FROM logs l JOIN facts f ON f.log = l.id \
             WHERE l.name = ?1 AND f.seq = ?2";
        let Ok(seq) = i64::try_from(seq) else { return Ok(None) };
        let read = |row: &rusqlite::Row<'_>| rows::digest(row, 0);
        let found = self.connection.query_row(query, (log.as_str(), seq), read).optional();
        found.map_err(|source| self.unreadable(source))
    }

    /// Hands the store to a thread of its own that commits batches in the order in which they
    /// come. The claim is to the log that this broker writes.
    ///
    /// # Errors
    /// [`StoreError::Read`]; the store is closed.
    pub fn into_writer(self, claim: Continuity) -> Result<Writer, StoreError> {
        Writer::start(self, claim)
    }

    fn unreadable(&self, source: rusqlite::Error) -> StoreError {
        StoreError::Read { path: self.path.clone(), source }
    }
}

/// Reads a fact's line and checks that it is kept in its place.
fn sealed(kept: &Dot, chain: Digest, line: &str) -> Result<SealedFact, Damage> {
    let fact = Fact::parse(line)?;
    if fact.dot != *kept {
        return Err(Damage::Misplaced { line: fact.dot, kept: kept.clone() });
    }
    Ok(SealedFact { fact: fact.into(), line: line.into(), chain })
}
