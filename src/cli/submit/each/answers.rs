//! What a broker says, and what is printed of it.
//!
//! Sends nothing. A result is printed when its files are here and it is its turn; a line that was
//! refused is told on stderr.

use std::rc::Rc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio::time::Instant;

use crate::cli::report::Failure;
use crate::proto::id::TaskId;
use crate::proto::limits;
use crate::proto::text::Text;
use crate::proto::view::JobState;
use crate::runtime::client::ClientError;
use crate::wire::api::{SubmitLine, SubmittedLine};
use crate::wire::problem::Problem;

use super::super::line;
use super::super::link::Asked;
use super::fetcher::Fetched;
use super::pending::{Line, Submission};
use super::{Filter, Ready};

impl Filter<'_> {
    pub(super) fn handle(&mut self, text: &str) -> Result<(), Asked> {
        let head = line::head(text).map_err(Asked::Failed)?;
        match (&*head.kind, head.index, head.job) {
            ("submitted", Some(index), _) => self.submitted(index, text).map_err(Asked::Failed)?,
            ("result", Some(index), Some(task)) => {
                let well = head.state == Some(JobState::Succeeded);
                self.handle_result(index, task, well, text).map_err(Asked::Failed)?;
            }
            ("problem", index, _) => {
                let problem: Problem = line::read(text).map_err(Asked::Failed)?;
                self.handle_problem(problem, index)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// A submission is durable.
    fn submitted(&mut self, index: u64, text: &str) -> Result<(), Failure> {
        let Some(submission) = self.shared.numbered(index) else { return Ok(()) };
        let job = line::read::<SubmittedLine>(text)?.job;
        if submission.is_array && !self.detach && !self.arrays.contains_key(&job) {
            let spec = line::read::<SubmitLine>(&submission.text)?.spec;
            self.arrays.insert(job, (index, spec.array.unwrap_or_default()));
        }
        if submission.is_chunk {
            self.chunk_lines = (self.chunk_lines * 2).min(limits::CHUNK_LINES_MAX);
        }
        if self.detach {
            for number in self.shared.lines_of(&submission) {
                self.finish(number);
                self.progress.ended(true);
                let element = submission.is_chunk.then_some(number);
                self.print(number, TaskId::new(job, element).to_string());
            }
        }
        Ok(())
    }

    fn handle_result(
        &mut self,
        index: u64,
        task: TaskId,
        well: bool,
        text: &str,
    ) -> Result<(), Failure> {
        if let Some(element) = task.element
            && let Some((number, left)) = self.arrays.get_mut(&task.job)
        {
            let number = *number;
            if !left.contains(element) {
                return Ok(());
            }
            left.remove(element);
            self.failed |= !well;
            if left.is_empty() {
                self.arrays.remove(&task.job);
                self.finish(number);
                self.progress.ended(well);
            }
            return self.take_result(number, format!("{number}/{element}"), text.to_owned());
        }
        let Some(line) = self.finish(index) else { return Ok(()) };
        self.failed |= !well;
        self.progress.ended(well);
        // The broker knows the items of arrays.
        let item = line.item.as_ref().filter(|_| task.element.is_none());
        self.take_result(index, index.to_string(), with_item(text, item))
    }

    /// Prints a result, once its files are here.
    fn take_result(&mut self, index: u64, below: String, text: String) -> Result<(), Failure> {
        let ready = match &mut self.fetcher {
            Some(fetcher) => fetcher.take(index, below, text)?,
            None => Some(text),
        };
        match ready {
            Some(text) => self.print(index, text),
            None => self.order.expect(index),
        }
        Ok(())
    }

    pub(super) fn fetched(&mut self, fetched: Fetched) {
        if let Some(failure) = fetched.failure {
            let exit = self.reporter.failure(&failure);
            self.unfetched.get_or_insert(exit);
        }
        self.print(fetched.index, fetched.text);
    }

    /// Prints what there is to say of a line, once it is its turn.
    pub(super) fn print(&mut self, index: u64, text: String) {
        if let Some(text) = self.order.take(index, text) {
            self.put(&text);
        }
    }

    /// Prints what has waited for its turn.
    pub(super) fn release(&mut self) {
        if self.order.is_empty() {
            return;
        }
        let open = self.shared.pending.borrow().keys().next().copied();
        while let Some(text) = self.order.next(open) {
            self.put(&text);
        }
    }

    pub(super) fn put(&mut self, text: &str) {
        self.outgoing.push(text);
        if !self.detach {
            self.status.push(text);
        }
    }

    fn handle_problem(&mut self, problem: Problem, index: Option<u64>) -> Result<(), Asked> {
        let full = problem.code == "queue-full";
        let failure = Failure::from(ClientError::Refused(Box::new(problem)));
        let Some(index) = index else { return Err(Asked::Failed(failure)) };
        let Some(submission) = self.shared.numbered(index) else { return Ok(()) };
        if full {
            if self.delayed.is_empty() {
                self.delayed_until = Instant::now() + limits::QUEUE_FULL_PAUSE;
                tracing::info!("{}: offered again later", failure.what);
            }
            self.delay(submission);
            return Ok(());
        }
        let numbers = self.shared.lines_of(&submission);
        for number in &numbers {
            self.finish(*number);
            self.progress.ended(false);
        }
        self.tell_lines(&numbers.into_iter().collect(), &failure);
        Ok(())
    }

    /// Offers later what a full queue did not take: of many lines fewer at a time, as some may fit.
    fn delay(&mut self, submission: Rc<Submission>) {
        let lines = self.shared.lines_of(&submission);
        if self.shared.stopping.get() {
            // Nothing is offered again.
            lines.into_iter().for_each(|number| drop(self.finish(number)));
            return;
        }
        submission.sent.set(submission.elsewhere.get());
        // What another broker may know keeps its id.
        if lines.len() < 2 || !submission.is_chunk || submission.elsewhere.get() {
            return self.delayed.push(Ready::Submission(submission));
        }
        self.chunk_lines = (lines.len() / 2).min(self.chunk_lines);
        let mut pending = self.shared.pending.borrow_mut();
        for number in lines {
            if let Some(line) = pending.get_mut(&number) {
                line.submission = None;
            }
            self.delayed.push(Ready::Line(number));
        }
    }

    pub(super) fn finish(&mut self, index: u64) -> Option<Line> {
        let line = self.shared.pending.borrow_mut().remove(&index)?;
        self.held_bytes -= line.bytes;
        Some(line)
    }
}

/// The result line with the item that the job was made of, right behind its number.
fn with_item(text: &str, item: Option<&Text>) -> String {
    let Some(item) = item else { return text.to_owned() };
    match item.as_utf8() {
        Some(item) => line::with_members_after(text, "index", &[("item", item)]),
        None => {
            let item = STANDARD.encode(item.bytes());
            let members = [("item", &*item), ("item_encoding", "base64")];
            line::with_members_after(text, "index", &members)
        }
    }
}

/// What the broker says of a line, without its own number for it: ours is that on stdin.
pub(super) fn unnumbered(what: &str) -> &str {
    let parts = what.strip_prefix("line ").and_then(|rest| rest.split_once(": "));
    let numbered = parts.filter(|(number, _)| number.parse::<u64>().is_ok());
    numbered.map_or(what, |(_, words)| words)
}

#[cfg(test)]
mod tests {
    use super::unnumbered;

    #[test]
    fn a_line_has_one_number() {
        assert_eq!(unnumbered("line 4: a job is over"), "a job is over");
        assert_eq!(unnumbered("line x: y"), "line x: y");
        assert_eq!(unnumbered("no job"), "no job");
    }
}
