//! Live output on its way from an executor to one reader, past the core.
//!
//! Pulled, never pushed: the executor sends at most the window that was granted, and more is
//! granted as the reader takes. An executor that sends more loses the follower, not the session.
//! Not the truth: what a reader gets in the end is made whole from the result (server/output.rs).

use std::cell::Cell;
use std::rc::Rc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::proto::id::{AttemptId, SessionId};
use crate::proto::limits;
use crate::proto::message::{BrokerMessage, OutputChunk, StreamName};
use crate::runtime::server::mailbox::Mailbox;
use crate::runtime::session::{Link, Sessions};

/// A piece of live output.
#[derive(Debug)]
pub struct Piece {
    /// Which stream.
    pub stream: StreamName,
    /// Where it begins, in bytes.
    pub offset: u64,
    /// The bytes in base64, as the executor sent them.
    pub base64: String,
    /// How many bytes they are.
    pub size: u64,
}

/// The session's side of one follower.
#[derive(Debug, Default)]
pub struct Follower {
    pieces: Mailbox<Piece>,
    granted: Cell<u64>,
}

impl Follower {
    /// Takes what the executor sent; false if it is none or was not granted.
    pub fn offer(&self, chunk: OutputChunk) -> bool {
        let Ok(bytes) = STANDARD.decode(&chunk.base64) else { return false };
        let size = bytes.len() as u64;
        let Some(left) = self.granted.get().checked_sub(size) else { return false };
        self.granted.set(left);
        let OutputChunk { stream, offset, base64, .. } = chunk;
        self.pieces.put(Piece { stream, offset, base64, size });
        true
    }

    /// No more will come.
    pub fn end(&self) {
        self.pieces.close();
    }
}

/// The reader's side of one follower. The executor is told when it is dropped.
#[derive(Debug)]
pub struct Following {
    link: Rc<Link>,
    number: u64,
    follower: Rc<Follower>,
    taken: u64,
}

impl Following {
    /// Asks for the output of an attempt from these offsets on; `None` where the session is gone
    /// or has too many followers.
    #[must_use]
    pub fn start(
        sessions: &Sessions,
        session: SessionId,
        attempt: &AttemptId,
        stdout_from: Option<u64>,
        stderr_from: Option<u64>,
    ) -> Option<Self> {
        let link = sessions.link(session)?;
        let follower = Rc::new(Follower::default());
        follower.granted.set(limits::OUTPUT_WINDOW_BYTES);
        let number = link.add_follower(&follower)?;
        link.send(&BrokerMessage::Follow {
            follow: number,
            attempt: attempt.clone(),
            stdout_from,
            stderr_from,
            window: limits::OUTPUT_WINDOW_BYTES,
        });
        Some(Self { link, number, follower, taken: 0 })
    }

    /// The next piece; `None` when no more will come. May be dropped while it waits.
    pub async fn next(&self) -> Option<Piece> {
        self.follower.pieces.take().await
    }

    /// The reader took so many bytes: as many more may come.
    pub fn took(&mut self, bytes: u64) {
        self.taken += bytes;
        // Granting by quarters keeps the pipe full without a message for each piece.
        if self.taken >= limits::OUTPUT_WINDOW_BYTES / 4 {
            let bytes = std::mem::take(&mut self.taken);
            self.follower.granted.set(self.follower.granted.get() + bytes);
            self.link.send(&BrokerMessage::Window { follow: self.number, bytes });
        }
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        if self.link.remove_follower(self.number) {
            self.link.send(&BrokerMessage::Unfollow { follow: self.number });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(bytes: &[u8]) -> OutputChunk {
        let base64 = STANDARD.encode(bytes);
        OutputChunk { follow: 1, stream: StreamName::Stdout, offset: 0, base64 }
    }

    #[test]
    fn more_than_was_granted_is_not_taken() {
        let follower = Follower::default();
        follower.granted.set(5);
        assert!(follower.offer(chunk(b"abc")));
        assert!(!follower.offer(chunk(b"def")), "two bytes are left");
        assert!(follower.offer(chunk(b"de")));
        assert_eq!(follower.pieces.len(), 2);
    }

    #[test]
    fn what_is_no_base64_is_not_taken() {
        let follower = Follower::default();
        follower.granted.set(100);
        let broken = OutputChunk { base64: "?".into(), ..chunk(b"") };
        assert!(!follower.offer(broken));
    }
}
