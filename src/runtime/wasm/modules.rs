//! Modules that are ready to run, by the digest of their content.
//!
//! Knows no job. Each module is fetched and compiled once however many jobs wait for it, off the
//! executor's loop, and goes on being compiled when those that waited are gone. In memory the ones
//! used last stay, up to a count and a number of bytes; compiled code is on disk as well.
//! Law: a module whose code is in memory or on disk is neither fetched nor compiled
//! (tests/exec/wasm.rs).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, spawn_blocking};

use crate::proto::id::Digest;
use crate::proto::limits;
use crate::runtime::wasm::cache::Cache;
use crate::runtime::wasm::engine::{Code, Engines, LoadError, Ready};
use crate::runtime::wasm::trim::give_back_memory;

/// A module, or what is wrong with it.
type Made = Result<Arc<Ready>, String>;

/// All modules of an executor.
pub struct Modules {
    engines: Arc<Engines>,
    cache: Cache,
    compiles: Arc<Semaphore>,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    entries: BTreeMap<Digest, Entry>,
    uses: u64,
}

struct Entry {
    stage: Arc<tokio::sync::Mutex<Stage>>,
    used: u64,
    bytes: usize,
}

/// How far a module is. Whoever waits for it holds the lock; when that one gives up, the next goes
/// on from there.
#[derive(Default)]
enum Stage {
    #[default]
    Absent,
    Making(JoinHandle<Made>),
    Made(Made),
}

impl Modules {
    /// None yet; those of an earlier life are in `cache`.
    #[must_use]
    pub fn new(engines: Arc<Engines>, cache: Cache) -> Self {
        let compiles = Arc::new(Semaphore::new(limits::WASM_COMPILES_MAX));
        Self { engines, cache, compiles, held: Mutex::default() }
    }

    /// The module with this digest; `fetch` brings its content if it is needed.
    ///
    /// # Errors
    /// In words: it cannot be fetched, or is no program.
    pub async fn get(
        &self,
        digest: Digest,
        fetch: impl Future<Output = Result<Vec<u8>, String>>,
    ) -> Made {
        let stage = self.stage(digest);
        let mut stage = stage.lock().await;
        if matches!(*stage, Stage::Absent) {
            *stage = match self.load(digest).await {
                Some(ready) => Stage::Made(Ok(ready)),
                None => Stage::Making(self.make(digest, fetch.await?)),
            };
        }
        if let Stage::Making(task) = &mut *stage {
            match task.await {
                Ok(made) => *stage = Stage::Made(made),
                Err(error) => {
                    *stage = Stage::Absent;
                    return Err(format!("cannot be compiled: {error}"));
                }
            }
        }
        match &*stage {
            Stage::Made(made) => {
                self.note_size(digest, made.as_ref().map_or(0, |ready| ready.bytes));
                made.clone()
            }
            Stage::Absent | Stage::Making(_) => unreachable!("made above"),
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stage(&self, digest: Digest) -> Arc<tokio::sync::Mutex<Stage>> {
        let held = &mut *self.held();
        held.uses += 1;
        let fresh = || Entry { stage: Arc::default(), used: 0, bytes: 0 };
        let entry = held.entries.entry(digest).or_insert_with(fresh);
        entry.used = held.uses;
        Arc::clone(&entry.stage)
    }

    /// Remembers how large a module is, and lets go of others if they are too many.
    fn note_size(&self, digest: Digest, bytes: usize) {
        let entries = &mut self.held().entries;
        if let Some(entry) = entries.get_mut(&digest) {
            entry.bytes = bytes;
        }
        let mut size: usize = entries.values().map(|entry| entry.bytes).sum();
        while entries.len() > limits::WASM_MODULES_MAX || size > limits::WASM_MODULES_BYTES_MAX {
            let others = entries.iter().filter(|(other, _)| **other != digest);
            let oldest = others.min_by_key(|(_, entry)| entry.used).map(|(other, _)| *other);
            let Some(entry) = oldest.and_then(|oldest| entries.remove(&oldest)) else { return };
            size -= entry.bytes;
        }
    }

    /// Takes a module's code from the disk.
    async fn load(&self, digest: Digest) -> Option<Arc<Ready>> {
        let (engines, cache) = (Arc::clone(&self.engines), self.cache.clone());
        let load = move || {
            let code = cache.load(digest, engines.number)?;
            match engines.load(&Code::Kept(code)) {
                Ok(ready) => {
                    tracing::debug!("module {digest}: its compiled code was on disk");
                    Some(Arc::new(ready))
                }
                Err(LoadError::Code(words) | LoadError::Module(words)) => {
                    tracing::warn!("module {digest} is compiled again: {words}");
                    cache.forget(digest, engines.number);
                    None
                }
            }
        };
        // Whoever waits is told that it is not there if this panics.
        spawn_blocking(load).await.ok().flatten()
    }

    /// Begins to compile a module; that goes on also when nobody waits for it any more.
    fn make(&self, digest: Digest, bytes: Vec<u8>) -> JoinHandle<Made> {
        let (engines, cache) = (Arc::clone(&self.engines), self.cache.clone());
        let compiles = Arc::clone(&self.compiles);
        tokio::spawn(async move {
            let _turn = compiles.acquire_owned().await;
            let made = spawn_blocking(move || {
                let made = compile(&engines, &cache, digest, &bytes);
                if bytes.len() > limits::WASM_SMALL_BYTES {
                    drop(bytes);
                    give_back_memory();
                }
                made
            });
            let made = made.await;
            made.unwrap_or_else(|_| Err("cannot be compiled: the compiler failed".into()))
        })
    }
}

fn compile(engines: &Engines, cache: &Cache, digest: Digest, bytes: &[u8]) -> Made {
    let code = engines.compile(bytes)?;
    tracing::info!("compiled module {digest}: {} bytes of code", code.len());
    let ready = match engines.load(&Code::Compiled(&code)) {
        Ok(ready) => Arc::new(ready),
        Err(LoadError::Code(words) | LoadError::Module(words)) => return Err(words),
    };
    cache.store(digest, engines.number, &code);
    Ok(ready)
}
