//! `--wasm`: a module from a file or stdin, its arguments, and what it is called.
//!
//! The specs are looked at with no executor; those that run one need an executor with WASI.

use predicates::prelude::PredicateBooleanExt;
use predicates::str::{contains, starts_with};
use serde_json::{Value, json};
use ucp::proto::id::Digest;

use crate::common::TestEnv;

/// Says hello, and ends with 3 if it is given an argument.
const HELLO: &str = r#"(module
  (import "wasi_snapshot_preview1" "fd_write"
    (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_sizes_get"
    (func $sizes (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (data (i32.const 64) "hello\n")
  (func (export "_start")
    (i32.store (i32.const 0) (i32.const 64))
    (i32.store (i32.const 4) (i32.const 6))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
    (drop (call $sizes (i32.const 16) (i32.const 20)))
    (if (i32.gt_u (i32.load (i32.const 16)) (i32.const 1))
      (then (call $exit (i32.const 3))))))
"#;

fn spec_of(env: &TestEnv, arguments: &[&str], stdin: &str) -> Value {
    let mut submit = env.submit();
    let run = submit.arg("--detach").args(arguments).write_stdin(stdin).assert().success();
    let job = String::from_utf8(run.get_output().stdout.clone()).expect("an id");
    let shown = env.run("ucp-submit", &["show", "--json", job.trim()]).stdout;
    let shown: Value = serde_json::from_slice(&shown).expect("a line");
    shown["spec"].clone()
}

#[test]
fn a_module_is_a_blob_with_the_name_of_its_file() {
    let env = TestEnv::new();
    let _broker = env.broker();
    std::fs::create_dir(env.path("d")).expect("made");
    std::fs::write(env.path("d/hello.wat"), HELLO).expect("a module");
    let blob = Digest::of(HELLO.as_bytes()).to_string();
    let spec = spec_of(&env, &["--wasm", "d/hello.wat", "--", "a", "-b"], "");
    let expected = json!({"wasm": {"blob": blob, "name": "hello.wat"}, "args": ["a", "-b"]});
    assert_eq!(spec, expected);
    let spec = spec_of(&env, &["--wasm", "-"], HELLO);
    assert_eq!(spec, json!({"wasm": {"blob": blob}}));
    let why = env.run("ucp-submit", &["list"]).stdout;
    assert!(String::from_utf8_lossy(&why).contains("hello.wat a -b"));
}

#[test]
fn a_name_that_is_no_file_has_a_hint_about_named_data() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let told = starts_with("ucp-submit: cannot read map: ")
        .and(contains("hint: --wasm takes a file; data that is called by a name is not there yet"));
    env.submit().args(["--wasm", "map", "--", "x"]).assert().code(66).stdout("").stderr(told);
    let mut jsonl = env.submit();
    jsonl.args(["--jsonl", "--wasm", "map"]).assert().code(64).stderr(contains("--wasm"));
}

#[test]
fn a_module_runs_with_its_arguments_streams_and_status() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _executor = env.executor("one", 2);
    std::fs::write(env.path("hello.wat"), HELLO).expect("a module");
    env.submit().args(["--wasm", "hello.wat"]).assert().success().stdout("hello\n").stderr("");
    let mut given = env.submit();
    given.args(["--wasm", "hello.wat", "--", "x"]).assert().code(3).stdout("hello\n");
    env.submit().args(["--wasm", "-"]).write_stdin(HELLO).assert().success().stdout("hello\n");
}

#[test]
fn a_module_runs_for_each_line_and_detached() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _executor = env.executor("one", 2);
    std::fs::write(env.path("hello.wat"), HELLO).expect("a module");
    let mut each = env.submit();
    let each = each.args(["--each", "--wasm", "hello.wat"]).write_stdin("a\nb\n");
    let output = each.assert().success().get_output().stdout.clone();
    let lines: Vec<Value> = String::from_utf8(output)
        .expect("text")
        .lines()
        .map(|line| serde_json::from_str(line).expect("a line"))
        .collect();
    assert_eq!(lines.len(), 2);
    assert!(lines.iter().all(|line| line["stdout"] == "hello\n"));
    let mut failing = env.submit();
    failing.args(["--each", "--wasm", "hello.wat", "--", "{}"]).write_stdin("a\n");
    failing.assert().code(1).stdout(contains("\"exit\":3"));
    let run = env.run("ucp-submit", &["--detach", "--wasm", "hello.wat"]);
    let job = String::from_utf8(run.stdout).expect("an id");
    env.submit().args(["wait", job.trim()]).assert().success();
    env.submit().args(["output", job.trim()]).assert().success().stdout("hello\n");
}

#[test]
fn garbage_is_a_clear_failure() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _executor = env.executor("one", 2);
    std::fs::write(env.path("garbage"), "no module").expect("a file");
    let told = contains("could not run: ");
    env.submit().args(["--wasm", "garbage"]).assert().code(126).stdout("").stderr(told);
}
