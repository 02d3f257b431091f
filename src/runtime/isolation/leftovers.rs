//! What an earlier life of an executor left behind: found and killed before the next one registers.
//!
//! Its guard kills all, so there is something only where executor, spawner and guard were killed at
//! one instant. By its cgroup, whose path stands in the data directory, that is proven; else all of
//! `/proc` is looked through for the executor's id in an environment, which a process may have
//! cleared. Needs the data directory's lock: two lives at one time would kill each other's jobs.
//! Law: tests/exec/isolation.rs.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::proto::limits;
use crate::runtime::spawner::{EXECUTOR_VARIABLE, environment, parent_of, send_kill};

use super::{Owner, Plan, cgroup};

/// The file in the data directory that holds the path of the cgroup.
const RECORD: &str = "cgroup";
/// Between two looks at processes that were killed.
const PAUSE: Duration = Duration::from_millis(5);

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Leftovers {
    /// Processes killed.
    pub killed: usize,
    /// Whether a cgroup proved that nothing is left.
    pub proven: bool,
    /// Processes that are there still.
    pub left: usize,
}

/// Kills what an earlier life left.
#[must_use]
pub fn kill(data: &Path, executor: &str) -> Leftovers {
    let (in_cgroup, proven) = kill_cgroup(data, executor);
    let spared = lineage();
    let mut killed: Vec<i32> = vec![];
    let rounds = limits::LEFTOVERS_KILLED_WITHIN.as_millis() / PAUSE.as_millis();
    for _ in 0..rounds {
        let mut found = named(|owner| is_of(owner, executor));
        found.retain(|pid| !spared.contains(pid));
        if found.is_empty() {
            return Leftovers { killed: killed.len() + in_cgroup, proven, left: 0 };
        }
        for pid in found {
            send_kill(pid);
            if !killed.contains(&pid) {
                killed.push(pid);
            }
        }
        pause();
    }
    let left = named(|owner| is_of(owner, executor));
    let left = left.iter().filter(|pid| !spared.contains(pid)).count();
    Leftovers { killed: killed.len() + in_cgroup, proven: false, left }
}

/// Kills what one life of an executor left that has ended, as far as `/proc` shows it, until twice
/// in a row nothing is found or the time is over; what a next life runs by now is spared. Returns
/// how many it killed. Waits.
pub fn kill_of(owner: Owner<'_>, within: Duration) -> usize {
    let (spared, owner) = (lineage(), owner.to_string());
    let (mut killed, mut vain) = (0, 0);
    for _ in 0..within.as_millis() / PAUSE.as_millis() {
        let mut found = named(|named| named == owner.as_bytes());
        found.retain(|pid| !spared.contains(pid));
        found.iter().for_each(|pid| send_kill(*pid));
        killed += found.len();
        vain = if found.is_empty() { vain + 1 } else { 0 };
        if vain == 2 {
            break;
        }
        pause();
    }
    killed
}

fn pause() {
    #[allow(clippy::disallowed_methods, reason = "a pause between looks, within a bound")]
    std::thread::sleep(PAUSE);
}

/// Writes down where the cgroup of this life is.
///
/// # Errors
/// The disk refuses it. Then a next life looks through `/proc` alone.
pub fn record(data: &Path, plan: &Plan) -> io::Result<()> {
    let path = data.join(RECORD);
    match plan.cgroup() {
        Some(cgroup) => fs::write(path, cgroup.as_os_str().as_encoded_bytes()),
        None => match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        },
    }
}

/// Kills the recorded cgroup and removes it: how many processes it had, and whether it is gone.
fn kill_cgroup(data: &Path, executor: &str) -> (usize, bool) {
    use std::os::unix::ffi::OsStringExt;
    let Ok(text) = fs::read(data.join(RECORD)) else { return (0, false) };
    let path = PathBuf::from(std::ffi::OsString::from_vec(text));
    let named = path.file_name().is_some_and(|name| cgroup::is_named(name, executor));
    if !named || !path.is_dir() {
        return (0, false);
    }
    let rooms = fs::read_dir(&path).into_iter().flatten().flatten();
    let procs = rooms.map(|room| fs::read_to_string(room.path().join("cgroup.procs")));
    let count = procs.flatten().map(|text| text.lines().count()).sum();
    (count, cgroup::remove(&path))
}

/// Whether an owner is the executor, in any life of it.
fn is_of(owner: &[u8], executor: &str) -> bool {
    owner.strip_prefix(executor.as_bytes()).is_some_and(|rest| rest.starts_with(b"."))
}

/// The processes whose environment names an owner that is wanted.
fn named(is_wanted: impl Fn(&[u8]) -> bool) -> Vec<i32> {
    let listed = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = listed.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| environment(*pid, EXECUTOR_VARIABLE).is_some_and(|owner| is_wanted(&owner)))
        .collect()
}

/// This process and those that it descends from: a job may have started it.
fn lineage() -> Vec<i32> {
    let own = i32::try_from(std::process::id()).ok();
    std::iter::successors(own, |pid| parent_of(*pid).filter(|parent| *parent > 0)).collect()
}
