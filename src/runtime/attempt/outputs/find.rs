//! Which files a spec's outputs mean: paths, patterns, directories.
//!
//! Reads names and opens nothing for reading. All is looked up beneath the job's directory: links
//! inside are followed, links out are refused by name, and so are devices, fifos and sockets.
//! `*`, `?` and `[…]` stand for parts of one name and not for a dot at its begin; `**` for any
//! directories, but not through links. A directory means all files below it.
//! Law: what is found lies beneath the directory, however the job placed its links
//! (tests of outputs.rs). Source: openat2(2) `RESOLVE_BENEATH`; POSIX.1-2024 shell patterns.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::Metadata;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;

use glob::{MatchOptions, Pattern};
use rustix::fs::{self, Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::proto::limits;

use super::super::BrokenOff;

/// Tries of a look-up that was disturbed by a change.
const TRIES_MAX: u32 = 16;

const MATCH: MatchOptions = MatchOptions {
    case_sensitive: true,
    require_literal_separator: true,
    require_literal_leading_dot: true,
};

/// Device and inode: the same file under whatever name.
pub(super) type Identity = (u64, u64);

pub(super) fn identity(seen: &Metadata) -> Identity {
    (seen.dev(), seen.ino())
}

/// What was found.
#[derive(Debug)]
pub(super) struct Found {
    /// The job's directory.
    pub(super) root: OwnedFd,
    /// Regular files by path.
    pub(super) files: BTreeMap<String, Identity>,
    /// The first of those that cannot be kept, or are not there.
    pub(super) error: Option<String>,
    names: BTreeMap<Identity, u32>,
}

impl Found {
    /// How many of the paths mean this file.
    pub(super) fn names_of(&self, id: Identity) -> u32 {
        self.names.get(&id).copied().unwrap_or(0)
    }
}

/// Finds the files. A path without a pattern that is not there is an error where `all` are due.
///
/// # Errors
/// There are too many.
pub(super) fn find(
    root: OwnedFd,
    wanted: &[String],
    all: bool,
    broken_off: &BrokenOff,
) -> Result<Found, String> {
    let found = Found { root, files: BTreeMap::new(), error: None, names: BTreeMap::new() };
    let mut finder = Finder { found, above: vec![], bytes: 0, seen: 0, broken_off };
    for path in wanted {
        let parts = parts(path);
        if parts.iter().all(|part| matches!(part, Part::Name(_))) {
            if !finder.add(path)? && all {
                finder.refuse(format!("output {path:?} was not made"));
            }
        } else {
            finder.expand("", &parts)?;
        }
    }
    Ok(finder.found)
}

enum Part<'a> {
    Name(&'a str),
    Any(Pattern),
    Deep,
}

fn parts(path: &str) -> Vec<Part<'_>> {
    let mut parts = vec![];
    for text in path.split('/') {
        let part = match text {
            "**" if matches!(parts.last(), Some(Part::Deep)) => continue,
            "**" => Part::Deep,
            _ if text.contains(['*', '?', '[']) => {
                let mut plain = text.to_owned();
                while plain.contains("**") {
                    plain = plain.replace("**", "*");
                }
                // As in a shell, what is no pattern after all is a name.
                Pattern::new(&plain).map_or(Part::Name(text), Part::Any)
            }
            _ => Part::Name(text),
        };
        parts.push(part);
    }
    parts
}

struct Finder<'a> {
    found: Found,
    /// The directories that the one at hand is in.
    above: Vec<Identity>,
    bytes: usize,
    seen: usize,
    broken_off: &'a BrokenOff,
}

struct Name {
    name: CString,
    kind: FileType,
}

fn join(at: &str, name: &str) -> String {
    if at.is_empty() { name.to_owned() } else { format!("{at}/{name}") }
}

impl Finder<'_> {
    fn refuse(&mut self, error: String) {
        self.found.error.get_or_insert(error);
    }

    /// Adds what fits the parts below `at`, which is empty for the job's directory itself.
    fn expand(&mut self, at: &str, parts: &[Part<'_>]) -> Result<(), String> {
        match parts.split_first() {
            None if at.is_empty() => self.add_all(""),
            None => self.add(at).map(drop),
            Some((Part::Name(name), rest)) => self.expand(&join(at, name), rest),
            Some((Part::Any(pattern), rest)) => {
                for Name { name, .. } in self.list(at)? {
                    if !pattern.matches_with(&name.to_string_lossy(), MATCH) {
                        continue;
                    }
                    if let Some(name) = self.text(at, &name) {
                        self.expand(&join(at, &name), rest)?;
                    }
                }
                Ok(())
            }
            Some((Part::Deep, rest)) => {
                self.expand(at, rest)?;
                if rest.is_empty() {
                    return Ok(());
                }
                for Name { name, kind } in self.list(at)? {
                    let hidden = name.to_bytes().starts_with(b".");
                    if kind == FileType::Directory
                        && !hidden
                        && let Some(name) = self.text(at, &name)
                    {
                        self.expand(&join(at, &name), parts)?;
                    }
                }
                Ok(())
            }
        }
    }

    /// Adds a file, or all files below a directory; false where there is nothing.
    fn add(&mut self, path: &str) -> Result<bool, String> {
        let seen = open_beneath(&self.found.root, path, OFlags::PATH)
            .and_then(|opened| fs::fstat(&opened));
        let seen = match seen {
            Ok(seen) => seen,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(false),
            Err(errno) => {
                self.refuse_errno(path, errno);
                return Ok(true);
            }
        };
        let id = (seen.st_dev, seen.st_ino);
        let what = match FileType::from_raw_mode(seen.st_mode) {
            FileType::RegularFile => return self.insert(path, id).map(|()| true),
            FileType::Directory if self.above.contains(&id) => {
                self.refuse(format!("output {path:?} is a link that leads round in a circle"));
                return Ok(true);
            }
            FileType::Directory => {
                self.above.push(id);
                let added = self.add_all(path);
                self.above.pop();
                return added.map(|()| true);
            }
            FileType::Fifo => "a fifo",
            FileType::Socket => "a socket",
            FileType::CharacterDevice | FileType::BlockDevice => "a device",
            _ => "of an unknown kind",
        };
        self.refuse(format!("output {path:?} is {what}, not a file"));
        Ok(true)
    }

    fn add_all(&mut self, at: &str) -> Result<(), String> {
        for Name { name, .. } in self.list(at)? {
            let Some(name) = self.text(at, &name) else { continue };
            let path = join(at, &name);
            if !self.add(&path)? {
                self.refuse(format!("output {path:?} is a link that leads nowhere"));
            }
        }
        Ok(())
    }

    fn insert(&mut self, path: &str, id: Identity) -> Result<(), String> {
        if self.found.files.insert(path.to_owned(), id).is_some() {
            return Ok(());
        }
        *self.found.names.entry(id).or_default() += 1;
        // As long as they are in the JSON of the result.
        self.bytes += serde_json::to_string(path).map_or(path.len(), |text| text.len());
        if self.found.files.len() > limits::OUTPUT_FILES_MAX {
            let max = limits::OUTPUT_FILES_MAX;
            return Err(format!("the outputs are more than {max} files; pack them into one"));
        }
        if self.bytes > limits::OUTPUT_PATHS_BYTES_MAX {
            let max = limits::OUTPUT_PATHS_BYTES_MAX;
            return Err(format!("the outputs' paths are over {max} bytes; pack them into one"));
        }
        Ok(())
    }

    /// The names in a directory, in order; none where it is none.
    fn list(&mut self, at: &str) -> Result<Vec<Name>, String> {
        let path = if at.is_empty() { "." } else { at };
        let opened = open_beneath(&self.found.root, path, OFlags::RDONLY | OFlags::DIRECTORY)
            .and_then(|opened| Dir::read_from(&opened));
        let directory = match opened {
            Ok(directory) => directory,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(vec![]),
            Err(errno) => {
                self.refuse_errno(path, errno);
                return Ok(vec![]);
            }
        };
        let mut names = vec![];
        for entry in directory {
            let entry = entry.map_err(|errno| format!("cannot read {path:?}: {errno}"))?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            self.seen += 1;
            if self.seen > limits::OUTPUT_NAMES_MAX {
                let max = limits::OUTPUT_NAMES_MAX;
                return Err(format!("over {max} names were looked at for the outputs; name less"));
            }
            if self.broken_off.is_set() {
                return Err("stopped while the outputs were looked for".into());
            }
            names.push(Name { name: name.to_owned(), kind: entry.file_type() });
        }
        names.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(names)
    }

    fn text(&mut self, at: &str, name: &CString) -> Option<String> {
        let text = name.to_str().ok().map(str::to_owned);
        if text.is_none() {
            let shown = join(at, &name.to_string_lossy());
            self.refuse(format!("a name that is not UTF-8 cannot be an output: {shown:?}"));
        }
        text
    }

    fn refuse_errno(&mut self, path: &str, errno: Errno) {
        let why = match errno {
            Errno::XDEV => "is a link that leads out of the job's directory".to_owned(),
            Errno::LOOP => "is a link that cannot be followed".to_owned(),
            other => format!("cannot be opened: {other}"),
        };
        self.refuse(format!("output {path:?} {why}"));
    }
}

/// Opens a path beneath a directory; links that lead out of it give `XDEV`.
pub(in crate::runtime::attempt) fn open_beneath(
    root: &OwnedFd,
    path: &str,
    flags: OFlags,
) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..TRIES_MAX {
        match fs::openat2(root, path, flags, Mode::empty(), resolve) {
            // Something was renamed meanwhile.
            Err(Errno::AGAIN | Errno::INTR) => {}
            // Before Linux 5.6, or forbidden by a filter of system calls.
            Err(Errno::NOSYS | Errno::PERM) => return open_by_parts(root, path, flags),
            opened => return opened,
        }
    }
    Err(Errno::AGAIN)
}

/// The same where the kernel does not know how: no link is followed.
fn open_by_parts(root: &OwnedFd, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    let (above, last) = path.rsplit_once('/').unwrap_or((".", path));
    let inner = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut at = fs::openat(root, ".", inner, Mode::empty())?;
    for name in above.split('/') {
        at = fs::openat(&at, name, inner, Mode::empty())?;
    }
    let opened = fs::openat(&at, last, flags | OFlags::NOFOLLOW, Mode::empty())?;
    // A descriptor that is only a path is also given of a link itself.
    match FileType::from_raw_mode(fs::fstat(&opened)?.st_mode) {
        FileType::Symlink => Err(Errno::LOOP),
        _ => Ok(opened),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_the_kernels_help_no_link_is_followed() {
        let place = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(place.path().join("in")).expect("room");
        std::fs::write(place.path().join("in/a"), "").expect("room");
        std::os::unix::fs::symlink("in", place.path().join("to")).expect("room");
        std::os::unix::fs::symlink("a", place.path().join("in/b")).expect("room");
        let root = fs::open(place.path(), OFlags::RDONLY, Mode::empty()).expect("it is there");
        for flags in [OFlags::RDONLY, OFlags::PATH] {
            for good in ["in/a", "in", "."] {
                open_by_parts(&root, good, flags).expect(good);
            }
            for bad in ["to/a", "in/b", "to"] {
                assert!(open_by_parts(&root, bad, flags).is_err(), "{bad}");
            }
        }
        assert_eq!(open_by_parts(&root, "no", OFlags::PATH).err(), Some(Errno::NOENT));
    }
}
