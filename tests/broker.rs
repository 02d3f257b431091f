//! `ucp-broker` as a process: its HTTP routes, its sessions with executors, its lives.
//!
//! Executors are played by the tests themselves, so that each message and each silence is theirs.
//! What the core decides is tested below it (tests/properties.rs, tests/simulation.rs).

mod common;

#[path = "broker/blobs.rs"]
mod blobs;
#[path = "broker/declared.rs"]
mod declared;
#[path = "broker/disk.rs"]
mod disk;
#[path = "broker/events.rs"]
mod events;
#[path = "broker/fuzz.rs"]
mod fuzz;
#[path = "broker/hostile.rs"]
mod hostile;
#[path = "broker/http.rs"]
mod http;
#[path = "broker/lives.rs"]
mod lives;
#[path = "broker/metrics.rs"]
mod metrics;
#[path = "broker/openapi.rs"]
mod openapi;
#[path = "broker/output.rs"]
mod output;
#[path = "broker/page.rs"]
mod page;
#[path = "broker/peer.rs"]
mod peer;
#[path = "broker/sessions.rs"]
mod sessions;
