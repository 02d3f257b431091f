//! State that jobs leave on their way: kept while they run, and where further attempts begin.

use nix::sys::signal::Signal;
use serde_json::json;

use super::*;

/// Counts in its directory, one file renamed over the other, until it is let go or killed. Says
/// first where it begins.
const COUNTS: &str = "cd \"$UCP_JOB_CHECKPOINT_DIR\" || exit 9; n=$(cat n 2>/dev/null || echo 0); \
    echo \"$n\" >>UP; until [ -e GO ]; do n=$((n+1)); echo $n >.n; mv .n n; sleep 0.1; done; \
    echo \"from $(head -n 1 UP) to $(tail -n 1 UP)\"";

fn counting(env: &TestEnv) -> String {
    let path = |name| env.path(name).display().to_string();
    COUNTS.replace("UP", &path("up")).replace("GO", &path("go"))
}

fn often(env: &TestEnv, name: &str) -> Daemon {
    env.executor_with(name, &["--checkpoint-interval", "100ms", "-v"])
}

/// The facts about kept states of a job.
fn kept(env: &TestEnv, job: &str) -> Vec<Value> {
    let output = env.run("ucp-broker", &["facts", "--job", job]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let facts = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("a fact"));
    facts.filter(|fact| fact["kind"] == "checkpointed").collect()
}

fn wait_for_kept(env: &TestEnv, job: &str, count: usize) {
    wait_until("state is kept", || (kept(env, job).len() >= count).then_some(()));
}

fn number(line: &str) -> u64 {
    line.parse().expect("a number")
}

/// The file of a blob of the broker.
fn blob(env: &TestEnv, digest: &str) -> PathBuf {
    let (shelf, rest) = digest.split_at(2);
    let mut found = vec![env.path("state")];
    while let Some(at) = found.pop() {
        let path = at.join("blobs").join(shelf).join(rest);
        if path.exists() {
            return path;
        }
        let below = at.read_dir().into_iter().flatten().flatten().map(|entry| entry.path());
        found.extend(below.filter(|path| path.is_dir()));
    }
    panic!("no blob {digest}");
}

#[test]
fn a_job_goes_on_from_its_kept_state_when_its_executor_dies() {
    let env = TestEnv::new();
    let (_broker, first) = (env.broker(), often(&env, "left"));
    let job = submit(&env, &[], &counting(&env));
    wait_for_kept(&env, &job, 2);
    first.kill();
    let second = often(&env, "right");
    wait_for_lines(&env, "up", 2);
    let begins = env.lines("up");
    assert!(number(&begins[0]) == 0 && number(&begins[1]) > 0, "{begins:?}");
    assert!(second.stderr().contains("goes on from checkpoint"), "{}", second.stderr());
    // Further attempts begin with what further attempts kept.
    let before = kept(&env, &job).len();
    wait_for_kept(&env, &job, before + 1);
    release(&env);
    assert_eq!(result(&env, &job)["state"], "succeeded");
    wait_until("nothing is kept any more", || {
        files(&env, "right/checkpoints").is_empty().then_some(())
    });
}

#[test]
fn a_failed_job_goes_on_from_its_kept_state() {
    let env = TestEnv::new();
    let (_broker, _executor) = (env.broker(), often(&env, "left"));
    let fails = format!("{}; exit $(($(wc -l <{}) < 2))", counting(&env), env.path("up").display());
    let job = submit(&env, &["--retries", "1"], &fails);
    wait_for_kept(&env, &job, 1);
    release(&env);
    assert_eq!(result(&env, &job)["state"], "succeeded");
    let begins = env.lines("up");
    assert!(begins.len() == 2 && number(&begins[1]) > 0, "{begins:?}");
}

#[test]
fn a_drained_executor_hands_the_last_state_over() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let rarely = ["--checkpoint-interval", "1h", "--drain-timeout", "100ms"];
    let mut first = env.executor_with("left", &rarely);
    let (up, go) = (env.path("up"), env.path("go"));
    // It writes down how far it came when it is told to end.
    let script = format!(
        "d=$UCP_JOB_CHECKPOINT_DIR; trap 'echo far >$d/n; exit 1' TERM; \
         echo \"from $(cat $d/n 2>/dev/null)\" >>{}; until [ -e {} ]; do sleep 0.01; done",
        up.display(),
        go.display()
    );
    let job = submit(&env, &[], &script);
    wait_for_lines(&env, "up", 1);
    first.signal(Signal::SIGTERM);
    assert_eq!(first.wait().code(), Some(0));
    assert_eq!(kept(&env, &job).len(), 1);
    let _second = often(&env, "right");
    wait_for_lines(&env, "up", 2);
    assert_eq!(env.lines("up"), ["from ", "from far"]);
    release(&env);
    assert_eq!(result(&env, &job)["state"], "succeeded");
}

#[test]
fn a_damaged_checkpoint_gives_way_to_the_one_before() {
    let env = TestEnv::new();
    let (_broker, first) = (env.broker(), often(&env, "left"));
    let (up, more, go) = (env.path("up"), env.path("more"), env.path("go"));
    let script = format!(
        "cd $UCP_JOB_CHECKPOINT_DIR; ls >>{up}; echo up >>{up}; echo one >one; \
         until [ -e {more} ]; do sleep 0.01; done; echo two >two; \
         until [ -e {go} ]; do sleep 0.01; done",
        up = up.display(),
        more = more.display(),
        go = go.display()
    );
    let job = submit(&env, &[], &script);
    wait_for_kept(&env, &job, 1);
    std::fs::write(more, "").expect("room");
    wait_for_kept(&env, &job, 2);
    first.kill();
    let newest = kept(&env, &job)[1]["body"]["manifest"].as_str().expect("a digest").to_owned();
    let manifest = std::fs::read(blob(&env, &newest)).expect("it is there");
    let manifest: Value = serde_json::from_slice(&manifest).expect("a manifest");
    let two = manifest["files"]["two"]["blob"].as_str().expect("a digest");
    std::fs::write(blob(&env, two), "owt\n").expect("ours");
    release(&env);
    let second = often(&env, "right");
    assert_eq!(result(&env, &job)["state"], "succeeded");
    let said = second.stderr();
    assert!(said.contains(&format!("checkpoint {newest} cannot be used")), "{said}");
    assert!(said.contains("goes on from checkpoint"), "{said}");
    assert_eq!(env.lines("up"), ["up", "one", "up"]);
}

#[test]
fn a_job_that_leaves_nothing_to_go_on_from_begins_anew() {
    let env = TestEnv::new();
    let (_broker, first) = (env.broker(), often(&env, "left"));
    let script = format!("ls -A $UCP_JOB_CHECKPOINT_DIR; {}", held(&env, "echo done"));
    let job = submit(&env, &[], &script);
    wait_for_lines(&env, "up", 1);
    first.kill();
    release(&env);
    let _second = often(&env, "right");
    assert_eq!(result(&env, &job)["stdout"], "done\n");
    assert!(kept(&env, &job).is_empty());
}

#[test]
fn one_job_without_a_broker_goes_on_from_where_it_failed() {
    let env = TestEnv::new();
    let script = "cd $UCP_JOB_CHECKPOINT_DIR; echo x >>n; [ $(wc -l <n) = 3 ]";
    let native = json!({ "command": ["sh", "-c", script], "retries": 2 });
    // The first attempt makes the file and traps; the second finds it.
    let module = r#"(module
        (import "wasi_snapshot_preview1" "path_open"
            (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
        (memory (export "memory") 1)
        (data (i32.const 0) "n")
        (func (export "_start")
            (if (call $open (i32.const 4) (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 0)
                    (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 16))
                (then
                    (drop (call $open (i32.const 4) (i32.const 0) (i32.const 0) (i32.const 1)
                        (i32.const 1) (i64.const 64) (i64.const 0) (i32.const 0) (i32.const 16)))
                    unreachable))))"#;
    let wasi = json!({ "wasm": { "text": module }, "retries": 1 });
    for spec in [native, wasi] {
        std::fs::write(env.path("spec.json"), spec.to_string()).expect("room");
        let output = env.run("ucp-exec", &["run", "spec.json"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "{said}");
        let mut once = spec.clone();
        once["retries"] = 0.into();
        std::fs::write(env.path("spec.json"), once.to_string()).expect("room");
        assert_ne!(env.run("ucp-exec", &["run", "spec.json"]).status.code(), Some(0));
    }
}
