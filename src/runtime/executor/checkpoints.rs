//! Checkpoints on their way to a broker, and what must not overtake them.
//!
//! Makes none (runtime/attempt/checkpoint.rs) and decides nothing: the core says what is sent,
//! again in each session. Laws: the message about a checkpoint leaves when the session's broker has
//! all its blobs. Where an attempt is handed back, the message that says so waits for that of its
//! checkpoint, up to [`limits::CHECKPOINT_SENT_WITHIN`]; the process does not end before.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use tokio::sync::{Notify, mpsc};

use crate::proto::checkpoint::Manifest;
use crate::proto::id::{AttemptId, Digest};
use crate::proto::limits;
use crate::proto::message::{CheckpointMessage, ExecutorMessage};
use crate::runtime::attempt::checkpoint;
use crate::runtime::process::Job;
use crate::runtime::transfer::{self, TransferError};

use super::Event;
use super::session::Session;

/// What is under way.
#[derive(Debug, Default)]
pub(super) struct Sending {
    /// The latest checkpoint of each attempt, until it was sent or given up.
    under_way: BTreeMap<AttemptId, Rc<Upload>>,
    /// Messages that wait for one.
    held: Rc<Cell<usize>>,
}

/// One checkpoint on its way.
#[derive(Debug, Default)]
struct Upload {
    /// Nobody wants it any more.
    unwanted: Cell<bool>,
    over: Cell<bool>,
    changed: Notify,
}

impl Upload {
    async fn ended(&self) {
        while !self.over.get() {
            self.changed.notified().await;
        }
    }
}

impl Sending {
    /// Whether a message waits that must leave before the end.
    pub(super) fn holds_any(&self) -> bool {
        self.held.get() > 0
    }

    /// Sends a checkpoint once the session's broker has its blobs.
    pub(super) fn begin(
        &mut self,
        session: &Rc<Session>,
        job: Option<Rc<Job>>,
        directory: &Path,
        message: Box<CheckpointMessage>,
    ) {
        self.under_way.retain(|_, upload| !upload.over.get());
        let upload = Rc::new(Upload::default());
        let before = self.under_way.insert(message.attempt.clone(), Rc::clone(&upload));
        if let Some(before) = before {
            before.unwanted.set(true);
        }
        let place = checkpoint::place(directory, &message.attempt);
        let session = Rc::clone(session);
        tokio::task::spawn_local(async move {
            let _sending = job.as_ref().map(|job| job.sending());
            if upload_all(&session, &place, message.manifest, &upload).await {
                session.send(&ExecutorMessage::Checkpoint(message));
            }
            upload.over.set(true);
            upload.changed.notify_waiters();
        });
    }

    /// Has a message wait for an attempt's checkpoint; gives it back where there is none under way.
    pub(super) fn hold(
        &self,
        session: &Rc<Session>,
        attempt: &AttemptId,
        message: ExecutorMessage,
        events: &mpsc::Sender<Event>,
    ) -> Option<ExecutorMessage> {
        let Some(upload) = self.under_way.get(attempt).filter(|upload| !upload.over.get()) else {
            return Some(message);
        };
        let (upload, session) = (Rc::clone(upload), Rc::clone(session));
        let (held, events, attempt) = (Rc::clone(&self.held), events.clone(), attempt.clone());
        held.set(held.get() + 1);
        tokio::task::spawn_local(async move {
            let sent = tokio::time::timeout(limits::CHECKPOINT_SENT_WITHIN, upload.ended()).await;
            if sent.is_err() {
                upload.unwanted.set(true);
                tracing::warn!("attempt {attempt}: its last state did not reach a broker in time");
            }
            session.send(&message);
            held.set(held.get() - 1);
            // The loop is gone only when the process ends.
            let _ = events.send(Event::Sent).await;
        });
        None
    }

    /// An attempt is over: its checkpoint is removed, once it was sent if it still is to be.
    pub(super) fn end(&mut self, attempt: AttemptId, directory: PathBuf, wanted: bool) {
        let upload = self.under_way.remove(&attempt);
        tokio::task::spawn_local(async move {
            if let Some(upload) = upload {
                upload.unwanted.set(upload.unwanted.get() || !wanted);
                upload.ended().await;
            }
            tokio::task::spawn_blocking(move || checkpoint::discard(&directory, &attempt));
        });
    }
}

/// Gives the session's broker a manifest with all its blobs; false where that is given up, as the
/// session ended or a newer checkpoint took the place of this one.
async fn upload_all(session: &Session, place: &Path, manifest: Digest, upload: &Upload) -> bool {
    let path = place.join(manifest.to_string());
    let read = move || -> io::Result<Manifest> {
        Manifest::read(&std::fs::read(path)?).map_err(io::Error::other)
    };
    let read = tokio::task::spawn_blocking(read).await;
    let blobs = match read.map_err(io::Error::other).and_then(|read| read) {
        Ok(manifest) => manifest.blobs(),
        Err(error) => {
            tracing::debug!("checkpoint {manifest} is not sent: {error}");
            return false;
        }
    };
    let mut told = false;
    // The manifest last: who has it has all.
    for digest in blobs.into_iter().chain([manifest]) {
        loop {
            if session.is_closed() || upload.unwanted.get() {
                return false;
            }
            let path = place.join(digest.to_string());
            let error = match transfer::upload(session.address(), &path, digest).await {
                Ok(()) => break,
                Err(error @ (TransferError::File { .. } | TransferError::Content(_))) => {
                    tracing::debug!("checkpoint {manifest} is not sent: {error}");
                    return false;
                }
                Err(error) if !error.is_retryable() => {
                    tracing::warn!("checkpoint {manifest} is not taken: {error}");
                    return false;
                }
                Err(error) => error,
            };
            if !std::mem::replace(&mut told, true) {
                tracing::warn!("a checkpoint is not taken, going on trying: {error}");
            }
            tokio::time::sleep(limits::UPLOAD_PAUSE).await;
        }
    }
    true
}
