//! Tests of the store: order, atomicity, damage, versions.

use std::sync::mpsc;
use std::sync::{Arc, Mutex};

use super::*;
use crate::proto::event::Batch;
use crate::proto::fact::{Body, Joined, Reason, Submitted, chain_next};
use crate::proto::id::JobId;
use crate::proto::job::JobSpec;
use crate::proto::rng::Rng;
use crate::proto::time::WallTime;
use crate::proto::view::JobRow;
use crate::runtime::continuity::{Start, prove};

/// One broker's life on a data directory.
pub(super) struct Life {
    pub(super) log: LogId,
    pub(super) head: Head,
    pub(super) writer: Writer,
}

fn opened(data: &Path, run_dir: &Path) -> (Store, Continuity) {
    let store = Store::open(data, Durability::Os).expect("a store");
    let last = store.last_own_log().expect("readable");
    let start = Start { run_dir, name: "north", boot_id: "a boot", seed: 1 };
    let chain_at = |log: &LogId, seq| store.chain_at(log, seq).expect("readable");
    let proof = prove(&start, last, chain_at).expect("a log");
    (store, proof.continuity)
}

impl Life {
    pub(super) fn begin(data: &Path) -> Self {
        let (store, claim) = opened(data, data);
        Self::begin_with(store, claim)
    }

    fn begin_with(store: Store, claim: Continuity) -> Self {
        let log = claim.log().clone();
        let head = store.load(|_| Ok(())).expect("whole").head(&log);
        Self { log, head, writer: store.into_writer(claim).expect("a writer") }
    }

    pub(super) fn seal(&mut self, job: Option<JobId>, body: Body) -> SealedFact {
        let dot = Dot { log: self.log.clone(), seq: self.head.seq + 1 };
        let mut clock = crate::proto::clock::Clock::new();
        clock.raise_to(&dot);
        let birth = job.map(|_| dot.clone());
        let generation = u32::from(job.is_some());
        let at = WallTime(0).to_string();
        self.seal_as(Fact { dot, clock, job, birth, generation, elements: None, at, body })
    }

    pub(super) fn seal_as(&mut self, fact: Fact) -> SealedFact {
        let line: Arc<str> = fact.to_line().into();
        let chain = chain_next(&self.head.chain, &line);
        self.head = Head { seq: self.head.seq + 1, chain };
        SealedFact { fact: fact.into(), line, chain }
    }

    pub(super) fn joined(&mut self) -> SealedFact {
        let body = Joined { name: "north".into(), fold_version: 1, continues: None };
        self.seal(None, Body::Joined(body))
    }

    /// A job is taken and at once cancelled.
    pub(super) fn job(&mut self, job: JobId) -> Batch {
        let spec = Arc::new(JobSpec::command(vec!["true".into()]));
        let submitted = Submitted { spec, retention_ms: 1, began_us: None };
        let submitted = self.seal(Some(job), Body::Submitted(submitted));
        let birth = Some(submitted.fact.dot.clone());
        let reason = Reason { reason: "a test".into() };
        let cancelled = self.seal(Some(job), Body::Cancelled(reason));
        let state = Some(JobState::Cancelled);
        let row = JobRow { job, birth, generation: 1, state, digest: None };
        Batch { facts: vec![submitted, cancelled], rows: vec![row] }
    }

    pub(super) fn commit(&self, batch: Batch) -> Result<(), Arc<StoreError>> {
        let (done, is_done) = mpsc::channel();
        self.writer.commit(batch, Box::new(move |result| drop(done.send(result))));
        is_done.recv().expect("every commit is answered")
    }

    fn books(&self) -> StoredBooks {
        let (done, is_done) = mpsc::channel();
        self.writer.books(Box::new(move |books| drop(done.send(books))));
        is_done.recv().expect("answered").expect("readable")
    }
}

pub(super) fn one(fact: SealedFact) -> Batch {
    Batch { facts: vec![fact], rows: vec![] }
}

pub(super) fn directory() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory")
}

pub(super) fn jobs(count: usize) -> Vec<JobId> {
    let mut rng = Rng::from_seed(5);
    (0..count).map(|_| JobId::random(WallTime(0), &mut rng)).collect()
}

/// Runs one statement on a store behind its back.
pub(super) fn meddle(data: &Path, statement: &str) {
    let connection = Connection::open(data.join(STORE_NAME)).expect("a file");
    let changed = connection.execute(statement, []).expect(statement);
    assert_eq!(changed, 1, "{statement}");
}

/// A store of a log with this many facts.
fn filled(facts: usize) -> (tempfile::TempDir, Vec<SealedFact>) {
    let data = directory();
    let mut life = Life::begin(data.path());
    let facts: Vec<_> = (0..facts).map(|_| life.joined()).collect();
    life.commit(Batch { facts: facts.clone(), rows: vec![] }).expect("committed");
    (data, facts)
}

#[test]
fn what_is_committed_is_there_after_a_restart_in_its_order() {
    let data = directory();
    let mut written = vec![];
    for _ in 0..3 {
        let mut life = Life::begin(data.path());
        let before = life.head.seq;
        assert_eq!(before, written.len() as u64, "the log goes on");
        for _ in 0..5 {
            let fact = life.joined();
            written.push(fact.clone());
            life.commit(one(fact)).expect("committed");
        }
    }
    let store = Store::open(data.path(), Durability::Fsync).expect("a store");
    let mut loaded = vec![];
    let logs = store.load(|fact| {
        loaded.push(fact.clone());
        Ok(())
    });
    assert_eq!(loaded, written);
    let last = written.last().expect("some");
    let head = Head { seq: 15, chain: last.chain };
    assert_eq!(logs.expect("whole").head(&last.fact.dot.log), head);
    assert_eq!(store.last_own_log().expect("readable"), Some((last.fact.dot.log.clone(), head)));
    assert_eq!(store.chain_at(&last.fact.dot.log, 15).expect("readable"), Some(last.chain));
    assert_eq!(store.chain_at(&last.fact.dot.log, 16).expect("readable"), None);
}

#[test]
fn group_commit_keeps_the_order_and_answers_all() {
    let data = directory();
    let mut life = Life::begin(data.path());
    let answered = Arc::new(Mutex::new(vec![]));
    let ids = jobs(500);
    for (index, job) in ids.iter().enumerate() {
        let batch = life.job(*job);
        let answered = Arc::clone(&answered);
        let done = move |result: Result<(), _>| {
            result.expect("committed");
            answered.lock().expect("no panic").push(index);
        };
        life.writer.commit(batch, Box::new(done));
    }
    let books = life.books();
    assert_eq!(books.vector[&life.log], 1000);
    let states: BTreeMap<_, _> = [(JobState::Cancelled, 500)].into();
    assert_eq!(books.states, [(life.log.clone(), states)].into());
    assert!(answered.lock().expect("no panic").iter().copied().eq(0..500));
}

#[test]
fn the_last_row_of_a_job_stands() {
    let data = directory();
    let mut life = Life::begin(data.path());
    let job = jobs(1)[0];
    let batch = life.job(job);
    let row = batch.rows[0].clone();
    let waits = JobRow { state: Some(JobState::Waiting), ..row.clone() };
    let digest = Some(Digest::of(b"a result"));
    let ended = JobRow { state: Some(JobState::Succeeded), digest, generation: 2, ..row };
    life.commit(Batch { rows: vec![waits.clone(), ended.clone(), waits.clone()], ..batch })
        .expect("committed");
    let states = |state| BTreeMap::from([(state, 1)]);
    assert_eq!(life.books().states[&life.log], states(JobState::Waiting));
    life.commit(Batch { rows: vec![ended], facts: vec![] }).expect("committed");
    assert_eq!(life.books().states[&life.log], states(JobState::Succeeded));
}

#[test]
fn i5_a_dot_is_never_written_twice_and_no_gap_is_left() {
    for skipped in [0, 2] {
        let data = directory();
        let mut life = Life::begin(data.path());
        let first = life.joined();
        life.commit(one(first)).expect("committed");
        life.head.seq = skipped;
        let wrong = one(life.joined());
        let error = life.commit(wrong).expect_err("not the next");
        assert!(matches!(&*error, StoreError::Order { .. }), "{error}");
    }
}

#[test]
fn nothing_leaves_when_continuity_cannot_be_kept() {
    let data = directory();
    let (store, _claim) = opened(data.path(), data.path());
    // Nothing is mapped where the head would be written, so that each write is an error.
    let broken = Continuity::at("/proc/self/mem", "north-00000001".parse().expect("a log"));
    let mut life = Life::begin_with(store, broken);
    let batch = one(life.joined());
    let error = life.commit(batch).expect_err("the head cannot be written");
    assert!(matches!(&*error, StoreError::Continuity(_)), "{error}");
    let batch = one(life.joined());
    assert!(life.commit(batch).is_err(), "nothing more is taken");
}

#[test]
fn a_full_run_directory_is_waited_for_and_nothing_leaves_meanwhile() {
    let data = directory();
    let (store, _claim) = opened(data.path(), data.path());
    // Every write to this device fails as on a full disk.
    let full = Continuity::at("/dev/full", "north-00000001".parse().expect("a log"));
    let mut life = Life::begin_with(store, full);
    let mut disk = life.writer.disk();
    let batch = one(life.joined());
    let (done, told) = std::sync::mpsc::channel();
    life.writer.commit(batch, Box::new(move |result| done.send(result).expect("it is heard")));
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let stalled = disk.wait_for(|disk| *disk == Disk::Stalled);
    assert!(runtime.block_on(stalled).is_ok());
    assert!(told.try_recv().is_err(), "nothing is said while it waits");
    drop(life);
    let error = told.recv().expect("an answer").expect_err("nobody waits any more");
    assert!(error.is_full(), "{error}");
}

#[test]
fn a18_a_copy_of_the_store_begins_a_fresh_log() {
    let (data, run_dir, copy) = (directory(), directory(), directory());
    let begin = |data: &Path| {
        let (store, claim) = opened(data, run_dir.path());
        Life::begin_with(store, claim)
    };
    let mut life = begin(data.path());
    let old = life.log.clone();
    let batch = one(life.joined());
    life.commit(batch).expect("committed");
    drop(life);
    let file = |data: &Path| data.join(STORE_NAME);
    std::fs::copy(file(data.path()), file(copy.path())).expect("copied");
    let mut life = begin(data.path());
    assert_eq!(life.log, old);
    assert_ne!(begin(copy.path()).log, old, "the first one lives");
    let batch = one(life.joined());
    life.commit(batch).expect("committed");
    drop(life);
    std::fs::copy(file(copy.path()), file(data.path())).expect("restored");
    assert_ne!(begin(data.path()).log, old, "the backup lacks a fact that was written");
}

#[test]
fn a20_a_changed_byte_is_found() {
    let (data, facts) = filled(3);
    let log = &facts[0].fact.dot.log;
    let name = "substr(line, 1, 60) || '!' || substr(line, 62)";
    for (column, value) in [
        ("line", name),
        ("line", "line || ' '"),
        ("line", "substr(line, 2)"),
        ("line", "x'ff'"),
        ("chain", "x'00'"),
        ("chain", "zeroblob(32)"),
        ("seq", "7"),
        ("log", "7"),
    ] {
        let copy = directory();
        std::fs::copy(data.path().join(STORE_NAME), copy.path().join(STORE_NAME)).expect("copied");
        meddle(copy.path(), &format!("UPDATE facts SET {column} = {value} WHERE id = 2"));
        let store = Store::open(copy.path(), Durability::Os).expect("the tables are whole");
        let error = store.load(|_| Ok(())).expect_err(value);
        assert!(matches!(error, StoreError::Damaged { row: 2, .. }), "{column} {value}: {error}");
        assert!(std::error::Error::source(&error).is_some(), "{log}: it says what");
    }
}

#[test]
fn a20_a_missing_fact_is_found() {
    let (data, _) = filled(3);
    meddle(data.path(), "DELETE FROM facts WHERE id = 2");
    let store = Store::open(data.path(), Durability::Os).expect("the tables are whole");
    let error = store.load(|_| Ok(())).expect_err("there is a gap");
    assert!(matches!(error, StoreError::Damaged { row: 3, .. }), "{error}");
    let books = reader::count_books(&store.connection).expect("readable");
    assert_eq!(books.vector.into_values().collect::<Vec<_>>(), [1], "only what is contiguous");
}

#[test]
fn a21_a_torn_log_of_the_last_commit_is_cut_at_every_byte_class() {
    let data = directory();
    let mut life = Life::begin(data.path());
    let first = one(life.joined());
    life.commit(first).expect("committed");
    let wal = data.path().join("broker.db-wal");
    let before = wal.metadata().expect("it is there").len();
    let second = one(life.joined());
    life.commit(second).expect("committed");
    let whole = std::fs::read(&wal).expect("readable");
    let after = whole.len();
    let before = usize::try_from(before).expect("small");
    assert!(after > before);
    for cut in (before..after).step_by(509).chain([before, after - 1, after]) {
        let copy = directory();
        let copied = copy.path().join(STORE_NAME);
        std::fs::copy(data.path().join(STORE_NAME), copied).expect("copied");
        std::fs::write(copy.path().join("broker.db-wal"), &whole[..cut]).expect("written");
        let store = Store::open(copy.path(), Durability::Os).expect("the torn end is cut");
        let logs = store.load(|_| Ok(())).expect("the rest is whole");
        let expected = if cut == after { 2 } else { 1 };
        assert_eq!(logs.head(&life.log).seq, expected, "cut at {cut} of {before}..{after}");
    }
}

#[test]
fn a_newer_store_and_a_foreign_file_are_refused_and_not_touched() {
    let (data, _) = filled(1);
    let path = data.path().join(STORE_NAME);
    let refused = || {
        let before = std::fs::read(&path).expect("readable");
        let error = Store::open(data.path(), Durability::Fsync).expect_err("refused");
        let reader = Reader::open(data.path()).expect_err("refused").to_string();
        assert_eq!(reader, error.to_string());
        assert_eq!(std::fs::read(&path).expect("readable"), before);
        error
    };
    meddle(data.path(), "UPDATE meta SET value = '2' WHERE key = 'schema'");
    assert!(matches!(refused(), StoreError::Newer { found: 2, .. }));
    meddle(data.path(), "UPDATE meta SET value = 'x' WHERE key = 'schema'");
    assert!(matches!(refused(), StoreError::Foreign(_)));
    Connection::open(&path).expect("a file").execute_batch("DROP TABLE meta").expect("dropped");
    assert!(matches!(refused(), StoreError::Foreign(_)));
    std::fs::write(&path, "something else ".repeat(100)).expect("written");
    assert!(matches!(refused(), StoreError::Open { .. }));
}

#[test]
fn a_reader_sees_what_is_committed_by_dot_by_commit_and_sorted() {
    let data = directory();
    let mut life = Life::begin(data.path());
    let ids = jobs(3);
    let mut written = vec![];
    for job in &ids {
        let batch = life.job(*job);
        written.extend(batch.facts.clone());
        life.commit(batch).expect("committed");
    }
    let reader = Reader::open(data.path()).expect("a store");
    let dot = &written[3].fact.dot;
    assert_eq!(reader.fact(dot).expect("readable").as_ref(), Some(&written[3]));
    let absent = Dot { seq: 99, ..dot.clone() };
    assert_eq!(reader.fact(&absent).expect("readable"), None);
    let after = reader.facts_after(2, 3).expect("readable");
    let expected = (3..).zip(written[2..5].iter().cloned()).collect::<Vec<_>>();
    assert_eq!(after, expected);
    let of_job = reader.entries_after(0, 100).expect("readable");
    let of_job = of_job.iter().filter(|entry| entry.is_about(&ids[1]));
    assert!(of_job.map(|entry| entry.parse().expect("whole")).eq(written[2..4].iter().cloned()));
    let batch = life.job(ids[0]);
    written.extend(batch.facts.clone());
    life.commit(batch).expect("committed");
    assert_eq!(reader.facts_after(6, 9).expect("readable").len(), 2, "and what comes later");
}

#[test]
fn facts_of_several_logs_are_sorted_by_dot_in_pages() {
    let data = directory();
    let mut written = vec![];
    for (seed, facts) in [(1, 3), (2, 2), (3, 4)] {
        let store = Store::open(data.path(), Durability::Os).expect("a store");
        let run_dir = directory();
        let start = Start { run_dir: run_dir.path(), name: "b", boot_id: "a boot", seed };
        let claim = prove(&start, None, |_, _| None).expect("a log").continuity;
        let mut life = Life::begin_with(store, claim);
        let facts: Vec<_> = (0..facts).map(|_| life.joined()).collect();
        written.extend(facts.iter().map(|fact| fact.fact.dot.clone()));
        life.commit(Batch { facts, rows: vec![] }).expect("committed");
    }
    written.sort();
    let reader = Reader::open(data.path()).expect("a store");
    for limit in 1..=10 {
        let (mut found, mut after) = (vec![], None);
        loop {
            let page = reader.entries_sorted(after.as_ref(), limit).expect("readable");
            assert!(page.len() <= limit);
            let Some(last) = page.last() else { break };
            after = Some(last.dot.clone());
            found.extend(page.into_iter().map(|entry| entry.dot));
        }
        assert_eq!(found, written, "pages of {limit}");
    }
}
