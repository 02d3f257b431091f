//! What the machine and the libraries beneath us can do, with none of our own code.

use std::convert::Infallible;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use http_body_util::{BodyExt, Empty, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rusqlite::Connection;
use wasmtime::{
    Config, Engine, InstanceAllocationStrategy, InstancePre, Linker, Module,
    PoolingAllocationConfig, Store,
};

use crate::measure::{Outcome, cpu_of_children, sorted, timed};

/// A program that does nothing.
pub const TRUE: &str = "/bin/true";
/// A module that does nothing.
pub const NOOP: &str = r#"(module (memory (export "memory") 1) (func (export "_start")))"#;

/// What a loop does for each process.
#[derive(Debug, Clone, Copy)]
pub enum Around<'a> {
    Nothing,
    /// Makes a directory before it and removes it after it.
    Directory(&'a Path),
    /// Spawns a process that spawns it.
    Supervisor,
}

/// Processes that were spawned and waited for in each of so many threads, `count` each: how many a
/// second, and the CPU of one.
pub fn spawns(count: usize, threads: usize, around: Around<'_>) -> Outcome<(f64, f64)> {
    let before = cpu_of_children()?;
    let (_, micros) =
        timed(|| in_threads(threads, |thread| (0..count).try_for_each(|_| spawn(thread, around))))?;
    let all = (count * threads) as f64;
    Ok((all / micros * 1e6, (cpu_of_children()? - before) / all))
}

fn spawn(thread: usize, around: Around<'_>) -> std::io::Result<()> {
    match around {
        Around::Nothing => Command::new(TRUE).status()?,
        Around::Directory(folder) => {
            let path = folder.join(format!("job-{thread}"));
            fs::create_dir(&path)?;
            let status = Command::new(TRUE).status()?;
            fs::remove_dir(&path)?;
            status
        }
        // A command after it keeps the shell from becoming the program.
        Around::Supervisor => {
            Command::new("/bin/sh").args(["-c", "/bin/true; exit $?"]).status()?
        }
    };
    Ok(())
}

fn in_threads<E>(count: usize, work: impl Fn(usize) -> Result<(), E> + Sync) -> Outcome<()>
where
    E: std::error::Error + Send + 'static,
{
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = (0..count).map(|at| scope.spawn(move || work(at))).collect();
        threads.into_iter().try_for_each(|thread| {
            thread.join().map_err(|_| "a thread panicked")??;
            Ok(())
        })
    })
}

/// One process after the other, in microseconds.
pub fn process(count: usize) -> Outcome<Vec<f64>> {
    sorted(count, || {
        Command::new(TRUE).status()?;
        Ok(())
    })
}

/// Appends a little and waits for the disk, in microseconds.
pub fn syncs(folder: &Path, count: usize) -> Outcome<Vec<f64>> {
    let mut file = File::create(folder.join("syncs"))?;
    sorted(count, || {
        file.write_all(&[b'x'; 1024])?;
        Ok(file.sync_data()?)
    })
}

/// One request after the other over one connection to a Unix socket, in microseconds.
pub fn requests(socket: &Path, path: &str, count: usize) -> Outcome<Vec<f64>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut sender, connection) = runtime.block_on(async {
        let stream = tokio::net::UnixStream::connect(socket).await?;
        Ok::<_, Box<dyn std::error::Error>>(
            hyper::client::conn::http1::handshake::<_, Empty<Bytes>>(TokioIo::new(stream)).await?,
        )
    })?;
    runtime.spawn(connection);
    let mut ask = || {
        runtime.block_on(async {
            let request = Request::get(path).header("host", "ucp").body(Empty::new())?;
            let answer = sender.send_request(request).await?;
            let status = answer.status();
            answer.into_body().collect().await?;
            if status.is_success() { Ok(()) } else { Err(format!("{path}: {status}").into()) }
        })
    };
    (0..count / 10).try_for_each(|_| ask())?;
    sorted(count, ask)
}

/// The same, to a server that only answers.
pub fn bare_requests(folder: &Path, count: usize) -> Outcome<Vec<f64>> {
    let path = folder.join("bare.sock");
    let listener = UnixListener::bind(&path)?;
    let server = std::thread::spawn(move || {
        let served = serve_one(&listener);
        served.map_err(|error| error.to_string())
    });
    let took = requests(&path, "/", count);
    server.join().map_err(|_| "the server panicked")??;
    fs::remove_file(&path)?;
    took
}

fn serve_one(listener: &UnixListener) -> Outcome<()> {
    let (stream, _) = listener.accept()?;
    stream.set_nonblocking(true)?;
    let answer = |_: Request<Incoming>| async {
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"{\"ok\":true}\n"))))
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let stream = TokioIo::new(tokio::net::UnixStream::from_std(stream)?);
        let server = hyper::server::conn::http1::Builder::new();
        server.serve_connection(stream, service_fn(answer)).await?;
        Ok(())
    })
}

/// Instances of a module that does nothing, made and run in each of so many threads: how many a
/// second.
pub fn instances(count: usize, threads: usize) -> Outcome<f64> {
    let mut config = Config::new();
    let mut pool = PoolingAllocationConfig::new();
    pool.total_core_instances(u32::try_from(threads)?).total_memories(u32::try_from(threads)?);
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    let engine = Engine::new(&config)?;
    let module = Module::new(&engine, NOOP)?;
    let ready: InstancePre<()> = Linker::new(&engine).instantiate_pre(&module)?;
    let run = || -> wasmtime::Result<()> {
        let mut store = Store::new(&engine, ());
        let instance = ready.instantiate(&mut store)?;
        instance.get_typed_func::<(), ()>(&mut store, "_start")?.call(&mut store, ())
    };
    let all = |_| (0..count).try_for_each(|_| run()).map_err(std::io::Error::other);
    let (_, micros) = timed(|| in_threads(threads, all))?;
    Ok((count * threads) as f64 / micros * 1e6)
}

/// SQLite as the store has it: commits of one small row a second, and small rows a second in
/// commits of 1,000.
pub fn sqlite(folder: &Path, commits: usize) -> Outcome<(f64, f64)> {
    const BATCH: usize = 1_000;
    let path = folder.join("floor.db");
    let connection = Connection::open(&path)?;
    connection.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
         CREATE TABLE facts (log INTEGER, seq INTEGER, line BLOB, PRIMARY KEY (log, seq))
         WITHOUT ROWID",
    )?;
    let mut insert = connection.prepare("INSERT INTO facts VALUES (?1, ?2, ?3)")?;
    let mut seq = 0;
    let mut row = || {
        seq += 1;
        insert.execute((1, seq, [b'x'; 32])).map(|_| ())
    };
    let (_, single) = timed(|| Ok((0..commits).try_for_each(|_| row())?))?;
    let (_, batched) = timed(|| {
        (0..commits / 10).try_for_each(|_| {
            connection.execute_batch("BEGIN")?;
            (0..BATCH).try_for_each(|_| row())?;
            Ok(connection.execute_batch("COMMIT")?)
        })
    })?;
    let rate = |count: usize, micros: f64| count as f64 / micros * 1e6;
    drop(insert);
    drop(connection);
    fs::remove_file(&path)?;
    Ok((rate(commits, single), rate(commits / 10 * BATCH, batched)))
}
