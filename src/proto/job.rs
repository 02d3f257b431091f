//! What a job is to do: the spec, its JSON and its validation.
//!
//! Pure. The JSON has a fixed field order and leaves out what is default, so that equal specs
//! have equal bytes and so one digest. Unknown fields are errors that name the nearest known one.

mod array;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::proto::capability::{Kind, Needs};
use crate::proto::content::{Content, Input, Module, check_path};
use crate::proto::contest::Preference;
use crate::proto::id::{Digest, JobId, LogId};
use crate::proto::limits;
use crate::proto::precedence::Precedence;
use crate::proto::ranges::Ranges;
use crate::proto::text::Text;
use crate::proto::unique;
use crate::proto::units::Span;

/// A job as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct JobSpec {
    /// Program and arguments; the program is looked up in the executor's PATH. Either this or
    /// `wasm` is given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<Text>,
    /// The WASI module that is run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wasm: Option<Module>,
    /// The module's arguments, after its name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<Text>,
    /// Environment variables beside those that every job gets.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[serde(deserialize_with = "unique::map")]
    pub env: BTreeMap<String, Text>,
    /// Standard input; `/dev/null` where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin: Option<Content>,
    /// Files that are in the job's directory when it starts, by path.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[serde(deserialize_with = "unique::map")]
    pub inputs: BTreeMap<String, Input>,
    /// What of the job's directory is kept with its result: paths of files and directories, and
    /// patterns with `*`, `?`, `[…]` and `**`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outputs: Vec<String>,
    /// Directories that are in the job's directory when it starts, empty but for inputs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dirs: Vec<String>,
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
    /// How long after the submission (or a rerun) the job may still begin, in running time of the
    /// broker's machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Span>,
    /// What becomes of an attempt that is under way when the deadline is over.
    #[serde(default, skip_serializing_if = "is_default")]
    pub after_deadline: AfterDeadline,
    /// Executors that the job may take down before it is parked.
    #[serde(default = "max_lost", skip_serializing_if = "is_max_lost")]
    pub max_lost: u32,
    /// Which of concurrent attempts at the job is preferred after a cut.
    #[serde(default, skip_serializing_if = "is_default")]
    pub on_conflict: Preference,
    /// Whether a cut may have the job run twice at one time.
    #[serde(default, skip_serializing_if = "is_default")]
    pub overlap: Overlap,
    /// The only broker that may deploy it, by its log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub home: Option<LogId>,
    /// The same key and spec are one job, however often and wherever they are submitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// A name for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The numbers of the elements, where the job is an array: it runs once for each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub array: Option<Ranges>,
    /// What the elements stand for, one text for each in the order of their numbers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub items: Vec<Text>,
    /// The text in arguments in whose place an element's item stands, or its number where there
    /// are no items.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placeholder: Option<String>,
}

impl Serialize for JobSpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, serializer)
    }
}

/// An object only: a list of values would be taken for the fields in their order.
impl<'de> Deserialize<'de> for JobSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SpecVisitor;

        impl<'de> serde::de::Visitor<'de> for SpecVisitor {
            type Value = JobSpec;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(r#"a job as a JSON object, as in {"command":["date"]}"#)
            }

            fn visit_map<A>(self, map: A) -> Result<JobSpec, A::Error>
            where
                A: serde::de::MapAccess<'de>,
            {
                JobSpec::deserialize(serde::de::value::MapAccessDeserializer::new(map))
            }
        }

        deserializer.deserialize_map(SpecVisitor)
    }
}

/// What becomes of an attempt that is under way when its job's deadline is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", try_from = "String")]
pub enum AfterDeadline {
    /// It goes on and its result counts; the job is not tried again.
    #[default]
    Finish,
    /// It is stopped at once.
    Stop,
}

/// Whether two attempts at a job may run at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", try_from = "String")]
pub enum Overlap {
    /// They may, after a cut: the job goes on in each half.
    #[default]
    Allow,
    /// Never: an attempt runs under its executor's lease, and the job rather waits.
    Forbid,
}

impl FromStr for Overlap {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "allow" => Ok(Self::Allow),
            "forbid" => Ok(Self::Forbid),
            other => Err(format!("field `overlap`: {other:?} is neither allow nor forbid")),
        }
    }
}

impl TryFrom<String> for Overlap {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl FromStr for AfterDeadline {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "finish" => Ok(Self::Finish),
            "stop" => Ok(Self::Stop),
            other => Err(format!("field `after_deadline`: {other:?} is neither finish nor stop")),
        }
    }
}

impl TryFrom<String> for AfterDeadline {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
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
const FIELDS: [&str; 36] = [
    "command",
    "wasm",
    "args",
    "env",
    "stdin",
    "inputs",
    "outputs",
    "dirs",
    "needs",
    "precedence",
    "after",
    "retries",
    "timeout",
    "deadline",
    "after_deadline",
    "max_lost",
    "on_conflict",
    "overlap",
    "home",
    "key",
    "name",
    "array",
    "items",
    "placeholder",
    "cores",
    "memory",
    "disk",
    "battery",
    "cpu_free",
    "labels",
    "text",
    "base64",
    "blob",
    "file",
    "executable",
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
        Self::argv(command.into_iter().map(Text::from).collect())
    }

    /// The same with arguments of any bytes.
    #[must_use]
    pub fn argv(command: Vec<Text>) -> Self {
        Self {
            command,
            wasm: None,
            args: vec![],
            env: BTreeMap::new(),
            stdin: None,
            inputs: BTreeMap::new(),
            outputs: vec![],
            dirs: vec![],
            needs: Needs::default(),
            precedence: Precedence::default(),
            after: vec![],
            retries: 0,
            timeout: None,
            deadline: None,
            after_deadline: AfterDeadline::default(),
            max_lost: max_lost(),
            on_conflict: Preference::default(),
            overlap: Overlap::default(),
            home: None,
            key: None,
            name: None,
            array: None,
            items: vec![],
            placeholder: None,
        }
    }

    /// A spec that runs a WASI module with everything else at its default.
    #[must_use]
    pub fn module(module: Module, args: Vec<Text>) -> Self {
        Self { wasm: Some(module), args, ..Self::argv(vec![]) }
    }

    /// By what the job is run.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        if self.wasm.is_some() { Kind::Wasm } else { Kind::Native }
    }

    /// What is run, in one line, for people.
    #[must_use]
    pub fn command_line(&self) -> String {
        let module = self
            .wasm
            .as_ref()
            .map(|module| module.name.clone().unwrap_or_else(|| MODULE_NAME.to_owned()));
        let words = self.command.iter().chain(&self.args).map(|word| word.lossy().into_owned());
        module.into_iter().chain(words).collect::<Vec<_>>().join(" ")
    }

    /// The blobs that an executor needs for the job.
    pub fn blobs(&self) -> impl Iterator<Item = Digest> {
        let module = self.wasm.iter().map(|module| &module.content);
        let inputs = self.inputs.values().map(|input| &input.content);
        module.chain(&self.stdin).chain(inputs).filter_map(|content| match content {
            Content::Blob(digest) => Some(*digest),
            Content::Text(_) | Content::Base64(_) | Content::File(_) => None,
        })
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
        self.validate_where(false)
    }

    /// Checks every bound of a spec that is run where it is read, so that it may name files.
    ///
    /// # Errors
    /// The first field that is out of its bounds.
    pub fn validate_local(&self) -> Result<(), SpecError> {
        self.validate_where(true)
    }

    fn validate_where(&self, local: bool) -> Result<(), SpecError> {
        self.validate_program(local)?;
        self.validate_files(local)?;
        self.validate_array(local)?;
        let wrong = |field, problem: String| Err(SpecError::Field { field, problem });
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
        if self.deadline.is_some_and(|span| span.duration().is_zero()) {
            return wrong("deadline", "must be longer than nothing".into());
        }
        if self.deadline.is_none() && self.after_deadline != AfterDeadline::default() {
            return wrong("after_deadline", "goes with `deadline`, which is not given".into());
        }
        if self.overlap == Overlap::Forbid && self.key.is_some() && self.home.is_none() {
            let problem = "must name a broker's log where `overlap` is forbid and `key` is given: \
                           else each half of a cut network would take the job";
            return wrong("home", problem.into());
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
        Ok(())
    }

    fn validate_program(&self, local: bool) -> Result<(), SpecError> {
        let wrong = |field, problem: String| Err(SpecError::Field { field, problem });
        let no_name = || self.command.first().is_none_or(|name| name.bytes().is_empty());
        match &self.wasm {
            Some(_) if !self.command.is_empty() => {
                return wrong("wasm", "either `command` or `wasm` is given, not both".into());
            }
            Some(module) => check_module(module, local)?,
            None if no_name() => {
                return wrong("command", "needs at least the program's name".into());
            }
            None if !self.args.is_empty() => {
                return wrong("args", "goes with `wasm`; a command has its arguments".into());
            }
            None => {}
        }
        for (field, texts) in [("command", &self.command), ("args", &self.args)] {
            if texts.len() > limits::COMMAND_ARGS_MAX {
                return wrong(field, format!("has over {} arguments", limits::COMMAND_ARGS_MAX));
            }
            check_texts(field, texts.iter())?;
        }
        check_texts("env", self.env.values())?;
        for name in self.env.keys() {
            check_texts("env", std::iter::once(&Text::from(name.as_str())))?;
            if name.is_empty() || name.contains('=') {
                return wrong("env", format!("{name:?} is no name of a variable"));
            }
            if name.starts_with("UCP_JOB_") && !ELEMENT_ENV.contains(&name.as_str()) {
                return wrong("env", format!("{name:?} is set by the executor; use another name"));
            }
        }
        let not_utf8 = |text: &&Text| text.as_utf8().is_none();
        if self.wasm.is_some() && self.args.iter().chain(self.env.values()).any(|t| not_utf8(&t)) {
            return wrong("wasm", "WASI takes arguments and variables in UTF-8 only".into());
        }
        Ok(())
    }

    fn validate_files(&self, local: bool) -> Result<(), SpecError> {
        let wrong = |field, problem: String| Err(SpecError::Field { field, problem });
        if let Some(Err(problem)) = self.stdin.as_ref().map(|stdin| stdin.check(local)) {
            return wrong("stdin", problem);
        }
        if self.inputs.len() > limits::INPUTS_MAX {
            return wrong("inputs", format!("at most {} files", limits::INPUTS_MAX));
        }
        for (path, input) in &self.inputs {
            let checked = check_path(path).and_then(|()| input.content.check(local));
            if let Err(problem) = checked {
                return wrong("inputs", format!("{path:?}: {problem}"));
            }
            let mut above = path.as_str();
            while let Some((directory, _)) = above.rsplit_once('/') {
                if self.inputs.contains_key(directory) {
                    let problem = format!("{directory:?} cannot be both a file and a directory");
                    return wrong("inputs", problem);
                }
                above = directory;
            }
        }
        for (field, paths, max) in [
            ("outputs", &self.outputs, limits::OUTPUTS_MAX),
            ("dirs", &self.dirs, limits::INPUTS_MAX),
        ] {
            if paths.len() > max {
                return wrong(field, format!("at most {max}"));
            }
            if let Some(problem) = paths.iter().find_map(|path| check_path(path).err()) {
                return wrong(field, problem);
            }
        }
        if let Some(path) = self.dirs.iter().find(|path| self.inputs.contains_key(*path)) {
            return wrong("dirs", format!("{path:?} is an input as well"));
        }
        Ok(())
    }
}

/// What a module that has no name sees as its own.
pub const MODULE_NAME: &str = "module.wasm";

fn check_module(module: &Module, local: bool) -> Result<(), SpecError> {
    let wrong = |problem: String| SpecError::Field { field: "wasm", problem };
    module.content.check(local).map_err(wrong)?;
    let long = |name: &&String| name.is_empty() || name.len() > limits::TEXT_BYTES_MAX;
    match module.name.as_ref().filter(|name| long(name) || name.contains('\0')) {
        Some(_) => Err(wrong(format!("`name` must have 1 to {} bytes", limits::TEXT_BYTES_MAX))),
        None => Ok(()),
    }
}

fn check_texts<'a>(
    field: &'static str,
    texts: impl Iterator<Item = &'a Text>,
) -> Result<(), SpecError> {
    for text in texts {
        let problem = if text.bytes().contains(&0) {
            "a NUL byte cannot be passed on".to_owned()
        } else if text.bytes().len() > limits::ARG_BYTES_MAX {
            format!("one of the texts is over {} bytes", limits::ARG_BYTES_MAX)
        } else {
            continue;
        };
        return Err(SpecError::Field { field, problem });
    }
    Ok(())
}
