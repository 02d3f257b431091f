//! Memory that a compiler used, given back to the kernel.
//!
//! The C library keeps freed memory for later, and there is no later: compiling one large module
//! leaves over a gigabyte behind that nothing uses any more. Source: malloc_trim(3).

/// Gives back what is free. Takes milliseconds.
pub fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it has no preconditions, takes the allocator's own locks, and moves nothing.
    let _ = unsafe { nix::libc::malloc_trim(0) };
}
