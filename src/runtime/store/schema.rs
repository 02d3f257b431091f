//! The tables of the store, its version, and how its file is opened.
//!
//! Law: a store of a newer version, or of another program, is refused and never touched
//! (`store/tests.rs`).

use std::fs::File;
use std::path::Path;

use rusqlite::{Connection, OpenFlags, OptionalExtension};

use super::{Durability, StoreError};

/// The version of the tables below.
pub const SCHEMA_VERSION: u32 = 1;

/// `meta` holds `schema`, the version, and `own_log`, the log that this data directory wrote last.
/// The ids of `logs` are this store's own and never leave it.
const TABLES: &str = "
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE logs (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
    CREATE TABLE facts (
        id INTEGER PRIMARY KEY,
        log INTEGER NOT NULL,
        seq INTEGER NOT NULL,
        chain BLOB NOT NULL,
        line TEXT NOT NULL,
        UNIQUE (log, seq)
    );
    CREATE TABLE jobs (
        job BLOB PRIMARY KEY,
        birth_log INTEGER,
        birth_seq INTEGER,
        generation INTEGER NOT NULL,
        state TEXT,
        digest BLOB
    ) WITHOUT ROWID;
    INSERT INTO meta (key, value) VALUES ('schema', '1');
";

/// Pages of the write-ahead log after which it is written back: 16 MiB.
const CHECKPOINT_PAGES: u32 = 4_096;
/// Bytes to which the write-ahead log is cut when it was written back.
const WAL_BYTES_KEPT: u32 = 64 << 20;
/// Memory for pages of the file, in KiB.
const CACHE_KIB: u32 = 32 << 10;

/// Opens the store, creating it where absent.
pub(super) fn open_or_create(
    path: &Path,
    durability: Durability,
) -> Result<Connection, StoreError> {
    let failed = |source| StoreError::Open { path: path.to_owned(), source };
    let is_new = !path.exists();
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(failed)?;
    let is_empty = is_empty(&connection).map_err(failed)?;
    if !is_empty {
        check_version(path, &connection)?;
    }
    let synchronous = match durability {
        Durability::Fsync => "FULL",
        Durability::Os => "NORMAL",
    };
    let settings = format!(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = {synchronous};
         PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES};
         PRAGMA journal_size_limit = {WAL_BYTES_KEPT}; PRAGMA cache_size = -{CACHE_KIB};
         PRAGMA temp_store = MEMORY;"
    );
    connection.execute_batch(&settings).map_err(failed)?;
    if is_empty {
        let create = format!("BEGIN IMMEDIATE; {TABLES} COMMIT;");
        connection.execute_batch(&create).map_err(failed)?;
    }
    if is_new && durability == Durability::Fsync {
        sync_entries(path)
            .map_err(|source| failed(rusqlite::Error::ToSqlConversionFailure(Box::new(source))))?;
    }
    Ok(connection)
}

/// Opens a store that exists, to read it. Its write-ahead log may have to be brought in first, so
/// that the file must be writable, but no row is changed.
pub(super) fn open_existing(path: &Path) -> Result<Connection, StoreError> {
    let failed = |source| StoreError::Open { path: path.to_owned(), source };
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(failed)?;
    connection.execute_batch("PRAGMA query_only = ON").map_err(failed)?;
    check_version(path, &connection)?;
    Ok(connection)
}

fn is_empty(connection: &Connection) -> rusqlite::Result<bool> {
    connection.query_row("SELECT count(*) = 0 FROM sqlite_master", [], |row| row.get(0))
}

fn check_version(path: &Path, connection: &Connection) -> Result<(), StoreError> {
    let foreign = || StoreError::Foreign(path.to_owned());
    let failed = |source| StoreError::Open { path: path.to_owned(), source };
    let tables = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'meta'";
    let has_meta: bool = connection.query_row(tables, [], |row| row.get(0)).map_err(failed)?;
    if !has_meta {
        return Err(foreign());
    }
    let query = "SELECT value FROM meta WHERE key = 'schema'";
    let read = |row: &rusqlite::Row<'_>| row.get::<_, String>(0);
    let version = connection.query_row(query, [], read).optional().map_err(failed)?;
    match version.and_then(|text| text.parse::<u32>().ok()) {
        Some(SCHEMA_VERSION) => Ok(()),
        Some(found) if found > SCHEMA_VERSION => {
            Err(StoreError::Newer { path: path.to_owned(), found })
        }
        _ => Err(foreign()),
    }
}

/// Makes the names of a new store and of its directory durable: SQLite syncs what is in the files.
fn sync_entries(path: &Path) -> std::io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    File::open(directory)?.sync_all()?;
    File::open(directory.join(".."))?.sync_all()
}
