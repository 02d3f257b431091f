//! What the machine has: cores, memory, disk, load, battery.
//!
//! Measures, and judges nothing. What cannot be read counts as generously as is honest: no memory
//! limit, no battery, an idle processor. Sources: proc(5), cgroups(7), sysfs `power_supply`.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::proto::capability::Load;
use crate::proto::time::Monotonic;
use crate::proto::units::Size;

/// The span over which the use of the processors is averaged.
const CPU_SPAN: Duration = Duration::from_secs(60);

/// The cores that this process may use.
#[must_use]
pub fn cores() -> u32 {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    u32::try_from(cores).unwrap_or(u32::MAX)
}

/// The memory that this process may use: the machine's, or less where a cgroup says so.
#[must_use]
pub fn memory() -> Size {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = member(&text, "MemTotal:").map_or(u64::MAX, |kilobytes| kilobytes << 10);
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limits = groups.lines().flat_map(limit_files);
    let limits =
        limits.filter_map(|path| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok());
    Size(limits.fold(total, u64::min).min(crate::proto::limits::COUNTER_MAX))
}

fn member(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// The files that may limit the memory of a group and of those that it is in.
fn limit_files(line: &str) -> Vec<PathBuf> {
    let mut parts = line.splitn(3, ':').skip(1);
    let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { return vec![] };
    let (root, name) = match controllers {
        "" => ("/sys/fs/cgroup", "memory.max"),
        held if held.split(',').any(|controller| controller == "memory") => {
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
        }
        _ => return vec![],
    };
    let path = Path::new(path.trim_start_matches('/'));
    path.ancestors().map(|group| Path::new(root).join(group).join(name)).collect()
}

/// The processor's architecture, as `uname -m` says.
#[must_use]
pub fn architecture() -> String {
    let path = "/proc/sys/kernel/arch";
    let read = std::fs::read_to_string(path).map(|text| text.trim().to_owned());
    read.unwrap_or_else(|_| std::env::consts::ARCH.to_owned())
}

/// Measures what changes.
#[derive(Debug)]
pub struct Meter {
    disk: PathBuf,
    samples: VecDeque<(Monotonic, Ticks)>,
}

/// Processor time since the machine started, in ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ticks {
    idle: u64,
    all: u64,
}

impl Meter {
    /// A meter for a machine whose jobs write below `disk`.
    #[must_use]
    pub fn new(disk: PathBuf) -> Self {
        Self { disk, samples: VecDeque::new() }
    }

    /// What the machine has at the moment.
    pub fn measure(&mut self, now: Monotonic) -> Load {
        if let Some(ticks) = std::fs::read_to_string("/proc/stat").ok().and_then(|t| ticks(&t)) {
            self.samples.push_back((now, ticks));
        }
        let stale = |next: &(Monotonic, Ticks)| now.since(next.0) >= CPU_SPAN;
        while self.samples.get(1).is_some_and(stale) {
            self.samples.pop_front();
        }
        Load { disk_free: self.disk_free(), cpu_free: self.cpu_free(), battery: battery() }
    }

    fn disk_free(&self) -> Size {
        let Ok(found) = nix::sys::statvfs::statvfs(&self.disk) else { return Size(0) };
        // The types differ between architectures.
        #[allow(clippy::useless_conversion, clippy::unnecessary_fallible_conversions)]
        let (blocks, size) = (
            u64::try_from(found.blocks_available()).unwrap_or(0),
            u64::try_from(found.fragment_size()).unwrap_or(0),
        );
        Size(blocks.saturating_mul(size).min(crate::proto::limits::COUNTER_MAX))
    }

    fn cpu_free(&self) -> u8 {
        match (self.samples.front(), self.samples.back()) {
            (Some((_, first)), Some((_, last))) if last.all > first.all => {
                let idle = last.idle.saturating_sub(first.idle) * 100;
                percent(idle / (last.all - first.all))
            }
            // A process that has just started knows only the load average.
            _ => {
                let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
                let load: f64 = text.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0.0);
                let used = load * 100.0 / f64::from(cores());
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // 0 to 100
                let used = used.clamp(0.0, 100.0) as u8;
                100 - used
            }
        }
    }
}

fn percent(value: u64) -> u8 {
    u8::try_from(value.min(100)).unwrap_or(100)
}

/// The first line of `/proc/stat`: user, nice, system, idle, iowait, irq, softirq, steal.
fn ticks(text: &str) -> Option<Ticks> {
    let line = text.lines().next()?.strip_prefix("cpu ")?;
    let numbers = line.split_ascii_whitespace().take(8).map(str::parse);
    let numbers: Vec<u64> = numbers.collect::<Result<_, _>>().ok()?;
    let idle = numbers.get(3)? + numbers.get(4).copied().unwrap_or(0);
    Some(Ticks { idle, all: numbers.iter().sum() })
}

/// Percent of the fullest battery; nothing where there is none.
fn battery() -> Option<u8> {
    let supplies = Path::new("/sys/class/power_supply").read_dir().ok()?.flatten();
    let charges = supplies.filter_map(|supply| {
        let read = |name: &str| std::fs::read_to_string(supply.path().join(name)).ok();
        let is_battery = read("type")?.trim() == "Battery";
        // A mouse has a battery as well, and says that it powers only itself.
        let is_ours = read("scope").is_none_or(|scope| scope.trim() != "Device");
        (is_battery && is_ours).then(|| read("capacity")?.trim().parse().ok()).flatten()
    });
    charges.max().map(percent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_something() {
        assert!(cores() >= 1);
        assert!(memory() >= Size(1 << 20));
        assert!(!architecture().is_empty());
        let mut meter = Meter::new("/".into());
        for at in 0..3 {
            let load = meter.measure(Monotonic(at * 1_000_000));
            assert!(load.cpu_free <= 100 && load.disk_free > Size(0));
        }
    }

    #[test]
    fn the_kernels_texts_are_understood() {
        let stat = "cpu  10 0 10 70 10 0 0 0 0 0\ncpu0 1 2 3 4\n";
        assert_eq!(ticks(stat), Some(Ticks { idle: 80, all: 100 }));
        assert_eq!(ticks("nothing"), None);
        assert_eq!(member("MemFree: 1 kB\nMemTotal:  2048 kB\n", "MemTotal:"), Some(2048));
        let paths = |line| -> Vec<String> {
            limit_files(line).iter().map(|path| path.display().to_string()).collect()
        };
        assert_eq!(
            paths("0::/a/b"),
            [
                "/sys/fs/cgroup/a/b/memory.max",
                "/sys/fs/cgroup/a/memory.max",
                "/sys/fs/cgroup/memory.max"
            ]
        );
        assert_eq!(paths("5:cpu,memory:/"), ["/sys/fs/cgroup/memory/memory.limit_in_bytes"]);
        assert!(paths("5:cpu:/").is_empty() && paths("?").is_empty());
    }

    #[test]
    fn free_processor_time_is_averaged_over_the_last_minute() {
        let mut meter = Meter::new("/".into());
        let at = |second: u64, idle, all| (Monotonic(second * 1_000_000), Ticks { idle, all });
        meter.samples.extend([at(0, 0, 0), at(30, 50, 200), at(60, 150, 400)]);
        assert_eq!(meter.cpu_free(), 37);
        meter.samples.pop_front();
        assert_eq!(meter.cpu_free(), 50);
    }
}
