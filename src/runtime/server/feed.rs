//! What `GET /v1/events` tells: facts once they are durable, executors as they come and go.
//!
//! Decides nothing. The loop (drive.rs) hands over each batch when it goes to the disk and says
//! when it is durable; only then it becomes events. While nobody reads, no event is made.
//! Shape: one ring of the latest [`limits::EVENTS_HELD_MAX`] events for all readers, each with a
//! place of its own in it. A reader that falls behind the ring is told how many it missed, so
//! memory does not grow with readers or with their slowness.
//! Law: a reader gets every event since it began, in order, once, or is told of the gap.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use crate::proto::event::Input;
use crate::proto::fact::Fact;
use crate::proto::id::{ExecutorId, JobId, SessionId};
use crate::proto::limits;
use crate::proto::message::BrokerMessage;
use crate::runtime::entropy;
use crate::wire::api::{EXECUTOR_JOINED, EXECUTOR_LEFT, EventLine};

/// One event, ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its word.
    pub word: &'static str,
    /// Its job.
    pub job: Option<JobId>,
    /// Its line, without a newline.
    pub line: Rc<str>,
}

impl Event {
    fn new(word: &'static str, job: Option<JobId>, line: &EventLine) -> Self {
        let line = serde_json::to_string(line).expect("events have only string keys");
        Self { word, job, line: line.into() }
    }
}

/// An executor's session, as the loop sees it.
#[derive(Debug)]
struct Presence {
    executor: ExecutorId,
    is_welcome: bool,
}

/// The ring and what is to become part of it.
#[derive(Debug, Default)]
pub struct Feed {
    /// Batches on their way to the disk.
    in_flight: RefCell<VecDeque<Vec<Arc<Fact>>>>,
    ring: RefCell<VecDeque<Event>>,
    /// The number of the event that comes next.
    next: Cell<u64>,
    readers: Cell<usize>,
    sessions: RefCell<BTreeMap<SessionId, Presence>>,
}

impl Feed {
    /// Facts go to the disk.
    pub fn hold(&self, facts: Vec<Arc<Fact>>) {
        self.in_flight.borrow_mut().push_back(facts);
    }

    /// The oldest batch that was held is durable; gives its facts.
    pub fn release(&self) -> Vec<Arc<Fact>> {
        let facts = self.in_flight.borrow_mut().pop_front().unwrap_or_default();
        if self.readers.get() > 0 {
            for fact in &facts {
                let line = EventLine::of_fact(fact);
                self.push(Event::new(fact.body.kind(), fact.job, &line));
            }
        }
        facts
    }

    /// Something came to the core; says whether an event came of it.
    pub fn saw(&self, input: &Input) -> bool {
        match input {
            Input::SessionOpened { session, hello, .. } => {
                let executor = hello.executor.clone();
                let presence = Presence { executor, is_welcome: false };
                self.sessions.borrow_mut().insert(*session, presence);
                false
            }
            Input::SessionClosed { session, .. } => {
                let mut sessions = self.sessions.borrow_mut();
                let Some(gone) = sessions.remove(session) else { return false };
                // An executor that is here again over another connection has not left.
                let is_here =
                    sessions.values().any(|held| held.is_welcome && held.executor == gone.executor);
                gone.is_welcome && !is_here && self.tell_executor(EXECUTOR_LEFT, gone.executor)
            }
            _ => false,
        }
    }

    /// Something is sent to an executor; says whether an event came of it.
    pub fn sent(&self, session: SessionId, message: &BrokerMessage) -> bool {
        if !matches!(message, BrokerMessage::Welcome { .. }) {
            return false;
        }
        let mut sessions = self.sessions.borrow_mut();
        let Some(presence) = sessions.get_mut(&session) else { return false };
        presence.is_welcome = true;
        self.tell_executor(EXECUTOR_JOINED, presence.executor.clone())
    }

    fn tell_executor(&self, word: &'static str, executor: ExecutorId) -> bool {
        if self.readers.get() == 0 {
            return false;
        }
        let at = entropy::now().wall.to_string();
        self.push(Event::new(word, None, &EventLine::of_executor(word, executor, at)));
        true
    }

    fn push(&self, event: Event) {
        let mut ring = self.ring.borrow_mut();
        if ring.len() >= limits::EVENTS_HELD_MAX {
            ring.pop_front();
        }
        ring.push_back(event);
        self.next.set(self.next.get() + 1);
    }

    /// Sessions of executors that were let in.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.sessions.borrow().values().filter(|held| held.is_welcome).count()
    }

    /// Readers at this moment.
    #[must_use]
    pub fn readers(&self) -> usize {
        self.readers.get()
    }

    /// A reader of what comes from now on; nothing where there are too many.
    #[must_use]
    pub fn read(self: &Rc<Self>) -> Option<Reader> {
        if self.readers.get() >= limits::EVENT_READERS_MAX {
            return None;
        }
        self.readers.set(self.readers.get() + 1);
        Some(Reader { feed: Rc::clone(self), at: self.next.get() })
    }
}

/// What a reader gets next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Taken {
    /// So many events were passed over, as the reader was slow.
    Missed(u64),
    /// An event.
    Event(Event),
}

/// A place in the ring; given back when it is dropped.
#[derive(Debug)]
pub struct Reader {
    feed: Rc<Feed>,
    /// The number of the event to be read next.
    at: u64,
}

impl Reader {
    /// The next thing if it is there.
    pub fn take(&mut self) -> Option<Taken> {
        let ring = self.feed.ring.borrow();
        let first = self.feed.next.get() - ring.len() as u64;
        if self.at < first {
            let missed = first - self.at;
            self.at = first;
            return Some(Taken::Missed(missed));
        }
        let event = ring.get(usize::try_from(self.at - first).ok()?)?.clone();
        self.at += 1;
        Some(Taken::Event(event))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.feed.readers.set(self.feed.readers.get() - 1);
        if self.feed.readers.get() == 0 {
            *self.feed.ring.borrow_mut() = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::clock::Clock;
    use crate::proto::fact::{Body, Reason};
    use crate::proto::id::Dot;

    fn fact(seq: u64) -> Arc<Fact> {
        Arc::new(Fact {
            dot: Dot { log: "north-00000001".parse().expect("a name"), seq },
            clock: Clock::default(),
            job: Some(JobId(uuid::Uuid::from_u128(1))),
            birth: None,
            generation: 1,
            elements: None,
            at: "2026-01-01T00:00:00.000Z".into(),
            body: Body::Parked(Reason { reason: "enough".into() }),
        })
    }

    fn seqs(reader: &mut Reader) -> Vec<u64> {
        let mut found = vec![];
        while let Some(taken) = reader.take() {
            let Taken::Event(event) = taken else { panic!("{taken:?}") };
            let line: EventLine = serde_json::from_str(&event.line).expect("a line");
            assert_eq!((&*line.event, line.reason.as_deref()), ("parked", Some("enough")));
            found.push(line.dot.expect("a fact has one").seq);
        }
        found
    }

    #[test]
    fn events_come_once_their_batch_is_durable_and_only_while_somebody_reads() {
        let feed = Rc::new(Feed::default());
        feed.hold(vec![fact(1)]);
        assert_eq!(feed.release().len(), 1);
        feed.hold(vec![fact(2), fact(3)]);
        let mut reader = feed.read().expect("there is room");
        assert_eq!(reader.take(), None, "neither what was before nor what is not durable");
        feed.hold(vec![fact(4)]);
        feed.release();
        assert_eq!(seqs(&mut reader), [2, 3]);
        let mut second = feed.read().expect("there is room");
        feed.release();
        assert_eq!((seqs(&mut reader), seqs(&mut second)), (vec![4], vec![4]));
        drop(reader);
        drop(second);
        assert!(feed.ring.borrow().is_empty() && feed.readers() == 0);
    }

    #[test]
    fn a_slow_reader_is_told_what_it_missed_and_memory_stays() {
        let feed = Rc::new(Feed::default());
        let mut slow = feed.read().expect("there is room");
        let count = limits::EVENTS_HELD_MAX as u64 + 10;
        for seq in 0..count {
            feed.hold(vec![fact(seq)]);
            feed.release();
        }
        assert_eq!(feed.ring.borrow().len(), limits::EVENTS_HELD_MAX);
        assert_eq!(slow.take(), Some(Taken::Missed(10)));
        assert_eq!(seqs(&mut slow), (10..count).collect::<Vec<_>>());
    }

    #[test]
    fn there_are_so_many_readers_and_no_more() {
        let feed = Rc::new(Feed::default());
        let mut readers: Vec<_> = std::iter::from_fn(|| feed.read()).collect();
        assert_eq!(readers.len(), limits::EVENT_READERS_MAX);
        readers.pop();
        assert!(feed.read().is_some());
    }
}
