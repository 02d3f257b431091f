//! What jobs are given, and what of them comes back.

use super::*;

#[test]
fn jobs_know_which_they_are_and_inherit_little() {
    let env = TestEnv::new();
    let (_broker, _executor) = (env.broker(), env.executor("left", 1));
    let job = submit(&env, &["--env", "LANG=xx"], "env; pwd");
    let result = result(&env, &job);
    let text = result["stdout"].as_str().expect("text").to_owned();
    let variable = |name: &str| {
        let prefix = format!("{name}=");
        let value = text.lines().find_map(|line| line.strip_prefix(&prefix));
        value.unwrap_or_else(|| panic!("{name} in {text}"))
    };
    assert_eq!(variable("UCP_JOB_ID"), job);
    let (log, seq) = (&result["attempt"][0], &result["attempt"][1]);
    let log = log.as_str().expect("a log");
    assert_eq!(variable("UCP_JOB_ATTEMPT"), format!("{log}.{seq}"));
    let seq = seq.as_u64().expect("a number");
    assert_eq!(variable("UCP_JOB_FENCE"), format!("{:016}.{log}.{seq:016}", 1));
    assert_eq!(variable("LANG"), "xx");
    assert!(!text.contains("XDG_RUNTIME_DIR") && !text.contains("NO_COLOR"), "{text}");
    let pwd = text.lines().last().expect("a line");
    assert_eq!(pwd, env.path("left/rooms/0/work").display().to_string());
}

#[test]
fn exit_statuses_and_signals_come_back_as_they_are() {
    let env = TestEnv::new();
    let (_broker, _executor) = (env.broker(), env.executor("left", 2));
    for (script, member, value) in [
        ("exit 7", "exit", 7),
        ("exit 255", "exit", 255),
        ("kill -SEGV $$", "signal", 11),
        ("kill -PIPE $$", "signal", 13),
        ("exec /etc/passwd", "exit", 126),
    ] {
        let result = result(&env, &submit(&env, &[], script));
        assert_eq!(result[member], value, "{script}: {result}");
        assert_eq!(result["state"], "failed");
    }
}

#[test]
fn what_cannot_be_started_says_why() {
    let env = TestEnv::new();
    let (_broker, _executor) = (env.broker(), env.executor("left", 1));
    for (program, exit, words) in [
        ("no-such-program", 127, "was not found"),
        ("/no/such/program", 127, "was not found"),
        ("/etc/passwd", 126, "cannot be executed: Permission denied"),
    ] {
        let output = env.run("ucp-submit", &["--detach", "--", program]);
        let job = String::from_utf8(output.stdout).expect("an id");
        let result = result(&env, job.trim());
        assert_eq!(result["exit"], exit, "{result}");
        let error = result["error"].as_str().expect("words");
        assert!(error.contains(words) && error.contains(program), "{error}");
    }
}

#[test]
fn output_comes_back_byte_for_byte() {
    let env = TestEnv::new();
    let (_broker, _executor) = (env.broker(), env.executor("left", 1));
    let bytes = noise(1_000_000);
    std::fs::write(env.path("bytes"), &bytes).expect("room");
    for size in [0, 1, 1000, 32 << 10, (32 << 10) + 1, 64 << 10, bytes.len()] {
        let script = format!("head -c {size} {}", env.path("bytes").display());
        env.submit()
            .args(["--", "sh", "-c", &script])
            .assert()
            .success()
            .stdout(bytes[..size].to_vec());
        let both = format!("{script}; {script} >&2");
        let job = submit(&env, &[], &both);
        assert_eq!(result(&env, &job)["state"], "succeeded");
        for flag in [&["output"][..], &["output", "--stderr"]] {
            let output = env.run("ucp-submit", &[flag, &[job.as_str()]].concat());
            assert!(output.stdout == bytes[..size], "{size} bytes by {flag:?}");
        }
    }
    wait_until("no output is kept any more", || {
        files(&env, "left/output").is_empty().then_some(())
    });
    wait_until("no result is kept any more", || files(&env, "left/spool").is_empty().then_some(()));
}

#[test]
fn standard_input_comes_in_byte_for_byte() {
    let env = TestEnv::new();
    let (_broker, _executor) = (env.broker(), env.executor("left", 1));
    let bytes = noise(400_000);
    for size in [0, 1, 64 << 10, (64 << 10) + 1, bytes.len()] {
        std::fs::write(env.path("stdin"), &bytes[..size]).expect("room");
        let path = env.path("stdin").display().to_string();
        let arguments = ["--stdin", &path, "--", "cat"];
        env.submit().args(arguments).assert().success().stdout(bytes[..size].to_vec());
    }
    env.submit().args(["--", "cat"]).assert().success().stdout("");
}

#[test]
fn live_output_comes_before_the_end() {
    let env = TestEnv::new();
    let (_broker, _executor) = (env.broker(), env.executor("left", 1));
    let mut command = env.command("ucp-submit");
    // Lines as JSON, so that they can be read as a daemon's.
    command.args([
        "--",
        "sh",
        "-c",
        &held(&env, "echo '{\"n\":2}'").replacen("echo up", "echo '{\"n\":1}'; echo up", 1),
    ]);
    let mut follower = Daemon::start(command, &env.path("follower.err"));
    assert_eq!(follower.line()["n"], 1);
    release(&env);
    assert_eq!(follower.line()["n"], 2);
    assert_eq!(follower.wait().code(), Some(0));
}

#[test]
fn a_job_that_writes_faster_than_its_follower_reads_is_not_lost() {
    let env = TestEnv::new();
    let (_broker, _executor) = (env.broker(), env.executor("left", 1));
    let script = "i=0; while [ $i -lt 2000 ]; do printf '%01000d' $i; i=$((i+1)); done";
    let expected: String = (0..2000).map(|n| format!("{n:01000}")).collect();
    env.submit().args(["--", "sh", "-c", script]).assert().success().stdout(expected);
}
