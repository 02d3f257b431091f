//! Completions: every program makes them for every shell, before it asks for anything else.

use std::process::{Command, Output};

const PROGRAMS: [&str; 5] = [
    env!("CARGO_BIN_EXE_ucp-broker"),
    env!("CARGO_BIN_EXE_ucp-clock"),
    env!("CARGO_BIN_EXE_ucp-exec"),
    env!("CARGO_BIN_EXE_ucp-submit"),
    env!("CARGO_BIN_EXE_ucp-sync"),
];

fn name(program: &str) -> &str {
    program.rsplit('/').next().expect("a name")
}

fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).output().expect("it starts")
}

fn script(program: &str, shell: &str) -> String {
    let output = run(program, &["--completions", shell]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), said.as_str()), (Some(0), ""), "{program} {shell}");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn every_shell_gets_what_it_can_read() {
    for program in PROGRAMS {
        for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
            let script = script(program, shell);
            assert!(script.contains(name(program)), "{program} {shell}");
            assert!(script.contains("log-format"), "{program} {shell}: {script}");
        }
    }
}

#[test]
fn bash_takes_them_and_offers_flags_and_subcommands() {
    for program in PROGRAMS {
        let name = name(program);
        let function = name.replace('-', "__");
        let ask = format!(
            "{}\ncomplete -p {name} >&2 || exit 3\n\
             COMP_WORDS=({name} --) COMP_CWORD=1\n_{function} {name} -- {name}\n\
             printf '%s\\n' \"${{COMPREPLY[@]}}\"\n",
            script(program, "bash")
        );
        let output = match Command::new("bash").args(["--norc", "-c", &ask]).output() {
            Ok(output) => output,
            Err(error) => {
                crate::skipped(&format!("bash cannot be run ({error}): completions not tried"));
                return;
            }
        };
        let offered = String::from_utf8_lossy(&output.stdout).into_owned();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && said.contains(&function), "{name}: {said}");
        assert!(offered.lines().any(|word| word == "--log-format"), "{name}: {offered}");
        assert!(offered.lines().any(|word| word == "--completions"), "{name}: {offered}");
    }
}

#[test]
fn they_come_before_whatever_else_is_demanded() {
    let [broker, clock, _, submit, _] = PROGRAMS;
    for (program, arguments) in [
        (submit, &["wait", "--completions", "bash"][..]),
        (submit, &["--completions=bash"]),
        (clock, &["compare", "--completions", "bash"]),
        (broker, &["facts", "--job", "x", "--no-such-flag", "--completions", "bash"]),
    ] {
        let output = run(program, arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert!(!output.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn what_is_no_shell_is_wrong_usage() {
    for program in PROGRAMS {
        for arguments in [&["--completions", "tcsh"][..], &["--completions"]] {
            let output = run(program, arguments);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(64), "{program}: {said}");
            assert!(said.contains("--completions") && output.stdout.is_empty(), "{said}");
        }
    }
}
