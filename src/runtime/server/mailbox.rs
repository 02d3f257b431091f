//! A queue from one task to another of the same thread.
//!
//! Holds no lock and knows no bound: whoever puts something in answers for the bound (a client's
//! unfinished jobs, a follower's window). One task takes at a time.
//! Law: nothing is lost between the last `put` and `close`: what is in is taken first.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Context, Poll, Waker};

/// The queue. Shared by `Rc`.
#[derive(Debug)]
pub struct Mailbox<T> {
    items: RefCell<VecDeque<T>>,
    closed: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl<T> Default for Mailbox<T> {
    fn default() -> Self {
        Self {
            items: RefCell::new(VecDeque::new()),
            closed: Cell::new(false),
            waker: RefCell::new(None),
        }
    }
}

impl<T> Mailbox<T> {
    /// Puts something in and wakes whoever waits; dropped where the box is closed.
    pub fn put(&self, item: T) {
        if !self.closed.get() {
            self.items.borrow_mut().push_back(item);
            self.wake();
        }
    }

    /// Nothing more will come.
    pub fn close(&self) {
        self.closed.set(true);
        self.wake();
    }

    /// How much is in.
    #[must_use]
    pub fn len(&self) -> usize {
        self.items.borrow().len()
    }

    /// Whether nothing is in.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.borrow().is_empty()
    }

    /// The next thing if it is there.
    pub fn take_now(&self) -> Option<T> {
        self.items.borrow_mut().pop_front()
    }

    /// The next thing, or `None` once the box is closed and empty. May be dropped while it waits.
    pub async fn take(&self) -> Option<T> {
        poll_fn(|context| self.poll_take(context)).await
    }

    /// As [`Mailbox::take`], for hand-written futures.
    pub fn poll_take(&self, context: &mut Context<'_>) -> Poll<Option<T>> {
        match self.take_now() {
            Some(item) => Poll::Ready(Some(item)),
            None if self.closed.get() => Poll::Ready(None),
            None => {
                self.waker.replace(Some(context.waker().clone()));
                Poll::Pending
            }
        }
    }

    /// Waits until something is in or the box is closed.
    pub fn poll_filled(&self, context: &mut Context<'_>) -> Poll<()> {
        if !self.is_empty() || self.closed.get() {
            return Poll::Ready(());
        }
        self.waker.replace(Some(context.waker().clone()));
        Poll::Pending
    }

    fn wake(&self) {
        let waiting = self.waker.take();
        if let Some(waker) = waiting {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_is_taken_before_the_end_is_told() {
        let mut context = Context::from_waker(Waker::noop());
        let mailbox = Mailbox::default();
        assert!(mailbox.poll_take(&mut context).is_pending());
        mailbox.put(1);
        mailbox.close();
        mailbox.put(2);
        assert_eq!(mailbox.poll_take(&mut context), Poll::Ready(Some(1)));
        assert_eq!(mailbox.poll_take(&mut context), Poll::Ready(None));
    }
}
