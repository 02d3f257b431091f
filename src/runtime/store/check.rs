//! Recomputes everything in a store from its facts.
//!
//! It changes nothing and heals nothing. It goes on behind a fault as if what is stored there were
//! right, so that each fault is told once. It holds the facts of all jobs in memory, as a broker
//! does, without the outputs of results.
//! Law: a store that only its writer wrote has no fault, wherever the writer was killed; each kind
//! of change behind its back is found (tests in `store/check/tests.rs`, `tests/store.rs`).

use std::collections::BTreeMap;

use rusqlite::OptionalExtension;

use super::rows::{self, FactRow};
use super::{Damage, Store, StoreError};
use crate::proto::clock::Clock;
use crate::proto::fact::{Body, Fact, FactError, chain_next, chain_start};
use crate::proto::fold::JobFacts;
use crate::proto::id::{Digest, Dot, JobId, LogId};
use crate::proto::log::Head;
use crate::proto::view::{JobRow, JobState};

#[cfg(test)]
mod tests;

/// Something in a store that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The kind, as a stable word: `database`, `fact`, `gap`, `chain`, `cause`, `first`, `job` or
    /// `log`.
    pub kind: &'static str,
    /// The row of the fact, counted in the order of commits.
    pub row: Option<i64>,
    /// The fact.
    pub dot: Option<Dot>,
    /// The job.
    pub job: Option<JobId>,
    /// What is wrong, in words.
    pub detail: String,
}

impl Fault {
    fn new(kind: &'static str, detail: impl Into<String>) -> Self {
        Self { kind, row: None, dot: None, job: None, detail: detail.into() }
    }
}

/// What was checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Checked {
    /// Facts.
    pub facts: u64,
    /// Jobs that facts speak of.
    pub jobs: u64,
    /// Faults found.
    pub faults: u64,
}

impl Store {
    /// Recomputes everything from the facts and tells each fault to `report`.
    ///
    /// # Errors
    /// [`StoreError::Read`] where the disk fails; damage is a fault, not an error.
    pub fn check(&self, report: &mut dyn FnMut(Fault)) -> Result<Checked, StoreError> {
        let mut check = Check {
            report,
            checked: Checked::default(),
            heads: BTreeMap::new(),
            held: Clock::new(),
            jobs: BTreeMap::new(),
        };
        check.part(self, Check::tables)?;
        check.part(self, Check::facts)?;
        check.checked.jobs = check.jobs.len() as u64;
        check.part(self, Check::job_table)?;
        check.part(self, Check::own_log)?;
        Ok(check.checked)
    }
}

struct Check<'a> {
    report: &'a mut dyn FnMut(Fault),
    checked: Checked,
    heads: BTreeMap<LogId, Head>,
    /// For each log the greatest seq so far, to compare clocks with.
    held: Clock,
    jobs: BTreeMap<JobId, JobFacts>,
}

impl Check<'_> {
    fn fault(&mut self, fault: Fault) {
        self.checked.faults += 1;
        (self.report)(fault);
    }

    /// Runs one part; a file too damaged to be read on is a fault, and the next part still runs.
    fn part(
        &mut self,
        store: &Store,
        part: fn(&mut Self, &Store) -> rusqlite::Result<()>,
    ) -> Result<(), StoreError> {
        match part(self, store).map_err(|source| store.unreadable(source)) {
            Err(StoreError::Read { source, .. }) if super::is_damage(&source) => {
                self.fault(Fault::new("database", source.to_string()));
                Ok(())
            }
            result => result,
        }
    }

    /// Has SQLite check its own trees and indexes.
    fn tables(&mut self, store: &Store) -> rusqlite::Result<()> {
        let mut statement = store.connection.prepare("PRAGMA integrity_check")?;
        let mut found = statement.query([])?;
        while let Some(row) = found.next()? {
            let text: String = row.get(0)?;
            if text != "ok" {
                self.fault(Fault::new("database", text));
            }
        }
        Ok(())
    }

    fn facts(&mut self, store: &Store) -> rusqlite::Result<()> {
        rows::each(&store.connection, |row| {
            self.checked.facts += 1;
            self.fact(&row);
            Ok::<(), std::convert::Infallible>(())
        })
        .map(|_| ())
    }

    fn fact(&mut self, row: &FactRow<'_>) {
        let dot = match row.dot() {
            Ok(dot) => dot,
            Err(damage) => return self.fact_fault(row, None, "fact", &damage.to_string()),
        };
        let wrong = |column| Damage::Column(column).to_string();
        let Some(line) = row.line else {
            self.fact_fault(row, Some(&dot), "fact", &wrong("line"));
            return self.advance(&dot, row.chain);
        };
        if row.chain.is_none() {
            self.fact_fault(row, Some(&dot), "fact", &wrong("chain"));
        }
        self.place(row, &dot, line);
        match Fact::parse(line) {
            Err(FactError::OwnEntry { dot: said, entry }) => {
                let text = FactError::OwnEntry { dot: said, entry }.to_string();
                self.fact_fault(row, Some(&dot), "cause", &text);
            }
            Err(error) => self.fact_fault(row, Some(&dot), "fact", &error.to_string()),
            Ok(fact) => self.content(row, &dot, fact),
        }
    }

    fn fact_fault(&mut self, row: &FactRow<'_>, dot: Option<&Dot>, kind: &'static str, why: &str) {
        let (row, dot) = (Some(row.id), dot.cloned());
        self.fault(Fault { row, dot, ..Fault::new(kind, why) });
    }

    /// Goes on behind a fact as if it were right.
    fn advance(&mut self, dot: &Dot, chain: Option<Digest>) {
        self.held.raise_to(dot);
        let chain = chain.unwrap_or_else(|| chain_start(&dot.log));
        self.heads.insert(dot.log.clone(), Head { seq: dot.seq, chain });
    }

    /// Checks that the fact is the next of its log and that the chain goes on with its line.
    fn place(&mut self, row: &FactRow<'_>, dot: &Dot, line: &str) {
        let start = Head { seq: 0, chain: chain_start(&dot.log) };
        let head = self.heads.get(&dot.log).copied().unwrap_or(start);
        let chain = chain_next(&head.chain, line);
        if dot.seq != head.seq + 1 {
            let why = format!("it follows seq {} of its log", head.seq);
            self.fact_fault(row, Some(dot), "gap", &why);
        } else if row.chain.is_some_and(|stored| stored != chain) {
            let why = "the chain hash does not follow from the line and the hash before it";
            self.fact_fault(row, Some(dot), "chain", why);
        }
        self.advance(dot, row.chain.or(Some(chain)));
    }

    /// Checks what the fact says about its place, and keeps it for the fold.
    fn content(&mut self, row: &FactRow<'_>, dot: &Dot, fact: Fact) {
        if fact.dot != *dot {
            let damage = Damage::Misplaced { line: fact.dot, kept: dot.clone() };
            return self.fact_fault(row, Some(dot), "fact", &damage.to_string());
        }
        if !fact.clock.at_most(&self.held) {
            let why = "its clock counts facts that were not held when it was committed";
            self.fact_fault(row, Some(dot), "cause", why);
        }
        if dot.seq == 1 && !matches!(fact.body, Body::Joined(_)) {
            let why = format!("its log begins with `{}`, not with `joined`", fact.body.kind());
            self.fact_fault(row, Some(dot), "first", &why);
        }
        if let Some(job) = fact.job {
            let held = self.jobs.entry(job).or_default();
            held.insert(fact.into());
            held.strip(dot);
        }
    }

    /// Compares the job table with what the facts say.
    fn job_table(&mut self, store: &Store) -> rusqlite::Result<()> {
        let query = "SELECT j.job, l.name, j.birth_seq, j.generation, j.state, j.digest, \
             j.birth_log FROM jobs j LEFT JOIN logs l ON l.id = j.birth_log";
        let mut statement = store.connection.prepare(query)?;
        let mut rows = statement.query([])?;
        let mut jobs = std::mem::take(&mut self.jobs);
        while let Some(row) = rows.next()? {
            let Ok(bytes) = row.get::<_, [u8; 16]>(0) else {
                self.fault(Fault::new("job", "a row of the job table names no job"));
                continue;
            };
            let job = JobId(uuid::Uuid::from_bytes(bytes));
            let table = table_row(job, row).map_or_else(|_| "no row of ours".into(), |r| said(&r));
            let facts = jobs.remove(&job).map(|facts| said(&facts.row(job)));
            let facts = facts.unwrap_or_else(|| "nothing".into());
            if table != facts {
                self.job_fault(job, &table, &facts);
            }
        }
        for (job, facts) in jobs {
            self.job_fault(job, "nothing", &said(&facts.row(job)));
        }
        Ok(())
    }

    fn job_fault(&mut self, job: JobId, table: &str, facts: &str) {
        let detail = format!("the job table says {table}; the facts say {facts}");
        self.fault(Fault { job: Some(job), ..Fault::new("job", detail) });
    }

    /// The log that was written last must be noted, and must be there.
    fn own_log(&mut self, store: &Store) -> rusqlite::Result<()> {
        let query = "SELECT value FROM meta WHERE key = 'own_log'";
        let read = |row: &rusqlite::Row<'_>| row.get::<_, String>(0);
        let noted = store.connection.query_row(query, [], read).optional()?;
        let is_held = |log: &String| self.heads.keys().any(|held| held.as_str() == log);
        match noted {
            Some(log) if !is_held(&log) => {
                self.fault(Fault::new("log", format!("of its own log {log:?} nothing is held")));
            }
            None if !self.heads.is_empty() => {
                self.fault(Fault::new("log", "which log it wrote last is not noted"));
            }
            _ => {}
        }
        Ok(())
    }
}

fn table_row(job: JobId, row: &rusqlite::Row<'_>) -> rusqlite::Result<JobRow> {
    let birth = match row.get::<_, Option<i64>>(6)? {
        Some(_) => Some(Dot { log: rows::log(row, 1)?, seq: rows::seq(row, 2)? }),
        None => None,
    };
    let word: Option<String> = row.get(4)?;
    let state = match word {
        None => None,
        Some(word) => {
            let state = JobState::ALL.into_iter().find(|state| state.word() == word);
            Some(state.ok_or(rusqlite::Error::InvalidQuery)?)
        }
    };
    let digest = row.get::<_, Option<[u8; 32]>>(5)?.map(Digest);
    Ok(JobRow { job, birth, generation: row.get(3)?, state, digest })
}

/// A row in words; equal rows have equal words.
fn said(row: &JobRow) -> String {
    let birth = row.birth.as_ref().map_or("no birth".into(), |dot| format!("born as {dot}"));
    let state = row.state.map_or("no state", JobState::word);
    let digest = row.digest.map_or("no result".into(), |digest| format!("result {digest}"));
    format!("{state}, generation {}, {birth}, {digest}", row.generation)
}
