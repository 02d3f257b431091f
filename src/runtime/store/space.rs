//! Space on the store's disk: a reserve that is held back, and what everybody is told of it.
//!
//! Idea: the core has acted on facts by the time they turn out not to fit. So room for them is
//! kept in a file of its own, which is removed when a commit finds the disk full: what is under
//! way becomes durable, and from then on nothing more is taken in. When the reserve can be had
//! again, with some room beside it, all goes on. Where even the reserve was not enough, the
//! writer tries the same commit again and again, and nothing leaves that depends on it.
//! Shape: `DATA/reserve`, [`limits::DISK_RESERVE_BYTES`] bytes that mean nothing.
//! Law: nothing is acknowledged that is not durable, and nothing durable waits for a restart
//! (tests/broker/disk.rs).

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};

use nix::fcntl::posix_fallocate;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::proto::limits;

/// The name of the reserve in a data directory.
const RESERVE_NAME: &str = "reserve";

/// How the store's disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Disk {
    /// There is room.
    #[default]
    Well,
    /// It is full: what the core decides by itself still becomes durable, and nothing is taken in.
    Full,
    /// Even the reserve is used up: a commit waits, and all that depends on it.
    Stalled,
}

/// The reserve, as the store's writer has it.
#[derive(Debug)]
pub(super) struct Space {
    path: PathBuf,
    is_held: bool,
    tried: Instant,
    told: watch::Sender<Disk>,
}

impl Space {
    /// Takes the reserve of a data directory; where it does not fit, the disk is full.
    pub(super) fn of(data: &Path) -> Self {
        let (told, _) = watch::channel(Disk::Well);
        let path = data.join(RESERVE_NAME);
        let mut space = Self { path, is_held: false, tried: Instant::now(), told };
        space.is_held = space.allocate();
        if !space.is_held {
            space.tell(Disk::Full);
        }
        space
    }

    pub(super) fn watch(&self) -> watch::Receiver<Disk> {
        self.told.subscribe()
    }

    pub(super) fn disk(&self) -> Disk {
        *self.told.borrow()
    }

    /// Says how the disk is, once for each change.
    pub(super) fn tell(&self, disk: Disk) {
        let before = self.told.send_replace(disk);
        if before == disk {
            return;
        }
        let place = self.path.display();
        match disk {
            Disk::Well => tracing::warn!("there is room on the disk of {place} again"),
            Disk::Full => tracing::warn!("the disk of {place} is full: nothing more is taken in"),
            Disk::Stalled => tracing::error!("the disk of {place} is full: a commit waits"),
        }
    }

    /// Gives the reserve to whoever writes next; says whether there was one.
    pub(super) fn release(&mut self) -> bool {
        let was_held = std::mem::take(&mut self.is_held);
        if let Err(error) = fs::remove_file(&self.path)
            && was_held
        {
            tracing::error!("cannot remove {}: {error}", self.path.display());
        }
        was_held
    }

    /// Tries now and then to have the reserve again, with room beside it.
    pub(super) fn recover(&mut self) {
        if self.tried.elapsed() < limits::DISK_FULL_RETRY {
            return;
        }
        self.tried = Instant::now();
        let directory = self.path.parent().unwrap_or(Path::new("."));
        let wanted = limits::DISK_RESERVE_BYTES + limits::DISK_RESERVE_BYTES / 4;
        if free(directory).is_some_and(|free| free < wanted) {
            return;
        }
        self.is_held = self.allocate();
        if self.is_held {
            self.tell(Disk::Well);
        }
    }

    fn allocate(&self) -> bool {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(&self.path);
        let bytes = i64::try_from(limits::DISK_RESERVE_BYTES).expect("a few MiB");
        let allocated = file.and_then(|file| Ok(posix_fallocate(&file, 0, bytes)?));
        if let Err(error) = &allocated {
            tracing::debug!("no reserve at {}: {error}", self.path.display());
            // What was had of it would be lost to the store.
            let _ = fs::remove_file(&self.path);
        }
        allocated.is_ok()
    }
}

/// Bytes that this process may still write to a file system; nothing where it does not tell.
fn free(path: &Path) -> Option<u64> {
    let found = nix::sys::statvfs::statvfs(path).ok()?;
    Some(found.blocks_available().saturating_mul(found.fragment_size()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_is_taken_given_and_taken_again() {
        let data = tempfile::tempdir().expect("a directory");
        let mut space = Space::of(data.path());
        let file = data.path().join(RESERVE_NAME);
        assert_eq!(space.disk(), Disk::Well);
        assert_eq!(file.metadata().expect("there").len(), limits::DISK_RESERVE_BYTES);
        assert!(space.release() && !space.release() && !file.exists());
        space.tell(Disk::Full);
        space.recover();
        assert_eq!(space.disk(), Disk::Full, "not at once");
        space.tried -= limits::DISK_FULL_RETRY;
        space.recover();
        assert!(space.disk() == Disk::Well && file.exists());
    }
}
