//! Our standard input, where a job does not get it: is there something that it may have wanted?
//!
//! Reads nothing; files.rs does.

use std::io;
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout};

/// Whether our standard input is a pipe in which something waits to be read.
#[must_use]
pub fn is_waiting() -> bool {
    use nix::sys::stat::{SFlag, fstat};
    let stdin = io::stdin();
    let kind = fstat(stdin.as_fd()).map_or(0, |found| found.st_mode) & SFlag::S_IFMT.bits();
    let mut asked = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
    kind == SFlag::S_IFIFO.bits()
        && nix::poll::poll(&mut asked, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
        && asked[0].revents().is_some_and(|found| found.contains(PollFlags::POLLIN))
}
