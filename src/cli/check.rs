//! `ucp-broker check`: recomputes everything from the facts of a broker that does not run.
//!
//! Verifies the tables, each log's chain and dots, each fact's own clock entry and causes, the job
//! table against the fold, and each blob against its name. Changes nothing, asks no broker; while
//! one works on the data directory it is refused.
//! Shapes: one line a fault, `{"type":"fault","fault":"chain","dot":["north-7f3a51c2",41],…}`, and
//! always, at the end, `{"type":"check","ok":true,"facts":120,"jobs":30,"blobs":2,"faults":0}`.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::cli::exit::Exit;
use crate::cli::output;
use crate::cli::report::{Failure, chain};
use crate::proto::id::{Dot, JobId};
use crate::runtime::blobs::{self, BLOBS_NAME, BlobError};
use crate::runtime::rundir::{DirError, lock_data};
use crate::runtime::store::{Checked, Fault, STORE_NAME, Store, StoreError};

/// Why a store was not checked, or not to the end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckError {
    /// There is no store in the directory. Trying again cannot help.
    #[error("there is no store {}", .0.display())]
    Absent(PathBuf),
    /// A broker works on the data directory, or the directory cannot be locked.
    #[error(transparent)]
    Directory(#[from] DirError),
    /// The store cannot be opened or read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The blobs cannot be read.
    #[error(transparent)]
    Blobs(#[from] BlobError),
    /// What was found cannot be told.
    #[error("cannot write what was found")]
    Output(#[source] io::Error),
}

impl From<CheckError> for Failure {
    fn from(error: CheckError) -> Self {
        match error {
            CheckError::Directory(error @ DirError::InUse { .. }) => Self::from(error)
                .while_doing("cannot check while a broker runs")
                .hint("stop the broker, or ask the running one with 'ucp-broker audit'"),
            CheckError::Directory(error) => error.into(),
            CheckError::Store(error) => (&error).into(),
            CheckError::Absent(_) => Self::new(Exit::Absent, &error)
                .hint("say where the broker's data are with --data DIR"),
            CheckError::Blobs(error) => Self::new(Exit::from(&error), chain(&error)),
            CheckError::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => Self::quiet(),
            CheckError::Output(_) => Self::new(Exit::Io, chain(&error)),
        }
    }
}

#[derive(Serialize)]
struct FaultLine<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    fault: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    row: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dot: Option<&'a Dot>,
    #[serde(skip_serializing_if = "Option::is_none")]
    job: Option<JobId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    detail: &'a str,
}

#[derive(Serialize)]
struct CheckLine {
    #[serde(rename = "type")]
    kind: &'static str,
    ok: bool,
    facts: u64,
    jobs: u64,
    blobs: u64,
    faults: u64,
}

/// Lines to `out`, with the first failure to write kept for the end.
struct Teller<'a> {
    out: &'a mut dyn Write,
    failure: Option<io::Error>,
}

impl Teller<'_> {
    fn tell(&mut self, line: &impl Serialize) {
        if self.failure.is_none() {
            let mut text = serde_json::to_vec(line).expect("our lines have only string keys");
            text.push(b'\n');
            self.failure = self.out.write_all(&text).and_then(|()| self.out.flush()).err();
        }
    }

    fn fault(&mut self, fault: &Fault) {
        let (row, dot, job) = (fault.row, fault.dot.as_ref(), fault.job);
        let detail = &fault.detail;
        let kind = "fault";
        self.tell(&FaultLine { kind, fault: fault.kind, row, dot, job, path: None, detail });
    }

    fn blob(&mut self, path: &Path, detail: &str) {
        let path = Some(path.display().to_string());
        let (row, dot, job) = (None, None, None);
        self.tell(&FaultLine { kind: "fault", fault: "blob", row, dot, job, path, detail });
    }
}

/// Checks a data directory; one line for each fault and one for the whole go to `out`. Returns
/// whether there was no fault.
///
/// # Errors
/// [`CheckError`]; there is no line for the whole then.
pub fn run(data: &Path, out: &mut dyn Write) -> Result<bool, CheckError> {
    let store = data.join(STORE_NAME);
    if !store.exists() {
        return Err(CheckError::Absent(store));
    }
    let _lock = lock_data(data)?;
    let mut teller = Teller { out, failure: None };
    let checked = check_store(data, &mut teller)?;
    let mut bad = 0;
    let blobs = blobs::verify(&data.join(BLOBS_NAME), |path, why| {
        bad += 1;
        teller.blob(path, &why);
    })?;
    let faults = checked.faults + bad;
    let Checked { facts, jobs, .. } = checked;
    let ok = faults == 0;
    teller.tell(&CheckLine { kind: "check", ok, facts, jobs, blobs, faults });
    match teller.failure {
        Some(error) => Err(CheckError::Output(error)),
        None => Ok(ok),
    }
}

/// A file so damaged that it cannot be opened is a fault too.
fn check_store(data: &Path, teller: &mut Teller<'_>) -> Result<Checked, CheckError> {
    let store = match Store::open_existing(data) {
        Err(error) if error.is_damage() => {
            let detail = chain(&error);
            teller.fault(&Fault { kind: "database", row: None, dot: None, job: None, detail });
            return Ok(Checked { faults: 1, ..Checked::default() });
        }
        opened => opened?,
    };
    Ok(store.check(&mut |fault| teller.fault(&fault))?)
}

/// The whole command: checks, tells it on stdout, and says how to end.
///
/// # Errors
/// What kept it from being checked.
pub fn command(data: &Path) -> Result<Exit, Failure> {
    let ok = run(data, &mut Stdout)?;
    Ok(if ok { Exit::Done } else { Exit::No })
}

/// Standard output as `cli::output` writes it.
struct Stdout;

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = std::str::from_utf8(bytes).map_err(io::Error::other)?;
        match output::text(text) {
            Ok(()) => Ok(bytes.len()),
            Err(output::OutputError::Closed) => Err(io::ErrorKind::BrokenPipe.into()),
            Err(output::OutputError::Write(_, error)) => Err(error),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
