//! Just enough of Rust's syntax for rules over text: literals, comments, braces, functions.
//!
//! Not a parser. Knows line and nested block comments, strings with escapes, raw strings, byte
//! strings, character literals and lifetimes.

use std::ops::RangeInclusive;

/// The text with comments and the insides of literals turned to blanks; lines stay lines.
pub fn blank(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let skip = if rest.starts_with(b"//") {
            rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len())
        } else if rest.starts_with(b"/*") {
            block_comment(rest)
        } else if let Some(length) = literal(bytes, at) {
            length
        } else {
            out.push(bytes[at]);
            at += 1;
            continue;
        };
        let blanked = rest[..skip].iter().map(|b| if *b == b'\n' { b'\n' } else { b' ' });
        out.extend(blanked);
        at += skip;
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn block_comment(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        if rest[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    rest.len()
}

/// The length of the literal that begins at `at`, if one does.
fn literal(bytes: &[u8], at: usize) -> Option<usize> {
    let rest = &bytes[at..];
    let inside_word = at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_');
    match rest[0] {
        b'"' => Some(1 + quoted(&rest[1..], b'"')),
        b'r' if !inside_word || bytes[at - 1] == b'b' => raw(rest),
        b'\'' => character(rest),
        _ => None,
    }
}

fn quoted(rest: &[u8], end: u8) -> usize {
    let mut at = 0;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            b if b == end => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

fn raw(rest: &[u8]) -> Option<usize> {
    let hashes = rest[1..].iter().take_while(|b| **b == b'#').count();
    if rest.get(1 + hashes) != Some(&b'"') {
        return None;
    }
    let end = [&b"\""[..], &b"#".repeat(hashes)].concat();
    let body = &rest[2 + hashes..];
    let found = body.windows(end.len()).position(|piece| piece == end);
    Some(found.map_or(rest.len(), |length| 2 + hashes + length + end.len()))
}

/// A character literal; a lifetime is none.
fn character(rest: &[u8]) -> Option<usize> {
    if rest.get(1) == Some(&b'\\') {
        return Some(1 + quoted(&rest[1..], b'\''));
    }
    let text = std::str::from_utf8(&rest[1..rest.len().min(6)]);
    let valid = text.unwrap_or_else(|error| {
        std::str::from_utf8(&rest[1..=error.valid_up_to()]).unwrap_or_default()
    });
    let first = valid.chars().next()?.len_utf8();
    (rest.get(1 + first) == Some(&b'\'')).then_some(2 + first)
}

/// From the byte of an opening brace to the byte of the one that closes it.
fn closing(code: &str, open: usize) -> usize {
    let mut depth = 0;
    for (at, byte) in code.bytes().enumerate().skip(open) {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at;
        }
    }
    code.len()
}

fn line_of(code: &str, at: usize) -> usize {
    code.as_bytes()[..at.min(code.len())].iter().filter(|b| **b == b'\n').count() + 1
}

/// The lines of every `#[cfg(test)]` item with a body.
pub fn test_lines(code: &str) -> Vec<RangeInclusive<usize>> {
    let starts = code.match_indices("#[cfg(test)]").map(|(at, _)| at);
    let range = |start: usize| {
        let open = code[start..].find(['{', ';'])? + start;
        let end = if code.as_bytes()[open] == b'{' { closing(code, open) } else { open };
        Some(line_of(code, start)..=line_of(code, end))
    };
    starts.filter_map(range).collect()
}

/// One function: its name, the line of `fn`, and how many lines it has to its closing brace.
pub struct Function {
    /// Its name.
    pub name: String,
    /// Where it begins, from 1.
    pub line: usize,
    /// How long it is.
    pub lines: usize,
}

/// The functions with a body in blanked code.
pub fn functions(code: &str) -> Vec<Function> {
    let mut found = vec![];
    for (at, _) in code.match_indices("fn ") {
        let starts_word = at == 0 || !is_word(code.as_bytes()[at - 1]);
        let name: String = code[at + 3..].chars().take_while(|c| is_word(*c as u8)).collect();
        if !starts_word || name.is_empty() {
            continue;
        }
        let Some(open) = body(&code[at..]).map(|open| at + open) else { continue };
        let (line, end) = (line_of(code, at), line_of(code, closing(code, open)));
        found.push(Function { name, line, lines: end - line + 1 });
    }
    found
}

/// Where a function's body opens: the first brace outside of brackets and before a semicolon.
fn body(code: &str) -> Option<usize> {
    let mut depth = 0;
    for (at, byte) in code.bytes().enumerate() {
        match byte {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth -= 1,
            b'{' if depth == 0 => return Some(at),
            b';' if depth == 0 => return None,
            _ => {}
        }
    }
    None
}

/// Whether a byte can be part of a name.
pub fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// Whether `word` stands in `line` with no name's character on either side; a side on which the
/// word itself ends in another character is free.
pub fn has_word(line: &str, word: &str) -> bool {
    let bytes = line.as_bytes();
    let edge =
        |inner: u8, outer: Option<&u8>| !is_word(inner) || !outer.is_some_and(|b| is_word(*b));
    line.match_indices(word).any(|(at, _)| {
        let before = at.checked_sub(1).and_then(|before| bytes.get(before));
        let after = bytes.get(at + word.len());
        let (first, last) = (word.as_bytes()[0], word.as_bytes()[word.len() - 1]);
        edge(first, before) && edge(last, after)
    })
}

#[test]
fn comments_and_literals_are_blanked_and_lines_stay() {
    let text = "a(\"x // y\\\"\"); // c\nb(r#\"\"q\"#, '\\'', '{', 'é'); /* d /* e */ \n f */ g::<'a>(b\"{\");";
    let blanked = blank(text);
    assert_eq!(blanked.lines().count(), text.lines().count());
    for gone in ["x", "y", "c", "q", "d", "e", "f", "{", "é"] {
        assert!(!blanked.contains(gone), "{gone} in {blanked}");
    }
    for kept in ["a(", "b(", "g::<'a>(b"] {
        assert!(blanked.contains(kept), "{kept} not in {blanked}");
    }
}

#[test]
fn functions_are_measured_from_their_first_line_to_their_last() {
    let code = "trait T { fn a(x: [u8; 3]); }\nfn b()\nwhere X: Y\n{\n  if c { d }\n}\nfn e() {}\n";
    let found: Vec<_> = functions(code).into_iter().map(|f| (f.name, f.line, f.lines)).collect();
    assert_eq!(found, [("b".to_owned(), 2, 5), ("e".to_owned(), 7, 1)]);
}

#[test]
fn lines_of_test_modules_are_known() {
    let code = "fn a() {}\n#[cfg(test)]\nmod tests {\n  fn b() {}\n}\n#[cfg(test)]\nmod more;\nfn c() {}\n";
    assert_eq!(test_lines(code), [2..=5, 6..=7]);
}

#[test]
fn words_have_edges() {
    assert!(has_word("x = .unwrap();", ".unwrap()"));
    assert!(has_word("use std::fs;", "std::fs") && !has_word("use std::fsx;", "std::fs"));
    assert!(!has_word("eprintln!(a)", "println!") && has_word("println!(a)", "println!"));
}
