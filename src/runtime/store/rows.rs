//! Rows of the fact table as they are stored, and the columns of ours that SQLite has no type for.

use std::collections::BTreeMap;

use rusqlite::types::Type;
use rusqlite::{Connection, Row};

use super::{Damage, sealed};
use crate::proto::fact::SealedFact;
use crate::proto::id::{Digest, Dot, LogId};

/// One row of the fact table; nothing about it is verified.
#[derive(Debug, Clone)]
pub(in crate::runtime) struct FactRow<'a> {
    /// The row's number, in the order of commits.
    pub id: i64,
    /// Its log, or what is wrong with the log's name.
    pub log: &'a Result<LogId, Damage>,
    /// Its number in the log.
    pub seq: i64,
    /// The chain hash; nothing where the column does not hold 32 bytes.
    pub chain: Option<Digest>,
    /// The line; nothing where the column does not hold UTF-8.
    pub line: Option<&'a str>,
}

impl FactRow<'_> {
    /// The dot under which the fact is kept.
    pub fn dot(&self) -> Result<Dot, Damage> {
        let seq = u64::try_from(self.seq).ok().filter(|seq| *seq > 0);
        Ok(Dot { log: self.log.clone()?, seq: seq.ok_or(Damage::Column("seq"))? })
    }

    /// The fact, parsed; its chain is not verified.
    pub fn seal(&self) -> Result<SealedFact, Damage> {
        let line = self.line.ok_or(Damage::Column("line"))?;
        sealed(&self.dot()?, self.chain.ok_or(Damage::Column("chain"))?, line)
    }
}

/// Calls `each` for every row in the order of commits, until it fails.
pub(in crate::runtime) fn each<E>(
    connection: &Connection,
    mut each: impl FnMut(FactRow<'_>) -> Result<(), E>,
) -> rusqlite::Result<Result<(), E>> {
    let names = names(connection)?;
    let query = "SELECT id, log, seq, chain, line FROM facts ORDER BY id";
    let mut statement = connection.prepare(query)?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let log_id = row.get(1)?;
        let unnamed = Err(Damage::Unnamed(log_id));
        let row = FactRow {
            id: row.get(0)?,
            log: names.get(&log_id).unwrap_or(&unnamed),
            seq: row.get(2)?,
            chain: digest(row, 3).ok(),
            line: row.get_ref(4)?.as_str().ok(),
        };
        if let Err(error) = each(row) {
            return Ok(Err(error));
        }
    }
    Ok(Ok(()))
}

/// The names of all logs by the store's number for them.
pub(super) fn names(
    connection: &Connection,
) -> rusqlite::Result<BTreeMap<i64, Result<LogId, Damage>>> {
    let mut statement = connection.prepare("SELECT id, name FROM logs")?;
    let read = |row: &Row<'_>| {
        let name = row.get_ref(1)?.as_str().map_err(|_| Damage::Column("name"));
        Ok((row.get(0)?, name.and_then(|name| Ok(name.parse::<LogId>()?))))
    };
    statement.query_map([], read)?.collect()
}

/// A column that holds a digest.
pub(super) fn digest(row: &Row<'_>, column: usize) -> rusqlite::Result<Digest> {
    row.get(column).map(Digest)
}

/// A column that holds a seq.
pub(super) fn seq(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    let seq: i64 = row.get(column)?;
    u64::try_from(seq).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(column, seq))
}

/// A column that holds a log's name.
pub(super) fn log(row: &Row<'_>, column: usize) -> rusqlite::Result<LogId> {
    let name: String = row.get(column)?;
    name.parse().map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(error))
    })
}
