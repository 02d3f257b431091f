//! From how a job ended to how `ucp-submit` ends.
//!
//! A job's own status is passed on as it is, 128+n for a signal. Where there is none, ours (124,
//! 125, 126, 130) can collide with a job's own, so the reason is always told on stderr.

use crate::cli::exit::Exit;
use crate::cli::report::Reporter;
use crate::proto::id::TaskId;
use crate::proto::limits;
use crate::proto::units::Size;
use crate::proto::view::JobState;
use crate::wire::api::ResultLine;

/// The status for a job's end, and the reason where it is not the job's own.
#[must_use]
pub fn exit_of(line: &ResultLine) -> (Exit, Option<String>) {
    let reason = |words: &str| Some(line.reason.clone().unwrap_or_else(|| words.to_owned()));
    match line.state {
        JobState::Cancelled => (Exit::Cancelled, because("cancelled", line)),
        JobState::Parked => (Exit::NotRun, because("parked", line)),
        JobState::Expired => (Exit::NotRun, because("expired", line)),
        JobState::Skipped => (Exit::NotRun, because("skipped", line)),
        JobState::Waiting | JobState::Running => (Exit::Unknown, reason("has not ended")),
        JobState::Succeeded | JobState::Failed => ran(line),
    }
}

fn because(word: &str, line: &ResultLine) -> Option<String> {
    Some(match line.reason.as_deref() {
        None => word.to_owned(),
        Some(why) if why.starts_with(word) => why.to_owned(),
        Some(why) => format!("{word}: {why}"),
    })
}

fn ran(line: &ResultLine) -> (Exit, Option<String>) {
    if line.timed_out {
        return (Exit::TimedOut, Some("timed out".to_owned()));
    }
    if let Some(error) = &line.error {
        // As a shell says it: 127 for a program that is not there, 126 for one that cannot run. One
        // that ran and failed keeps its own status.
        return match (status(line), line.exit) {
            (Some(exit), Some(126 | 127)) => (exit, Some(format!("could not run: {error}"))),
            (Some(exit), code) if code != Some(0) => (exit, Some(error.clone())),
            (Some(_), _) => (Exit::NotRun, Some(error.clone())),
            (None, _) => (Exit::NotRun, Some(format!("could not run: {error}"))),
        };
    }
    match status(line) {
        Some(exit) => (exit, None),
        None => (Exit::NotRun, because("failed", line)),
    }
}

/// The job's own status, 128+n for a signal.
fn status(line: &ResultLine) -> Option<Exit> {
    let status = match (line.signal, line.exit) {
        (Some(signal), _) => signal.checked_add(128),
        (None, exit) => exit,
    };
    status.and_then(|status| u8::try_from(status).ok()).map(Exit::Job)
}

/// Tells the reason where it is not the job's own, and gives the status.
pub fn tell(line: &ResultLine, reporter: Reporter) -> Exit {
    let (exit, reason) = exit_of(line);
    if let Some(reason) = reason {
        reporter.own(line.job, reason);
    }
    exit
}

/// Tells that not all output was kept, to those who read it.
pub fn tell_cut(line: &ResultLine, reporter: Reporter) {
    if line.truncated {
        let max = Size(limits::OUTPUT_BYTES_MAX);
        let words = format_args!("its output is cut: over {max}, or no space where it ran");
        reporter.own(line.job, words);
    }
}

/// Tells that a job's end is not known, and how to learn it.
pub fn unknown(job: TaskId, why: &str, reporter: Reporter) -> Exit {
    reporter.own(job, format_args!("outcome unknown: {why}; 'ucp-submit wait {job}' goes on"));
    Exit::Unknown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(more: &str) -> ResultLine {
        let text = format!(
            r#"{{"type":"result","job":"00000000-0000-0000-0000-000000000001","gen":1,"final":true,"clock":{{}},{more}}}"#
        );
        serde_json::from_str(&text).expect("a result line")
    }

    #[test]
    fn each_end_has_its_status_and_ours_have_a_reason() {
        for (more, status, reason) in [
            (r#""state":"succeeded","exit":0"#, 0, None),
            (r#""state":"failed","exit":7"#, 7, None),
            (r#""state":"failed","signal":9"#, 137, None),
            (r#""state":"failed","timed_out":true,"signal":9"#, 124, Some("timed out")),
            (
                r#""state":"failed","error":"no such file""#,
                125,
                Some("could not run: no such file"),
            ),
            (
                r#""state":"failed","exit":127,"error":"no such file""#,
                127,
                Some("could not run: no such file"),
            ),
            (
                r#""state":"failed","exit":134,"error":"wasm trap: unreachable""#,
                134,
                Some("wasm trap: unreachable"),
            ),
            (
                r#""state":"failed","exit":0,"error":"output \"x\" was not made""#,
                125,
                Some("output \"x\" was not made"),
            ),
            (
                r#""state":"parked","reason":"lost 3 executors""#,
                125,
                Some("parked: lost 3 executors"),
            ),
            (r#""state":"expired""#, 125, Some("expired")),
            (r#""state":"skipped""#, 125, Some("skipped")),
            (r#""state":"cancelled","reason":"cancelled""#, 130, Some("cancelled")),
        ] {
            let (exit, said) = exit_of(&line(more));
            assert_eq!((exit.status(), said.as_deref()), (status, reason), "{more}");
        }
    }
}
