//! Style as a test: what cargo fmt, clippy and the compiler cannot see.
//!
//! Reads the tree as text; runs nothing. A rule is a function from a set of files to faults and
//! carries samples of its own: the bad ones must each fail, the good one must pass, so that no
//! rule is vacuous. Faults are printed one a line as `rule: path:line: what is wrong`.
//! What each rule is for is told in CONTRIBUTING.md.

#[path = "tidy/code.rs"]
mod code;
#[path = "tidy/rules.rs"]
mod rules;
#[path = "tidy/source.rs"]
mod source;
#[path = "tidy/text.rs"]
mod text;
#[path = "tidy/tree.rs"]
mod tree;

use rules::Rule;
use tree::{File, Tree};

fn rules() -> impl Iterator<Item = &'static Rule> {
    source::RULES.iter().chain(text::RULES)
}

fn faults(rule: &Rule, tree: &Tree) -> Vec<String> {
    (rule.check)(tree).into_iter().map(|fault| format!("{}: {fault}", rule.name)).collect()
}

#[test]
fn the_tree_is_tidy() {
    let tree = Tree::of_project();
    let found: Vec<String> = rules().flat_map(|rule| faults(rule, &tree)).collect();
    assert!(found.is_empty(), "{} faults:\n{}", found.len(), found.join("\n"));
}

#[test]
fn the_tree_is_read_whole() {
    let tree = Tree::of_project();
    for path in ["Cargo.toml", "src/lib.rs", "src/proto/limits.rs", "tests/tidy.rs", "scripts/test"]
    {
        assert!(tree.file(path).is_some(), "{path} was not read");
    }
    assert!(tree.files.iter().all(|file| !file.path.starts_with("target/")));
}

#[test]
fn every_rule_finds_its_bad_samples_and_passes_its_good_one() {
    for rule in rules() {
        assert!(!rule.bad.is_empty(), "{}: no bad sample", rule.name);
        for (path, text) in rule.bad {
            let tree = Tree { files: vec![File::sample(path, text)] };
            assert!(!faults(rule, &tree).is_empty(), "{} passes {path}:\n{text}", rule.name);
        }
        let good = rule.good.iter().map(|(path, text)| File::sample(path, text)).collect();
        assert_eq!(faults(rule, &Tree { files: good }), [""; 0], "{}", rule.name);
    }
}
