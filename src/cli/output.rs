//! Standard output, and the descriptor of `--status-fd`: data only, one JSON value a line, each
//! line handed over at once.
//!
//! The only file that writes to stdout. Nothing about content changes because stdout is a
//! terminal. A closed pipe is no error but the wish to stop ([`OutputError::Closed`]): the command
//! ends quietly. A reader that does not read holds back only what writes here: signals and
//! connections are still attended to, as nothing is written that would block for long.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout};
use serde::Serialize;

/// What a pipe takes without blocking once it says that it is writable (PIPE_BUF on Linux).
const PIPE_PIECE_BYTES: usize = 4096;
/// How long to wait before a reader that is slow is asked again.
const SLOW_READER_PAUSE: Duration = Duration::from_millis(5);

/// Why a line was not written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutputError {
    /// Nobody reads any more. Trying again cannot help; end quietly.
    #[error("nobody reads standard output any more")]
    Closed,
    /// The system refused. Part of the line may have been written.
    #[error("cannot write to {0}: {1}")]
    Write(&'static str, io::Error),
}

impl OutputError {
    fn of(name: &'static str, error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::Closed,
            _ => Self::Write(name, error),
        }
    }
}

/// Writes a text and hands it over; for commands that have nothing else to do meanwhile.
///
/// # Errors
/// Nobody reads, or the system refused.
pub fn text(text: &str) -> Result<(), OutputError> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    written.map_err(|error| OutputError::of("stdout", error))
}

/// Writes bytes and hands them over; for commands that have nothing else to do meanwhile.
///
/// # Errors
/// Nobody reads, or the system refused.
pub fn all(bytes: &[u8]) -> Result<(), OutputError> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(bytes).and_then(|()| stdout.flush());
    written.map_err(|error| OutputError::of("stdout", error))
}

/// Writes a value as one line of JSON and hands it over.
///
/// # Errors
/// Nobody reads, or the system refused.
pub fn line(value: &impl Serialize) -> Result<(), OutputError> {
    let mut line = serde_json::to_string(value).expect("our lines have only string keys");
    line.push('\n');
    text(&line)
}

/// Writes bytes as they are, waiting for a slow reader without holding up the rest of the program.
///
/// # Errors
/// Nobody reads, or the system refused.
pub async fn bytes(bytes: &[u8]) -> Result<(), OutputError> {
    write_slowly(io::stdout().as_fd(), bytes).await.map_err(|e| OutputError::of("stdout", e))
}

/// Lines on their way to stdout or another descriptor, for a program that has other things to do
/// while its reader is slow.
#[derive(Debug, Default)]
pub struct Outgoing {
    held: Vec<u8>,
    start: usize,
    /// Stdout where absent.
    to: Option<OwnedFd>,
}

impl Outgoing {
    /// Lines for another descriptor than stdout.
    #[must_use]
    pub fn to(descriptor: OwnedFd) -> Self {
        Self { held: vec![], start: 0, to: Some(descriptor) }
    }

    /// Takes a line.
    pub fn push(&mut self, line: &str) {
        self.held.extend_from_slice(line.as_bytes());
        self.held.push(b'\n');
    }

    /// Bytes that were not written yet.
    #[must_use]
    pub fn len(&self) -> usize {
        self.held.len() - self.start
    }

    /// Whether all was written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes all. May be dropped while it waits and called again: it goes on where it was.
    ///
    /// # Errors
    /// Nobody reads, or the system refused.
    pub async fn write(&mut self) -> Result<(), OutputError> {
        while !self.is_empty() {
            let end = self.held.len().min(self.start + PIPE_PIECE_BYTES);
            let piece = &self.held[self.start..end];
            let written = match &self.to {
                None => write_piece(io::stdout().as_fd(), piece).await,
                Some(descriptor) => write_piece(descriptor.as_fd(), piece).await,
            };
            let name = if self.to.is_some() { "the descriptor of --status-fd" } else { "stdout" };
            self.start += written.map_err(|error| OutputError::of(name, error))?;
        }
        self.held.clear();
        self.start = 0;
        Ok(())
    }
}

/// Writes bytes to a descriptor, each piece when the descriptor says that it takes one.
pub(crate) async fn write_slowly(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let piece = &bytes[..bytes.len().min(PIPE_PIECE_BYTES)];
        let written = write_piece(fd, piece).await?;
        bytes = &bytes[written..];
    }
    Ok(())
}

/// Writes a piece that a pipe takes at once, when the descriptor says that it takes one.
async fn write_piece(fd: BorrowedFd<'_>, piece: &[u8]) -> io::Result<usize> {
    loop {
        let mut asked = [PollFd::new(fd, PollFlags::POLLOUT)];
        match nix::poll::poll(&mut asked, PollTimeout::ZERO) {
            Ok(0) => {
                tokio::time::sleep(SLOW_READER_PAUSE).await;
                continue;
            }
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        match nix::unistd::write(fd, piece) {
            Ok(written) => return Ok(written),
            Err(nix::Error::EINTR | nix::Error::EAGAIN) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
