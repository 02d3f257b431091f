//! Jobs through a broker and an executor, and what that takes.

use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::floors::{self, Around};
use crate::measure::{
    Outcome, child_of, cpu, cpu_of_children, disk, memory_at_rest, sorted, timed,
};
use crate::rows::Sizes;
use crate::site::{Place, Site, die_with_us, lines};

/// Runs a client with this input to its end, which must be good and bring so many lines: lines a
/// second.
pub fn client(site: &Site<'_>, args: &[&str], input: Option<&Path>, count: usize) -> Outcome<f64> {
    let results = site.path("results");
    let mut command = site.command("ucp-submit");
    command.args(args).stdout(File::create(&results)?);
    if let Some(input) = input {
        command.stdin(File::open(input)?);
    }
    die_with_us(&mut command);
    let (status, micros) = timed(|| Ok(command.status()?))?;
    let found = lines(&results)?;
    fs::remove_file(&results)?;
    if !status.success() || found != count {
        return Err(format!("ucp-submit {args:?}: {status}, {found} lines of {count}").into());
    }
    Ok(count as f64 / micros * 1e6)
}

/// `xargs` with so many processes at one time: processes a second.
pub fn xargs(place: &Place, count: usize) -> Outcome<f64> {
    let numbers = numbers(place, count)?;
    let mut command = Command::new("xargs");
    command.args(["-n1", &format!("-P{}", place.slots), "true"]);
    command.stdin(File::open(&numbers)?).stdout(Stdio::null());
    die_with_us(&mut command);
    let (status, micros) = timed(|| Ok(command.status()?))?;
    if !status.success() {
        return Err(format!("xargs: {status}").into());
    }
    Ok(count as f64 / micros * 1e6)
}

/// A file with the numbers from 1, one a line.
pub fn numbers(place: &Place, count: usize) -> Outcome<PathBuf> {
    written(place, "numbers", count, |number| format!("{number}\n"))
}

/// A file with so many jobs, each another one.
pub fn jobs(place: &Place, count: usize) -> Outcome<PathBuf> {
    written(place, "jobs", count, |number| format!("{{\"command\":[\"true\",\"{number}\"]}}\n"))
}

fn written(
    place: &Place,
    name: &str,
    count: usize,
    line: impl Fn(usize) -> String,
) -> Outcome<PathBuf> {
    let path = place.file(name, "")?;
    let mut file = BufWriter::new(File::create(&path)?);
    (1..=count).try_for_each(|number| file.write_all(line(number).as_bytes()))?;
    file.flush()?;
    Ok(path)
}

/// What one array of native jobs took.
#[derive(Debug, Clone)]
pub struct ArrayRun {
    /// Processes a second of the bare loops just before, and the CPU of one.
    pub floor: (f64, f64),
    /// Elements a second, from the start of the client to its end.
    pub rate: f64,
    /// CPU per element in microseconds: broker, executor, spawner with its guard, client.
    pub cpu: [f64; 4],
    /// CPU per element in microseconds of what the spawner waited for: the jobs.
    pub jobs_cpu: f64,
    /// Memory of the broker per element that has ended.
    pub memory: f64,
    /// Elements per commit of the broker.
    pub per_commit: f64,
    /// Bytes of the broker's data per element, after its end.
    pub disk: f64,
    /// What kept the jobs apart.
    pub isolation: String,
}

/// An array of jobs that do nothing, to the last result, on a new broker and executor.
pub fn array(place: &Place, sizes: &Sizes, isolation: &str) -> Outcome<ArrayRun> {
    let count = sizes.elements;
    let floor = floors::spawns(sizes.spawns, place.slots, Around::Nothing)?;
    let mut site = Site::whole(place, isolation)?;
    let told = site.isolation()?;
    let guard = child_of(site.executor())?;
    let processes = [site.broker(), site.executor(), child_of(guard)?, guard];
    let empty = memory_at_rest(site.broker())?;
    let all = || -> Outcome<[f64; 5]> {
        let [broker, executor, spawner, guard] = processes.map(cpu);
        let [spawner, jobs] = spawner?;
        Ok([broker?[0], executor?[0], spawner + guard?[0], cpu_of_children()?, jobs])
    };
    let before = all()?;
    let commits = commits(&site.socket())?;
    let range = format!("1-{count}");
    let rate = client(&site, &["--array", &range, "--", "true"], None, count)?;
    let mut spent = all()?;
    for (after, before) in spent.iter_mut().zip(before) {
        *after = (*after - before) / count as f64;
    }
    let [cpu @ .., jobs_cpu] = spent;
    let per_commit = count as f64 / (self::commits(&site.socket())? - commits);
    let memory = (memory_at_rest(site.broker())? - empty) / count as f64;
    site.stop_executor()?;
    site.stop_broker()?;
    let disk = disk(&site.data(), &["reserve"])? / count as f64;
    Ok(ArrayRun { floor, rate, cpu, jobs_cpu, memory, per_commit, disk, isolation: told })
}

/// How many commits a broker has made.
fn commits(socket: &Path) -> Outcome<f64> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: ucp\r\nConnection: close\r\n\r\n")?;
    let mut page = String::new();
    stream.read_to_string(&mut page)?;
    let value = page.lines().find_map(|line| line.strip_prefix("ucp_store_commit_seconds_count "));
    Ok(value.ok_or("no commits are told")?.trim().parse()?)
}

/// What a queue of distinct jobs took that nobody runs.
#[derive(Debug, Clone)]
pub struct QueueRun {
    /// Jobs a second that became durable.
    pub rate: f64,
    /// Memory of the broker per job.
    pub memory: f64,
    /// The same after a restart.
    pub memory_restarted: f64,
    /// Milliseconds from the start to the ready line, after an orderly end.
    pub restart: f64,
    /// The same after SIGKILL.
    pub restart_crashed: f64,
}

/// Distinct jobs for a broker without an executor, and its restart.
pub fn queue(place: &Place, sizes: &Sizes) -> Outcome<QueueRun> {
    let count = sizes.queued;
    let input = jobs(place, count)?;
    let mut site = Site::new(place)?;
    let empty = memory_at_rest(site.broker())?;
    let rate = client(&site, &["--jsonl", "--detach"], Some(&input), count)?;
    let memory = (memory_at_rest(site.broker())? - empty) / count as f64;
    site.stop_broker()?;
    let restart = site.start_broker()? / 1e3;
    let memory_restarted = (memory_at_rest(site.broker())? - empty) / count as f64;
    site.crash_broker()?;
    let restart_crashed = site.start_broker()? / 1e3;
    Ok(QueueRun { rate, memory, memory_restarted, restart, restart_crashed })
}

/// What one very large array took, in milliseconds where nothing else is said.
#[derive(Debug, Clone)]
pub struct WideRun {
    /// The command that submits it.
    pub submit: f64,
    /// `list` and `show`, while it waits.
    pub waiting: [f64; 2],
    /// The same, while it runs.
    pub running: [f64; 2],
    /// Memory of the broker per element.
    pub memory: f64,
    /// From the start of the broker to its ready line.
    pub restart: f64,
}

/// A very large array: submitted, asked for, restarted, begun.
pub fn wide(place: &Place, sizes: &Sizes) -> Outcome<WideRun> {
    let mut site = Site::new(place)?;
    let empty = memory_at_rest(site.broker())?;
    let range = format!("1-{}", sizes.wide);
    let mut command = site.command("ucp-submit");
    command.args(["--array", &range, "--detach", "--", "true"]);
    let (output, submit) = timed(|| Ok(command.output()?))?;
    let id = String::from_utf8(output.stdout)?.trim().to_owned();
    if !output.status.success() {
        return Err(format!("ucp-submit --array {range}: {}", output.status).into());
    }
    let memory = (memory_at_rest(site.broker())? - empty) / sizes.wide as f64;
    let ask = |site: &Site<'_>| -> Outcome<[f64; 2]> {
        Ok([asked(site, &["list"])?, asked(site, &["show", &id])?])
    };
    let waiting = ask(&site)?;
    site.stop_broker()?;
    let restart = site.start_broker()? / 1e3;
    site.start_executor("full")?;
    let running = ask(&site)?;
    Ok(WideRun { submit: submit / 1e3, waiting, running, memory, restart })
}

/// A question as a whole command: the median of its milliseconds.
fn asked(site: &Site<'_>, args: &[&str]) -> Outcome<f64> {
    let took = sorted(21, || ended(site.command("ucp-submit").args(args).stdout(Stdio::null())))?;
    Ok(crate::measure::median(&took) / 1e3)
}

/// Runs a command, which must end well.
pub fn ended(command: &mut Command) -> Outcome<()> {
    match command.status()? {
        status if status.success() => Ok(()),
        status => Err(format!("{command:?}: {status}").into()),
    }
}

/// One job after the other on one open connection: microseconds from the request to the result.
pub fn latencies(socket: &Path, spec: &str, count: usize) -> Outcome<Vec<f64>> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(
        b"POST /v1/jobs?until=accepted HTTP/1.1\r\nHost: ucp\r\n\
          Content-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n",
    )?;
    let mut index = 0;
    let mut job = || {
        index += 1;
        let line = format!("{{\"index\":{index},\"spec\":{spec}}}\n");
        stream.write_all(format!("{:x}\r\n{line}\r\n", line.len()).as_bytes())?;
        read_result(&mut stream)
    };
    (0..count / 10).try_for_each(|_| job())?;
    sorted(count, job)
}

/// Reads until a whole result line came.
fn read_result(stream: &mut UnixStream) -> Outcome<()> {
    let (mut held, mut buffer) = (Vec::new(), [0; 8192]);
    loop {
        let read = stream.read(&mut buffer)?;
        held.extend_from_slice(&buffer[..read]);
        let text = String::from_utf8_lossy(&held);
        if let Some((_, rest)) = text.split_once("\"type\":\"result\"")
            && rest.contains('\n')
        {
            let good = rest.contains("\"state\":\"succeeded\"");
            return if good { Ok(()) } else { Err(format!("no success: {text}").into()) };
        }
        if read == 0 || text.contains("\"type\":\"problem\"") {
            return Err(format!("no result: {text}").into());
        }
    }
}
