//! What a job is to do: the spec, its JSON and its validation.
//!
//! Pure. The JSON has a fixed field order and leaves out what is default, so that equal specs
//! have equal bytes and so one digest. Unknown fields are errors that name the nearest known one.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::proto::capability::Needs;
use crate::proto::id::{Digest, JobId};
use crate::proto::limits;
use crate::proto::precedence::Precedence;
use crate::proto::units::Span;

/// A job as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobSpec {
    /// Program and arguments; the program is looked up in the executor's PATH.
    pub command: Vec<String>,
    /// Environment variables beside those that every job gets.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Standard input; `/dev/null` where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin: Option<Stdin>,
    /// What the executor must have.
    #[serde(default, skip_serializing_if = "Needs::is_default")]
    pub needs: Needs,
    /// Urgency.
    #[serde(default, skip_serializing_if = "is_default")]
    pub precedence: Precedence,
    /// Jobs that must have succeeded before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<JobId>,
    /// How often a failed run is repeated.
    #[serde(default, skip_serializing_if = "is_default")]
    pub retries: u32,
    /// How long one attempt may run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Span>,
    /// Executors that the job may take down before it is parked.
    #[serde(default = "max_lost", skip_serializing_if = "is_max_lost")]
    pub max_lost: u32,
    /// The same key and spec are one job, however often and wherever they are submitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// A name for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn max_lost() -> u32 {
    limits::LOST_MAX_DEFAULT
}

#[allow(clippy::trivially_copy_pass_by_ref)] // the shape that serde asks for
fn is_max_lost(value: &u32) -> bool {
    *value == limits::LOST_MAX_DEFAULT
}

/// The variable with the line that a job was made of.
pub const ITEM_ENV: &str = "UCP_JOB_ITEM";
/// The variable with the number of that line, from 1.
pub const INDEX_ENV: &str = "UCP_JOB_INDEX";
/// The only names under `UCP_JOB_` that a submission may set; the executor sets the others.
const ELEMENT_ENV: [&str; 2] = [ITEM_ENV, INDEX_ENV];

/// Where a job's standard input comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Stdin {
    /// UTF-8 text.
    Text(String),
    /// Bytes in base64 (RFC 4648 section 4).
    Base64(String),
    /// A blob that a broker has.
    Blob(Digest),
}

/// Why a spec is refused. Nothing changed; trying again cannot help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpecError {
    /// Not JSON, or a value of another type; the text says where.
    #[error("{0}")]
    Json(String),
    /// A field that no spec has.
    #[error("unknown field `{field}`{}", hint.as_ref().map_or(String::new(), |near| format!(", did you mean `{near}`?")))]
    UnknownField {
        /// The field as it was written.
        field: String,
        /// The nearest field that a spec has.
        hint: Option<String>,
    },
    /// A field's value is out of its bounds.
    #[error("field `{field}`: {problem}")]
    Field {
        /// The field.
        field: &'static str,
        /// What is wrong, and the bound.
        problem: String,
    },
    /// The job with all that a submission adds is longer than may be.
    #[error("a job is over {} bytes of JSON", limits::SPEC_BYTES_MAX)]
    Long,
}

/// The fields of a spec and of what it contains.
const FIELDS: [&str; 21] = [
    "command",
    "env",
    "stdin",
    "needs",
    "precedence",
    "after",
    "retries",
    "timeout",
    "max_lost",
    "key",
    "name",
    "cores",
    "memory",
    "disk",
    "battery",
    "cpu_free",
    "labels",
    "text",
    "base64",
    "blob",
    "id",
];

/// Turns serde's words about JSON into ours: an unknown field gets the nearest known one.
#[must_use]
pub fn json_error(error: &serde_json::Error) -> SpecError {
    let text = error.to_string();
    let unknown = ["unknown field `", "unknown variant `"];
    let field = unknown.iter().find_map(|start| text.strip_prefix(start)?.split('`').next());
    match field {
        Some(field) => SpecError::UnknownField { field: field.to_owned(), hint: nearest(field) },
        // A spec is one line; readers of many lines name the line themselves.
        None => SpecError::Json(text.replace(" at line 1 column ", " at column ")),
    }
}

fn nearest(field: &str) -> Option<String> {
    let distance = |known: &&str| strsim::damerau_levenshtein(field, known);
    let near = FIELDS.iter().min_by_key(|known| distance(known))?;
    let close = distance(near) <= 2 || (field.len() >= 3 && near.starts_with(field));
    close.then(|| (*near).to_owned())
}

impl JobSpec {
    /// A spec that runs a command with everything else at its default.
    #[must_use]
    pub fn command(command: Vec<String>) -> Self {
        Self {
            command,
            env: BTreeMap::new(),
            stdin: None,
            needs: Needs::default(),
            precedence: Precedence::default(),
            after: vec![],
            retries: 0,
            timeout: None,
            max_lost: max_lost(),
            key: None,
            name: None,
        }
    }

    /// Reads a spec and validates it.
    ///
    /// # Errors
    /// [`SpecError`] names the field and what would be right.
    pub fn from_json(text: &str) -> Result<Self, SpecError> {
        let spec: Self = serde_json::from_str(text).map_err(|error| json_error(&error))?;
        spec.validate()?;
        Ok(spec)
    }

    /// The digest of the spec's canonical JSON.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(self.to_json().as_bytes())
    }

    /// The canonical JSON: fixed field order, defaults left out.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a spec has only string keys")
    }

    /// Checks every bound.
    ///
    /// # Errors
    /// The first field that is out of its bounds.
    pub fn validate(&self) -> Result<(), SpecError> {
        let wrong = |field, problem: String| Err(SpecError::Field { field, problem });
        if self.command.first().is_none_or(String::is_empty) {
            return wrong("command", "needs at least the program's name".into());
        }
        if self.command.len() > limits::COMMAND_ARGS_MAX {
            return wrong("command", format!("has over {} arguments", limits::COMMAND_ARGS_MAX));
        }
        check_texts("command", self.command.iter())?;
        check_texts("env", self.env.values())?;
        check_texts("env", self.env.keys())?;
        if let Some(name) = self.env.keys().find(|name| name.is_empty() || name.contains('=')) {
            return wrong("env", format!("{name:?} is no name of a variable"));
        }
        let reserved =
            |name: &&String| name.starts_with("UCP_JOB_") && !ELEMENT_ENV.contains(&name.as_str());
        if let Some(name) = self.env.keys().find(reserved) {
            return wrong("env", format!("{name:?} is set by the executor; use another name"));
        }
        if !(1..=limits::CORES_MAX).contains(&self.needs.cores) {
            return wrong("needs", format!("cores must be from 1 to {}", limits::CORES_MAX));
        }
        if [self.needs.battery, self.needs.cpu_free].into_iter().flatten().any(|p| p > 100) {
            return wrong("needs", "battery and cpu_free are percent, from 0 to 100".into());
        }
        if self.needs.labels.len() > limits::LABELS_MAX {
            return wrong("needs", format!("at most {} labels", limits::LABELS_MAX));
        }
        if self.after.len() > limits::AFTER_MAX {
            return wrong("after", format!("at most {} jobs", limits::AFTER_MAX));
        }
        if self.retries > limits::RETRIES_MAX {
            return wrong("retries", format!("at most {}", limits::RETRIES_MAX));
        }
        if self.timeout.is_some_and(|span| span.duration().is_zero()) {
            return wrong("timeout", "must be longer than nothing".into());
        }
        if self.max_lost == 0 {
            return wrong("max_lost", "must be at least 1".into());
        }
        for (field, text) in [("key", &self.key), ("name", &self.name)] {
            let long = |text: &&String| text.is_empty() || text.len() > limits::TEXT_BYTES_MAX;
            if text.as_ref().filter(long).is_some() {
                return wrong(field, format!("must have 1 to {} bytes", limits::TEXT_BYTES_MAX));
            }
        }
        self.validate_stdin()
    }

    fn validate_stdin(&self) -> Result<(), SpecError> {
        use base64::Engine;
        let max = limits::STDIN_INLINE_BYTES_MAX;
        let bytes = match &self.stdin {
            None | Some(Stdin::Blob(_)) => return Ok(()),
            Some(Stdin::Text(text)) => Ok(text.len()),
            Some(Stdin::Base64(text)) => {
                base64::engine::general_purpose::STANDARD.decode(text).map(|bytes| bytes.len())
            }
        };
        let problem = match bytes {
            Err(error) => format!("is no base64: {error}"),
            Ok(length) if length > max => format!("over {max} bytes: send it as a blob"),
            Ok(_) => return Ok(()),
        };
        Err(SpecError::Field { field: "stdin", problem })
    }
}

fn check_texts<'a>(
    field: &'static str,
    mut texts: impl Iterator<Item = &'a String>,
) -> Result<(), SpecError> {
    let bad = |text: &&String| text.contains('\0') || text.len() > limits::ARG_BYTES_MAX;
    match texts.find(bad) {
        None => Ok(()),
        Some(text) if text.contains('\0') => {
            Err(SpecError::Field { field, problem: "a NUL byte cannot be passed on".into() })
        }
        Some(_) => Err(SpecError::Field {
            field,
            problem: format!("one of the texts is over {} bytes", limits::ARG_BYTES_MAX),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_round_trips_and_leaves_defaults_out() {
        let spec = JobSpec::command(vec!["date".into()]);
        assert_eq!(spec.to_json(), r#"{"command":["date"]}"#);
        assert_eq!(JobSpec::from_json(&spec.to_json()), Ok(spec));
    }

    #[test]
    fn an_unknown_field_is_named_with_the_nearest_known_one() {
        let said = |text: &str| JobSpec::from_json(text).expect_err(text).to_string();
        let text = said(r#"{"comand":["date"]}"#);
        assert_eq!(text, "unknown field `comand`, did you mean `command`?");
        let text = said(r#"{"command":["date"],"needs":{"core":2}}"#);
        assert_eq!(text, "unknown field `core`, did you mean `cores`?");
        assert_eq!(said(r#"{"command":["a"],"zzzzzz":1}"#), "unknown field `zzzzzz`");
    }

    #[test]
    fn of_the_executors_variables_only_item_and_index_may_be_given() {
        let mut spec = JobSpec::command(vec!["date".into()]);
        spec.env.insert(ITEM_ENV.into(), "a line".into());
        spec.env.insert(INDEX_ENV.into(), "1".into());
        assert_eq!(spec.validate(), Ok(()));
        spec.env.insert("UCP_JOB_ITEMS".into(), "x".into());
        assert!(spec.validate().is_err());
    }

    #[test]
    fn values_out_of_bounds_name_their_field() {
        for (text, field) in [
            (r#"{"command":[]}"#, "command"),
            (r#"{"command":["a\u0000b"]}"#, "command"),
            (r#"{"command":["a"],"env":{"A=B":"c"}}"#, "env"),
            (r#"{"command":["a"],"env":{"UCP_JOB_ID":"c"}}"#, "env"),
            (r#"{"command":["a"],"needs":{"cores":0}}"#, "needs"),
            (r#"{"command":["a"],"timeout":"0s"}"#, "timeout"),
            (r#"{"command":["a"],"key":""}"#, "key"),
            (r#"{"command":["a"],"stdin":{"base64":"!"}}"#, "stdin"),
            (r#"{"command":["a"],"max_lost":0}"#, "max_lost"),
        ] {
            let said = JobSpec::from_json(text).expect_err(text).to_string();
            assert!(said.starts_with(&format!("field `{field}`")), "{text}: {said}");
        }
    }
}
