//! The search for a broker that answers, among all places and for a bounded time.
//!
//! Speaks no HTTP: that a place connects and then says nothing is told to it by who asked there
//! (a stopped process still takes connections, by its backlog). Such a place is tried last.
//! Law: each place is tried at least once, however short the time (tests below).

use std::time::Duration;

use tokio::time::Instant;

use crate::proto::limits;
use crate::runtime::endpoint::{Address, EndpointError, Stream, candidates, connect};

/// A search under way.
#[derive(Debug)]
pub struct Search {
    flags: Vec<Address>,
    deadline: Instant,
    /// The longest that one place may leave a question without an answer.
    patience: Duration,
    tried: Vec<Address>,
    /// Places that did not answer, the latest last.
    silent: Vec<Address>,
}

impl Search {
    /// A search that begins now and ends after `wait`, at the places of [`candidates`].
    #[must_use]
    pub fn new(flags: &[Address], wait: Duration) -> Self {
        let (flags, deadline) = (flags.to_vec(), Instant::now() + wait);
        Self { flags, deadline, patience: wait, tried: vec![], silent: vec![] }
    }

    /// Begins anew with another time; who did not answer is still tried last.
    pub fn again(&mut self, wait: Duration) {
        self.deadline = Instant::now() + wait;
        self.tried.clear();
    }

    /// Connects to the first broker that takes connections, trying all places in turn, again and
    /// again with small growing pauses, so that programs may be started side by side. Places are
    /// looked up anew each time, as sockets may appear.
    ///
    /// # Errors
    /// [`EndpointError::NoBroker`] when the time is over; a malformed `$UCP_BROKER` at once.
    pub async fn connect(&mut self) -> Result<(Address, Stream), EndpointError> {
        let mut pause = limits::CONNECT_PAUSE_FIRST;
        loop {
            let mut places = candidates(&self.flags)?;
            places.sort_by_key(|place| self.silent.iter().position(|silent| silent == place));
            let mut why = "there is no place to look".to_owned();
            for address in places {
                self.try_now(&address);
                let bound = self.left().clamp(limits::CONNECT_PAUSE_MAX, limits::CONNECT_TRY_MAX);
                match tokio::time::timeout(bound, connect(&address)).await {
                    Ok(Ok(stream)) => return Ok((address, stream)),
                    Ok(Err(EndpointError::Connect { source, .. })) => {
                        why = format!("{address}: {source}");
                    }
                    Ok(Err(other)) => return Err(other),
                    Err(_) => why = format!("{address} does not answer"),
                }
            }
            if self.left().is_zero() {
                return Err(self.no_broker(why));
            }
            tokio::time::sleep(pause.min(self.left())).await;
            pause = (pause * 2).min(limits::CONNECT_PAUSE_MAX);
        }
    }

    /// How long the place that was connected to last may take for its first answer: a fair share
    /// of what is left, so that all others have their turn.
    #[must_use]
    pub fn answer_within(&self) -> Duration {
        let places = candidates(&self.flags).unwrap_or_default();
        let unheard = places.iter().filter(|place| !self.silent.contains(place)).count();
        let share = self.left() / u32::try_from(unheard.max(1)).unwrap_or(u32::MAX);
        share.min(self.patience).max(limits::CONNECT_PAUSE_MAX)
    }

    /// Takes note that a place took a connection and did not answer.
    pub fn pass_over(&mut self, address: &Address) {
        self.silent.retain(|silent| silent != address);
        self.silent.push(address.clone());
    }

    /// Whether there is a place, or time, left to try, after `address` did not answer.
    ///
    /// # Errors
    /// [`EndpointError::NoBroker`] when there is neither.
    pub fn go_on(&self, address: &Address) -> Result<(), EndpointError> {
        let untried = candidates(&self.flags)?.iter().any(|place| !self.tried.contains(place));
        if untried || !self.left().is_zero() {
            return Ok(());
        }
        Err(self.no_broker(format!("{address} does not answer")))
    }

    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    fn try_now(&mut self, address: &Address) {
        if !self.tried.contains(address) {
            self.tried.push(address.clone());
        }
    }

    fn no_broker(&self, why: String) -> EndpointError {
        let looked = self.tried.iter().map(Address::to_string).collect();
        EndpointError::NoBroker { why, looked }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn a_socket_that_appears_later_is_found() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("late.sock");
        let address = Address::Unix(path.clone());
        let flags = [address.clone()];
        let mut search = Search::new(&flags, Duration::ZERO);
        let soon = search.connect().await.expect_err("nobody is there");
        assert!(soon.to_string().starts_with("no broker reachable: unix:"), "{soon}");
        let mut search = Search::new(&flags, Duration::from_secs(20));
        let appear = async {
            tokio::task::yield_now().await;
            tokio::net::UnixListener::bind(&path).expect("a socket")
        };
        let (found, _listener) = tokio::join!(search.connect(), appear);
        assert_eq!(found.expect("it is there").0, address);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_place_that_does_not_answer_is_tried_last_and_each_once() {
        let directory = tempfile::tempdir().expect("a directory");
        let paths = ["a", "b"].map(|name| directory.path().join(name));
        let _listeners =
            paths.clone().map(|path| tokio::net::UnixListener::bind(path).expect("a socket"));
        let places = paths.map(Address::Unix);
        let mut search = Search::new(&places, Duration::ZERO);
        for place in &places {
            assert_eq!(&search.connect().await.expect("it connects").0, place);
            search.pass_over(place);
            assert_eq!(search.go_on(place).is_ok(), place == &places[0]);
        }
        let said = search.go_on(&places[1]).expect_err("all were tried").to_string();
        assert_eq!(said, format!("no broker reachable: {} does not answer", places[1]));
    }
}
