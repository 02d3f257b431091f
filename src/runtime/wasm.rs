//! WASI jobs: modules with WASI preview 1, run by wasmtime inside the executor.
//!
//! Decides nothing: time-outs, stops and retries are the core's. A module behaves as under the
//! wasmtime command line with only its directory open, `wasmtime run --dir=. MODULE ARGS`: what it
//! may name is in wasi.rs, how it ends in instance.rs. It runs on a thread of its own, never on the
//! executor's loop; what it needs of memory is bounded, and it is stopped within a tick.
//! Shapes: a module is named by the digest of its content, binary or text; modules.rs compiles
//! each once, cache.rs keeps the code on disk, engine.rs is the compiler.
//! Law: when [`Runtime::run`] returns nothing of the module runs (tests/exec/wasm.rs).

mod cache;
mod engine;
mod instance;
mod modules;
mod threads;
mod trim;
mod wasi;

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::task::spawn_blocking;

use crate::proto::content::{Content, Module};
use crate::proto::id::Digest;
use crate::proto::job::MODULE_NAME;
use crate::proto::limits;
use crate::proto::message::StartOrder;
use crate::runtime::process::stdin::{Fetch, open_regular};
use crate::runtime::process::{CHECKPOINT_VARIABLE, Job, Unstarted, Used};
use crate::runtime::rundir::{self, DirError, PRIVATE_MODE};
use crate::runtime::spawner::ATTEMPT_VARIABLE;

use cache::Cache;
use engine::{Engines, Ready};
use instance::Task;
use modules::Modules;
use threads::{Threads, Ticker};
use wasi::World;

/// Why WASI jobs cannot be run. Nothing was run; `--no-wasm` does without.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WasmError {
    /// The processor or the system lacks something, or memory cannot be reserved.
    #[error("the WebAssembly engine cannot start: {0}")]
    Engine(String),
    /// The directory for compiled code cannot be used.
    #[error(transparent)]
    Dir(#[from] DirError),
}

/// What all WASI jobs of an executor share.
pub struct Runtime {
    modules: Modules,
    threads: Threads,
    ticker: Ticker,
}

impl std::fmt::Debug for Runtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runtime").field("threads", &self.threads).finish_non_exhaustive()
    }
}

impl Runtime {
    /// An engine for `slots` modules at one time; compiled code is kept in `DATA/cache/wasm`.
    /// Starts no thread yet.
    ///
    /// # Errors
    /// The engine cannot start, or the directory cannot be used.
    pub fn new(data: &Path, slots: u32) -> Result<Self, WasmError> {
        let directory = data.join("cache");
        rundir::ensure_dir(&directory, PRIVATE_MODE)?;
        let cache = Cache::open(directory.join("wasm"), limits::WASM_CACHE_BYTES_MAX)?;
        let count = slots.clamp(1, limits::WASM_THREADS_MAX);
        let engines = Arc::new(Engines::new(count)?);
        let ticker = Ticker::new(limits::WASM_EPOCH, engines.ticking());
        let threads = Threads::new(count as usize);
        Ok(Self { modules: Modules::new(engines, cache), threads, ticker })
    }

    /// Runs a job's module and waits for its end.
    ///
    /// # Errors
    /// It did not begin: it was told to end before, or something that it needs cannot be had.
    pub async fn run(
        &self,
        fetch: &impl Fetch,
        order: &StartOrder,
        job: &Job,
        (directory, checkpoint): (&Path, &Path),
        stdin: Option<OwnedFd>,
    ) -> Result<Used, Unstarted> {
        let Some(spec) = &order.spec.wasm else {
            return Err(Unstarted::unable("the job has no module".into()));
        };
        let module = tokio::select! {
            biased;
            signal = job.control.ended_early() => return Err(Unstarted::Killed(signal)),
            module = self.module(&spec.content, fetch) => module,
        };
        let named = |words| Unstarted::unable(format!("module {}: {words}", name_of(spec)));
        let module = module.map_err(named)?;
        let memory = order.spec.needs.memory.map_or(limits::WASM_MEMORY_DEFAULT, |size| size.0);
        let world = World {
            args: args(order, spec),
            env: env(order),
            stdin: stdin.map(File::from),
            directory: PathBuf::from(directory),
            checkpoint: Some(PathBuf::from(checkpoint)),
            stdout: Arc::clone(&job.stdout),
            stderr: Arc::clone(&job.stderr),
        };
        let lease = job.control.lease().clone();
        self.run_task(Task { module, world, memory, lease }, job.control.ended_early()).await
    }

    async fn run_task(
        &self,
        task: Task,
        stop: impl Future<Output = i32>,
    ) -> Result<Used, Unstarted> {
        let failed = |what: &str, words: &dyn std::fmt::Display| {
            Unstarted::Unfit(format!("no thread {what}: {words}"))
        };
        let ticks = self.ticker.begin().map_err(|error| failed("for the clock", &error))?;
        let (stopper, stopped) = oneshot::channel();
        let (sender, mut ended) = oneshot::channel();
        let work = move |runtime: &tokio::runtime::Runtime| {
            // Nobody is there to be told only when the executor ends.
            let _ = sender.send(instance::run(runtime, task, stopped));
        };
        self.threads.run(Box::new(work)).map_err(|error| failed("for the module", &error))?;
        let ended = tokio::select! {
            ended = &mut ended => ended,
            signal = stop => {
                // It may have ended in this moment.
                let _ = stopper.send(signal);
                ended.await
            }
        };
        drop(ticks);
        ended.unwrap_or_else(|_| Err(Unstarted::unable("the WebAssembly engine failed".into())))
    }

    async fn module(&self, content: &Content, fetch: &impl Fetch) -> Result<Arc<Ready>, String> {
        if let Content::Blob(digest) = content {
            let bytes = async { read(fetch.fetch(*digest).await?).await };
            return self.modules.get(*digest, bytes).await;
        }
        let bytes = match content {
            Content::File(path) => {
                let file = open_regular(Path::new(path));
                read(file.map_err(|error| format!("cannot read {path}: {error}"))?).await?
            }
            inline => inline.inline().ok_or("is no base64")?,
        };
        self.modules.get(Digest::of(&bytes), async { Ok(bytes) }).await
    }
}

fn name_of(module: &Module) -> &str {
    module.name.as_deref().unwrap_or(MODULE_NAME)
}

// A spec of a WASI job whose texts are not UTF-8 is refused when it is submitted.
fn args(order: &StartOrder, module: &Module) -> Vec<String> {
    let rest = order.spec.args.iter().map(|arg| arg.lossy().into_owned());
    std::iter::once(name_of(module).to_owned()).chain(rest).collect()
}

fn env(order: &StartOrder) -> Vec<(String, String)> {
    let own = [
        ("UCP_JOB_ID", order.job.to_string()),
        (ATTEMPT_VARIABLE, order.attempt.to_string()),
        ("UCP_JOB_FENCE", order.fencing_token()),
        (CHECKPOINT_VARIABLE, wasi::CHECKPOINT.to_owned()),
    ];
    let own = own.into_iter().map(|(name, value)| (name.to_owned(), value));
    let given = order.spec.env.iter();
    given.map(|(name, value)| (name.clone(), value.lossy().into_owned())).chain(own).collect()
}

/// Reads a module, on another thread.
async fn read(file: File) -> Result<Vec<u8>, String> {
    let max = limits::MODULE_BYTES_MAX;
    let read = move || {
        let mut bytes = vec![];
        match file.take(max + 1).read_to_end(&mut bytes) {
            Ok(count) if count as u64 > max => Err(format!("has over {max} bytes")),
            Ok(_) => Ok(bytes),
            Err(error) => Err(format!("cannot be read: {error}")),
        }
    };
    spawn_blocking(read).await.unwrap_or_else(|_| Err("cannot be read".into()))
}
