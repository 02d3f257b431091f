//! How an executor starts: who it is, what it has, what it refuses.

use super::*;

#[test]
fn an_executor_keeps_its_identity_and_says_what_it_has() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let labels = ["--slots", "3", "--memory", "64M", "--label", "gpu=a100"];
    let executor = env.executor_with("van2", &labels);
    let identity = executor.ready["executor"].as_str().expect("an id").to_owned();
    assert!(identity.starts_with("van2-") && identity.len() == 13, "{identity}");
    assert_eq!(executor.ready["pid"], executor.pid());
    assert_eq!(executor.ready["broker"], format!("unix:{}", env.socket().display()));
    let output = env.run("ucp-broker", &["executors", "--json"]);
    let line: Value = serde_json::from_slice(&output.stdout).expect("one line");
    assert_eq!(line["executor"], identity.as_str());
    let capability = &line["capability"];
    assert_eq!((&capability["slots"], &capability["memory"]), (&3.into(), &"64M".into()));
    assert_eq!(capability["labels"]["gpu"], "a100");
    assert_eq!(capability["arch"], std::env::consts::ARCH);
    executor.kill();
    let again = env.executor("van2", 1);
    assert_eq!(again.ready["executor"], identity.as_str());
}

#[test]
fn a_second_process_on_the_same_data_is_refused() {
    let env = TestEnv::new();
    let (_broker, _executor) = (env.broker(), env.executor("left", 1));
    let data = env.path("left").display().to_string();
    let output = env.run("ucp-exec", &["--data", &data]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(75), "{said}");
    assert!(said.starts_with("ucp-exec: ") && said.contains("in use by another process"), "{said}");
    assert!(output.stdout.is_empty());
}

#[test]
fn what_is_wrong_is_said_before_anything_starts() {
    let env = TestEnv::new();
    let data = env.path("left").display().to_string();
    for (arguments, status, words) in [
        (&["--slots", "0"][..], 64, "--slots"),
        (&["--label", "gpu"], 64, "--label"),
        (&["--name", "a b"], 64, "--name"),
        (&["--heartbeat", "0s"], 64, "--heartbeat"),
        (&["--broker", "nowhere"], 64, "--broker"),
        (&["--checkpoint-interval", "0s"], 64, "--checkpoint-interval"),
        (&["--checkpoint-interval", "99ms"], 64, "use 100ms to "),
    ] {
        let output = env.run("ucp-exec", &[&["--data", &data], arguments].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {said}");
        assert!(said.contains(words) && said.starts_with("ucp-exec: "), "{said}");
    }
    let mut command = env.command("ucp-exec");
    let output = command.args(["--data", &data]).env("UCP_BROKER", "nowhere").output();
    assert_eq!(output.expect("it starts").status.code(), Some(78));
    std::fs::write(env.path("left/identity.json"), "{").expect("room");
    assert_eq!(env.run("ucp-exec", &["--data", &data]).status.code(), Some(65));
}

#[test]
fn an_executor_waits_for_its_broker() {
    let env = TestEnv::new();
    let mut command = env.command("ucp-exec");
    command.env("UCP_EXEC_SLOTS", "5").env("UCP_EXEC_NAME", "early");
    let mut executor = Daemon::start(command, &env.path("early.err"));
    wait_until("it has looked", || executor.stderr().contains("no broker answers").then_some(()));
    let _broker = env.broker();
    let ready = executor.line();
    assert!(ready["executor"].as_str().expect("an id").starts_with("early-"), "{ready}");
    let output = env.run("ucp-broker", &["executors", "--json"]);
    let line: Value = serde_json::from_slice(&output.stdout).expect("one line");
    assert_eq!(line["capability"]["slots"], 5);
}

#[test]
fn a_copy_of_a_data_directory_is_told_why_it_is_not_taken() {
    let env = TestEnv::new();
    let (_broker, first) = (env.broker(), env.executor("left", 1));
    std::fs::create_dir(env.path("copy")).expect("room");
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(env.path("copy"), private).expect("ours");
    std::fs::copy(env.path("left/identity.json"), env.path("copy/identity.json")).expect("room");
    let mut command = env.command("ucp-exec");
    command.arg("--data").arg(env.path("copy"));
    let copy = Daemon::start(command, &env.path("copy.err"));
    wait_until("it is told", || {
        copy.stderr().contains("is its data directory a copy?").then_some(())
    });
    assert!(!copy.stderr().contains("closed the session"), "{}", copy.stderr());
    drop((copy, first));
}

#[test]
fn an_executor_with_few_descriptors_takes_no_more_than_it_can_and_fails_no_job() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let program = env.command("ucp-exec").get_program().to_owned();
    let mut command = env.command("ucp-exec");
    let script = "ulimit -n 64; exec \"$0\" \"$@\"";
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", script]).arg(program).args(["--slots", "50", "--data"]);
    shell.arg(env.path("few")).current_dir(env.path(""));
    for (name, value) in command.args(["x"]).get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    let mut few = Daemon::start(shell, &env.path("few.err"));
    assert_eq!(few.line()["type"], "ready");
    assert!(few.stderr().contains("are enough for 3 slots, not for 50"), "{}", few.stderr());
    let items: String = (0..60).map(|n| format!("{n}\n")).collect();
    let mut submit = env.submit();
    submit.args(["--each", "--", "sh", "-c", "echo {}"]).write_stdin(items);
    submit.assert().success();
}
