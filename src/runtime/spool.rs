//! Results on disk until a broker has them.
//!
//! One file a result, `LOG.SEQ.json` of its attempt: written beside, synced, renamed, and the
//! directory synced, so that it is there whole or not at all. Holds nothing in memory.
//! A file that cannot be read is set aside under another name and told, never removed; one of a
//! newer version is left as it is. Neither keeps the executor from starting.
//! Law: what [`Spool::write`] returned for is what [`Spool::open`] gives after any crash.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::proto::id::AttemptId;
use crate::proto::message::ResultMessage;

/// The version of the files.
const SPOOL_VERSION: u32 = 1;
/// The extension of a file that is being written.
const BESIDE: &str = "new";

#[derive(Serialize, Deserialize)]
struct Spooled {
    v: u32,
    result: ResultMessage,
}

#[derive(Deserialize)]
struct Versioned {
    v: u32,
}

/// Why a result is not on disk.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpoolError {
    /// A file or directory could not be used. The result is not on disk; trying again may help.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SpoolError {
    let path = path.to_owned();
    move |source| SpoolError::Io { what, path, source }
}

/// The directory of the results.
#[derive(Debug, Clone)]
pub struct Spool {
    directory: PathBuf,
}

impl Spool {
    /// Opens a directory, which must exist, and reads the results that an earlier life left.
    ///
    /// # Errors
    /// The directory cannot be read. A damaged file is no error.
    pub fn open(directory: PathBuf) -> Result<(Self, Vec<ResultMessage>), SpoolError> {
        let mut results = vec![];
        let entries = directory.read_dir().map_err(failed("read", &directory))?;
        for entry in entries {
            let path = entry.map_err(failed("read", &directory))?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                results.extend(read(&path)?);
            } else if path.extension().is_some_and(|extension| extension == BESIDE) {
                // It was not whole when that life ended.
                std::fs::remove_file(&path).map_err(failed("remove", &path))?;
            }
        }
        results.sort_by(|a: &ResultMessage, b| a.attempt.cmp(&b.attempt));
        Ok((Self { directory }, results))
    }

    /// Makes results durable, and the output files that they speak of, all at once.
    ///
    /// # Errors
    /// [`SpoolError`]; some may be durable.
    pub fn write(&self, results: &[ResultMessage], outputs: &[PathBuf]) -> Result<(), SpoolError> {
        for path in outputs {
            let synced = File::open(path).and_then(|file| file.sync_all());
            synced.map_err(failed("sync", path))?;
        }
        if let Some(directory) = outputs.first().and_then(|path| path.parent()) {
            sync_directory(directory)?;
        }
        for result in results {
            let path = self.path(&result.attempt);
            let beside = path.with_extension(BESIDE);
            let spooled = Spooled { v: SPOOL_VERSION, result: result.clone() };
            let text = serde_json::to_vec(&spooled).expect("a result has only string keys");
            let mut options = File::options();
            options.write(true).create(true).truncate(true).mode(0o600);
            let written = options.open(&beside).and_then(|mut file| {
                file.write_all(&text)?;
                file.sync_all()
            });
            if let Err(error) = written {
                // A piece of it would stay where the disk is full for a while.
                let _ = std::fs::remove_file(&beside);
                return Err(failed("write", &beside)(error));
            }
            std::fs::rename(&beside, &path).map_err(failed("rename", &beside))?;
        }
        sync_directory(&self.directory)
    }

    /// Removes a result. If that is lost in a crash it is sent once more, which changes nothing.
    ///
    /// # Errors
    /// [`SpoolError`]; it is still there.
    pub fn remove(&self, attempt: &AttemptId) -> Result<(), SpoolError> {
        let path = self.path(attempt);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed("remove", &path)(error))
            }
            _ => Ok(()),
        }
    }

    fn path(&self, attempt: &AttemptId) -> PathBuf {
        self.directory.join(format!("{attempt}.json"))
    }
}

fn sync_directory(path: &Path) -> Result<(), SpoolError> {
    let synced = File::open(path).and_then(|directory| directory.sync_all());
    synced.map_err(failed("sync", path))
}

/// Reads one file; nothing where it is damaged or newer.
fn read(path: &Path) -> Result<Option<ResultMessage>, SpoolError> {
    let bytes = std::fs::read(path).map_err(failed("read", path))?;
    match serde_json::from_slice::<Versioned>(&bytes) {
        Ok(Versioned { v }) if v > SPOOL_VERSION => {
            tracing::error!("{} is of version {v}, made by a newer ucp-exec; left", path.display());
            return Ok(None);
        }
        _ => {}
    }
    match serde_json::from_slice::<Spooled>(&bytes) {
        Ok(spooled) => Ok(Some(spooled.result)),
        Err(error) => {
            let aside = path.with_extension("json.damaged");
            tracing::error!("{} is damaged ({error}); kept as {}", path.display(), aside.display());
            std::fs::rename(path, &aside).map_err(failed("rename", path))?;
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::clock::Clock;
    use crate::proto::id::JobId;
    use crate::proto::result::{JobResult, Stream};

    fn result(attempt: &str) -> ResultMessage {
        let stdout = Stream::inline(b"text".to_vec());
        ResultMessage {
            attempt: attempt.parse().expect("an attempt"),
            job: JobId(uuid::Uuid::from_u128(7)),
            generation: 1,
            result: JobResult { exit: Some(0), stdout, ..JobResult::default() },
            clock: Clock::default(),
            took_us: None,
            carried: vec![],
        }
    }

    #[test]
    fn results_come_back_in_order_until_they_are_removed() {
        let directory = tempfile::tempdir().expect("a directory");
        let open = || Spool::open(directory.path().to_owned()).expect("a spool");
        let (spool, left) = open();
        assert!(left.is_empty());
        let both = [result("north-1.2"), result("north-1.1")];
        spool.write(&both, &[]).expect("room");
        let (_, left) = open();
        assert_eq!(left, [both[1].clone(), both[0].clone()]);
        spool.remove(&both[0].attempt).expect("it is there");
        spool.remove(&both[0].attempt).expect("a second time changes nothing");
        assert_eq!(open().1, [both[1].clone()]);
    }

    #[test]
    fn a20_every_truncation_is_set_aside_and_the_rest_is_read() {
        let directory = tempfile::tempdir().expect("a directory");
        let open = || Spool::open(directory.path().to_owned()).expect("a spool");
        let (spool, _) = open();
        let good = result("north-1.1");
        spool.write(&[good.clone(), result("north-1.2")], &[]).expect("room");
        let damaged = directory.path().join("north-1.2.json");
        let whole = std::fs::read(&damaged).expect("it is there");
        for cut in 0..whole.len() {
            std::fs::write(&damaged, &whole[..cut]).expect("room");
            assert_eq!(open().1, std::slice::from_ref(&good), "cut at {cut}");
            assert!(!damaged.exists());
        }
        assert!(directory.path().join("north-1.2.json.damaged").exists());
    }

    #[test]
    fn what_was_being_written_when_a_life_ended_is_removed() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("north-1.1.new");
        std::fs::write(&path, r#"{"v":1,"res"#).expect("room");
        let (_, left) = Spool::open(directory.path().to_owned()).expect("a spool");
        assert!(left.is_empty() && !path.exists());
    }

    #[test]
    fn a_newer_file_is_left_as_it_is() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("north-1.1.json");
        std::fs::write(&path, r#"{"v":2,"what":"ever"}"#).expect("room");
        let (_, left) = Spool::open(directory.path().to_owned()).expect("a spool");
        assert!(left.is_empty() && path.exists());
    }
}
