//! The measurements of `scripts/bench`: jobs through running daemons beside a bare spawn loop.
//!
//! Starts no daemon: `scripts/bench` does, and hands over their process ids. Every round measures
//! everything once, so that a machine that slows down slows all figures down; a figure is the
//! median of the rounds. Prints Markdown on stdout.
//! Shapes: times in microseconds, CPU of a process as utime + stime of /proc/PID/stat, without the
//! children that it waited for: the jobs themselves are not ours.

use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// The unit of times in /proc, which Linux fixes for user space: a hundredth of a second.
const TICK_US: f64 = 10_000.0;

struct Settings {
    submit: String,
    /// Where the socket of the broker is, and its disk.
    folder: String,
    broker: u32,
    executor: u32,
    jobs: usize,
    rounds: usize,
    threads: usize,
}

#[allow(clippy::disallowed_methods, reason = "a measurement reads the clock")]
fn since(start: Option<Instant>) -> (Instant, Duration) {
    let now = Instant::now();
    (now, start.map_or(Duration::ZERO, |start| now - start))
}

fn timed<T>(work: impl FnOnce() -> Outcome<T>) -> Outcome<(T, f64)> {
    let (start, _) = since(None);
    let value = work()?;
    Ok((value, since(Some(start)).1.as_secs_f64() * 1e6))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Spawns and waits `count` times in each of so many threads; spawns per second.
fn spawn_loop(count: usize, threads: usize) -> Outcome<f64> {
    let run = || (0..count).try_for_each(|_| Command::new("/bin/true").status().map(|_| ()));
    let (spawned, micros) = timed(|| {
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
            let ended = threads.into_iter().map(|thread| thread.join().map_err(|_| "a thread"));
            ended.map(|result| Ok(result??)).collect::<Outcome<Vec<()>>>()
        })
    })?;
    Ok((count * spawned.len()) as f64 / micros * 1e6)
}

/// CPU that a process has used so far, in microseconds.
fn cpu_of(pid: u32) -> Outcome<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after = stat.rsplit(") ").next().unwrap_or_default();
    let fields: Vec<&str> = after.split(' ').collect();
    Ok((fields[11].parse::<u64>()? + fields[12].parse::<u64>()?) as f64 * TICK_US)
}

/// The child of the executor's child, the guard: its spawner.
fn spawner_of(executor: u32) -> Outcome<u32> {
    child_of(child_of(executor)?)
}

fn child_of(pid: u32) -> Outcome<u32> {
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let children = std::fs::read_to_string(task?.path().join("children"))?;
        if let Some(child) = children.split_whitespace().next() {
            return Ok(child.parse()?);
        }
    }
    Err("the executor has no spawner".into())
}

/// CPU of the children that this process waited for, in microseconds.
fn cpu_of_children() -> Outcome<f64> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let micros = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 * 1e6 + time.tv_usec() as f64;
    Ok(micros(usage.user_time()) + micros(usage.system_time()))
}

/// `seq JOBS | ucp-submit --each -- true`: jobs per second, and microseconds of CPU per job of
/// broker, executor, spawner and client.
fn stream(settings: &Settings) -> Outcome<(f64, [f64; 4])> {
    let spawner = spawner_of(settings.executor)?;
    let all = || -> Outcome<[f64; 4]> {
        let [broker, executor] = [cpu_of(settings.broker)?, cpu_of(settings.executor)?];
        Ok([broker, executor, cpu_of(spawner)?, cpu_of_children()?])
    };
    let before = all()?;
    let (_, micros) = timed(|| feed(settings))?;
    let mut cpu = all()?;
    for (after, before) in cpu.iter_mut().zip(before) {
        *after = (*after - before) / settings.jobs as f64;
    }
    Ok((settings.jobs as f64 / micros * 1e6, cpu))
}

fn feed(settings: &Settings) -> Outcome<()> {
    let mut child = Command::new(&settings.submit)
        .args(["--each", "--", "true"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut feed = child.stdin.take().ok_or("no stdin")?;
    let jobs = settings.jobs;
    let feeder = std::thread::spawn(move || (1..=jobs).try_for_each(|n| writeln!(feed, "{n}")));
    let results = BufReader::new(child.stdout.take().ok_or("no stdout")?).lines().count();
    feeder.join().map_err(|_| "the feeder")??;
    match (child.wait()?.success(), results == jobs) {
        (true, true) => Ok(()),
        _ => Err(format!("ucp-submit gave {results} results of {jobs}").into()),
    }
}

/// Appends a little and waits for the disk; microseconds each.
fn syncs(folder: &Path, count: usize) -> Outcome<Vec<f64>> {
    let mut file = std::fs::File::create(folder.join("syncs"))?;
    let sync = |_| {
        let (_, micros) = timed(|| {
            file.write_all(&[b'x'; 1024])?;
            Ok(file.sync_data()?)
        })?;
        Ok(micros)
    };
    (0..count).map(sync).collect()
}

/// One job after the other on one open connection: microseconds from the request to the result.
fn latencies(socket: &Path, count: usize) -> Outcome<Vec<f64>> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(
        b"POST /v1/jobs?until=accepted HTTP/1.1\r\nHost: ucp\r\n\
          Content-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n",
    )?;
    let mut micros = vec![];
    for index in 0..count {
        let line = format!("{{\"index\":{index},\"spec\":{{\"command\":[\"true\"]}}}}\n");
        let (_, took) = timed(|| {
            write!(stream, "{:x}\r\n{line}\r\n", line.len())?;
            read_result(&mut stream)
        })?;
        micros.push(took);
    }
    Ok(micros)
}

/// Reads until a whole result line came.
fn read_result(stream: &mut UnixStream) -> Outcome<()> {
    let (mut held, mut buffer) = (Vec::new(), [0; 8192]);
    loop {
        let read = stream.read(&mut buffer)?;
        held.extend_from_slice(&buffer[..read]);
        let text = String::from_utf8_lossy(&held);
        if text.split_once("\"type\":\"result\"").is_some_and(|(_, rest)| rest.contains('\n')) {
            return Ok(());
        }
        if read == 0 || text.contains("\"type\":\"problem\"") {
            return Err(format!("no result: {text}").into());
        }
    }
}

/// `ucp-submit -- true` from start to end, in microseconds.
fn commands(submit: &str, count: usize) -> Outcome<Vec<f64>> {
    let run = |_| match timed(|| Ok(Command::new(submit).args(["--", "true"]).status()?))? {
        (status, micros) if status.success() => Ok(micros),
        (status, _) => Err(format!("ucp-submit ended with {status}").into()),
    };
    (0..count).map(run).collect()
}

struct Row {
    what: &'static str,
    unit: &'static str,
    values: Vec<f64>,
}

const HEADS: [(&str, &str); 11] = [
    ("spawn and wait of /bin/true, 1 thread", "1/s"),
    ("spawn and wait of /bin/true, a thread per slot", "1/s"),
    ("append of 1 KiB and fdatasync, p50", "µs"),
    ("`seq N \\| ucp-submit --each -- true`", "jobs/s"),
    ("CPU of the broker", "µs per job"),
    ("CPU of the executor", "µs per job"),
    ("CPU of the spawner", "µs per job"),
    ("CPU of the client", "µs per job"),
    ("submit → result on an open connection, p50", "µs"),
    ("submit → result on an open connection, p99", "µs"),
    ("whole command `ucp-submit -- true`, p50", "µs"),
];
/// The row of jobs per second.
const JOBS: usize = 3;

fn measure(settings: &Settings) -> Outcome<Vec<Row>> {
    let row = |(what, unit)| Row { what, unit, values: vec![] };
    let mut rows: Vec<Row> = HEADS.into_iter().map(row).collect();
    let folder = Path::new(&settings.folder);
    for _ in 0..settings.rounds {
        let one = spawn_loop(settings.jobs, 1)?;
        let many = spawn_loop(settings.jobs, settings.threads)?;
        let sync = median(syncs(folder, 200)?);
        let (rate, [broker, executor, spawner, client]) = stream(settings)?;
        let mut open = latencies(&folder.join("run/broker.sock"), 500)?;
        open.sort_by(f64::total_cmp);
        let (p50, p99) = (open[250], open[495]);
        let whole = median(commands(&settings.submit, 50)?);
        let values = [one, many, sync, rate, broker, executor, spawner, client, p50, p99, whole];
        rows.iter_mut().zip(values).for_each(|(row, value)| row.values.push(value));
    }
    Ok(rows)
}

#[allow(clippy::print_stdout, reason = "the table is what this program is for")]
fn print(rows: &[Row]) {
    println!("| measure | median | unit | rounds |");
    println!("| --- | ---: | --- | --- |");
    for row in rows {
        let rounds: Vec<String> = row.values.iter().map(|value| format!("{value:.0}")).collect();
        let median = median(row.values.clone());
        println!("| {} | {median:.0} | {} | {} |", row.what, row.unit, rounds.join(", "));
    }
    for (name, floor) in [("one thread", 0), ("a thread per slot", 1)] {
        let pairs = rows[JOBS].values.iter().zip(&rows[floor].values);
        let ratios: Vec<f64> = pairs.map(|(jobs, floor)| jobs / floor).collect();
        let shown: Vec<String> = ratios.iter().map(|ratio| format!("{ratio:.2}")).collect();
        let median = median(ratios);
        println!("| jobs beside spawns, {name} | {median:.2} | ratio | {} |", shown.join(", "));
    }
}

fn settings() -> Outcome<Settings> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| {
        let at = args.iter().position(|arg| arg == name);
        at.and_then(|at| args.get(at + 1)).cloned().ok_or(format!("{name} VALUE is needed"))
    };
    Ok(Settings {
        submit: value("--submit")?,
        folder: value("--folder")?,
        broker: value("--broker")?.parse()?,
        executor: value("--executor")?.parse()?,
        jobs: value("--jobs")?.parse()?,
        rounds: value("--rounds")?.parse()?,
        threads: value("--threads")?.parse()?,
    })
}

fn main() -> Outcome<()> {
    print(&measure(&settings()?)?);
    Ok(())
}
