//! What is in the directory of a job's state at one look: names, and what tells a change.
//!
//! Opens no file and follows no link. Two equal listings mean that nothing was changed between the
//! end of the first and the begin of the second, where the newest change was a step of the file
//! system's clock before: every change of a file, its name or its content, sets the time of its
//! last change, which nobody can set otherwise. Not seen is what is written through a mapping of
//! the file into memory: a job that keeps its state so should write the file instead.
//! Source: stat(2), `st_ctim`; inode(7).

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use rustix::fs::{self, AtFlags, Dir, FileType, OFlags, Stat};
use rustix::io::Errno;

use crate::proto::limits;
use crate::runtime::attempt::BrokenOff;
use crate::runtime::attempt::outputs::find::open_beneath;

/// What a file or directory looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Look {
    identity: (u64, u64),
    pub(super) size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    pub(super) executable: bool,
}

impl Look {
    #[allow(clippy::unnecessary_cast, reason = "the types differ between architectures")]
    pub(super) fn of(seen: &Stat) -> Self {
        Self {
            identity: (seen.st_dev as u64, seen.st_ino as u64),
            size: u64::try_from(seen.st_size).unwrap_or(0),
            modified: (seen.st_mtime as i64, seen.st_mtime_nsec as i64),
            changed: (seen.st_ctime as i64, seen.st_ctime_nsec as i64),
            executable: seen.st_mode & 0o100 != 0,
        }
    }
}

/// All that is there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Listing {
    pub(super) files: BTreeMap<String, Look>,
    /// The directories; the job's own has an empty name.
    pub(super) dirs: BTreeMap<String, Look>,
    /// What cannot be kept, in words: the first by name.
    pub(super) left_out: Option<String>,
    bytes: u64,
}

/// Why there is no listing.
#[derive(Debug)]
pub(super) enum NoListing {
    /// Something changed meanwhile.
    Disturbed,
    /// In words.
    Refused(String),
}

/// Looks at everything below a directory.
pub(super) fn list(root: &OwnedFd, broken_off: &BrokenOff) -> Result<Listing, NoListing> {
    let mut listing = Listing::default();
    let mut waiting = vec![String::new()];
    while let Some(at) = waiting.pop() {
        if broken_off.is_set() {
            return Err(NoListing::Disturbed);
        }
        listing.add_directory(root, &at, &mut waiting).map_err(|error| error.named(&at))?;
        let names = listing.files.len() + listing.dirs.len();
        // The job's own directory counts as none.
        if names > limits::CHECKPOINT_FILES_MAX + 1 {
            let max = limits::CHECKPOINT_FILES_MAX;
            return Err(NoListing::Refused(format!("it is more than {max} files; pack them")));
        }
        if listing.bytes > limits::CHECKPOINT_BYTES_MAX {
            let max = limits::CHECKPOINT_BYTES_MAX;
            return Err(NoListing::Refused(format!("it is over {max} bytes")));
        }
    }
    Ok(listing)
}

enum Failed {
    TooMany,
    System(Errno),
}

impl From<Errno> for Failed {
    fn from(errno: Errno) -> Self {
        Self::System(errno)
    }
}

impl Failed {
    fn named(&self, at: &str) -> NoListing {
        match self {
            Self::System(
                Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV | Errno::AGAIN,
            ) => NoListing::Disturbed,
            Self::System(errno) => NoListing::Refused(format!("{at:?} cannot be read: {errno}")),
            Self::TooMany => {
                let max = limits::CHECKPOINT_FILES_MAX;
                NoListing::Refused(format!("{at:?} has more than {max} names; pack them"))
            }
        }
    }
}

impl Listing {
    fn add_directory(
        &mut self,
        root: &OwnedFd,
        at: &str,
        waiting: &mut Vec<String>,
    ) -> Result<(), Failed> {
        let path = if at.is_empty() { "." } else { at };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let directory = open_beneath(root, path, flags)?;
        self.dirs.insert(at.to_owned(), Look::of(&fs::fstat(&directory)?));
        let mut count = 0;
        for entry in Dir::read_from(&directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            count += 1;
            if count > limits::CHECKPOINT_FILES_MAX {
                return Err(Failed::TooMany);
            }
            let shown = name.to_string_lossy();
            let path = if at.is_empty() { shown.to_string() } else { format!("{at}/{shown}") };
            let seen = fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
            let what = match FileType::from_raw_mode(seen.st_mode) {
                _ if name.to_str().is_err() => "has a name that is not UTF-8",
                FileType::RegularFile => {
                    let look = Look::of(&seen);
                    self.bytes = self.bytes.saturating_add(look.size);
                    self.files.insert(path, look);
                    continue;
                }
                FileType::Directory => {
                    waiting.push(path);
                    continue;
                }
                FileType::Symlink => "is a link",
                FileType::Fifo => "is a fifo",
                FileType::Socket => "is a socket",
                _ => "is a device",
            };
            let words = format!("{path:?} {what}");
            if self.left_out.as_ref().is_none_or(|first| words < *first) {
                self.left_out = Some(words);
            }
        }
        Ok(())
    }
}
