//! Files in and out, and that nothing of them stays.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use nix::sys::signal::Signal;
use serde_json::json;
use ucp::proto::id::Digest;

use super::*;

/// One request to the broker; the status and the body.
fn http(env: &TestEnv, method: &str, path: &str, body: &[u8]) -> (u16, Vec<u8>) {
    let mut stream = UnixStream::connect(env.socket()).expect("a broker");
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).expect("taken");
    stream.write_all(body).expect("taken");
    let mut answer = vec![];
    stream.read_to_end(&mut answer).expect("an answer");
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
    let status = String::from_utf8_lossy(&answer[9..12]).parse().expect("a status");
    (status, answer[end + 4..].to_vec())
}

/// Gives the broker a blob.
fn put(env: &TestEnv, bytes: &[u8]) -> String {
    let digest = Digest::of(bytes).to_string();
    let (status, body) = http(env, "PUT", &format!("/v1/blobs/{digest}"), bytes);
    assert!(status < 300, "{}", String::from_utf8_lossy(&body));
    digest
}

/// Hands a spec in; gives the job's id.
fn spec(env: &TestEnv, spec: &Value) -> String {
    let (status, body) =
        http(env, "POST", "/v1/jobs", json!({"spec": spec}).to_string().as_bytes());
    let text = String::from_utf8_lossy(&body).into_owned();
    assert_eq!(status, 201, "{text}");
    let start = text.find('{').expect("JSON");
    let line: Value = serde_json::from_str(text[start..].lines().next().expect("a line"))
        .unwrap_or_else(|error| panic!("{error} in {text}"));
    line["job"].as_str().expect("an id").to_owned()
}

fn shell(script: &str) -> Value {
    json!(["sh", "-c", script])
}

/// The content of an output, from the broker.
fn output(env: &TestEnv, result: &Value, path: &str) -> Vec<u8> {
    let digest = result["outputs"][path]["blob"].as_str();
    let digest = digest.unwrap_or_else(|| panic!("no output {path} in {result}"));
    let found = env.path("state/ucp/broker/blobs").join(&digest[..2]).join(&digest[2..]);
    std::fs::read(found).expect("the broker has it")
}

/// Waits until an executor keeps nothing but empty rooms.
fn nothing_is_left(env: &TestEnv, executor: &str) {
    let is_empty = |path: &PathBuf| path.read_dir().is_ok_and(|mut found| found.next().is_none());
    wait_until("nothing is left", || {
        let kept = |name: &str| files(env, &format!("{executor}/{name}"));
        let rooms = kept("rooms");
        let fresh = |room: &PathBuf| {
            let name = room.file_name().and_then(|name| name.to_str()).unwrap_or("");
            let names: Vec<_> = room.read_dir().into_iter().flatten().flatten().collect();
            name.parse::<u32>().is_ok()
                && names.len() == 3
                && names.iter().all(|entry| is_empty(&entry.path()))
        };
        (kept("spool").is_empty()
            && kept("output").is_empty()
            && kept("checkpoints").is_empty()
            && rooms.iter().all(fresh))
        .then_some(())
    });
}

#[test]
fn inputs_are_there_with_their_modes_in_a_directory_of_the_jobs_own() {
    let env = TestEnv::new();
    let (_broker, _executor) = (env.broker(), env.executor("left", 1));
    let long = noise(300_000);
    let blob = put(&env, &long);
    let script = "cat in/deep/text; ./run; stat -c '%a %n' in in/deep/text run out; \
                  cat bytes | od -An -tx1; cksum <blob; echo more >>blob; \
                  pwd; echo $TMPDIR; ls -A $TMPDIR";
    let job = json!({
        "command": shell(script),
        "dirs": ["out"],
        "inputs": {
            "in/deep/text": {"text": "text\n"},
            "run": {"text": "#!/bin/sh\necho it runs\n", "executable": true},
            "bytes": {"base64": "/wA="},
            "blob": {"blob": blob},
        },
    });
    std::fs::write(env.path("long"), &long).expect("room");
    let sum = std::process::Command::new("cksum")
        .stdin(std::fs::File::open(env.path("long")).expect("it is there"))
        .output()
        .expect("cksum");
    let room = env.path("left/rooms/0").canonicalize();
    for round in 0..3 {
        // The blob of the cache is not the one that the job before wrote to.
        let result = result(&env, &spec(&env, &job));
        let room = room.as_ref().map_or(env.path("left/rooms/0"), Clone::clone);
        let expected = format!(
            "text\nit runs\n755 in\n644 in/deep/text\n755 run\n755 out\n ff 00\n{}{}\n{}\n",
            String::from_utf8_lossy(&sum.stdout),
            room.join("work").display(),
            room.join("tmp").display(),
        );
        assert_eq!(result["stdout"], expected, "round {round}: {result}");
    }
    assert_eq!(files(&env, "left/cache/blobs").len(), 1);
    nothing_is_left(&env, "left");
    // A damaged blob of the cache is found and fetched again.
    std::fs::write(files(&env, "left/cache/blobs").remove(0), "damaged").expect("ours");
    let job = json!({"command": ["cksum"], "stdin": {"blob": blob}});
    let result = result(&env, &spec(&env, &job));
    assert_eq!(result["stdout"], String::from_utf8_lossy(&sum.stdout).as_ref());
}

#[test]
fn what_cannot_be_had_is_named() {
    let env = TestEnv::new();
    let (_broker, _executor) = (env.broker(), env.executor("left", 1));
    let absent = Digest::of(b"absent").to_string();
    let job = json!({"command": ["true"], "inputs": {"a/b": {"blob": absent}}});
    let result = result(&env, &spec(&env, &job));
    assert_eq!((&result["state"], &result["exit"]), (&"failed".into(), &126.into()), "{result}");
    let error = result["error"].as_str().expect("words");
    assert!(error.starts_with("input \"a/b\": blob ") && error.contains("is not here"), "{error}");
    nothing_is_left(&env, "left");
}

#[test]
fn outputs_come_back_by_path_pattern_and_directory() {
    let env = TestEnv::new();
    let (_broker, _executor) = (env.broker(), env.executor("left", 1));
    let script = "echo a >a.txt; mkdir -p out/deep; echo b >out/b.csv; echo c >out/deep/c.csv; \
                  echo d >d.log; chmod +x a.txt; ln -s out/b.csv link; echo no >kept-not";
    let job = json!({
        "command": shell(script),
        "outputs": ["a.txt", "*.log", "**/*.csv", "out/deep", "link", "none*"],
    });
    let result = result(&env, &spec(&env, &job));
    assert_eq!(result["state"], "succeeded", "{result}");
    let outputs = result["outputs"].as_object().expect("outputs");
    let expected = [
        ("a.txt", "a\n"),
        ("d.log", "d\n"),
        ("link", "b\n"),
        ("out/b.csv", "b\n"),
        ("out/deep/c.csv", "c\n"),
    ];
    assert_eq!(outputs.len(), expected.len(), "{outputs:?}");
    for (path, text) in expected {
        assert_eq!(output(&env, &result, path), text.as_bytes());
        assert_eq!(outputs[path]["size"], 2);
        assert_eq!(outputs[path].get("executable"), (path == "a.txt").then_some(&true.into()));
    }
    nothing_is_left(&env, "left");
}

#[test]
fn outputs_that_are_not_there_or_lead_away_make_a_failure_that_names_them() {
    let env = TestEnv::new();
    let (_broker, _executor) = (env.broker(), env.executor("left", 2));
    for (script, wanted, words) in [
        ("true", "absent", "output \"absent\" was not made"),
        ("ln -s /etc/passwd x", "x", "output \"x\" is a link that leads out"),
        ("ln -s ../../../identity.json x", "x", "output \"x\" is a link that leads out"),
        ("ln -s /etc x", "x/passwd", "output \"x/passwd\" is a link that leads out"),
        ("mkdir d; ln -s ../.. d/x", "d", "output \"d/x\" is a link that leads out"),
        ("mkfifo x", "x", "output \"x\" is a fifo"),
        ("ln -s /dev/zero x", "x", "output \"x\" is a link that leads out"),
        ("mkdir d; for i in $(seq 10001); do : >d/$i; done", "d", "more than 10000 files"),
    ] {
        let job = spec(&env, &json!({"command": shell(script), "outputs": [wanted]}));
        let result = result(&env, &job);
        assert_eq!((&result["state"], &result["exit"]), (&"failed".into(), &0.into()), "{result}");
        let error = result["error"].as_str().expect("words");
        assert!(error.contains(words), "{script}: {error}");
        assert_eq!(result.get("outputs"), None);
    }
    // What the job puts in the place of its directory is not ours to take.
    std::fs::create_dir(env.path("victim")).expect("room");
    std::fs::write(env.path("victim/precious"), "mine").expect("room");
    let victim = env.path("victim").display().to_string();
    for script in [format!("cd ..; mv work old; ln -s {victim} work"), "rm -r ../work".to_owned()] {
        let job = json!({"command": shell(&script), "outputs": ["precious"]});
        let result = result(&env, &spec(&env, &job));
        let error = result["error"].as_str().expect("words");
        assert!(error.contains("directory cannot be read"), "{error}");
    }
    assert_eq!(env.lines("victim/precious"), ["mine"]);
    let job = json!({"command": shell("echo a >made; exit 3"), "outputs": ["made", "absent"]});
    let result = result(&env, &spec(&env, &job));
    assert_eq!((&result["exit"], result.get("error")), (&3.into(), None), "{result}");
    assert_eq!(output(&env, &result, "made"), b"a\n");
    nothing_is_left(&env, "left");
}

#[test]
fn a_long_output_takes_little_memory() {
    let env = TestEnv::new();
    let (_broker, executor) = (env.broker(), env.executor("left", 1));
    let job = json!({"command": ["truncate", "-s", "256M", "big"], "outputs": ["big"]});
    let result = result(&env, &spec(&env, &job));
    assert_eq!(result["outputs"]["big"]["size"], 256 << 20, "{result}");
    let status = std::fs::read_to_string(format!("/proc/{}/status", executor.pid()));
    let status = status.expect("it lives");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().expect("a number");
    assert!(peak < 128 << 10, "{peak} kB");
    nothing_is_left(&env, "left");
}

#[test]
fn no_attempt_sees_files_of_another() {
    let env = TestEnv::new();
    let (_broker, _executor) = (env.broker(), env.executor("left", 1));
    let flag = env.path("flag").display().to_string();
    let script = format!(
        "ls -A . $TMPDIR | grep -v : ; echo x >a; echo x >$TMPDIR/b; mkdir -m 0 none; chmod 500 .; \
         [ -e {flag} ] || {{ : >{flag}; exit 1; }}"
    );
    let result = result(&env, &spec(&env, &json!({"command": shell(&script), "retries": 1})));
    assert_eq!((&result["state"], &result["stdout"]), (&"succeeded".into(), &"\n".into()));
    nothing_is_left(&env, "left");
}

#[test]
fn nothing_is_left_of_jobs_that_were_cancelled_timed_out_or_killed_with_their_executor() {
    let env = TestEnv::new();
    let (_broker, executor) = (env.broker(), env.executor("left", 1));
    let script = "mkdir -p a/b; echo x >a/b/c; echo up >>$UP; sleep 1000";
    let up = env.path("up").display().to_string();
    let begin = |more: Value| {
        let mut job = json!({
            "command": shell(script), "env": {"UP": up}, "outputs": ["a"],
            "inputs": {"in": {"text": "x"}},
        });
        let all = job.as_object_mut().expect("an object");
        all.extend(more.as_object().expect("an object").clone());
        spec(&env, &job)
    };
    let timed = begin(json!({"timeout": "300ms"}));
    let result = super::result(&env, &timed);
    assert_eq!(result["timed_out"], true, "{result}");
    assert_eq!(output(&env, &result, "a/b/c"), b"x\n", "of a job whose time was over as well");
    nothing_is_left(&env, "left");
    let cancelled = begin(json!({}));
    wait_for_lines(&env, "up", 2);
    assert!(env.run("ucp-submit", &["cancel", &cancelled]).status.success());
    nothing_is_left(&env, "left");
    let killed = begin(json!({}));
    wait_for_lines(&env, "up", 3);
    assert!(env.path("left/rooms/0/work/a/b/c").exists());
    executor.kill();
    let mut executor = env.executor("left", 1);
    wait_for_lines(&env, "up", 4);
    assert!(env.run("ucp-submit", &["cancel", &killed]).status.success());
    nothing_is_left(&env, "left");
    executor.signal(Signal::SIGTERM);
    assert_eq!(executor.wait().code(), Some(0));
    nothing_is_left(&env, "left");
}

#[test]
fn a25_outputs_outlive_broker_and_executor() {
    let env = TestEnv::new();
    let (broker, executor) = (env.broker(), env.executor("left", 1));
    let script = held(&env, "mkdir out; head -c 500000 /dev/zero >out/a; echo b >out/b");
    let job = spec(&env, &json!({"command": shell(&script), "outputs": ["out"]}));
    wait_for_lines(&env, "up", 1);
    broker.kill();
    release(&env);
    wait_until("the result is on disk", || {
        let spooled = files(&env, "left/spool");
        spooled.iter().any(|path| path.extension() == Some("json".as_ref())).then_some(())
    });
    assert_eq!(files(&env, "left/output").len(), 2);
    executor.kill();
    // What no result names goes.
    std::fs::write(env.path("left/output/left-1.1.out-0"), "x").expect("room");
    let (_broker, _executor) = (env.broker(), env.executor("left", 1));
    let result = result(&env, &job);
    assert_eq!(result["state"], "succeeded", "{result}");
    assert!(output(&env, &result, "out/a") == vec![0; 500_000]);
    assert_eq!(output(&env, &result, "out/b"), b"b\n");
    assert_eq!(env.lines("up").len(), 1, "it ran once");
    nothing_is_left(&env, "left");
}

#[test]
fn a27_a_data_directory_of_a_newer_version_is_refused_and_not_touched() {
    let env = TestEnv::new();
    let data = env.path("left");
    std::fs::create_dir(&data).expect("room");
    std::fs::write(data.join("identity.json"), r#"{"v":2,"who":"ever"}"#).expect("room");
    std::fs::create_dir_all(data.join("rooms/7")).expect("room");
    let output = env.run("ucp-exec", &["--data", data.to_str().expect("text")]);
    assert_eq!(output.status.code(), Some(76));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("identity.json is of version 2"), "{said}");
    let mut left = files(&env, "left");
    left.sort();
    assert_eq!(left, ["identity.json", "lock", "rooms"].map(|name| data.join(name)));
    assert!(data.join("rooms/7").exists());
}

/// A small file system of its own, gone at the end; nothing where this user may not mount.
struct Small(PathBuf);

impl Small {
    fn mount(at: PathBuf) -> Option<Self> {
        std::fs::create_dir(&at).expect("room");
        let options = ["-t", "tmpfs", "-o", "size=4m,mode=0700", "ucp-test"];
        let mounted = std::process::Command::new("mount").args(options).arg(&at).output();
        mounted.is_ok_and(|mounted| mounted.status.success()).then_some(Self(at))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

#[test]
#[allow(clippy::print_stderr, reason = "a test that cannot run here says so")]
fn a19_a_full_disk_at_the_executor_fails_jobs_clearly_and_passes() {
    let env = TestEnv::new();
    let Some(_small) = Small::mount(env.path("left")) else {
        eprintln!("SKIPPED: only root may mount the small disk that this test fills");
        return;
    };
    let (broker, executor) = (env.broker(), env.executor("left", 1));
    let long = put(&env, &noise(8_000_000));
    let run = |job: Value| result(&env, &spec(&env, &job));
    let full = run(json!({"command": ["true"], "inputs": {"a": {"blob": long}}}));
    assert_eq!((&full["state"], &full["exit"]), (&"failed".into(), &126.into()), "{full}");
    let error = full["error"].as_str().expect("words");
    assert!(error.starts_with("input \"a\"") && error.contains("No space left"), "{error}");
    let full = run(json!({"command": shell("head -c 8M /dev/zero >fills"), "outputs": ["fills"]}));
    assert_eq!(full["exit"], 1, "{full}");
    let cut = run(json!({"command": shell("head -c 8M /dev/zero; exit 0")}));
    assert_eq!((&cut["state"], &cut["truncated"]), (&"succeeded".into(), &true.into()), "{cut}");
    let fine = run(json!({"command": shell("echo fine >a; cat a"), "outputs": ["a"]}));
    assert_eq!((&fine["state"], &fine["stdout"]), (&"succeeded".into(), &"fine\n".into()));
    nothing_is_left(&env, "left");
    // A result that cannot be written waits in memory.
    let job = spec(&env, &json!({"command": shell(&held(&env, "echo done"))}));
    wait_for_lines(&env, "up", 1);
    broker.kill();
    let filled = std::fs::File::create(env.path("left/filled")).expect("a file");
    wait_until("the disk is full", || (&filled).write_all(&[0; 4096]).is_err().then_some(()));
    wait_until("to the last byte", || (&filled).write_all(&[0]).is_err().then_some(()));
    release(&env);
    wait_until("it is held", || executor.stderr().contains("held in memory").then_some(()));
    let _broker = env.broker();
    assert_eq!(result(&env, &job)["stdout"], "done\n");
    let full = run(json!({"command": ["true"], "inputs": {"a": {"text": "some text"}}}));
    assert_eq!(full["state"], "failed", "{full}");
    std::fs::remove_file(env.path("left/filled")).expect("ours");
    drop(filled);
    let fine = run(json!({"command": shell("cat a"), "inputs": {"a": {"text": "fine"}}}));
    assert_eq!((&fine["state"], &fine["stdout"]), (&"succeeded".into(), &"fine".into()), "{fine}");
    nothing_is_left(&env, "left");
    drop(executor);
}
