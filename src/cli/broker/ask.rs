//! `ucp-broker status`, `executors`, `facts`, `audit`: questions to a broker that runs; and one
//! order, `declare-lost`.

use hyper::body::Incoming;
use hyper::{Method, Response};
use serde::de::DeserializeOwned;

use crate::cli::args::BrokerArgs;
use crate::cli::broker::flags::{Ask, DeclareLost, Facts};
use crate::cli::exit::Exit;
use crate::cli::output;
use crate::cli::report::Failure;
use crate::proto::capability::Capability;
use crate::proto::isolation::{Enforcement, Isolation};
use crate::proto::view::ExecutorView;
use crate::runtime::client::{self, Answer};
use crate::runtime::endpoint::Address;
use crate::wire::api::{AuditLine, ExecutorLine, LostLine, PeerLine, StatusLine};

async fn get(flags: &BrokerArgs, path: &str) -> Result<(Address, Response<Incoming>), Failure> {
    let wait = flags.connect_timeout.duration();
    Ok(client::ask_first(&flags.broker, wait, path).await?)
}

/// The lines of an answer, for answers of a few lines.
async fn lines(flags: &BrokerArgs, path: &str) -> Result<Vec<String>, Failure> {
    let (address, response) = get(flags, path).await?;
    let mut answer = Answer::new(&address, response);
    let mut found = vec![];
    while let Some(line) = answer.next().await? {
        found.push(line);
    }
    Ok(found)
}

fn read<T: DeserializeOwned>(line: &str) -> Result<T, Failure> {
    serde_json::from_str(line).map_err(|error| {
        Failure::new(Exit::Protocol, format!("the broker's answer is not understood: {error}"))
    })
}

async fn one(flags: &BrokerArgs, path: &str) -> Result<String, Failure> {
    let absent = || Failure::new(Exit::Protocol, "the broker's answer is empty");
    lines(flags, path).await?.into_iter().next().ok_or_else(absent)
}

fn print(lines: &[String]) -> Result<(), Failure> {
    let mut text = lines.join("\n");
    if !text.is_empty() {
        text.push('\n');
    }
    Ok(output::text(&text)?)
}

/// `ucp-broker status`.
pub async fn status(flags: &Ask) -> Result<Exit, Failure> {
    let line = one(&flags.broker, "/v1/status").await?;
    if flags.json {
        print(&[line])?;
        return Ok(Exit::Done);
    }
    let status: StatusLine = read(&line)?;
    let count = |word: &str| status.jobs.get(word).copied().unwrap_or(0);
    let jobs = ["waiting", "running", "parked", "succeeded", "failed", "cancelled"]
        .map(|word| format!("{} {word}", count(word)));
    let facts: u64 = status.vector.values().sum();
    let logs = status.vector.len();
    let peers = match (status.peers.len(), status.peers.iter().filter(|peer| peer.alive).count()) {
        (0, _) => "none".to_owned(),
        (all, alive) => format!("{all}, of which {alive} answer"),
    };
    let settled = match status.stable.waits_for.len() {
        0 => "every accepted result, as this broker stands alone".to_owned(),
        others => format!("nothing yet: {others} other logs are known, and none is settled with"),
    };
    let rows = [
        ("log", format!("{} (pid {})", status.log, status.pid)),
        ("version", status.version.into_owned()),
        ("up for", format!("{} s", status.uptime_s)),
        ("jobs", jobs.join(", ")),
        ("executors", status.executors.to_string()),
        ("facts", format!("{facts} in {logs} log{}", if logs == 1 { "" } else { "s" })),
        ("digest", status.digest.to_string()),
        ("peers", peers),
        ("final", settled),
    ];
    print(&rows.map(|(name, value)| format!("{name:<10} {value}")))?;
    Ok(Exit::Done)
}

/// `ucp-broker executors`.
pub async fn executors(flags: &Ask) -> Result<Exit, Failure> {
    let found = lines(&flags.broker, "/v1/executors").await?;
    if flags.json {
        print(&found)?;
        return Ok(Exit::Done);
    }
    let head = [
        "executor",
        "state",
        "heard",
        "lost in",
        "link",
        "slots",
        "running",
        "memory",
        "runs",
        "isolation",
        "labels",
    ];
    let mut rows = vec![head.map(str::to_owned)];
    for line in &found {
        let ExecutorLine { view, .. } = read(line)?;
        let labels: Vec<String> =
            view.capability.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
        rows.push([
            view.executor.to_string(),
            state(&view),
            format!("{} ms ago", view.heard_ms),
            view.lost_in_ms.map_or_else(|| "-".to_owned(), |left| format!("{left} ms")),
            if view.local { "local" } else { "remote" }.to_owned(),
            view.capability.slots.to_string(),
            view.attempts.len().to_string(),
            view.capability.memory.to_string(),
            runs(&view.capability),
            in_short(&view.capability.isolation),
            labels.join(","),
        ]);
    }
    print(&aligned(&rows))?;
    Ok(Exit::Done)
}

/// `ucp-broker peers`.
pub async fn peers(flags: &Ask) -> Result<Exit, Failure> {
    let found = lines(&flags.broker, "/v1/peers").await?;
    if flags.json {
        print(&found)?;
        return Ok(Exit::Done);
    }
    let head = ["peer", "log", "alive", "in step", "rounds", "known by", "why not used"];
    let mut rows = vec![head.map(str::to_owned)];
    for line in &found {
        let peer: PeerLine = read(line)?;
        let absent = || "-".to_owned();
        rows.push([
            peer.address,
            peer.log.map_or_else(absent, |log| log.to_string()),
            if peer.alive { "yes" } else { "no" }.to_owned(),
            peer.last_sync_s.map_or_else(absent, |ago| format!("{ago} s ago")),
            peer.rounds.to_string(),
            peer.how.into_owned(),
            peer.why_not.unwrap_or_else(absent),
        ]);
    }
    print(&aligned(&rows))?;
    Ok(Exit::Done)
}

/// Where an executor stands, and whether it contradicted itself.
fn state(view: &ExecutorView) -> String {
    match view.equivocations {
        0 => view.state.clone(),
        1 => format!("{}, 1 equivocation", view.state),
        count => format!("{}, {count} equivocations", view.state),
    }
}

/// What kinds of jobs an executor runs.
fn runs(capability: &Capability) -> String {
    let kinds = [(capability.native, "native"), (capability.wasm, "wasi")];
    let held: Vec<_> = kinds.iter().filter(|(held, _)| *held).map(|(_, word)| *word).collect();
    if held.is_empty() { "-".to_owned() } else { held.join("+") }
}

/// `full`, or what is missing of it; `-` where nothing is known. `--json` has each mechanism.
fn in_short(isolation: &Isolation) -> String {
    let standing = |wanted| {
        let held = isolation.0.iter().filter(move |(_, held)| **held == wanted);
        held.map(|(mechanism, _)| mechanism.word()).collect::<Vec<_>>()
    };
    if isolation.is_unknown() {
        return "-".to_owned();
    }
    let missing = [Enforcement::Absent, Enforcement::Refused].map(standing).concat();
    match (standing(Enforcement::Off).is_empty(), missing.is_empty()) {
        (true, true) => "full".to_owned(),
        (true, false) => format!("without {}", missing.join("+")),
        (false, _) => "none".to_owned(),
    }
}

/// Columns of equal width, two blanks apart, nothing behind the last.
fn aligned<const N: usize>(rows: &[[String; N]]) -> Vec<String> {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..N).map(|column| width(column).unwrap_or(0)).collect();
    let row = |row: &[String; N]| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(row).collect()
}

/// `ucp-broker audit`.
pub async fn audit(flags: &Ask) -> Result<Exit, Failure> {
    let line = one(&flags.broker, "/v1/audit").await?;
    let audit: AuditLine = read(&line)?;
    if flags.json {
        print(&[line])?;
    } else {
        let mut said: Vec<String> = vec![];
        for (log, books) in &audit.logs {
            said.push(format!(
                "{log}: {} submitted = {} waiting + {} running + {} parked + {} ended; \
                 {} facts, {} stored",
                books.submitted,
                books.waiting,
                books.running,
                books.parked,
                books.ended,
                books.seq,
                books.stored_seq
            ));
        }
        said.extend(audit.faults.iter().map(|fault| format!("fault: {fault}")));
        said.push(if audit.ok { "everything adds up" } else { "it does not add up" }.to_owned());
        print(&said)?;
    }
    Ok(if audit.ok { Exit::Done } else { Exit::No })
}

/// `ucp-broker declare-lost`.
pub async fn declare_lost(flags: &DeclareLost) -> Result<Exit, Failure> {
    let path = format!("/v1/executors/{}/lost", flags.executor);
    let body = flags.reason.as_ref().map(|reason| serde_json::json!({ "reason": reason }));
    let body = body.map(|body| body.to_string());
    let (given, wait) = (&flags.broker.broker, flags.broker.connect_timeout.duration());
    let asked = client::ask_first_of(given, wait, (Method::POST, &path, body.as_deref())).await;
    let (address, response) = asked.map_err(Failure::from)?;
    let absent = || Failure::new(Exit::Protocol, "the broker's answer is empty");
    let line = Answer::new(&address, response).next().await?.ok_or_else(absent)?;
    if flags.json {
        print(&[line])?;
        return Ok(Exit::Done);
    }
    let LostLine { executor, attempts, .. } = read(&line)?;
    let said = match attempts.len() {
        0 => format!("executor {executor} is lost; nothing ran there"),
        1 => format!("executor {executor} is lost with 1 attempt"),
        count => format!("executor {executor} is lost with {count} attempts"),
    };
    print(&[said])?;
    Ok(Exit::Done)
}

/// `ucp-broker facts`: the lines as they were written.
pub async fn facts(flags: &Facts) -> Result<Exit, Failure> {
    let mut query = vec![];
    if let Some(job) = &flags.job {
        // What no id holds is shown by the broker's refusal, so it only has to stay one value.
        let legal = |c: &char| c.is_ascii_alphanumeric() || *c == '-';
        if job.is_empty() || job.chars().any(|c| !legal(&c)) {
            return Err(Failure::usage(format!("--job: {job:?} is no job id")));
        }
        query.push(format!("job={job}"));
    }
    query.extend(flags.sorted.then(|| "sorted=1".to_owned()));
    query.extend(flags.follow.then(|| "follow=1".to_owned()));
    let path = format!("/v1/facts?{}", query.join("&"));
    let (address, response) = get(&flags.broker, &path).await?;
    let mut answer = Answer::new(&address, response);
    while let Some(line) = answer.next().await? {
        output::text(&format!("{line}\n"))?;
    }
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::isolation::Mechanism;

    #[test]
    fn isolation_is_told_by_what_is_missing() {
        let mut isolation = Isolation::default();
        assert_eq!(in_short(&isolation), "-");
        isolation.set(Mechanism::ProcessGroup, Enforcement::Enforced);
        assert_eq!(in_short(&isolation), "full");
        isolation.set(Mechanism::LandlockFiles, Enforcement::Absent);
        isolation.set(Mechanism::CgroupKill, Enforcement::Refused);
        assert_eq!(in_short(&isolation), "without landlock-files+cgroup-kill");
        isolation.set(Mechanism::Rlimits, Enforcement::Off);
        assert_eq!(in_short(&isolation), "none");
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["a", "bb", "c"], ["aaa", "b", ""]].map(|row| row.map(str::to_owned));
        assert_eq!(aligned(&rows), ["a    bb  c", "aaa  b"]);
    }
}
