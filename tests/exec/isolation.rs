//! What keeps jobs apart, who kills them when others cannot, and what is said where it is not
//! proven.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::*;

/// A daemon in a session of its own with nothing of its environment but the test's mark, and
/// one that is found by its environment.
const DAEMONS: &str = "env -i TEST_MARK=$TEST_MARK setsid setsid sleep 1000 & setsid sleep 1000 & ";

const MECHANISMS: [&str; 9] = [
    "process-group",
    "descriptors",
    "no-new-privileges",
    "rlimits",
    "landlock-files",
    "landlock-signals",
    "cgroup-kill",
    "cgroup-memory",
    "cgroup-processes",
];

/// How each mechanism stands, as the broker's list of executors says it.
fn standing(env: &TestEnv) -> Value {
    let output = env.run("ucp-broker", &["executors", "--json"]);
    let line: Value = serde_json::from_slice(&output.stdout).expect("one line");
    line["capability"]["isolation"].clone()
}

#[allow(clippy::print_stderr, reason = "what is not checked here must be seen")]
fn skipped(what: &str) {
    eprintln!("SKIPPED, not in force on this machine: {what}");
}

/// Kills processes at one instant: they are stopped first, so that none sees another's end.
fn kill_at_once(pids: &[i32]) {
    for signal in [Signal::SIGSTOP, Signal::SIGKILL] {
        for pid in pids {
            kill(Pid::from_raw(*pid), signal).expect("it is there");
        }
    }
}

fn pid_of(executor: &Daemon) -> i32 {
    i32::try_from(executor.pid()).expect("a process id")
}

/// Submits a job with daemons that goes on until it is killed, and waits until all of it runs.
fn submit_daemons(env: &TestEnv, arguments: &[&str]) -> String {
    let job = submit(env, arguments, &format!("{DAEMONS} {}", held(env, "echo done")));
    wait_for_lines(env, "up", 1);
    wait_until("both daemons run, no forked shell in their stead", || {
        let is_daemon = |pid: &&i32| {
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            command == b"sleep\x001000\x00"
        };
        (marked(&mark(env)).iter().filter(is_daemon).count() == 2).then_some(())
    });
    job
}

fn lost_attempt(env: &TestEnv, job: &str) -> Value {
    wait_until("the attempt is lost", || {
        let attempts = show(env, job)["attempts"].clone();
        attempts.as_array()?.iter().find(|attempt| attempt["state"] == "lost").cloned()
    })
}

#[test]
fn executors_and_results_say_how_each_mechanism_stands() {
    let env = TestEnv::new();
    let (_broker, _executor) = (env.broker(), env.executor("apart", 1));
    let offered = standing(&env);
    for mechanism in MECHANISMS {
        let word = offered[mechanism].as_str().expect(mechanism);
        assert!(["enforced", "absent", "refused"].contains(&word), "{mechanism} is {word}");
        if word != "enforced" {
            skipped(mechanism);
        }
    }
    for mechanism in &MECHANISMS[..4] {
        assert_eq!(offered[mechanism], "enforced");
    }
    let job = submit(&env, &[], "grep NoNewPrivs /proc/self/status; ulimit -c");
    let line = result(&env, &job);
    assert_eq!(line["stdout"], "NoNewPrivs:\t1\n0\n");
    assert_eq!(line["isolation"], offered);
}

#[test]
fn without_isolation_each_mechanism_is_said_to_be_off() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _executor = env.executor_with("open", &["--isolation", "none"]);
    let outside = tempfile::tempdir().expect("a directory");
    let script =
        format!("grep NoNewPrivs /proc/self/status; echo x >{}/x", outside.path().display());
    let job = submit(&env, &[], &script);
    let line = result(&env, &job);
    assert_eq!((&line["stdout"], &line["exit"]), (&"NoNewPrivs:\t0\n".into(), &0.into()));
    for mechanism in MECHANISMS {
        let word = match mechanism {
            "process-group" | "descriptors" => "enforced",
            _ => "off",
        };
        assert_eq!(line["isolation"][mechanism], word, "{mechanism}");
    }
    assert!(outside.path().join("x").exists());
}

#[test]
fn a_job_writes_where_it_may_and_nowhere_else() {
    let env = TestEnv::new();
    let (may, may_not) = (tempfile::tempdir(), tempfile::tempdir());
    let (may, may_not) = (may.expect("a directory"), may_not.expect("a directory"));
    let _broker = env.broker();
    let allowed = may.path().to_str().expect("a path of ours is text");
    let _executor = env.executor_with("apart", &["--allow-write", allowed]);
    let script = format!(
        "echo own >own && cat own; echo x >{allowed}/x; echo x >{}/x; rm {}/kept",
        may_not.path().display(),
        may_not.path().display()
    );
    std::fs::write(may_not.path().join("kept"), "").expect("room");
    let line = result(&env, &submit(&env, &[], &script));
    assert_eq!(line["stdout"], "own\n", "{line}");
    assert!(may.path().join("x").exists());
    let held = standing(&env)["landlock-files"] == "enforced";
    assert_eq!(may_not.path().join("kept").exists(), held);
    assert_eq!(may_not.path().join("x").exists(), !held);
    if held {
        let said = line["stderr"].as_str().expect("text");
        assert_eq!(said.matches("ermission denied").count(), 2, "{said}");
    } else {
        skipped("landlock-files");
    }
}

#[test]
fn what_cannot_be_written_to_is_refused_before_anything_starts() {
    let env = TestEnv::new();
    for directory in ["/no/such/directory", "/etc/passwd"] {
        let output = env.run("ucp-exec", &["--allow-write", directory]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(64), "{said}");
        assert!(said.contains("--allow-write"), "{said}");
    }
}

#[test]
fn a_job_cannot_kill_what_started_it() {
    let env = TestEnv::new();
    let (_broker, executor) = (env.broker(), env.executor("apart", 1));
    if standing(&env)["landlock-signals"] != "enforced" {
        return skipped("landlock-signals");
    }
    let (spawner, pid) = (spawner_of(&executor), executor.pid());
    let job = submit(&env, &[], &format!("kill -9 $PPID || kill -9 {pid} || exit 3"));
    let line = result(&env, &job);
    assert_eq!(line["exit"], 3, "{line}");
    assert_eq!(line["stderr"].as_str().expect("text").matches("not permitted").count(), 2);
    assert_eq!(spawner_of(&executor), spawner);
}

#[test]
fn a_job_that_may_and_does_kill_what_started_it_takes_executors_down_and_is_parked() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let mut first = env.executor_with("open1", &["--isolation", "none"]);
    let mut second = env.executor_with("open2", &["--isolation", "none"]);
    let job = submit(&env, &["--max-lost", "2"], "kill -9 $PPID; sleep 1000");
    assert_eq!(result(&env, &job)["state"], "parked");
    for executor in [&mut first, &mut second] {
        assert_eq!(executor.wait().code(), Some(70));
    }
    assert_eq!(marked(&mark(&env)), [0; 0]);
}

#[test]
fn a25_executor_and_spawner_killed_at_one_instant_leave_no_process() {
    for level in ["full", "none"] {
        let env = TestEnv::new();
        let _broker = env.broker();
        let executor = env.executor_with("apart", &["--isolation", level]);
        submit_daemons(&env, &[]);
        kill_at_once(&[spawner_of(&executor), pid_of(&executor)]);
        wait_until("no process is left", || marked(&mark(&env)).is_empty().then_some(()));
    }
}

#[test]
fn a25_guard_and_spawner_killed_at_one_instant_leave_no_process() {
    let env = TestEnv::new();
    let (_broker, mut executor) = (env.broker(), env.executor("apart", 1));
    submit_daemons(&env, &[]);
    kill_at_once(&[spawner_of(&executor), guard_of(&executor)]);
    assert_eq!(executor.wait().code(), Some(70));
    assert_eq!(marked(&mark(&env)), [0; 0]);
}

#[test]
fn without_its_guard_a_spawner_kills_all_and_the_executor_ends_with_70() {
    let env = TestEnv::new();
    let (_broker, mut executor) = (env.broker(), env.executor("apart", 1));
    submit_daemons(&env, &[]);
    kill_at_once(&[guard_of(&executor)]);
    assert_eq!(executor.wait().code(), Some(70));
    assert_eq!(marked(&mark(&env)), [0; 0]);
}

#[test]
fn the_next_life_kills_what_executor_spawner_and_guard_left_when_all_were_killed() {
    let env = TestEnv::new();
    let (broker, executor) = (env.broker(), env.executor("apart", 1));
    let proven = standing(&env)["cgroup-kill"] == "enforced";
    let job = submit_daemons(&env, &[]);
    // The broker would kill them.
    broker.kill();
    kill_at_once(&[guard_of(&executor), spawner_of(&executor), pid_of(&executor)]);
    executor.kill();
    let left = marked(&mark(&env)).len();
    assert!(left >= 2, "the daemons are left: {left}");
    std::fs::write(env.path("go"), "").expect("room");
    let _broker = env.broker();
    let executor = env.executor("apart", 1);
    let said = executor.stderr();
    assert!(said.contains("that an earlier life left behind"), "{said}");
    // The job runs again, and leaves nothing either.
    assert_eq!(result(&env, &job)["state"], "succeeded");
    if proven {
        assert!(said.contains("its cgroup is empty"), "{said}");
        assert_eq!(marked(&mark(&env)), [0; 0]);
    } else {
        skipped("cgroup-kill");
        // The one with the cleared environment cannot be found.
        let left = marked(&mark(&env));
        assert_eq!(left.len(), 1);
        kill(Pid::from_raw(left[0]), Signal::SIGKILL).expect("it is there");
    }
}

#[test]
fn a_broker_on_the_same_host_proves_that_a_lost_attempts_processes_are_gone() {
    let env = TestEnv::new();
    let (_broker, executor) = (env.broker(), env.executor("apart", 1));
    let proven = standing(&env)["cgroup-kill"] == "enforced";
    let job = submit_daemons(&env, &[]);
    kill_at_once(&[guard_of(&executor), spawner_of(&executor), pid_of(&executor)]);
    let lost = lost_attempt(&env, &job);
    if proven {
        assert!(lost.get("unproven").is_none(), "{lost}");
        assert_eq!(marked(&mark(&env)), [0; 0]);
    } else {
        skipped("cgroup-kill");
        assert!(lost["unproven"].as_str().expect("text").contains("may still run"), "{lost}");
        marked(&mark(&env)).into_iter().for_each(|pid| {
            kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it is there");
        });
    }
}

#[test]
fn without_a_cgroup_guard_or_spawner_prove_that_a_lost_attempts_processes_are_gone() {
    let killed: [fn(&Daemon) -> Vec<i32>; 3] = [
        |executor| vec![pid_of(executor)],
        |executor| vec![spawner_of(executor), pid_of(executor)],
        |executor| vec![guard_of(executor), pid_of(executor)],
    ];
    for killed in killed {
        let env = TestEnv::new();
        let _broker = env.broker();
        let executor = env.executor_with("open", &["--isolation", "none"]);
        let job = submit_daemons(&env, &[]);
        kill_at_once(&killed(&executor));
        let lost = lost_attempt(&env, &job);
        assert!(lost.get("unproven").is_none(), "{lost}");
        assert_eq!(marked(&mark(&env)), [0; 0]);
    }
}

#[test]
fn without_a_cgroup_and_with_nobody_who_saw_it_a_lost_attempt_says_what_is_not_proven() {
    let env = TestEnv::new();
    let broker = env.broker();
    let executor = env.executor_with("open", &["--isolation", "none"]);
    let job = submit_daemons(&env, &[]);
    kill_at_once(&[guard_of(&executor), spawner_of(&executor), pid_of(&executor)]);
    let lost = lost_attempt(&env, &job);
    assert_eq!(lost["unproven"], "processes of the attempt may still run on its host", "{lost}");
    // The broker kills what it finds: all but the one with the cleared environment.
    let left = wait_until("one is left", || match marked(&mark(&env))[..] {
        [left] => Some(left),
        _ => None,
    });
    wait_until("it is told", || broker.stderr().contains("left behind").then_some(()));
    kill(Pid::from_raw(left), Signal::SIGKILL).expect("it is there");
}

#[test]
fn an_executor_that_ends_leaves_no_cgroup() {
    let env = TestEnv::new();
    let (_broker, mut executor) = (env.broker(), env.executor("apart", 1));
    if standing(&env)["cgroup-kill"] != "enforced" {
        return skipped("cgroup-kill");
    }
    let job = submit(&env, &[], "grep ^0:: /proc/self/cgroup");
    let said = result(&env, &job)["stdout"].as_str().expect("text").to_owned();
    assert!(said.contains("/ucp-apart-") && said.trim().ends_with("/room-0"), "{said}");
    let recorded = std::fs::read_to_string(env.path("apart/cgroup")).expect("a path");
    assert!(std::path::Path::new(&recorded).is_dir());
    executor.signal(Signal::SIGTERM);
    assert_eq!(executor.wait().code(), Some(0));
    wait_until("the cgroup is removed", || {
        (!std::path::Path::new(&recorded).exists()).then_some(())
    });
}

#[test]
fn a_job_with_too_much_memory_is_ended_and_says_so() {
    let env = TestEnv::new();
    let (_broker, _executor) = (env.broker(), env.executor("apart", 1));
    let greedy = "dd if=/dev/zero of=/dev/null bs=200M count=1";
    let job = submit(&env, &["--needs", "memory=64M"], greedy);
    let line = result(&env, &job);
    assert_eq!(line["state"], "failed", "{line}");
    if standing(&env)["cgroup-memory"] == "enforced" {
        assert_eq!(line["error"], "killed: it used more than its 64M of memory");
    } else {
        skipped("cgroup-memory");
        assert!(line["stderr"].as_str().expect("text").contains("memory exhausted"), "{line}");
    }
    assert_eq!(result(&env, &submit(&env, &[], greedy))["state"], "succeeded");
}
