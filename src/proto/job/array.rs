//! What makes a job an array: its elements, their items, and the spec of each one's run.

use super::{INDEX_ENV, ITEM_ENV, JobSpec, SpecError, check_texts};
use crate::proto::limits;
use crate::proto::text::Text;

impl JobSpec {
    pub(super) fn validate_array(&self, local: bool) -> Result<(), SpecError> {
        let wrong = |field, problem: String| Err(SpecError::Field { field, problem });
        let Some(array) = &self.array else {
            let field = match (&self.placeholder, self.items.is_empty()) {
                (Some(_), _) => "placeholder",
                (None, false) => "items",
                (None, true) => return Ok(()),
            };
            return wrong(field, "goes with `array`".into());
        };
        if local {
            return wrong("array", "one job is run here, not many".into());
        }
        if array.is_empty() || array.len() > limits::ARRAY_ELEMENTS_MAX {
            return wrong("array", format!("has 1 to {} elements", limits::ARRAY_ELEMENTS_MAX));
        }
        if array.runs().count() > limits::ARRAY_RUNS_MAX {
            return wrong("array", format!("at most {} runs of numbers", limits::ARRAY_RUNS_MAX));
        }
        if !self.items.is_empty() {
            if self.items.len() as u64 != array.len() {
                let (items, elements) = (self.items.len(), array.len());
                return wrong("items", format!("{items} items for {elements} elements"));
            }
            if self.items.len() > limits::ARRAY_ITEMS_MAX {
                return wrong("items", format!("at most {}", limits::ARRAY_ITEMS_MAX));
            }
            check_texts("items", self.items.iter())?;
            if self.wasm.is_some() && self.items.iter().any(|item| item.as_utf8().is_none()) {
                return wrong("items", "WASI takes arguments and variables in UTF-8 only".into());
            }
        }
        if self
            .placeholder
            .as_ref()
            .is_some_and(|p| p.is_empty() || p.len() > limits::TEXT_BYTES_MAX)
        {
            let most = limits::TEXT_BYTES_MAX;
            return wrong("placeholder", format!("must have 1 to {most} bytes"));
        }
        let own = [ITEM_ENV, INDEX_ENV].into_iter().find(|name| self.env.contains_key(*name));
        match own {
            Some(name) => wrong("env", format!("{name:?} is set for each element of an array")),
            None => Ok(()),
        }
    }

    /// The item of an element, where the array has items.
    #[must_use]
    pub fn item(&self, element: u64) -> Option<&Text> {
        let mut before = 0;
        for (first, last) in self.array.as_ref()?.runs() {
            if (first..=last).contains(&element) {
                return self.items.get(usize::try_from(before + element - first).ok()?);
            }
            before += last - first + 1;
        }
        None
    }

    /// The spec of one element's run: with its number and item in place, and no array any more.
    #[must_use]
    pub fn element(&self, element: u64, item: Option<&Text>) -> Self {
        let number = Text::from(element.to_string());
        let stands_for = item.unwrap_or(&number);
        let fill = |texts: &[Text]| match &self.placeholder {
            Some(placeholder) => {
                texts.iter().map(|text| text.filled(placeholder, stands_for.bytes())).collect()
            }
            None => texts.to_vec(),
        };
        let (command, args) = (fill(&self.command), fill(&self.args));
        let mut env = self.env.clone();
        env.insert(INDEX_ENV.into(), number.clone());
        if let Some(item) = item {
            env.insert(ITEM_ENV.into(), item.clone());
        }
        Self { command, args, env, ..self.without_array() }
    }

    /// The same without what makes it an array.
    #[must_use]
    pub fn without_array(&self) -> Self {
        Self {
            command: self.command.clone(),
            wasm: self.wasm.clone(),
            args: self.args.clone(),
            env: self.env.clone(),
            stdin: self.stdin.clone(),
            inputs: self.inputs.clone(),
            outputs: self.outputs.clone(),
            dirs: self.dirs.clone(),
            needs: self.needs.clone(),
            after: self.after.clone(),
            key: self.key.clone(),
            name: self.name.clone(),
            home: self.home.clone(),
            array: None,
            items: vec![],
            placeholder: None,
            ..*self
        }
    }
}
