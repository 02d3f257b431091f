//! Reading facts beside the writer.
//!
//! Each call sees all that was committed before it. Calls wait for the disk: from async code they
//! belong into a thread that may wait.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension};

use super::{Damage, STORE_NAME, StoreError, StoredBooks, rows, schema, sealed};
use crate::proto::fact::{Fact, SealedFact};
use crate::proto::id::{Digest, Dot, JobId, LogId};
use crate::proto::limits;
use crate::proto::view::JobState;

/// A stored fact as it was written, not parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its place in the order of commits.
    pub id: i64,
    /// Its dot.
    pub dot: Dot,
    /// The chain hash.
    pub chain: Digest,
    /// Its line, without a newline.
    pub line: Box<str>,
}

impl Entry {
    /// Whether the fact is about this job.
    #[must_use]
    pub fn is_about(&self, job: &JobId) -> bool {
        // Few lines name the job at all, so few are parsed.
        self.line.contains(&job.to_string())
            && Fact::parse(&self.line).is_ok_and(|fact| fact.job == Some(*job))
    }

    /// Parses the fact.
    ///
    /// # Errors
    /// [`Damage`] if the line is not what was written.
    pub fn parse(&self) -> Result<SealedFact, Damage> {
        sealed(&self.dot, self.chain, &self.line)
    }
}

/// A reader of a store. One thread uses it at a time.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    connection: Connection,
}

impl Reader {
    /// Opens the store of a data directory; it must exist.
    ///
    /// # Errors
    /// [`StoreError::Open`], [`StoreError::Newer`], [`StoreError::Foreign`].
    pub fn open(data: &Path) -> Result<Self, StoreError> {
        let path = data.join(STORE_NAME);
        let connection = schema::open_existing(&path)?;
        Ok(Self { path, connection })
    }

    fn failed(&self, source: rusqlite::Error) -> StoreError {
        StoreError::Read { path: self.path.clone(), source }
    }

    fn parsed(&self, entry: &Entry) -> Result<SealedFact, StoreError> {
        let row = entry.id;
        entry.parse().map_err(|source| StoreError::Damaged { path: self.path.clone(), row, source })
    }

    /// One fact by its dot.
    ///
    /// # Errors
    /// [`StoreError::Read`], [`StoreError::Damaged`].
    pub fn fact(&self, dot: &Dot) -> Result<Option<SealedFact>, StoreError> {
        let query = "SELECT f.id, l.name, f.seq, f.chain, f.line FROM logs l \
             JOIN facts f ON f.log = l.id WHERE l.name = ?1 AND f.seq = ?2";
        let Ok(seq) = i64::try_from(dot.seq) else { return Ok(None) };
        let mut statement =
            self.connection.prepare_cached(query).map_err(|source| self.failed(source))?;
        let found = statement.query_row((dot.log.as_str(), seq), entry).optional();
        let found = found.map_err(|source| self.failed(source))?;
        found.map(|entry| self.parsed(&entry)).transpose()
    }

    /// The facts after a place in the order of commits (0 for all), at most `limit`.
    ///
    /// # Errors
    /// [`StoreError::Read`], [`StoreError::Damaged`].
    pub fn facts_after(&self, id: i64, limit: usize) -> Result<Vec<(i64, SealedFact)>, StoreError> {
        let entries = self.entries_after(id, limit)?;
        entries.iter().map(|entry| Ok((entry.id, self.parsed(entry)?))).collect()
    }

    /// As [`Reader::facts_after`], without parsing anything.
    ///
    /// # Errors
    /// [`StoreError::Read`].
    pub fn entries_after(&self, id: i64, limit: usize) -> Result<Vec<Entry>, StoreError> {
        let query = "SELECT f.id, l.name, f.seq, f.chain, f.line FROM facts f \
             JOIN logs l ON l.id = f.log WHERE f.id > ?1 ORDER BY f.id LIMIT ?2";
        Ok(self.entries(query, (id, sql_limit(limit)))?.0)
    }

    /// The chain hash of a log at one of its facts; nothing where that fact is not held.
    ///
    /// # Errors
    /// [`StoreError::Read`].
    pub fn chain_at(&self, log: &LogId, seq: u64) -> Result<Option<Digest>, StoreError> {
        let query = "SELECT f.chain FROM logs l JOIN facts f ON f.log = l.id \
             WHERE l.name = ?1 AND f.seq = ?2";
        let Ok(seq) = i64::try_from(seq) else { return Ok(None) };
        let read = || {
            let mut statement = self.connection.prepare_cached(query)?;
            statement.query_row((log.as_str(), seq), |row| rows::digest(row, 0)).optional()
        };
        read().map_err(|source| self.failed(source))
    }

    /// The place in the order of commits before the first fact that a version vector does not
    /// cover; nothing where it covers all.
    ///
    /// # Errors
    /// [`StoreError::Read`].
    pub fn place_before(&self, vector: &BTreeMap<LogId, u64>) -> Result<Option<i64>, StoreError> {
        let query = "SELECT f.id FROM logs l JOIN facts f ON f.log = l.id \
             WHERE l.name = ?1 AND f.seq = ?2";
        let read = || -> rusqlite::Result<Option<i64>> {
            let mut statement = self.connection.prepare_cached(query)?;
            let mut first: Option<i64> = None;
            for name in self.names_from("")? {
                let next = vector.get(name.as_str()).copied().unwrap_or(0).saturating_add(1);
                let Ok(next) = i64::try_from(next) else { continue };
                let found = statement.query_row((&name, next), |row| row.get(0)).optional()?;
                first = first.into_iter().chain(found).min();
            }
            Ok(first.map(|id| id - 1))
        };
        read().map_err(|source| self.failed(source))
    }

    /// The facts after a dot (all for none) in the order of dots, at most `limit` and at
    /// most as many as make [`limits::FACTS_PAGE_BYTES`] full, not parsed.
    ///
    /// # Errors
    /// [`StoreError::Read`].
    pub fn entries_sorted(
        &self,
        after: Option<&Dot>,
        limit: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        let query = "SELECT f.id, l.name, f.seq, f.chain, f.line FROM logs l \
             JOIN facts f ON f.log = l.id WHERE l.name = ?1 AND f.seq > ?2 \
             ORDER BY f.seq LIMIT ?3";
        let first = after.map_or("", |dot| dot.log.as_str());
        let mut found = vec![];
        for name in self.names_from(first).map_err(|source| self.failed(source))? {
            let seq = after.filter(|dot| dot.log.as_str() == name).map_or(0, |dot| dot.seq);
            let seq = i64::try_from(seq).unwrap_or(i64::MAX);
            let left = sql_limit(limit - found.len());
            let (page, is_cut) = self.entries(query, (name.as_str(), seq, left))?;
            found.extend(page);
            if is_cut || found.len() >= limit {
                break;
            }
        }
        Ok(found)
    }

    fn names_from(&self, first: &str) -> rusqlite::Result<Vec<String>> {
        let query = "SELECT name FROM logs WHERE name >= ?1 ORDER BY name";
        let mut statement = self.connection.prepare_cached(query)?;
        statement.query_map([first], |row| row.get(0))?.collect()
    }

    /// Facts up to a bound of bytes, and whether that cut them off.
    fn entries(
        &self,
        query: &str,
        values: impl rusqlite::Params,
    ) -> Result<(Vec<Entry>, bool), StoreError> {
        let read = || -> rusqlite::Result<(Vec<Entry>, bool)> {
            let mut statement = self.connection.prepare_cached(query)?;
            let (mut found, mut bytes) = (vec![], 0);
            for entry in statement.query_map(values, entry)? {
                let entry = entry?;
                bytes += entry.line.len();
                found.push(entry);
                if bytes >= limits::FACTS_PAGE_BYTES {
                    return Ok((found, true));
                }
            }
            Ok((found, false))
        };
        read().map_err(|source| self.failed(source))
    }
}

fn entry(row: &rusqlite::Row<'_>) -> rusqlite::Result<Entry> {
    let dot = Dot { log: rows::log(row, 1)?, seq: rows::seq(row, 2)? };
    let line: String = row.get(4)?;
    Ok(Entry { id: row.get(0)?, dot, chain: rows::digest(row, 3)?, line: line.into() })
}

fn sql_limit(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// Counts what a store holds.
pub(super) fn count_books(connection: &Connection) -> rusqlite::Result<StoredBooks> {
    let names = "SELECT id, name FROM logs";
    let mut statement = connection.prepare(names)?;
    let read = |row: &rusqlite::Row<'_>| Ok((row.get::<_, i64>(0)?, rows::log(row, 1)?));
    let logs: BTreeMap<i64, LogId> = statement.query_map([], read)?.collect::<Result<_, _>>()?;
    let mut books = StoredBooks::default();
    for (id, log) in &logs {
        let seq = contiguous(connection, *id)?;
        if seq > 0 {
            books.vector.insert(log.clone(), seq);
        }
    }
    let states = "SELECT birth_log, state, count(*) FROM jobs \
         WHERE birth_log IS NOT NULL AND state IS NOT NULL GROUP BY birth_log, state";
    let mut statement = connection.prepare(states)?;
    let mut found = statement.query([])?;
    while let Some(row) = found.next()? {
        let (log, word): (i64, String) = (row.get(0)?, row.get(1)?);
        let count = rows::seq(row, 2)?;
        let state = JobState::ALL.into_iter().find(|state| state.word() == word);
        if let (Some(log), Some(state)) = (logs.get(&log), state) {
            books.states.entry(log.clone()).or_default().insert(state, count);
        }
    }
    Ok(books)
}

/// The highest seq of a log up to which nothing is missing.
fn contiguous(connection: &Connection, log: i64) -> rusqlite::Result<u64> {
    let ends = "SELECT count(*), coalesce(min(seq), 1), coalesce(max(seq), 0) \
         FROM facts WHERE log = ?1";
    let read =
        |row: &rusqlite::Row<'_>| Ok((rows::seq(row, 0)?, rows::seq(row, 1)?, rows::seq(row, 2)?));
    let (count, min, max) = connection.query_row(ends, [log], read)?;
    if min != 1 {
        return Ok(0);
    }
    if count == max {
        return Ok(max);
    }
    let gap = "SELECT min(f.seq) FROM facts f WHERE f.log = ?1 AND NOT EXISTS \
         (SELECT 1 FROM facts g WHERE g.log = f.log AND g.seq = f.seq + 1)";
    connection.query_row(gap, [log], |row| rows::seq(row, 0))
}
