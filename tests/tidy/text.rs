//! Rules over any text: leftovers, names, blanks, shell, documents.

use std::collections::BTreeSet;

use crate::code::{self, has_word};
use crate::rules::{Rule, lines_with};
use crate::tree::{File, Tree};

/// The rules.
pub const RULES: &[Rule] = &[
    Rule {
        name: "leftover",
        check: leftover,
        bad: &[
            ("src/a.rs", concat!("fn a() { dbg", "!(1); }\n")),
            ("tests/a.rs", concat!("fn a() { todo", "!() }\n")),
            ("src/a.rs", concat!("// TO", "DO: later\n")),
            ("scripts/a", concat!("# TO", "DO(me): later\n")),
            ("src/a.rs", concat!("// FIX", "ME\n")),
            ("tests/a.rs", concat!("#[igno", "re]\nfn a() {}\n")),
        ],
        good: &[
            ("src/a.rs", concat!("// TO", "DO(anna, when B is built): c\n")),
            ("tests/a.rs", concat!("#[igno", "re = \"needs root\"]\nfn a() {}\n")),
        ],
    },
    Rule {
        name: "name",
        check: name,
        bad: &[
            ("src/a.rs", "struct SimpleParser;\n"),
            ("src/a.rs", "fn parse_v2() {}\n"),
            ("src/a.rs", "struct NewLog;\n"),
            ("src/cli/utils.rs", "//! A file.\n"),
        ],
        good: &[(
            "src/a.rs",
            "impl A {\n    fn new() {}\n    fn old_copy() {}\n}\nstruct Renewal;\n",
        )],
    },
    Rule {
        name: "blanks",
        check: blanks,
        bad: &[
            ("src/a.rs", "fn a() {}\t\n"),
            ("README.md", "text \n"),
            ("scripts/a", "a\r\n"),
            ("docs/a.md", "no end of line"),
            ("docs/a.md", "one end too many\n\n"),
        ],
        good: &[("docs/a.md", "# A\n\ntext\n"), ("src/b.rs", "")],
    },
    Rule {
        name: "shell",
        check: shell,
        bad: &[
            ("scripts/a", "#!/bin/bash\nset -eu\n"),
            ("scripts/a", "#!/bin/sh\necho b\n"),
            ("scripts/a.norun", "#!/bin/sh\nset -eu\n"),
            ("scripts/a", "#!/bin/sh\nset -eu\nif [[ a = b ]]; then c; fi\n"),
            ("scripts/a", "#!/bin/sh\nset -eu\nf() {\n    local b=1\n}\n"),
            (".ci/run", "#!/bin/sh\nset -eu\nset -o pipefail\n"),
        ],
        good: &[
            ("scripts/a", "#!/bin/sh\n# What it does.\nset -eu\n[ a = b ] || c\n"),
            ("scripts/common.sh", "# A part of commands.\nb() { c; }\n"),
        ],
    },
    Rule {
        name: "sleep",
        check: sleep,
        bad: &[
            ("tests/a.rs", "fn a() { std::thread::sleep(b); }\n"),
            ("tests/a/b.rs", "async fn a() { tokio::time::sleep(b).await; }\n"),
            ("scripts/a", "#!/bin/sh\nset -eu\nb & sleep 5\n"),
        ],
        good: &[
            ("tests/common/mod.rs", "fn a() { std::thread::sleep(b); }\n"),
            ("scripts/common.sh", "pause() { sleep 0.05; }\n"),
            ("scripts/a", "#!/bin/sh\nset -eu\nuntil b; do sleep 0.05; done\n"),
        ],
    },
    Rule {
        name: "link",
        check: link,
        bad: &[
            ("README.md", "see [the design](docs/design.md)\n"),
            ("docs/a.md", "see `scripts/b`\n"),
        ],
        good: &[
            ("docs/a.md", "see [b](b.md#c), [d](https://e), `scripts/f`, `src/*/g`\n"),
            ("docs/b.md", "# B\n"),
            ("scripts/f", "#!/bin/sh\n"),
        ],
    },
    Rule {
        name: "glossary",
        check: glossary,
        bad: &[("docs/glossary.md", "- **job**: a.\n- **Job**: b.\n")],
        good: &[("docs/glossary.md", "- **attempt**: a **job** once.\n- **job**: b.\n")],
    },
];

/// Nothing half done is left behind.
fn leftover(tree: &Tree) -> Vec<String> {
    const CODE: [&str; 3] = [concat!("dbg", "!"), concat!("todo", "!"), "unimplemented!"];
    const TEXT: [&str; 4] =
        [concat!("FIX", "ME"), concat!("HA", "CK"), concat!("XX", "X"), concat!("for", " now")];
    const OWED: &str = concat!("TO", "DO");
    let mut found = vec![];
    for file in &tree.files {
        found.extend(lines_with(file, file.code.lines(), &CODE, "is left over"));
        let ignored = [concat!("#[igno", "re]")];
        found.extend(lines_with(file, file.code.lines(), &ignored, "gives no reason"));
        if !file.is_rust() && !file.is_shell() {
            continue;
        }
        found.extend(lines_with(file, file.text.lines(), &TEXT, "is left over"));
        for (at, line) in file.text.lines().enumerate().filter(|(_, line)| has_word(line, OWED)) {
            let after = line.split_once(OWED).map_or("", |(_, after)| after);
            let inside = after.strip_prefix('(').and_then(|rest| rest.split_once("):"));
            if !inside.is_some_and(|(owner, _)| owner.contains(", ")) {
                found.push(file.fault(at + 1, format!("{OWED} without (owner, condition):")));
            }
        }
    }
    found
}

/// No words of praise or age in names, and none that say nothing.
fn name(tree: &Tree) -> Vec<String> {
    const WORDS: [&str; 15] = [
        "enhanced", "advanced", "simple", "improved", "better", "smart", "fancy", "modern",
        "legacy", "v2", "v3", "utils", "util", "helpers", "manager",
    ];
    const AGES: [&str; 2] = ["new", "old"]; // a function may speak of an old copy

    const ITEMS: [&str; 7] = ["fn ", "struct ", "enum ", "trait ", "mod ", "type ", "const "];
    let said = |name: &str, is_type: bool| {
        let words = words_of(name);
        let praised = words.iter().find(|word| WORDS.contains(&word.as_str())).cloned();
        praised
            .or_else(|| words.iter().find(|word| is_type && AGES.contains(&word.as_str())).cloned())
    };
    let mut found = vec![];
    for file in tree.rust("") {
        let stem = file.path.rsplit('/').next().unwrap_or_default().trim_end_matches(".rs");
        found.extend(said(stem, true).map(|word| file.fault(1, format!("named {word:?}"))));
        for (at, line) in file.code.lines().enumerate() {
            for item in ITEMS {
                let Some((before, after)) = line.split_once(item) else { continue };
                if before.bytes().last().is_some_and(code::is_word) {
                    continue;
                }
                let name: String =
                    after.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                let word = said(&name, item != "fn ");
                found.extend(word.map(|word| file.fault(at + 1, format!("{name}: {word:?}"))));
            }
        }
    }
    found
}

/// `SimpleParser`, `simple_parser` and `simple-parser` → simple, parser.
fn words_of(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    for letter in name.chars() {
        if letter.is_uppercase() || matches!(letter, '_' | '-') {
            words.push(String::new());
        }
        if let (Some(word), true) = (words.last_mut(), letter.is_alphanumeric()) {
            word.extend(letter.to_lowercase());
        }
    }
    words
}

/// No tabs, carriage returns or trailing blanks; one line end at the end.
fn blanks(tree: &Tree) -> Vec<String> {
    let mut found = vec![];
    for file in tree.files.iter().filter(|file| file.path != "Cargo.lock") {
        for (at, line) in file.text.split('\n').enumerate() {
            if line.contains(['\t', '\r']) || line.ends_with(' ') {
                found.push(file.fault(at + 1, "tab, carriage return or trailing blank"));
            }
        }
        let ends = file.text.len() - file.text.trim_end_matches('\n').len();
        if ends != 1 && !file.text.is_empty() {
            found.push(file.fault(file.text.lines().count(), format!("{ends} ends of line")));
        }
    }
    found
}

/// Commands are POSIX sh, stop at the first fault, and can be run.
fn shell(tree: &Tree) -> Vec<String> {
    const FOREIGN: [&str; 8] =
        ["[[ ", "local ", "source ", "pipefail", "declare ", "<<<", "&>", "=~"];
    let mut found = vec![];
    for file in tree.files.iter().filter(|file| file.is_shell()) {
        if file.is_script() {
            let mut lines = file.text.lines();
            if lines.next() != Some("#!/bin/sh") || !lines.any(|line| line == "set -eu") {
                found.push(file.fault(1, "does not begin with #!/bin/sh and set -eu"));
            }
            if !file.runs {
                found.push(file.fault(1, "has no run bit"));
            }
        }
        let said = |line: &&str| !line.trim_start().starts_with('#');
        let code = file.text.lines().map(|line| Some(line).filter(said).unwrap_or_default());
        found.extend(lines_with(file, code, &FOREIGN, "is not POSIX sh"));
    }
    found
}

/// Nothing sleeps to synchronise: the one pause stands in the one place that waits for conditions.
fn sleep(tree: &Tree) -> Vec<String> {
    let tests = tree.rust("tests/").filter(|file| !file.path.starts_with("tests/common/"));
    let words = ["thread::sleep", "time::sleep"];
    let check = |file: &File| lines_with(file, file.code.lines(), &words, "outside wait_until");
    let mut found: Vec<String> = tests.flat_map(check).collect();
    for file in tree.files.iter().filter(|file| file.is_script()) {
        for (at, line) in file.text.lines().enumerate() {
            let naps = |piece: &str| piece.trim_start().starts_with(|c: char| c.is_ascii_digit());
            if line.match_indices("sleep ").any(|(from, word)| naps(&line[from + word.len()..]))
                && !["-- ", "until ", "while "].iter().any(|word| line.contains(word))
                && !line.trim_start().starts_with('#')
            {
                found.push(file.fault(at + 1, "waits for a time, not for a condition"));
            }
        }
    }
    found
}

/// What a document points at is there.
fn link(tree: &Tree) -> Vec<String> {
    let mut found = vec![];
    for file in tree.files.iter().filter(|file| file.path.ends_with(".md")) {
        let folder = file.path.rsplit_once('/').map_or("", |(folder, _)| folder);
        for (at, line) in file.text.lines().enumerate() {
            for target in line.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
                let target = target.split('#').next().unwrap_or_default();
                if !target.is_empty() && !target.contains("://") && !exists(tree, folder, target) {
                    found.push(file.fault(at + 1, format!("{target} is not there")));
                }
            }
            for quoted in line.split('`').skip(1).step_by(2) {
                let roots = ["src/", "tests/", "scripts/", "docs/", ".ci/", "examples/"];
                let path = quoted.split([' ', ':']).next().unwrap_or_default();
                let is_path = roots.iter().any(|root| path.starts_with(root));
                if is_path && !path.contains(['*', '{']) && !exists(tree, "", path) {
                    found.push(file.fault(at + 1, format!("{path} is not there")));
                }
            }
        }
    }
    found
}

fn exists(tree: &Tree, folder: &str, target: &str) -> bool {
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in target.split('/').filter(|part| !part.is_empty() && *part != ".") {
        if part == ".." {
            parts.pop();
        } else {
            parts.push(part);
        }
    }
    let path = parts.join("/");
    let inside = format!("{path}/");
    tree.files.iter().any(|file| file.path == path || file.path.starts_with(&inside))
}

/// The glossary explains each word once.
fn glossary(tree: &Tree) -> Vec<String> {
    let Some(file) = tree.file("docs/glossary.md") else { return vec![] };
    let mut seen = BTreeSet::new();
    let mut found = vec![];
    for (at, line) in file.text.lines().enumerate() {
        let Some(rest) = line.strip_prefix("- **") else { continue };
        for word in rest.split("**").next().unwrap_or_default().split(", ") {
            if !seen.insert(word.to_lowercase()) {
                found.push(file.fault(at + 1, format!("{word} stands twice")));
            }
        }
    }
    found
}
