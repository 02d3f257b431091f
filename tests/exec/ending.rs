//! How an executor ends, and what outlives it and its broker.

use nix::sys::signal::Signal;

use super::*;

#[test]
fn a36_a_drained_executor_lets_jobs_end_and_takes_nothing_new() {
    let env = TestEnv::new();
    let (_broker, mut executor) = (env.broker(), env.executor("left", 2));
    let running = submit(&env, &[], &held(&env, "echo done"));
    wait_for_lines(&env, "up", 1);
    executor.signal(Signal::SIGTERM);
    wait_until("the broker knows", || {
        let output = env.run("ucp-broker", &["executors", "--json"]);
        String::from_utf8_lossy(&output.stdout).contains("draining").then_some(())
    });
    let late = submit(&env, &[], "echo late");
    assert!(executor.is_alive());
    release(&env);
    assert_eq!(executor.wait().code(), Some(0));
    assert_eq!(result(&env, &running)["stdout"], "done\n");
    assert_eq!(show(&env, &late)["state"], "waiting");
    let _right = env.executor("right", 1);
    assert_eq!(result(&env, &late)["stdout"], "late\n");
    assert_eq!(show(&env, &running)["attempts"].as_array().expect("attempts").len(), 1);
}

#[test]
fn a36_a_drain_ends_in_time_and_hands_jobs_back() {
    let env = TestEnv::new();
    let broker = env.broker();
    let mut executor = env.executor_with("left", &["--drain-timeout", "200ms"]);
    let job = submit(&env, &[], &held(&env, "echo done"));
    wait_for_lines(&env, "up", 1);
    executor.signal(Signal::SIGINT);
    assert_eq!(executor.wait().code(), Some(0));
    assert_eq!(marked(&mark(&env)), [0; 0]);
    release(&env);
    let _right = env.executor("right", 1);
    assert_eq!(result(&env, &job)["stdout"], "done\n");
    let shown = show(&env, &job);
    let attempts = shown["attempts"].as_array().expect("attempts");
    assert_eq!((attempts.len(), &attempts[0]["state"]), (2, &"revoked".into()));
    drop(broker);
}

#[test]
fn a_second_signal_is_obeyed_at_once() {
    let env = TestEnv::new();
    let (_broker, mut executor) = (env.broker(), env.executor("left", 1));
    submit(&env, &[], &held(&env, "echo done"));
    wait_for_lines(&env, "up", 1);
    executor.signal(Signal::SIGTERM);
    wait_until("the first one is taken", || {
        let output = env.run("ucp-broker", &["executors", "--json"]);
        String::from_utf8_lossy(&output.stdout).contains("draining").then_some(())
    });
    executor.signal(Signal::SIGTERM);
    assert_eq!(executor.wait().code(), Some(143));
    wait_until("no process of the job is left", || marked(&mark(&env)).is_empty().then_some(()));
}

#[test]
fn jobs_outlive_their_broker() {
    let env = TestEnv::new();
    let (broker, mut executor) = (env.broker(), env.executor("left", 1));
    let job = submit(&env, &[], &held(&env, "echo done"));
    wait_for_lines(&env, "up", 1);
    let before = marked(&mark(&env));
    broker.kill();
    let _broker = env.broker();
    wait_until("the executor is back", || {
        executor.stderr().contains("registered again").then_some(())
    });
    assert_eq!(marked(&mark(&env)).first(), before.first());
    release(&env);
    assert_eq!(result(&env, &job)["stdout"], "done\n");
    assert_eq!(show(&env, &job)["attempts"].as_array().expect("attempts").len(), 1);
    assert_eq!(env.lines("up").len(), 1);
    assert!(executor.is_alive());
}

#[test]
fn a25_a_result_outlives_broker_and_executor() {
    let env = TestEnv::new();
    let (broker, executor) = (env.broker(), env.executor("left", 1));
    let job = submit(&env, &[], &held(&env, "head -c 500000 /dev/zero"));
    wait_for_lines(&env, "up", 1);
    broker.kill();
    release(&env);
    wait_until("the result is on disk", || {
        let spooled = files(&env, "left/spool");
        spooled.iter().any(|path| path.extension() == Some("json".as_ref())).then_some(())
    });
    executor.kill();
    let (_broker, _executor) = (env.broker(), env.executor("left", 1));
    assert_eq!(result(&env, &job)["state"], "succeeded");
    assert_eq!(show(&env, &job)["attempts"].as_array().expect("attempts").len(), 1);
    let output = env.run("ucp-submit", &["output", &job]);
    assert!(output.stdout == vec![0; 500_000]);
    assert_eq!(env.lines("up").len(), 1, "it ran once");
    wait_until("nothing is kept any more", || {
        (files(&env, "left/spool").is_empty() && files(&env, "left/output").is_empty())
            .then_some(())
    });
}
