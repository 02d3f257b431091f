//! `--keep-order`: results in the order of their lines, whatever order they come in.
//!
//! A result waits here until every earlier line has one or needs none. Memory is bounded by the
//! reader: while [`limits::ORDERED_AHEAD_MAX`] lines were read whose results are not printed, or
//! results of [`limits::ORDERED_BYTES_MAX`] bytes wait here, no more lines are read.

use std::collections::{BTreeMap, BTreeSet};

use crate::proto::limits;

/// Results that wait for earlier ones.
pub struct Order {
    kept: bool,
    /// By line and, for a line with several results, in the order in which they came.
    held: BTreeMap<(u64, u64), String>,
    taken: u64,
    bytes: usize,
    /// Lines whose results are known and whose files are not here yet.
    fetching: BTreeSet<u64>,
}

impl Order {
    /// Keeps the order, or passes everything on at once.
    #[must_use]
    pub fn new(kept: bool) -> Self {
        Self { kept, held: BTreeMap::new(), taken: 0, bytes: 0, fetching: BTreeSet::new() }
    }

    /// A line's result is known and will be taken later.
    pub fn expect(&mut self, index: u64) {
        self.fetching.insert(index);
    }

    /// Takes what is to be printed for a line; gives it back where nothing has to wait.
    pub fn take(&mut self, index: u64, text: String) -> Option<String> {
        self.fetching.remove(&index);
        if !self.kept {
            return Some(text);
        }
        self.bytes += text.len();
        self.taken += 1;
        self.held.insert((index, self.taken), text);
        None
    }

    /// The next text whose turn it is; `open` is the first line that has not ended.
    pub fn next(&mut self, open: Option<u64>) -> Option<String> {
        let first = self.held.first_entry()?;
        let waits = |earlier: u64| earlier < first.key().0;
        if open.is_some_and(waits) || self.fetching.first().is_some_and(|at| waits(*at)) {
            return None;
        }
        let text = first.remove();
        self.bytes -= text.len();
        Some(text)
    }

    /// The next text, though an earlier line may have none: nothing more will come.
    pub fn next_of_rest(&mut self) -> Option<String> {
        self.held.pop_first().map(|(_, text)| text)
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Whether another line may be read while `unfinished` ones have not ended.
    #[must_use]
    pub fn has_room(&self, unfinished: usize) -> bool {
        let ahead = unfinished + self.held.len();
        !self.kept || (ahead < limits::ORDERED_AHEAD_MAX && self.bytes < limits::ORDERED_BYTES_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_come_in_the_order_of_their_lines() {
        let mut order = Order::new(true);
        assert_eq!(order.take(3, "c".into()), None);
        assert_eq!(order.next(Some(1)), None);
        order.expect(1);
        assert_eq!(order.next(Some(2)), None);
        assert_eq!(order.take(2, "b".into()), None);
        assert_eq!(order.next(None), None, "the files of line 1 are still to come");
        order.take(1, "a".into());
        let all: Vec<_> = std::iter::from_fn(|| order.next(Some(4))).collect();
        assert_eq!(all, ["a", "b", "c"]);
        assert!(order.is_empty());
        order.take(5, "5 b".into());
        order.take(5, "5 a".into());
        assert_eq!(order.next(Some(5)).as_deref(), Some("5 b"), "as they come");
        assert_eq!(order.next(None).as_deref(), Some("5 a"));
        assert_eq!(Order::new(false).take(2, "b".into()).as_deref(), Some("b"));
    }

    #[test]
    fn what_waits_leaves_less_room() {
        let mut order = Order::new(true);
        assert!(order.has_room(limits::ORDERED_AHEAD_MAX - 1));
        order.take(2, String::new());
        assert!(!order.has_room(limits::ORDERED_AHEAD_MAX - 1));
        order.take(3, "x".repeat(limits::ORDERED_BYTES_MAX));
        assert!(!order.has_room(1));
        assert!(Order::new(false).has_room(limits::ORDERED_AHEAD_MAX));
        assert_eq!(order.next_of_rest().as_deref(), Some(""));
    }
}
