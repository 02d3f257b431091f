//! Files of ours in a job's directory, and what it leaves behind in a directory of ours.
//!
//! The executor is played, so that each result, also one that lies, is the test's own.

use std::collections::BTreeMap;
use std::io::{BufReader, Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use predicates::prelude::PredicateBooleanExt;
use predicates::str::contains;
use serde_json::{Value, json};
use ucp::proto::id::Digest;
use ucp::proto::result::{JobResult, OutputFile};

use crate::common::TestEnv;
use crate::peer::{Http, Played, hello, read_head, wrote};

fn write(env: &TestEnv, name: &str, content: &[u8]) {
    let path = env.path(name);
    std::fs::create_dir_all(path.parent().expect("a directory")).expect("made");
    std::fs::write(path, content).expect("written");
}

fn run_bit(env: &TestEnv, name: &str) {
    let bit = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(env.path(name), bit).expect("its mode");
}

/// The spec of a job that nobody runs.
fn spec_of(env: &TestEnv, arguments: &[&str]) -> Value {
    let run = env.run("ucp-submit", &[&["--detach"], arguments].concat());
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let job = String::from_utf8(run.stdout).expect("an id");
    let shown = env.run("ucp-submit", &["show", "--json", job.trim()]).stdout;
    let shown: Value = serde_json::from_slice(&shown).expect("a line");
    shown["spec"].clone()
}

/// What a played job leaves behind, kept by the broker as an executor would hand it over.
fn left(env: &TestEnv, files: &[(&str, &[u8], bool)]) -> JobResult {
    let http = Http(env.socket());
    let mut outputs = BTreeMap::new();
    for (path, content, executable) in files {
        let blob = Digest::of(content);
        let put = http.ask("PUT", &format!("/v1/blobs/{blob}"), "", content);
        assert_eq!(put.status, 201, "{}", put.text());
        let size = content.len() as u64;
        outputs.insert((*path).to_owned(), OutputFile { size, blob, executable: *executable });
    }
    JobResult { outputs, ..wrote(b"out\n", b"") }
}

/// Runs `ucp-submit` while one job of it ends with this result.
fn played(env: &TestEnv, arguments: &[&str], result: JobResult) -> Output {
    let mut executor = Played::join(&env.socket(), hello("played", 1));
    let mut submit = env.command("ucp-submit");
    submit.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let submit = submit.spawn().expect("it starts");
    let order = executor.start();
    executor.report(&order, result);
    submit.wait_with_output().expect("it ends")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn inputs_reach_the_spec_short_ones_inline_and_long_ones_as_blobs() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let long: Vec<u8> = (0..=250).cycle().take(100_000).collect();
    write(&env, "a.txt", b"short\n");
    write(&env, "bytes", b"\xff\x00");
    write(&env, "long", &long);
    write(&env, "tree/b/run", b"#!/bin/sh\n");
    write(&env, "tree/.hidden", b"");
    run_bit(&env, "tree/b/run");
    std::fs::create_dir(env.path("tree/empty")).expect("made");
    symlink("b/run", env.path("tree/link")).expect("a link");
    let spec = spec_of(
        &env,
        &["--in", "a.txt", "--in", "bytes=d/e", "--in", "long", "--in", "tree", "--", "ls"],
    );
    let digest = Digest::of(&long).to_string();
    let run = json!({"text": "#!/bin/sh\n", "executable": true});
    let expected = json!({
        "a.txt": {"text": "short\n"},
        "d/e": {"base64": "/wA="},
        "long": {"blob": digest},
        "tree/.hidden": {"text": ""},
        "tree/b/run": run,
        "tree/link": run,
    });
    assert_eq!(spec["inputs"], expected);
    assert_eq!(spec["dirs"], json!(["tree/empty"]));
    let kept = Http(env.socket()).get(&format!("/v1/blobs/{digest}"));
    assert_eq!((kept.status, kept.body), (200, long));
    let spec =
        spec_of(&env, &["--in", "tree/b=.", "--out", "./x//y/", "--out", "*.csv", "--", "ls"]);
    assert_eq!(spec["inputs"], json!({ "run": run }));
    assert_eq!(spec["outputs"], json!(["x/y", "*.csv"]));
    let mut piped = env.submit();
    piped.args(["--detach", "--in", "-=x", "--", "ls"]).write_stdin("piped").assert().success();
}

#[test]
fn the_files_of_each_are_blobs_that_are_sent_once() {
    let env = TestEnv::new();
    let _broker = env.broker();
    write(&env, "table", &[b'x'; 1_000]);
    let mut each = env.submit();
    let each = each.args(["--each", "--detach", "--in", "table", "--", "grep", "{}"]);
    let ids = each.write_stdin("a\nb\nc\n").assert().success().get_output().stdout.clone();
    let blob = json!({"table": {"blob": Digest::of(&[b'x'; 1_000]).to_string()}});
    let mut seen = 0;
    for id in String::from_utf8(ids).expect("ids").lines() {
        let shown = env.run("ucp-submit", &["show", "--json", id]).stdout;
        let shown: Value = serde_json::from_slice(&shown).expect("a line");
        assert_eq!(shown["spec"]["inputs"], blob);
        seen += 1;
    }
    assert_eq!(seen, 3);
}

#[test]
fn inputs_that_cannot_be_are_refused_and_nothing_is_submitted() {
    let env = TestEnv::new();
    let _broker = env.broker();
    write(&env, "a", b"x");
    write(&env, "other/a", b"y");
    for name in ["out", "lost", "dir"] {
        write(&env, &format!("{name}/file"), b"");
    }
    symlink("../a", env.path("out/link")).expect("a link");
    symlink("nowhere", env.path("lost/link")).expect("a link");
    symlink(".", env.path("dir/link")).expect("a link");
    std::fs::create_dir(env.path("pipe")).expect("made");
    nix::unistd::mkfifo(&env.path("pipe/p"), nix::sys::stat::Mode::S_IRWXU).expect("a fifo");
    for (given, code, words) in [
        (&["--in", "absent"][..], 66, "cannot read absent: "),
        (&["--in", "out"], 65, "out/link to the job: the link leads out of the directory"),
        (&["--in", "lost"], 65, "lost/link to the job: the link leads nowhere"),
        (&["--in", "dir"], 65, "dir/link to the job: the link leads to something else"),
        (&["--in", "pipe"], 65, "pipe/p to the job: it is neither a file nor a directory"),
        (&["--in", "a", "--in", "other/a"], 64, "\"a\" is there already"),
        (&["--in", "a=../b"], 64, "is no path in the job's directory"),
        (&["--in", "a=/b"], 64, "is no path in the job's directory"),
        (&["--in", "..", "--in", "a"], 64, "it has no name of its own"),
        (&["--stdin", "-", "--in", "-=x"], 64, "cannot both come from stdin"),
    ] {
        let mut submit = env.submit();
        submit.args(given).args(["--", "true"]);
        let told = contains(words).and(contains("ucp-submit: ").count(1));
        submit.assert().code(code).stdout("").stderr(told);
    }
    env.submit().args(["list", "--json"]).assert().success().stdout("");
}

#[test]
fn too_many_files_and_too_long_paths_are_clear_errors() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let name = |number: u32| format!("many/{number:0>240}");
    (0..9_000).for_each(|number| write(&env, &name(number), b""));
    let many = ["--in", "many", "--", "true"];
    let told = contains("a job is over 2097152 bytes of JSON").and(contains("hint: "));
    env.submit().args(many).assert().code(65).stdout("").stderr(told);
    (9_000..10_001).for_each(|number| write(&env, &name(number), b""));
    let told = contains("--in many: over 10000 files").and(contains("hint: give an archive"));
    env.submit().args(many).assert().code(65).stdout("").stderr(told);
    env.submit().args(["list", "--json"]).assert().success().stdout("");
}

#[test]
fn a_file_that_never_stops_changing_is_given_up() {
    let env = TestEnv::new();
    let _broker = env.broker();
    write(&env, "log", &vec![b'x'; 16 << 20]);
    let (path, stop) = (env.path("log"), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut log = std::fs::File::options().append(true).open(path).expect("it is there");
            while !stop.load(Ordering::Relaxed) {
                log.write_all(b"y").expect("written");
            }
        });
        let mut submit = env.submit();
        let run = submit.args(["--in", "log", "--", "true"]).assert();
        stop.store(true, Ordering::Relaxed);
        run.code(65).stdout("").stderr(contains("log changes while it is read"));
    });
    env.submit().args(["list", "--json"]).assert().success().stdout("");
}

/// A broker that changes a file between what the client reads and what it sends, and keeps what
/// it is given; ends when it was given a job.
fn meddler(listener: &UnixListener, file: &std::path::Path) -> (Vec<u16>, Value) {
    let (mut answers, mut meddled) = (vec![], false);
    loop {
        let (mut stream, _) = listener.accept().expect("a client");
        let mut reader = BufReader::new(stream.try_clone().expect("a second handle"));
        let head = read_head(&mut reader);
        let path = head.split(' ').nth(1).expect("a path").to_owned();
        let (status, body) = if head.starts_with("head") {
            if !std::mem::replace(&mut meddled, true) {
                std::fs::write(file, vec![b'z'; 300_000]).expect("changed");
            }
            (404, String::new())
        } else if head.starts_with("put") {
            let mut content = vec![0; length_of(&head)];
            reader.read_exact(&mut content).expect("a file");
            let right = path.ends_with(&Digest::of(&content).to_string());
            let problem = r#"{"type":"problem","status":422,"code":"wrong-digest","detail":"x","retryable":false}"#;
            if right { (201, "{}".to_owned()) } else { (422, problem.to_owned()) }
        } else {
            let mut line = vec![0; length_of(&head)];
            reader.read_exact(&mut line).expect("a job");
            let line: Value = serde_json::from_slice(&line).expect("JSON");
            let taken = json!({"type": "submitted", "job": line["id"], "index": 0}).to_string();
            reply(&mut stream, 201, &taken);
            return (answers, line["spec"].clone());
        };
        answers.push(status);
        reply(&mut stream, status, &body);
    }
}

fn length_of(head: &str) -> usize {
    let length = head.split("content-length: ").nth(1).expect("a length");
    length.lines().next().and_then(|text| text.trim().parse().ok()).expect("a number")
}

fn reply(stream: &mut impl Write, status: u16, body: &str) {
    let length = body.len();
    let head =
        format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
    stream.write_all((head + body).as_bytes()).expect("the client reads");
}

#[test]
fn a_device_without_an_end_is_refused_at_once() {
    let env = TestEnv::new();
    for flag in ["--in", "--stdin", "--wasm"] {
        let mut submit = env.submit();
        submit.args([flag, "/dev/zero"]);
        if flag != "--wasm" {
            submit.args(["--", "true"]);
        }
        submit.assert().failure().stderr(contains("is a device, which may have no end"));
    }
}

#[test]
fn a_file_that_changed_once_before_it_was_sent_is_sent_as_it_is_now() {
    let env = TestEnv::new();
    write(&env, "data", &vec![b'x'; 200_000]);
    let listener = UnixListener::bind(env.path("broker.sock")).expect("a socket");
    let address = format!("unix:{}", env.path("broker.sock").display());
    let arguments = ["--broker", &address, "--detach", "--in", "data", "--", "true"];
    let (file, submit) = (env.path("data"), env.command("ucp-submit"));
    let run = std::thread::scope(|scope| {
        let broker = scope.spawn(|| meddler(&listener, &file));
        let run = output_of(submit, &arguments);
        assert!(run.status.success(), "{}", said(&run));
        let (answers, spec) = broker.join().expect("it ends");
        let puts: Vec<u16> = answers.into_iter().filter(|status| *status != 404).collect();
        assert_eq!(puts, [422, 201]);
        let now = Digest::of(&vec![b'z'; 300_000]).to_string();
        assert_eq!(spec["inputs"], json!({"data": {"blob": now}}));
        run
    });
    assert_eq!(said(&run), "");
}

fn output_of(mut command: Command, arguments: &[&str]) -> Output {
    command.args(arguments).stdin(Stdio::null()).output().expect("it starts")
}

#[test]
fn outputs_are_put_where_they_are_wanted_and_replace_what_is_there() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let long: Vec<u8> = (0..=250).cycle().take(3_000_000).collect();
    let files: [(&str, &[u8], bool); 3] =
        [("a/b/long", &long, false), ("run", b"#!/bin/sh\n", true), ("empty", b"", false)];
    write(&env, "there/run", b"older");
    let result = || left(&env, &files);
    let run = played(&env, &["--json", "--out", "**", "--out-dir", "there", "--", "x"], result());
    assert_eq!((run.status.code(), said(&run)), (Some(0), String::new()));
    let line: Value = serde_json::from_slice(&run.stdout).expect("a line");
    assert_eq!(line["outputs"]["run"]["executable"], true);
    let job = line["job"].as_str().expect("an id").to_owned();
    let check = |directory: &str| {
        for (path, content, executable) in &files {
            let path = env.path(directory).join(path);
            assert_eq!(&std::fs::read(&path).expect("it is there"), content);
            let mode = path.metadata().expect("it is there").permissions().mode();
            assert_eq!(mode & 0o100 != 0, *executable);
        }
        let names = std::fs::read_dir(env.path(directory)).expect("a directory").count();
        assert_eq!(names, 3, "no temporary file is left");
    };
    check("there");
    env.submit().args(["wait", &job, "--out-dir", "later"]).assert().success().stderr("");
    check("later");
    let output = ["output", &job, "--out-dir", "again"];
    env.submit().args(output).assert().success().stdout("out\n").stderr("");
    check("again");
    // One job with named outputs puts them where we are.
    let here = left(&env, &[("here", b"x", false)]);
    let run = played(&env, &["--json", "--out", "here", "--", "x"], here);
    assert_eq!(run.status.code(), Some(0), "{}", said(&run));
    assert_eq!(env.lines("here"), ["x"]);
}

#[test]
fn a_job_makes_a_file_of_ours_from_a_file_of_ours() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _executor = env.executor("one", 2);
    write(&env, "numbers", b"3\n1\n2\n");
    write(&env, "tools/sorts", b"#!/bin/sh\nsort \"$1\" > sorted; echo done\n");
    run_bit(&env, "tools/sorts");
    let mut sorts = env.submit();
    sorts.args(["--in", "numbers", "--in", "tools", "--out", "sorted"]);
    sorts.args(["--", "tools/sorts", "numbers"]);
    sorts.assert().success().stdout("done\n").stderr("");
    assert_eq!(env.lines("sorted"), ["1", "2", "3"]);
    let told =
        contains("\"absent\" was not made").and(predicates::str::starts_with("ucp-submit: 0"));
    let mut absent = env.submit();
    absent.args(["--out", "absent", "--", "true"]).assert().code(125).stderr(told);
    let mut each = env.submit();
    each.args(["--each", "--out", "{}.txt", "--out-dir", "o"]);
    each.args(["--", "sh", "-c", "echo {} > {}.txt"]).write_stdin("a\nb\n").assert().success();
    assert_eq!(
        (env.lines("o/1/a.txt"), env.lines("o/2/b.txt")),
        (vec!["a".into()], vec!["b".into()])
    );
}

#[test]
fn each_job_of_many_has_a_directory_and_its_result_comes_after_its_files() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let result = left(&env, &[("f", b"x", false)]);
    let mut executor = Played::join(&env.socket(), hello("played", 1));
    let mut each = env.command("ucp-submit");
    each.args(["--each", "--out", "f", "--out-dir", "o", "--", "x", "{}"]);
    let mut each = each.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
    let mut stdin = each.stdin.take().expect("it is piped");
    stdin.write_all(b"one\n\ntwo\n").expect("written");
    drop(stdin);
    let mut reported = 0;
    while reported < 2 {
        for order in executor.start().each() {
            executor.report(&order, result.clone());
            reported += 1;
        }
    }
    let output = each.wait_with_output().expect("it ends");
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).expect("text");
    assert_eq!(text.lines().count(), 2);
    for line in text.lines() {
        assert!(
            line.contains("\"index\":1,\"item\":\"one\"")
                || line.contains("\"index\":3,\"item\":\"two\"")
        );
    }
    assert_eq!((env.lines("o/1/f"), env.lines("o/3/f")), (vec!["x".into()], vec!["x".into()]));
}

#[test]
fn a_directory_that_cannot_be_is_told_before_a_job_runs() {
    let env = TestEnv::new();
    let _broker = env.broker();
    write(&env, "file", b"");
    let told = contains("cannot create file/x: ");
    env.submit().args(["--out-dir", "file/x", "--", "true"]).assert().code(73).stderr(told);
    env.submit().args(["list", "--json"]).assert().success().stdout("");
}

#[test]
fn what_cannot_be_written_leaves_the_result_printed() {
    let env = TestEnv::new();
    let _broker = env.broker();
    write(&env, "o/taken/x", b"");
    let taken = left(&env, &[("taken", b"x", false)]);
    let run = played(&env, &["--json", "--out", "*", "--out-dir", "o", "--", "x"], taken.clone());
    assert_eq!(run.status.code(), Some(73));
    assert!(said(&run).contains("cannot fetch \"taken\": cannot create "), "{}", said(&run));
    let line: Value = serde_json::from_slice(&run.stdout).expect("the result line");
    assert_eq!(line["state"], "succeeded");
    // The job's own failure is worth more than ours.
    let failed = JobResult { exit: Some(9), ..taken };
    let run = played(&env, &["--json", "--out", "*", "--out-dir", "o", "--", "x"], failed);
    assert_eq!(run.status.code(), Some(9));
}

#[test]
fn a35_paths_and_links_that_lead_out_write_nothing_there() {
    let env = TestEnv::new();
    let _broker = env.broker();
    std::fs::create_dir_all(env.path("o")).expect("made");
    std::fs::create_dir_all(env.path("outside")).expect("made");
    symlink("../outside", env.path("o/link")).expect("a link");
    for (path, code) in [("../evil", 65), ("/evil", 65), ("a/../../evil", 65), ("link/evil", 73)] {
        let result = left(&env, &[(path, b"x", false)]);
        let run = played(&env, &["--json", "--out", "*", "--out-dir", "o", "--", "x"], result);
        assert_eq!(run.status.code(), Some(code), "{path}: {}", said(&run));
        assert!(!env.path("evil").exists() && !env.path("outside/evil").exists());
    }
}

#[test]
fn a20_a_damaged_blob_is_not_given_its_name() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let result = left(&env, &[("f", b"right", false)]);
    let digest = Digest::of(b"right").to_string();
    let blob = format!("state/ucp/broker/blobs/{}/{}", &digest[..2], &digest[2..]);
    write(&env, &blob, b"wrong");
    let run = played(&env, &["--json", "--out", "f", "--out-dir", "o", "--", "x"], result);
    assert_eq!(run.status.code(), Some(66), "{}", said(&run));
    assert!(said(&run).contains("was damaged on the broker's disk"), "{}", said(&run));
    assert_eq!(std::fs::read_dir(env.path("o")).expect("a directory").count(), 0);
}
