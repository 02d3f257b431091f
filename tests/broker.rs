//! `ucp-broker` as a process: its HTTP routes, its sessions with executors, its lives.
//!
//! Executors are played by the tests themselves, so that each message and each silence is theirs.
//! What the core decides is tested below it (tests/properties.rs, tests/simulation.rs).

mod common;

#[path = "broker/blobs.rs"]
mod blobs;
#[path = "broker/disk.rs"]
mod disk;
#[path = "broker/fuzz.rs"]
mod fuzz;
#[path = "broker/hostile.rs"]
mod hostile;
#[path = "broker/http.rs"]
mod http;
#[path = "broker/lives.rs"]
mod lives;
#[path = "broker/output.rs"]
mod output;
#[path = "broker/peer.rs"]
mod peer;
#[path = "broker/sessions.rs"]
mod sessions;
