//! The order of everything: events sorted by simulated time, then by the order of their making.
//!
//! Does not handle events (cluster.rs does). Times are microseconds of the simulation, which no
//! process sees: each has clocks of its own (clocks.rs).
//! Law: the same pushes give the same pops, so one seed is one run.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use ucp::proto::event::Reply;
use ucp::proto::id::{AttemptId, RequestId};
use ucp::proto::message::{BrokerMessage, ExecutorMessage};
use ucp::proto::rng::Rng;

/// Something that will happen.
#[derive(Debug)]
pub enum Event {
    /// The broker's process begins.
    BrokerStart,
    /// The broker's loop takes what has come in.
    BrokerWake { life: u32 },
    /// The oldest batch on its way to the broker's disk is durable.
    DiskDone { life: u32 },
    /// A message reaches the broker's end of a connection.
    ToBroker { link: usize, message: Box<ExecutorMessage> },
    /// A message reaches the executor's end of a connection.
    ToExecutor { link: usize, message: Box<BrokerMessage> },
    /// The broker's end of a connection learns that it is over.
    BrokerSeesClose { link: usize, process_gone: bool, tree_gone: bool },
    /// The executor's end of a connection learns that it is over.
    ExecutorSeesClose { link: usize },
    /// An executor's process begins.
    ExecutorStart { executor: usize },
    /// An executor's process is killed.
    ExecutorKill { executor: usize, life: u32 },
    /// An executor tries to connect.
    ExecutorConnect { executor: usize, life: u32 },
    /// An executor's timer may be due.
    ExecutorTimer { executor: usize, life: u32 },
    /// An executor measures its machine.
    ExecutorMeasure { executor: usize },
    /// A result that is being written to an executor's disk is there.
    SpoolDone { executor: usize, life: u32 },
    /// A job's processes end; `signal` is what ended them.
    JobEnd { executor: usize, life: u32, attempt: AttemptId, signal: Option<i32> },
    /// A job keeps state of its own, and its executor a checkpoint of it.
    JobCheckpoint { executor: usize, life: u32, attempt: AttemptId },
    /// The lease of an attempt may be over.
    LeaseOver { executor: usize, life: u32, attempt: AttemptId },
    /// What a dead executor left has ended.
    ProcessGone { attempt: AttemptId },
    /// An executor's link breaks, and will so many times more.
    Flap { executor: usize, left: u32 },
    /// Another broker holds what is durable here.
    HeldElsewhere,
    /// A job's processes could not begin.
    JobUnfit { executor: usize, life: u32, attempt: AttemptId },
    /// The broker learns how many ends of elements a client has taken.
    TakenArrives { life: u32, request: RequestId, count: usize },
    /// A client does something.
    ClientActs { client: usize },
    /// A client's request reaches the broker.
    RequestArrives { op: usize, attempt: u32 },
    /// A reply reaches its client.
    ReplyArrives { op: usize, attempt: u32, reply: Box<Reply> },
    /// The broker learns that nobody waits for a request any more.
    RequestClosed { life: u32, request: RequestId },
    /// A client has waited long enough.
    OpTimeout { op: usize, attempt: u32 },
    /// Something breaks.
    Fault,
    /// All is looked over: is everything done?
    LookOver,
}

struct Entry {
    time: u64,
    tie: u64,
    event: Event,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        (self.time, self.tie) == (other.time, other.tie)
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.time, other.tie).cmp(&(self.time, self.tie))
    }
}

/// All events that are still to come.
#[derive(Default)]
pub struct Queue {
    heap: BinaryHeap<Entry>,
    made: u64,
}

impl Queue {
    /// Adds an event.
    pub fn push(&mut self, time: u64, event: Event) {
        self.made += 1;
        self.heap.push(Entry { time, tie: self.made, event });
    }

    /// The next event and its time.
    pub fn pop(&mut self) -> Option<(u64, Event)> {
        self.heap.pop().map(|entry| (entry.time, entry.event))
    }
}

/// Draws that simulations need often.
pub trait Draw {
    /// A number from `from` up to and including `to`.
    fn range(&mut self, from: u64, to: u64) -> u64;
    /// One of them.
    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T;
    /// A place in a list of that length.
    fn place(&mut self, length: usize) -> usize;
}

impl Draw for Rng {
    fn range(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to - from + 1)
    }
    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        let place = self.place(from.len());
        &from[place]
    }
    fn place(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).expect("a place fits")
    }
}
