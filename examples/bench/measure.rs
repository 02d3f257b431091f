//! Time, CPU, memory and disk, as the system counts them.
//!
//! Shapes: times in microseconds, sizes in bytes. CPU of a process is utime + stime of
//! /proc/PID/stat, which counts in hundredths of a second: fit for runs of seconds.

use std::error::Error;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};

pub type Outcome<T> = Result<T, Box<dyn Error>>;

/// The unit of times in /proc, which Linux fixes for user space: a hundredth of a second.
const TICK_US: f64 = 10_000.0;
/// The unit of `st_blocks`, whatever the file system's own is.
const BLOCK_BYTES: u64 = 512;
/// Memory that changes by less between two looks is at rest.
const REST_BYTES: f64 = 65_536.0;
/// How long memory may take to come to rest.
const REST_WITHIN: Duration = Duration::from_secs(20);

/// The value of some work, and how long that took.
#[allow(clippy::disallowed_methods, reason = "a measurement reads the clock")]
pub fn timed<T>(work: impl FnOnce() -> Outcome<T>) -> Outcome<(T, f64)> {
    let start = Instant::now();
    let value = work()?;
    Ok((value, start.elapsed().as_secs_f64() * 1e6))
}

/// How long each of so many goes took, the shortest first.
pub fn sorted(count: usize, mut go: impl FnMut() -> Outcome<()>) -> Outcome<Vec<f64>> {
    let mut took = (0..count).map(|_| Ok(timed(&mut go)?.1)).collect::<Outcome<Vec<f64>>>()?;
    took.sort_by(f64::total_cmp);
    Ok(took)
}

/// The value under which such a part of sorted values lies.
pub fn quantile(sorted: &[f64], part: f64) -> f64 {
    let at = (sorted.len() as f64 * part) as usize;
    sorted.get(at.min(sorted.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}

pub fn median(sorted: &[f64]) -> f64 {
    quantile(sorted, 0.5)
}

/// CPU that a process has used, and that the children used that it waited for.
pub fn cpu(pid: u32) -> Outcome<[f64; 2]> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after = stat.rsplit(") ").next().unwrap_or_default();
    let field = |at: usize| after.split(' ').nth(at).unwrap_or_default().parse::<u64>();
    let both = |at: usize| Ok::<_, std::num::ParseIntError>((field(at)? + field(at + 1)?) as f64);
    Ok([both(11)? * TICK_US, both(13)? * TICK_US])
}

/// CPU of the children that this process waited for.
pub fn cpu_of_children() -> Outcome<f64> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let micros = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 * 1e6 + time.tv_usec() as f64;
    Ok(micros(usage.user_time()) + micros(usage.system_time()))
}

/// A child of a process.
pub fn child_of(pid: u32) -> Outcome<u32> {
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let children = fs::read_to_string(task?.path().join("children"))?;
        if let Some(child) = children.split_whitespace().next() {
            return Ok(child.parse()?);
        }
    }
    Err(format!("process {pid} has no child").into())
}

/// Resident memory of a process, once it does not change any more.
pub fn memory_at_rest(pid: u32) -> Outcome<f64> {
    let mut before = memory(pid)?;
    let mut waited = Duration::ZERO;
    while waited < REST_WITHIN {
        let pause = Duration::from_millis(500);
        #[allow(clippy::disallowed_methods, reason = "rest is that nothing changes for a while")]
        std::thread::sleep(pause);
        waited += pause;
        let now = memory(pid)?;
        if (now - before).abs() < REST_BYTES {
            return Ok(now);
        }
        before = now;
    }
    Err(format!("the memory of process {pid} does not come to rest").into())
}

fn memory(pid: u32) -> Outcome<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).ok_or("no VmRSS")?;
    Ok(kib.parse::<f64>()? * 1024.0)
}

/// What the files of a directory take on the disk, those of such names left out.
pub fn disk(directory: &Path, without: &[&str]) -> Outcome<f64> {
    let mut bytes = 0.0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        if metadata.is_dir() {
            bytes += disk(&entry.path(), without)?;
        } else if !without.iter().any(|name| entry.file_name() == *name) {
            bytes += (metadata.blocks() * BLOCK_BYTES) as f64;
        }
    }
    Ok(bytes)
}
