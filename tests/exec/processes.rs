//! No process outlives its job, whatever the job or the executor does.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::*;

/// Leaves a daemon in a session of its own with a child, and one with a cleared environment.
const DAEMONS: &str = "(setsid sh -c 'sleep 1000 & sleep 1000' &) ; \
                       (env -i TEST_MARK=$TEST_MARK setsid setsid sleep 1000 &) ; sleep 1000 & ";

#[test]
fn a_daemon_that_a_job_left_is_gone_when_the_job_has_ended() {
    let env = TestEnv::new();
    let (_broker, _executor) = (env.broker(), env.executor("left", 2));
    let job = submit(&env, &[], &format!("{DAEMONS} echo done"));
    assert_eq!(result(&env, &job)["stdout"], "done\n");
    assert_eq!(marked(&mark(&env)), [0; 0]);
}

#[test]
fn a25_a_killed_executor_leaves_no_process_of_its_jobs() {
    let env = TestEnv::new();
    let (_broker, executor) = (env.broker(), env.executor("left", 4));
    for _ in 0..4 {
        submit(&env, &[], &format!("{DAEMONS} {}", held(&env, "echo done")));
    }
    wait_for_lines(&env, "up", 4);
    assert!(marked(&mark(&env)).len() >= 16);
    executor.kill();
    wait_until("no process of a job is left", || marked(&mark(&env)).is_empty().then_some(()));
}

#[test]
fn the_spawner_takes_no_signal_and_serves_on() {
    let env = TestEnv::new();
    let (_broker, executor) = (env.broker(), env.executor("left", 1));
    let spawner = Pid::from_raw(spawner_of(&executor));
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
        kill(spawner, signal).expect("it is there");
    }
    env.submit().args(["--", "echo", "hi"]).assert().success().stdout("hi\n");
    kill(spawner, None).expect("it is there");
}

#[test]
fn without_its_spawner_an_executor_kills_what_ran_and_ends_with_70() {
    let env = TestEnv::new();
    let (_broker, mut executor) = (env.broker(), env.executor("left", 2));
    submit(&env, &[], &format!("{DAEMONS} {}", held(&env, "echo done")));
    wait_for_lines(&env, "up", 1);
    kill(Pid::from_raw(spawner_of(&executor)), Signal::SIGKILL).expect("it is there");
    assert_eq!(executor.wait().code(), Some(70));
    assert_eq!(marked(&mark(&env)), [0; 0]);
    assert!(
        executor.stderr().contains("ucp-exec: the process that starts and kills jobs has died")
    );
}

#[test]
fn a_job_whose_time_is_over_is_killed_as_a_tree() {
    let env = TestEnv::new();
    let (_broker, _executor) = (env.broker(), env.executor("left", 1));
    let job = submit(&env, &["--timeout", "300ms"], &format!("{DAEMONS} sleep 1000"));
    let result = result(&env, &job);
    assert_eq!((&result["state"], &result["timed_out"]), (&"failed".into(), &true.into()));
    assert_eq!(result["signal"], 15);
    assert_eq!(marked(&mark(&env)), [0; 0]);
}

#[test]
fn a_job_that_ignores_the_polite_signal_is_killed() {
    let env = TestEnv::new();
    let (_broker, _executor) = (env.broker(), env.executor("left", 1));
    let script = "trap '' TERM; while :; do sleep 0.1; done";
    let job = submit(&env, &["--timeout", "100ms"], script);
    assert_eq!(result(&env, &job)["signal"], 9);
    assert_eq!(marked(&mark(&env)), [0; 0]);
}

#[test]
fn a_job_has_an_environment_of_a_megabyte() {
    let env = TestEnv::new();
    let (_broker, _executor) = (env.broker(), env.executor("left", 1));
    let long = "x".repeat(131_000);
    let given: Vec<String> = (0..9).map(|n| format!("LONG{n}={long}")).collect();
    let flags: Vec<&str> = given.iter().flat_map(|pair| ["--env", pair.as_str()]).collect();
    let line = result(&env, &submit(&env, &flags, "env | wc -c"));
    let count = line["stdout"].as_str().and_then(|text| text.trim().parse::<u32>().ok());
    assert!(count.is_some_and(|count| count > 1 << 20), "{line}");
}

#[test]
fn a_program_that_is_absent_or_no_program_is_said_to_be() {
    let env = TestEnv::new();
    let (_broker, _executor) = (env.broker(), env.executor("left", 1));
    for (program, status, words) in [
        ("no-such-program", 127, "was not found"),
        ("/no/such/program", 127, "was not found"),
        ("/etc/passwd", 126, "cannot be executed: Permission denied"),
        ("/etc", 126, "cannot be executed: Permission denied"),
    ] {
        let output = env.run("ucp-submit", &["--detach", "--", program]);
        let job = String::from_utf8(output.stdout).expect("an id");
        let line = result(&env, job.trim());
        assert_eq!(line["exit"], status, "{line}");
        assert!(line["error"].as_str().expect("text").contains(words), "{line}");
    }
}

#[test]
fn a_cancelled_job_leaves_no_process() {
    let env = TestEnv::new();
    let (_broker, _executor) = (env.broker(), env.executor("left", 1));
    let job = submit(&env, &[], &format!("{DAEMONS} {}", held(&env, "echo done")));
    wait_for_lines(&env, "up", 1);
    assert!(env.run("ucp-submit", &["cancel", &job]).status.success());
    assert_eq!(result(&env, &job)["state"], "cancelled");
    wait_until("no process of the job is left", || marked(&mark(&env)).is_empty().then_some(()));
}
