//! `ucp-sync vector`, `export`, `import`: facts on their way through pipes and on sticks.

use std::collections::BTreeMap;
use std::io::{self, Read};

use http_body_util::BodyExt;
use hyper::Method;
use hyper::body::Bytes;
use tokio::sync::mpsc;

use crate::cli::args::BrokerArgs;
use crate::cli::exit::Exit;
use crate::cli::output;
use crate::cli::report::{Failure, Reporter};
use crate::proto::id::LogId;
use crate::proto::limits;
use crate::runtime::client::{self, Body, Client};
use crate::runtime::search::Search;
use crate::runtime::sync::{self, IMPORT_ROUTE};
use crate::wire::api::{ImportLine, Since};

/// Bytes read from stdin at a time.
const PIECE_BYTES: usize = 64 << 10;

async fn connect(broker: &BrokerArgs) -> Result<Client, Failure> {
    let mut search = Search::new(&broker.broker, broker.connect_timeout.duration());
    let (address, stream) = search.connect().await?;
    Ok(Client::over(address, stream).await?)
}

/// `ucp-sync vector`.
pub(super) async fn vector(broker: &BrokerArgs) -> Result<Exit, Failure> {
    let line = sync::heads(&mut connect(broker).await?, None).await?;
    let vector: BTreeMap<LogId, u64> =
        line.logs.into_iter().map(|mark| (mark.log, mark.seq)).collect();
    output::line(&vector)?;
    Ok(Exit::Done)
}

/// `ucp-sync export`.
pub(super) async fn export(since: Option<&str>, broker: &BrokerArgs) -> Result<Exit, Failure> {
    let since = Since::Vector(read_vector(since)?);
    let mut client = connect(broker).await?;
    let address = client.address().clone();
    let mut body = sync::export(&mut client, since, false).await?.into_body();
    while let Some(frame) = body.frame().await {
        let broken = |source| client::ClientError::Broken { address: address.clone(), source };
        if let Ok(piece) = frame.map_err(broken)?.into_data() {
            output::bytes(&piece).await?;
        }
    }
    Ok(Exit::Done)
}

fn read_vector(text: Option<&str>) -> Result<BTreeMap<LogId, u64>, Failure> {
    let Some(text) = text else { return Ok(BTreeMap::new()) };
    let text = match text.strip_prefix('@') {
        None => text.to_owned(),
        Some(file) => std::fs::read_to_string(file).map_err(|error| {
            let exit = match error.kind() {
                io::ErrorKind::NotFound => Exit::Absent,
                _ => Exit::Io,
            };
            Failure::new(exit, format!("--since: cannot read {file}: {error}"))
        })?,
    };
    serde_json::from_str(&text).map_err(|error| {
        Failure::new(Exit::Data, format!("--since is no version vector: {error}"))
            .hint("give what 'ucp-sync vector' prints, such as {\"north-7f3a51c2\":41}")
    })
}

/// `ucp-sync import`.
pub(super) async fn import(broker: &BrokerArgs, reporter: Reporter) -> Result<Exit, Failure> {
    let mut client = connect(broker).await?;
    let address = client.address().clone();
    let (pieces, body) = mpsc::channel(limits::SYNC_PIECES_QUEUED);
    let reader = tokio::task::spawn_blocking(move || read_stdin(&pieces));
    let response = client.ask(Method::POST, IMPORT_ROUTE, Body::lines(body)).await?;
    let line: ImportLine = sync::one_line(&address, response).await?;
    // It has ended, as the broker saw the end of what it read.
    if let Ok(read) = reader.await {
        read.map_err(|error| Failure::io("cannot read stdin", &error))?;
    }
    for what in &line.bad {
        reporter.fault(what);
    }
    if line.bad_lines > line.bad.len() as u64 {
        reporter.fault(format!("and {} more bad lines", line.bad_lines - line.bad.len() as u64));
    }
    for fault in &line.faults {
        reporter.fault(fault);
    }
    let (bad, faulty) = (line.bad_lines > 0, !line.faults.is_empty());
    output::line(&line)?;
    Ok(match (bad, faulty) {
        (true, _) => Exit::Data,
        (false, true) => Exit::No,
        (false, false) => Exit::Done,
    })
}

/// Hands on what stdin has; waits for who takes it.
fn read_stdin(pieces: &mpsc::Sender<io::Result<Bytes>>) -> io::Result<()> {
    let mut bytes = vec![0; PIECE_BYTES];
    let mut stdin = io::stdin().lock();
    loop {
        match stdin.read(&mut bytes) {
            Ok(0) => return Ok(()),
            Ok(count) => {
                let piece = Bytes::copy_from_slice(&bytes[..count]);
                if pieces.blocking_send(Ok(piece)).is_err() {
                    return Ok(());
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
