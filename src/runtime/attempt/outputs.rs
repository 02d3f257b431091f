//! What a job left behind and its spec names: found, taken out of its directory, hashed.
//!
//! Finding is outputs/find.rs; uploading is executor/blobs.rs. Shape: the file of the n-th path in
//! order is `OUTPUT/ATTEMPT.out-N`, from 0 without gaps; renamed where that is possible, so that
//! its size does not matter, else copied (another file system, several names of one file).
//! Law: either all that was found is kept, or nothing of it and an error says why
//! (tests/exec/files.rs).

pub(super) mod find;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{self, AtFlags, OFlags};

use crate::proto::id::{AttemptId, Digest};
use crate::proto::limits;
use crate::proto::result::OutputFile;

use super::{BrokenOff, inputs};
use find::{Found, Identity, identity};

/// Bytes read at a time to be hashed.
const HASH_PIECE_BYTES: usize = 128 << 10;

/// Where the files of one attempt are kept.
#[derive(Debug, Clone)]
pub struct Place {
    directory: PathBuf,
    attempt: String,
}

impl Place {
    /// The files of an attempt in a directory of outputs.
    #[must_use]
    pub fn new(directory: &Path, attempt: &AttemptId) -> Self {
        Self { directory: directory.to_owned(), attempt: attempt.to_string() }
    }

    /// Where the file of the n-th path is.
    #[must_use]
    pub fn file(&self, n: usize) -> PathBuf {
        self.directory.join(format!("{}.out-{n}", self.attempt))
    }

    /// Removes them all.
    pub fn discard(&self) {
        for n in 0.. {
            let path = self.file(n);
            match std::fs::remove_file(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => return,
                Err(error) => tracing::warn!("cannot remove {}: {error}", path.display()),
            }
        }
    }
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Kept {
    /// The files by path.
    pub files: BTreeMap<String, OutputFile>,
    /// What is wrong with some, or why there are none.
    pub error: Option<String>,
}

/// Takes what `wanted` names out of the directory `work`, in which nobody writes any more. A path
/// that is not there is an error where `all` are to be there.
#[must_use]
pub fn keep(
    work: OwnedFd,
    wanted: &[String],
    all: bool,
    place: &Place,
    broken_off: &BrokenOff,
) -> Kept {
    let found = match find::find(work, wanted, all, broken_off) {
        Ok(found) => found,
        Err(error) => return Kept { error: Some(error), ..Kept::default() },
    };
    let mut files = BTreeMap::new();
    for (n, (path, id)) in found.files.iter().enumerate() {
        let kept = match broken_off.is_set() {
            true => Err("stopped while it was kept".to_owned()),
            false => keep_one(&found, path, *id, &place.file(n), broken_off),
        };
        match kept {
            Ok(file) => drop(files.insert(path.clone(), file)),
            Err(error) => {
                // The one that failed may have left a piece.
                let _ = std::fs::remove_file(place.file(n));
                place.discard();
                let error = format!("output {path:?}: {error}; no outputs are kept");
                return Kept { error: Some(error), ..Kept::default() };
            }
        }
    }
    Kept { files, error: found.error }
}

fn keep_one(
    found: &Found,
    path: &str,
    id: Identity,
    target: &Path,
    broken_off: &BrokenOff,
) -> Result<OutputFile, String> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let opened = find::open_beneath(&found.root, path, flags);
    let mut file = File::from(opened.map_err(|errno| format!("cannot be opened: {errno}"))?);
    let failed = |error: io::Error| format!("cannot be kept: {error}");
    let seen = file.metadata().map_err(failed)?;
    if !seen.is_file() || identity(&seen) != id {
        return Err("was exchanged while it was kept".into());
    }
    if seen.size() > limits::BLOB_BYTES_MAX {
        let max = limits::BLOB_BYTES_MAX;
        return Err(format!("has {} bytes, and a blob has at most {max}", seen.size()));
    }
    let alone = seen.nlink() == 1 && found.names_of(id) == 1;
    if alone && take_out(found, path, id, target) {
        file.set_permissions(Permissions::from_mode(0o600)).map_err(failed)?;
    } else {
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(true).mode(0o600);
        let mut copy = options.open(target).map_err(failed)?;
        inputs::copy(file, &mut copy, broken_off).map_err(failed)?;
        io::Seek::rewind(&mut copy).map_err(failed)?;
        file = copy;
    }
    let (size, blob) = digest(file, broken_off).map_err(failed)?;
    Ok(OutputFile { size, blob, executable: seen.mode() & 0o100 != 0 })
}

/// Moves a file out of the job's directory; false where it must be copied. A link is not moved,
/// but what it leads to is copied.
fn take_out(found: &Found, path: &str, id: Identity, target: &Path) -> bool {
    let (above, name) = path.rsplit_once('/').unwrap_or((".", path));
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let moved = || -> io::Result<bool> {
        let above: OwnedFd = find::open_beneath(&found.root, above, flags)?;
        let named = fs::statat(&above, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if (named.st_dev, named.st_ino) != id {
            return Ok(false);
        }
        fs::renameat(&above, name, fs::CWD, target)?;
        Ok(true)
    };
    moved().unwrap_or(false)
}

/// The size and the digest of a file's content, from where it stands.
pub(super) fn digest(mut file: File, broken_off: &BrokenOff) -> io::Result<(u64, Digest)> {
    let (mut hasher, mut size) = (blake3::Hasher::new(), 0);
    let mut buffer = vec![0; HASH_PIECE_BYTES];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok((size, Digest(*hasher.finalize().as_bytes()))),
            Ok(count) => {
                hasher.update(&buffer[..count]);
                size += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if broken_off.is_set() {
            return Err(io::Error::other("stopped meanwhile"));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    struct Bench {
        place: tempfile::TempDir,
    }

    impl Bench {
        fn new() -> Self {
            let place = tempfile::tempdir().expect("a directory");
            for name in ["work", "output", "outside"] {
                std::fs::create_dir(place.path().join(name)).expect("room");
            }
            Self { place }
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.place.path().join("work").join(path);
            std::fs::create_dir_all(path.parent().expect("below work")).expect("room");
            std::fs::write(path, text).expect("room");
        }

        fn link(&self, path: &str, to: &str) {
            symlink(to, self.place.path().join("work").join(path)).expect("room");
        }

        fn keep(&self, wanted: &[&str], all: bool) -> Kept {
            let wanted: Vec<String> = wanted.iter().map(|path| (*path).to_owned()).collect();
            let place = self.output();
            let work = File::open(self.place.path().join("work")).expect("a directory");
            keep(work.into(), &wanted, all, &place, &BrokenOff::default())
        }

        fn output(&self) -> Place {
            let attempt = "north-1.1".parse().expect("an attempt");
            Place::new(&self.place.path().join("output"), &attempt)
        }

        fn left(&self) -> usize {
            self.place.path().join("output").read_dir().expect("readable").count()
        }
    }

    fn paths(kept: &Kept) -> Vec<&str> {
        kept.files.keys().map(String::as_str).collect()
    }

    #[test]
    fn paths_patterns_and_directories_name_what_is_kept() {
        for (wanted, expected) in [
            (&["a.txt"][..], &["a.txt"][..]),
            (&["*.txt"], &["a.txt", "b.txt"]),
            (&["?.txt", "a.txt"], &["a.txt", "b.txt"]),
            (&["[!a].txt"], &["b.txt"]),
            (&["out"], &["out/.hidden", "out/c.csv", "out/deep/d.csv"]),
            (&["out/*"], &["out/c.csv", "out/deep/d.csv"]),
            (&["out/*.csv"], &["out/c.csv"]),
            (&["**/*.csv"], &["out/c.csv", "out/deep/d.csv"]),
            (&["out/**/d.csv"], &["out/deep/d.csv"]),
            (&["*/*/*"], &["out/deep/d.csv"]),
            (&["out/.*"], &["out/.hidden"]),
            (&["*.none", "no/**"], &[]),
            (&["x[y"], &["x[y"]),
        ] {
            let bench = Bench::new();
            for path in ["a.txt", "b.txt", "out/c.csv", "out/deep/d.csv", "out/.hidden", "x[y"] {
                bench.write(path, path);
            }
            let kept = bench.keep(wanted, true);
            assert_eq!((paths(&kept), &kept.error), (expected.to_vec(), &None), "{wanted:?}");
            for (n, (path, file)) in kept.files.iter().enumerate() {
                let bytes = std::fs::read(bench.output().file(n)).expect("it is kept");
                assert_eq!((bytes.as_slice(), file.blob), (path.as_bytes(), Digest::of(&bytes)));
            }
            assert_eq!(bench.left(), expected.len());
            bench.output().discard();
            assert_eq!(bench.left(), 0);
        }
    }

    #[test]
    fn links_inside_are_content_and_links_out_are_refused_by_name() {
        let bench = Bench::new();
        bench.write("in/a", "content");
        bench.link("to-a", "in/a");
        bench.link("to-in", "in");
        std::fs::hard_link(
            bench.place.path().join("work/in/a"),
            bench.place.path().join("work/twin"),
        )
        .expect("room");
        let kept = bench.keep(&["to-a", "to-in", "in/a", "twin"], true);
        assert_eq!((paths(&kept), &kept.error), (vec!["in/a", "to-a", "to-in/a", "twin"], &None));
        assert!(kept.files.values().all(|file| file.blob == Digest::of(b"content")));
        std::fs::write(bench.place.path().join("outside/secret"), "secret").expect("room");
        bench.link("absolute", "/etc/passwd");
        bench.link("up", "../outside/secret");
        bench.link("above", "../outside");
        bench.write("loop/a", "a");
        bench.link("loop/round", ".");
        bench.link("nowhere", "no/file");
        for (wanted, words) in [
            ("absolute", "output \"absolute\" is a link that leads out of the job's directory"),
            ("up", "output \"up\" is a link that leads out"),
            ("above/secret", "output \"above/secret\" is a link that leads out"),
            ("above", "output \"above\" is a link that leads out"),
            ("above/*", "output \"above\" is a link that leads out"),
            ("loop", "output \"loop/round\" is a link that leads round in a circle"),
            ("nowhere", "output \"nowhere\" was not made"),
        ] {
            let kept = bench.keep(&[wanted], true);
            let error = kept.error.unwrap_or_default();
            assert!(error.contains(words), "{wanted}: {error:?}");
            bench.output().discard();
        }
    }

    #[test]
    fn what_is_no_file_is_refused_and_what_is_absent_is_only_missed_where_all_are_due() {
        let bench = Bench::new();
        bench.write("out/a", "a");
        let fifo = bench.place.path().join("work/out/fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("room");
        let socket = bench.place.path().join("work/socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("room");
        let kept = bench.keep(&["out"], true);
        assert_eq!(kept.error.as_deref(), Some("output \"out/fifo\" is a fifo, not a file"));
        assert_eq!(paths(&kept), ["out/a"]);
        let kept = bench.keep(&["socket"], false);
        assert_eq!(kept.error.as_deref(), Some("output \"socket\" is a socket, not a file"));
        let kept = bench.keep(&["absent", "out/a/b"], true);
        assert_eq!(kept.error.as_deref(), Some("output \"absent\" was not made"));
        assert_eq!(bench.keep(&["absent"], false).error, None);
    }

    #[test]
    fn names_that_are_no_text_are_refused() {
        use std::os::unix::ffi::OsStrExt;
        let bench = Bench::new();
        let name = std::ffi::OsStr::from_bytes(b"a\xff");
        std::fs::write(bench.place.path().join("work").join(name), "").expect("room");
        for wanted in ["*", "**/a*"] {
            let kept = bench.keep(&[wanted], true);
            let words = "a name that is not UTF-8 cannot be an output";
            assert!(kept.error.as_deref().is_some_and(|e| e.contains(words)), "{kept:?}");
        }
        assert_eq!(bench.keep(&["b*"], true).error, None);
    }

    #[test]
    fn too_many_files_are_refused_as_a_whole() {
        let bench = Bench::new();
        for n in 0..=limits::OUTPUT_FILES_MAX {
            bench.write(&format!("out/{n}"), "");
        }
        let kept = bench.keep(&["out"], true);
        assert!(kept.files.is_empty() && bench.left() == 0);
        let error = kept.error.expect("too many");
        assert!(error.contains("more than 10000 files"), "{error}");
    }
}
