//! What is read of a broker's line; the rest of it is passed on as it came.
//!
//! So members that this version does not know survive.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::cli::exit::Exit;
use crate::cli::report::Failure;
use crate::proto::id::TaskId;
use crate::proto::view::JobState;

/// The members that decide what is done with a line.
#[derive(Debug, Deserialize)]
pub struct Head<'a> {
    /// What kind of line it is.
    #[serde(rename = "type", borrow)]
    pub kind: Cow<'a, str>,
    /// Our number for the submission that it speaks of.
    #[serde(default)]
    pub index: Option<u64>,
    /// The job.
    #[serde(default)]
    pub job: Option<TaskId>,
    /// Where it stands.
    #[serde(default)]
    pub state: Option<JobState>,
}

/// Reads a line of a broker.
///
/// # Errors
/// It is not what this version knows.
pub fn read<T: DeserializeOwned>(line: &str) -> Result<T, Failure> {
    serde_json::from_str(line).map_err(|error| strange(line, &error))
}

/// Reads what decides about a line.
///
/// # Errors
/// As [`read`].
pub fn head(line: &str) -> Result<Head<'_>, Failure> {
    serde_json::from_str(line).map_err(|error| strange(line, &error))
}

fn strange(line: &str, error: &serde_json::Error) -> Failure {
    let start: String = line.chars().take(80).collect();
    let what = format!("the broker's answer is not understood: {error}, in {start:?}");
    Failure::new(Exit::Protocol, what).hint("are the broker and ucp-submit of like versions?")
}

/// Puts members right behind the one with this name in a line that is a JSON object; at the end
/// where there is none. The rest of the line stays as it is.
#[must_use]
pub fn with_members_after(line: &str, name: &str, members: &[(&str, &str)]) -> String {
    let mut added = String::new();
    for (name, value) in members {
        added.push_str(&format!(",\"{name}\":{}", serde_json::Value::from(*value)));
    }
    let at = end_of_member(line, name).or_else(|| line.trim_end().strip_suffix('}').map(str::len));
    match at {
        Some(at) => format!("{}{added}{}", &line[..at], &line[at..]),
        None => line.to_owned(),
    }
}

/// Where the value of an object's own member ends.
fn end_of_member(line: &str, name: &str) -> Option<usize> {
    let wanted = format!("\"{name}\"");
    let (mut depth, mut in_text, mut escaped) = (0_u32, false, false);
    let (mut start, mut found) = (0, false);
    for (at, byte) in line.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            _ if in_text => {}
            b'}' | b',' if depth == 1 && found => return Some(at),
            b'{' | b'[' => {
                depth += 1;
                start = if depth == 1 { at + 1 } else { start };
            }
            b'}' | b']' => depth = depth.checked_sub(1)?,
            b',' if depth == 1 => start = at + 1,
            b':' if depth == 1 => found |= line[start..at].trim() == wanted,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_put_behind_another_and_the_rest_stays_as_it_is() {
        let line = r#"{"type":"result","index":3,"new":[1,2.50]}"#;
        let more = with_members_after(line, "index", &[("item", "a \"b\""), ("e", "f")]);
        let expected = r#"{"type":"result","index":3,"item":"a \"b\"","e":"f","new":[1,2.50]}"#;
        assert_eq!(more, expected);
        assert_eq!(head(&more).expect("a line").index, Some(3));
    }

    #[test]
    fn only_the_objects_own_member_counts() {
        for (line, more) in [
            (
                r#"{"a":{"index":1},"b":"\"index\":2,"}"#,
                r#"{"a":{"index":1},"b":"\"index\":2,","i":"x"}"#,
            ),
            (
                r#"{"a":["index",{"index":1}], "index" : 7}"#,
                r#"{"a":["index",{"index":1}], "index" : 7,"i":"x"}"#,
            ),
            (
                r#"{"a":"index","index":{"b":[1]},"c":1}"#,
                r#"{"a":"index","index":{"b":[1]},"i":"x","c":1}"#,
            ),
            ("no object", "no object"),
            ("}", ",\"i\":\"x\"}"),
        ] {
            assert_eq!(with_members_after(line, "index", &[("i", "x")]), more);
        }
    }
}
