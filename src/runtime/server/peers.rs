//! The other brokers that this one was told of, and the rounds with them.
//!
//! One task a peer: a round at once, then one each interval, and one soon after fresh facts are
//! durable here. A peer that does not answer is asked again, less and less often, for ever. A round
//! goes through our own socket as well, so that it is the same as one by `ucp-sync`.
//! A broker introduces itself to each peer that it connects to, so that fresh facts find their way
//! back as fast; an address counts only after the broker behind it gave the expected log.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::proto::event::Input;
use crate::proto::id::LogId;
use crate::proto::limits;
use crate::proto::rng::Rng;
use crate::runtime::client::{Body, Client, ClientError};
use crate::runtime::endpoint::Address;
use crate::runtime::entropy;
use crate::runtime::server::Context;
use crate::runtime::server::answer::{self, Handled};
use crate::runtime::sync;
use crate::wire::api::{Introduction, PeerLine, RoundLine};
use crate::wire::problem::Problem;

const PEERS_ROUTE: &str = "/v1/peers";
/// How a broker became known that said itself where it is.
const INTRODUCED: &str = "introduced";

/// How rounds are made.
#[derive(Debug, Clone)]
pub struct Rounds {
    /// The other brokers.
    pub peers: Vec<Address>,
    /// How often, with each of them.
    pub interval: Duration,
    /// Whether also as soon as there are fresh facts.
    pub eager: bool,
    /// Bytes a second that facts may take, each way.
    pub rate: Option<u64>,
}

/// What is known of the peers.
#[derive(Debug, Default)]
pub struct Peers {
    book: RefCell<BTreeMap<Address, Peer>>,
    setup: OnceCell<Setup>,
    /// Brokers that introduced themselves and are being looked for.
    calls: Cell<usize>,
}

/// How this broker is set.
#[derive(Debug)]
struct Setup {
    /// Where it is asked by itself.
    own: Address,
    /// How it introduces itself.
    introduction: Introduction,
    rounds: Rounds,
}

#[derive(Debug, Default)]
struct Peer {
    how: &'static str,
    log: Option<LogId>,
    rounds: u64,
    synced_at: Option<Instant>,
    lag: Option<u64>,
    why_not: Option<String>,
}

impl Peers {
    /// One line for each of them.
    #[must_use]
    pub fn lines(&self) -> Vec<PeerLine> {
        let line = |(address, peer): (&Address, &Peer)| PeerLine {
            kind: "peer".into(),
            address: address.to_string(),
            how: peer.how.into(),
            log: peer.log.clone(),
            alive: peer.rounds > 0 && peer.why_not.is_none(),
            last_sync_s: peer.synced_at.map(|at| at.elapsed().as_secs()),
            lag: peer.lag,
            rounds: peer.rounds,
            why_not: peer.why_not.clone(),
        };
        self.book.borrow().iter().map(line).collect()
    }

    /// Notes a round; false where the broker has another address here, which stays instead.
    fn done(&self, address: &Address, line: &RoundLine) -> bool {
        let mut peers = self.book.borrow_mut();
        let is_other = |(other, peer): (&Address, &Peer)| {
            other != address && peer.log.as_ref() == Some(&line.with) && peer.why_not.is_none()
        };
        if peers.get(address).is_some_and(|peer| peer.how == INTRODUCED)
            && peers.iter().any(is_other)
        {
            peers.remove(address);
            return false;
        }
        let peer = peers.entry(address.clone()).or_default();
        if peer.why_not.take().is_some() {
            tracing::info!("peer {address}: {} answers", line.with);
        }
        peer.log = Some(line.with.clone());
        peer.rounds += 1;
        peer.synced_at = Some(Instant::now());
        peer.lag = line.equal.then_some(0);
        true
    }

    /// Notes why a peer is not used; what is new is told.
    fn failed(&self, address: &Address, why: String) {
        let mut peers = self.book.borrow_mut();
        let peer = peers.entry(address.clone()).or_default();
        if peer.why_not.as_ref() != Some(&why) {
            tracing::warn!("peer {address}: {why}");
            peer.why_not = Some(why);
        }
    }

    fn is_any_reachable(&self) -> bool {
        self.book.borrow().values().any(|peer| peer.why_not.is_none())
    }

    /// Notes an address; whether it is new, and there is room for it.
    fn note(&self, address: &Address, how: &'static str) -> bool {
        let mut book = self.book.borrow_mut();
        if book.contains_key(address) || book.len() >= limits::PEERS_MAX {
            return false;
        }
        book.insert(address.clone(), Peer { how, ..Peer::default() });
        true
    }

    /// Whether a broker is kept in step with already, at whatever address.
    fn has(&self, log: &LogId) -> bool {
        let is_there = |peer: &Peer| peer.log.as_ref() == Some(log) && peer.why_not.is_none();
        self.book.borrow().values().any(is_there)
    }
}

/// `GET /v1/peers`.
pub fn peers(context: &Context) -> Handled {
    let lines = context.peers.lines();
    Ok(answer::lines(move |sink| async move {
        for line in lines {
            sink.room().await;
            sink.line(&line);
        }
        Ok(())
    }))
}

/// `POST /v1/peers`: another broker says where it can be asked.
pub async fn introduce(context: Rc<Context>, request: Request<Incoming>) -> Handled {
    let body = answer::whole(request.into_body()).await?;
    let said: Introduction = serde_json::from_slice(&body).map_err(|error| {
        Problem::new(422, "bad-introduction", format!("the body introduces nobody: {error}"))
            .hint(r#"send {"log":"NAME-xxxxxxxx","addresses":["http://host:port"]}"#)
    })?;
    let addresses = said.addresses.iter().take(limits::PEER_ADDRESSES_MAX);
    let addresses: Vec<Address> = addresses.filter_map(|text| text.parse().ok()).collect();
    let own = context.peers.setup.get().map(|setup| &setup.introduction.log);
    let calls = context.peers.calls.get();
    if own != Some(&said.log) && !context.peers.has(&said.log) && calls < limits::PEER_CALLS_MAX {
        context.peers.calls.set(calls + 1);
        tokio::task::spawn_local(async move {
            call_on(&context, said.log, addresses).await;
            context.peers.calls.set(context.peers.calls.get() - 1);
        });
    }
    Ok(answer::json(StatusCode::OK, &serde_json::json!({"type": "introduced"})))
}

/// Keeps in step with a broker at the first of its addresses that leads to it.
async fn call_on(context: &Rc<Context>, log: LogId, addresses: Vec<Address>) {
    for address in addresses {
        let found = async {
            let mut client = Client::connect(&address).await?;
            sync::heads(&mut client, None).await
        };
        let silent = || ClientError::Silent { address: address.clone() };
        let found = timeout(limits::SYNC_IDLE_MAX, found).await;
        match found.unwrap_or_else(|_| Err(silent())) {
            Ok(line) if line.log == log => {
                // Who introduced itself twice meanwhile has one place.
                if !context.peers.has(&log) {
                    add(context, &address, INTRODUCED);
                }
                return;
            }
            Ok(line) => tracing::debug!("{address} is {}, not {log}", line.log),
            Err(error) => tracing::debug!("{log} is not found at {address}: {error}"),
        }
    }
}

/// Begins to keep in step with all peers that the settings name; `listen` is where we can be asked.
pub fn begin(context: &Rc<Context>, log: &LogId, listen: &[Address], rounds: &Rounds) {
    let Some(own) = listen.first() else { return };
    let addresses = listen.iter().map(|address| absolute(address).to_string()).collect();
    let introduction = Introduction { log: log.clone(), addresses };
    let setup = Setup { own: own.clone(), introduction, rounds: rounds.clone() };
    if context.peers.setup.set(setup).is_ok() {
        rounds.peers.iter().for_each(|peer| add(context, peer, "flag"));
    }
}

/// The same address for those who are in another directory.
fn absolute(address: &Address) -> Address {
    match address {
        Address::Unix(path) => {
            Address::Unix(std::path::absolute(path).unwrap_or_else(|_| path.clone()))
        }
        Address::Http { .. } => address.clone(),
    }
}

fn add(context: &Rc<Context>, peer: &Address, how: &'static str) {
    if !context.peers.note(peer, how) {
        return;
    }
    let (context, peer) = (Rc::clone(context), peer.clone());
    tokio::task::spawn_local(async move {
        let Some(setup) = context.peers.setup.get() else { return };
        tokio::select! {
            () = context.hub.stopped() => {}
            () = keep_in_step(&context, &peer, setup) => {}
        }
    });
}

async fn keep_in_step(context: &Context, peer: &Address, setup: &Setup) {
    let rounds = &setup.rounds;
    let mut rng = Rng::from_seed(entropy::seed());
    let mut commits = context.hub.commits();
    let (mut ends, mut failures, mut drops) = (None, 0_u32, 0_u32);
    loop {
        commits.mark_unchanged();
        let done = one_round(setup, peer, &mut ends).await;
        let wait = match done {
            Ok(line) if line.with == line.from => {
                context.peers.failed(peer, "it is this broker itself".to_owned());
                return;
            }
            Ok(line) => {
                for fault in &line.faults {
                    tracing::error!("sync with {peer}: {fault}");
                }
                if !context.peers.done(peer, &line) {
                    return;
                }
                failures = 0;
                jittered(rounds.interval, &mut rng)
            }
            Err(error) => {
                ends = None;
                context.peers.failed(peer, in_words(&error));
                failures = failures.saturating_add(1);
                jittered(back_off(failures).min(rounds.interval), &mut rng)
            }
        };
        let others = context.peers.is_any_reachable();
        if context.hub.inbox.push(Input::OthersReachable { others }, 0).await.is_err() {
            return;
        }
        let is_eager = rounds.eager && failures == 0;
        tokio::select! {
            () = sleep(wait) => drops = 0,
            () = fresh(&mut commits), if is_eager => {}
            // It may be back in a moment; one that always ends its connections is left alone.
            () = gone(ends.as_ref()) => {
                drops = drops.saturating_add(1);
                sleep(jittered(back_off(drops), &mut rng)).await;
            }
        }
    }
}

/// Waits until there are fresh facts, and a little for more of them.
async fn fresh(commits: &mut watch::Receiver<u64>) {
    if commits.changed().await.is_err() {
        // The broker stops.
        std::future::pending::<()>().await;
    }
    sleep(limits::SYNC_PUSH_AFTER).await;
}

/// Waits until the connection to the peer has ended.
async fn gone(ends: Option<&(Client, Client)>) {
    match ends {
        Some((_, theirs)) => theirs.gone().await,
        None => std::future::pending().await,
    }
}

/// How long a peer is left alone that failed so many times.
fn back_off(times: u32) -> Duration {
    let factor = 1_u32.checked_shl(times.saturating_sub(1)).unwrap_or(u32::MAX);
    limits::SYNC_RETRY_FIRST.saturating_mul(factor).min(limits::SYNC_RETRY_MAX)
}

fn jittered(span: Duration, rng: &mut Rng) -> Duration {
    let percent = limits::SYNC_JITTER_PERCENT;
    let factor = 100 - percent + rng.below(2 * percent + 1);
    span.saturating_mul(u32::try_from(factor).unwrap_or(100)) / 100
}

/// A round over connections that are kept while they hold.
async fn one_round(
    setup: &Setup,
    peer: &Address,
    ends: &mut Option<(Client, Client)>,
) -> Result<RoundLine, ClientError> {
    let kept = ends.take().filter(|(mine, theirs)| !mine.is_closed() && !theirs.is_closed());
    let (mut mine, mut theirs) = match kept {
        Some(kept) => kept,
        None => {
            let connected = timeout(limits::SYNC_IDLE_MAX, Client::connect(peer)).await;
            let silent = |_| ClientError::Silent { address: peer.clone() };
            let (mine, mut theirs) =
                (Client::connect(&setup.own).await?, connected.map_err(silent)??);
            introduce_to(&mut theirs, &setup.introduction).await?;
            (mine, theirs)
        }
    };
    let line = sync::round(&mut mine, &mut theirs, setup.rounds.rate).await?;
    *ends = Some((mine, theirs));
    Ok(line)
}

async fn introduce_to(client: &mut Client, as_whom: &Introduction) -> Result<(), ClientError> {
    let address = client.address().clone();
    let body = serde_json::to_string(as_whom).expect("only string keys");
    let response = client.ask(Method::POST, PEERS_ROUTE, Body::json(body)).await?;
    sync::one_line::<serde_json::Value>(&address, response).await.map(drop)
}

/// An error with its causes.
fn in_words(error: &ClientError) -> String {
    let (mut text, mut cause) = (error.to_string(), std::error::Error::source(error));
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
