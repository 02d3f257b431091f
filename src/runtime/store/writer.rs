//! The one thread that writes the store.
//!
//! Algorithm: take everything that is queued, up to a bound, into one transaction; commit; write
//! the continuity file; then call what waits, in order. So batches that come while the disk syncs
//! share the next sync. A disk without room is waited for (space.rs): the same transaction is
//! tried again, and nothing overtakes it. After any other failure nothing more is taken: the
//! process is to end, and what is in memory but not on disk goes with it.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, mpsc::SendError};
use std::thread::JoinHandle;

use rusqlite::Connection;
use tokio::sync::watch;

use super::meter::CommitMeter;
use super::reader::count_books;
use super::space::{Disk, Space};
use super::{Store, StoreError, StoredBooks, rows, schema};
use crate::proto::event::Batch;
use crate::proto::id::{JobId, LogId};
use crate::proto::limits;
use crate::proto::log::{Head, LogError};
use crate::proto::view::JobRow;
use crate::runtime::continuity::Continuity;
use crate::runtime::entropy;

/// What is called when something is done or has failed; it must not wait for anything.
pub type Done<T> = Box<dyn FnOnce(Result<T, Arc<StoreError>>) + Send>;

enum Order {
    Commit(Batch, Done<()>),
    Books(Done<StoredBooks>),
}

/// The way to the thread that writes the store. Dropping it waits until all is written.
pub struct Writer {
    orders: Option<Sender<Order>>,
    thread: Option<JoinHandle<()>>,
    disk: watch::Receiver<Disk>,
    meter: Arc<CommitMeter>,
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer").finish_non_exhaustive()
    }
}

impl Writer {
    pub(super) fn start(store: Store, claim: Continuity) -> Result<Self, StoreError> {
        let failed = |source| StoreError::Read { path: store.path.clone(), source };
        let logs = logs(&store.connection).map_err(failed)?;
        let (orders, queue) = mpsc::channel();
        let Store { path, connection } = store;
        connection.set_prepared_statement_cache_capacity(32);
        let space = Space::of(path.parent().unwrap_or(Path::new(".")));
        let disk = space.watch();
        let meter = Arc::new(CommitMeter::default());
        let at_work = Work {
            path,
            connection,
            logs,
            own: claim,
            own_head: None,
            is_own_noted: false,
            is_inserted: false,
            space,
            backlog: VecDeque::new(),
            failure: None,
            counting: Arc::default(),
            meter: Arc::clone(&meter),
        };
        let thread = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || at_work.run(&queue))
            .map_err(|_| StoreError::Closed)?;
        Ok(Self { orders: Some(orders), thread: Some(thread), disk, meter })
    }

    /// How the store's disk is, as it changes.
    #[must_use]
    pub fn disk(&self) -> watch::Receiver<Disk> {
        self.disk.clone()
    }

    /// How its commits go.
    #[must_use]
    pub fn meter(&self) -> Arc<CommitMeter> {
        Arc::clone(&self.meter)
    }

    /// Makes a batch durable after all that were handed in before, then calls `done` from the
    /// writer's thread.
    ///
    /// # Errors
    /// To `done`: [`StoreError::Write`], [`StoreError::Order`], [`StoreError::Continuity`]; the
    /// first of them is also the answer to everything that comes later.
    pub fn commit(&self, batch: Batch, done: Done<()>) {
        self.order(Order::Commit(batch, done));
    }

    /// Counts what the store holds after all batches that were handed in before, then calls
    /// `done` from some thread.
    ///
    /// # Errors
    /// To `done`: [`StoreError::Read`], or what ended the writer.
    pub fn books(&self, done: Done<StoredBooks>) {
        self.order(Order::Books(done));
    }

    fn order(&self, order: Order) {
        let orders = self.orders.as_ref().expect("only the drop takes it");
        if let Err(SendError(order)) = orders.send(order) {
            order.refuse(&Arc::new(StoreError::Closed));
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            // A panic there was reported there.
            let _ = thread.join();
        }
    }
}

impl Order {
    fn refuse(self, why: &Arc<StoreError>) {
        match self {
            Self::Commit(_, done) => done(Err(Arc::clone(why))),
            Self::Books(done) => done(Err(Arc::clone(why))),
        }
    }
}

/// A log as the store has it: the store's number for it, and its last seq.
#[derive(Debug, Clone, Copy)]
struct LogRow {
    id: i64,
    seq: u64,
}

fn logs(connection: &Connection) -> rusqlite::Result<BTreeMap<LogId, LogRow>> {
    let query = "SELECT l.name, l.id, \
         coalesce((SELECT max(f.seq) FROM facts f WHERE f.log = l.id), 0) FROM logs l";
    let mut statement = connection.prepare(query)?;
    let read = |row: &rusqlite::Row<'_>| {
        Ok((rows::log(row, 0)?, LogRow { id: row.get(1)?, seq: rows::seq(row, 2)? }))
    };
    statement.query_map([], read)?.collect()
}

struct Work {
    path: PathBuf,
    connection: Connection,
    logs: BTreeMap<LogId, LogRow>,
    own: Continuity,
    /// The head of the own log that is committed but not yet in the continuity file.
    own_head: Option<Head>,
    /// Whether the own log is noted as the one that this data directory wrote last.
    is_own_noted: bool,
    /// Whether the batches at hand are committed, and only the continuity file is not written.
    is_inserted: bool,
    space: Space,
    /// Orders that came while a commit waited for room.
    backlog: VecDeque<Order>,
    failure: Option<Arc<StoreError>>,
    counting: Arc<AtomicUsize>,
    meter: Arc<CommitMeter>,
}

impl Work {
    fn run(mut self, queue: &Receiver<Order>) {
        while let Some(first) = self.wait(queue) {
            let (mut batches, mut waiting, mut books) = (vec![], vec![], None);
            let mut facts = 0;
            let mut next = Some(first);
            while let Some(order) = next.take() {
                match order {
                    Order::Commit(batch, done) => {
                        facts += batch.facts.len();
                        batches.push(batch);
                        waiting.push(done);
                        if facts < limits::TRANSACTION_FACTS_MAX {
                            next = self.backlog.pop_front().or_else(|| queue.try_recv().ok());
                        }
                    }
                    Order::Books(done) => books = Some(done),
                }
            }
            let committed = self.measured(&batches, facts, queue);
            for done in waiting {
                done(committed.clone());
            }
            if let Some(done) = books {
                self.count(done);
            }
        }
    }

    /// The next order; `None` when there will be none.
    fn wait(&mut self, queue: &Receiver<Order>) -> Option<Order> {
        if let Some(order) = self.backlog.pop_front() {
            return Some(order);
        }
        while self.space.disk() != Disk::Well {
            self.space.recover();
            match queue.recv_timeout(limits::DISK_FULL_RETRY) {
                Ok(order) => return Some(order),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
        queue.recv().ok()
    }

    /// As [`Work::commit`], counted where it wrote something.
    fn measured(
        &mut self,
        batches: &[Batch],
        facts: usize,
        queue: &Receiver<Order>,
    ) -> Result<(), Arc<StoreError>> {
        if batches.is_empty() {
            return self.commit(batches, queue);
        }
        self.meter.began(entropy::now().mono);
        let committed = self.commit(batches, queue);
        if committed.is_ok() {
            self.meter.ended(entropy::now().mono, facts, batches.len());
        }
        committed
    }

    /// Makes batches durable, all or none; waits for room where there is none.
    fn commit(
        &mut self,
        batches: &[Batch],
        queue: &Receiver<Order>,
    ) -> Result<(), Arc<StoreError>> {
        if let Some(failure) = &self.failure {
            return Err(Arc::clone(failure));
        }
        loop {
            let failure = match self.try_commit(batches) {
                Ok(()) => {
                    if self.space.disk() == Disk::Stalled {
                        self.space.tell(Disk::Full);
                    }
                    return Ok(());
                }
                Err(full) if full.is_full() && self.make_room(queue) => continue,
                Err(failure) => Arc::new(failure),
            };
            self.failure = Some(Arc::clone(&failure));
            return Err(failure);
        }
    }

    /// Gives the reserve, and where there is none left waits a little. Says whether to try again:
    /// not when nobody waits for it any more.
    fn make_room(&mut self, queue: &Receiver<Order>) -> bool {
        if self.space.release() {
            self.space.tell(Disk::Full);
            // What the write-ahead log holds twice is room as well; if it fails it is only not had.
            let _ = self.connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)");
            return true;
        }
        self.space.tell(Disk::Stalled);
        match queue.recv_timeout(limits::DISK_FULL_RETRY) {
            Ok(order) => self.backlog.push_back(order),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return false,
        }
        true
    }

    fn try_commit(&mut self, batches: &[Batch]) -> Result<(), StoreError> {
        if batches.iter().all(|batch| batch.facts.is_empty() && batch.rows.is_empty()) {
            return Ok(());
        }
        if !self.is_inserted {
            self.transact(batches)?;
            self.is_inserted = true;
        }
        if let Some(head) = &self.own_head {
            self.own.record(head)?;
        }
        (self.own_head, self.is_inserted) = (None, false);
        Ok(())
    }

    fn transact(&mut self, batches: &[Batch]) -> Result<(), StoreError> {
        let path = self.path.clone();
        let failed = |source| StoreError::Write { path: path.clone(), source };
        let was_noted = self.is_own_noted;
        self.run_cached("BEGIN IMMEDIATE").map_err(failed)?;
        let inserted = self.insert_facts(batches).and_then(|()| {
            let rows = batches.iter().flat_map(|batch| &batch.rows);
            let last: BTreeMap<JobId, &JobRow> = rows.map(|row| (row.job, row)).collect();
            self.upsert(last.into_values()).map_err(failed)
        });
        let committed = inserted.and_then(|()| self.run_cached("COMMIT").map_err(failed));
        if committed.is_err() {
            // SQLite may have rolled back by itself; either way nothing of it is held.
            let _ = self.connection.execute_batch("ROLLBACK");
            (self.own_head, self.is_own_noted) = (None, was_noted);
            self.logs = logs(&self.connection).map_err(failed)?;
        }
        committed
    }

    fn insert_facts(&mut self, batches: &[Batch]) -> Result<(), StoreError> {
        let Self { path, connection, logs, own, own_head, .. } = self;
        let failed = |source| StoreError::Write { path: path.clone(), source };
        let insert = "INSERT INTO facts (log, seq, chain, line) VALUES (?1, ?2, ?3, ?4)";
        let mut insert = connection.prepare_cached(insert).map_err(failed)?;
        for sealed in batches.iter().flat_map(|batch| &batch.facts) {
            let dot = &sealed.fact.dot;
            let row = log_row(connection, logs, &dot.log).map_err(failed)?;
            if dot.seq != row.seq + 1 {
                let source = LogError::Gap { dot: dot.clone(), held: row.seq };
                return Err(StoreError::Order { path: path.clone(), source });
            }
            let values = (row.id, sql_seq(dot.seq), &sealed.chain.0, &*sealed.line);
            insert.execute(values).map_err(failed)?;
            row.seq = dot.seq;
            if dot.log == *own.log() {
                *own_head = Some(Head { seq: dot.seq, chain: sealed.chain });
            }
        }
        drop(insert);
        let failed = |source| StoreError::Write { path: self.path.clone(), source };
        if self.own_head.is_some() && !self.is_own_noted {
            let note = "INSERT OR REPLACE INTO meta (key, value) VALUES ('own_log', ?1)";
            let noted = self.connection.execute(note, [self.own.log().as_str()]);
            noted.map_err(failed)?;
            self.is_own_noted = true;
        }
        Ok(())
    }

    fn upsert<'a>(&mut self, rows: impl Iterator<Item = &'a JobRow>) -> rusqlite::Result<()> {
        let upsert = "INSERT OR REPLACE INTO jobs \
             (job, birth_log, birth_seq, generation, state, digest) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
        let Self { connection, logs, .. } = self;
        let mut upsert = connection.prepare_cached(upsert)?;
        for row in rows {
            let birth = match &row.birth {
                Some(dot) => Some((log_row(connection, logs, &dot.log)?.id, sql_seq(dot.seq))),
                None => None,
            };
            let (birth_log, birth_seq) = birth.unzip();
            let state = row.state.map(|state| state.word());
            let digest = row.digest.as_ref().map(|digest| &digest.0);
            let job = row.job.0.as_bytes();
            upsert.execute((job, birth_log, birth_seq, row.generation, state, digest))?;
        }
        Ok(())
    }

    fn run_cached(&self, statement: &str) -> rusqlite::Result<()> {
        self.connection.prepare_cached(statement)?.execute([]).map(|_| ())
    }

    /// Counts the books as of now. The reading takes as long as there is much to read, so it is
    /// done in a thread of its own, on a snapshot that is taken before anything more is written.
    fn count(&self, done: Done<StoredBooks>) {
        if let Some(failure) = &self.failure {
            return done(Err(Arc::clone(failure)));
        }
        let path = self.path.clone();
        let failed = move |source| Arc::new(StoreError::Read { path: path.clone(), source });
        let snapshot = schema::open_existing(&self.path).map_err(Arc::new);
        let snapshot = snapshot.and_then(|connection| {
            let begun = connection.execute_batch("BEGIN; SELECT count(*) FROM meta");
            begun.map(|()| connection).map_err(&failed)
        });
        let snapshot = match snapshot {
            Ok(connection) => connection,
            Err(error) => return done(Err(error)),
        };
        let count = move || done(count_books(&snapshot).map_err(&failed));
        if self.counting.fetch_add(1, Ordering::Relaxed) >= limits::BOOKS_AT_ONCE_MAX {
            count();
            self.counting.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        let counting = Arc::clone(&self.counting);
        let counted = std::thread::Builder::new().name("store-books".into()).spawn(move || {
            count();
            counting.fetch_sub(1, Ordering::Relaxed);
        });
        if counted.is_err() {
            self.counting.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The store's row of a log; made where there is none yet.
fn log_row<'a>(
    connection: &Connection,
    logs: &'a mut BTreeMap<LogId, LogRow>,
    log: &LogId,
) -> rusqlite::Result<&'a mut LogRow> {
    if !logs.contains_key(log) {
        connection.execute("INSERT INTO logs (name) VALUES (?1)", [log.as_str()])?;
        let row = LogRow { id: connection.last_insert_rowid(), seq: 0 };
        logs.insert(log.clone(), row);
    }
    Ok(logs.get_mut(log).expect("it is there or was just put there"))
}

/// Counters are below 2^53 wherever they come from.
fn sql_seq(seq: u64) -> i64 {
    i64::try_from(seq).expect("a seq is below 2^53")
}
