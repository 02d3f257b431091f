//! What waits for the disk: orders behind batches, in the order in which the core gave them.
//!
//! Knows neither disk nor sockets. Law: an order is free once every batch before it is durable
//! and every order before it is gone (tests below).

use std::collections::VecDeque;

use crate::proto::id::{RequestId, SessionId};
use crate::proto::limits;
use crate::proto::message::BrokerMessage;
use crate::runtime::server::hub::Answer;

/// Something to be done outside.
#[derive(Debug)]
pub enum Order {
    /// Answer a client.
    Reply(RequestId, Answer),
    /// Send to an executor.
    Send(SessionId, BrokerMessage),
    /// End a connection to an executor.
    Close(SessionId),
}

#[derive(Debug)]
enum Held {
    Batch,
    Order(Order),
}

/// The queue between the core and the outside.
#[derive(Debug, Default)]
pub struct Gate {
    held: VecDeque<Held>,
    in_flight: usize,
}

impl Gate {
    /// A batch goes to the disk: what comes now waits for it.
    pub fn commit(&mut self) {
        self.held.push_back(Held::Batch);
        self.in_flight += 1;
    }

    /// Batches that are not durable yet.
    #[must_use]
    pub const fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Returns the order if it is free at once, else holds it.
    pub fn pass(&mut self, order: Order) -> Option<Order> {
        if self.held.is_empty() {
            return Some(order);
        }
        self.held.push_back(Held::Order(order));
        None
    }

    /// The oldest batch is durable; take what is free with [`Gate::next_free`] before anything
    /// else.
    ///
    /// # Panics
    /// If there is no batch, or orders are free still: the loop is wrong.
    pub fn durable(&mut self) {
        let first = self.held.pop_front();
        assert!(matches!(first, Some(Held::Batch)), "batches become durable in order");
        self.in_flight -= 1;
    }

    /// The next order that is free.
    pub fn next_free(&mut self) -> Option<Order> {
        match self.held.pop_front()? {
            Held::Order(order) => Some(order),
            Held::Batch => {
                self.held.push_front(Held::Batch);
                None
            }
        }
    }
}

const _: () = assert!(limits::BATCHES_IN_FLIGHT_MAX > 0, "the core could never write");

#[cfg(test)]
mod tests {
    use super::*;

    fn close(number: u64) -> Order {
        Order::Close(SessionId(number))
    }

    fn free(gate: &mut Gate) -> Vec<u64> {
        let numbers = std::iter::from_fn(|| gate.next_free()).map(|order| match order {
            Order::Close(session) => session.0,
            other => panic!("{other:?}"),
        });
        numbers.collect()
    }

    #[test]
    fn an_order_without_a_batch_before_it_is_free() {
        let mut gate = Gate::default();
        assert!(gate.pass(close(1)).is_some());
    }

    #[test]
    fn orders_wait_for_the_batches_before_them_and_keep_their_order() {
        let mut gate = Gate::default();
        gate.commit();
        assert!(gate.pass(close(1)).is_none());
        assert!(gate.pass(close(2)).is_none());
        gate.commit();
        gate.commit();
        assert!(gate.pass(close(3)).is_none());
        assert_eq!(gate.in_flight(), 3);
        gate.durable();
        assert_eq!(free(&mut gate), [1, 2]);
        gate.durable();
        assert_eq!(free(&mut gate), [0; 0]);
        assert!(gate.pass(close(4)).is_none(), "3 is still held");
        gate.durable();
        assert_eq!(free(&mut gate), [3, 4]);
        assert!(gate.pass(close(5)).is_some());
        assert_eq!(gate.in_flight(), 0);
    }
}
