//! State that a job leaves on its way, so that a further attempt can go on from it.
//!
//! A job need not cooperate: it writes to the directory that `UCP_JOB_CHECKPOINT_DIR` names, how
//! and when it likes. While it runs the directory is looked at now and then; where it changed, it
//! is copied (checkpoint/snapshot.rs), and whoever runs the attempt is told. What an earlier
//! attempt left is put there before the start (checkpoint/restore.rs).
//! Decides nothing: what is done with a checkpoint is the core's.
//! Law: nothing here reads the directory any more when `Watcher::watch` or `Watcher::last`
//! returned: the room may be another job's then.

mod listing;
pub(super) mod restore;
mod snapshot;

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::proto::id::{AttemptId, Digest};
use crate::proto::limits;
use crate::proto::message::StartOrder;
use crate::runtime::process::Job;
use crate::runtime::rooms::{Room, remove_tree};

use super::BrokenOff;
use snapshot::{Came, Kept};

/// How checkpoints are made.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    /// Where the newest one of each attempt is kept, as blobs; must exist and be on the file system
    /// of the rooms.
    pub directory: PathBuf,
    /// How often a job's directory is looked at; never while it runs where absent.
    pub interval: Option<Duration>,
}

/// A checkpoint that was made: its blobs are in [`place`], each named by its digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpoint {
    /// The blob that lists the files.
    pub manifest: Digest,
    /// How many files there are.
    pub files: u64,
    /// Their bytes together.
    pub bytes: u64,
}

/// Where the blobs of an attempt's newest checkpoint are, in a directory of checkpoints.
#[must_use]
pub fn place(directory: &Path, attempt: &AttemptId) -> PathBuf {
    directory.join(attempt.to_string())
}

/// Removes an attempt's checkpoint; waits for the disk.
pub fn discard(directory: &Path, attempt: &AttemptId) {
    let place = place(directory, attempt);
    match remove_tree(&place) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!("cannot remove {}: {error}", place.display());
        }
        _ => {}
    }
}

/// Looks at one job's directory while the job runs.
pub(super) struct Watcher<'a> {
    room: &'a Room,
    job: &'a Job,
    attempt: &'a AttemptId,
    place: PathBuf,
    interval: Option<Duration>,
    due: Instant,
    task: Option<(Instant, JoinHandle<Came>)>,
    broken_off: BrokenOff,
    kept: Option<Arc<Kept>>,
    /// The newest checkpoint that is known of the job, kept here or before.
    newest: Option<Digest>,
    told: Option<String>,
}

impl<'a> Watcher<'a> {
    /// Watches nothing yet.
    pub(super) fn new(
        how: &Checkpoints,
        order: &'a StartOrder,
        room: &'a Room,
        job: &'a Job,
    ) -> Self {
        let interval = how.interval;
        Self {
            room,
            job,
            attempt: &order.attempt,
            place: place(&how.directory, &order.attempt),
            interval,
            due: Instant::now() + interval.unwrap_or(limits::CHECKPOINT_INTERVAL_MAX),
            task: None,
            broken_off: BrokenOff::default(),
            kept: None,
            newest: None,
            told: None,
        }
    }

    /// The job begins with this checkpoint: the same state is not told again.
    pub(super) fn begins_with(&mut self, checkpoint: Option<Digest>) {
        self.newest = checkpoint;
    }

    /// Waits for the end of what runs, and tells of each checkpoint that is made meanwhile.
    pub(super) async fn watch<T>(
        &mut self,
        running: impl Future<Output = T>,
        tell: &impl AsyncFn(Checkpoint),
    ) -> T {
        let mut running = pin!(running);
        loop {
            let made = tokio::select! {
                biased;
                ended = &mut running => {
                    if let Some(made) = self.settle().await {
                        tell(made).await;
                    }
                    return ended;
                }
                made = self.step() => made,
            };
            tell(made).await;
        }
    }

    /// The state of a job that has ended, where it is another than the newest that was kept. Takes
    /// [`limits::CHECKPOINT_SENT_WITHIN`] at the most.
    pub(super) async fn last(&mut self) -> Option<Checkpoint> {
        self.broken_off = BrokenOff::default();
        self.begin(true);
        let (_, mut task) = self.task.take()?;
        let came = match tokio::time::timeout(limits::CHECKPOINT_SENT_WITHIN, &mut task).await {
            Ok(came) => came,
            Err(_) => {
                tracing::warn!("attempt {}: its last state takes too long to copy", self.attempt);
                self.broken_off.set();
                task.await
            }
        };
        self.take(came.expect("copying a job's state does not panic"))
    }

    /// Breaks off what is being done, and waits until it is.
    async fn settle(&mut self) -> Option<Checkpoint> {
        let (_, task) = self.task.take()?;
        self.broken_off.set();
        let came = task.await.expect("copying a job's state does not panic");
        self.take(came)
    }

    /// Waits for the next checkpoint. Whoever drops it may call it again.
    async fn step(&mut self) -> Checkpoint {
        loop {
            let Some((begin, task)) = &mut self.task else {
                tokio::time::sleep_until(self.due).await;
                self.due = Instant::now() + self.pause();
                // The one before is still on its way: a further one would take its place.
                if self.interval.is_some() && !self.job.sends_checkpoint() {
                    self.begin(false);
                }
                continue;
            };
            let came = task.await.expect("copying a job's state does not panic");
            let took = begin.elapsed();
            self.task = None;
            let rest = took.saturating_mul(limits::CHECKPOINT_PAUSE_FACTOR);
            self.due = Instant::now() + self.pause().max(rest);
            if let Some(made) = self.take(came) {
                return made;
            }
        }
    }

    fn pause(&self) -> Duration {
        self.interval.unwrap_or(limits::CHECKPOINT_INTERVAL_MAX)
    }

    /// Begins to look, and to copy where there is something new.
    fn begin(&mut self, quiet: bool) {
        let root = match self.room.open_checkpoint() {
            Ok(root) => root,
            Err(error) => {
                let words = format!("the directory of its state cannot be read: {error}");
                return self.tell(words);
            }
        };
        let (place, kept) = (self.place.clone(), self.kept.clone());
        let broken_off = self.broken_off.clone();
        let work = move || snapshot::keep(&root, &place, kept.as_deref(), quiet, &broken_off);
        self.task = Some((Instant::now(), tokio::task::spawn_blocking(work)));
    }

    fn take(&mut self, came: Came) -> Option<Checkpoint> {
        match came {
            Came::Kept(kept) => {
                let (made, left_out) = (kept.made, kept.left_out.clone());
                self.kept = Some(Arc::new(kept));
                self.job.made_checkpoint();
                if let Some(path) = left_out {
                    self.tell(format!("{path}; it is left out of its state"));
                }
                let known = self.newest.replace(made.manifest);
                (known != Some(made.manifest)).then_some(made)
            }
            Came::Nothing => None,
            Came::Busy => {
                let how = "it changed whenever it was copied; files that are written aside and \
                           renamed can be kept";
                self.tell(format!("its state is not kept: {how}"));
                None
            }
            Came::Refused(words) => {
                self.tell(format!("its state is not kept: {words}"));
                None
            }
        }
    }

    /// Tells the operator, once.
    fn tell(&mut self, words: String) {
        if self.told.as_ref() != Some(&words) {
            tracing::warn!("attempt {}: {words}", self.attempt);
            self.told = Some(words);
        }
    }
}
