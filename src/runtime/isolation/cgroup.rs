//! cgroup v2: one cgroup beneath our own for all jobs of an executor, and in it one for each room.
//!
//! Writes no process into a cgroup (`clone3` begins it there) and knows no job. Where the memory
//! and pids controllers are delegated to us they are passed on; for that the kernel wants no
//! process beside the subtree, so this one moves into a leaf if it is alone. The name has eight
//! digits of its own in each life of an executor, so that whoever kills an older life's cannot
//! reach this one's.
//! Law: a group is empty only when no process of it can run any more, and a tree that was removed
//! is one in which nothing can begin (tests/spawner.rs).
//! Source: the kernel's Documentation/admin-guide/cgroup-v2.rst.

use std::cell::Cell;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::proto::isolation::Enforcement;
use crate::runtime::entropy;

/// What the names of all our cgroups begin with.
const PREFIX: &str = "ucp-";
/// What the name of a room's cgroup begins with; its number follows.
const ROOM: &str = "room-";
/// Rounds of [`PAUSE`] in which a cgroup that was killed becomes removable.
const REMOVE_ROUNDS: u32 = 200;
/// Between two looks at a cgroup whose processes were killed.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(5);

/// The cgroup of an executor's jobs.
#[derive(Debug, Clone)]
pub(crate) struct Tree {
    pub(crate) path: PathBuf,
    /// Whether the rooms' memory can be bounded.
    pub(crate) memory: bool,
    /// Whether the rooms' processes can be bounded.
    pub(crate) processes: bool,
}

/// How the mechanisms stand, and the cgroup where there is one.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) tree: Option<Tree>,
    pub(super) kill: Enforcement,
    pub(super) memory: Enforcement,
    pub(super) processes: Enforcement,
}

impl Found {
    pub(super) const fn all(standing: Enforcement) -> Self {
        Self { tree: None, kill: standing, memory: standing, processes: standing }
    }
}

/// Whether a directory's name is that of an executor's cgroup, in any of its lives.
#[must_use]
pub(crate) fn is_named(name: &OsStr, executor: &str) -> bool {
    let rest = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
    let life = rest.and_then(|rest| rest.strip_prefix(executor)?.strip_prefix('.'));
    life.is_some_and(|life| life.len() == 8 && life.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Makes the cgroup of an executor's jobs, for this life of it.
pub(super) fn make(executor: &str) -> Found {
    let Some((mount, base)) = own() else { return Found::all(Enforcement::Absent) };
    #[allow(clippy::cast_possible_truncation)] // 32 random bits of 64
    let life = entropy::seed() as u32;
    let path = base.join(format!("{PREFIX}{executor}.{life:08x}"));
    if let Err(error) = fs::create_dir(&path) {
        tracing::debug!("no cgroup {}: {error}", path.display());
        return Found::all(Enforcement::Refused);
    }
    if !path.join("cgroup.kill").exists() {
        // A kernel before 5.14.
        let _ = fs::remove_dir(&path);
        return Found::all(Enforcement::Absent);
    }
    let memory = delegate(&mount, &base, &path, executor, "memory");
    let processes = delegate(&mount, &base, &path, executor, "pids");
    let tree = Tree {
        path,
        memory: memory == Enforcement::Enforced,
        processes: processes == Enforcement::Enforced,
    };
    Found { tree: Some(tree), kill: Enforcement::Enforced, memory, processes }
}

/// The mount point of cgroup v2 and our own cgroup's directory.
fn own() -> Option<(PathBuf, PathBuf)> {
    let text = fs::read_to_string("/proc/self/cgroup").ok()?;
    let cgroup = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    let mounts = fs::read("/proc/self/mountinfo").ok()?;
    mounts.split(|byte| *byte == b'\n').find_map(|line| place(line, Path::new(cgroup)))
}

/// Where a cgroup is in this mount, if the mount is of cgroup v2 and shows it.
fn place(line: &[u8], cgroup: &Path) -> Option<(PathBuf, PathBuf)> {
    let mut fields = line.split(|byte| *byte == b' ');
    let root = plain(fields.nth(3)?);
    let point = plain(fields.next()?);
    let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
    if kind != b"cgroup2" {
        return None;
    }
    let beneath = cgroup.strip_prefix(&root).ok()?;
    let inside = beneath.components().all(|part| matches!(part, std::path::Component::Normal(_)));
    inside.then(|| (point.clone(), point.join(beneath)))
}

/// A path of mountinfo, where blanks and such stand as a backslash and three octal digits.
fn plain(field: &[u8]) -> PathBuf {
    let mut bytes = vec![];
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|_| *first == b'\\');
        let code = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        let code = code.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &after[3..] } else { after };
    }
    std::ffi::OsString::from_vec(bytes).into()
}

/// Passes a controller on to the rooms, if it was delegated to us.
fn delegate(mount: &Path, base: &Path, path: &Path, executor: &str, what: &str) -> Enforcement {
    let lists = |directory: &Path, file: &str| {
        let text = fs::read_to_string(directory.join(file)).unwrap_or_default();
        text.split_ascii_whitespace().any(|word| word == what)
    };
    if !lists(mount, "cgroup.controllers") {
        return Enforcement::Absent;
    }
    let enable =
        |directory: &Path| fs::write(directory.join("cgroup.subtree_control"), format!("+{what}"));
    if !lists(path, "cgroup.controllers") {
        let enabled = enable(base).or_else(|error| {
            step_aside(base, executor).map_err(|_| error)?;
            enable(base)
        });
        if let Err(error) = enabled {
            tracing::debug!("the {what} controller is not ours: {error}");
        }
    }
    match enable(path) {
        Ok(()) => Enforcement::Enforced,
        Err(_) => Enforcement::Refused,
    }
}

/// Moves this process into a leaf, if it is the only one in its cgroup.
fn step_aside(base: &Path, executor: &str) -> io::Result<()> {
    let held = fs::read_to_string(base.join("cgroup.procs"))?;
    let own = std::process::id().to_string();
    if !held.lines().eq([own.as_str()]) {
        return Err(io::ErrorKind::ResourceBusy.into());
    }
    let leaf = base.join(format!("{PREFIX}{executor}.own"));
    match fs::create_dir(&leaf) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    fs::write(leaf.join("cgroup.procs"), own)
}

impl Tree {
    /// The cgroup of a room, made where it is not there.
    ///
    /// Kernels from 6.14 on compare the times that the new process' cgroup was killed with those of
    /// its parent's cgroup, and kill it at once if they differ: so one that was killed is not used
    /// again, but followed by another `turn`.
    pub(crate) fn room(&self, number: u32, turn: u32) -> io::Result<Group> {
        let name = match turn {
            0 => format!("{ROOM}{number}"),
            turn => format!("{ROOM}{number}.{turn}"),
        };
        let path = self.path.join(name);
        match fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        if self.processes {
            let most = crate::proto::limits::JOB_PROCESSES_MAX;
            fs::write(path.join("pids.max"), most.to_string())?;
        }
        if self.memory {
            fs::write(path.join("memory.oom.group"), "1")?;
        }
        Ok(Group {
            directory: File::open(&path)?,
            events: File::open(path.join("cgroup.events"))?,
            kill: File::options().write(true).open(path.join("cgroup.kill"))?,
            procs: File::open(path.join("cgroup.procs"))?,
            stat: File::open(path.join("cgroup.stat"))?,
            memory: self.memory.then_some(None),
            killed: Cell::new(false),
            path,
        })
    }
}

/// The room whose cgroup a process is in.
pub(crate) fn room_of(pid: i32) -> Option<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    let named = |part: &str| part.strip_prefix(ROOM)?.split('.').next()?.parse().ok();
    path.split('/').find_map(named)
}

/// A room's cgroup.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) directory: File,
    events: File,
    kill: File,
    procs: File,
    stat: File,
    path: PathBuf,
    killed: Cell<bool>,
    /// The bound that is set, where memory can be bounded.
    memory: Option<Option<u64>>,
}

impl Group {
    /// Bounds the memory of what begins here next; false where it cannot be bounded.
    pub(crate) fn bound_memory(&mut self, bytes: Option<u64>) -> io::Result<bool> {
        let Some(held) = &mut self.memory else { return Ok(false) };
        if *held != bytes {
            let text = bytes.map_or_else(|| "max".to_owned(), |bytes| bytes.to_string());
            fs::write(self.path.join("memory.max"), text)?;
            // Without it what is over the bound goes to the swap; not every kernel has one.
            let swap = if bytes.is_some() { "0" } else { "max" };
            let _ = fs::write(self.path.join("memory.swap.max"), swap);
            *held = bytes;
        }
        Ok(true)
    }

    /// How often the kernel killed here as the memory was used up.
    pub(crate) fn memory_kills(&self) -> u64 {
        if self.memory.is_none() {
            return 0;
        }
        let text = fs::read_to_string(self.path.join("memory.events")).unwrap_or_default();
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        count.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
    }

    /// Whether nothing of it can run any more.
    pub(crate) fn is_empty(&self) -> bool {
        let mut bytes = [0; 128];
        let got = self.events.read_at(&mut bytes, 0).unwrap_or(0);
        says_empty(&bytes[..got]) || (self.processes().is_empty() && self.has_no_child())
    }

    /// A process that ended may be counted for a moment longer; it is not listed.
    fn has_no_child(&self) -> bool {
        let mut bytes = [0; 256];
        let got = self.stat.read_at(&mut bytes, 0).unwrap_or(0);
        bytes[..got].split(|byte| *byte == b'\n').any(|line| line == b"nr_descendants 0")
    }

    /// The processes that are not ending.
    pub(crate) fn processes(&self) -> Vec<i32> {
        let (mut bytes, mut length) = (vec![0; 512], 0);
        while let Ok(got @ 1..) = self.procs.read_at(&mut bytes[length..], length as u64) {
            length += got;
            bytes.resize(bytes.len().max(length * 2), 0);
        }
        String::from_utf8_lossy(&bytes[..length]).lines().flat_map(str::parse).collect()
    }

    /// Whether another turn has to follow, as this one was killed; it is removed then.
    pub(crate) fn is_spent(&self) -> bool {
        if self.killed.get() {
            // What cannot be removed yet goes with the tree.
            let _ = fs::remove_dir(&self.path);
        }
        self.killed.get()
    }

    /// Kills all of it, also what is being forked at this moment.
    pub(crate) fn kill(&self) {
        self.killed.set(true);
        if let Err(error) = self.kill.write_at(b"1", 0) {
            tracing::debug!("{} cannot be killed as a whole: {error}", self.path.display());
        }
    }
}

/// Reads `cgroup.events`.
fn says_empty(events: &[u8]) -> bool {
    events.split(|byte| *byte == b'\n').any(|line| line == b"populated 0")
}

/// Kills everything in a cgroup and its children; one that is gone is fine.
pub(crate) fn kill(path: &Path) {
    let _ = fs::write(path.join("cgroup.kill"), "1");
}

/// Kills what is in a cgroup and removes it if nothing is left; true when it is gone.
pub(crate) fn try_remove(path: &Path) -> bool {
    if !is_empty(path) {
        kill(path);
    }
    let rooms = fs::read_dir(path).into_iter().flatten().flatten();
    for room in rooms.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        let _ = fs::remove_dir(room.path());
    }
    match fs::remove_dir(path) {
        Ok(()) => true,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// Whether a cgroup is gone or nothing of it can run any more.
fn is_empty(path: &Path) -> bool {
    match fs::read(path.join("cgroup.events")) {
        Ok(events) => says_empty(&events),
        Err(error) => {
            let gone = error.raw_os_error() == Some(nix::libc::ENODEV);
            gone || error.kind() == io::ErrorKind::NotFound
        }
    }
}

/// Kills what is in an executor's cgroup and removes it with its rooms; true when it is gone.
pub(crate) fn remove(path: &Path) -> bool {
    for _ in 0..REMOVE_ROUNDS {
        if try_remove(path) {
            return true;
        }
        #[allow(clippy::disallowed_methods, reason = "a pause between looks, within a bound")]
        std::thread::sleep(PAUSE);
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_is_found_beneath_its_mount() {
        let line = b"41 31 0:38 / /sys/fs/cgroup/a\\040b rw,relatime - cgroup2 cgroup2 rw";
        let (mount, base) = place(line, Path::new("/user/7")).expect("a place");
        assert_eq!(mount, Path::new("/sys/fs/cgroup/a b"));
        assert_eq!(base, Path::new("/sys/fs/cgroup/a b/user/7"));
        let part = b"41 31 0:38 /user /c rw shared:9 master:1 - cgroup2 cgroup2 rw";
        assert_eq!(place(part, Path::new("/user/7")).expect("a place").1, Path::new("/c/7"));
        assert_eq!(place(part, Path::new("/system")), None, "the mount does not show it");
        assert_eq!(place(part, Path::new("/user/../x")), None);
        let older = b"32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu";
        assert_eq!(place(older, Path::new("/")), None);
        assert_eq!(place(b"", Path::new("/")), None);
    }

    #[test]
    fn the_kernels_words_are_read() {
        assert!(says_empty(b"populated 0\nfrozen 0\n"));
        assert!(!says_empty(b"populated 1\nfrozen 0\n") && !says_empty(b""));
        assert!(is_named(OsStr::new("ucp-van-1.0123abcd"), "van-1"));
        assert!(!is_named(OsStr::new("ucp-van-12.0123abcd"), "van-1"));
        assert!(!is_named(OsStr::new("ucp-van-1.own"), "van-1"));
        assert!(is_empty(Path::new("/no/such/cgroup")));
    }
}
