//! The only reader of wall time, of the running time and of random numbers.
//!
//! The pure layers get both as arguments: [`now`] at each input, [`seed`] once at the start.
//! Shapes: microseconds of `CLOCK_BOOTTIME`, which goes on while the machine is suspended and
//! never goes back; milliseconds since 1970 of the wall clock, which no decision reads.

use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::libc;
use nix::time::{ClockId, clock_gettime};

use crate::proto::time::{Monotonic, Now, WallTime};

/// What the clocks show.
///
/// # Panics
/// If the kernel has no `CLOCK_BOOTTIME`; Linux has had it since 2.6.39.
#[must_use]
pub fn now() -> Now {
    let boot = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has CLOCK_BOOTTIME");
    let seconds = u64::try_from(boot.tv_sec()).unwrap_or(0);
    let micros = u64::try_from(boot.tv_nsec() / 1000).unwrap_or(0);
    Now { mono: Monotonic(seconds * 1_000_000 + micros), wall: wall() }
}

/// What the wall clock shows; zero where it stands before 1970.
#[must_use]
#[allow(clippy::disallowed_methods, reason = "here, and nowhere else")]
pub fn wall() -> WallTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    WallTime(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// 64 random bits from the kernel.
///
/// # Panics
/// If the kernel gives none; it waits at boot until it can, and never fails for eight bytes.
#[must_use]
pub fn seed() -> u64 {
    let mut bytes = [0_u8; 8];
    loop {
        // SAFETY: the pointer and the length are those of `bytes`, which lives beyond the call.
        let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        if got == 8 {
            return u64::from_ne_bytes(bytes);
        }
        let error = io::Error::last_os_error();
        assert!(error.kind() == io::ErrorKind::Interrupted, "getrandom failed: {error}");
    }
}

/// The kernel's id of this boot.
///
/// # Errors
/// `/proc` is not mounted; nothing that rests on "the same boot" can be proven then.
pub fn boot_id() -> io::Result<String> {
    let path = "/proc/sys/kernel/random/boot_id";
    let named = |error: io::Error| io::Error::new(error.kind(), format!("read {path}: {error}"));
    Ok(std::fs::read_to_string(path).map_err(named)?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_running_time_never_goes_back() {
        let first = now().mono;
        assert!(first.0 > 0 && now().mono >= first);
    }

    #[test]
    fn two_seeds_differ_and_the_boot_id_stays() {
        assert_ne!(seed(), seed());
        let boot = boot_id().expect("this machine has /proc");
        assert_eq!(boot.len(), 36);
        assert_eq!(boot_id().expect("as before"), boot);
    }
}
