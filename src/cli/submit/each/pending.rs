//! The lines that were read and have not ended, and the submissions that carry them.
//!
//! One submission carries many lines, as an array whose elements are their numbers, or one line,
//! as a job of its own. Speaks to nobody.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use tokio::sync::Notify;

use crate::proto::id::JobId;
use crate::proto::text::Text;
use crate::runtime::endpoint::Address;

/// What is sent to a broker under one id.
pub struct Submission {
    /// Its id.
    pub id: JobId,
    /// Our number for it: that of its first line.
    pub index: u64,
    /// Its last line.
    pub last: u64,
    /// Whether its lines are elements of an array.
    pub is_chunk: bool,
    /// Whether it is one line that is an array by its own spec.
    pub is_array: bool,
    /// The line that submits it.
    pub text: String,
    /// Whether a broker may know it.
    pub sent: Cell<bool>,
    /// Where it was sent last.
    pub sent_to: RefCell<Option<Address>>,
    /// Whether it was sent elsewhere before, so that another broker may know it.
    pub elsewhere: Cell<bool>,
}

/// A line that was read and has not ended.
pub struct Line {
    /// What it gives, where it is no spec.
    pub item: Option<Text>,
    /// What carries it; nothing while it waits for others.
    pub submission: Option<Rc<Submission>>,
    /// Memory that it takes up.
    pub bytes: usize,
}

impl Submission {
    /// It goes to a broker at this address now.
    pub fn send_to(&self, address: &Address) {
        self.sent.set(true);
        let before = self.sent_to.replace(Some(address.clone()));
        self.elsewhere.set(self.elsewhere.get() || before.is_some_and(|other| other != *address));
    }
}

impl Line {
    fn is_sent(&self) -> bool {
        self.submission.as_ref().is_some_and(|submission| submission.sent.get())
    }
}

/// What the filter and whoever stops it both see. All on one thread, never held over a wait.
#[derive(Default)]
pub struct Shared {
    /// The lines that have not ended, by number.
    pub pending: RefCell<BTreeMap<u64, Line>>,
    /// Whether all is to be stopped.
    pub stopping: Cell<bool>,
    /// Told when that begins.
    pub stop: Notify,
}

impl Shared {
    /// How many lines have not ended.
    pub fn open(&self) -> usize {
        self.pending.borrow().len()
    }

    /// Whether all have.
    pub fn is_empty(&self) -> bool {
        self.open() == 0
    }

    /// How many of them a broker may know.
    pub fn sent(&self) -> usize {
        self.pending.borrow().values().filter(|line| line.is_sent()).count()
    }

    /// The next submission behind the line `last` that a broker may know and that has not ended.
    pub fn sent_after(&self, last: Option<u64>) -> Option<Rc<Submission>> {
        let pending = self.pending.borrow();
        let from = last.map_or(0, |last| last + 1);
        let mut lines = pending.range(from..).filter(|(_, line)| line.is_sent());
        lines.find_map(|(_, line)| line.submission.clone())
    }

    /// The submission that has this number, if any of its lines is still open.
    pub fn numbered(&self, index: u64) -> Option<Rc<Submission>> {
        let pending = self.pending.borrow();
        let submission = pending.range(index..).next()?.1.submission.clone()?;
        (submission.index == index).then_some(submission)
    }

    /// The open lines of a submission.
    pub fn lines_of(&self, submission: &Submission) -> Vec<u64> {
        let pending = self.pending.borrow();
        let lines = pending.range(submission.index..=submission.last);
        let lines = lines.filter(|(_, line)| {
            line.submission.as_ref().is_some_and(|own| own.id == submission.id)
        });
        lines.map(|(number, _)| *number).collect()
    }

    /// Forgets what was never sent.
    pub fn forget_unsent(&self) {
        self.pending.borrow_mut().retain(|_, line| line.is_sent());
    }
}
