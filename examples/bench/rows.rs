//! The rows: what is asked, and which figures answer it.
//!
//! Rows that look at one run from several sides share it within a round.

use std::cell::{OnceCell, RefCell};
use std::collections::BTreeSet;

use crate::floors::{self, Around, NOOP};
use crate::load::{self, ArrayRun, QueueRun, WideRun};
use crate::measure::{Outcome, median, quantile, sorted};
use crate::site::{Place, Site};
use crate::table::{Figure, Target};

/// How much is done.
pub struct Sizes {
    /// Processes of a floor, per thread.
    pub spawns: usize,
    /// Elements of a native array, and lines of a stream.
    pub elements: usize,
    /// Elements of a WASI array.
    pub wasi: usize,
    /// Distinct jobs that wait.
    pub queued: usize,
    /// Elements of a very large array.
    pub wide: usize,
    /// Jobs, requests or writes one after the other.
    pub single: usize,
    /// Commands one after the other.
    pub commands: usize,
}

impl Sizes {
    /// What the targets speak of.
    pub const WHOLE: Self = Self {
        spawns: 4_000,
        elements: 20_000,
        wasi: 100_000,
        queued: 1_000_000,
        wide: 1_000_000,
        single: 2_000,
        commands: 300,
    };
    /// A tenth of it and less.
    pub const QUICK: Self = Self {
        spawns: 1_000,
        elements: 4_000,
        wasi: 20_000,
        queued: 100_000,
        wide: 1_000_000,
        single: 300,
        commands: 50,
    };
}

/// One round, with the runs that its rows share.
pub struct Round<'a> {
    place: &'a Place,
    sizes: &'a Sizes,
    full: OnceCell<ArrayRun>,
    none: OnceCell<ArrayRun>,
    queue: OnceCell<QueueRun>,
    wide: OnceCell<WideRun>,
    isolation: RefCell<BTreeSet<String>>,
}

/// The value of a cell, made if there is none.
fn once<T: Clone>(cell: &OnceCell<T>, make: impl FnOnce() -> Outcome<T>) -> Outcome<T> {
    match cell.get() {
        Some(value) => Ok(value.clone()),
        None => make().map(|value| cell.get_or_init(|| value).clone()),
    }
}

impl<'a> Round<'a> {
    /// A round in which nothing was measured.
    pub fn new(place: &'a Place, sizes: &'a Sizes) -> Self {
        let (full, none) = (OnceCell::new(), OnceCell::new());
        let (queue, wide) = (OnceCell::new(), OnceCell::new());
        Self { place, sizes, full, none, queue, wide, isolation: RefCell::default() }
    }

    /// What the levels of isolation were, a line each.
    pub fn isolation(&self) -> Vec<String> {
        self.isolation.borrow().iter().cloned().collect()
    }

    /// A broker and an executor.
    fn site(&self, isolation: &str) -> Outcome<Site<'a>> {
        let site = Site::whole(self.place, isolation)?;
        self.note(isolation, &site.isolation()?);
        Ok(site)
    }

    fn note(&self, isolation: &str, told: &str) {
        self.isolation.borrow_mut().insert(format!("`--isolation {isolation}`: {told}"));
    }

    fn array(&self, isolation: &str) -> Outcome<ArrayRun> {
        let cell = if isolation == "full" { &self.full } else { &self.none };
        let run = once(cell, || load::array(self.place, self.sizes, isolation))?;
        self.note(isolation, &run.isolation);
        Ok(run)
    }

    fn queue(&self) -> Outcome<QueueRun> {
        once(&self.queue, || load::queue(self.place, self.sizes))
    }

    fn wide(&self) -> Outcome<WideRun> {
        once(&self.wide, || load::wide(self.place, self.sizes))
    }

    fn spawn_floor(&self) -> Outcome<f64> {
        Ok(floors::spawns(self.sizes.spawns, self.place.slots, Around::Nothing)?.0)
    }
}

/// One row: a name to ask for it, and its figures.
pub struct Row {
    pub name: &'static str,
    pub about: &'static str,
    pub measure: fn(&Round<'_>) -> Outcome<Vec<Figure>>,
}

/// All rows.
pub const ROWS: &[Row] = &[
    Row { name: "floors", about: "what the machine does with no toolkit", measure: bare },
    Row { name: "array", about: "native jobs that do nothing, durable", measure: array },
    Row { name: "cpu", about: "where the CPU of an element goes", measure: cpu },
    Row { name: "disk", about: "the broker's data after an array", measure: disk },
    Row { name: "each", about: "jobs streamed line by line", measure: each },
    Row { name: "wasi", about: "WASI jobs that do nothing, durable", measure: wasi },
    Row { name: "latency", about: "one job after the other", measure: latency },
    Row { name: "intake", about: "distinct jobs taken in, durable", measure: intake },
    Row { name: "memory", about: "the broker's memory per job", measure: memory },
    Row { name: "restart", about: "the broker's start over a long queue", measure: restart },
    Row { name: "array-submit", about: "an array of a million", measure: array_submit },
    Row { name: "clock", about: "a filter beside /bin/true", measure: clock },
];

fn bare(round: &Round<'_>) -> Outcome<Vec<Figure>> {
    let Round { place, sizes, .. } = round;
    let loops = |around| {
        Ok::<_, Box<dyn std::error::Error>>(floors::spawns(sizes.spawns, place.slots, around)?.0)
    };
    let with = format!("posix_spawn and wait of /bin/true, {} threads", place.slots);
    let syncs = floors::syncs(&place.folder, sizes.single)?;
    let bare = median(&floors::bare_requests(&place.folder, sizes.single)?);
    let site = Site::new(place)?;
    let asked = median(&floors::requests(&site.socket(), "/healthz", sizes.single)?);
    drop(site);
    let instances = floors::instances(sizes.wasi, 1)?;
    let (commits, batched) = floors::sqlite(&place.folder, sizes.single)?;
    Ok(vec![
        Figure::new(with.clone(), "/s", loops(Around::Nothing)?),
        Figure::new(
            format!("{with}, a directory for each on the disk"),
            "/s",
            loops(Around::Directory(&place.folder))?,
        ),
        Figure::new(
            format!("{with}, a supervising `sh` for each"),
            "/s",
            loops(Around::Supervisor)?,
        ),
        Figure::new("append of 1 KiB and fdatasync, p50", "µs", median(&syncs)),
        Figure::new("hyper alone, request on a Unix socket, p50", "µs", bare),
        Figure::new("`GET /healthz` of the broker, open connection, p50", "µs", asked).floor(bare),
        Figure::new("wasmtime, instantiate and run, one thread", "µs", 1e6 / instances),
        Figure::new("SQLite in WAL mode, FULL, one row a commit", "commits/s", commits),
        Figure::new("SQLite, 1,000 small rows a commit", "rows/s", batched),
    ])
}

fn array(round: &Round<'_>) -> Outcome<Vec<Figure>> {
    let count = round.sizes.elements;
    let mut figures = vec![];
    for (isolation, part) in [("full", 0.70), ("none", 0.85)] {
        let run = round.array(isolation)?;
        let figure = Figure::new(format!("isolation {isolation}"), "jobs/s", run.rate);
        let figure = figure.floor(run.floor.0).target(Target::PartOfFloor(part));
        figures.push(figure.command(format!("ucp-submit --array 1-{count} -- true")));
        let what = format!("elements that share a commit, isolation {isolation}");
        figures.push(Figure::new(what, "", run.per_commit));
    }
    let floor = round.spawn_floor()?;
    if std::process::Command::new("xargs").arg("--version").output().is_ok() {
        let slots = round.place.slots;
        let figure =
            Figure::new("a peer without queue or disk", "jobs/s", load::xargs(round.place, count)?);
        figures
            .push(figure.floor(floor).command(format!("seq {count} | xargs -n1 -P{slots} true")));
    }
    Ok(figures)
}

fn cpu(round: &Round<'_>) -> Outcome<Vec<Figure>> {
    let mut figures = vec![];
    for isolation in ["full", "none"] {
        let run = round.array(isolation)?;
        let figure = |what: &str, value: f64| {
            Figure::new(format!("{what}, isolation {isolation}"), "µs per job", value)
        };
        for (what, value) in ["broker", "executor", "spawner", "client"].into_iter().zip(run.cpu) {
            figures.push(figure(what, value));
        }
        let all = figure("all four", run.cpu.iter().sum());
        let command = format!("ucp-submit --array 1-{} -- true", round.sizes.elements);
        figures.push(all.target(Target::AtMost(100.0)).command(command));
        figures.push(figure("the jobs themselves", run.jobs_cpu).floor(run.floor.1));
    }
    Ok(figures)
}

fn disk(round: &Round<'_>) -> Outcome<Vec<Figure>> {
    let figure =
        Figure::new("blocks of the data directory", "B per element", round.array("full")?.disk);
    let command = format!("ucp-submit --array 1-{} -- true", round.sizes.elements);
    Ok(vec![figure.target(Target::AtMost(200.0)).command(command)])
}

fn each(round: &Round<'_>) -> Outcome<Vec<Figure>> {
    let count = round.sizes.elements;
    let inputs = [
        (vec!["--each", "--", "true"], load::numbers(round.place, count)?),
        (vec!["--jsonl"], load::jobs(round.place, count)?),
    ];
    let mut figures = vec![];
    for (args, input) in inputs {
        let floor = round.spawn_floor()?;
        let rate = load::client(&round.site("full")?, &args, Some(&input), count)?;
        let from = if args.len() == 1 { "cat JOBS" } else { "seq" };
        let figure = Figure::new(format!("`{}`", args[0]), "jobs/s", rate).floor(floor);
        figures.push(figure.command(format!("{from} {count} | ucp-submit {}", args.join(" "))));
    }
    Ok(figures)
}

fn wasi(round: &Round<'_>) -> Outcome<Vec<Figure>> {
    let count = round.sizes.wasi;
    let module = round.place.file("noop.wat", NOOP)?.display().to_string();
    let floor = floors::instances(count, round.place.slots)?;
    let site = round.site("full")?;
    // The module is compiled once, which is not what is measured.
    load::ended(site.command("ucp-submit").args(["--wasm", &module]))?;
    let range = format!("1-{count}");
    let rate = load::client(&site, &["--wasm", &module, "--array", &range], None, count)?;
    let command = format!("ucp-submit --wasm noop.wat --array {range}");
    let figure = Figure::new("an array of WASI jobs", "jobs/s", rate).floor(floor);
    Ok(vec![figure.target(Target::AtLeast(20_000.0)).command(command)])
}

fn latency(round: &Round<'_>) -> Outcome<Vec<Figure>> {
    let Round { place, sizes, .. } = round;
    let spawn = median(&floors::process(sizes.commands)?);
    let syncs = 2.0 * median(&floors::syncs(&place.folder, sizes.commands)?);
    let site = round.site("full")?;
    let wasi = serde_json::json!({ "wasm": { "text": NOOP } }).to_string();
    let native = r#"{"command":["true"]}"#;
    let kinds = [("native", native, spawn + syncs, 1_500.0), ("WASI", wasi.as_str(), syncs, 800.0)];
    let mut figures = vec![];
    for (kind, spec, floor, most) in kinds {
        let took = load::latencies(&site.socket(), spec, sizes.single)?;
        let figure = |part: &str, value| {
            Figure::new(format!("submit → result, {kind}, {part}"), "µs", value).floor(floor)
        };
        let command = "POST /v1/jobs?until=accepted, one line after the other";
        let middle = figure("p50", median(&took)).target(Target::AtMost(most));
        figures.push(middle.command(command));
        figures.push(figure("p99", quantile(&took, 0.99)));
    }
    let took =
        sorted(sizes.commands, || load::ended(site.command("ucp-submit").args(["--", "true"])))?;
    let whole = Figure::new("the whole command, p50", "µs", median(&took)).floor(spawn + syncs);
    figures.push(whole.target(Target::AtMost(4_000.0)).command("ucp-submit -- true"));
    figures.push(Figure::new("the whole command, p99", "µs", quantile(&took, 0.99)));
    Ok(figures)
}

fn intake(round: &Round<'_>) -> Outcome<Vec<Figure>> {
    let (_, rows) = floors::sqlite(&round.place.folder, round.sizes.single)?;
    let figure = Figure::new("jobs that became durable", "jobs/s", round.queue()?.rate);
    let command = format!("cat {}-JOBS | ucp-submit --jsonl --detach", round.sizes.queued);
    Ok(vec![figure.floor(rows).target(Target::AtLeast(50_000.0)).command(command)])
}

fn memory(round: &Round<'_>) -> Outcome<Vec<Figure>> {
    let (queue, wide) = (round.queue()?, round.wide()?);
    let ended = round.array("full")?.memory;
    let figure = |what: &str, bytes| Figure::new(what, "B", bytes);
    let jobs = format!("cat {}-JOBS | ucp-submit --jsonl --detach", round.sizes.queued);
    let array = format!("ucp-submit --array 1-{} --detach -- true", round.sizes.wide);
    let run = format!("ucp-submit --array 1-{} -- true", round.sizes.elements);
    let (element, job) = (Target::AtMost(100.0), Target::AtMost(600.0));
    Ok(vec![
        figure("a queued element of an array", wide.memory).target(element).command(array),
        figure("a distinct queued job", queue.memory).target(job).command(jobs),
        figure("the same after a restart", queue.memory_restarted).target(job),
        figure("an element that has ended", ended).command(run),
    ])
}

fn restart(round: &Round<'_>) -> Outcome<Vec<Figure>> {
    let queue = round.queue()?;
    let count = round.sizes.queued;
    let figure = |what: String, value| {
        let figure = Figure::new(what, "ms", value);
        // The target is that of a million.
        let part = count as f64 / Sizes::WHOLE.queued as f64;
        figure.target(Target::AtMost(2_000.0 * part)).command("ucp-broker serve, to its ready line")
    };
    Ok(vec![
        figure(format!("{count} distinct jobs, after SIGTERM"), queue.restart),
        figure(format!("{count} distinct jobs, after SIGKILL"), queue.restart_crashed),
        figure(format!("an array of {} elements", round.sizes.wide), round.wide()?.restart),
    ])
}

fn array_submit(round: &Round<'_>) -> Outcome<Vec<Figure>> {
    let wide = round.wide()?;
    let figure = |what: &str, value: f64, command: String| {
        Figure::new(what, "ms", value).target(Target::AtMost(50.0)).command(command)
    };
    let submit = format!("ucp-submit --array 1-{} --detach -- true", round.sizes.wide);
    let [list, show] = ["ucp-submit list", "ucp-submit show ID"].map(str::to_owned);
    Ok(vec![
        figure("submitted", wide.submit, submit),
        figure("list, while it waits", wide.waiting[0], list.clone()),
        figure("show, while it waits", wide.waiting[1], show.clone()),
        figure("list, while it runs", wide.running[0], list),
        figure("show, while it runs", wide.running[1], show),
    ])
}

fn clock(round: &Round<'_>) -> Outcome<Vec<Figure>> {
    let program = round.place.program("ucp-clock");
    let clocks = [r#"{"north":3,"van2":1}"#, r#"{"north":4}"#];
    let mut compare = std::process::Command::new(program);
    compare.arg("compare").args(clocks).stdout(std::process::Stdio::null());
    let (mut ours, mut floor) = (vec![], vec![]);
    for _ in 0..round.sizes.commands {
        floor.extend(floors::process(1)?);
        ours.extend(sorted(1, || load::ended(&mut compare))?);
    }
    ours.sort_by(f64::total_cmp);
    floor.sort_by(f64::total_cmp);
    let figure = Figure::new("the whole command, p50", "µs", median(&ours)).floor(median(&floor));
    let command = format!("ucp-clock compare '{}' '{}'", clocks[0], clocks[1]);
    Ok(vec![figure.target(Target::AboveFloor(1_000.0)).command(command)])
}
