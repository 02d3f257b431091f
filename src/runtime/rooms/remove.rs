//! Removal of a directory with all that is in it, whatever a job made of it.
//!
//! Follows no links and leaves the tree's own file system alone otherwise. Directories that nobody
//! may enter are opened up first, marks against changes are taken off where that is allowed.
//! Law: takes a bounded number of descriptors and bounded memory, however deep and wide the tree
//! is: what lies too deep is moved up first (tests below).
//! Source: unlinkat(2), `ioctl_iflags(2)`.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{self, AtFlags, Dir, FileType, IFlags, Mode, OFlags};
use rustix::io::Errno;

/// Directories that are held open one in the other; each takes two descriptors.
const DEPTH_MAX: u32 = 32;
/// How often a directory is read in which something new is found each time: somebody still writes.
const PASSES_MAX: u32 = 10_000;
/// Names that are tried for a directory that is moved up.
const NAMES_TRIED_MAX: u32 = 1_000;

/// Removes a directory, or whatever has this path. What is not there is no error.
///
/// # Errors
/// Something of it cannot be removed; the rest is.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let parent = fs::open(parent, directory_flags(), Mode::empty())?;
    let name = CString::new(name.as_bytes())?;
    let top = match open_directory(&parent, &name) {
        Ok(top) => top,
        Err(Errno::NOENT) => return Ok(()),
        Err(Errno::NOTDIR | Errno::LOOP) => return Ok(unlink(&parent, &name)?),
        Err(error) => return Err(error.into()),
    };
    let mut removal = Removal { top, moved: 0 };
    let top = removal.top.try_clone()?;
    removal.clear(&top, 0)?;
    Ok(fs::unlinkat(&parent, &name, AtFlags::REMOVEDIR)?)
}

struct Removal {
    top: OwnedFd,
    moved: u32,
}

fn directory_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

impl Removal {
    /// Removes all that is in a directory.
    fn clear(&mut self, directory: &OwnedFd, depth: u32) -> Result<(), Errno> {
        for _ in 0..PASSES_MAX {
            let (mut removed, mut failed) = (false, None);
            for entry in Dir::read_from(directory)? {
                let entry = entry?;
                let name = entry.file_name();
                if name == c"." || name == c".." {
                    continue;
                }
                match self.remove(directory, name, entry.file_type(), depth) {
                    Ok(()) => removed = true,
                    Err(Errno::NOENT) => {}
                    Err(error) => failed = Some(error),
                }
            }
            // What is removed while it is read may hide names from the reader: look again.
            if !removed {
                return failed.map_or(Ok(()), Err);
            }
        }
        Err(Errno::BUSY)
    }

    fn remove(
        &mut self,
        directory: &OwnedFd,
        name: &CStr,
        kind: FileType,
        depth: u32,
    ) -> Result<(), Errno> {
        if kind != FileType::Directory {
            match unlink(directory, name) {
                Err(Errno::ISDIR) => {}
                done => return done,
            }
        }
        if fs::unlinkat(directory, name, AtFlags::REMOVEDIR).is_ok() {
            return Ok(());
        }
        let inner = open_directory(directory, name)?;
        if depth >= DEPTH_MAX {
            return self.move_up(directory, name);
        }
        let cleared = self.clear(&inner, depth + 1);
        cleared?;
        match fs::unlinkat(directory, name, AtFlags::REMOVEDIR) {
            Err(Errno::PERM) => {
                // The mark may be on either.
                unmark(&inner);
                unmark(directory);
                fs::unlinkat(directory, name, AtFlags::REMOVEDIR)
            }
            done => done,
        }
    }

    /// Moves a directory to the top, where the next pass finds it.
    fn move_up(&mut self, directory: &OwnedFd, name: &CStr) -> Result<(), Errno> {
        for _ in 0..NAMES_TRIED_MAX {
            self.moved = self.moved.wrapping_add(1);
            let fresh = format!(".ucp-deep-{}", self.moved);
            match fs::renameat(directory, name, &self.top, &*fresh) {
                Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => {}
                Err(Errno::PERM) if unmark(directory) => {}
                done => return done,
            }
        }
        Err(Errno::EXIST)
    }
}

/// Opens a directory so that it can be read and emptied.
fn open_directory(parent: &OwnedFd, name: &CStr) -> Result<OwnedFd, Errno> {
    let opened = match fs::openat(parent, name, directory_flags(), Mode::empty()) {
        Err(Errno::ACCESS) => {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let seen = fs::openat(parent, name, flags, Mode::empty())?;
            // A descriptor that is only a path takes no chmod but by its name.
            fs::chmod(format!("/proc/self/fd/{}", seen.as_raw_fd()), Mode::RWXU)?;
            fs::openat(parent, name, directory_flags(), Mode::empty())?
        }
        opened => opened?,
    };
    let mode = Mode::from_raw_mode(fs::fstat(&opened)?.st_mode);
    if !mode.contains(Mode::RWXU) && fs::fchmod(&opened, Mode::RWXU).is_err() && unmark(&opened) {
        fs::fchmod(&opened, Mode::RWXU)?;
    }
    Ok(opened)
}

/// Removes something that is no directory.
fn unlink(directory: &OwnedFd, name: &CStr) -> Result<(), Errno> {
    match fs::unlinkat(directory, name, AtFlags::empty()) {
        Err(Errno::PERM) => {
            unmark(directory);
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            if let Ok(file) = fs::openat(directory, name, flags, Mode::empty()) {
                unmark(&file);
            }
            fs::unlinkat(directory, name, AtFlags::empty())
        }
        done => done,
    }
}

/// Takes the marks off that keep a file from being changed; whether there were any.
fn unmark(file: &impl AsFd) -> bool {
    let marks = IFlags::IMMUTABLE | IFlags::APPEND;
    let Ok(held) = fs::ioctl_getflags(file) else { return false };
    held.intersects(marks) && fs::ioctl_setflags(file, held - marks).is_ok()
}

#[cfg(test)]
mod tests {
    use std::fs::{File, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn place() -> (tempfile::TempDir, std::path::PathBuf) {
        let directory = tempfile::tempdir().expect("a directory");
        let tree = directory.path().join("tree");
        std::fs::create_dir(&tree).expect("room");
        (directory, tree)
    }

    #[test]
    fn a_tree_goes_with_all_that_is_in_it_and_links_are_not_followed() {
        let (directory, tree) = place();
        let outside = directory.path().join("outside");
        std::fs::create_dir(&outside).expect("room");
        std::fs::write(outside.join("kept"), "").expect("room");
        symlink(&outside, tree.join("link")).expect("room");
        symlink("nowhere", tree.join("dangling")).expect("room");
        std::fs::create_dir_all(tree.join("a/b/c")).expect("room");
        for n in 0..3000 {
            File::create(tree.join(format!("a/{n}"))).expect("room");
        }
        nix::unistd::mkfifo(&tree.join("a/fifo"), nix::sys::stat::Mode::S_IRWXU).expect("room");
        std::fs::set_permissions(tree.join("a/b"), Permissions::from_mode(0o000)).expect("ours");
        std::fs::set_permissions(tree.join("a"), Permissions::from_mode(0o500)).expect("ours");
        remove_tree(&tree).expect("removed");
        assert!(!tree.exists() && outside.join("kept").exists());
        remove_tree(&tree).expect("it is not there");
    }

    #[test]
    fn a_tree_deeper_than_any_path_goes_with_few_descriptors() {
        let (_directory, tree) = place();
        let mut at = fs::open(&tree, directory_flags(), Mode::empty()).expect("a directory");
        for _ in 0..5000 {
            fs::mkdirat(&at, "down", Mode::RWXU).expect("room");
            at = fs::openat(&at, "down", directory_flags(), Mode::empty()).expect("it is there");
        }
        drop(at);
        remove_tree(&tree).expect("removed");
        assert!(!tree.exists());
    }

    #[test]
    fn marks_against_changes_are_taken_off() {
        let (_directory, tree) = place();
        std::fs::create_dir(tree.join("inner")).expect("room");
        std::fs::write(tree.join("inner/file"), "").expect("room");
        for path in [tree.join("inner/file"), tree.join("inner")] {
            let file = File::open(&path).expect("it is there");
            let set = fs::ioctl_getflags(&file)
                .and_then(|held| fs::ioctl_setflags(&file, held | IFlags::IMMUTABLE));
            if set.is_err() {
                // Only root may set the mark, and not every file system knows it.
                return;
            }
        }
        remove_tree(&tree).expect("removed");
        assert!(!tree.exists());
    }
}
