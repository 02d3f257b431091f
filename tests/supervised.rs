//! Daemons under a supervisor: what they tell it, what it hands to them, and its units.
//!
//! The supervisor is played by the tests, with real datagram sockets and real listening sockets
//! that a child inherits; `systemd-socket-activate` and `systemd-analyze` where they are installed.

mod common;

#[path = "supervised/activation.rs"]
mod activation;
#[path = "supervised/notify.rs"]
mod notify;
#[path = "supervised/units.rs"]
mod units;

use std::io::Write;

/// Says that something was not checked, past the test harness, which keeps what a test that passes
/// prints.
fn skipped(why: &str) {
    let said = format!("SKIPPED: {why}\n");
    std::io::stderr().write_all(said.as_bytes()).expect("stderr is there");
}
