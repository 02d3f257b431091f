//! Rules over Rust: layers, sizes, modules, and calls that do not belong.

use crate::code::{self, has_word};
use crate::rules::{Rule, lines_with};
use crate::tree::{File, Tree};

const FILE_LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 70;
const BIN_LINES_MAX: usize = 30;
const LINE_COLUMNS_MAX: usize = 100;

/// The rules.
pub const RULES: &[Rule] = &[
    Rule {
        name: "pure",
        check: pure,
        bad: &[
            ("src/proto/a.rs", "use std::fs::File;\n"),
            ("src/proto/a.rs", "fn a() { let _ = std::time::Instant::now(); }\n"),
            ("src/wire/a.rs", "use tokio::io::AsyncRead;\n"),
            ("src/wire/a.rs", "use std::collections::{BTreeMap, HashMap};\n"),
        ],
        good: &[
            ("src/proto/a.rs", "// std::fs\nuse std::time::Duration;\n"),
            ("src/runtime/a.rs", "use std::fs::File;\n"),
        ],
    },
    Rule {
        name: "layers",
        check: layers,
        bad: &[
            ("src/proto/a.rs", "use crate::wire::api;\n"),
            ("src/wire/a.rs", "fn a() { crate::runtime::b() }\n"),
            ("src/runtime/a.rs", "use crate::cli::exit;\n"),
            ("src/runtime/a.rs", "use crate::{cli, proto};\n"),
            ("src/bin/ucp-a.rs", "fn main() { ucp::runtime::run() }\n"),
        ],
        good: &[
            ("src/cli/a.rs", "use crate::runtime::b;\nuse crate::proto::c;\n"),
            ("src/wire/a.rs", "use crate::proto::c;\npub(crate) fn d() {}\n"),
            ("src/bin/ucp-a.rs", "fn main() { ucp::cli::a::main() }\n"),
        ],
    },
    Rule {
        name: "size",
        check: size,
        bad: &[
            ("src/cli/a.rs", LONG_FILE),
            ("tests/a.rs", LONG_FUNCTION),
            ("src/bin/ucp-a.rs", LONG_BIN),
            ("src/cli/a.rs", LONG_LINE),
        ],
        good: &[("src/cli/a.rs", LONG_BIN), ("src/cli/b.rs", "fn a() {\n}\n")],
    },
    Rule {
        name: "unwrap",
        check: unwrap,
        bad: &[("src/cli/a.rs", "fn a() {\n    b().unwrap();\n}\n")],
        good: &[
            ("src/cli/a.rs", "fn a() { b().unwrap_or(1); }\n// .unwrap()\n"),
            ("src/cli/b.rs", "#[cfg(test)]\nmod tests {\n    fn a() { b().unwrap(); }\n}\n"),
            ("tests/a.rs", "fn a() { b().unwrap(); }\n"),
        ],
    },
    Rule {
        name: "print",
        check: print,
        bad: &[
            ("src/runtime/a.rs", "fn a() { println!(\"b\"); }\n"),
            ("src/cli/a.rs", "fn a() { std::io::stderr().lock(); }\n"),
            ("src/cli/output.rs", "fn a() { eprintln!(\"b\"); }\n"),
        ],
        good: &[
            ("src/cli/output.rs", "fn a() { std::io::stdout().lock(); }\n"),
            ("src/cli/report.rs", "fn a() { std::io::stderr().lock(); }\n"),
            ("src/proto/a.rs", "fn a() { result.stdout(); }\n"),
        ],
    },
    Rule {
        name: "module",
        check: module,
        bad: &[
            ("src/proto/a.rs", "//! A file.\n"),
            ("src/cli/a/b.rs", "//! A file.\n"),
            ("tests/a/b.rs", "fn c() {}\n"),
            ("src/bin/ucp-a.rs", "fn main() {}\n"),
        ],
        good: &[
            ("src/lib.rs", "pub mod a;\n"),
            ("src/a.rs", "mod b;\n"),
            ("src/a/b.rs", "//! A file.\n"),
            ("Cargo.toml", "path = \"src/bin/ucp-a.rs\"\n"),
            ("src/bin/ucp-a.rs", "fn main() {}\n"),
            ("tests/c.rs", "#[path = \"c/d.rs\"]\nmod d;\n"),
            ("tests/c/d.rs", "fn e() {}\n"),
        ],
    },
    Rule {
        name: "header",
        check: header,
        bad: &[("src/a.rs", "use b;\n"), ("src/a.rs", "\n"), ("tests/a.rs", "fn a() {}\n")],
        good: &[("src/a.rs", "//! What it is.\n")],
    },
    Rule {
        name: "limit",
        check: limit,
        bad: &[("src/proto/limits.rs", "pub const A_MAX: u8 = 1;\n")],
        good: &[
            ("src/proto/limits.rs", "/// Why so many.\npub const A_MAX: u8 = 1;\n"),
            ("src/proto/b.rs", "fn b() -> u8 { limits::A_MAX }\n"),
        ],
    },
];

const LONG_FILE: &str = {
    const TEXT: [u8; FILE_LINES_MAX + 1] = [b'\n'; FILE_LINES_MAX + 1];
    ascii(&TEXT)
};
const LONG_BIN: &str = {
    const TEXT: [u8; BIN_LINES_MAX + 1] = [b'\n'; BIN_LINES_MAX + 1];
    ascii(&TEXT)
};
const LONG_LINE: &str = {
    const TEXT: [u8; LINE_COLUMNS_MAX + 1] = [b'x'; LINE_COLUMNS_MAX + 1];
    ascii(&TEXT)
};
const LONG_FUNCTION: &str = {
    const TEXT: [u8; FUNCTION_LINES_MAX + 10] = {
        let mut text = [b'\n'; FUNCTION_LINES_MAX + 10];
        let head = *b"fn a() {";
        let mut at = 0;
        while at < head.len() {
            text[at] = head[at];
            at += 1;
        }
        text[FUNCTION_LINES_MAX + 9] = b'}';
        text
    };
    ascii(&TEXT)
};

const fn ascii(bytes: &'static [u8]) -> &'static str {
    match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(_) => panic!("samples are ASCII"),
    }
}

/// The pure layers touch nothing of the world and have no order of their own making.
fn pure(tree: &Tree) -> Vec<String> {
    const FORBIDDEN: [&str; 16] = [
        "std::fs",
        "std::net",
        "std::process",
        "std::thread",
        "std::env",
        "std::io",
        "std::os",
        "Instant",
        "SystemTime",
        "HashMap",
        "HashSet",
        "tokio",
        "hyper",
        "nix",
        "rusqlite",
        "rand",
    ];
    let pure = tree.rust("src/proto/").chain(tree.rust("src/wire/"));
    let check = |file: &File| lines_with(file, file.code.lines(), &FORBIDDEN, "in a pure layer");
    pure.flat_map(check).collect()
}

/// Imports point one way: bin → cli → runtime → wire → proto.
fn layers(tree: &Tree) -> Vec<String> {
    const ORDER: [(&str, &[&str]); 4] = [
        ("src/proto/", &["crate::wire", "crate::runtime", "crate::cli", "crate::{"]),
        ("src/wire/", &["crate::runtime", "crate::cli", "crate::{"]),
        ("src/runtime/", &["crate::cli", "crate::{"]),
        ("src/bin/", &["ucp::proto", "ucp::wire", "ucp::runtime", "ucp::{"]),
    ];
    let check = |(layer, above): (&'static str, &'static [&str])| {
        let faults = |file: &File| lines_with(file, file.code.lines(), above, "points back");
        tree.rust(layer).flat_map(faults).collect::<Vec<_>>()
    };
    ORDER.into_iter().flat_map(check).collect()
}

/// Files, functions, programs and lines are short.
fn size(tree: &Tree) -> Vec<String> {
    let mut found = vec![];
    for file in tree.rust("") {
        let lines = file.text.lines().count();
        let bin = file.path.starts_with("src/bin/");
        let max = if bin { BIN_LINES_MAX } else { FILE_LINES_MAX };
        if lines > max {
            found.push(file.fault(lines, format!("over {max} lines")));
        }
        let long = |function: &code::Function| function.lines > FUNCTION_LINES_MAX;
        for function in code::functions(&file.code).into_iter().filter(long) {
            let (name, lines) = (function.name, function.lines);
            let what = format!("fn {name} has {lines} lines, over {FUNCTION_LINES_MAX}");
            found.push(file.fault(function.line, what));
        }
        for (at, line) in file.text.lines().enumerate() {
            // A message is not broken in two for the sake of a column.
            if line.chars().count() > LINE_COLUMNS_MAX && !line.contains('"') {
                found.push(file.fault(at + 1, format!("over {LINE_COLUMNS_MAX} columns")));
            }
        }
    }
    found
}

/// What ships says why it cannot fail, or handles it.
fn unwrap(tree: &Tree) -> Vec<String> {
    let check = |file: &File| {
        let lines = file.shipped().filter(|(_, line)| has_word(line, ".unwrap()"));
        lines.map(|(at, _)| file.fault(at, "unwrap outside tests")).collect::<Vec<_>>()
    };
    tree.rust("src/").flat_map(check).collect()
}

/// One file writes to stdout, one to stderr.
fn print(tree: &Tree) -> Vec<String> {
    const STDOUT: [&str; 3] = ["println!", "print!", "io::stdout"];
    const STDERR: [&str; 3] = ["eprintln!", "eprint!", "io::stderr"];
    let mut found = vec![];
    for file in tree.rust("src/") {
        // To ask whether a stream is a terminal is not to write to it.
        let asked = [
            "io::stdout().is_terminal()",
            "io::stderr().is_terminal()",
            "colour(&std::io::stdout())",
        ];
        let code = asked.iter().fold(file.code.clone(), |code, ask| code.replace(ask, ""));
        for (words, home) in [(STDOUT, "src/cli/output.rs"), (STDERR, "src/cli/report.rs")] {
            if file.path != home {
                found.extend(lines_with(file, code.lines(), &words, "belongs elsewhere"));
            }
        }
    }
    found
}

/// Every file of Rust is part of something.
fn module(tree: &Tree) -> Vec<String> {
    let named = |file: &File| {
        let path = file.path.trim_end_matches(".rs").trim_end_matches("/mod");
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        let decl = format!("mod {name};");
        let declares = |at: &str| tree.file(at).is_some_and(|f| has_word(&f.code, &decl));
        match folder {
            "src/bin" => tree.file("Cargo.toml").is_some_and(|f| f.text.contains(&file.path)),
            "src" => name == "lib" || declares("src/lib.rs"),
            "tests" | "examples" | "benches" | "" if !file.path.ends_with("/mod.rs") => true,
            _ if file.path.starts_with("tests/") => {
                tree.rust("tests/").any(|f| f.path != file.path && has_word(&f.code, &decl))
            }
            _ => declares(&format!("{folder}/mod.rs")) || declares(&format!("{folder}.rs")),
        }
    };
    let lost = tree.rust("").filter(|file| !named(file));
    lost.map(|file| file.fault(1, "no module names this file")).collect()
}

/// Every file of Rust begins by saying what it is.
fn header(tree: &Tree) -> Vec<String> {
    let bare = tree.rust("").filter(|file| !file.text.starts_with("//! "));
    bare.map(|file| file.fault(1, "does not begin with `//! `")).collect()
}

/// Every limit has its reason, and is kept somewhere.
fn limit(tree: &Tree) -> Vec<String> {
    let Some(limits) = tree.file("src/proto/limits.rs") else { return vec![] };
    let mut found = vec![];
    let mut before = "";
    for (at, line) in limits.text.lines().enumerate() {
        if let Some(rest) = line.strip_prefix("pub const ") {
            let name = rest.split(':').next().unwrap_or_default();
            if !before.starts_with("/// ") {
                found.push(limits.fault(at + 1, format!("{name} has no reason")));
            }
            let elsewhere = tree.rust("src/").filter(|file| file.path != limits.path);
            if !elsewhere.into_iter().any(|file| has_word(&file.code, name)) {
                found.push(limits.fault(at + 1, format!("{name} is kept nowhere")));
            }
        }
        before = line;
    }
    found
}
