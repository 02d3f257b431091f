//! The manual and the completions of shells: pages of programs are those that the command lines
//! give, pages by hand tell the truth, and the formatter has nothing to say about any of them.
//!
//! `scripts/man` writes the pages of the programs; this test only compares, unless it is told to
//! write by `UCP_MAN_WRITE`.

#[path = "man/completions.rs"]
mod completions;
#[path = "man/facts.rs"]
mod facts;
#[path = "man/page.rs"]
mod page;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Says that something was not checked, past the test harness, which keeps what a test that passes
/// prints.
fn skipped(why: &str) {
    let said = format!("SKIPPED: {why}\n");
    std::io::stderr().write_all(said.as_bytes()).expect("stderr is there");
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("man")
}

#[test]
fn the_pages_of_the_programs_are_those_of_their_command_lines() {
    let write = std::env::var_os("UCP_MAN_WRITE").is_some();
    let definitions = [
        ucp::cli::broker::definition(),
        ucp::cli::clock::definition(),
        ucp::cli::exec::definition(),
        ucp::cli::submit::definition(),
        ucp::cli::sync::definition(),
    ];
    for definition in definitions {
        let name = definition.get_name().to_owned();
        let path = folder().join(format!("{name}.1"));
        let made = page::render(definition, ucp::cli::manual::of(&name));
        if write {
            fs::write(&path, &made).expect("man/ can be written");
        }
        let held = fs::read_to_string(&path).unwrap_or_default();
        let differs = held.lines().zip(made.lines()).position(|(held, made)| held != made);
        let line = differs.unwrap_or_else(|| held.lines().count().min(made.lines().count())) + 1;
        assert!(held == made, "man/{name}.1 is stale from line {line} on: run scripts/man");
    }
}

#[test]
fn every_subcommand_and_flag_stands_in_its_page() {
    let page = fs::read_to_string(folder().join("ucp-broker.1")).expect("a page");
    for word in ["ucp\\-broker facts", "\\-\\-max\\-queued", "EXIT STATUS", "LISTEN_FDS", "2026"] {
        assert!(page.contains(word), "{word}");
    }
}

#[test]
fn the_formatter_has_nothing_to_say() {
    let mut pages: Vec<PathBuf> = fs::read_dir(folder())
        .expect("man/ is there")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    pages.sort();
    assert!(pages.len() >= 6, "{pages:?}");
    for page in pages {
        let mut groff = Command::new("groff");
        groff.args(["-man", "-ww", "-rCHECKSTYLE=3", "-Tutf8", "-z"]).arg(&page);
        match groff.stdin(Stdio::null()).output() {
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr);
                assert!(output.status.success() && said.is_empty(), "{}: {said}", page.display());
            }
            Err(error) => {
                skipped(&format!("groff cannot be run ({error}): pages not formatted"));
                return;
            }
        }
    }
}
