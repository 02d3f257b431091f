//! One round of anti-entropy between two brokers, over HTTP, by whoever reaches both.
//!
//! Holds no facts: what one side sends goes on to the other as it comes, compressed as it is.
//! Shape: compare digests; if they differ, each sends what the other's marks do not cover.
//! Source: design section 3; anti-entropy, Demers et al. 1987.

use std::cell::Cell;
use std::io;
use std::pin::pin;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT_ENCODING, CONTENT_ENCODING, HeaderValue};
use hyper::{Method, Response};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use crate::proto::id::Digest;
use crate::proto::limits;
use crate::proto::sync::Mark;
use crate::runtime::client::{self, Answer, Body, Client, ClientError};
use crate::runtime::endpoint::Address;
use crate::runtime::squeeze::ZSTD;
use crate::wire::api::{ExportAsk, ImportLine, RoundLine, Since, SyncLine};

/// The route of what is held.
pub const HEADS_ROUTE: &str = "/v1/sync";
/// The route of facts out.
pub const EXPORT_ROUTE: &str = "/v1/sync/export";
/// The route of facts in.
pub const IMPORT_ROUTE: &str = "/v1/sync/import";

/// The one line that a broker answers with.
///
/// # Errors
/// The connection broke, or the answer is another.
pub async fn one_line<T: DeserializeOwned>(
    address: &Address,
    response: Response<Incoming>,
) -> Result<T, ClientError> {
    let unknown = |what: String| ClientError::Unknown { address: address.clone(), what };
    let mut answer = Answer::new(address, response);
    let line = answer.next().await?.ok_or_else(|| unknown("nothing".to_owned()))?;
    let read = serde_json::from_str(&line).map_err(|error| unknown(error.to_string()))?;
    // Read to its end, so that the connection can be used again.
    while answer.next().await?.is_some() {}
    Ok(read)
}

async fn in_time<T>(
    address: &Address,
    work: impl Future<Output = Result<T, ClientError>>,
) -> Result<T, ClientError> {
    let silent = || ClientError::Silent { address: address.clone() };
    timeout(limits::SYNC_IDLE_MAX, work).await.unwrap_or_else(|_| Err(silent()))
}

/// Asks how far a broker holds each log; with a digest it may say just that it holds the same.
///
/// # Errors
/// It does not answer, or refuses.
pub async fn heads(client: &mut Client, same: Option<&Digest>) -> Result<SyncLine, ClientError> {
    let address = client.address().clone();
    let path = same
        .map_or_else(|| HEADS_ROUTE.to_owned(), |digest| format!("{HEADS_ROUTE}?digest={digest}"));
    in_time(&address, async {
        let response = client.ask(Method::GET, &path, Body::empty()).await?;
        one_line(&address, response).await
    })
    .await
}

/// Begins a stream of the facts that `since` does not cover.
///
/// # Errors
/// The broker does not answer, or refuses.
pub async fn export(
    client: &mut Client,
    since: Since,
    squeezed: bool,
) -> Result<Response<Incoming>, ClientError> {
    let ask = ExportAsk { since };
    let body = Body::json(serde_json::to_string(&ask).expect("only string keys"));
    let coding = HeaderValue::from_static(if squeezed { ZSTD } else { "identity" });
    let header = (ACCEPT_ENCODING, coding);
    let address = client.address().clone();
    in_time(&address, async {
        let response = client.request_with(Method::POST, EXPORT_ROUTE, header, body).await?;
        client::unless_refused(response).await
    })
    .await
}

/// Facts that went from one broker to another.
#[derive(Debug)]
pub struct Transfer {
    /// What became of them.
    pub import: ImportLine,
    /// Bytes of the stream.
    pub bytes: u64,
}

/// Lets the facts that `since` does not cover go from one broker to another, at most `rate` bytes
/// a second.
///
/// # Errors
/// One of the two does not answer, refuses, or goes away. What was taken by then is taken.
pub async fn transfer(
    from: &mut Client,
    to: &mut Client,
    since: Vec<Mark>,
    rate: Option<u64>,
) -> Result<Transfer, ClientError> {
    let source = from.address().clone();
    let response = export(from, Since::Marks(since), true).await?;
    let coding = response.headers().get(CONTENT_ENCODING).cloned();
    let coding = coding.unwrap_or_else(|| HeaderValue::from_static("identity"));
    let (pieces, body) = mpsc::channel(limits::SYNC_PIECES_QUEUED);
    let address = to.address().clone();
    let taken = async {
        let body = Body::lines(body);
        let asked = if coding == ZSTD {
            to.request_with(Method::POST, IMPORT_ROUTE, (CONTENT_ENCODING, coding), body).await
        } else {
            to.request(Method::POST, IMPORT_ROUTE, body).await
        };
        one_line::<ImportLine>(&address, client::unless_refused(asked?).await?).await
    };
    let bytes = Cell::new(0);
    let pumped = pump((&source, &address), response.into_body(), pieces, rate, &bytes);
    let (mut pumped, mut taken) = (pin!(pumped), pin!(taken));
    let import = tokio::select! {
        biased;
        // It was answered before all was sent: that is a refusal, and says more than the rest.
        import = &mut taken => import?,
        done = &mut pumped => {
            done?;
            in_time(&address, taken).await?
        }
    };
    Ok(Transfer { import, bytes: bytes.get() })
}

/// Hands pieces on as they come, and counts their bytes.
async fn pump(
    (source, target): (&Address, &Address),
    mut body: Incoming,
    pieces: mpsc::Sender<io::Result<Bytes>>,
    rate: Option<u64>,
    bytes: &Cell<u64>,
) -> Result<(), ClientError> {
    let begun = Instant::now();
    // So little at one time that nobody takes the pause after it for silence.
    let most = rate.map_or(usize::MAX, |rate| usize::try_from(rate / 4 + 1).unwrap_or(usize::MAX));
    loop {
        let failed = match timeout(limits::SYNC_IDLE_MAX, body.frame()).await {
            Ok(None) => return Ok(()),
            Ok(Some(Ok(frame))) => {
                let Ok(mut piece) = frame.into_data() else { continue };
                while !piece.is_empty() {
                    let part = piece.split_to(piece.len().min(most));
                    bytes.set(bytes.get() + part.len() as u64);
                    let sent = timeout(limits::SYNC_IDLE_MAX, pieces.send(Ok(part))).await;
                    match sent {
                        Ok(Ok(())) => {}
                        // Its answer says why.
                        Ok(Err(_)) => return Ok(()),
                        Err(_) => return Err(ClientError::Silent { address: target.clone() }),
                    }
                    if let Some(rate) = rate {
                        let span = bytes.get() as f64 / rate.max(1) as f64;
                        sleep_until(begun + Duration::from_secs_f64(span)).await;
                    }
                }
                continue;
            }
            Ok(Some(Err(error))) => ClientError::Broken { address: source.clone(), source: error },
            Err(_) => ClientError::Silent { address: source.clone() },
        };
        // The receiver must not take what came for the whole.
        let _ = pieces.try_send(Err(io::ErrorKind::BrokenPipe.into()));
        return Err(failed);
    }
}

/// One round: afterwards both hold what either held when it began.
///
/// # Errors
/// As [`transfer`]; what was taken by then is taken, and the next round goes on from there.
pub async fn round(
    from: &mut Client,
    with: &mut Client,
    rate: Option<u64>,
) -> Result<RoundLine, ClientError> {
    let begun = Instant::now();
    let mine = heads(from, None).await?;
    let theirs = heads(with, mine.digest.as_ref()).await?;
    let mut line = RoundLine {
        kind: "round".into(),
        from: mine.log,
        with: theirs.log,
        sent: 0,
        received: 0,
        bytes_out: 0,
        bytes_in: 0,
        equal: theirs.equal,
        ms: 0,
        faults: vec![],
    };
    if !theirs.equal {
        let there = transfer(from, with, theirs.logs, rate).await?;
        let back = transfer(with, from, mine.logs, rate).await?;
        (line.sent, line.bytes_out) = (there.import.new, there.bytes);
        (line.received, line.bytes_in) = (back.import.new, back.bytes);
        line.equal = there.import.digest == back.import.digest;
        line.faults = there.import.faults;
        for fault in back.import.faults {
            if !line.faults.contains(&fault) {
                line.faults.push(fault);
            }
        }
    }
    line.ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok(line)
}
