//! The units of systemd: what its own checker says of them.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::common::TestEnv;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/systemd");

/// The units with the programs that were built, as they would be installed.
fn copies(env: &TestEnv) -> Vec<String> {
    let broker = env.command("ucp-broker").get_program().to_owned();
    let built = Path::new(&broker).parent().expect("a folder").display().to_string();
    let mut copied = vec![];
    for entry in fs::read_dir(FOLDER).expect("there are units") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        if name.ends_with(".conf") {
            continue;
        }
        let text = fs::read_to_string(&path).expect("text").replace("/usr/local/bin", &built);
        let instance = name.replace('@', "@daily");
        fs::write(env.path(&name), &text).expect("room");
        fs::write(env.path(&instance), text).expect("room");
        copied.push(env.path(&instance).display().to_string());
    }
    copied.sort();
    copied
}

fn analyze(arguments: &[&str]) -> Option<(bool, String)> {
    match Command::new("systemd-analyze").args(arguments).output() {
        Ok(output) => {
            let said = [output.stdout, output.stderr].concat();
            Some((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
        }
        Err(error) => {
            crate::skipped(&format!("systemd-analyze cannot be run ({error}): units not verified"));
            None
        }
    }
}

#[test]
fn systemd_finds_no_fault_in_the_units() {
    let env = TestEnv::new();
    let units = copies(&env);
    assert!(units.len() >= 5, "{units:?}");
    let names: Vec<&str> = units.iter().map(String::as_str).collect();
    let arguments = [&["verify", "--man=no"], &names[..]].concat();
    let Some((passed, said)) = analyze(&arguments) else { return };
    // It also reads the units of the machine, which are not ours to mend.
    let ours: Vec<&str> = said.lines().filter(|line| line.contains("ucp-")).collect();
    assert!(ours.is_empty(), "{}", ours.join("\n"));
    assert!(passed || said.lines().all(|line| !line.contains("ucp-")), "{said}");
    // The checker checks: a word that is none is found.
    let broken = fs::read_to_string(env.path("ucp-exec.service")).expect("text");
    let broken = broken.replace("KillMode=mixed", "KillMode=gently");
    fs::write(env.path("ucp-exec.service"), broken).expect("room");
    let service = env.path("ucp-exec.service").display().to_string();
    let (_, said) = analyze(&["verify", "--man=no", &service]).expect("it ran before");
    assert!(said.contains("gently"), "{said}");
}

#[test]
fn the_units_are_hardened_as_far_as_their_programs_bear() {
    let env = TestEnv::new();
    copies(&env);
    for (unit, most) in [("ucp-broker.service", "20"), ("ucp-exec.service", "50")] {
        let path = env.path(unit).display().to_string();
        let threshold = format!("--threshold={most}");
        let arguments = ["security", "--offline=true", "--no-pager", &threshold, &path];
        let Some((passed, said)) = analyze(&arguments) else { return };
        let figure = said.lines().last().unwrap_or_default();
        assert!(passed, "{unit} is more open than {most} tenths: {figure}");
    }
}

#[test]
fn what_the_units_name_is_there() {
    let env = TestEnv::new();
    for unit in
        ["ucp-broker.service", "ucp-exec.service", "ucp-submit@.service", "ucp-sync.service"]
    {
        let text = fs::read_to_string(format!("{FOLDER}/{unit}")).expect("text");
        let pages = text.lines().filter_map(|line| line.strip_prefix("Documentation="));
        for page in pages.flat_map(str::split_whitespace) {
            let page = page.strip_prefix("man:").expect("a page").replace('(', ".");
            let path = format!("{}/man/{}", env!("CARGO_MANIFEST_DIR"), page.trim_end_matches(')'));
            assert!(Path::new(&path).exists(), "{unit}: {path} is not there");
        }
        let start = text.lines().find_map(|line| line.strip_prefix("ExecStart=/usr/local/bin/"));
        let mut words = start.expect("a program").split_whitespace();
        let program = words.next().expect("a program");
        let help = env.run(program, &[&words.collect::<Vec<_>>()[..], &["--help"]].concat());
        assert!(help.status.success(), "{unit}");
        let help = String::from_utf8_lossy(&help.stdout).into_owned();
        let prefix = format!("{}_", program.to_uppercase().replace('-', "_"));
        let variables = text.lines().filter_map(|line| line.strip_prefix("Environment="));
        for variable in variables.flat_map(str::split_whitespace) {
            let name = variable.split('=').next().expect("a name");
            let Some(flag) = name.strip_prefix(&prefix) else { continue };
            let flag = format!("--{}", flag.to_lowercase().replace('_', "-"));
            assert!(help.contains(&flag), "{unit}: {name} stands for no flag");
        }
    }
}
