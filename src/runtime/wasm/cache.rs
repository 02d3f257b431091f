//! Compiled modules on disk, so that a restarted executor does not compile again.
//!
//! Knows nothing of WebAssembly. One file each, `MODULE.ENGINE.CONTENT.code`: the digest of the
//! module, a number for everything that compiled code depends on, and the digest of the file's own
//! bytes. Files are written under a temporary name and renamed. Law: what [`Cache::load`] gives is
//! byte for byte what [`Cache::store`] was given for that module and engine; anything else that
//! lies there is said in the log, removed, and not given out (tests below).

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::futimens;
use nix::sys::time::TimeSpec;

use crate::proto::id::Digest;
use crate::runtime::rundir::{self, DirError, PRIVATE_MODE};

const SUFFIX: &str = "code";
const TEMPORARY: &str = "tmp-";
/// Bytes that are read, hashed and copied at one time, while they are near the processor.
const PIECE_BYTES: usize = 256 << 10;

/// A directory of compiled modules.
#[derive(Debug, Clone)]
pub struct Cache {
    directory: PathBuf,
    bytes_max: u64,
}

struct Entry {
    path: PathBuf,
    content: Digest,
}

impl Cache {
    /// Opens a directory, which is made if need be; what was half written there is removed.
    ///
    /// # Errors
    /// The directory cannot be used.
    pub fn open(directory: PathBuf, bytes_max: u64) -> Result<Self, DirError> {
        rundir::ensure_dir(&directory, PRIVATE_MODE)?;
        let cache = Self { directory, bytes_max };
        for path in cache.paths() {
            if name_of(&path).starts_with(TEMPORARY) {
                remove(&path);
            }
        }
        Ok(cache)
    }

    /// The code of a module for an engine, if it is there and whole: a file in memory, so that
    /// nothing that happens to the disk later changes what runs.
    #[must_use]
    pub fn load(&self, module: Digest, engine: u64) -> Option<File> {
        let entry = self.find(module, engine)?;
        match read(&entry.path) {
            Ok((code, content)) if content == entry.content => Some(code),
            Ok(_) => {
                tracing::warn!("{} is damaged; the module is compiled again", entry.path.display());
                remove(&entry.path);
                None
            }
            Err(error) => {
                tracing::warn!("cannot read {}: {error}", entry.path.display());
                None
            }
        }
    }

    /// Keeps code. Without room on the disk it is not kept, and the log says so.
    pub fn store(&self, module: Digest, engine: u64, code: &[u8]) {
        self.forget(module, engine);
        let name = format!("{}{}.{SUFFIX}", prefix(module, engine), Digest::of(code));
        let temporary = format!("{TEMPORARY}{}-{module}", std::process::id());
        let (path, temporary) = (self.directory.join(name), self.directory.join(temporary));
        let written = write(&temporary, code).and_then(|()| std::fs::rename(&temporary, &path));
        if let Err(error) = written {
            tracing::warn!("compiled code is not kept: cannot write {}: {error}", path.display());
            remove(&temporary);
            return;
        }
        self.prune(&path);
    }

    /// Removes the code of a module for an engine.
    pub fn forget(&self, module: Digest, engine: u64) {
        if let Some(entry) = self.find(module, engine) {
            remove(&entry.path);
        }
    }

    fn paths(&self) -> impl Iterator<Item = PathBuf> {
        let entries = self.directory.read_dir().into_iter().flatten().flatten();
        entries.map(|entry| entry.path())
    }

    fn find(&self, module: Digest, engine: u64) -> Option<Entry> {
        let prefix = prefix(module, engine);
        self.paths().find_map(|path| {
            let rest = name_of(&path).strip_prefix(&prefix)?;
            let content = rest.strip_suffix(SUFFIX)?.strip_suffix('.')?.parse().ok()?;
            Some(Entry { path, content })
        })
    }

    /// Removes what was not used for longest until the rest fits; never `keep`.
    fn prune(&self, keep: &Path) {
        let held = |path: PathBuf| {
            let about = path.metadata().ok()?;
            let used = about.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            (path != keep || about.len() == 0).then_some((used, about.len(), path))
        };
        let mut others: Vec<_> = self.paths().filter_map(held).collect();
        let kept = keep.metadata().map_or(0, |about| about.len());
        let mut size = others.iter().fold(kept, |size, (_, bytes, _)| size + bytes);
        others.sort();
        for (_, bytes, path) in others {
            if size <= self.bytes_max {
                return;
            }
            remove(&path);
            size -= bytes;
        }
    }
}

fn prefix(module: Digest, engine: u64) -> String {
    format!("{module}.{engine:016x}.")
}

fn name_of(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or("")
}

/// Copies a file to memory, and gives the digest of what is there now.
fn read(path: &Path) -> io::Result<(File, Digest)> {
    let mut file = File::open(path)?;
    let mut code = File::from(memfd_create(c"ucp-code", MFdFlags::MFD_CLOEXEC)?);
    let mut hasher = blake3::Hasher::new();
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match file.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => {
                hasher.update(&piece[..count]);
                code.write_all(&piece[..count])?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    // The time of the last use; some file systems know none.
    if let Err(error) = futimens(&file, &TimeSpec::UTIME_NOW, &TimeSpec::UTIME_NOW) {
        tracing::debug!("cannot touch {}: {error}", path.display());
    }
    code.rewind()?;
    Ok((code, Digest(*hasher.finalize().as_bytes())))
}

fn write(path: &Path, code: &[u8]) -> io::Result<()> {
    let mut options = File::options();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(code)
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
    use super::*;

    fn cache(directory: &tempfile::TempDir, bytes_max: u64) -> Cache {
        Cache::open(directory.path().join("wasm"), bytes_max).expect("a directory")
    }

    fn loaded(cache: &Cache, module: Digest, engine: u64) -> Option<Vec<u8>> {
        let mut code = vec![];
        cache.load(module, engine)?.read_to_end(&mut code).expect("memory");
        Some(code)
    }

    fn names(cache: &Cache) -> Vec<String> {
        let mut names: Vec<_> = cache.paths().map(|path| name_of(&path).to_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn what_was_stored_is_given_out_for_its_module_and_engine_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let cache = cache(&directory, 1000);
        let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
        assert_eq!(loaded(&cache, one, 7), None);
        cache.store(one, 7, b"code");
        cache.store(two, 7, b"other");
        assert_eq!(loaded(&cache, one, 7).as_deref(), Some(&b"code"[..]));
        assert_eq!(loaded(&cache, one, 8), None);
        cache.store(one, 7, b"again");
        assert_eq!(loaded(&cache, one, 7).as_deref(), Some(&b"again"[..]));
        assert_eq!(names(&cache).len(), 2);
        let path = cache.paths().next().expect("a file");
        let mode = std::os::unix::fs::MetadataExt::mode(&path.metadata().expect("a file"));
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a20_damaged_code_is_not_given_out_and_is_removed() {
        let directory = tempfile::tempdir().expect("a directory");
        let cache = cache(&directory, 1000);
        let one = Digest::of(b"1");
        for damage in [&b"c0de"[..], b"", b"cod", b"code\0"] {
            cache.store(one, 7, b"code");
            let path = cache.paths().next().expect("a file");
            std::fs::write(&path, damage).expect("room");
            assert_eq!(loaded(&cache, one, 7), None);
            assert_eq!(names(&cache), [""; 0]);
        }
        let stray = cache.directory.join(format!("{}garbage.code", prefix(one, 7)));
        std::fs::create_dir(&stray).expect("room");
        std::fs::write(cache.directory.join("\u{fffd}"), "x").expect("room");
        assert_eq!(loaded(&cache, one, 7), None);
        cache.store(one, 7, b"code");
        assert_eq!(loaded(&cache, one, 7).as_deref(), Some(&b"code"[..]));
    }

    #[test]
    fn what_is_half_written_goes_at_the_start() {
        let directory = tempfile::tempdir().expect("a directory");
        let first = cache(&directory, 1000);
        std::fs::write(first.directory.join("tmp-1-x"), "half").expect("room");
        assert_eq!(names(&cache(&directory, 1000)), [""; 0]);
    }

    #[test]
    fn the_least_used_code_makes_room() {
        let directory = tempfile::tempdir().expect("a directory");
        let cache = cache(&directory, 10);
        let modules = [Digest::of(b"1"), Digest::of(b"2"), Digest::of(b"3")];
        for (age, module) in modules.iter().take(2).enumerate() {
            cache.store(*module, 7, b"12345");
            let path = cache.find(*module, 7).expect("kept").path;
            let file = File::options().write(true).open(path).expect("a file");
            let at = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(age as u64 + 1);
            file.set_modified(at).expect("our own file");
        }
        assert!(cache.load(modules[0], 7).is_some(), "and is now the one used last");
        cache.store(modules[2], 7, b"12345");
        assert!(cache.load(modules[1], 7).is_none());
        assert!(cache.load(modules[0], 7).is_some() && cache.load(modules[2], 7).is_some());
        cache.store(modules[1], 7, b"more than there may be");
        assert!(cache.load(modules[1], 7).is_some(), "the one that is in use stays");
        assert_eq!(names(&cache).len(), 1);
    }
}
