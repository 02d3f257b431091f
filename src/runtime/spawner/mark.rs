//! By what others see that nothing of an executor's jobs is left, where no cgroup proves it.
//!
//! A file in memory without a name anywhere, made before the fork, so that executor, guard and
//! spawner have the same one. Who of them has seen that no child is left, as subreaper, and starts
//! none any more, writes to it. A broker on the host opens it through `/proc/PID/fd` while the
//! executor lives, so that it can be read when all three are gone. Nobody else has it: a job gets
//! no descriptor of ours, and under Landlock it cannot open one of another process.
//! Law: a file that is written to means that no process of a job lives and none can begin
//! (tests/exec/isolation.rs). Source: memfd_create(2), proc(5) under `/proc/PID/fd`.

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use nix::sys::memfd::{MFdFlags, memfd_create};

/// How the kernel shows the descriptor's file.
const SHOWN: &str = "/memfd:ucp-tree (deleted)";

/// One end of it: the one that writes. Absent where the kernel gives none; then nothing is proven.
#[derive(Debug)]
pub struct Mark(Option<File>);

impl Mark {
    pub(super) fn new() -> Self {
        let made = memfd_create(c"ucp-tree", MFdFlags::MFD_CLOEXEC);
        Self(made.ok().map(File::from))
    }

    /// No process of a job is left, and none can begin.
    pub fn set(&self) {
        if let Some(file) = &self.0 {
            // Unwritten it is only no proof.
            let _ = file.write_all_at(b"gone", 0);
        }
    }

    /// The same again.
    pub(super) fn share(&self) -> Self {
        Self(self.0.as_ref().and_then(|file| file.try_clone().ok()))
    }

    pub(super) fn descriptor(&self) -> Option<RawFd> {
        self.0.as_ref().map(AsRawFd::as_raw_fd)
    }
}

/// The other end: the one that reads.
#[derive(Debug)]
pub(crate) struct Witness(File);

impl Witness {
    /// That of an executor which lives; nothing where its descriptors cannot be seen.
    pub(crate) fn of(executor: i32) -> Option<Self> {
        let listed = std::fs::read_dir(format!("/proc/{executor}/fd")).ok()?;
        let shown =
            |path: &PathBuf| std::fs::read_link(path).is_ok_and(|shown| shown.as_os_str() == SHOWN);
        let path = listed.flatten().map(|entry| entry.path()).find(shown)?;
        File::open(path).ok().map(Self)
    }

    /// Whether it was seen that nothing is left.
    pub(crate) fn is_set(&self) -> bool {
        self.0.metadata().is_ok_and(|seen| seen.len() > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_end_writes_the_other_sees_also_when_the_first_is_gone() {
        let mark = Mark::new();
        let own = i32::try_from(std::process::id()).expect("a process id");
        let witness = Witness::of(own).expect("our own descriptors can be seen");
        assert!(!witness.is_set());
        let shared = mark.share();
        drop(mark);
        shared.set();
        drop(shared);
        assert!(witness.is_set());
    }
}
