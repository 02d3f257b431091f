//! The few system calls of the spawner that no safe wrapper offers.
//!
//! Nothing here decides anything. Errors that cannot matter (a process that is already gone) are
//! passed over where it is said so.

use std::io;
use std::os::fd::RawFd;

use nix::libc;
use nix::sys::signal::{SigSet, SigmaskHow};

/// How long [`pause`] takes.
pub(super) const PAUSE: std::time::Duration = std::time::Duration::from_millis(5);

/// A child that ended and was not yet waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Zombie {
    /// This one; its number stays taken until [`reap`].
    Of(i32),
    /// There are children, and all live.
    NoneYet,
    /// There is no child at all.
    NoChild,
}

/// What a reaped child used.
#[derive(Debug, Clone, Copy)]
pub(super) struct Used {
    pub(super) status: i32,
    pub(super) cpu_us: u64,
    pub(super) memory_max: u64,
}

/// Looks for a child that ended, without waiting for it and without freeing its number.
pub(super) fn next_zombie() -> Zombie {
    loop {
        // SAFETY: siginfo_t is plain data for which zeroes are valid; waitid writes only to it.
        let (returned, pid) = unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
            let returned = libc::waitid(libc::P_ALL, 0, &raw mut info, flags);
            (returned, info.si_pid())
        };
        match (returned, pid) {
            (0, 0) => return Zombie::NoneYet,
            (0, pid) => return Zombie::Of(pid),
            _ if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            _ => return Zombie::NoChild,
        }
    }
}

/// Waits for a child that ended and frees its number.
pub(super) fn reap(pid: i32) -> Used {
    let mut status = 0;
    // SAFETY: rusage is plain data for which zeroes are valid; wait4 writes only to the two.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::wait4(pid, &raw mut status, 0, &raw mut usage);
        usage
    };
    let micros = |time: libc::timeval| {
        let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
        seconds * 1_000_000 + u64::try_from(time.tv_usec).unwrap_or(0)
    };
    let kilobytes = u64::try_from(usage.ru_maxrss).unwrap_or(0);
    Used {
        status,
        cpu_us: micros(usage.ru_utime) + micros(usage.ru_stime),
        memory_max: kilobytes * 1024,
    }
}

/// Sends a signal to a process, or with a negative number to a group; one that is gone is fine.
pub(super) fn kill(pid: i32, signal: i32) {
    if pid == 0 || pid == -1 || pid == 1 {
        return;
    }
    // SAFETY: kill touches no memory of ours.
    unsafe { libc::kill(pid, signal) };
}

/// Closes every descriptor from 3 on, except these.
pub(super) fn close_others(mut keep: Vec<RawFd>) {
    keep.retain(|fd| *fd >= 3);
    keep.sort_unstable();
    let close = |from: RawFd, to: libc::c_uint| {
        let Ok(from) = libc::c_uint::try_from(from) else { return true };
        if from > to {
            return true;
        }
        // SAFETY: the spawner and the guard call this right after their fork, when they use no
        // descriptor here but `keep`; the parent's objects that own the others are never touched.
        unsafe { libc::syscall(libc::SYS_close_range, from, to, 0) == 0 }
    };
    let mut from = 3;
    let mut closed = true;
    for fd in &keep {
        closed &= close(from, libc::c_uint::try_from(*fd - 1).unwrap_or(0));
        from = *fd + 1;
    }
    if closed && close(from, libc::c_uint::MAX) {
        return;
    }
    // A kernel older than 5.9.
    let listed = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let open: Vec<RawFd> =
        listed.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for fd in open.into_iter().filter(|fd| *fd >= 3 && !keep.contains(fd)) {
        // SAFETY: as above.
        unsafe { libc::close(fd) };
    }
}

/// A moment between two looks at processes that were killed.
pub(super) fn pause() {
    #[allow(clippy::disallowed_methods, reason = "a pause between looks, within a bound")]
    std::thread::sleep(PAUSE);
}

/// Blocks every signal, and tells which were blocked before.
pub(super) fn block_signals() -> io::Result<SigSet> {
    let mut before = SigSet::empty();
    let all = SigSet::all();
    nix::sys::signal::sigprocmask(SigmaskHow::SIG_SETMASK, Some(&all), Some(&mut before))?;
    Ok(before)
}

/// Blocks just these signals.
pub(super) fn restore_signals(blocked: &SigSet) -> io::Result<()> {
    Ok(nix::sys::signal::sigprocmask(SigmaskHow::SIG_SETMASK, Some(blocked), None)?)
}

/// Blocks all signals, so that none ends the spawner, and sets all to their defaults, so that
/// jobs inherit no ignored one. A program that is started begins with an empty mask.
pub(super) fn quiet_signals() -> io::Result<()> {
    nix::sys::signal::sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None)?;
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: all zeroes is the default action, which runs no code of ours. The numbers that
        // cannot be set (SIGKILL, SIGSTOP, those of the C library) are refused without effect.
        unsafe {
            let default: libc::sigaction = std::mem::zeroed();
            libc::sigaction(signal, &raw const default, std::ptr::null_mut());
        }
    }
    Ok(())
}

/// Ends this process without running what the parent had registered for its own end.
pub(super) fn exit(code: i32) -> ! {
    // SAFETY: nothing of this process is used afterwards.
    unsafe { libc::_exit(code) }
}
