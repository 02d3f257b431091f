//! Content-addressed files: each blob is named by the BLAKE3 digest of its bytes.
//!
//! It knows nothing of jobs and never deletes what was put. Calls wait for the disk: from async
//! code they belong into a thread that may wait.
//! Shapes: `DIR/ab/cdef…`, the digest's 64 digits cut after the second; `DIR/tmp` holds what is
//! under way or broke off (upload.rs). A blob has at most [`limits::BLOB_BYTES_MAX`] bytes.
//! Law: a blob is there whole and durable, or not at all; bytes of another digest leave nothing
//! (tests below).

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::proto::id::Digest;
use crate::proto::limits;

use upload::Claims;

pub mod upload;

pub use upload::Upload;

/// The name of the directory of blobs in a broker's data directory.
pub const BLOBS_NAME: &str = "blobs";

/// Why a blob is not kept or not given.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BlobError {
    /// The bytes have another digest. Nothing is kept; trying again cannot help.
    #[error("the content has digest {found}, not {expected}")]
    Digest {
        /// The digest that was said.
        expected: Digest,
        /// The digest of the bytes.
        found: Digest,
    },
    /// There are more bytes than a blob may have. Nothing is kept; trying again cannot help.
    #[error("a blob has at most {max} bytes", max = limits::BLOB_BYTES_MAX)]
    Long,
    /// The upload does not stand where the sender goes on. Nothing changed; going on where it
    /// stands may help.
    #[error("the upload stands at byte {held}")]
    Offset {
        /// Bytes that are held of it.
        held: u64,
    },
    /// Another connection goes on with this upload, as this one was idle. Trying again may help.
    #[error("another connection goes on with this upload")]
    TakenOver,
    /// The disk is full or broken. Nothing is kept; trying again may help.
    #[error("cannot {what} {}", path.display())]
    Disk {
        /// What was tried.
        what: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The bytes cannot be had from where they come. Nothing is kept; trying again may help.
    #[error("cannot read the content")]
    Source(#[source] io::Error),
}

impl BlobError {
    fn disk(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Disk { what, path, source }
    }

    /// Whether there was no space, so that trying again helps once there is.
    #[must_use]
    pub fn is_full(&self) -> bool {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        let Self::Disk { source, .. } = self else { return false };
        matches!(source.kind(), StorageFull | QuotaExceeded)
    }
}

/// A directory of blobs.
#[derive(Debug)]
pub struct Blobs {
    directory: PathBuf,
    claims: Arc<Mutex<Claims>>,
}

impl Blobs {
    /// Opens a directory of blobs, creating it where absent. Parts of uploads are kept, other
    /// temporary files removed, so one process has it at a time (`rundir::lock_data`).
    ///
    /// # Errors
    /// [`BlobError::Disk`].
    pub fn open(directory: &Path) -> Result<Self, BlobError> {
        let temporary = directory.join("tmp");
        fs::create_dir_all(&temporary).map_err(BlobError::disk("create", &temporary))?;
        let entries = temporary.read_dir().map_err(BlobError::disk("read", &temporary))?;
        for entry in entries.flatten() {
            let path = entry.path();
            if upload::digest_of_part(&path).is_none() {
                fs::remove_file(&path).map_err(BlobError::disk("remove", &path))?;
            }
        }
        let blobs = Self { directory: directory.to_owned(), claims: Arc::default() };
        blobs.discard_parts(limits::PARTIAL_UPLOADS_MAX)?;
        Ok(blobs)
    }

    fn place(&self, digest: &Digest) -> (PathBuf, String) {
        let mut text = digest.to_string();
        let rest = text.split_off(2);
        (self.directory.join(text), rest)
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        let (directory, name) = self.place(digest);
        directory.join(name)
    }

    /// Takes a whole blob and returns its size.
    ///
    /// # Errors
    /// [`BlobError`]; nothing is kept.
    pub fn put(&self, expected: Digest, mut content: impl Read) -> Result<u64, BlobError> {
        let mut upload = self.begin(expected)?;
        let mut buffer = vec![0; limits::OUTPUT_CHUNK_BYTES];
        loop {
            match content.read(&mut buffer) {
                Ok(0) => return upload.finish(),
                Ok(count) => upload.write(&buffer[..count])?,
                Err(again) if again.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(BlobError::Source(source)),
            }
        }
    }

    /// Opens a blob and tells its size; nothing where it is not there. Its content was verified
    /// when it came, not now.
    ///
    /// # Errors
    /// [`BlobError::Disk`].
    pub fn get(&self, digest: &Digest) -> Result<Option<(File, u64)>, BlobError> {
        let path = self.path(digest);
        match File::open(&path).and_then(|file| file.metadata().map(|found| (file, found.len()))) {
            Ok(found) => Ok(Some(found)),
            Err(absent) if absent.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(BlobError::disk("open", &path)(source)),
        }
    }

    fn aside(&self, digest: &Digest) -> PathBuf {
        self.directory.join("tmp").join(format!("{digest}.damaged"))
    }

    /// Whether a blob was set aside since this process began.
    #[must_use]
    pub fn was_damaged(&self, digest: &Digest) -> bool {
        self.aside(digest).exists()
    }

    /// Takes a blob out whose bytes turned out to be others than its name says, so that it can be
    /// had again: it counts as absent from then on, and its bytes are kept for who wants to look.
    ///
    /// # Errors
    /// [`BlobError::Disk`]; it is where it was.
    pub fn set_aside(&self, digest: &Digest) -> Result<(), BlobError> {
        let aside = self.aside(digest);
        let path = self.path(digest);
        match fs::rename(&path, &aside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(BlobError::disk("set aside", &path)(error))
            }
            _ => Ok(()),
        }
    }

    /// How many blobs there are and how many bytes they have, uploads under way among them. Looks
    /// at each; what cannot be looked at is left out.
    #[must_use]
    pub fn totals(&self) -> (u64, u64) {
        let read = |path: &Path| path.read_dir().into_iter().flatten().flatten();
        let shelves = read(&self.directory).map(|shelf| shelf.path());
        let found = shelves.flat_map(|shelf| read(&shelf)).filter_map(|file| file.metadata().ok());
        found.fold((0, 0), |(count, bytes), file| (count + 1, bytes + file.len()))
    }

    /// The size of a blob; nothing where it is not there.
    ///
    /// # Errors
    /// [`BlobError::Disk`].
    pub fn has(&self, digest: &Digest) -> Result<Option<u64>, BlobError> {
        Ok(self.get(digest)?.map(|(_, size)| size))
    }
}

fn sync_directory(path: &Path) -> Result<(), BlobError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(BlobError::disk("sync", path))
}

/// Calls `each` with every file below a directory of blobs whose content or name is not what it
/// is to be, and why; returns how many blobs there are. Reads all of them.
///
/// # Errors
/// [`BlobError::Disk`] for what cannot be read at all.
pub fn verify(directory: &Path, mut each: impl FnMut(&Path, String)) -> Result<u64, BlobError> {
    let mut count = 0;
    for shelf in sorted(directory)? {
        if shelf.file_name().is_some_and(|name| name == "tmp") {
            continue;
        }
        if !shelf.is_dir() {
            each(&shelf, "it is no directory of blobs".into());
            continue;
        }
        for path in sorted(&shelf)? {
            count += 1;
            let name =
                |path: &Path| path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
            let digits = name(&shelf).zip(name(&path)).map(|(first, rest)| first + &rest);
            let Some(Ok(expected)) = digits.map(|digits| digits.parse::<Digest>()) else {
                each(&path, "its name is no digest".into());
                continue;
            };
            match digest_of(&path) {
                Ok(found) if found == expected => {}
                Ok(found) => each(&path, format!("its content has digest {found}")),
                Err(source) => each(&path, format!("it cannot be read: {source}")),
            }
        }
    }
    Ok(count)
}

fn sorted(directory: &Path) -> Result<Vec<PathBuf>, BlobError> {
    let read = || -> io::Result<Vec<PathBuf>> {
        directory.read_dir()?.map(|entry| entry.map(|entry| entry.path())).collect()
    };
    let mut paths = match read() {
        Err(absent) if absent.kind() == io::ErrorKind::NotFound => vec![],
        found => found.map_err(BlobError::disk("read", directory))?,
    };
    paths.sort();
    Ok(paths)
}

fn digest_of(path: &Path) -> io::Result<Digest> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path)?)?;
    Ok(Digest(*hasher.finalize().as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened() -> (tempfile::TempDir, Blobs) {
        let directory = tempfile::tempdir().expect("a directory");
        let blobs = Blobs::open(&directory.path().join("blobs")).expect("it can be created");
        (directory, blobs)
    }

    fn content(blobs: &Blobs, digest: &Digest) -> Option<Vec<u8>> {
        let (mut file, size) = blobs.get(digest).expect("readable")?;
        let mut bytes = vec![];
        file.read_to_end(&mut bytes).expect("readable");
        assert_eq!(bytes.len() as u64, size);
        Some(bytes)
    }

    /// All that lies in the directory, with the uploads under way.
    fn files(blobs: &Blobs) -> Vec<PathBuf> {
        let shelves = sorted(&blobs.directory).expect("readable");
        shelves.iter().flat_map(|shelf| sorted(shelf).expect("readable")).collect()
    }

    #[test]
    fn what_is_put_is_there_whole() {
        let (_directory, blobs) = opened();
        for bytes in [&b""[..], b"x", &[7; 200_000]] {
            let digest = Digest::of(bytes);
            assert_eq!(blobs.has(&digest).expect("readable"), None);
            assert_eq!(content(&blobs, &digest), None);
            for _ in 0..2 {
                assert_eq!(blobs.put(digest, bytes).expect("kept"), bytes.len() as u64);
                assert_eq!(content(&blobs, &digest).as_deref(), Some(bytes));
                assert_eq!(blobs.has(&digest).expect("readable"), Some(bytes.len() as u64));
            }
        }
        assert_eq!(files(&blobs).len(), 3);
        assert_eq!(blobs.totals(), (3, 200_001));
        let text = Digest::of(b"x").to_string();
        assert!(blobs.directory.join(&text[..2]).join(&text[2..]).exists());
    }

    #[test]
    fn bytes_of_another_digest_leave_nothing() {
        let (_directory, blobs) = opened();
        let expected = Digest::of(b"this");
        let error = blobs.put(expected, &b"that"[..]).expect_err("another digest");
        assert!(matches!(error, BlobError::Digest { found, .. } if found == Digest::of(b"that")));
        assert_eq!(files(&blobs), [] as [PathBuf; 0]);
        assert_eq!(content(&blobs, &expected), None);
    }

    #[test]
    fn a_damaged_blob_is_found_and_healed_by_another_put() {
        let (_directory, blobs) = opened();
        for bytes in [&b"one"[..], b"two"] {
            blobs.put(Digest::of(bytes), bytes).expect("kept");
        }
        let found = || {
            let mut found = vec![];
            let add = |path: &Path, why| found.push((path.to_owned(), why));
            let count = verify(&blobs.directory, add).expect("readable");
            (count, found)
        };
        assert_eq!(found(), (2, vec![]));
        let path = blobs.path(&Digest::of(b"two"));
        fs::write(&path, "tw").expect("written");
        let why = format!("its content has digest {}", Digest::of(b"tw"));
        assert_eq!(found(), (2, vec![(path, why)]));
        blobs.put(Digest::of(b"two"), &b"two"[..]).expect("kept");
        assert_eq!(found(), (2, vec![]));
        fs::write(blobs.directory.join("00"), "").expect("written");
        assert_eq!(found().1.len(), 1);
    }
}
