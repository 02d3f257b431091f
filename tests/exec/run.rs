//! `ucp-exec run`: one spec in, one result out, nothing left.

use std::io::Write;
use std::process::{Output, Stdio};

use nix::sys::signal::Signal;
use serde_json::json;

use super::*;

struct Bench {
    env: TestEnv,
}

impl Bench {
    fn new() -> Self {
        let env = TestEnv::new();
        for name in ["tmp", "here"] {
            std::fs::create_dir(env.path(name)).expect("room");
        }
        Self { env }
    }

    fn command(&self, arguments: &[&str]) -> std::process::Command {
        let mut command = self.env.command("ucp-exec");
        command.args(["run", "--allow-write"]).arg(self.env.path(""));
        command.args(arguments).env("TMPDIR", self.env.path("tmp"));
        command.current_dir(self.env.path("here"));
        command
    }

    fn run(&self, arguments: &[&str], stdin: &str) -> Output {
        let mut command = self.command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("it starts");
        let mut input = child.stdin.take().expect("piped");
        // Who refuses early does not read it all.
        let _ = input.write_all(stdin.as_bytes());
        drop(input);
        let output = child.wait_with_output().expect("it ends");
        assert!(files(&self.env, "tmp").is_empty(), "nothing is left");
        output
    }

    /// Runs a spec; the status, the result line, and what was said.
    fn result(&self, spec: &Value) -> (i32, Value, String) {
        let output = self.run(&[], &spec.to_string());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let line = serde_json::from_slice(&output.stdout);
        let line = line.unwrap_or_else(|error| panic!("{error}: {said}"));
        (output.status.code().expect("a status"), line, said)
    }
}

#[test]
fn one_spec_in_one_result_line_out() {
    let bench = Bench::new();
    let spec = r#"{"command":["echo","hi"]}"#;
    std::fs::write(bench.env.path("here/spec.json"), spec).expect("room");
    for (arguments, stdin) in [(&[][..], spec), (&["-"], spec), (&["spec.json"], "")] {
        let output = bench.run(arguments, stdin);
        assert_eq!(output.status.code(), Some(0));
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).expect("text");
        assert!(text.ends_with('\n') && text.lines().count() == 1);
        let line: Value = serde_json::from_str(&text).expect("JSON");
        let seen = ["type", "state", "stdout", "stderr"].map(|name| line[name].clone());
        assert_eq!(seen, ["result", "succeeded", "hi\n", ""].map(Value::from), "{line}");
        assert_eq!((&line["exit"], &line["final"]), (&0.into(), &true.into()));
    }
}

#[test]
fn it_ends_with_the_jobs_own_status_or_says_why_not() {
    let bench = Bench::new();
    let shell = |script: &str| json!({"command": ["sh", "-c", script]});
    let with = |mut spec: Value, name: &str, value: Value| {
        spec[name] = value;
        spec
    };
    let ignoring = "trap '' TERM; while :; do sleep 0.05; done";
    for (spec, status, state, words) in [
        (shell("exit 7"), 7, "failed", ""),
        (shell("kill -SEGV $$"), 139, "failed", ""),
        (json!({"command": ["no-such-program"]}), 127, "failed", "was not found"),
        (json!({"command": ["/etc/passwd"]}), 126, "failed", "cannot be executed"),
        (with(shell("sleep 100"), "timeout", "100ms".into()), 124, "failed", "time was over"),
        (with(shell(ignoring), "timeout", "100ms".into()), 124, "failed", "time was over"),
        (with(shell("true"), "outputs", json!(["a"])), 125, "failed", "\"a\" was not made"),
    ] {
        let (code, line, said) = bench.result(&spec);
        assert_eq!((code, &line["state"]), (status, &state.into()), "{spec}: {line} {said}");
        assert_eq!(said.is_empty(), words.is_empty(), "{said}");
        assert!(said.contains(words), "{said}");
    }
}

#[test]
fn what_is_wrong_is_said_and_nothing_runs() {
    let bench = Bench::new();
    let nested = "[".repeat(10_000);
    for (arguments, spec, status, words) in [
        (&[][..], "", 65, "there is no spec"),
        (&[], "{", 65, "EOF"),
        (&[], nested.as_str(), 65, "standard input: "),
        (&[], "\u{0}", 65, "standard input: "),
        (&[], r#"{"command":["date"]} x"#, 65, "trailing characters"),
        (&[], r#"{"comand":["date"]}"#, 65, "did you mean `command`?"),
        (&[], r#"{"command":["a"],"command":["b"]}"#, 65, "duplicate field `command`"),
        (&[], r#"{"command":["a"],"timeout":"0s"}"#, 65, "field `timeout`"),
        (
            &[],
            r#"{"command":["a"],"after":["01a20770-1a6a-7824-979e-fefb9d9c366f"]}"#,
            65,
            "field `after`",
        ),
        (&[], r#"{"command":["a"],"inputs":{"b":{"file":"no"}}}"#, 66, "\"b\": cannot read no"),
        (&[], r#"{"command":["a"],"inputs":{"b":{"file":"."}}}"#, 65, "it is a directory"),
        (&[], r#"{"command":["a"],"stdin":{"file":"no"}}"#, 66, "field `stdin`"),
        (&[], r#"{"command":["a"],"needs":{"cores":60000}}"#, 78, "more cores than"),
        (&[], r#"{"command":["a"],"needs":{"labels":["gpu"]}}"#, 78, "label gpu"),
        (&["no.json"], "", 66, "cannot read no.json"),
        (&["--slots", "0"], "", 64, "--slots"),
    ] {
        let output = bench.run(arguments, spec);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(status), "{spec:.60}: {said}");
        assert!(said.starts_with("ucp-exec: ") && said.contains(words), "{said}");
        assert!(output.stdout.is_empty());
    }
    // A pipe that nobody writes is no file, and nobody waits for it.
    let pipe = bench.env.path("here/pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("room");
    let input = json!({"command": ["true"], "inputs": {"a": {"file": "pipe"}}});
    for spec in [input, json!({"wasm": {"file": "pipe"}})] {
        let (status, line, said) = bench.result(&spec);
        let error = line["error"].as_str().expect("words");
        assert!(status == 126 && error.contains("no regular file"), "{error} {said}");
    }
    let (status, line, said) =
        bench.result(&json!({"command": ["cat"], "stdin": {"file": "pipe"}}));
    let error = line["error"].as_str().expect("words");
    assert!(status == 126 && error.contains("neither a file nor"), "{error} {said}");
    let blob = "0".repeat(64);
    let spec = json!({"command": ["a"], "stdin": {"blob": blob}}).to_string();
    let output = bench.run(&[], &spec);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(65) && said.contains("`file`"), "{said}");
}

#[test]
fn files_go_in_from_here_and_outputs_come_out_here() {
    let bench = Bench::new();
    let here = bench.env.path("here");
    std::fs::write(here.join("source"), noise(200_000)).expect("room");
    let script = "cat >from-stdin; mkdir -p out/deep; cp a/b out/deep/c; chmod 755 out/deep/c; ls";
    let spec = json!({
        "command": ["sh", "-c", script],
        "stdin": {"file": "source"},
        "inputs": {"a/b": {"file": "source"}},
        "outputs": ["from-stdin", "out"],
    });
    let (code, line, said) = bench.result(&spec);
    assert_eq!((code, &line["stdout"]), (0, &"a\nfrom-stdin\nout\n".into()), "{said}");
    for path in ["from-stdin", "out/deep/c"] {
        assert!(std::fs::read(here.join(path)).expect("it came out") == noise(200_000));
        assert_eq!(line["outputs"][path]["size"], 200_000);
    }
    use std::os::unix::fs::PermissionsExt;
    let mode = |path: &str| {
        let found = here.join(path).metadata().expect("it is there");
        found.permissions().mode() & 0o100
    };
    assert_eq!((mode("from-stdin"), mode("out/deep/c")), (0, 0o100));
    let there = bench.env.path("there");
    let output = bench.run(&["--out-dir", there.to_str().expect("text")], &spec.to_string());
    assert_eq!(output.status.code(), Some(0));
    assert!(there.join("out/deep/c").exists());
}

#[test]
fn arguments_and_output_may_be_any_bytes() {
    let bench = Bench::new();
    let spec = json!({"command": ["printf", "%s", {"base64": "/2H+"}]});
    let (code, line, _) = bench.result(&spec);
    assert_eq!((code, &line["stdout"], &line["encoding"]), (0, &"/2H+".into(), &"base64".into()));
}

#[test]
fn long_output_is_whole_up_to_the_bound_and_then_cut() {
    let bench = Bench::new();
    let write = |count: &str| {
        let script = format!("head -c {count} /dev/zero | tr '\\0' x; echo end >&2");
        bench.result(&json!({"command": ["sh", "-c", script]}))
    };
    let (_, line, _) = write("1M");
    assert_eq!(line["stdout"].as_str().map(str::len), Some(1 << 20));
    assert_eq!(line.get("truncated"), None);
    let (code, line, _) = write("100M");
    assert_eq!((code, &line["truncated"], &line["stderr"]), (0, &true.into(), &"end\n".into()));
    assert_eq!(line["stdout"].as_str().map(str::len), Some(64 << 20));
}

#[test]
fn a_failed_job_is_tried_again_as_often_as_it_says() {
    let bench = Bench::new();
    let count = bench.env.path("count").display().to_string();
    let script = format!("echo x >>{count}; [ $(wc -l <{count}) -ge 3 ] && echo made >out");
    let spec = json!({"command": ["sh", "-c", script], "retries": 5, "outputs": ["out"]});
    let (code, line, said) = bench.result(&spec);
    assert_eq!((code, &line["attempt"][1]), (0, &3.into()), "{said}");
    assert_eq!(bench.env.lines("count").len(), 3);
    assert_eq!(bench.env.lines("here/out"), ["made"]);
}

#[test]
fn a_signal_stops_the_jobs_tree_and_the_result_says_so() {
    for (signal, status) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143), (Signal::SIGHUP, 129)] {
        let bench = Bench::new();
        let mark = mark(&bench.env);
        let script = "(setsid sleep 1000 &); sleep 1000 & echo said; echo up >>$UP; wait";
        let up = bench.env.path("up").display().to_string();
        let spec = json!({
            "command": ["sh", "-c", script], "env": {"UP": up, "TEST_MARK": mark}, "retries": 9,
        });
        std::fs::write(bench.env.path("here/spec.json"), spec.to_string()).expect("room");
        let command = bench.command(&["spec.json"]);
        let mut run = Daemon::start(command, &bench.env.path("run.err"));
        wait_for_lines(&bench.env, "up", 1);
        run.signal(signal);
        let line = run.line();
        assert_eq!((&line["state"], &line["stdout"]), (&"cancelled".into(), &"said\n".into()));
        assert_eq!(run.wait().code(), Some(status));
        assert_eq!(marked(&mark), [0; 0]);
        assert!(files(&bench.env, "tmp").is_empty(), "nothing is left");
    }
}
