//! What a job writes to one of its streams: kept whole, for the result and for those who follow.
//!
//! Knows nothing of pipes. Shape: up to [`limits::OUTPUT_INLINE_BYTES_MAX`] bytes in memory; once
//! there are more, all of them in one file, from its first byte; beyond
//! [`limits::OUTPUT_BYTES_MAX`] the rest is dropped and the stream is marked as truncated.
//! Law: what is read back is what was pushed, at any offset, before and after it went to the file
//! (tests below).

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::proto::id::Digest;
use crate::proto::limits;
use crate::proto::result::Stream;

/// One stream's bytes.
#[derive(Debug)]
pub struct Output {
    path: PathBuf,
    kept: Mutex<Kept>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Kept {
    memory: Vec<u8>,
    file: Option<Spilled>,
    size: u64,
    truncated: bool,
    ended: bool,
}

#[derive(Debug)]
struct Spilled {
    file: Arc<File>,
    hasher: blake3::Hasher,
    size: u64,
}

impl Output {
    /// Nothing yet; if it grows long, it goes to a file at `path`.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path, kept: Mutex::default(), changed: Notify::new() }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds bytes. If they cannot be written the stream is truncated where it is.
    pub fn push(&self, bytes: &[u8]) {
        let kept = &mut *self.kept();
        if kept.truncated {
            return;
        }
        let room = limits::OUTPUT_BYTES_MAX.saturating_sub(kept.size);
        let fits = usize::try_from(room).unwrap_or(usize::MAX).min(bytes.len());
        kept.truncated = fits < bytes.len();
        match kept.add(&self.path, &bytes[..fits]) {
            Ok(()) => kept.size += fits as u64,
            Err(error) => {
                kept.truncated = true;
                tracing::error!("cannot write {}: {error}; the output is cut", self.path.display());
            }
        }
        self.changed.notify_waiters();
    }

    /// No more will come.
    pub fn end(&self) {
        self.kept().ended = true;
        self.changed.notify_waiters();
    }

    /// Fires at the next change. Take it before looking at what is there.
    pub fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// Whether all was said up to `offset`: the stream has ended and is no longer than that.
    #[must_use]
    pub fn is_over(&self, offset: u64) -> bool {
        let kept = self.kept();
        kept.ended && offset >= kept.size
    }

    /// At most `max` bytes from `offset` on; nothing where the stream is not that long yet.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read(&self, offset: u64, max: usize) -> io::Result<Vec<u8>> {
        let kept = self.kept();
        let left = kept.size.saturating_sub(offset);
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(max);
        if count == 0 {
            return Ok(vec![]);
        }
        let mut bytes = vec![0; count];
        match &kept.file {
            Some(spilled) => spilled.file.read_exact_at(&mut bytes, offset)?,
            None => {
                let start = usize::try_from(offset).expect("what is in memory is short");
                bytes.copy_from_slice(&kept.memory[start..start + count]);
            }
        }
        Ok(bytes)
    }

    /// The stream as a result has it: inline, or as a blob whose content is in [`Output::path`].
    #[must_use]
    pub fn stream(&self) -> Stream {
        let kept = self.kept();
        match &kept.file {
            Some(spilled) => {
                let digest = Digest(*spilled.hasher.finalize().as_bytes());
                Stream::blob(kept.size, digest, kept.truncated)
            }
            None => Stream { truncated: kept.truncated, ..Stream::inline(kept.memory.clone()) },
        }
    }

    /// Where the file is, or would be.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it grew long enough for a file, or tried to.
    #[must_use]
    pub fn is_in_file(&self) -> bool {
        let kept = self.kept();
        kept.file.is_some() || kept.truncated
    }

    /// Removes the file, if there is one. Who reads it already can read on.
    pub fn discard(&self) {
        if self.kept().file.is_some()
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

impl Kept {
    fn add(&mut self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        if let Some(spilled) = &mut self.file {
            return spilled.add(bytes);
        }
        if self.memory.len() + bytes.len() <= limits::OUTPUT_INLINE_BYTES_MAX {
            self.memory.extend_from_slice(bytes);
            return Ok(());
        }
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(true).mode(0o600);
        let file = Arc::new(options.open(path)?);
        let mut spilled = Spilled { file, hasher: blake3::Hasher::new(), size: 0 };
        if let Err(error) = spilled.add(&self.memory).and_then(|()| spilled.add(bytes)) {
            // What is in memory stays there; of the file nobody would know.
            let _ = std::fs::remove_file(path);
            return Err(error);
        }
        self.memory = vec![];
        self.file = Some(spilled);
        Ok(())
    }
}

impl Spilled {
    fn add(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Err(error) = (&*self.file).write_all(bytes) {
            // Part of it may be there: the file must remain what was hashed.
            self.file.set_len(self.size)?;
            return Err(error);
        }
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(directory: &tempfile::TempDir) -> Output {
        Output::new(directory.path().join("stream"))
    }

    #[test]
    fn short_output_stays_inline_and_reads_back_at_any_offset() {
        let directory = tempfile::tempdir().expect("a directory");
        let output = output(&directory);
        output.push(b"one ");
        output.push(b"two");
        assert_eq!(output.read(0, 100).expect("memory"), b"one two");
        assert_eq!(output.read(4, 2).expect("memory"), b"tw");
        assert_eq!(output.read(7, 2).expect("memory"), b"");
        assert_eq!(output.read(100, 2).expect("memory"), b"");
        assert!(!output.is_over(7));
        output.end();
        assert!(output.is_over(7) && !output.is_over(6));
        assert_eq!(output.stream().text.as_deref(), Some("one two"));
        assert!(!output.path().exists());
    }

    #[test]
    fn long_output_goes_to_one_file_with_its_digest() {
        let directory = tempfile::tempdir().expect("a directory");
        let output = output(&directory);
        let piece: Vec<u8> = (0..=255).collect();
        let pieces = limits::OUTPUT_INLINE_BYTES_MAX / piece.len();
        for _ in 0..=pieces {
            output.push(&piece);
        }
        output.end();
        let whole = piece.repeat(pieces + 1);
        assert_eq!(output.read(0, usize::MAX).expect("the file"), whole);
        assert_eq!(output.read(300, 3).expect("the file"), whole[300..303]);
        let stream = output.stream();
        assert_eq!(stream, Stream::blob(whole.len() as u64, Digest::of(&whole), false));
        assert_eq!(std::fs::read(output.path()).expect("the file"), whole);
        output.discard();
        assert!(!output.path().exists());
        assert_eq!(output.read(300, 3).expect("still open"), whole[300..303]);
    }

    #[test]
    fn a_file_that_cannot_be_written_truncates_the_stream() {
        let output = Output::new("/no/such/directory/stream".into());
        output.push(&vec![b'x'; limits::OUTPUT_INLINE_BYTES_MAX]);
        output.push(b"y");
        output.push(b"z");
        output.end();
        let stream = output.stream();
        assert!(stream.truncated);
        assert_eq!(stream.size, limits::OUTPUT_INLINE_BYTES_MAX as u64);
    }
}
