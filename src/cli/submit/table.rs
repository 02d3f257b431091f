//! Tables and pages for people: short, aligned, plain text.
//!
//! What programs read is the JSON of the same commands (`--json`).

use std::fmt::Write as _;

use crate::proto::id::JobId;
use crate::proto::text::Text;
use crate::proto::view::JobState;
use crate::wire::api::{JobLine, ResultLine, ShowLine, WhyLine, needs_words};

/// The widest column: a command is cut there.
const COLUMN_MAX: usize = 48;
/// Digits of a job's id that a table shows; they are random and name the job as well.
const ID_DIGITS: usize = 12;

/// The end of a job's id, as tables show it.
fn short(job: JobId) -> String {
    job.to_string().split_off(36 - ID_DIGITS)
}

fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn cut(text: &str) -> String {
    let clean = clean(text);
    if clean.chars().count() <= COLUMN_MAX {
        return clean;
    }
    let start: String = clean.chars().take(COLUMN_MAX - 1).collect();
    format!("{start}…")
}

fn status(exit: Option<i32>, signal: Option<i32>) -> String {
    match (signal, exit) {
        (Some(signal), _) => format!("signal {signal}"),
        (None, Some(exit)) => exit.to_string(),
        (None, None) => "-".to_owned(),
    }
}

/// Rows under a head, aligned; the last column is as wide as it is.
fn aligned(head: &[&str], rows: &[Vec<String>]) -> Vec<String> {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([head[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut line = String::new();
        for (cell, width) in cells.zip(&widths) {
            let _ = write!(line, "{cell:width$}  ");
        }
        line.trim_end().to_owned()
    };
    let mut lines = vec![line(&mut head.iter().copied())];
    lines.extend(rows.iter().map(|row| line(&mut row.iter().map(String::as_str))));
    lines
}

/// The table of `list`.
#[must_use]
pub fn jobs(jobs: &[JobLine], colour: bool) -> String {
    let row = |job: &JobLine| {
        vec![
            short(job.job),
            job.state.word().to_owned(),
            status(job.exit, job.signal),
            if job.elements.is_empty() { job.attempts.to_string() } else { "-".to_owned() },
            job.executor.as_ref().map_or("-".to_owned(), ToString::to_string),
            job.submitted_at.chars().take(19).collect::<String>().replace('T', " "),
            what(job),
        ]
    };
    let rows: Vec<_> = jobs.iter().map(row).collect();
    let head = ["JOB", "STATE", "EXIT", "RUNS", "EXECUTOR", "SUBMITTED", "WHAT"];
    let mut lines = aligned(&head, &rows);
    if colour {
        for (line, job) in lines.iter_mut().skip(1).zip(jobs) {
            *line = format!("\x1b[{}m{line}\x1b[0m", shade(job.state));
        }
    }
    lines.join("\n") + "\n"
}

/// The job's name or command, of an array with how many elements stand where.
fn what(job: &JobLine) -> String {
    let what = cut(job.name.as_ref().unwrap_or(&words(&job.command)));
    if job.elements.is_empty() {
        return what;
    }
    let counts = job.elements.iter().map(|(state, count)| format!("{count} {}", state.word()));
    format!("{what} [{}]", counts.collect::<Vec<_>>().join(", "))
}

/// The colour of a state, as the terminal's number for it.
fn shade(state: JobState) -> u8 {
    match state {
        JobState::Waiting => 39,
        JobState::Running => 36,
        JobState::Succeeded => 32,
        JobState::Failed | JobState::Expired => 31,
        JobState::Parked | JobState::Cancelled | JobState::Skipped => 33,
    }
}

/// The page of `show`.
#[must_use]
pub fn page(show: &ShowLine) -> String {
    let mut rows = vec![
        ("job", show.job.to_string()),
        ("state", show.state.word().to_owned()),
        ("command", cut(&show.spec.command_line())),
        ("needs", needs_words(&show.spec.needs)),
        ("precedence", show.spec.precedence.to_string()),
        ("submitted", format!("{} as {}", show.submitted_at, show.birth)),
        ("owner", show.owner.to_string()),
        ("generation", show.generation.to_string()),
    ];
    rows.extend(show.spec.name.as_ref().map(|name| ("name", cut(name))));
    for (state, held) in &show.elements {
        let which = held.elements.as_ref().map_or(String::new(), |which| format!(": {which}"));
        rows.push(("elements", format!("{} {}{which}", held.count, state.word())));
    }
    rows.extend(show.outcome.iter().flat_map(ending));
    let mut text = String::new();
    for (name, value) in rows {
        let _ = writeln!(text, "{name:11} {value}");
    }
    let attempt = |attempt: &crate::wire::api::AttemptShown| {
        let said: Vec<_> = attempt.reason.iter().chain(&attempt.unproven).cloned().collect();
        vec![
            attempt.attempt.to_string(),
            attempt.state.to_string(),
            attempt.executor.to_string(),
            if said.is_empty() { "-".to_owned() } else { clean(&said.join("; ")) },
        ]
    };
    let result = |result: &crate::wire::api::ResultShown| {
        vec![
            result.attempt.to_string(),
            serde_word(&result.verdict),
            status(result.result.exit, result.result.signal),
            result.rule.to_string(),
        ]
    };
    let attempts: Vec<_> = show.attempts.iter().map(attempt).collect();
    let results: Vec<_> = show.results.iter().map(result).collect();
    for (head, rows) in [
        (["ATTEMPT", "STATE", "EXECUTOR", "REASON"], attempts),
        (["RESULT OF", "VERDICT", "EXIT", "RULE"], results),
    ] {
        if !rows.is_empty() {
            let _ = write!(text, "\n{}\n", aligned(&head, &rows).join("\n"));
        }
    }
    text
}

/// The rows that tell how a job ended.
fn ending(outcome: &ResultLine) -> Vec<(&'static str, String)> {
    let kind = if outcome.is_final { "final" } else { "provisional" };
    let status = status(outcome.exit, outcome.signal);
    let mut rows = vec![("outcome", format!("{}, exit {status}, {kind}", outcome.state.word()))];
    let words =
        [("reason", &outcome.reason), ("error", &outcome.error), ("unproven", &outcome.unproven)];
    rows.extend(words.into_iter().filter_map(|(name, said)| Some((name, clean(said.as_ref()?)))));
    rows.extend(outcome.timed_out.then(|| ("timed out", "yes".to_owned())));
    rows.extend(outcome.truncated.then(|| ("truncated", "more was written than kept".to_owned())));
    let isolation = &outcome.isolation;
    rows.extend((!isolation.is_unknown()).then(|| ("isolation", isolation.to_string())));
    for (path, file) in &outcome.outputs {
        let mark = if file.executable { ", executable" } else { "" };
        rows.push(("output", format!("{}, {} bytes{mark}", clean(path), file.size)));
    }
    rows
}

/// The page of `why`.
#[must_use]
pub fn why(why: &WhyLine) -> String {
    let named = why.name.as_ref().map_or(String::new(), |name| format!(" ({})", cut(name)));
    let mut page = format!("{}{named}\n", why.state.word());
    for reason in &why.reasons {
        let _ = writeln!(page, "  {}", clean(reason));
    }
    page
}

fn serde_word(value: &impl serde::Serialize) -> String {
    let word = serde_json::to_value(value).ok();
    word.and_then(|word| Some(word.as_str()?.to_owned())).unwrap_or_default()
}

fn words(command: &[Text]) -> String {
    command.iter().map(Text::lossy).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_long_commands_cut() {
        let line = |exit: &str, command: &str| -> JobLine {
            let text = format!(
                r#"{{"type":"job","job":"01970000-0000-7000-8000-0123456789ab","state":"succeeded","gen":1,
                "precedence":"routine","command":["{command}"],"attempts":1{exit},"submitted_at":"2026-01-02T03:04:05.000Z"}}"#
            );
            serde_json::from_str(&text).expect("a job line")
        };
        let table = jobs(&[line(r#","exit":0"#, "date"), line("", &"x".repeat(80))], false);
        let lines: Vec<_> = table.lines().collect();
        assert_eq!(
            lines[0],
            "JOB           STATE      EXIT  RUNS  EXECUTOR  SUBMITTED            WHAT"
        );
        assert_eq!(
            lines[1],
            "0123456789ab  succeeded  0     1     -         2026-01-02 03:04:05  date"
        );
        assert!(lines[2].ends_with("xxx…"), "{}", lines[2]);
    }

    #[test]
    fn an_array_tells_how_many_elements_stand_where() {
        let text = r#"{"type":"job","job":"01970000-0000-7000-8000-0123456789ab","state":"running",
            "gen":1,"precedence":"routine","command":["date"],"attempts":0,
            "submitted_at":"2026-01-02T03:04:05.000Z",
            "elements":{"failed":1,"running":2,"waiting":97}}"#;
        let line: JobLine = serde_json::from_str(text).expect("a job line");
        let table = jobs(&[line], false);
        let row = table.lines().nth(1).expect("a row");
        assert!(row.contains("running  -     -     "), "{row}");
        assert!(row.ends_with("date [97 waiting, 2 running, 1 failed]"), "{row}");
    }
}
