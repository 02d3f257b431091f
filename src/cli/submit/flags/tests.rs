//! Flags as people write them, and what does not belong together.

use clap::{CommandFactory, FromArgMatches};

use super::*;

fn parsed(arguments: &[&str]) -> (Cli, ArgMatches) {
    let all = [&["ucp-submit"], arguments].concat();
    let matches = Cli::command().try_get_matches_from(all).expect("right usage");
    (Cli::from_arg_matches(&matches).expect("a command line"), matches)
}

fn wrong(arguments: &[&str]) -> Failure {
    let (cli, matches) = parsed(arguments);
    let mode = cli.mode(&matches).map(|mode| format!("{mode:?}"));
    mode.expect_err("wrong usage")
}

#[test]
fn flags_become_a_spec() {
    let (cli, _) = parsed(&[
        "--needs",
        "cores=2,memory=1G",
        "--needs",
        "label=gpu",
        "--env",
        "A=b=c",
        "--timeout",
        "2s",
        "--deadline",
        "1h",
        "--after-deadline",
        "stop",
        "--retries",
        "3",
        "--precedence",
        "flash",
        "--",
        "list",
        "-v",
    ]);
    let text = cli.job.base().expect("a spec").to_json();
    let expected = r#"{"command":["list","-v"],"env":{"A":"b=c"},"needs":{"cores":2,"memory":"1G","labels":["gpu"]},"precedence":"flash","retries":3,"timeout":"2s","deadline":"1h","after_deadline":"stop"}"#;
    assert_eq!(text, expected);
}

#[test]
fn a_job_that_may_not_overlap_becomes_a_spec() {
    let (cli, _) = parsed(&[
        "--overlap",
        "forbid",
        "--home",
        "north-1f2e3d4c",
        "--on-conflict",
        "oldest-attempt",
        "--max-lost",
        "5",
        "--key",
        "k",
        "--",
        "x",
    ]);
    let text = cli.job.base().expect("a spec").to_json();
    let expected = r#"{"command":["x"],"max_lost":5,"on_conflict":"oldest-attempt","overlap":"forbid","home":"north-1f2e3d4c","key":"k"}"#;
    assert_eq!(text, expected);
    let defaults =
        ["--overlap", "allow", "--on-conflict", "newest-attempt", "--max-lost", "3", "--", "x"];
    let text = parsed(&defaults).0.job.base().expect("a spec").to_json();
    assert_eq!(text, r#"{"command":["x"]}"#, "what is default is left out");
    let failure = wrong(&["--overlap", "forbid", "--key", "k", "--", "x"]);
    assert_eq!(failure.exit.status(), 64);
    assert!(failure.what.contains("--home: else each half"), "{}", failure.what);
    assert!(failure.hint.is_some_and(|hint| hint.contains("ucp-broker status")));
    for (flag, value) in [("--overlap", "no"), ("--home", "a b"), ("--on-conflict", "newest")] {
        assert!(Cli::command().try_get_matches_from(["ucp-submit", flag, value]).is_err());
    }
}

#[test]
fn files_and_any_bytes_become_a_spec() {
    let (cli, _) = parsed(&["--wasm", "d/a.wat", "--out", "./b//*.csv", "--", "x"]);
    let text = cli.job.base().expect("a spec").to_json();
    let expected = r#"{"wasm":{"text":"","name":"a.wat"},"args":["x"],"outputs":["b/*.csv"]}"#;
    assert_eq!(text, expected);
    let of = |text: &str| given(OsStr::new(text));
    let file = |file: &str| PathBuf::from(file);
    assert_eq!(of("d/a"), Ok(Given { file: file("d/a"), path: None }));
    assert_eq!(of("a=b=c/d"), Ok(Given { file: file("a=b"), path: Some("c/d".into()) }));
    for bad in ["", "-", "=a", "a="] {
        assert!(of(bad).is_err(), "{bad:?}");
    }
    let value = variable(OsString::from_vec(b"A=\xff=".to_vec())).expect("a variable");
    assert_eq!(value, ("A".to_owned(), Text::from(b"\xff=".to_vec())));
    assert!(variable("A".into()).is_err() && variable("=a".into()).is_err());
}

#[test]
fn flags_of_each_need_it() {
    let all = ["ucp-submit", "-0", "--", "a"];
    let error = Cli::command().try_get_matches_from(all).expect_err("wrong usage");
    assert!(error.to_string().contains("--each"), "{error}");
    let (cli, _) = parsed(&["--each", "-0I", "%", "--keep-order", "--", "a%"]);
    assert_eq!((cli.job.hole(), cli.job.null, cli.job.keep_order), ("%", true, true));
}

#[test]
fn common_flags_may_stand_on_either_side_of_a_subcommand() {
    for arguments in [["--json", "list"], ["list", "--json"]] {
        let (cli, matches) = parsed(&arguments);
        assert!(cli.json);
        assert!(matches!(cli.mode(&matches), Ok(Mode::Ask(Command::List(_)))));
    }
}

#[test]
fn what_does_not_belong_together_is_wrong_usage() {
    for (arguments, word) in [
        (&[][..], "no command"),
        (&["--timeout", "1s", "list"], "--timeout"),
        (&["--each", "--stdin", "-", "--", "a"], "--stdin"),
        (&["--each", "--key", "k", "--", "a"], "--key"),
        (&["--each", "-I", "%", "--key", "{}", "--", "a"], "--key"),
        (&["--each", "-I", "", "--", "a"], "--replace"),
        (&["-I", "%", "--", "a"], "--replace"),
        (&["--needs", "core=1", "--", "a"], "--needs core=1"),
        (&["--needs", "memory=1Q", "--", "a"], "--needs memory=1Q"),
        (&["--retries", "1000000", "--", "a"], "retries"),
        (&["--after-deadline", "stop", "--", "a"], "after_deadline"),
        (&["--wasm", "-", "--stdin", "-"], "--stdin - and --wasm -"),
        (&["--each", "--in", "{}", "--", "a"], "--in {}"),
        (&["--detach", "--out-dir", "d", "--", "a"], "--out-dir"),
        (&["--out", "../a", "--", "a"], "outputs"),
        (&["--out", "/a", "--", "a"], "outputs"),
    ] {
        let failure = wrong(arguments);
        assert_eq!(failure.exit.status(), 64);
        assert!(failure.what.contains(word), "{}", failure.what);
    }
}

#[test]
fn the_whole_command_line_is_sound() {
    crate::cli::args::with_twins(Cli::command(), "ucp-submit").debug_assert();
}
