//! Live output for those who follow it: pulled, never pushed.
//!
//! A follower gets what it granted room for and not a byte more, from the offsets that it named,
//! and is told when there is no more. Output of an attempt that is not here ends at once.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio::sync::Notify;

use crate::proto::limits;
use crate::proto::message::{ExecutorMessage, OutputChunk, StreamName};
use crate::runtime::process::Job;
use crate::runtime::process::output::Output;

use super::session::Session;

/// Where a follower begins; a stream without a number is not sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct From {
    pub(super) stdout: Option<u64>,
    pub(super) stderr: Option<u64>,
}

/// The followers of one session.
#[derive(Debug, Default)]
pub(super) struct Followers(BTreeMap<u64, Rc<Follower>>);

#[derive(Debug, Default)]
struct Follower {
    window: Cell<u64>,
    gone: Cell<bool>,
    told: Notify,
}

impl Follower {
    fn tell(&self) {
        self.told.notify_one();
    }
}

impl Followers {
    pub(super) fn begin(
        &mut self,
        session: &Rc<Session>,
        follow: u64,
        job: Option<Rc<Job>>,
        from: From,
        window: u64,
    ) {
        self.0.retain(|_, follower| !follower.gone.get());
        let room = self.0.len() < limits::FOLLOWERS_PER_EXECUTOR_MAX;
        let Some(job) = job.filter(|_| room) else {
            session.send(&ExecutorMessage::OutputEnd { follow });
            return;
        };
        let follower = Rc::new(Follower::default());
        follower.window.set(window);
        self.end(follow);
        self.0.insert(follow, Rc::clone(&follower));
        let session = Rc::clone(session);
        tokio::task::spawn_local(async move {
            relay(&session, follow, &follower, &job, from).await;
            follower.gone.set(true);
        });
    }

    pub(super) fn grant(&self, follow: u64, bytes: u64) {
        if let Some(follower) = self.0.get(&follow) {
            follower.window.set(follower.window.get().saturating_add(bytes));
            follower.tell();
        }
    }

    pub(super) fn end(&mut self, follow: u64) {
        if let Some(follower) = self.0.remove(&follow) {
            follower.gone.set(true);
            follower.tell();
        }
    }

    /// The session is over.
    pub(super) fn clear(&mut self) {
        for (_, follower) in std::mem::take(&mut self.0) {
            follower.gone.set(true);
            follower.tell();
        }
    }
}

async fn relay(session: &Session, follow: u64, follower: &Follower, job: &Job, from: From) {
    let mut streams = [
        (StreamName::Stdout, &*job.stdout, from.stdout),
        (StreamName::Stderr, &*job.stderr, from.stderr),
    ];
    loop {
        let (stdout, stderr) = (job.stdout.changed(), job.stderr.changed());
        let mut sent = false;
        for (stream, output, offset) in &mut streams {
            let Some(offset) = offset else { continue };
            let Some(message) = next_piece(follower, follow, *stream, output, offset) else {
                continue;
            };
            sent = true;
            if follower.gone.get() || !session.send_live(&message).await {
                return;
            }
        }
        if follower.gone.get() || session.is_closed() {
            return;
        }
        let over = |(_, output, from): &(_, &Output, Option<u64>)| {
            from.is_none_or(|offset| output.is_over(offset))
        };
        if streams.iter().all(over) {
            session.send_live(&ExecutorMessage::OutputEnd { follow }).await;
            return;
        }
        if !sent {
            tokio::select! {
                () = stdout => {}
                () = stderr => {}
                () = follower.told.notified() => {}
            }
        }
    }
}

/// The next piece of a stream that the follower has room for.
fn next_piece(
    follower: &Follower,
    follow: u64,
    stream: StreamName,
    output: &Output,
    offset: &mut u64,
) -> Option<ExecutorMessage> {
    let window = usize::try_from(follower.window.get()).unwrap_or(usize::MAX);
    let bytes = match output.read(*offset, window.min(limits::OUTPUT_CHUNK_BYTES)) {
        Ok(bytes) => bytes,
        Err(error) => {
            tracing::warn!("cannot read {}: {error}", output.path().display());
            follower.gone.set(true);
            return None;
        }
    };
    if bytes.is_empty() {
        return None;
    }
    let base64 = STANDARD.encode(&bytes);
    let chunk = OutputChunk { follow, stream, offset: *offset, base64 };
    *offset += bytes.len() as u64;
    follower.window.set(follower.window.get().saturating_sub(bytes.len() as u64));
    Some(ExecutorMessage::Output(chunk))
}
