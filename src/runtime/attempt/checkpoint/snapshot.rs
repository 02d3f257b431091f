//! A copy of a job's state as it was at one moment, though the job goes on.
//!
//! The directory is listed, copied and listed again. Where both listings are equal, nothing was
//! changed meanwhile, so the copy is the state of one moment; else it is dropped and tried again.
//! Before that the directory must have stayed as it was for [`limits::CHECKPOINT_QUIET`] by our own
//! clock, so that a later change shows another time. No wall clock is read.
//! Shape: `CHECKPOINTS/ATTEMPT/DIGEST`, one file for each content and one for the manifest. What
//! did not change since the last checkpoint is not copied again. Copies share blocks with the job's
//! own files where the file system can.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{self, OFlags};

use crate::proto::checkpoint::{KeptFile, Manifest};
use crate::proto::id::Digest;
use crate::proto::limits;
use crate::runtime::attempt::BrokenOff;
use crate::runtime::attempt::outputs::{digest, find::open_beneath};
use crate::runtime::rundir::PRIVATE_MODE;

use super::Checkpoint;
use super::listing::{Listing, Look, NoListing, list};

/// The name of a copy whose digest is not known yet.
const PARTIAL: &str = "partial";

/// A checkpoint that was made, with what tells whether there is another state by now.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    pub(super) made: Checkpoint,
    /// What is not in it, in words.
    pub(super) left_out: Option<String>,
    listing: Listing,
    digests: BTreeMap<String, Digest>,
}

/// What came of a look.
#[derive(Debug)]
pub(super) enum Came {
    /// The state is as it was when it was kept last, or there is none.
    Nothing,
    /// It was kept. It may be the same as before under other times.
    Kept(Kept),
    /// It changed too often, or the work was broken off.
    Busy,
    /// It cannot be kept, in words.
    Refused(String),
}

/// Why a copy is none.
#[derive(Debug)]
enum Failed {
    /// The state changed meanwhile; this is how it looks now.
    Changed(Option<Listing>),
    Refused(String),
}

impl From<NoListing> for Failed {
    fn from(error: NoListing) -> Self {
        match error {
            NoListing::Disturbed => Self::Changed(None),
            NoListing::Refused(words) => Self::Refused(words),
        }
    }
}

/// Keeps the state below `root` in `place`, unless it is `last`. Where it is `quiet` already, as
/// nobody writes there any more, no quiet moment is waited for.
pub(super) fn keep(
    root: &OwnedFd,
    place: &Path,
    last: Option<&Kept>,
    quiet: bool,
    broken_off: &BrokenOff,
) -> Came {
    let mut seen = None;
    for _ in 0..limits::CHECKPOINT_TRIES_MAX {
        if broken_off.is_set() {
            return Came::Busy;
        }
        let before = match seen.take().map_or_else(|| list(root, broken_off), Ok) {
            Ok(listing) => listing,
            Err(NoListing::Disturbed) => continue,
            Err(NoListing::Refused(words)) => return Came::Refused(words),
        };
        if before.files.is_empty() || last.is_some_and(|last| last.listing == before) {
            return Came::Nothing;
        }
        if !quiet {
            pause();
        }
        match copy_all(root, before, place, last, broken_off) {
            Ok(kept) => return Came::Kept(kept),
            Err(Failed::Changed(now)) => seen = now,
            Err(Failed::Refused(words)) => return Came::Refused(words),
        }
    }
    Came::Busy
}

/// Waits for a step of the file system's clock.
fn pause() {
    #[allow(clippy::disallowed_methods, reason = "a clock's step, on a thread that may wait")]
    std::thread::sleep(limits::CHECKPOINT_QUIET);
}

fn copy_all(
    root: &OwnedFd,
    before: Listing,
    place: &Path,
    last: Option<&Kept>,
    broken_off: &BrokenOff,
) -> Result<Kept, Failed> {
    let listing = list(root, broken_off)?;
    if listing != before {
        return Err(Failed::Changed(Some(listing)));
    }
    let refused = |error: io::Error| Failed::Refused(format!("it cannot be copied: {error}"));
    match DirBuilder::new().mode(PRIVATE_MODE).create(place) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(refused(error)),
        _ => {}
    }
    let held = last.map(held).unwrap_or_default();
    let copied = copy_files(root, &listing, place, last, broken_off).and_then(|digests| {
        let after = list(root, broken_off)?;
        if after != listing {
            return Err(Failed::Changed(Some(after)));
        }
        Ok(digests)
    });
    let made = copied.and_then(|digests| {
        let manifest = manifest(&listing, &digests);
        let bytes = manifest.to_bytes();
        if bytes.len() > limits::CHECKPOINT_MANIFEST_BYTES_MAX {
            let words = "the paths of its files are too long together; pack them";
            return Err(Failed::Refused(words.to_owned()));
        }
        let name = Digest::of(&bytes);
        std::fs::write(place.join(name.to_string()), &bytes).map_err(refused)?;
        let files = manifest.files.len() as u64;
        let made = Checkpoint { manifest: name, files, bytes: manifest.bytes() };
        let left_out = listing.left_out.clone();
        Ok(Kept { made, left_out, listing, digests })
    });
    let wanted = made.as_ref().map_or(held, self::held);
    tidy(place, &wanted);
    made
}

fn manifest(listing: &Listing, digests: &BTreeMap<String, Digest>) -> Manifest {
    let file = |(path, look): (&String, &Look)| {
        let blob = *digests.get(path)?;
        let (size, executable) = (look.size, look.executable);
        Some((path.clone(), KeptFile { size, blob, executable }))
    };
    let files = listing.files.iter().filter_map(file).collect();
    let dirs: BTreeSet<String> =
        listing.dirs.keys().filter(|path| !path.is_empty()).cloned().collect();
    Manifest::new(files, dirs)
}

/// The blobs of a checkpoint.
fn held(kept: &Kept) -> BTreeSet<Digest> {
    kept.digests.values().copied().chain([kept.made.manifest]).collect()
}

/// Removes what is not wanted.
fn tidy(place: &Path, wanted: &BTreeSet<Digest>) {
    for entry in place.read_dir().into_iter().flatten().flatten() {
        let name = entry.file_name();
        let digest = name.to_str().and_then(|name| name.parse::<Digest>().ok());
        if digest.is_none_or(|digest| !wanted.contains(&digest)) {
            // What stays takes space until the attempt is over.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

fn copy_files(
    root: &OwnedFd,
    listing: &Listing,
    place: &Path,
    last: Option<&Kept>,
    broken_off: &BrokenOff,
) -> Result<BTreeMap<String, Digest>, Failed> {
    let mut digests = BTreeMap::new();
    for (path, look) in &listing.files {
        let known = last.and_then(|last| {
            let same = last.listing.files.get(path) == Some(look);
            last.digests.get(path).copied().filter(|_| same)
        });
        let digest = match known {
            Some(digest) => digest,
            None => copy_one(root, path, *look, place, broken_off)?,
        };
        digests.insert(path.clone(), digest);
    }
    Ok(digests)
}

fn copy_one(
    root: &OwnedFd,
    path: &str,
    look: Look,
    place: &Path,
    broken_off: &BrokenOff,
) -> Result<Digest, Failed> {
    let refused = |error: io::Error| Failed::Refused(format!("{path:?} cannot be copied: {error}"));
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW;
    let from = match open_beneath(root, path, flags) {
        Ok(from) => from,
        Err(rustix::io::Errno::ACCESS | rustix::io::Errno::PERM) => {
            return Err(refused(io::ErrorKind::PermissionDenied.into()));
        }
        Err(_) => return Err(Failed::Changed(None)),
    };
    let seen = fs::fstat(&from).map_err(|errno| refused(errno.into()))?;
    if Look::of(&seen) != look {
        return Err(Failed::Changed(None));
    }
    let partial = place.join(PARTIAL);
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).create(true).truncate(true).mode(0o600);
    let mut to = options.open(&partial).map_err(refused)?;
    let mut from = File::from(from);
    let mut left = look.size;
    while left > 0 {
        let piece = left.min(limits::COPY_PIECE_BYTES);
        let copied = io::copy(&mut (&mut from).take(piece), &mut to).map_err(refused)?;
        if copied == 0 || broken_off.is_set() {
            return Err(Failed::Changed(None));
        }
        left -= copied;
    }
    to.rewind().map_err(refused)?;
    let (_, digest) = digest(to, broken_off).map_err(refused)?;
    std::fs::rename(&partial, place.join(digest.to_string())).map_err(refused)?;
    Ok(digest)
}

#[cfg(test)]
mod tests;
