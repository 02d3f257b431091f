//! The store with a real core and real processes: what `kill -9` leaves, and what `check` says.
//!
//! The process that is killed is this test program itself, running `child_writes_until_killed`.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use ucp::cli::check;
use ucp::proto::broker::{Broker, BrokerConfig, Opening};
use ucp::proto::event::{Input, JobRef, Output, Request, Submission};
use ucp::proto::id::{JobId, RequestId};
use ucp::proto::job::JobSpec;
use ucp::proto::limits;
use ucp::proto::rng::Rng;
use ucp::proto::time::{Monotonic, Now, WallTime};
use ucp::runtime::continuity::{Start, prove};
use ucp::runtime::rundir::lock_data;
use ucp::runtime::store::{Durability, Reader, Store};

/// One test at a time: a process that is just being started holds, for a moment, the locks that
/// another thread has taken.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where the child writes; set by its parent.
const CHILD_DATA: &str = "UCP_TEST_STORE_DATA";

/// Runs a core on a data directory, with jobs that come and are cancelled, and hands every batch
/// to `commit`, until that says false.
fn work(broker: &mut Broker, seed: u64, mut commit: impl FnMut(Output) -> bool) {
    let mut rng = Rng::from_seed(seed);
    let spec = Arc::new(JobSpec::command(vec!["true".into()]));
    let mut taken: Vec<JobId> = vec![];
    for step in 0.. {
        let now = Now { mono: Monotonic(step), wall: WallTime(step) };
        let body = if taken.len() > 3 && rng.chance(30) {
            let at = usize::try_from(rng.below(taken.len() as u64)).expect("an index");
            let job = JobRef(taken.swap_remove(at).to_string());
            Request::Cancel { job, reason: "a test".into() }
        } else {
            let submissions = (0..=rng.below(3)).map(|index| {
                let id = JobId::random(WallTime(step), &mut rng);
                taken.push(id);
                Submission { index, id: Some(id), spec: Arc::clone(&spec) }
            });
            Request::Submit { submissions: submissions.collect(), watch: false }
        };
        broker.handle_input(now, Input::Request { request: RequestId(step), body });
        while let Some(output) = broker.poll_output() {
            if !commit(output) {
                return;
            }
        }
    }
}

/// Opens the store as a broker does and tells whether its log goes on.
fn life(data: &Path, mut each: impl FnMut(&mut Broker, ucp::runtime::store::Writer, bool)) {
    let _lock = lock_data(data).expect("nobody else");
    let store = Store::open(data, Durability::Fsync).expect("a store");
    let mut broker = Broker::new(BrokerConfig::default(), Rng::from_seed(1));
    store.load(|fact| broker.restore(fact)).expect("whole");
    let last = store.last_own_log().expect("readable");
    let chain_at = |log: &_, seq| store.chain_at(log, seq).expect("readable");
    let start = Start { run_dir: data, name: "broker", boot_id: "a boot", seed: 1 };
    let proof = prove(&start, last, chain_at).expect("a log");
    let goes_on = matches!(proof.opening, Opening::Continue(_));
    let writer = store.into_writer(proof.continuity).expect("a writer");
    broker.open(Now::default(), proof.opening);
    each(&mut broker, writer, goes_on);
}

/// Not a test of its own: what a parent starts and kills. Prints the number of facts of its log
/// that are durable.
#[test]
fn child_writes_until_killed() {
    let Some(data) = std::env::var_os(CHILD_DATA) else { return };
    let seed = u64::from(std::process::id());
    life(Path::new(&data), |broker, writer, goes_on| {
        println!("\ngoes on {goes_on}");
        let (under_way, ended) = sync_channel(limits::BATCHES_IN_FLIGHT_MAX);
        let ended = Arc::new(Mutex::new(ended));
        work(broker, seed, |output| {
            if let Output::Persist(batch) = output {
                let last = batch.facts.last().map_or(0, |fact| fact.fact.dot.seq);
                under_way.send(()).expect("the other end is held");
                let ended = Arc::clone(&ended);
                writer.commit(
                    batch,
                    Box::new(move |result| {
                        result.expect("committed");
                        println!("durable {last}");
                        ended.lock().expect("no panic").recv().expect("it is under way");
                    }),
                );
            }
            true
        });
    });
}

/// A child that dies with the test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts the child, kills it when it said so often that something is durable, and returns how
/// much it said was durable, and whether its log went on.
fn killed(data: &Path, after: usize) -> (u64, bool) {
    let own = std::env::current_exe().expect("this program");
    let mut child = Command::new(own);
    child.args(["--exact", "child_writes_until_killed", "--nocapture"]).env(CHILD_DATA, data);
    child.stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = Killed(child.spawn().expect("it starts"));
    let stdout = child.0.stdout.take().expect("it is a pipe");
    let (mut durable, mut goes_on, mut said) = (0, None, 0);
    for line in BufReader::new(stdout).lines() {
        let line = line.expect("text");
        match line.split_once(' ') {
            Some(("goes", word)) => goes_on = Some(word == "on true"),
            Some(("durable", seq)) => {
                durable = seq.parse().expect("a number");
                said += 1;
            }
            _ => {}
        }
        if said == after {
            // What is in the pipe behind it was said, too, and counts.
            child.0.kill().expect("it runs");
            said += 1;
        }
    }
    assert!(said > after, "it said that {said} batches are durable before it ended");
    (durable, goes_on.expect("it said whether its log goes on"))
}

fn checked(data: &Path) -> (bool, Vec<Value>) {
    let mut out = vec![];
    let ok = check::run(data, &mut out).expect("it can be checked");
    let text = String::from_utf8(out).expect("JSON is text");
    (ok, text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect())
}

#[test]
fn a25_a26_killed_at_any_moment_nothing_durable_is_lost_and_the_log_goes_on() {
    let _alone = alone();
    let data = tempfile::tempdir().expect("a directory");
    let mut first_log = None;
    for round in 0..12 {
        let (durable, goes_on) = killed(data.path(), 1 + round * 7 % 40);
        assert_eq!(goes_on, round > 0, "round {round}");
        let (ok, lines) = checked(data.path());
        assert!(ok, "round {round}: {lines:#?}");
        let summary = lines.last().expect("there always is one");
        assert_eq!(summary["type"], "check");
        assert!(summary["facts"].as_u64() >= Some(durable), "{durable} in {summary}");
        let reader = Reader::open(data.path()).expect("a store");
        let facts = reader.facts_after(0, 1).expect("readable");
        let log = facts[0].1.fact.dot.log.clone();
        assert_eq!(*first_log.get_or_insert_with(|| log.clone()), log);
    }
}

#[test]
fn check_tells_each_fault_and_always_the_whole() {
    let _alone = alone();
    let data = tempfile::tempdir().expect("a directory");
    let error = check::run(data.path(), &mut vec![]).expect_err("nothing is there");
    assert!(error.to_string().starts_with("there is no store "), "{error}");
    life(data.path(), |broker, writer, _| {
        let mut steps = 0;
        work(broker, 1, |output| {
            if let Output::Persist(batch) = output {
                writer.commit(batch, Box::new(|result| result.expect("committed")));
                steps += 1;
            }
            steps < 20
        });
        let error = check::run(data.path(), &mut vec![]).expect_err("it is in use");
        assert!(error.to_string().contains("is in use by another process"), "{error}");
    });
    let (ok, lines) = checked(data.path());
    assert!(ok && lines.len() == 1 && lines[0]["ok"] == true, "{lines:?}");
    assert!(lines[0]["facts"].as_u64() >= Some(20) && lines[0]["faults"] == 0);

    let shelf = data.path().join("blobs/ab");
    std::fs::create_dir_all(&shelf).expect("created");
    std::fs::write(shelf.join("0".repeat(62)), "not that").expect("written");
    let store = data.path().join("broker.db");
    let changed = rusqlite::Connection::open(&store).expect("it is there");
    changed.execute("UPDATE facts SET line = line || ' ' WHERE id = 3", []).expect("updated");
    changed.close().expect("closed");
    let (ok, lines) = checked(data.path());
    let kinds: Vec<_> = lines.iter().map(|line| line["fault"].as_str().unwrap_or("-")).collect();
    assert!(!ok);
    assert_eq!(kinds, ["chain", "blob", "-"], "{lines:#?}");
    assert_eq!(lines[0]["dot"][1], 3);
    assert_eq!(lines[2]["faults"], 2);

    std::fs::write(&store, "nothing that SQLite knows").expect("written");
    let (ok, lines) = checked(data.path());
    assert!(!ok && lines[0]["fault"] == "database", "{lines:#?}");
}
