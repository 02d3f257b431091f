//! The simulated network between executors and the broker: ordered streams that are slow, stall,
//! break at both ends or only at one, or go on without anybody at the other end.
//!
//! Does not handle messages. Shape: one [`Link`] a connection, two [`Lane`]s each; a session's id
//! is its link's number. Law: what arrives on a lane arrives in the order in which it was sent,
//! and what follows something lost is lost too.

use ucp::proto::id::SessionId;
use ucp::proto::rng::Rng;

use super::queue::Draw;

/// One direction of a connection.
#[derive(Debug)]
pub struct Lane {
    last: u64,
    stalled_until: u64,
    dead_at: u64,
}

impl Lane {
    fn new() -> Self {
        Self { last: 0, stalled_until: 0, dead_at: u64::MAX }
    }

    /// When something sent now arrives; nothing where the lane is dead by then.
    pub fn arrival(&mut self, now: u64, delay: u64) -> Option<u64> {
        let time = (now + delay).max(self.last + 1).max(self.stalled_until);
        if time >= self.dead_at {
            return None;
        }
        self.last = time;
        Some(time)
    }

    /// Whether something that was to arrive at `at` does so.
    pub fn carries(&self, at: u64) -> bool {
        at < self.dead_at
    }

    /// Nothing arrives from `at` on.
    pub fn kill(&mut self, at: u64) {
        self.dead_at = self.dead_at.min(at);
    }

    /// Nothing that is sent from now on arrives before `until`.
    pub fn stall(&mut self, until: u64) {
        self.stalled_until = self.stalled_until.max(until);
    }
}

/// One connection.
#[derive(Debug)]
pub struct Link {
    /// Whose.
    pub executor: usize,
    /// Whether the executor's process holds its end.
    pub executor_open: bool,
    /// Whether the broker's process holds its end.
    pub broker_open: bool,
    /// Whether the broker heard a hello on it.
    pub greeted: bool,
    /// To the broker.
    pub up: Lane,
    /// To the executor.
    pub down: Lane,
}

/// All connections that ever were.
pub struct Network {
    links: Vec<Link>,
    delay_us: u64,
    spikes: u64,
}

impl Network {
    /// A network whose usual delay and spikes the seed decides.
    pub fn new(rng: &mut Rng) -> Self {
        let delay_us = *rng.pick(&[20, 100, 500, 5_000, 40_000]);
        Self { links: Vec::new(), delay_us, spikes: rng.below(4) }
    }

    /// A delay.
    pub fn delay(&self, rng: &mut Rng) -> u64 {
        let usual = rng.range(self.delay_us / 2, self.delay_us * 2);
        if rng.below(100) < self.spikes { usual + rng.range(1_000, 600_000) } else { usual }
    }

    /// A new connection.
    pub fn connect(&mut self, executor: usize) -> usize {
        self.links.push(Link {
            executor,
            executor_open: true,
            broker_open: true,
            greeted: false,
            up: Lane::new(),
            down: Lane::new(),
        });
        self.links.len() - 1
    }

    /// A connection.
    pub fn link(&mut self, link: usize) -> &mut Link {
        &mut self.links[link]
    }

    /// The connection that a session id names.
    pub fn of_session(&self, session: SessionId) -> Option<usize> {
        let link = usize::try_from(session.0).ok()?.checked_sub(1)?;
        (link < self.links.len()).then_some(link)
    }

    /// The session id of a connection.
    pub fn session(link: usize) -> SessionId {
        SessionId(link as u64 + 1)
    }

    /// All connections whose broker's end is open.
    pub fn open_at_broker(&self) -> Vec<usize> {
        (0..self.links.len()).filter(|link| self.links[*link].broker_open).collect()
    }
}
