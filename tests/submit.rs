//! `ucp-submit` with real brokers and executors.

mod common;

#[allow(dead_code)] // the tests of the broker use the rest of it
#[path = "broker/peer.rs"]
mod peer;

#[path = "cli/exit_status.rs"]
mod exit_status;
#[path = "cli/files.rs"]
mod files;
#[path = "cli/pipes.rs"]
mod pipes;
#[path = "cli/status.rs"]
mod status;
#[path = "cli/submit.rs"]
mod submit;
#[path = "cli/submit_array.rs"]
mod submit_array;
#[path = "cli/submit_array_faults.rs"]
mod submit_array_faults;
#[path = "cli/submit_ask.rs"]
mod submit_ask;
#[path = "cli/submit_deadline.rs"]
mod submit_deadline;
#[path = "cli/submit_each.rs"]
mod submit_each;
#[path = "cli/submit_each_faults.rs"]
mod submit_each_faults;
#[path = "cli/submit_overlap.rs"]
mod submit_overlap;
#[path = "cli/submit_progress.rs"]
mod submit_progress;
#[path = "cli/submit_silent.rs"]
mod submit_silent;
#[path = "cli/wasm.rs"]
mod wasm;
