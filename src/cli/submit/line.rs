//! What is read of a broker's line; the rest of it is passed on as it came.
//!
//! So members that this version does not know survive.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::cli::exit::Exit;
use crate::cli::report::Failure;
use crate::proto::id::JobId;
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
    pub job: Option<JobId>,
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

/// Adds a text member at the end of a line that is a JSON object.
#[must_use]
pub fn with_member(line: &str, name: &str, value: &str) -> String {
    let value = serde_json::Value::from(value);
    match line.trim_end().strip_suffix('}') {
        Some(open) => format!("{open},\"{name}\":{value}}}"),
        None => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_added_and_the_rest_stays_as_it_is() {
        let line = r#"{"type":"result","index":3,"new":[1,2.50]}"#;
        let more = with_member(line, "item", "a \"b\"");
        assert_eq!(more, r#"{"type":"result","index":3,"new":[1,2.50],"item":"a \"b\""}"#);
        assert_eq!(head(&more).expect("a line").index, Some(3));
    }
}
