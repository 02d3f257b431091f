//! `ucp-submit` with real brokers and executors.

mod common;

#[path = "cli/exit_status.rs"]
mod exit_status;
#[path = "cli/submit.rs"]
mod submit;
#[path = "cli/submit_ask.rs"]
mod submit_ask;
#[path = "cli/submit_each.rs"]
mod submit_each;
#[path = "cli/submit_silent.rs"]
mod submit_silent;
