//! The spawner by itself: starts, ends, what jobs leave behind; and its speed (`-- --rate`).
//!
//! Has a `main` of its own, because the spawner must be forked before any thread is started.

#![allow(clippy::disallowed_methods, reason = "deadlines of tests, and a measurement")]
#![allow(clippy::print_stdout, reason = "it is its own harness")]

use std::fs::File;
use std::future::Future;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ucp::proto::isolation::{Isolation, Mechanism};
use ucp::proto::text::Text;
use ucp::proto::time::Monotonic;
use ucp::runtime::entropy;
use ucp::runtime::isolation::{Level, Owner, Plan};
use ucp::runtime::spawner::{self, Ending, Link, Program, Room, Started, Step};

const PATIENCE: Duration = Duration::from_secs(30);

/// Two spawners, one that keeps jobs apart and one that does not, and a place.
struct Bench {
    bare: Link,
    full: Link,
    isolation: Isolation,
    place: tempfile::TempDir,
}

/// How far a job may go.
#[derive(Debug, Clone, Copy, Default)]
struct Bounds {
    memory: Option<u64>,
    lease: Option<Monotonic>,
}

type Check = for<'a> fn(&'a Bench) -> Pin<Box<dyn Future<Output = ()> + 'a>>;

fn main() {
    let place = tempfile::tempdir().expect("a temporary directory");
    for name in ["0", "1", "2", "3", "allowed"] {
        std::fs::create_dir(place.path().join(name)).expect("room");
    }
    let allowed = vec![place.path().join("allowed")];
    let name = format!("spawner-test-{}", std::process::id());
    let owner = Owner { executor: &name, life: 0 };
    let plan = Plan::make(Level::Full, allowed, Some(owner));
    let bare = spawner::fork(&Plan::none()).expect("the only thread");
    let full = spawner::fork(&plan).expect("the only thread");
    let isolation = plan.isolation().clone();
    println!("spawner: {isolation}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let (bare, full) = (bare.connect().expect("a socket"), full.connect().expect("a socket"));
        let bench = Bench { bare, full, isolation, place };
        if std::env::args().any(|argument| argument == "--rate") {
            return rate(&bench).await;
        }
        check_all(&bench).await;
    });
    if let Some(cgroup) = plan.cgroup() {
        let begin = Instant::now();
        while cgroup.exists() {
            assert!(begin.elapsed() < PATIENCE, "{} is removed", cgroup.display());
            std::thread::yield_now();
        }
    }
}

async fn check_all(bench: &Bench) {
    let checks: [(&str, Check); 20] = [
        ("output and exit status", |bench| Box::pin(output(&bench.bare))),
        ("what cannot be started", |bench| Box::pin(failures(&bench.bare))),
        ("a clean start", |bench| Box::pin(clean_start(bench))),
        ("signals", |bench| Box::pin(signals(&bench.bare))),
        ("an argument list larger than the socket", |bench| Box::pin(large(&bench.bare))),
        ("an environment of 1 MB", |bench| Box::pin(large_environment(bench))),
        ("a daemon left behind", |bench| Box::pin(daemon(&bench.bare))),
        ("a nameless daemon left behind", |bench| Box::pin(nameless(&bench.bare))),
        ("many at a time, and SIGTERM to the spawner", |bench| Box::pin(many(&bench.bare))),
        ("writes in its room, and nowhere else", |bench| Box::pin(writes(bench))),
        ("a room that was made again", |bench| Box::pin(room_again(bench))),
        ("a program with another owner's rights", |bench| Box::pin(setuid(bench))),
        ("a signal to the spawner from a job", |bench| Box::pin(parricide(bench))),
        ("a nameless daemon in a cgroup", |bench| Box::pin(nameless_in_cgroup(bench))),
        ("a polite signal to all of a job", |bench| Box::pin(terminate_all(bench))),
        ("memory is bounded", |bench| Box::pin(memory(bench))),
        ("a fork bomb is bounded", |bench| Box::pin(fork_bomb(bench))),
        ("the end of a lease", |bench| Box::pin(lease_ends(bench))),
        ("a lease that is put off", |bench| Box::pin(lease_put_off(&bench.bare))),
        ("a lease that is over before the start", |bench| Box::pin(lease_over(&bench.bare))),
    ];
    for (name, check) in checks {
        println!("spawner: {name}");
        check(bench).await;
    }
    println!("{} passed, 0 failed", checks.len());
}

fn skipped(what: &str) {
    writeln!(std::io::stderr(), "spawner: SKIPPED, not in force on this machine: {what}")
        .expect("stderr");
}

impl Bench {
    fn room(&self, number: u32) -> PathBuf {
        self.place.path().join(number.to_string())
    }

    fn start(&self, number: u32, argv: &[&str], memory: Option<u64>) -> (Started, File) {
        self.start_leased(number, argv, Bounds { memory, lease: None })
    }

    fn start_leased(&self, number: u32, argv: &[&str], bounds: Bounds) -> (Started, File) {
        let directory = self.room(number);
        let room = Room { number, directory: &directory };
        start_in(&self.full, argv, &[], Some(room), bounds)
    }

    /// Runs a shell script in a room.
    async fn script(&self, number: u32, script: &str) -> (Ending, String) {
        let (started, reader) = self.start(number, &["sh", "-c", script], None);
        (ended(started).await, rest(reader))
    }

    fn enforces(&self, mechanism: Mechanism) -> bool {
        self.isolation.enforces(mechanism)
    }
}

fn start(link: &Link, argv: &[&str], env: &[(&str, &[u8])]) -> (Started, File) {
    start_in(link, argv, env, None, Bounds::default())
}

fn start_in(
    link: &Link,
    argv: &[&str],
    env: &[(&str, &[u8])],
    room: Option<Room<'_>>,
    bounds: Bounds,
) -> (Started, File) {
    let Bounds { memory, lease } = bounds;
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let argv: Vec<Text> = argv.iter().map(|text| (*text).into()).collect();
    let attempt = format!("test-{}.1", reader_number(&reader));
    let cwd = room.map_or(Path::new("/"), |room| room.directory);
    let program = Program { argv: &argv, env, cwd, attempt: &attempt, room, memory, lease };
    let stdout = OwnedFd::from(writer);
    let stderr = stdout.try_clone().expect("a descriptor");
    (link.spawn(&program, stdout, stderr, None), File::from(OwnedFd::from(reader)))
}

fn rest(mut reader: File) -> String {
    let mut text = String::new();
    reader.read_to_string(&mut text).expect("the end of the pipe, as nothing holds it");
    text
}

fn reader_number(reader: &std::io::PipeReader) -> i32 {
    use std::os::fd::AsRawFd;
    reader.as_raw_fd()
}

async fn ended(started: Started) -> Ending {
    let waited = tokio::time::timeout(PATIENCE, started.ended).await;
    waited.expect("an ending in time").expect("a living spawner")
}

fn status(ending: Ending) -> ExitStatus {
    match ending {
        Ending::Exited { status, .. } => ExitStatus::from_raw(status),
        Ending::Failed { step, errno } => panic!("not started: {step:?}, errno {errno}"),
    }
}

async fn run(link: &Link, argv: &[&str], env: &[(&str, &[u8])]) -> (Ending, String) {
    let (started, reader) = start(link, argv, env);
    (ended(started).await, rest(reader))
}

async fn output(link: &Link) {
    let (ending, text) =
        run(link, &["sh", "-c", "echo $A; echo err >&2; exit 7"], &[("A", b"b")]).await;
    assert_eq!(status(ending).code(), Some(7));
    assert_eq!(text, "b\nerr\n");
    let Ending::Exited { memory_max, strays, .. } = ending else { unreachable!("checked above") };
    assert!(memory_max > 0);
    assert_eq!(strays, 0);
    let (ending, text) = run(link, &["cat"], &[]).await;
    assert_eq!((status(ending).code(), text.as_str()), (Some(0), ""), "stdin is empty");
}

async fn failures(link: &Link) {
    for (argv, errno) in [
        (["no-such-program"], nix::libc::ENOENT),
        (["/no/such/program"], nix::libc::ENOENT),
        (["/etc/passwd"], nix::libc::EACCES),
        (["/etc"], nix::libc::EACCES),
    ] {
        assert_eq!(
            run(link, &argv, &[]).await.0,
            Ending::Failed { step: Step::Program, errno },
            "{argv:?}"
        );
    }
    let (ending, _) = run(link, &["echo"], &[("PATH", b"/no/such/directory")]).await;
    assert_eq!(
        ending,
        Ending::Failed { step: Step::Program, errno: nix::libc::ENOENT },
        "the job's own PATH counts"
    );
}

async fn signals(link: &Link) {
    let (ending, _) = run(link, &["sh", "-c", "kill -SEGV $$"], &[]).await;
    assert_eq!(status(ending).signal(), Some(11), "{:?}", status(ending));
    let (ending, _) = run(link, &["sh", "-c", "kill -PIPE $$"], &[]).await;
    assert_eq!(status(ending).signal(), Some(13));
    let realtime = &["sh", "-c", "kill -40 $$"];
    assert_eq!(status(run(link, realtime, &[]).await.0).signal(), Some(40));
    let (started, mut reader) = start(link, &["sh", "-c", "echo up; sleep 1000"], &[]);
    let mut up = [0; 3];
    reader.read_exact(&mut up).expect("a line");
    link.kill(started.job, nix::libc::SIGTERM);
    assert_eq!(status(ended(started).await).signal(), Some(15));
}

async fn clean_start(bench: &Bench) {
    for (link, gains) in [(&bench.bare, "NoNewPrivs:\t0"), (&bench.full, "NoNewPrivs:\t1")] {
        // No shell here: one blocks signals for moments while it waits.
        let look = ["grep", "-E", "Sig(Blk|Ign)|NoNewPrivs", "/proc/self/status"];
        let (ending, text) = run(link, &look, &[]).await;
        assert!(status(ending).success(), "{text}");
        // 32 and 33 belong to the C library, which lets nobody change them.
        let ignored = text.lines().find_map(|line| line.strip_prefix("SigIgn:\t"));
        let ignored = u64::from_str_radix(ignored.expect("a line"), 16).expect("hexadecimal");
        assert_eq!(ignored & !(0b11 << 31), 0, "{text}");
        for line in ["SigBlk:\t0000000000000000", gains] {
            assert!(text.contains(line), "{line} in {text}");
        }
        let (_, text) =
            run(link, &["sh", "-c", "ls /proc/self/fd; env"], &[("UCP_JOB_ID", b"x")]).await;
        let descriptors = text.lines().filter(|line| line.parse::<u32>().is_ok()).count();
        assert_eq!(descriptors, 4, "0, 1, 2 and the one that ls reads: {text}");
        for line in text.lines().filter(|line| line.contains('=')) {
            let name = line.split('=').next().expect("a name");
            let known = ["PATH", "HOME", "LANG", "TMPDIR", "USER", "PWD", "OLDPWD", "_", "SHLVL"];
            assert!(known.contains(&name) || name.starts_with("UCP_JOB_"), "{line}");
        }
    }
    let own = File::open("/dev/null").expect("a descriptor that the spawner does not have");
    let (_, text) = bench.script(0, "ls /proc/self/fd | wc -l; ulimit -c; ulimit -n").await;
    drop(own);
    let lines: Vec<&str> = text.split_whitespace().collect();
    assert_eq!(lines[..2], ["4", "0"], "four descriptors, no core files: {text}");
    assert!(lines[2].parse::<u64>().expect("a number") <= 65_536, "{text}");
}

async fn large_environment(bench: &Bench) {
    let long = "x".repeat(131_000);
    let names: Vec<String> = (0..9).map(|n| format!("LONG{n}")).collect();
    let env: Vec<_> = names.iter().map(|name| (name.as_str(), long.as_bytes())).collect();
    let (ending, text) = run(&bench.full, &["sh", "-c", "env | wc -c"], &env).await;
    assert!(status(ending).success(), "{text}");
    assert!(text.trim().parse::<usize>().expect("a number") > 1 << 20, "{text}");
}

async fn large(link: &Link) {
    let long = "x".repeat(100_000);
    let mut argv = vec!["sh", "-c", "printf '%s' \"$*\" | wc -c", "sh"];
    argv.extend(std::iter::repeat_n(long.as_str(), 10));
    let (ending, text) = run(link, &argv, &[]).await;
    assert!(status(ending).success());
    assert_eq!(text.trim(), "1000009");
}

async fn daemon(link: &Link) {
    let script = "(setsid sh -c 'sleep 1000 & sleep 1000' & sleep 1000 &) ; setsid sleep 1000 & \
                  until [ \"$(pgrep -cs0 x; ps -eo args | grep -c '^sleep 1000')\" ]; do :; done; exit 3";
    let (ending, _) = run(link, &["sh", "-c", script], &[]).await;
    assert_eq!(status(ending).code(), Some(3));
}

async fn nameless(link: &Link) {
    let script = "env -i setsid sh -c 'echo up; sleep 1000 & sleep 1000' & sleep 0.2; exit 4";
    let (other, _other_reader) = start(link, &["sleep", "1000"], &[]);
    let (started, mut reader) = start(link, &["sh", "-c", script], &[]);
    let mut up = [0; 3];
    reader.read_exact(&mut up).expect("a line");
    assert_eq!(status(ended(started).await).code(), Some(4));
    // It may belong to the other job, so it lives until that one ends.
    link.kill(other.job, nix::libc::SIGKILL);
    assert_eq!(status(ended(other).await).signal(), Some(9));
    let mut rest = String::new();
    reader.read_to_string(&mut rest).expect("the end of the pipe, as nothing holds it");
}

async fn writes(bench: &Bench) {
    let outside = bench.place.path().display();
    let script = format!(
        "echo own >own && mkdir deep && echo own >deep/own && rm -r deep && cat own; \
         echo no >{outside}/outside; \
         echo may >{outside}/allowed/file && cat {outside}/allowed/file; \
         echo dropped >/dev/null; echo err >/dev/stderr; cat </etc/passwd >/dev/null && echo read"
    );
    let (ending, text) = bench.script(1, &script).await;
    assert!(status(ending).success(), "{text}");
    for line in ["own", "may", "err", "read"] {
        assert!(text.lines().any(|said| said == line), "{line} in {text}");
    }
    let reached = bench.place.path().join("outside").exists();
    if bench.enforces(Mechanism::LandlockFiles) {
        assert!(!reached && text.contains("ermission denied"), "{text}");
    } else {
        skipped("Landlock for files");
        assert!(reached, "nothing else kept it from that: {text}");
    }
}

async fn room_again(bench: &Bench) {
    for _ in 0..2 {
        std::fs::remove_dir_all(bench.room(3)).expect("it is there");
        std::fs::create_dir(bench.room(3)).expect("room");
        let (ending, text) = bench.script(3, "echo own >own").await;
        assert!(status(ending).success(), "{text}");
    }
    let lost = Room { number: 3, directory: Path::new("/no/such/directory") };
    let (started, _reader) = start_in(&bench.full, &["true"], &[], Some(lost), Bounds::default());
    assert!(matches!(ended(started).await, Ending::Failed { errno: nix::libc::ENOENT, .. }));
}

async fn setuid(bench: &Bench) {
    let program = bench.place.path().join("id");
    let source = if Path::new("/usr/bin/id").exists() { "/usr/bin/id" } else { "/bin/id" };
    std::fs::copy(source, &program).expect("a program");
    let nobody = Some(nix::unistd::Uid::from_raw(65_534));
    let given = nix::unistd::chown(&program, nobody, None);
    let mode = std::fs::Permissions::from_mode(0o4755);
    std::fs::set_permissions(&program, mode).expect("it is ours, or we are root");
    let name = program.to_str().expect("a path of ours is text");
    // The same without protection shows that the file would change the user.
    let (_, plain) = run(&bench.bare, &[name, "-u"], &[]).await;
    if given.is_err() || plain.trim() != "65534" {
        return skipped("a file of another user with the set-user-id bit cannot be made here");
    }
    let (started, reader) = bench.start(1, &[name, "-u"], None);
    assert!(status(ended(started).await).success());
    assert_eq!(rest(reader).trim(), nix::unistd::getuid().to_string());
}

async fn parricide(bench: &Bench) {
    let (ending, text) = bench.script(1, "kill -9 $PPID 2>&1 && echo killed; exit 3").await;
    if bench.enforces(Mechanism::LandlockSignals) {
        assert_eq!(status(ending).code(), Some(3));
        assert!(text.contains("not permitted") && !text.contains("killed"), "{text}");
    } else {
        skipped("Landlock for signals");
    }
    kill(bench.full.pid(), None).expect("a living spawner");
}

async fn nameless_in_cgroup(bench: &Bench) {
    if !bench.enforces(Mechanism::CgroupKill) {
        return skipped("cgroup.kill");
    }
    let (other, _other_reader) = bench.start(2, &["sleep", "1000"], None);
    let script = "env -i setsid setsid sh -c 'echo up; sleep 1000 & sleep 1000' & \
                  until [ -e go ]; do sleep 0.01; done; exit 4";
    let (started, mut reader) = bench.start(1, &["sh", "-c", script], None);
    let mut up = [0; 3];
    reader.read_exact(&mut up).expect("a line");
    std::fs::write(bench.room(1).join("go"), "").expect("room");
    let ending = ended(started).await;
    assert_eq!(status(ending).code(), Some(4));
    let Ending::Exited { strays, .. } = ending else { unreachable!("checked above") };
    assert!(strays >= 2, "{strays}");
    // The other job lives, and yet the end of the pipe comes.
    assert_eq!(rest(reader), "");
    bench.full.kill(other.job, nix::libc::SIGTERM);
    assert_eq!(status(ended(other).await).signal(), Some(15));
}

async fn terminate_all(bench: &Bench) {
    if !bench.enforces(Mechanism::CgroupKill) {
        return skipped("cgroup.kill");
    }
    // The daemon is in a group and a session of its own, and ends in good order.
    let script = "setsid sh -c 'trap \"echo bye; exit\" TERM; echo up; \
                  while :; do sleep 0.01; done' & trap : TERM; wait; wait";
    let (started, mut reader) = bench.start(1, &["sh", "-c", script], None);
    let mut up = [0; 3];
    reader.read_exact(&mut up).expect("a line");
    bench.full.kill(started.job, nix::libc::SIGTERM);
    ended(started).await;
    // A shell may tell of its killed child first: `Terminated`, on the same pipe.
    let text = rest(reader);
    assert!(text.ends_with("bye\n"), "{text}");
}

async fn memory(bench: &Bench) {
    const MEMORY: u64 = 64 << 20;
    let greedy = ["dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"];
    let (started, reader) = bench.start(1, &greedy, Some(MEMORY));
    let ending = ended(started).await;
    let Ending::Exited { out_of_memory, .. } = ending else { panic!("{ending:?}") };
    assert!(!status(ending).success(), "{}", rest(reader));
    assert_eq!(out_of_memory, bench.enforces(Mechanism::CgroupMemory));
    let (started, reader) = bench.start(1, &greedy, None);
    assert!(status(ended(started).await).success(), "{}", rest(reader));
}

async fn fork_bomb(bench: &Bench) {
    if !bench.enforces(Mechanism::CgroupProcesses) {
        return skipped("the pids controller of cgroups");
    }
    let script = "n=0; while [ $n -lt 20000 ]; do sleep 1000 & n=$((n+1)); done; exit 0";
    let (ending, _) = bench.script(1, script).await;
    assert!(!status(ending).success(), "20,000 processes are too many");
}

fn ahead(span: Duration) -> Bounds {
    Bounds { lease: Some(entropy::now().mono.after(span)), memory: None }
}

fn lapsed(ending: Ending) -> bool {
    matches!(ending, Ending::Exited { lapsed: true, .. }) && status(ending).signal() == Some(9)
}

async fn lease_ends(bench: &Bench) {
    // One that hears no polite signal, with a daemon; and nobody says that they are to end.
    let stubborn = ["sh", "-c", "trap '' TERM; setsid sleep 1000 & sleep 1000; sleep 1000"];
    for apart in [true, false] {
        let bounds = ahead(Duration::from_millis(300));
        let (started, reader) = match apart {
            true => bench.start_leased(1, &stubborn, bounds),
            false => start_in(&bench.bare, &stubborn, &[], None, bounds),
        };
        let ending = ended(started).await;
        assert!(lapsed(ending), "{ending:?}");
        assert!(bounds.lease.is_some_and(|until| until <= entropy::now().mono), "not before");
        assert_eq!(rest(reader), "", "nothing of it holds the pipe");
    }
    // Its end by itself comes first.
    let (started, _reader) = bench.start_leased(1, &["sh", "-c", "exit 3"], ahead(PATIENCE));
    let ending = ended(started).await;
    assert!(matches!(ending, Ending::Exited { lapsed: false, .. }), "{ending:?}");
}

async fn lease_put_off(link: &Link) {
    let bounds = ahead(Duration::from_millis(300));
    let (lives, _reader) = start_in(link, &["sleep", "1000"], &[], None, bounds);
    let (ends, _other_reader) = start_in(link, &["sleep", "1000"], &[], None, bounds);
    link.renew(lives.job, entropy::now().mono.after(PATIENCE));
    assert!(lapsed(ended(ends).await));
    // That moment has passed: the one that was put off hears what it is told.
    link.kill(lives.job, nix::libc::SIGTERM);
    let ending = ended(lives).await;
    assert_eq!(status(ending).signal(), Some(15));
    assert!(matches!(ending, Ending::Exited { lapsed: false, .. }), "{ending:?}");
    // Put off to an earlier moment it ends then.
    let (shorter, _reader) = start_in(link, &["sleep", "1000"], &[], None, ahead(PATIENCE));
    link.renew(shorter.job, entropy::now().mono);
    assert!(lapsed(ended(shorter).await));
}

async fn lease_over(link: &Link) {
    let script = ["sh", "-c", "echo ran"];
    let (started, reader) = start_in(link, &script, &[], None, ahead(Duration::ZERO));
    let ending = ended(started).await;
    let expected = Ending::Failed { step: Step::Lease, errno: nix::libc::ETIME };
    assert_eq!((ending, rest(reader).as_str()), (expected, ""));
}

async fn many(link: &Link) {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR1] {
        kill(link.pid(), signal).expect("a living spawner");
    }
    let script = "setsid sleep 1000 & exit 5";
    let started: Vec<_> = (0..100).map(|_| start(link, &["sh", "-c", script], &[])).collect();
    for (started, mut reader) in started {
        assert_eq!(status(ended(started).await).code(), Some(5));
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("the end of the pipe, as nothing holds it");
    }
    kill(link.pid(), None).expect("a living spawner");
}

/// Compares the spawner with a bare loop of posix_spawn and wait, in one run.
async fn rate(bench: &Bench) {
    const COUNT: u32 = 3_000;
    for round in 1..=3 {
        let begin = Instant::now();
        for _ in 0..COUNT {
            let mut command = Command::new("/bin/true");
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            assert!(command.status().expect("a program").success());
        }
        let bare = f64::from(COUNT) / begin.elapsed().as_secs_f64();
        println!("round {round}: bare posix_spawn and wait {bare:.0}/s");
        for (name, link) in [("none", &bench.bare), ("full", &bench.full)] {
            for width in [1, 2] {
                let begin = Instant::now();
                let cpu = cpu_ms(Pid::this()) + cpu_ms(link.pid());
                let many = |first: u32| async move {
                    for _ in 0..COUNT / width {
                        let directory = bench.room(first);
                        let room = Room { number: first, directory: &directory };
                        let bounds = Bounds::default();
                        let (started, _reader) = start_in(link, &["true"], &[], Some(room), bounds);
                        assert!(status(ended(started).await).success());
                    }
                };
                match width {
                    1 => many(0).await,
                    _ => drop(tokio::join!(many(0), many(1))),
                }
                let rate = f64::from(COUNT) / begin.elapsed().as_secs_f64();
                let used = cpu_ms(Pid::this()) + cpu_ms(link.pid()) - cpu;
                let each = used * 1000.0 / f64::from(COUNT);
                let ratio = rate / bare;
                println!(
                    "  {name}, {width} at a time: {rate:.0}/s, {ratio:.2} of it, {each:.0} µs"
                );
            }
        }
    }
}

/// CPU time of a process by itself, in milliseconds.
fn cpu_ms(pid: Pid) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("a living process");
    let (_, rest) = stat.rsplit_once(") ").expect("a name");
    let ticks: f64 =
        rest.split(' ').skip(11).take(2).map(|n| n.parse::<f64>().unwrap_or(0.0)).sum();
    ticks * 10.0
}
