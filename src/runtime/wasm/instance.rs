//! One module from its start to its end, on a thread of its own.
//!
//! Compiles nothing. Bounds memory and tables, ends when told to, and says in words what a trap
//! was. A module that loops yields at each tick of the engine's clock and is dropped there; one
//! that sleeps is dropped in its sleep. So is one whose lease is over. An executor that is stopped
//! has its modules stopped with it, and a module reaches nothing outside its own directory: when
//! both go on, the module ends at its next tick and has touched nothing that another attempt sees.
//! Exit statuses are those of the wasmtime command line: the module's own up to 125, 134 for a
//! trap, and 1 where the module ended otherwise.
//! Law: when [`run`] returns nothing of the module is left (tests/exec/wasm.rs).

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use wasmtime::{ResourceLimiter, Store, Trap, WasmBacktrace};
use wasmtime_wasi::I32Exit;
use wasmtime_wasi::p1::WasiP1Ctx;

use crate::proto::isolation::Isolation;
use crate::proto::limits;
use crate::proto::units::Size;
use crate::runtime::entropy;
use crate::runtime::process::lease::Lease;
use crate::runtime::process::{LAPSED, Unstarted, Used};
use crate::runtime::wasm::engine::{Ready, START};
use crate::runtime::wasm::wasi::{self, World};

/// The exit status of a module that trapped: as if by SIGABRT.
const TRAPPED: i32 = 134;
/// The exit status of a module that ended otherwise without one of its own.
const FAILED: i32 = 1;
/// SIGKILL, for a module whose executor no longer wants it.
const KILLED: i32 = 9;

/// Everything that a run needs.
pub struct Task {
    /// What is run.
    pub module: Arc<Ready>,
    /// What it sees.
    pub world: World,
    /// The most linear memory that it may have, in bytes.
    pub memory: u64,
    /// Until when it may run.
    pub lease: Lease,
}

/// What belongs to a module while it runs.
pub struct State {
    pub(super) wasi: WasiP1Ctx,
    bounds: Bounds,
}

/// What a module has, and may have.
#[derive(Debug)]
struct Bounds {
    max: u64,
    now: u64,
    peak: u64,
    refused: bool,
    elements: usize,
}

impl Bounds {
    const fn new(max: u64) -> Self {
        Self { max, now: 0, peak: 0, refused: false, elements: 0 }
    }
}

impl ResourceLimiter for Bounds {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let now = self.now.saturating_add(desired.saturating_sub(current) as u64);
        if now > self.max {
            self.refused = true;
            return Ok(false);
        }
        (self.now, self.peak) = (now, self.peak.max(now));
        Ok(true)
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        _: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let elements = self.elements.saturating_add(desired.saturating_sub(current));
        if elements > limits::WASM_TABLE_ELEMENTS_MAX {
            return Ok(false);
        }
        self.elements = elements;
        Ok(true)
    }
}

/// Runs a module to its end, or until `stop` names a signal.
///
/// # Errors
/// It did not begin.
pub fn run(runtime: &Runtime, task: Task, stop: oneshot::Receiver<i32>) -> Result<Used, Unstarted> {
    let begin = thread_time();
    let _within = runtime.enter();
    let Task { module, world, memory, lease } = task;
    if lease.is_over() {
        return Err(Unstarted::Unfit(LAPSED.into()));
    }
    let wasi = wasi::context(world).map_err(Unstarted::unable)?;
    let state = State { wasi, bounds: Bounds::new(memory) };
    let mut store = Store::new(module.pre.module().engine(), state);
    store.limiter(|state| &mut state.bounds);
    store.set_epoch_deadline(1);
    store.epoch_deadline_async_yield_and_update(1);
    let ended = runtime.block_on(async {
        tokio::select! {
            biased;
            () = lapse(&lease) => Err(End::Lapsed),
            signal = stop => Err(End::Signal(signal.unwrap_or(KILLED))),
            ended = start(&mut store, &module) => Ok(ended),
        }
    });
    let bounds = store.into_data().bounds;
    let mut used = Used {
        cpu_us: thread_time().saturating_sub(begin),
        memory_max: bounds.peak,
        isolation: Isolation::wasm(),
        ..Used::default()
    };
    match ended {
        Err(End::Signal(signal)) => used.signal = Some(signal),
        Err(End::Lapsed) => (used.signal, used.lapsed) = (Some(KILLED), true),
        Ok(Ok(())) => used.exit = Some(0),
        Ok(Err(error)) => {
            let (exit, words) = outcome(&error);
            used.exit = Some(exit);
            used.error = words;
            if exit != 0 && bounds.refused {
                let asked = format!("it asked for more than its {} of memory", Size(bounds.max));
                used.error = Some(match used.error {
                    Some(words) => format!("{asked}: {words}"),
                    None => asked,
                });
            }
        }
    }
    Ok(used)
}

/// What ends a module from outside.
enum End {
    Signal(i32),
    Lapsed,
}

/// Waits for the end of a lease. Whenever the module yields or wakes, the lease is looked at before
/// it goes on: the clock of timers stands still while the machine is suspended.
async fn lapse(lease: &Lease) {
    let mut sleep = pin!(tokio::time::sleep(Duration::ZERO));
    poll_fn(|context| {
        loop {
            if lease.is_over() {
                return Poll::Ready(());
            }
            if sleep.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            let Some(until) = lease.until() else { return Poll::Pending };
            let left = until.since(entropy::now().mono);
            sleep.set(tokio::time::sleep(left + limits::WASM_EPOCH / 10));
        }
    })
    .await;
}

async fn start(store: &mut Store<State>, module: &Ready) -> wasmtime::Result<()> {
    let instance = module.pre.instantiate_async(&mut *store).await?;
    let start = instance.get_typed_func::<(), ()>(&mut *store, START)?;
    start.call_async(&mut *store, ()).await
}

/// The exit status that an end stands for, and what is to be said of it.
fn outcome(error: &wasmtime::Error) -> (i32, Option<String>) {
    if let Some(I32Exit(status)) = error.downcast_ref() {
        return (*status, None);
    }
    let mut words = error.root_cause().to_string();
    if let Some(backtrace) = error.downcast_ref::<WasmBacktrace>() {
        words = format!("{words}\n{backtrace}");
    }
    let trapped = error.downcast_ref::<Trap>().is_some();
    (if trapped { TRAPPED } else { FAILED }, Some(cut(words)))
}

fn cut(mut words: String) -> String {
    if words.len() > limits::WASM_ERROR_BYTES_MAX {
        words.truncate(words.floor_char_boundary(limits::WASM_ERROR_BYTES_MAX));
        words.push('…');
    }
    words.truncate(words.trim_end().len());
    words
}

/// CPU time of this thread in microseconds.
fn thread_time() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID);
    time.map_or(0, |time| {
        let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
        seconds * 1_000_000 + u64::try_from(time.tv_nsec() / 1000).unwrap_or(0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::process::output::Output;
    use crate::runtime::wasm::engine::{Code, Engines};

    const LOOPING: &str = r#"(module (func (export "_start") (loop $ever (br $ever))))"#;
    /// Sleeps for 30 years.
    const SLEEPING: &str = r#"(module
        (import "wasi_snapshot_preview1" "poll_oneoff"
            (func $poll (param i32 i32 i32 i32) (result i32)))
        (memory (export "memory") 1)
        (func (export "_start")
            (i32.store (i32.const 1040) (i32.const 1))
            (i64.store (i32.const 1048) (i64.const 1000000000000000000))
            (drop (call $poll (i32.const 1024) (i32.const 2048) (i32.const 1) (i32.const 8)))))"#;

    fn run_leased(text: &str, span: Duration) -> (Result<Used, Unstarted>, Lease) {
        let engines = Arc::new(Engines::new(1).expect("this machine has what it needs"));
        let code = engines.compile(text.as_bytes()).expect("a module");
        let module = engines
            .load(&Code::Compiled(&code))
            .unwrap_or_else(|error| panic!("a program: {error:?}"));
        let place = tempfile::tempdir().expect("a directory");
        let stream = |name: &str| Arc::new(Output::new(place.path().join(name)));
        let lease = Lease::default();
        lease.set(entropy::now().mono.after(span));
        let world = World {
            args: vec![],
            env: vec![],
            stdin: None,
            directory: place.path().to_owned(),
            checkpoint: None,
            stdout: stream("stdout"),
            stderr: stream("stderr"),
        };
        let memory = limits::WASM_MEMORY_DEFAULT;
        let task = Task { module: Arc::new(module), world, memory, lease: lease.clone() };
        let ticker =
            crate::runtime::wasm::threads::Ticker::new(limits::WASM_EPOCH, engines.ticking());
        let _ticks = ticker.begin().expect("a thread");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        // Nobody says that it is to end.
        let (_stopper, stopped) = oneshot::channel();
        (run(&runtime.expect("a runtime"), task, stopped), lease)
    }

    #[test]
    fn a_module_whose_lease_is_over_ends_by_itself() {
        for text in [LOOPING, SLEEPING] {
            let (ended, lease) = run_leased(text, Duration::from_millis(100));
            let used = ended.expect("it began");
            assert!(used.lapsed && used.signal == Some(KILLED) && lease.is_over(), "{used:?}");
        }
        let (ended, _) = run_leased(LOOPING, Duration::ZERO);
        assert!(matches!(ended, Err(Unstarted::Unfit(_))), "it does not begin");
    }
}
