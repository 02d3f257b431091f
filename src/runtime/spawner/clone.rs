//! A child that shares our memory until it is another program: the raw part of starting one.
//!
//! Looks nothing up and makes nothing: all that the child needs was prepared before, since it runs
//! on borrowed memory and may make plain system calls only. The parent stands still until the child
//! has become its program or has ended, so that no page table is copied and an error comes back
//! through memory. `clone3` puts the child into its cgroup from its first moment (a write to
//! `cgroup.procs` waits for every processor); without a cgroup the C library's `clone` does.
//! Law: the child has no descriptor but 0, 1 and 2, default signal actions and an empty mask, and
//! ends with the thread that started it (tests/spawner.rs).
//! Source: clone(2) with `CLONE_VM`, `CLONE_VFORK` and `CLONE_INTO_CGROUP`; landlock(7); prctl(2).

use std::cell::UnsafeCell;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::libc;

/// The child's stack: it calls some system calls and no deeper.
const STACK_BYTES: usize = 64 << 10;

/// The exit status of a child that did not become a program.
const ENDED: c_int = 127;

/// What a start failed at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The program: it is not there, or cannot be executed.
    Program,
    /// The working directory.
    Directory,
    /// What keeps the program apart from the machine.
    Isolation,
    /// The process itself.
    Process,
    /// Its lease: it was over before the program could begin.
    Lease,
}

impl Step {
    pub(super) const fn number(self) -> i32 {
        match self {
            Self::Program => 0,
            Self::Directory => 1,
            Self::Isolation => 2,
            Self::Process => 3,
            Self::Lease => 4,
        }
    }

    pub(super) const fn from_number(number: i32) -> Self {
        match number {
            0 => Self::Program,
            1 => Self::Directory,
            2 => Self::Isolation,
            4 => Self::Lease,
            _ => Self::Process,
        }
    }
}

/// A start that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) step: Step,
    pub(crate) errno: Errno,
}

/// A bound of the kernel's: the resource, the soft and the hard limit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bound {
    pub(crate) resource: c_int,
    pub(crate) soft: libc::rlim_t,
    pub(crate) hard: libc::rlim_t,
}

/// What keeps a child apart.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Confinement<'a> {
    /// Whether it and all that it starts gain no rights.
    pub(crate) no_new_privileges: bool,
    /// The Landlock ruleset that it puts itself under.
    pub(crate) ruleset: Option<BorrowedFd<'a>>,
    /// The directory of the cgroup that it begins in.
    pub(crate) cgroup: Option<BorrowedFd<'a>>,
    pub(crate) bounds: &'a [Bound],
}

impl Confinement<'_> {
    pub(crate) const NONE: Self =
        Self { no_new_privileges: false, ruleset: None, cgroup: None, bounds: &[] };
}

/// A program with all that it begins with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Image<'a> {
    pub(crate) path: &'a CStr,
    /// Ends with a null pointer.
    pub(crate) argv: &'a [*const c_char],
    /// Ends with a null pointer.
    pub(crate) envp: &'a [*const c_char],
    pub(crate) cwd: &'a CStr,
    /// Standard input, output and error; none where it is kept.
    pub(crate) streams: [Option<BorrowedFd<'a>>; 3],
}

/// What the child reads, and where it says what went wrong.
struct Order<'a> {
    image: Option<Image<'a>>,
    confinement: Confinement<'a>,
    parent: libc::pid_t,
    failed: UnsafeCell<Option<(Step, c_int)>>,
}

/// The stack that children run on, one at a time.
pub(crate) struct Stack(Box<[u128]>);

impl Stack {
    pub(crate) fn new() -> Self {
        Self(vec![0; STACK_BYTES / size_of::<u128>()].into())
    }
}

/// Starts a program, or without one a child that confines itself and ends: a probe. The caller has
/// one thread or all signals blocked. A child that failed was waited for already.
pub(crate) fn start(
    stack: &mut Stack,
    image: Option<Image<'_>>,
    confinement: Confinement<'_>,
) -> Result<i32, Failure> {
    // SAFETY: getpid touches no memory.
    let parent = unsafe { libc::getpid() };
    let order = Order { image, confinement, parent, failed: UnsafeCell::new(None) };
    let argument = (&raw const order).cast_mut().cast::<c_void>();
    let pid = match confinement.cgroup {
        // SAFETY: the order and the stack live until the child has left our memory, which is when
        // the call returns.
        Some(cgroup) => unsafe { clone_into(&mut stack.0, argument, cgroup.as_raw_fd()) },
        // SAFETY: as above.
        None => unsafe { clone_plainly(&mut stack.0, argument) },
    };
    if pid < 0 {
        return Err(Failure { step: Step::Process, errno: Errno::from_raw(-pid) });
    }
    // SAFETY: the child has left our memory.
    let failed = unsafe { *order.failed.get() };
    match failed {
        None if image.is_some() => Ok(pid),
        // A probe that was killed instead of ending by itself shows that nothing can begin so.
        None if super::sys::reap(pid).status == ENDED << 8 => Ok(pid),
        None => Err(Failure { step: Step::Process, errno: Errno::EPERM }),
        Some((step, errno)) => {
            super::sys::reap(pid);
            Err(Failure { step, errno: Errno::from_raw(errno) })
        }
    }
}

/// The child. Never returns, never unwinds, allocates nothing.
extern "C" fn child(argument: *mut c_void) -> c_int {
    // SAFETY: `start` passes an `Order` that outlives the child's use of it, and stands still.
    let order = unsafe { &*argument.cast::<Order<'_>>() };
    let step = run(order);
    // SAFETY: the parent reads it only when this child has left its memory. errno is the one of
    // the thread that stands still.
    unsafe {
        *order.failed.get() = step.map(|step| (step, *libc::__errno_location()));
        libc::_exit(ENDED)
    }
}

/// Does what the order says; returns the step that failed, or none after a probe.
fn run(order: &Order<'_>) -> Option<Step> {
    let Order { image, confinement, parent, .. } = order;
    // SAFETY: plain system calls; every pointer is to memory of the parent, which stands still.
    unsafe {
        if libc::setpgid(0, 0) != 0
            || libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0
            // It may have ended before it was asked to tell.
            || libc::getppid() != *parent
        {
            return Some(Step::Process);
        }
        for bound in confinement.bounds {
            let limit = libc::rlimit { rlim_cur: bound.soft, rlim_max: bound.hard };
            // A conversion to the type that this C library wants.
            if libc::setrlimit(bound.resource as _, &raw const limit) != 0 {
                return Some(Step::Isolation);
            }
        }
        if let Some(image) = image {
            for (number, stream) in (0..).zip(&image.streams) {
                if let Some(stream) = stream
                    && libc::dup2(stream.as_raw_fd(), number) < 0
                {
                    return Some(Step::Process);
                }
            }
            if libc::chdir(image.cwd.as_ptr()) != 0 {
                return Some(Step::Directory);
            }
        }
        if confinement.no_new_privileges && libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
        {
            return Some(Step::Isolation);
        }
        if let Some(ruleset) = confinement.ruleset
            && libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) != 0
        {
            return Some(Step::Isolation);
        }
        let image = image.as_ref()?;
        // All close themselves at the next call already; where this one is not known, that does.
        libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0);
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        libc::execve(image.path.as_ptr(), image.argv.as_ptr(), image.envp.as_ptr());
    }
    Some(Step::Program)
}

/// The number of the child, or an error's number below zero.
///
/// # Safety
/// `argument` must be an `Order` that lives as long as the call.
unsafe fn clone_plainly(stack: &mut [u128], argument: *mut c_void) -> c_int {
    let top = stack.as_mut_ptr_range().end;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: the stack is ours and aligned, and grows down from its end; the child leaves it
    // before this returns.
    let pid = unsafe { libc::clone(child, top.cast(), flags, argument) };
    if pid < 0 { -Errno::last_raw() } else { pid }
}

/// The kernel's `struct clone_args` up to `cgroup`.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[repr(C, align(8))]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// As [`clone_plainly`], into a cgroup.
///
/// # Safety
/// As there.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
unsafe fn clone_into(stack: &mut [u128], argument: *mut c_void, cgroup: c_int) -> c_int {
    const INTO_CGROUP: u64 = 0x2_0000_0000;
    let plain = u64::from((libc::CLONE_VM | libc::CLONE_VFORK).cast_unsigned());
    let args = CloneArgs {
        flags: plain | INTO_CGROUP,
        pidfd: 0,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: u64::from(libc::SIGCHLD.cast_unsigned()),
        stack: stack.as_mut_ptr() as u64,
        stack_size: size_of_val(stack) as u64,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: u64::from(cgroup.cast_unsigned()),
    };
    let returned: i64;
    // SAFETY: in the parent this is one system call. The child comes back from it with our
    // registers on its own aligned stack, and only calls a function that never returns.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r8",
            "call r9",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 => returned,
            in("rdi") &raw const args,
            in("rsi") size_of::<CloneArgs>(),
            in("r8") argument,
            in("r9") child as extern "C" fn(*mut c_void) -> c_int,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        std::arch::asm!(
            "svc #0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x0, x5",
            "blr x6",
            "brk #1",
            "2:",
            in("x8") libc::SYS_clone3,
            inlateout("x0") (&raw const args) as i64 => returned,
            in("x1") size_of::<CloneArgs>(),
            in("x5") argument,
            in("x6") child as extern "C" fn(*mut c_void) -> c_int,
        );
    }
    c_int::try_from(returned).unwrap_or(-libc::EINVAL)
}

/// Where nobody wrote the call for this processor: there is no such thing.
///
/// # Safety
/// Nothing is asked.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
unsafe fn clone_into(_: &mut [u128], _: *mut c_void, _: c_int) -> c_int {
    -libc::ENOSYS
}
