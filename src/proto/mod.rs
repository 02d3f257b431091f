//! The pure core: facts, clocks, the fold, arbitration, scheduling, and the two state machines.
//!
//! *Sans-IO*: no runtime, files, sockets, wall clock or randomness of its own. Time and a seeded
//! generator come in as arguments, what is to be done goes out as ordered values. So a whole
//! mesh runs in one thread under a simulated network, disk and clocks, from one seed
//! (tests/simulation), and what is simulated is what ships.

pub mod arbitrate;
pub mod broker;
pub mod capability;
pub mod checkpoint;
pub mod clock;
pub mod content;
pub mod contest;
pub mod event;
pub mod executor;
pub mod fact;
pub mod fold;
pub mod history;
pub mod id;
pub mod isolation;
pub mod job;
pub mod limits;
pub mod log;
pub mod message;
pub mod precedence;
pub mod ranges;
pub mod result;
pub mod rng;
pub mod schedule;
pub mod sync;
pub mod text;
pub mod time;
pub mod unique;
pub mod units;
pub mod view;
