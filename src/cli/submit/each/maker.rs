//! From a line of stdin to a job: an item that is put into a command, or a spec as JSON.
//!
//! Speaks to nobody. Law: the same line makes the same spec (tests below); only its id is fresh.

use serde_json::{Map, Value};

use crate::proto::id::JobId;
use crate::proto::job::{INDEX_ENV, ITEM_ENV, JobSpec, SpecError, json_error};
use crate::proto::limits;
use crate::proto::rng::Rng;
use crate::proto::text::Text;
use crate::runtime::entropy;
use crate::wire::api::SubmitLine;

use super::Pending;

/// What is replaced by the item.
const HOLE: &str = "{}";

/// Makes jobs of lines.
pub struct Maker {
    base: JobSpec,
    kind: Kind,
    rng: Rng,
}

enum Kind {
    /// Lines are items.
    Items,
    /// Lines are specs; these members hold where a line does not give them.
    Specs(Map<String, Value>),
}

impl Maker {
    /// Lines are items for the base's command where `each` is set, else specs for which the base
    /// gives what they leave out.
    pub fn new(base: JobSpec, each: bool) -> Self {
        let kind = if each { Kind::Items } else { Kind::Specs(members(&base)) };
        Self { base, kind, rng: Rng::from_seed(entropy::seed()) }
    }

    /// The job of a line.
    ///
    /// # Errors
    /// The line makes no valid spec; the error names the field.
    pub fn job(&mut self, index: u64, line: &[u8]) -> Result<Pending, SpecError> {
        let (spec, item) = match &self.kind {
            Kind::Items => (filled(&self.base, index, line)?, Some(Text::from(line.to_vec()))),
            Kind::Specs(defaults) => {
                let text = std::str::from_utf8(line);
                let text = text.map_err(|_| SpecError::Json("it is not UTF-8".into()))?;
                (completed(defaults, text)?, None)
            }
        };
        spec.validate()?;
        let id = JobId::random(entropy::wall(), &mut self.rng);
        let line = SubmitLine { index, id: Some(id), spec };
        let text = serde_json::to_string(&line).expect("a spec has only string keys");
        // Found here and not by the broker, which could not tell whose line it was.
        if text.len() > limits::SPEC_BYTES_MAX {
            return Err(SpecError::Long);
        }
        Ok(Pending { id, text, item, sent: false })
    }
}

fn filled(base: &JobSpec, index: u64, item: &[u8]) -> Result<JobSpec, SpecError> {
    let mut spec = base.clone();
    for text in spec.command.iter_mut().chain(&mut spec.args) {
        *text = text.filled(HOLE, item);
    }
    // These are text for people and programs, and the paths of JSON objects.
    let named = [("key", spec.key.as_mut()), ("name", spec.name.as_mut())];
    let named = named.into_iter().filter_map(|(field, text)| Some((field, text?)));
    let outputs = spec.outputs.iter_mut().map(|path| ("outputs", path));
    for (field, text) in named.chain(outputs).filter(|(_, text)| text.contains(HOLE)) {
        let item = std::str::from_utf8(item).map_err(|_| {
            let problem = "the line is not UTF-8 and cannot be put into it".to_owned();
            SpecError::Field { field, problem }
        })?;
        *text = text.replace(HOLE, item);
    }
    spec.env.insert(ITEM_ENV.to_owned(), item.to_vec().into());
    spec.env.insert(INDEX_ENV.to_owned(), index.to_string().into());
    Ok(spec)
}

/// The members of a spec that are not at their default, without its command.
fn members(base: &JobSpec) -> Map<String, Value> {
    match serde_json::to_value(base) {
        Ok(Value::Object(mut members)) => {
            members.remove("command");
            members
        }
        _ => Map::new(),
    }
}

fn completed(defaults: &Map<String, Value>, text: &str) -> Result<JobSpec, SpecError> {
    if defaults.is_empty() {
        return serde_json::from_str(text).map_err(|error| json_error(&error));
    }
    let value: Map<String, Value> =
        serde_json::from_str(text).map_err(|error| json_error(&error))?;
    let mut all = defaults.clone();
    all.extend(value);
    serde_json::from_value(Value::Object(all)).map_err(|error| json_error(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(maker: &mut Maker, text: &str) -> SubmitLine {
        let job = maker.job(3, text.as_bytes()).expect("a valid line");
        serde_json::from_str(&job.text).expect("a line of ours")
    }

    #[test]
    fn an_item_is_put_into_every_hole_and_into_the_environment() {
        let command = ["cp", "{}", "/b/{}.{}", "x"].map(str::to_owned);
        let mut base = JobSpec::command(command.to_vec());
        base.key = Some("k-{}".to_owned());
        let line = made(&mut Maker::new(base, true), "a b");
        assert_eq!(line.index, 3);
        assert_eq!(line.spec.command, ["cp", "a b", "/b/a b.a b", "x"]);
        assert_eq!(line.spec.key.as_deref(), Some("k-a b"));
        assert_eq!(line.spec.env[ITEM_ENV], "a b");
        assert_eq!(line.spec.env[INDEX_ENV], "3");
    }

    #[test]
    fn without_a_hole_the_item_is_in_the_environment_alone() {
        let base = JobSpec::command(vec!["date".to_owned()]);
        let line = made(&mut Maker::new(base, true), "x");
        assert_eq!(line.spec.command, ["date"]);
    }

    #[test]
    fn an_item_of_any_bytes_is_put_where_bytes_may_stand() {
        let mut base = JobSpec::command(["cat", "d/{}"].map(str::to_owned).to_vec());
        base.outputs = vec!["{}.out".to_owned()];
        let line = made(&mut Maker::new(base.clone(), true), "a");
        assert_eq!(line.spec.outputs, ["a.out"]);
        let refused = Maker::new(base.clone(), true).job(1, b"\xff").err().expect("refused");
        assert!(refused.to_string().starts_with("field `outputs`"), "{refused}");
        let refused = Maker::new(base.clone(), true).job(1, b"../x").err().expect("refused");
        assert!(refused.to_string().starts_with("field `outputs`"), "{refused}");
        base.outputs.clear();
        let job = Maker::new(base, true).job(1, b"\xff").expect("a valid line");
        let line: SubmitLine = serde_json::from_str(&job.text).expect("a line of ours");
        assert_eq!(line.spec.command[1], Text::from(b"d/\xff".to_vec()));
        assert_eq!(line.spec.env[ITEM_ENV].bytes(), b"\xff");
        assert_eq!(job.item.expect("an item").bytes(), b"\xff");
    }

    #[test]
    fn a_line_wins_over_flags_and_bad_lines_name_their_field() {
        let mut base = JobSpec::command(vec![]);
        base.retries = 2;
        base.name = Some("all".to_owned());
        let mut maker = Maker::new(base, false);
        let line = made(&mut maker, r#"{"command":["date"],"name":"one"}"#);
        assert_eq!((line.spec.retries, line.spec.name.as_deref()), (2, Some("one")));
        let mut plain = Maker::new(JobSpec::command(vec![]), false);
        for maker in [&mut maker, &mut plain] {
            let said = maker.job(1, br#"{"comand":["date"]}"#).err().expect("refused").to_string();
            assert_eq!(said, "unknown field `comand`, did you mean `command`?");
            let said = maker.job(1, br#"{"command":[]}"#).err().expect("refused").to_string();
            assert!(said.starts_with("field `command`"), "{said}");
            assert!(maker.job(1, b"no json").is_err());
        }
    }

    #[test]
    fn a_line_that_only_becomes_too_long_is_refused() {
        let mut maker = Maker::new(JobSpec::command(vec![]), false);
        let text = format!("\"{}\",", "x".repeat(130_000)).repeat(16);
        let line = |pad: usize| format!(r#"{{"command":[{text}"{}"]}}"#, "x".repeat(pad));
        let added = made(&mut maker, &line(1));
        let added = serde_json::to_string(&added).expect("a line").len() - line(1).len();
        let fits = limits::SPEC_BYTES_MAX - added - line(0).len();
        assert!(maker.job(3, line(fits).as_bytes()).is_ok());
        let refused = maker.job(3, line(fits + 1).as_bytes()).err().expect("refused");
        assert_eq!(refused, SpecError::Long);
    }
}
