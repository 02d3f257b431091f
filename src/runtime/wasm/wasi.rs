//! What a module sees of the world: arguments, variables, streams, its directory, and one for its
//! state.
//!
//! Most of it is wasmtime-wasi. Here is how it is set up, where output goes, and the one call that
//! is answered otherwise: a module that sleeps does not hold up its thread, so that it can be
//! stopped. Nothing else of the machine can be named: no other directory, no network, no variable
//! of ours.
//! Source: WASI preview 1, `wasi_snapshot_preview1.witx`.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::Bytes;
use tokio::io::AsyncWrite;
use wasmtime::{Caller, Extern, Linker};
use wasmtime_wasi::cli::{AsyncStdinStream, InputFile, IsTerminal, StdoutStream};
use wasmtime_wasi::p1::{self, WasiP1Ctx};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};
use wasmtime_wasi::{FsPerms, WasiCtxBuilder, WasiView, async_trait};
use wiggle::GuestMemory;

use crate::proto::limits;
use crate::runtime::process::output::Output;
use crate::runtime::wasm::instance::State;

/// Where a module leaves its state.
pub const CHECKPOINT: &str = "/checkpoint";

const MODULE: &str = "wasi_snapshot_preview1";
/// `errno`: done.
const SUCCESS: i32 = 0;
/// `errno`: an address outside of the memory.
const FAULT: i32 = 21;
/// Bytes of a `subscription`; the kind stands at 8, for a clock its id at 16, the time at 24 and
/// the flags at 40.
const SUBSCRIPTION_BYTES: usize = 48;
/// Bytes of an `event`; the first eight are those of its subscription.
const EVENT_BYTES: usize = 32;
/// `subclockflags`: the time is a moment, not a span.
const ABSOLUTE: u8 = 1;
/// Bytes that a stream takes at one time.
const WRITE_BYTES: usize = 64 << 10;

/// What there is besides clocks and random numbers.
#[derive(Debug)]
pub struct World {
    /// Its name and its arguments.
    pub args: Vec<String>,
    /// Its variables.
    pub env: Vec<(String, String)>,
    /// Standard input; at its end from the start where absent.
    pub stdin: Option<File>,
    /// Where standard output goes.
    pub stdout: Arc<Output>,
    /// Where standard error goes.
    pub stderr: Arc<Output>,
    /// The directory that is `.`, to be read and written.
    pub directory: PathBuf,
    /// The directory that is [`CHECKPOINT`], to be read and written.
    pub checkpoint: Option<PathBuf>,
}

/// Sets up what a module sees.
///
/// # Errors
/// In words: the directory cannot be opened.
pub fn context(world: World) -> Result<WasiP1Ctx, String> {
    let World { args, env, stdin, stdout, stderr, directory, checkpoint } = world;
    let mut builder = WasiCtxBuilder::new();
    builder.args(&args).envs(&env);
    builder.stdout(Sink(stdout)).stderr(Sink(stderr)).allow_blocking_current_thread(true);
    match stdin {
        None => {}
        Some(file) if file.metadata().is_ok_and(|about| about.is_file()) => {
            builder.stdin(InputFile::new(file));
        }
        // A pipe or a terminal may keep its reader waiting for ever.
        Some(file) => {
            builder.stdin(AsyncStdinStream::new(tokio::fs::File::from_std(file)));
        }
    }
    let own = std::iter::once((directory, "."));
    for (path, name) in own.chain(checkpoint.map(|path| (path, CHECKPOINT))) {
        let opened = builder.preopened_dir(&path, name, FsPerms::ReadWrite);
        opened.map_err(|error| format!("cannot open {}: {error:#}", path.display()))?;
    }
    let mut wasi = builder.build_p1();
    wasi.ctx().table.set_max_capacity(limits::WASM_HANDLES_MAX);
    Ok(wasi)
}

/// Makes everything known that a module may import.
///
/// # Errors
/// A name is given twice.
pub fn add_to_linker(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    p1::add_to_linker_async(linker, |state: &mut State| &mut state.wasi)?;
    linker.allow_shadowing(true);
    linker.func_wrap_async(
        MODULE,
        "poll_oneoff",
        |mut caller: Caller<'_, State>, (subscriptions, events, count, done)| {
            Box::new(async move { poll(&mut caller, subscriptions, events, count, done).await })
        },
    )?;
    linker.allow_shadowing(false);
    Ok(())
}

fn memory<'a>(
    caller: &'a mut Caller<'_, State>,
) -> wasmtime::Result<(&'a mut [u8], &'a mut State)> {
    match caller.get_export("memory") {
        Some(Extern::Memory(memory)) => Ok(memory.data_and_store_mut(caller)),
        _ => Err(wasmtime::Error::msg("the module exports no memory")),
    }
}

fn place(memory: &mut [u8], at: u32, length: usize) -> Option<&mut [u8]> {
    let at = usize::try_from(at).ok()?;
    memory.get_mut(at..at.checked_add(length)?)
}

fn put_u32(memory: &mut [u8], at: u32, value: usize) -> Option<()> {
    let value = u32::try_from(value).ok()?;
    place(memory, at, 4)?.copy_from_slice(&value.to_le_bytes());
    Some(())
}

/// As wasmtime-wasi does it, but for the one case in which that would put the thread to sleep.
async fn poll(
    caller: &mut Caller<'_, State>,
    subscriptions: u32,
    events: u32,
    count: u32,
    done: u32,
) -> wasmtime::Result<i32> {
    let fuel = wasmtime::AsContextMut::as_context_mut(caller).hostcall_fuel();
    let (memory, state) = memory(caller)?;
    if let Some((userdata, time)) = sleep_alone(memory, subscriptions, count) {
        tokio::time::sleep(time).await;
        return Ok(slept(memory, events, userdata, done).map_or(FAULT, |()| SUCCESS));
    }
    let mut memory = GuestMemory::Unshared(memory);
    let wasi = &mut state.wasi;
    p1::wasi_snapshot_preview1::WasiSnapshotPreview1::set_hostcall_fuel(wasi, fuel);
    let [subscriptions, events, count, done] =
        [subscriptions, events, count, done].map(u32::cast_signed);
    p1::wasi_snapshot_preview1::poll_oneoff(wasi, &mut memory, subscriptions, events, count, done)
        .await
}

/// The span of the only subscription, if it is one for a clock.
fn sleep_alone(memory: &mut [u8], at: u32, count: u32) -> Option<([u8; 8], Duration)> {
    let subscription = place(memory, at, SUBSCRIPTION_BYTES).filter(|_| count == 1)?;
    let (kind, flags) = (subscription[8], subscription[40]);
    if kind != 0 || flags & ABSOLUTE != 0 {
        return None;
    }
    let eight = |at: usize| -> Option<[u8; 8]> { subscription[at..at + 8].try_into().ok() };
    Some((eight(0)?, Duration::from_nanos(u64::from_le_bytes(eight(24)?))))
}

fn slept(memory: &mut [u8], events: u32, userdata: [u8; 8], done: u32) -> Option<()> {
    let event = place(memory, events, EVENT_BYTES)?;
    // No error, and the kind of event that a clock has, are both zero.
    event.fill(0);
    event[..8].copy_from_slice(&userdata);
    put_u32(memory, done, 1)
}

/// A stream of a module that goes to where a job's output is kept.
#[derive(Clone)]
struct Sink(Arc<Output>);

impl IsTerminal for Sink {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Sink {
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }

    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }
}

#[async_trait]
impl Pollable for Sink {
    async fn ready(&mut self) {}
}

impl OutputStream for Sink {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.0.push(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(WRITE_BYTES)
    }
}

impl AsyncWrite for Sink {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.push(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_outside_of_the_memory_are_refused() {
        let mut memory = [0; 64];
        for at in [17, 64, u32::MAX - 2] {
            assert_eq!(sleep_alone(&mut memory, at, 1), None);
        }
        assert_eq!(slept(&mut memory, 33, [0; 8], 0), None);
        assert_eq!(slept(&mut memory, 0, [0; 8], 61), None);
        assert_eq!(slept(&mut memory, 0, [7; 8], 60), Some(()));
        assert_eq!(memory[60..], [1, 0, 0, 0]);
    }

    #[test]
    fn only_a_lone_span_of_a_clock_is_a_sleep() {
        let mut memory = [0_u8; 96];
        memory[0] = 7;
        memory[24] = 9;
        let slept = sleep_alone(&mut memory, 0, 1).expect("a sleep");
        assert_eq!(slept, ([7, 0, 0, 0, 0, 0, 0, 0], Duration::from_nanos(9)));
        assert_eq!(sleep_alone(&mut memory, 0, 2), None);
        memory[40] = 1;
        assert_eq!(sleep_alone(&mut memory, 0, 1), None);
        (memory[40], memory[8]) = (0, 1);
        assert_eq!(sleep_alone(&mut memory, 0, 1), None);
    }
}
