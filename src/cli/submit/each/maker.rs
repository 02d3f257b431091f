//! From a line of stdin to a job: an item that is put into a command, or a spec as JSON.
//!
//! Speaks to nobody. Law: the same line makes the same spec (tests below); only its id is fresh.

use std::cell::{Cell, RefCell};

use serde_json::{Map, Value};

use crate::proto::id::JobId;
use crate::proto::job::{INDEX_ENV, ITEM_ENV, JobSpec, SpecError, json_error};
use crate::proto::limits;
use crate::proto::ranges::Ranges;
use crate::proto::rng::Rng;
use crate::proto::text::Text;
use crate::runtime::entropy;
use crate::wire::api::SubmitLine;

use super::pending::Submission;

/// Bytes of a line that goes together with others; a longer one is a job of its own.
const ITEM_BYTES_MAX: usize = 4096;
/// Bytes of a spec whose lines go together.
const BASE_BYTES_MAX: usize = 64 << 10;
/// Places for the line in a spec whose lines go together. All of them filled with the longest of
/// lines, it is within every limit of a spec.
const HOLES_MAX: usize = 8;

/// Makes jobs of lines.
pub struct Maker {
    base: JobSpec,
    kind: Kind,
    rng: Rng,
}

enum Kind {
    /// Lines are items; `hole` is what they replace, and they may go `together` as one array.
    Items { hole: String, together: bool },
    /// Lines are specs; these members hold where a line does not give them.
    Specs(Map<String, Value>),
}

/// What is made of a line.
pub enum Made {
    /// An item that may go together with others.
    Item(Text),
    /// A job of its own, and the item that it is made of.
    Job(Submission, Option<Text>),
}

impl Maker {
    /// Lines are items that replace `hole` in the base's command where there is one, else specs
    /// for which the base gives what they leave out.
    pub fn new(base: JobSpec, hole: Option<&str>) -> Self {
        let kind = match hole {
            Some(hole) => {
                Kind::Items { hole: hole.to_owned(), together: goes_together(&base, hole) }
            }
            None => Kind::Specs(members(&base)),
        };
        Self { base, kind, rng: Rng::from_seed(entropy::seed()) }
    }

    /// What a line is.
    ///
    /// # Errors
    /// The line makes no valid spec; the error names the field.
    pub fn line(&mut self, index: u64, line: &[u8]) -> Result<Made, SpecError> {
        let (spec, item) = match &self.kind {
            Kind::Items { together: true, .. } if self.is_plain(line) => {
                return Ok(Made::Item(Text::from(line.to_vec())));
            }
            Kind::Items { hole, .. } => {
                (filled(&self.base, hole, index, line)?, Some(Text::from(line.to_vec())))
            }
            Kind::Specs(defaults) => {
                let text = std::str::from_utf8(line);
                let text = text.map_err(|_| SpecError::Json("it is not UTF-8".into()))?;
                (completed(defaults, text)?, None)
            }
        };
        spec.validate()?;
        let is_array = spec.array.is_some();
        let submission = Submission { is_array, ..self.submission(index, spec) };
        // Found here and not by the broker, which could not tell whose line it was.
        if submission.text.len() > limits::SPEC_BYTES_MAX {
            return Err(SpecError::Long);
        }
        Ok(Made::Job(submission, item))
    }

    /// One array of items, each with the number of its line.
    pub fn chunk(&mut self, lines: Vec<(u64, Text)>) -> Submission {
        let mut spec = self.base.clone();
        if let Kind::Items { hole, .. } = &self.kind {
            spec.placeholder = Some(hole.clone());
        }
        let numbers: Ranges = lines.iter().map(|(number, _)| *number).collect();
        let (first, last) = (numbers.first().unwrap_or(0), numbers.last().unwrap_or(0));
        spec.array = Some(numbers);
        spec.items = lines.into_iter().map(|(_, item)| item).collect();
        Submission { last, is_chunk: true, ..self.submission(first, spec) }
    }

    fn submission(&mut self, index: u64, spec: JobSpec) -> Submission {
        let id = JobId::random(entropy::wall(), &mut self.rng);
        let line = SubmitLine { index, id: Some(id), spec };
        let text = serde_json::to_string(&line).expect("a spec has only string keys");
        let (is_chunk, is_array) = (false, false);
        let (sent, elsewhere) = (Cell::new(false), Cell::new(false));
        let sent_to = RefCell::default();
        Submission { id, index, last: index, is_chunk, is_array, text, sent, sent_to, elsewhere }
    }

    /// Whether an item can be put wherever it goes without breaking a limit.
    fn is_plain(&self, item: &[u8]) -> bool {
        let short = !item.is_empty() && item.len() <= ITEM_BYTES_MAX && !item.contains(&0);
        short && (self.base.wasm.is_none() || std::str::from_utf8(item).is_ok())
    }
}

/// Whether lines may be elements of one array: what it says of all is the same for each of them.
fn goes_together(base: &JobSpec, hole: &str) -> bool {
    let size = serde_json::to_string(base).map_or(usize::MAX, |text| text.len());
    let words = base.command.iter().chain(&base.args);
    let holes: usize = words.map(|word| word.lossy().matches(hole).count()).sum();
    let named = base.name.iter().chain(&base.outputs).any(|text| text.contains(hole));
    let own = [ITEM_ENV, INDEX_ENV].iter().any(|name| base.env.contains_key(*name));
    size <= BASE_BYTES_MAX && holes <= HOLES_MAX && base.key.is_none() && !named && !own
}

fn filled(base: &JobSpec, hole: &str, index: u64, item: &[u8]) -> Result<JobSpec, SpecError> {
    let mut spec = base.clone();
    for text in spec.command.iter_mut().chain(&mut spec.args) {
        *text = text.filled(hole, item);
    }
    // These are text for people and programs, and the paths of JSON objects.
    let named = [("key", spec.key.as_mut()), ("name", spec.name.as_mut())];
    let named = named.into_iter().filter_map(|(field, text)| Some((field, text?)));
    let outputs = spec.outputs.iter_mut().map(|path| ("outputs", path));
    for (field, text) in named.chain(outputs).filter(|(_, text)| text.contains(hole)) {
        let item = std::str::from_utf8(item).map_err(|_| {
            let problem = "the line is not UTF-8 and cannot be put into it".to_owned();
            SpecError::Field { field, problem }
        })?;
        *text = text.replace(hole, item);
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

    fn job(maker: &mut Maker, index: u64, line: &[u8]) -> Result<Submission, SpecError> {
        match maker.line(index, line)? {
            Made::Job(submission, _) => Ok(submission),
            Made::Item(item) => Ok(maker.chunk(vec![(index, item)])),
        }
    }

    /// The spec of a line, whether it goes by itself or as an element.
    fn made(maker: &mut Maker, text: &str) -> SubmitLine {
        let job = job(maker, 3, text.as_bytes()).expect("a valid line");
        let mut line: SubmitLine = serde_json::from_str(&job.text).expect("a line of ours");
        if job.is_chunk {
            let item = line.spec.item(3).cloned();
            line.spec = line.spec.element(3, item.as_ref());
        }
        line
    }

    #[test]
    fn an_item_is_put_into_every_hole_and_into_the_environment() {
        let command = ["cp", "{}", "/b/{}.{}", "x"].map(str::to_owned);
        let mut base = JobSpec::command(command.to_vec());
        base.key = Some("k-{}".to_owned());
        let line = made(&mut Maker::new(base, Some("{}")), "a b");
        assert_eq!(line.index, 3);
        assert_eq!(line.spec.command, ["cp", "a b", "/b/a b.a b", "x"]);
        assert_eq!(line.spec.key.as_deref(), Some("k-a b"));
        assert_eq!(line.spec.env[ITEM_ENV], "a b");
        assert_eq!(line.spec.env[INDEX_ENV], "3");
    }

    #[test]
    fn another_hole_leaves_braces_alone() {
        let command = ["awk", "{} %%", "100%"].map(str::to_owned);
        let base = JobSpec::command(command.to_vec());
        let line = made(&mut Maker::new(base, Some("%")), "7");
        assert_eq!(line.spec.command, ["awk", "{} 77", "1007"]);
    }

    #[test]
    fn without_a_hole_the_item_is_in_the_environment_alone() {
        let base = JobSpec::command(vec!["date".to_owned()]);
        let line = made(&mut Maker::new(base, Some("{}")), "x");
        assert_eq!(line.spec.command, ["date"]);
    }

    #[test]
    fn an_item_of_any_bytes_is_put_where_bytes_may_stand() {
        let mut base = JobSpec::command(["cat", "d/{}"].map(str::to_owned).to_vec());
        base.outputs = vec!["{}.out".to_owned()];
        let line = made(&mut Maker::new(base.clone(), Some("{}")), "a");
        assert_eq!(line.spec.outputs, ["a.out"]);
        let mut maker = Maker::new(base.clone(), Some("{}"));
        for item in [&b"\xff"[..], b"../x"] {
            let refused = job(&mut maker, 1, item).err().expect("refused");
            assert!(refused.to_string().starts_with("field `outputs`"), "{refused}");
        }
        base.outputs.clear();
        let mut maker = Maker::new(base, Some("{}"));
        let Ok(Made::Item(item)) = maker.line(1, b"\xff") else { panic!("it goes with others") };
        assert_eq!(item.bytes(), b"\xff");
        let chunk = maker.chunk(vec![(1, item), (4, "b".into())]);
        assert_eq!((chunk.index, chunk.last, chunk.is_chunk), (1, 4, true));
        let line: SubmitLine = serde_json::from_str(&chunk.text).expect("a line of ours");
        let spec = line.spec.element(1, line.spec.item(1));
        assert_eq!(spec.command[1], Text::from(b"d/\xff".to_vec()));
        assert_eq!(spec.env[ITEM_ENV].bytes(), b"\xff");
        assert_eq!(line.spec.element(4, line.spec.item(4)).command[1], "d/b");
    }

    #[test]
    fn lines_that_differ_in_more_than_their_words_go_alone() {
        let plain = || JobSpec::command(["a", "{}"].map(str::to_owned).to_vec());
        let alone = |base: JobSpec, item: &[u8]| {
            matches!(Maker::new(base, Some("{}")).line(1, item), Ok(Made::Job(..)))
        };
        assert!(!alone(plain(), b"x"));
        assert!(alone(plain(), &[b'x'; ITEM_BYTES_MAX + 1]));
        assert!(alone(JobSpec { name: Some("n-{}".into()), ..plain() }, b"x"));
        assert!(!alone(JobSpec { name: Some("n".into()), ..plain() }, b"x"));
        assert!(alone(JobSpec { key: Some("k-{}".into()), ..plain() }, b"x"));
        let many = JobSpec::command(vec!["{}".repeat(HOLES_MAX + 1)]);
        assert!(alone(many, b"x"));
        assert!(Maker::new(plain(), Some("{}")).line(1, b"a\0b").is_err());
    }

    #[test]
    fn a_line_wins_over_flags_and_bad_lines_name_their_field() {
        let mut base = JobSpec::command(vec![]);
        base.retries = 2;
        base.name = Some("all".to_owned());
        let mut maker = Maker::new(base, None);
        let line = made(&mut maker, r#"{"command":["date"],"name":"one"}"#);
        assert_eq!((line.spec.retries, line.spec.name.as_deref()), (2, Some("one")));
        let mut plain = Maker::new(JobSpec::command(vec![]), None);
        for maker in [&mut maker, &mut plain] {
            let mut said = |line: &[u8]| job(maker, 1, line).err().expect("refused").to_string();
            let slip = said(br#"{"comand":["date"]}"#);
            assert_eq!(slip, "unknown field `comand`, did you mean `command`?");
            let said = said(br#"{"command":[]}"#);
            assert!(said.starts_with("field `command`"), "{said}");
            assert!(job(maker, 1, b"no json").is_err());
        }
    }

    #[test]
    fn a_line_that_only_becomes_too_long_is_refused() {
        let mut maker = Maker::new(JobSpec::command(vec![]), None);
        let text = format!("\"{}\",", "x".repeat(130_000)).repeat(16);
        let line = |pad: usize| format!(r#"{{"command":[{text}"{}"]}}"#, "x".repeat(pad));
        let added = job(&mut maker, 3, line(1).as_bytes()).expect("a valid line");
        let added = added.text.len() - line(1).len();
        let fits = limits::SPEC_BYTES_MAX - added - line(0).len();
        assert!(job(&mut maker, 3, line(fits).as_bytes()).is_ok());
        let refused = job(&mut maker, 3, line(fits + 1).as_bytes()).err().expect("refused");
        assert_eq!(refused, SpecError::Long);
    }
}
