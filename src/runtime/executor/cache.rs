//! Blobs that an executor keeps for further jobs: `DATA/cache/blobs/DIGEST`.
//!
//! Fetches nothing. Bounded by [`limits::BLOB_CACHE_BYTES_MAX`] and
//! [`limits::BLOB_CACHE_FILES_MAX`]: the blob that was not used for longest goes first. Whoever
//! has a blob open can read on when it goes. Nothing is synced; what an earlier life left, or what
//! changed since, is hashed before it is used, and removed where it is not what its name says.
//! Law: what [`Cache::open`] gives has the digest that was asked for (tests below).

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io::{self, Seek};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use tokio::sync::Mutex;

use crate::proto::id::Digest;
use crate::proto::limits;

/// How the names of files begin that are not whole yet.
const PARTIAL: &str = "partial-";

/// The directory of the blobs.
#[derive(Debug)]
pub(super) struct Cache {
    directory: PathBuf,
    state: RefCell<State>,
    max: (u64, usize),
}

#[derive(Debug, Default)]
struct State {
    held: BTreeMap<Digest, Held>,
    bytes: u64,
    /// Counts uses; the greatest is the latest.
    uses: u64,
    /// Counts files that were not whole yet.
    partial: u64,
    turns: BTreeMap<Digest, Rc<Mutex<()>>>,
}

#[derive(Debug)]
struct Held {
    size: u64,
    used: u64,
    /// What the file looked like when its digest was last found right.
    checked: Option<Look>,
}

/// A file that was not changed looks the same.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Look {
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl Look {
    fn of(seen: &Metadata) -> Self {
        let changed = (seen.ctime(), seen.ctime_nsec());
        Self { inode: seen.ino(), size: seen.size(), changed }
    }
}

/// A blob on its way into the cache; dropped before that, it is gone.
#[derive(Debug)]
pub(super) struct Partial {
    pub(super) file: File,
    path: PathBuf,
}

impl Drop for Partial {
    fn drop(&mut self) {
        // It is gone where it was renamed.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Cache {
    /// Takes over a directory, which must exist.
    pub(super) fn new(directory: PathBuf) -> Self {
        Self::bounded(directory, limits::BLOB_CACHE_BYTES_MAX, limits::BLOB_CACHE_FILES_MAX)
    }

    fn bounded(directory: PathBuf, bytes: u64, files: usize) -> Self {
        let mut found = vec![];
        for entry in directory.read_dir().into_iter().flatten().flatten() {
            let digest = entry.file_name().to_str().and_then(|name| name.parse::<Digest>().ok());
            match (digest, entry.metadata()) {
                (Some(digest), Ok(seen)) if seen.is_file() => {
                    found.push(((seen.mtime(), seen.mtime_nsec()), digest, seen.size()));
                }
                _ => remove(&entry.path()),
            }
        }
        found.sort();
        let cache = Self { directory, state: RefCell::default(), max: (bytes, files) };
        for (_, digest, size) in found {
            cache.add(digest, size, None);
        }
        cache.make_room(0, 0);
        cache
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.directory.join(digest.to_string())
    }

    /// To be held while a blob is looked for and fetched, so that it is fetched once.
    pub(super) fn turn(&self, digest: Digest) -> Rc<Mutex<()>> {
        let turns = &mut self.state.borrow_mut().turns;
        turns.retain(|_, turn| Rc::strong_count(turn) > 1);
        Rc::clone(turns.entry(digest).or_default())
    }

    /// Opens a blob at its start; nothing where it is not here or was damaged.
    pub(super) async fn open(&self, digest: Digest) -> Option<File> {
        let path = self.path(&digest);
        let opened = File::open(&path).and_then(|file| file.metadata().map(|seen| (file, seen)));
        let Ok((file, seen)) = opened else {
            self.forget(&digest);
            return None;
        };
        let look = Look::of(&seen);
        let checked = self.state.borrow().held.get(&digest).and_then(|held| held.checked.clone());
        if checked.as_ref() == Some(&look) {
            self.touch(&digest);
            return Some(file);
        }
        let hashed = tokio::task::spawn_blocking(move || hash(file));
        match hashed.await.expect("hashing does not panic") {
            Ok((found, file)) if found == digest => {
                self.add(digest, look.size, Some(look));
                Some(file)
            }
            damaged => {
                let why = damaged.map_or_else(|error| error.to_string(), |(d, _)| d.to_string());
                tracing::warn!("{} is damaged ({why}); it is fetched again", path.display());
                self.forget(&digest);
                remove(&path);
                None
            }
        }
    }

    /// Begins to take a blob.
    ///
    /// # Errors
    /// The disk refuses.
    pub(super) fn begin(&self) -> io::Result<Partial> {
        let number = {
            let state = &mut *self.state.borrow_mut();
            state.partial += 1;
            state.partial
        };
        let path = self.directory.join(format!("{PARTIAL}{number}"));
        let mut options = File::options();
        let file = options.read(true).write(true).create(true).truncate(true).mode(0o600);
        Ok(Partial { file: file.open(&path)?, path })
    }

    /// Keeps a blob whose digest was checked, and gives it back at its start.
    ///
    /// # Errors
    /// The disk refuses.
    pub(super) fn finish(&self, partial: Partial, digest: Digest) -> io::Result<File> {
        let mut file = partial.file.try_clone()?;
        let size = file.metadata()?.size();
        self.make_room(size, 1);
        std::fs::rename(&partial.path, self.path(&digest))?;
        // The rename counts as a change.
        let look = Look::of(&file.metadata()?);
        self.add(digest, size, Some(look));
        file.rewind()?;
        Ok(file)
    }

    /// Removes all, as the disk is full.
    pub(super) fn clear(&self) {
        self.make_room(u64::MAX, usize::MAX);
    }

    fn add(&self, digest: Digest, size: u64, checked: Option<Look>) {
        self.forget(&digest);
        let state = &mut *self.state.borrow_mut();
        state.uses += 1;
        state.bytes += size;
        state.held.insert(digest, Held { size, used: state.uses, checked });
    }

    fn touch(&self, digest: &Digest) {
        let state = &mut *self.state.borrow_mut();
        state.uses += 1;
        if let Some(held) = state.held.get_mut(digest) {
            held.used = state.uses;
        }
    }

    fn forget(&self, digest: &Digest) {
        let state = &mut *self.state.borrow_mut();
        if let Some(held) = state.held.remove(digest) {
            state.bytes -= held.size;
        }
    }

    /// Removes what was used least recently until there is room for so much more. A blob that is
    /// larger than all that may be held is held alone.
    fn make_room(&self, bytes: u64, files: usize) {
        let fits = |state: &State| {
            state.bytes.saturating_add(bytes) <= self.max.0
                && state.held.len().saturating_add(files) <= self.max.1
        };
        let mut order = None;
        while !fits(&self.state.borrow()) {
            // Sorted once, however many go.
            let order = order.get_or_insert_with(|| {
                let state = self.state.borrow();
                let mut all: Vec<_> = state.held.iter().map(|(d, held)| (held.used, *d)).collect();
                all.sort_by(|a, b| b.cmp(a));
                all
            });
            let Some((_, digest)) = order.pop() else { return };
            self.forget(&digest);
            remove(&self.path(&digest));
        }
    }
}

fn hash(mut file: File) -> io::Result<(Digest, File)> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(&mut file)?;
    file.rewind()?;
    Ok((Digest(*hasher.finalize().as_bytes()), file))
}

fn remove(path: &Path) {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!("cannot remove {}: {error}", path.display());
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    fn put(cache: &Cache, text: &str) -> Digest {
        let digest = Digest::of(text.as_bytes());
        let mut partial = cache.begin().expect("room");
        partial.file.write_all(text.as_bytes()).expect("room");
        cache.finish(partial, digest).expect("room");
        digest
    }

    async fn get(cache: &Cache, digest: Digest) -> Option<String> {
        let mut text = String::new();
        cache.open(digest).await?.read_to_string(&mut text).expect("readable");
        Some(text)
    }

    fn count(directory: &tempfile::TempDir) -> usize {
        directory.path().read_dir().expect("readable").count()
    }

    #[tokio::test(flavor = "current_thread")]
    async fn the_least_used_blobs_go_first_also_in_the_next_life() {
        let directory = tempfile::tempdir().expect("a directory");
        let cache = Cache::bounded(directory.path().to_owned(), 10, 3);
        let [a, b, c] = ["aaa", "bbb", "ccc"].map(|text| put(&cache, text));
        assert_eq!(get(&cache, a).await.as_deref(), Some("aaa"));
        let d = put(&cache, "dd");
        assert_eq!(get(&cache, b).await, None, "b was used least");
        assert_eq!(get(&cache, c).await.as_deref(), Some("ccc"));
        put(&cache, "eeeeeeeee");
        assert_eq!((get(&cache, a).await, get(&cache, d).await), (None, None));
        drop(cache.begin().expect("room"));
        std::mem::forget(cache.begin().expect("room"));
        assert_eq!(count(&directory), 2);
        let cache = Cache::bounded(directory.path().to_owned(), 8, 3);
        assert_eq!(count(&directory), 0, "it is over the bound that holds now");
        let long = put(&cache, "longer than all");
        assert_eq!(get(&cache, long).await.as_deref(), Some("longer than all"));
        cache.clear();
        assert_eq!(count(&directory), 0);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a20_a_damaged_blob_is_found_when_it_is_used() {
        let directory = tempfile::tempdir().expect("a directory");
        let cache = Cache::new(directory.path().to_owned());
        for damage in ["tex", "texT", ""] {
            let digest = put(&cache, "text");
            std::fs::write(cache.path(&digest), damage).expect("room");
            assert_eq!(get(&cache, digest).await, None);
            assert_eq!(count(&directory), 0);
        }
        let digest = put(&cache, "text");
        let again = Cache::new(directory.path().to_owned());
        assert_eq!(get(&again, digest).await.as_deref(), Some("text"));
        std::fs::write(cache.path(&digest), "more").expect("room");
        assert_eq!(get(&Cache::new(directory.path().to_owned()), digest).await, None);
    }
}
