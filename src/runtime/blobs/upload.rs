//! A blob under way: bytes come, are hashed and written, and become a blob if the digest is right.
//!
//! Knows no network. An upload that breaks off leaves `DIR/tmp/DIGEST.part`, so that it can go on
//! where it stood, also after a restart: what is there is then hashed again from the disk. Kept
//! are at most [`limits::PARTIAL_UPLOADS_MAX`] of them, for at most
//! [`limits::PARTIAL_UPLOAD_AGE_MAX`]; none whose disk was full, as the space is wanted.
//! Law: one upload at a time writes a part. A whole upload of the same digest meanwhile gets a
//! file of its own; one that goes on takes over from one that is idle, and the one that was
//! taken over can neither write nor finish (tests below).

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tokio::time::Instant;

use super::{BlobError, Blobs, sync_directory};
use crate::proto::id::Digest;
use crate::proto::limits;

/// What the name of a part ends with.
const PART_SUFFIX: &str = ".part";

/// Who writes which part.
#[derive(Debug, Default)]
pub(super) struct Claims {
    held: BTreeMap<Digest, Arc<Mutex<Holder>>>,
    drawn: u64,
}

/// The one upload that may write a part. Locked for each piece, so that nobody takes over in the
/// middle of one.
#[derive(Debug)]
struct Holder {
    number: u64,
    touched: Instant,
}

#[derive(Debug)]
struct Claim {
    all: Arc<Mutex<Claims>>,
    holder: Arc<Mutex<Holder>>,
    number: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Claim {
    /// The right to write, while the guard lives.
    fn hold(&self) -> Result<MutexGuard<'_, Holder>, BlobError> {
        let mut holder = lock(&self.holder);
        if holder.number != self.number {
            return Err(BlobError::TakenOver);
        }
        holder.touched = Instant::now();
        Ok(holder)
    }
}

/// A blob under way. Dropping it leaves its part, if it is one that can go on.
#[derive(Debug)]
pub struct Upload {
    expected: Digest,
    hasher: blake3::Hasher,
    size: u64,
    file: File,
    path: PathBuf,
    directory: PathBuf,
    /// Nothing for one whose digest another upload has claimed: it leaves nothing.
    claim: Option<Claim>,
    is_of_use: bool,
}

impl Blobs {
    /// Begins to take a blob whose digest is known, from its first byte.
    ///
    /// # Errors
    /// [`BlobError::Disk`].
    pub fn begin(&self, expected: Digest) -> Result<Upload, BlobError> {
        let claim = self.claim(expected, false);
        let path = match &claim {
            Ok(_) => self.part(&expected),
            Err(number) => self.directory.join("tmp").join(number.to_string()),
        };
        let claim = claim.ok();
        if claim.is_some() && !path.exists() {
            self.discard_parts(limits::PARTIAL_UPLOADS_MAX - 1)?;
        }
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).open(&path);
        let file = file.map_err(BlobError::disk("create", &path))?;
        Ok(self.upload(expected, file, path, claim))
    }

    /// Goes on with an upload that broke off, at byte `from`. Reads again what is there.
    ///
    /// # Errors
    /// [`BlobError::Offset`] where it does not stand there; [`BlobError::Disk`].
    pub fn resume(&self, expected: Digest, from: u64) -> Result<Upload, BlobError> {
        let Ok(claim) = self.claim(expected, true) else {
            return Err(BlobError::Offset { held: 0 });
        };
        let path = self.part(&expected);
        let file = OpenOptions::new().read(true).write(true).open(&path);
        let file = match file {
            Ok(file) => file,
            Err(absent) if absent.kind() == std::io::ErrorKind::NotFound => {
                return Err(BlobError::Offset { held: 0 });
            }
            Err(source) => return Err(BlobError::disk("open", &path)(source)),
        };
        let held = file.metadata().map_err(BlobError::disk("open", &path))?.len();
        let mut upload = self.upload(expected, file, path, Some(claim));
        upload.size = held;
        if held != from {
            return Err(BlobError::Offset { held });
        }
        let mut left = (&upload.file).take(held);
        let read = upload.hasher.update_reader(&mut left).map(|_| ());
        let read = read.and_then(|()| upload.file.seek(SeekFrom::Start(held)));
        read.map_err(BlobError::disk("read", &upload.path))?;
        Ok(upload)
    }

    /// How far an upload stands that broke off: 0 where there is none, or where it still goes on.
    #[must_use]
    pub fn stands_at(&self, digest: &Digest) -> u64 {
        if self.is_busy(digest) {
            return 0;
        }
        self.part(digest).metadata().map_or(0, |found| found.len())
    }

    /// Whether an upload of this digest is under way that nobody may take over.
    #[must_use]
    pub fn is_busy(&self, digest: &Digest) -> bool {
        let claims = lock(&self.claims);
        claims.held.get(digest).is_some_and(|holder| !is_idle(holder))
    }

    fn upload(&self, expected: Digest, file: File, path: PathBuf, claim: Option<Claim>) -> Upload {
        let hasher = blake3::Hasher::new();
        let directory = self.directory.clone();
        Upload { expected, hasher, size: 0, file, path, directory, claim, is_of_use: true }
    }

    fn part(&self, digest: &Digest) -> PathBuf {
        self.directory.join("tmp").join(format!("{digest}{PART_SUFFIX}"))
    }

    /// The claim to a part, or a number for another file if it is taken.
    fn claim(&self, digest: Digest, over_idle: bool) -> Result<Claim, u64> {
        let mut claims = lock(&self.claims);
        claims.drawn += 1;
        let number = claims.drawn;
        let new = Holder { number, touched: Instant::now() };
        let holder = match claims.held.get(&digest) {
            None => {
                let holder = Arc::new(Mutex::new(new));
                claims.held.insert(digest, Arc::clone(&holder));
                holder
            }
            Some(holder) if over_idle && is_idle(holder) => {
                *lock(holder) = new;
                Arc::clone(holder)
            }
            Some(_) => return Err(number),
        };
        Ok(Claim { all: Arc::clone(&self.claims), holder, number })
    }

    /// Removes parts that nobody writes: those that are too old, and the oldest beyond `most`.
    pub(super) fn discard_parts(&self, most: usize) -> Result<(), BlobError> {
        let temporary = self.directory.join("tmp");
        let entries = temporary.read_dir().map_err(BlobError::disk("read", &temporary))?;
        let mut found = vec![];
        for path in entries.flatten().map(|entry| entry.path()) {
            let Some(digest) = digest_of_part(&path) else { continue };
            let claimed = lock(&self.claims).held.contains_key(&digest);
            let changed = path.metadata().and_then(|found| found.modified());
            if let (false, Ok(changed)) = (claimed, changed) {
                found.push((changed, path));
            }
        }
        found.sort();
        let excess = found.len().saturating_sub(most);
        #[allow(clippy::disallowed_methods, reason = "compared with the times of files")]
        let now = SystemTime::now();
        for (number, (changed, path)) in found.into_iter().enumerate() {
            let age = now.duration_since(changed).unwrap_or_default();
            if number < excess || age > limits::PARTIAL_UPLOAD_AGE_MAX {
                fs::remove_file(&path).map_err(BlobError::disk("remove", &path))?;
            }
        }
        Ok(())
    }
}

/// Whether a holder may be taken over. One that is writing at this moment is not idle.
fn is_idle(holder: &Mutex<Holder>) -> bool {
    let held = holder.try_lock();
    held.is_ok_and(|held| held.touched.elapsed() >= limits::UPLOAD_IDLE_AFTER)
}

/// The digest that a part is to have; nothing for another file.
pub(super) fn digest_of_part(path: &Path) -> Option<Digest> {
    path.file_name()?.to_str()?.strip_suffix(PART_SUFFIX)?.parse().ok()
}

impl Upload {
    /// Takes the next bytes.
    ///
    /// # Errors
    /// [`BlobError::Long`], [`BlobError::Disk`], [`BlobError::TakenOver`]; the upload is of no
    /// more use.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), BlobError> {
        let _held = self.claim.as_ref().map(Claim::hold).transpose()?;
        self.is_of_use = false;
        if self.size + bytes.len() as u64 > limits::BLOB_BYTES_MAX {
            return Err(BlobError::Long);
        }
        self.file.write_all(bytes).map_err(BlobError::disk("write", &self.path))?;
        self.size += bytes.len() as u64;
        self.hasher.update(bytes);
        self.is_of_use = true;
        Ok(())
    }

    /// Bytes that are there, with those of earlier connections.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Makes the blob durable under its name and returns its size. One that is there already is
    /// replaced by the same bytes, which heals one that was damaged.
    ///
    /// # Errors
    /// [`BlobError::Digest`] if the bytes are others than was said, [`BlobError::TakenOver`],
    /// [`BlobError::Disk`].
    pub fn finish(mut self) -> Result<u64, BlobError> {
        let _held = self.claim.as_ref().map(Claim::hold).transpose()?;
        self.is_of_use = false;
        let found = Digest(*self.hasher.finalize().as_bytes());
        if found != self.expected {
            return Err(BlobError::Digest { expected: self.expected, found });
        }
        self.file.sync_all().map_err(BlobError::disk("sync", &self.path))?;
        let text = found.to_string();
        let shelf = self.directory.join(&text[..2]);
        match fs::create_dir(&shelf) {
            Ok(()) => sync_directory(&self.directory)?,
            Err(there) if there.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(source) => return Err(BlobError::disk("create", &shelf)(source)),
        }
        let path = shelf.join(&text[2..]);
        fs::rename(&self.path, &path).map_err(BlobError::disk("create", &path))?;
        sync_directory(&shelf)?;
        Ok(self.size)
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let Some(claim) = &self.claim else {
            // It is gone where it was renamed.
            let _ = fs::remove_file(&self.path);
            return;
        };
        let mut claims = lock(&claim.all);
        if lock(&claim.holder).number != claim.number {
            return;
        }
        claims.held.remove(&self.expected);
        if !self.is_of_use || self.size == 0 {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &[u8] = b"the whole content";

    fn opened() -> (tempfile::TempDir, Blobs) {
        let directory = tempfile::tempdir().expect("a directory");
        let blobs = Blobs::open(directory.path()).expect("it can be created");
        (directory, blobs)
    }

    fn parts(blobs: &Blobs) -> usize {
        blobs.directory.join("tmp").read_dir().expect("readable").count()
    }

    fn begun(blobs: &Blobs, bytes: &[u8]) -> Upload {
        let mut upload = blobs.begin(Digest::of(WHOLE)).expect("begun");
        upload.write(bytes).expect("written");
        upload
    }

    #[test]
    fn an_upload_that_broke_off_goes_on_where_it_stood_also_after_a_restart() {
        let (directory, mut blobs) = opened();
        let digest = Digest::of(WHOLE);
        for at in 1..WHOLE.len() {
            drop(begun(&blobs, &WHOLE[..at]));
            assert_eq!(blobs.stands_at(&digest), at as u64);
            if at % 3 == 0 {
                blobs = Blobs::open(directory.path()).expect("opened again");
            }
            let elsewhere =
                blobs.resume(digest, at as u64 + 1).expect_err("it does not stand there");
            assert!(matches!(elsewhere, BlobError::Offset { held } if held == at as u64));
            let mut upload = blobs.resume(digest, at as u64).expect("it goes on");
            upload.write(&WHOLE[at..]).expect("written");
            assert_eq!(upload.finish().expect("kept"), WHOLE.len() as u64);
            assert_eq!((parts(&blobs), blobs.stands_at(&digest)), (0, 0));
        }
        let absent = blobs.resume(digest, 1).expect_err("there is none");
        assert!(matches!(absent, BlobError::Offset { held: 0 }));
    }

    #[test]
    fn a_wrong_beginning_is_found_at_the_end_and_leaves_nothing() {
        let (_directory, blobs) = opened();
        drop(begun(&blobs, b"The"));
        let mut upload = blobs.resume(Digest::of(WHOLE), 3).expect("it goes on");
        upload.write(&WHOLE[3..]).expect("written");
        assert!(matches!(upload.finish(), Err(BlobError::Digest { .. })));
        assert_eq!(parts(&blobs), 0);
    }

    #[test]
    fn two_uploads_of_one_digest_do_not_meet() {
        let (_directory, blobs) = opened();
        let first = begun(&blobs, &WHOLE[..4]);
        let mut second = begun(&blobs, &WHOLE[..2]);
        assert_eq!(blobs.stands_at(&Digest::of(WHOLE)), 0, "it goes on by itself");
        assert!(matches!(blobs.resume(Digest::of(WHOLE), 4), Err(BlobError::Offset { held: 0 })));
        second.write(&WHOLE[2..]).expect("written");
        second.finish().expect("kept");
        drop(first);
        assert_eq!(blobs.stands_at(&Digest::of(WHOLE)), 4);
        assert_eq!(parts(&blobs), 1);
    }

    #[test]
    fn one_that_goes_on_takes_over_from_one_that_is_idle() {
        let (_directory, blobs) = opened();
        let mut idle = begun(&blobs, &WHOLE[..4]);
        let claim = idle.claim.as_ref().expect("the first has the part");
        let long_ago = Instant::now().checked_sub(limits::UPLOAD_IDLE_AFTER);
        lock(&claim.holder).touched = long_ago.expect("the machine runs for longer");
        let mut next = blobs.resume(Digest::of(WHOLE), 4).expect("taken over");
        assert!(matches!(idle.write(b"x"), Err(BlobError::TakenOver)));
        assert!(matches!(idle.finish(), Err(BlobError::TakenOver)));
        next.write(&WHOLE[4..]).expect("written");
        next.finish().expect("kept");
        assert_eq!(parts(&blobs), 0);
    }

    #[test]
    fn parts_are_bounded_in_number_and_age() {
        let (directory, blobs) = opened();
        for number in 0..limits::PARTIAL_UPLOADS_MAX + 5 {
            let mut upload = blobs.begin(Digest::of(&number.to_be_bytes())).expect("begun");
            upload.write(b"x").expect("written");
        }
        assert_eq!(parts(&blobs), limits::PARTIAL_UPLOADS_MAX);
        let old = blobs.directory.join("tmp").read_dir().expect("readable").flatten().next();
        let old = old.expect("a part").path();
        #[allow(clippy::disallowed_methods, reason = "the time of a file")]
        let then = SystemTime::now() - limits::PARTIAL_UPLOAD_AGE_MAX * 2;
        let file = File::options().write(true).open(&old).expect("opened");
        file.set_modified(then).expect("its time is set");
        let blobs = Blobs::open(directory.path()).expect("opened again");
        assert_eq!(parts(&blobs), limits::PARTIAL_UPLOADS_MAX - 1);
        assert!(!old.exists());
    }
}
