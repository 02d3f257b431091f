//! The threads on which modules run, and the clock that interrupts them.
//!
//! Knows nothing of WebAssembly. Threads are started when there is work and none is free, up to a
//! number; each has a runtime of its own, so that what one module does is never felt by another or
//! by the executor's loop. Laws: every piece of work is done by one thread, in the order of
//! arrival; nothing ticks while nothing runs (tests below).

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

/// Something to be done on a thread with a runtime.
pub type Work = Box<dyn FnOnce(&Runtime) + Send>;

/// A pool of threads.
#[derive(Debug)]
pub struct Threads {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    max: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Work>,
    threads: usize,
    idle: usize,
    closed: bool,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {} threads idle, {} waiting", self.idle, self.threads, self.waiting.len())
    }
}

impl Threads {
    /// A pool of at most `max` threads; none is started yet.
    #[must_use]
    pub fn new(max: usize) -> Self {
        let (state, changed) = (Mutex::default(), Condvar::new());
        Self { shared: Arc::new(Shared { max: max.max(1), state, changed }) }
    }

    /// Has something done by the next thread that is free.
    ///
    /// # Errors
    /// There is no thread and none can be started; the work is dropped.
    pub fn run(&self, work: Work) -> std::io::Result<()> {
        let mut state = self.shared.lock();
        state.waiting.push_back(work);
        if state.idle < state.waiting.len() && state.threads < self.shared.max {
            let shared = Arc::clone(&self.shared);
            let name = format!("wasm-{}", state.threads);
            match std::thread::Builder::new().name(name).spawn(move || shared.serve()) {
                Ok(_) => state.threads += 1,
                Err(error) if state.threads == 0 => {
                    state.waiting.clear();
                    return Err(error);
                }
                Err(error) => tracing::warn!("no further thread for modules: {error}"),
            }
        }
        self.shared.changed.notify_one();
        Ok(())
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self) {
        let runtime = match Builder::new_current_thread().enable_time().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                // Whoever waits is told by the end of the work's channel.
                tracing::error!("a thread for modules has no runtime: {error}");
                let mut state = self.lock();
                state.threads -= 1;
                state.waiting.pop_front();
                return;
            }
        };
        while let Some(work) = self.next() {
            if catch_unwind(AssertUnwindSafe(|| work(&runtime))).is_err() {
                tracing::error!("the WebAssembly engine failed; its job ends with an error");
            }
        }
        runtime.shutdown_background();
    }

    fn next(&self) -> Option<Work> {
        let mut state = self.lock();
        loop {
            if let Some(work) = state.waiting.pop_front() {
                return Some(work);
            }
            if state.closed {
                return None;
            }
            state.idle += 1;
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }
}

/// Something that is called at a fixed pace as long as somebody wants it.
pub struct Ticker {
    shared: Arc<Ticking>,
}

struct Ticking {
    pace: Duration,
    tick: Box<dyn Fn() + Send + Sync>,
    state: Mutex<TickState>,
    changed: Condvar,
}

#[derive(Default)]
struct TickState {
    wanted: usize,
    started: bool,
    closed: bool,
}

/// As long as it lives, the ticker ticks.
pub struct Ticks(Arc<Ticking>);

impl Ticker {
    /// A ticker that does not tick yet.
    #[must_use]
    pub fn new(pace: Duration, tick: impl Fn() + Send + Sync + 'static) -> Self {
        let (state, changed) = (Mutex::default(), Condvar::new());
        Self { shared: Arc::new(Ticking { pace, tick: Box::new(tick), state, changed }) }
    }

    /// Ticks until the answer is dropped.
    ///
    /// # Errors
    /// Its thread cannot be started.
    pub fn begin(&self) -> std::io::Result<Ticks> {
        let mut state = self.shared.lock();
        if !state.started {
            let shared = Arc::clone(&self.shared);
            let builder = std::thread::Builder::new().name("wasm-epoch".into());
            builder.spawn(move || shared.serve())?;
            state.started = true;
        }
        state.wanted += 1;
        if state.wanted == 1 {
            self.shared.changed.notify_one();
        }
        Ok(Ticks(Arc::clone(&self.shared)))
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_one();
    }
}

impl Drop for Ticks {
    fn drop(&mut self) {
        self.0.lock().wanted -= 1;
    }
}

impl Ticking {
    fn lock(&self) -> MutexGuard<'_, TickState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self) {
        let mut state = self.lock();
        while !state.closed {
            if state.wanted == 0 {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let waited = self.changed.wait_timeout(state, self.pace);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            (self.tick)();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn work_is_done_by_no_more_threads_than_there_may_be() {
        let threads = Threads::new(2);
        let (sender, done) = channel();
        for _ in 0..50 {
            let sender = sender.clone();
            let work = move |_: &Runtime| {
                sender.send(std::thread::current().name().map(str::to_owned)).expect("a reader");
            };
            threads.run(Box::new(work)).expect("a thread");
        }
        drop(sender);
        let mut names: Vec<_> = done.iter().flatten().collect();
        assert_eq!(names.len(), 50);
        names.sort();
        names.dedup();
        assert!(names.iter().all(|name| name == "wasm-0" || name == "wasm-1"), "{names:?}");
    }

    #[test]
    fn a_panic_ends_its_own_work_alone() {
        let threads = Threads::new(1);
        let (sender, done) = channel();
        threads.run(Box::new(|_| panic!("on purpose"))).expect("a thread");
        threads.run(Box::new(move |_| sender.send(()).expect("a reader"))).expect("a thread");
        assert_eq!(done.iter().count(), 1);
    }

    #[test]
    fn the_ticker_ticks_while_it_is_wanted() {
        let (sender, ticks) = channel();
        let count = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        let ticker = Ticker::new(Duration::from_millis(1), move || {
            counted.fetch_add(1, Ordering::SeqCst);
            let _ = sender.send(());
        });
        assert_eq!(count.load(Ordering::SeqCst), 0);
        let held = ticker.begin().expect("a thread");
        for _ in 0..3 {
            ticks.recv_timeout(Duration::from_secs(60)).expect("a tick");
        }
        drop(held);
        assert!(ticker.shared.lock().wanted == 0);
        let held = ticker.begin().expect("a thread");
        ticks.recv_timeout(Duration::from_secs(60)).expect("a tick");
        drop(held);
    }
}
