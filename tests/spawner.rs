//! The spawner by itself: starts, ends, what jobs leave behind; and its speed (`-- --rate`).
//!
//! Has a `main` of its own, because the spawner must be forked before any thread is started.

#![allow(clippy::disallowed_methods, reason = "deadlines of tests, and a measurement")]
#![allow(clippy::print_stdout, reason = "it is its own harness")]

use std::fs::File;
use std::future::Future;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::pin::Pin;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ucp::runtime::spawner::{self, Ending, Link, Program, Started};

const PATIENCE: Duration = Duration::from_secs(30);

type Check = for<'a> fn(&'a Link) -> Pin<Box<dyn Future<Output = ()> + 'a>>;

fn main() {
    let forked = spawner::fork().expect("the only thread");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let link = forked.connect().expect("a socket");
        if std::env::args().any(|argument| argument == "--rate") {
            return rate(&link).await;
        }
        let checks: [(&str, Check); 8] = [
            ("output and exit status", |link| Box::pin(output(link))),
            ("what cannot be started", |link| Box::pin(failures(link))),
            ("a clean start", |link| Box::pin(clean_start(link))),
            ("signals", |link| Box::pin(signals(link))),
            ("an argument list larger than the socket", |link| Box::pin(large(link))),
            ("a daemon left behind", |link| Box::pin(daemon(link))),
            ("a nameless daemon left behind", |link| Box::pin(nameless(link))),
            ("many at a time, and SIGTERM to the spawner", |link| Box::pin(many(link))),
        ];
        for (name, check) in checks {
            println!("spawner: {name}");
            check(&link).await;
        }
        println!("{} passed, 0 failed", checks.len());
    });
}

fn start(link: &Link, argv: &[&str], env: &[(&str, &str)]) -> (Started, File) {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let argv: Vec<String> = argv.iter().map(|text| (*text).to_owned()).collect();
    let attempt = format!("test-{}.1", reader_number(&reader));
    let program = Program { argv: &argv, env, cwd: Path::new("/"), attempt: &attempt };
    let stdout = OwnedFd::from(writer);
    let stderr = stdout.try_clone().expect("a descriptor");
    (link.spawn(&program, stdout, stderr, None), File::from(OwnedFd::from(reader)))
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
        Ending::Failed { errno } => panic!("not started: errno {errno}"),
    }
}

async fn run(link: &Link, argv: &[&str], env: &[(&str, &str)]) -> (Ending, String) {
    let (started, mut reader) = start(link, argv, env);
    let ending = ended(started).await;
    let mut text = String::new();
    reader.read_to_string(&mut text).expect("the end of the pipe, as nothing holds it");
    (ending, text)
}

async fn output(link: &Link) {
    let (ending, text) =
        run(link, &["sh", "-c", "echo $A; echo err >&2; exit 7"], &[("A", "b")]).await;
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
        assert_eq!(run(link, &argv, &[]).await.0, Ending::Failed { errno }, "{argv:?}");
    }
    let (ending, _) = run(link, &["echo"], &[("PATH", "/no/such/directory")]).await;
    assert_eq!(ending, Ending::Failed { errno: nix::libc::ENOENT }, "the job's own PATH counts");
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

async fn clean_start(link: &Link) {
    // No shell here: one blocks signals for moments while it waits.
    let look = ["grep", "-E", "Sig(Blk|Ign)|NoNewPrivs", "/proc/self/status"];
    let (ending, text) = run(link, &look, &[]).await;
    assert!(status(ending).success(), "{text}");
    // 32 and 33 belong to the C library, which lets nobody change them.
    let ignored = text.lines().find_map(|line| line.strip_prefix("SigIgn:\t")).expect("a line");
    let ignored = u64::from_str_radix(ignored, 16).expect("hexadecimal");
    assert_eq!(ignored & !(0b11 << 31), 0, "{text}");
    for line in ["SigBlk:\t0000000000000000", "NoNewPrivs:\t1"] {
        assert!(text.contains(line), "{line} in {text}");
    }
    let (_, text) = run(link, &["sh", "-c", "ls /proc/self/fd; env"], &[("UCP_JOB_ID", "x")]).await;
    let descriptors = text.lines().filter(|line| line.parse::<u32>().is_ok()).count();
    assert_eq!(descriptors, 4, "0, 1, 2 and the one that ls reads: {text}");
    for line in text.lines().filter(|line| line.contains('=')) {
        let name = line.split('=').next().expect("a name");
        let known = ["PATH", "HOME", "LANG", "TMPDIR", "USER", "PWD", "OLDPWD", "_", "SHLVL"];
        assert!(known.contains(&name) || name.starts_with("UCP_JOB_"), "{line}");
    }
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
async fn rate(link: &Link) {
    const COUNT: u32 = 3_000;
    for round in 1..=2 {
        let begin = Instant::now();
        for _ in 0..COUNT {
            let mut command = Command::new("/bin/true");
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            assert!(command.status().expect("a program").success());
        }
        let bare = f64::from(COUNT) / begin.elapsed().as_secs_f64();
        println!("round {round}: bare posix_spawn and wait {bare:.0}/s");
        for width in [1, 2, 4] {
            let begin = Instant::now();
            let cpu = cpu_ms(Pid::this()) + cpu_ms(link.pid());
            let one = async {
                for _ in 0..COUNT / width {
                    let (started, _reader) = start(link, &["true"], &[]);
                    assert!(status(ended(started).await).success());
                }
            };
            match width {
                1 => one.await,
                2 => drop(tokio::join!(one, async {
                    for _ in 0..COUNT / width {
                        let (started, _reader) = start(link, &["true"], &[]);
                        assert!(status(ended(started).await).success());
                    }
                })),
                _ => {
                    drop(one);
                    let mut tasks = tokio::task::JoinSet::new();
                    for _ in 0..width {
                        let link = link.clone();
                        tasks.spawn(async move {
                            for _ in 0..COUNT / width {
                                let (started, _reader) = start(&link, &["true"], &[]);
                                assert!(status(ended(started).await).success());
                            }
                        });
                    }
                    tasks.join_all().await;
                }
            }
            let rate = f64::from(COUNT) / begin.elapsed().as_secs_f64();
            let used = cpu_ms(Pid::this()) + cpu_ms(link.pid()) - cpu;
            let each = used * 1000.0 / f64::from(COUNT);
            let ratio = rate / bare;
            println!(
                "  spawner, {width} at a time: {rate:.0}/s, {ratio:.2} of it, CPU {each:.0} µs each"
            );
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
