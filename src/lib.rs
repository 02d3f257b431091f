//! UCP: jobs on whatever machines are still reachable.
//!
//! For networks that break: a flood control room, a field hospital, a lab van. Brokers take jobs
//! and share one picture of them without leader, quorum or central database; executors run them;
//! people and scripts submit them. This crate is the library under the programs `ucp-broker`,
//! `ucp-exec` and `ucp-submit`.
//!
//! # The map
//!
//! Four layers under thin binaries; each may use only what stands to its right:
//! `bin → cli → runtime → wire → proto`.
//!
//! - [`proto`]: the pure core, *sans-IO*. Facts, clocks, the fold from facts to the state of a
//!   job, arbitration between results, the queue, and two state machines: [`proto::broker::Broker`]
//!   and [`proto::executor::Executor`].
//! - [`wire`]: JSON shapes of the HTTP interface and of the command lines; the public contract.
//! - `runtime`: the shell of IO: sockets, HTTP, SQLite, processes, signals, clocks.
//! - `cli`: what the commands share, and one file or folder for each command.
//!
//! # The contract
//!
//! An acknowledged submission is durable. State is a pure function of the set of facts held, so
//! order and repeats of arrival change nothing. A job whose broker and executor live is never run
//! twice. Which result stands is decided by causality first and a total order second, never by
//! wall clocks. `docs/design.md` has the invariants I1 to I11 and says which tests hold them.

pub mod proto;
pub mod wire;

#[cfg(feature = "runtime")]
pub mod cli;
#[cfg(feature = "runtime")]
pub mod runtime;
