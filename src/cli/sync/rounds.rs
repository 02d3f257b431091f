//! `ucp-sync once`, `loop`, `diff`: what concerns two brokers at one time.

use std::collections::BTreeMap;

use tokio::time::{Instant, sleep_until};

use super::Ends;
use crate::cli::exit::Exit;
use crate::cli::output;
use crate::cli::report::{Failure, Reporter};
use crate::proto::id::LogId;
use crate::proto::sync::Mark;
use crate::proto::units::Span;
use crate::runtime::client::{Client, ClientError};
use crate::runtime::endpoint::Address;
use crate::runtime::search::Search;
use crate::runtime::signals::Stop;
use crate::runtime::sync;
use crate::wire::api::{DiffLine, RoundLine};

/// `ucp-sync once`.
pub(super) async fn once(ends: &Ends, reporter: Reporter) -> Result<Exit, Failure> {
    let from = ends.from.clone();
    let from = connect(from.as_slice(), ends.connect_timeout).await?.address().clone();
    let mut worst: Option<Failure> = None;
    let mut faulty = false;
    for with in &ends.with {
        match round(&from, with, ends).await {
            Ok(line) => {
                for fault in &line.faults {
                    reporter.fault(format!("{from} and {with}: {fault}"));
                }
                faulty |= !line.faults.is_empty();
                output::line(&line)?;
            }
            // The others may be there.
            Err(error) if with != &ends.with[ends.with.len() - 1] => {
                let failure = Failure::from(error);
                reporter.fault(&failure.what);
                worst.get_or_insert(failure);
            }
            Err(error) => return Err(error.into()),
        }
    }
    match worst {
        Some(failure) => Ok(failure.exit),
        None if faulty => Ok(Exit::No),
        None => Ok(Exit::Done),
    }
}

/// Connects to the first of these, or of those that are found, and waits for one that starts.
async fn connect(addresses: &[Address], wait: Span) -> Result<Client, ClientError> {
    let (address, stream) = Search::new(addresses, wait.duration()).connect().await?;
    Client::over(address, stream).await
}

async fn round(from: &Address, with: &Address, ends: &Ends) -> Result<RoundLine, ClientError> {
    let mut first = connect(std::slice::from_ref(from), ends.connect_timeout).await?;
    let mut second = connect(std::slice::from_ref(with), ends.connect_timeout).await?;
    sync::round(&mut first, &mut second, ends.max_rate.map(|size| size.0)).await
}

/// `ucp-sync loop`: what fails now may succeed the next time.
pub(super) async fn forever(ends: &Ends, every: Span, reporter: Reporter) -> Result<Exit, Failure> {
    let mut stop = Stop::listen().map_err(|error| Failure::io("cannot start", &error))?;
    let mut next = Instant::now();
    loop {
        next = (next + every.duration()).max(Instant::now());
        tokio::select! {
            done = once(ends, reporter) => match done {
                Ok(_) => {}
                // Nobody reads any more.
                Err(failure) if failure.what.is_empty() => return Err(failure),
                Err(failure) => reporter.fault(&failure.what),
            },
            _ = stop.next() => return Ok(Exit::Done),
        }
        tokio::select! {
            () = sleep_until(next) => {}
            _ = stop.next() => return Ok(Exit::Done),
        }
    }
}

/// `ucp-sync diff`.
pub(super) async fn diff(first: &Address, second: &Address) -> Result<Exit, Failure> {
    let held = |line: Vec<Mark>| -> BTreeMap<LogId, Mark> {
        line.into_iter().map(|mark| (mark.log.clone(), mark)).collect()
    };
    let first = sync::heads(&mut Client::connect(first).await?, None).await?;
    let second = sync::heads(&mut Client::connect(second).await?, None).await?;
    let (first, second) = (held(first.logs), held(second.logs));
    let mut logs: Vec<&LogId> = first.keys().chain(second.keys()).collect();
    logs.sort_unstable();
    logs.dedup();
    let mut exit = Exit::Done;
    for log in logs {
        let (one, other) = (first.get(log), second.get(log));
        if one == other {
            continue;
        }
        let seq = |mark: Option<&Mark>| mark.map_or(0, |mark| mark.seq);
        let (one, other) = (seq(one), seq(other));
        let (kind, log) = ("diff".into(), log.clone());
        output::line(&DiffLine { kind, log, first: one, second: other, forked: one == other })?;
        exit = Exit::No;
    }
    Ok(exit)
}
