//! WASI jobs: what a module sees and what it does not, how it ends, what is kept of it.
//!
//! The modules are written out here as text, on top of [`PRELUDE`].

use super::*;

/// Imports, memory, and `$put`, which writes bytes to a descriptor. The first 64 bytes of the
/// memory are scratch: 0 to 7 one buffer, 8 what was done.
const PRELUDE: &str = r#"
    (import "wasi_snapshot_preview1" "fd_write"
        (func $fd_write (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_read"
        (func $fd_read (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_close" (func $close (param i32) (result i32)))
    (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
    (import "wasi_snapshot_preview1" "args_sizes_get"
        (func $args_sizes (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "args_get" (func $args (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "environ_sizes_get"
        (func $env_sizes (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "environ_get" (func $env (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "path_open"
        (func $path_open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "path_symlink"
        (func $symlink (param i32 i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "poll_oneoff"
        (func $poll (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 4)
    (func $put (param $fd i32) (param $at i32) (param $length i32)
        (i32.store (i32.const 0) (local.get $at))
        (i32.store (i32.const 4) (local.get $length))
        (drop (call $fd_write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8))))
    (func $open (param $path i32) (param $length i32) (param $flags i32) (result i32)
        (local $errno i32)
        (local.set $errno (call $path_open (i32.const 3) (i32.const 1) (local.get $path)
            (local.get $length) (local.get $flags) (i64.const 66) (i64.const 0) (i32.const 0)
            (i32.const 16)))
        (if (local.get $errno) (then (call $exit (local.get $errno)) unreachable))
        (i32.load (i32.const 16)))
    (func $cat (param $fd i32)
        (loop $more
            (i32.store (i32.const 0) (i32.const 131072))
            (i32.store (i32.const 4) (i32.const 65536))
            (drop (call $fd_read (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8)))
            (if (i32.load (i32.const 8)) (then
                (call $put (i32.const 1) (i32.const 131072) (i32.load (i32.const 8)))
                (br $more)))))
"#;

/// A module with data at 1024.
fn program(data: &str, body: &str) -> String {
    format!(
        "(module {PRELUDE} (data (i32.const 1024) \"{data}\") (func (export \"_start\") {body}))"
    )
}

fn hello() -> String {
    program("hello\\n", "(call $put (i32.const 1) (i32.const 1024) (i32.const 6))")
}

fn looping() -> String {
    program("", "(loop $for_ever (br $for_ever))")
}

/// Sleeps for 30 years.
fn sleeping() -> String {
    let body = "(i32.store (i32.const 1040) (i32.const 1))
        (i64.store (i32.const 1048) (i64.const 1000000000000000000))
        (drop (call $poll (i32.const 1024) (i32.const 2048) (i32.const 1) (i32.const 8)))";
    program("", body)
}

/// The spec of a job with this module.
fn spec(text: &str) -> Value {
    serde_json::json!({ "wasm": { "text": text } })
}

/// Submits specs and waits for their ends; gives the result lines in the order of the specs.
fn run_all(env: &TestEnv, specs: &[Value]) -> Vec<Value> {
    let lines: String = specs.iter().map(|spec| format!("{spec}\n")).collect();
    let output = env.submit().arg("--jsonl").write_stdin(lines).output().expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut results: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(results.len(), specs.len(), "one line each; stderr: {said}");
    results.sort_by_key(|line| line["index"].as_u64());
    results
}

fn run(env: &TestEnv, spec: Value) -> Value {
    run_all(env, &[spec]).remove(0)
}

/// Hands a job in without waiting for it; gives its id.
fn begin(env: &TestEnv, spec: &Value) -> String {
    let output = env.submit().args(["--jsonl", "--detach"]).write_stdin(spec.to_string()).output();
    let text = String::from_utf8(output.expect("it runs").stdout).expect("an id");
    text.trim().to_owned()
}

fn error(result: &Value) -> &str {
    result["error"].as_str().unwrap_or_else(|| panic!("an error in {result}"))
}

#[test]
fn a_module_from_text_at_hand_runs() {
    let env = TestEnv::new();
    let (_broker, _executor) = (env.broker(), env.executor("left", 1));
    let result = run(&env, spec(&hello()));
    assert_eq!((&result["state"], &result["exit"]), (&"succeeded".into(), &0.into()), "{result}");
    assert_eq!((&result["stdout"], &result["stderr"]), (&"hello\n".into(), &"".into()));
    assert_eq!(result["isolation"]["wasm-sandbox"], "enforced");
    assert_eq!(result["memory_max"], 4 << 16);
}

#[test]
fn arguments_variables_input_and_status_are_the_modules_own() {
    let env = TestEnv::new();
    let (_broker, _executor) = (env.broker(), env.executor("left", 1));
    let texts = |kind: &str| {
        format!(
            "(drop (call ${kind}_sizes (i32.const 16) (i32.const 20)))
             (drop (call ${kind} (i32.const 2048) (i32.const 8192)))
             (call $put (i32.const 1) (i32.const 8192) (i32.load (i32.const 20)))"
        )
    };
    let mut args = spec(&program("", &texts("args")));
    args["wasm"]["name"] = "show".into();
    args["args"] = serde_json::json!(["a b", "", "ü"]);
    let mut variables = spec(&program("", &texts("env")));
    variables["env"] = serde_json::json!({ "LANG": "xx" });
    let mut cat = spec(&program("", "(call $cat (i32.const 0))"));
    cat["stdin"] = serde_json::json!({ "text": "to be read\n" });
    let empty = spec(&program("", "(call $cat (i32.const 0))"));
    let exit = |status: i32| spec(&program("", &format!("(call $exit (i32.const {status}))")));
    let specs = [args, variables, cat, empty, exit(7), exit(125), exit(200)];
    let [args, variables, cat, empty, seven, most, more]: [Value; 7] =
        run_all(&env, &specs).try_into().expect("seven");
    assert_eq!(args["stdout"], "show\0a b\0\0ü\0");
    let text = variables["stdout"].as_str().expect("text");
    let names: Vec<_> = text.split_terminator('\0').flat_map(|v| v.split('=').next()).collect();
    let own = ["UCP_JOB_ID", "UCP_JOB_ATTEMPT", "UCP_JOB_FENCE", "UCP_JOB_CHECKPOINT_DIR"];
    assert_eq!(names, [&["LANG"], &own[..]].concat());
    assert!(text.contains("UCP_JOB_CHECKPOINT_DIR=/checkpoint\0"), "{text:?}");
    assert!(text.contains(variables["job"].as_str().expect("an id")), "{text:?}");
    assert_eq!((&cat["stdout"], &cat["exit"]), (&"to be read\n".into(), &0.into()));
    assert_eq!((&empty["stdout"], &empty["exit"]), (&"".into(), &0.into()));
    assert_eq!((&seven["exit"], &seven["error"]), (&7.into(), &Value::Null));
    assert_eq!(most["exit"], 125);
    assert_eq!(more["exit"], 1, "as the wasmtime command line says it: {more}");
    assert!(error(&more).contains("invalid exit status"), "{more}");
}

#[test]
fn files_are_written_and_read_in_the_own_directory() {
    let env = TestEnv::new();
    let (_broker, _executor) = (env.broker(), env.executor("left", 1));
    let body = "(local $file i32)
        (local.set $file (call $open (i32.const 1024) (i32.const 5) (i32.const 9)))
        (call $put (local.get $file) (i32.const 1029) (i32.const 4))
        (drop (call $close (local.get $file)))
        (call $cat (call $open (i32.const 1024) (i32.const 5) (i32.const 0)))";
    let result = run(&env, spec(&program("a.txtkept", body)));
    assert_eq!((&result["exit"], &result["stdout"]), (&0.into(), &"kept".into()), "{result}");
}

#[test]
fn nothing_outside_of_the_own_directory_can_be_opened() {
    let env = TestEnv::new();
    let (_broker, _executor) = (env.broker(), env.executor("left", 1));
    std::fs::write(env.path("left/secret"), "secret").expect("room");
    let open = |path: &str| {
        let length = path.len();
        let body =
            format!("(call $cat (call $open (i32.const 1024) (i32.const {length}) (i32.const 0)))");
        spec(&program(path, &body))
    };
    let secret = env.path("left/secret").display().to_string();
    let paths = ["/etc/passwd", "..", "../secret", "./../secret", "/", &secret];
    for (path, result) in paths.iter().zip(run_all(&env, &paths.map(open))) {
        // `errno` 63: the operation is not permitted.
        assert_eq!(result["exit"], 63, "{path}: {result}");
        assert_eq!((&result["state"], &result["stdout"]), (&"failed".into(), &"".into()));
    }
    // A link out of it, which the module makes itself: already that is not permitted.
    for target in ["/etc/passwd", "../secret"] {
        let length = target.len();
        let body = format!(
            "(drop (call $symlink (i32.const 1024) (i32.const {length}) (i32.const 3)
                (i32.const {}) (i32.const 1)))
             (call $cat (call $open (i32.const {}) (i32.const 1) (i32.const 0)))",
            1024 + length,
            1024 + length
        );
        let result = run(&env, spec(&program(&format!("{target}l"), &body)));
        assert_eq!((&result["state"], &result["stdout"]), (&"failed".into(), &"".into()));
        assert!([44, 63].contains(&result["exit"].as_i64().expect("a status")), "{result}");
    }
}

#[test]
fn a_module_that_never_ends_is_ended_in_time() {
    let env = TestEnv::new();
    let (_broker, _executor) = (env.broker(), env.executor("left", 2));
    let specs = [looping(), sleeping()].map(|text| {
        let mut spec = spec(&text);
        spec["timeout"] = "200ms".into();
        spec
    });
    for result in run_all(&env, &specs) {
        assert_eq!((&result["timed_out"], &result["signal"]), (&true.into(), &15.into()));
        assert_eq!(result["state"], "failed");
    }
}

#[test]
fn a_cancelled_module_ends_at_once_and_leaves_its_slot() {
    let env = TestEnv::new();
    let (_broker, _executor) = (env.broker(), env.executor("left", 1));
    for text in [looping(), sleeping()] {
        let job = begin(&env, &spec(&text));
        wait_until("it runs", || (show(&env, &job)["state"] == "running").then_some(()));
        assert!(env.run("ucp-submit", &["cancel", &job]).status.success());
        assert_eq!(result(&env, &job)["state"], "cancelled");
        assert_eq!(run(&env, spec(&hello()))["stdout"], "hello\n");
    }
}

#[test]
fn memory_is_bounded_and_the_failure_names_the_bound() {
    let env = TestEnv::new();
    let (_broker, _executor) = (env.broker(), env.executor_with("left", &["--memory", "2G"]));
    let growing = program(
        "",
        "(loop $more (br_if $more (i32.ne (memory.grow (i32.const 16)) (i32.const -1))))
         unreachable",
    );
    let bounded = |text: &str, memory: &str| {
        let mut spec = spec(text);
        spec["needs"] = serde_json::json!({ "memory": memory });
        spec
    };
    let gives_up = growing.replace("unreachable", "(call $exit (i32.const 3))");
    let large = program("", "").replace("\"memory\") 4", "\"memory\") 400");
    let specs = [
        bounded(&growing, "64M"),
        spec(&growing),
        bounded(&gives_up, "64M"),
        bounded(&large, "1M"),
        bounded(&hello(), "1M"),
    ];
    let [small, usual, gave_up, large, enough]: [Value; 5] =
        run_all(&env, &specs).try_into().expect("five");
    assert_eq!(small["exit"], 134, "{small}");
    assert!(error(&small).starts_with("it asked for more than its 64M of memory: "), "{small}");
    let most = small["memory_max"].as_u64().expect("bytes");
    assert!((63 << 20..=64 << 20).contains(&most), "{most}");
    assert!(error(&usual).starts_with("it asked for more than its 1G of memory: "), "{usual}");
    assert_eq!(gave_up["exit"], 3);
    assert_eq!(error(&gave_up), "it asked for more than its 64M of memory");
    assert!(error(&large).starts_with("it asked for more than its 1M of memory: "), "{large}");
    assert_eq!((&enough["state"], &enough["error"]), (&"succeeded".into(), &Value::Null));
}

#[test]
fn a_trap_is_a_failure_with_its_text() {
    let env = TestEnv::new();
    let (_broker, _executor) = (env.broker(), env.executor("left", 1));
    let bodies = [
        ("unreachable", "wasm `unreachable` instruction executed"),
        ("(drop (i32.div_s (i32.const 1) (i32.const 0)))", "integer divide by zero"),
        ("(drop (i32.load (i32.const -4)))", "out of bounds memory access"),
        ("(call $deep)", "call stack exhausted"),
    ];
    let deep = "(func $deep (call $deep)) (func (export \"_start\")";
    let text = |body: &str| program("", body).replace("(func (export \"_start\")", deep);
    let results = run_all(&env, &bodies.map(|(body, _)| spec(&text(body))));
    for ((body, words), result) in bodies.iter().zip(results) {
        assert_eq!(result["exit"], 134, "{body}: {result}");
        let error = error(&result);
        assert!(error.starts_with("wasm trap: ") && error.contains(words), "{error}");
        assert!(error.contains("backtrace") && error.len() < 5000, "{error}");
        assert_eq!(result["stderr"], "", "which is the module's own");
    }
}

#[test]
fn a_program_that_throws_runs_on_a_single_slot() {
    let env = TestEnv::new();
    let (_broker, _executor) = (env.broker(), env.executor("left", 1));
    let tag = "(tag $oops) (func (export \"_start\")";
    let text = |body: &str| program("ok", body).replace("(func (export \"_start\")", tag);
    let caught = "(block $caught (try_table (catch_all $caught) (throw $oops)) unreachable)
        (call $put (i32.const 1) (i32.const 1024) (i32.const 2))";
    let specs = [text(caught), text("(throw $oops)"), text(caught)].map(|text| spec(&text));
    let [first, thrown, again]: [Value; 3] = run_all(&env, &specs).try_into().expect("three");
    assert_eq!((&first["stdout"], &again["stdout"]), (&"ok".into(), &"ok".into()), "{first}");
    assert_eq!(thrown["state"], "failed");
    assert!(error(&thrown).contains("exception"), "{thrown}");
}

#[test]
fn a35_what_is_no_program_is_refused_with_the_reason() {
    let env = TestEnv::new();
    let (_broker, _executor) = (env.broker(), env.executor("left", 1));
    let base64 = |base64: &str| serde_json::json!({ "wasm": { "base64": base64 } });
    let native = "(module (import \"env\" \"puts\" (func)) (func (export \"_start\")))";
    let mut named = spec("(module)");
    named["wasm"]["name"] = "lib.wasm".into();
    let cases = [
        (base64("f0VMRgD/"), "is neither a binary module"),
        (base64("AGFzbQEAAAAB"), "is not a module that can run"),
        (base64("AGFzbQ0AAQA="), "is a component"),
        (spec("(component)"), "is not the text of a module"),
        (spec("#!/bin/sh"), "expected `(`"),
        (spec(native), "imports \"puts\" from \"env\""),
        (named, "module lib.wasm: exports no _start: it is a library"),
        (serde_json::json!({ "wasm": "0".repeat(64) }), "0000"),
    ];
    let specs = cases.clone().map(|(spec, _)| spec);
    for ((_, words), result) in cases.iter().zip(run_all(&env, &specs)) {
        assert_eq!((&result["state"], &result["exit"]), (&"failed".into(), &126.into()));
        assert!(error(&result).contains(words), "{words}: {result}");
    }
    assert_eq!(run(&env, spec(&hello()))["stdout"], "hello\n", "and the executor lives");
}

fn peak_memory(executor: &Daemon) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", executor.pid()));
    let status = status.expect("it lives");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a size");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}

#[test]
fn output_is_kept_whole_in_bounded_memory() {
    let env = TestEnv::new();
    let (_broker, executor) = (env.broker(), env.executor("left", 1));
    let times = |count: u32, what: &str| {
        format!(
            "(local $left i32) (local.set $left (i32.const {count}))
             (loop $more {what}
                (br_if $more (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))"
        )
    };
    let piece = "(call $put (i32.const 1) (i32.const 65536) (i32.const 65536))";
    let letter = "(call $put (i32.const 2) (i32.const 1024) (i32.const 1))";
    let bytes = "(call $put (i32.const 1) (i32.const 1024) (i32.const 3))";
    let before = peak_memory(&executor);
    let specs = [
        spec(&program("", &times(1600, piece))),
        spec(&program("x", &times(20_000, letter))),
        spec(&program("\\ff\\00\\fe", bytes)),
    ];
    let [long, pieces, noise]: [Value; 3] = run_all(&env, &specs).try_into().expect("three");
    let grown = peak_memory(&executor) - before;
    assert!(grown < 60 << 20, "100 MB of output took {grown} bytes");
    assert_eq!(long["state"], "succeeded", "{long}");
    let job = long["job"].as_str().expect("an id");
    let output = env.run("ucp-submit", &["output", job]).stdout;
    assert!(output.len() == 1600 << 16 && output.iter().all(|byte| *byte == 0));
    assert_eq!(pieces["stderr"].as_str().expect("text"), "x".repeat(20_000));
    assert_eq!((&noise["stdout"], &noise["encoding"]), (&"/wD+".into(), &"base64".into()));
}

#[test]
fn a_module_is_compiled_once_also_over_a_restart() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let start = || env.executor_with("left", &["--slots", "2", "-v"]);
    let compiled = |executor: &Daemon| executor.stderr().matches("compiled module").count();
    let executor = start();
    for result in run_all(&env, &vec![spec(&hello()); 8]) {
        assert_eq!(result["stdout"], "hello\n");
    }
    assert_eq!(compiled(&executor), 1);
    executor.kill();
    let executor = start();
    assert_eq!(run(&env, spec(&hello()))["stdout"], "hello\n");
    assert_eq!(compiled(&executor), 1, "{}", executor.stderr());
    let kept = files(&env, "left/cache/wasm");
    assert_eq!(kept.len(), 1);
    // What runs is out of reach of what happens to the file.
    std::fs::write(&kept[0], "garbage").expect("room");
    assert_eq!(run(&env, spec(&hello()))["stdout"], "hello\n");
    executor.kill();
    let executor = start();
    assert_eq!(run(&env, spec(&hello()))["stdout"], "hello\n");
    assert!(executor.stderr().contains("is damaged"), "{}", executor.stderr());
    assert_eq!(compiled(&executor), 2);
    assert_eq!(files(&env, "left/cache/wasm").len(), 1);
}

#[test]
fn a9_many_modules_at_once_share_few_slots() {
    let env = TestEnv::new();
    let (_broker, executor) = (env.broker(), env.executor("left", 2));
    for result in run_all(&env, &vec![spec(&program("", "")); 200]) {
        assert_eq!(
            (&result["state"], &result["attempt"][1].is_u64()),
            (&"succeeded".into(), &true)
        );
    }
    let tasks = std::fs::read_dir(format!("/proc/{}/task", executor.pid())).expect("it lives");
    let name = |task: &std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm"));
    let names: Vec<_> = tasks.flatten().filter_map(|task| name(&task).ok()).collect();
    let ours = names.iter().filter(|name| name.starts_with("wasm-") && *name != "wasm-epoch\n");
    assert!(ours.count() <= 2, "{names:?}");
}

#[test]
fn jobs_go_to_executors_that_run_their_kind() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let _native = env.executor_with("native", &["--slots", "1", "--no-wasm"]);
    let waiting = begin(&env, &spec(&hello()));
    let why = env.run("ucp-submit", &["why", &waiting]).stdout;
    let why = String::from_utf8_lossy(&why).into_owned();
    assert!(why.contains("runs no WASI modules"), "{why}");
    let _modules = env.executor_with("modules", &["--slots", "1", "--no-native"]);
    let on = |result: &Value| {
        let executor = result["executor"].as_str().expect("an executor");
        executor.split('-').next().expect("a name").to_owned()
    };
    assert_eq!(on(&result(&env, &waiting)), "modules");
    let mut specs = vec![spec(&hello()); 4];
    specs.extend(vec![serde_json::json!({ "command": ["true"] }); 4]);
    let results = run_all(&env, &specs);
    assert!(results[..4].iter().all(|result| on(result) == "modules"));
    assert!(results[4..].iter().all(|result| on(result) == "native"));
    let neither = env.run("ucp-exec", &["--no-wasm", "--no-native"]);
    assert_eq!(neither.status.code(), Some(64));
    let said = String::from_utf8_lossy(&neither.stderr).into_owned();
    assert!(said.contains("--no-wasm") && said.contains("--no-native"), "{said}");
}
