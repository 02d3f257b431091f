//! `ucp-clock resolve`: judges competing results that come as JSON Lines.

use clap::ValueEnum;
use serde_json::Value;

use crate::cli::exit::Exit;
use crate::cli::output;
use crate::cli::report::{Failure, Reporter};
use crate::proto::clock::Clock;
use crate::proto::contest::{self, Contender, Preference};
use crate::proto::id::{AttemptId, Digest};
use crate::proto::limits;
use crate::proto::view::{Judgement, Verdict};
use crate::wire::members::Members;

use super::events;

/// Which of concurrent attempts goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnConflict {
    /// The one with the greatest fence.
    NewestAttempt,
    /// The one with the least fence.
    OldestAttempt,
}

/// An attempt by its name: `LOG.SEQ` or `LOG.SEQ:ELEMENT` in the order of attempts, after anything
/// else as text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Attempt {
    Text(String),
    Id(AttemptId),
}

impl Attempt {
    fn named(text: String) -> Self {
        text.parse().map_or(Self::Text(text), Self::Id)
    }
}

/// What decides of one result.
struct Competing {
    generation: u32,
    clock: Clock,
    success: bool,
    fence: u64,
    attempt: Attempt,
    digest: String,
}

impl Competing {
    fn contender(&self) -> Contender<'_, &Attempt, &str> {
        Contender {
            generation: self.generation,
            clock: &self.clock,
            success: self.success,
            fence: self.fence,
            attempt: &self.attempt,
            digest: &self.digest,
            accept: None,
        }
    }
}

/// Reads a result: what decides is taken from it, everything else is left as it is.
fn read(line: &str) -> Result<(Competing, Members), String> {
    let members: Members =
        serde_json::from_str(line).map_err(|error| format!("not a result: {error}"))?;
    let clock: Clock = members.get("clock")?.ok_or("not a result: it has no `clock`")?;
    let whole = |name: &str, absent: u64| match members.get::<u64>(name)? {
        None => Ok(absent),
        Some(number) if number <= limits::COUNTER_MAX => Ok(number),
        Some(_) => Err(format!("`{name}` is over 2^53 - 1")),
    };
    let text = |name: &str| -> Result<Option<String>, String> {
        Ok(members.get::<Value>(name)?.map(|value| match value {
            Value::String(text) => text,
            other => other.to_string(),
        }))
    };
    let attempt = match members.get::<AttemptId>("attempt") {
        Ok(Some(id)) => Attempt::Id(id),
        _ => text("attempt")?.map_or_else(|| Attempt::Text(String::new()), Attempt::named),
    };
    let made = Competing {
        generation: u32::try_from(whole("gen", 1)?).map_err(|_| "`gen` is over 2^32 - 1")?,
        clock,
        success: succeeded(&members)?,
        fence: whole("fence", 0)?,
        attempt,
        digest: text("digest")?.unwrap_or_else(|| Digest::of(line.as_bytes()).to_string()),
    };
    Ok((made, members))
}

/// `success`, else `state`, else `exit`; a result that says nothing of it counts as done.
fn succeeded(members: &Members) -> Result<bool, String> {
    if let Some(success) = members.get::<bool>("success")? {
        return Ok(success);
    }
    if let Some(state) = members.get::<String>("state")? {
        return Ok(state == "succeeded");
    }
    let signal = members.get::<i64>("signal")?;
    Ok(members.get::<i64>("exit")?.map_or(signal.is_none(), |exit| exit == 0))
}

/// Where a verdict stands in the output.
const fn place(verdict: Verdict) -> u8 {
    match verdict {
        Verdict::Accepted => 0,
        Verdict::Duplicate => 1,
        Verdict::Rejected => 2,
        _ => 3,
    }
}

/// Judges the results of stdin and prints them, the accepted one first; the rest keeps an order
/// that does not depend on that of arrival.
pub(super) fn run(on_conflict: OnConflict, reporter: Reporter) -> Result<Exit, Failure> {
    let preference = match on_conflict {
        OnConflict::NewestAttempt => Preference::Newest,
        OnConflict::OldestAttempt => Preference::Oldest,
    };
    let mut all = vec![];
    let bad = events::each_line(reporter, |line| {
        if all.len() == limits::RESULTS_RESOLVED_MAX {
            let max = limits::RESULTS_RESOLVED_MAX;
            return Err(Failure::new(Exit::Data, format_args!("at most {max} results at a time")));
        }
        Ok(read(&line).map(|(one, members)| all.push((one, members, line))))
    })?;
    // Equal lines are equal results, so this order makes everything below independent of arrival.
    all.sort_by(|a, b| a.2.cmp(&b.2));
    let contenders: Vec<_> = all.iter().map(|(one, ..)| one.contender()).collect();
    let judgements = contest::judge(&contenders, preference);
    let mut judged: Vec<(Judgement, Members)> =
        judgements.into_iter().zip(all.into_iter().map(|(_, members, _)| members)).collect();
    judged.sort_by_key(|(judgement, _)| place(judgement.verdict));
    for (judgement, mut members) in judged {
        members.set("verdict", &judgement.verdict);
        members.set("rule", &judgement.rule);
        output::line(&members)?;
    }
    Ok(if bad { Exit::Data } else { Exit::Done })
}
