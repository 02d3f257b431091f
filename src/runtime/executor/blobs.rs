//! Contents too long for a message: outputs on their way to a broker, blobs from one.
//!
//! An output's file is named after its attempt and stays until the result is acknowledged, so
//! that any broker, also after a restart, can be given it before the result that names it.
//! What comes is kept for further jobs (cache.rs).

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use tokio::sync::Notify;

use crate::proto::id::{AttemptId, Digest};
use crate::proto::limits;
use crate::proto::message::{ExecutorMessage, ResultMessage};
use crate::runtime::attempt::outputs::Place;
use crate::runtime::endpoint::Address;
use crate::runtime::process::stdin::Fetch;
use crate::runtime::transfer::{self, TransferError};

use super::cache::Cache;
use super::session::Session;

/// The files with what is not in the result itself.
fn blobs(directory: &Path, message: &ResultMessage) -> Vec<(PathBuf, Digest)> {
    let result = &message.result;
    let streams = [("stdout", result.stdout.blob), ("stderr", result.stderr.blob)];
    let stream = |(name, digest): (&str, Option<Digest>)| {
        Some((directory.join(format!("{}.{name}", message.attempt)), digest?))
    };
    let place = Place::new(directory, &message.attempt);
    let outputs = result.outputs.values().enumerate().map(|(n, file)| (place.file(n), file.blob));
    streams.into_iter().filter_map(stream).chain(outputs).collect()
}

/// Whether some of it is not in the result itself.
pub(super) fn is_long(message: &ResultMessage) -> bool {
    let result = &message.result;
    result.stdout.blob.is_some() || result.stderr.blob.is_some() || !result.outputs.is_empty()
}

/// The files with what is not in the result itself, as far as they are there.
pub(super) fn files_of(directory: &Path, message: &ResultMessage) -> Vec<PathBuf> {
    let files = blobs(directory, message).into_iter().map(|(path, _)| path);
    files.filter(|path| path.exists()).collect()
}

/// Removes what an attempt left beside its result, if anything; on a thread that may wait for the
/// disk, as files may be long and many.
pub(super) fn discard(directory: &Path, attempt: &AttemptId) {
    let streams = ["stdout", "stderr"].map(|name| directory.join(format!("{attempt}.{name}")));
    let place = Place::new(directory, attempt);
    let files = [&streams[..], &[place.file(0)]].concat();
    if !files.iter().any(|path| path.exists()) {
        return;
    }
    tokio::task::spawn_blocking(move || {
        for path in streams {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!("cannot remove {}: {error}", path.display());
                }
                _ => {}
            }
        }
        place.discard();
    });
}

/// Removes what an earlier life left and no result names.
pub(super) fn tidy(directory: &Path, results: &[ResultMessage]) {
    let wanted: BTreeSet<PathBuf> =
        results.iter().flat_map(|result| files_of(directory, result)).collect();
    for entry in directory.read_dir().into_iter().flatten().flatten() {
        let path = entry.path();
        if !wanted.contains(&path)
            && let Err(error) = std::fs::remove_file(&path)
        {
            tracing::warn!("cannot remove {}: {error}", path.display());
        }
    }
}

/// Gives the session's broker the outputs, then the result. Ends with the session: in the next
/// one the core sends the result again.
pub(super) async fn send_after_blobs(
    session: Rc<Session>,
    directory: PathBuf,
    message: Box<ResultMessage>,
) {
    let mut taken = BTreeSet::new();
    let mut told = false;
    for (path, digest) in blobs(&directory, &message) {
        // Many files may have one content.
        if !taken.insert(digest) {
            continue;
        }
        while !session.is_closed() {
            let error = match transfer::upload(session.address(), &path, digest).await {
                Ok(()) => break,
                Err(error @ (TransferError::File { .. } | TransferError::Content(_))) => {
                    // Nothing that we could do later brings it back; the result itself is worth
                    // more.
                    tracing::error!("{} is lost: {}", path.display(), words(&error));
                    break;
                }
                Err(error) => words(&error),
            };
            if !std::mem::replace(&mut told, true) {
                tracing::warn!("output {digest} is not taken, going on trying: {error}");
            }
            tokio::time::sleep(limits::UPLOAD_PAUSE).await;
        }
    }
    session.send(&ExecutorMessage::Result(message));
}

fn words(error: &TransferError) -> String {
    match error {
        TransferError::File { what, source } => format!("cannot {what}: {source}"),
        other => other.to_string(),
    }
}

/// Where blobs come from: the cache, or the broker of the latest session.
#[derive(Debug)]
pub(super) struct Source {
    cache: Cache,
    address: RefCell<Option<Address>>,
    changed: Notify,
}

impl Source {
    /// No broker yet; blobs are kept in `directory`, which must exist.
    pub(super) fn new(directory: PathBuf) -> Self {
        let (address, changed) = (RefCell::new(None), Notify::new());
        Self { cache: Cache::new(directory), address, changed }
    }

    /// A session with this broker began.
    pub(super) fn set(&self, address: &Address) {
        *self.address.borrow_mut() = Some(address.clone());
        self.changed.notify_waiters();
    }
}

fn is_full(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::StorageFull
}

impl Fetch for Source {
    async fn fetch(&self, digest: Digest) -> Result<File, String> {
        let turn = self.cache.turn(digest);
        let _turn = turn.lock().await;
        if let Some(file) = self.cache.open(digest).await {
            return Ok(file);
        }
        let kept = |error: io::Error| format!("blob {digest}: cannot keep it: {error}");
        let mut partial = self.cache.begin().map_err(kept)?;
        let mut cleared = false;
        loop {
            let changed = self.changed.notified();
            let address = self.address.borrow().clone();
            let Some(address) = address else {
                changed.await;
                continue;
            };
            // What came from one broker is gone on with at another.
            let error = match transfer::download(&address, digest, &mut partial.file).await {
                Ok(_) => return self.cache.finish(partial, digest).map_err(kept),
                Err(error) => error,
            };
            let again = match &error {
                TransferError::File { source, .. } if is_full(source) => {
                    // The job at hand is worth more than what others may need again.
                    self.cache.clear();
                    !std::mem::replace(&mut cleared, true)
                }
                error => error.is_retryable(),
            };
            if !again {
                return Err(format!("blob {digest}: {}", words(&error)));
            }
            tracing::debug!("blob {digest}: {}; trying again", words(&error));
            tokio::time::sleep(limits::UPLOAD_PAUSE).await;
        }
    }
}
