//! Whose process is whose: the children of the spawner and the jobs that they belong to.
//!
//! Kills nothing. A child that is no job's main process was left behind by one (subreaper); it
//! belongs to the job of its process group, else to the one that its environment names, else to
//! any job that ran when it was first seen.
//! Every living descendant of the spawner descends from one of its children, so where no child of
//! a job is left, no process of it is. The list is complete: only the spawner's one thread takes
//! children out of it, and not while it reads.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

/// Reads the children of the calling thread from the kernel.
#[derive(Debug)]
pub(super) struct Children {
    /// `/proc/thread-self/children`; absent where the kernel was built without it.
    file: Option<File>,
}

impl Children {
    /// The children of the thread that calls this.
    pub(super) fn of_this_thread() -> Self {
        Self { file: File::open("/proc/thread-self/children").ok() }
    }

    /// The process ids, living and ended ones that were not reaped.
    pub(super) fn list(&self) -> Vec<i32> {
        match self.file.as_ref().map(read_from_start) {
            Some(Ok(text)) => text.split_ascii_whitespace().flat_map(str::parse).collect(),
            _ => walk(),
        }
    }
}

fn read_from_start(file: &File) -> io::Result<String> {
    let mut bytes = vec![0; 512];
    let mut length = 0;
    loop {
        let got = file.read_at(&mut bytes[length..], length as u64)?;
        length += got;
        if got == 0 {
            bytes.truncate(length);
            return String::from_utf8(bytes).map_err(io::Error::other);
        }
        if length == bytes.len() {
            bytes.resize(length * 2, 0);
        }
    }
}

/// The same from a walk over all processes.
fn walk() -> Vec<i32> {
    let own = i32::try_from(std::process::id()).ok();
    let listed = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = listed.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| parent_of(*pid) == own).collect()
}

/// The parent of a process; 0 where it is out of sight.
pub(crate) fn parent_of(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; state and parent follow the last one.
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

/// The group of a process, also of one that ended and was not reaped.
pub(super) fn group_of(pid: i32) -> Option<i32> {
    let pid = nix::unistd::Pid::from_raw(pid);
    nix::unistd::getpgid(Some(pid)).ok().map(nix::unistd::Pid::as_raw)
}

/// A variable of a process' environment; nothing for one that is ending.
pub(crate) fn environment(pid: i32, name: &str) -> Option<Vec<u8>> {
    let mut environ = vec![];
    File::open(format!("/proc/{pid}/environ")).ok()?.read_to_end(&mut environ).ok()?;
    let value =
        |entry: &[u8]| Some(entry.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?.to_vec());
    environ.split(|byte| *byte == 0).find_map(value)
}
