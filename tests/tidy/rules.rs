//! What a rule is.

use crate::code::has_word;
use crate::tree::{File, Tree};

/// A path and a text that a rule is tried on.
pub type Sample = (&'static str, &'static str);

/// One rule.
pub struct Rule {
    /// What it is called in a fault.
    pub name: &'static str,
    /// The faults of a set of files.
    pub check: fn(&Tree) -> Vec<String>,
    /// Files that each must fail alone.
    pub bad: &'static [Sample],
    /// Files that together must pass.
    pub good: &'static [Sample],
}

/// One fault for each line that has one of the words.
pub fn lines_with<'a>(
    file: &File,
    lines: impl Iterator<Item = &'a str>,
    words: &[&str],
    why: &str,
) -> Vec<String> {
    let hit = |line: &str| words.iter().find(|word| has_word(line, word)).copied();
    let hits = lines.enumerate().filter_map(|(at, line)| Some((at + 1, hit(line)?)));
    hits.map(|(at, word)| file.fault(at, format!("`{word}` {why}"))).collect()
}
