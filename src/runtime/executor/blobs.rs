//! Contents too long for a message: outputs on their way to a broker, standard inputs from one.
//!
//! An output's file is named after its attempt and stays until the result is acknowledged, so
//! that any broker, also after a restart, can be given it before the result that names it.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use http_body_util::BodyExt;
use hyper::body::Bytes;
use hyper::{Method, StatusCode};
use tokio::sync::{Notify, mpsc};

use crate::proto::id::{AttemptId, Digest};
use crate::proto::limits;
use crate::proto::message::{ExecutorMessage, ResultMessage};
use crate::proto::result::JobResult;
use crate::runtime::client::{Body, Client, ClientError};
use crate::runtime::endpoint::Address;
use crate::runtime::process::stdin::Fetch;

use super::session::Session;

/// Pieces of a body that wait for the connection.
const PIECES: usize = 4;

fn blobs(result: &JobResult) -> impl Iterator<Item = (&'static str, Digest)> {
    let stdout = result.stdout.blob.map(|digest| ("stdout", digest));
    stdout.into_iter().chain(result.stderr.blob.map(|digest| ("stderr", digest)))
}

/// Whether some output is not in the result itself.
pub(super) fn is_long(message: &ResultMessage) -> bool {
    blobs(&message.result).next().is_some()
}

/// The files with the outputs that are not in the result itself.
pub(super) fn files_of(directory: &Path, message: &ResultMessage) -> Vec<PathBuf> {
    let file = |(name, _)| directory.join(format!("{}.{name}", message.attempt));
    blobs(&message.result).map(file).filter(|path| path.exists()).collect()
}

/// Removes the outputs of an attempt of an earlier life, if it left any.
pub(super) fn discard(directory: &Path, attempt: &AttemptId) {
    for name in ["stdout", "stderr"] {
        let path = directory.join(format!("{attempt}.{name}"));
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!("cannot remove {}: {error}", path.display());
            }
            _ => {}
        }
    }
}

/// Removes what an earlier life left and no result names.
pub(super) fn tidy(directory: &Path, results: &[ResultMessage]) {
    let wanted: Vec<_> = results.iter().flat_map(|result| files_of(directory, result)).collect();
    for entry in directory.read_dir().into_iter().flatten().flatten() {
        let path = entry.path();
        if !wanted.contains(&path)
            && let Err(error) = std::fs::remove_file(&path)
        {
            tracing::warn!("cannot remove {}: {error}", path.display());
        }
    }
}

/// Gives the session's broker the outputs, then the result. Ends with the session: in the next
/// one the core sends the result again.
pub(super) async fn send_after_blobs(
    session: Rc<Session>,
    directory: PathBuf,
    message: Box<ResultMessage>,
) {
    for (name, digest) in blobs(&message.result) {
        let path = directory.join(format!("{}.{name}", message.attempt));
        let mut told = false;
        while !session.is_closed() {
            let Err(error) = upload(session.address(), &path, digest).await else { break };
            if !std::mem::replace(&mut told, true) {
                tracing::warn!("output {digest} is not taken, going on trying: {error}");
            }
            tokio::time::sleep(limits::UPLOAD_PAUSE).await;
        }
    }
    session.send(&ExecutorMessage::Result(message));
}

async fn upload(address: &Address, path: &Path, digest: Digest) -> Result<(), ClientError> {
    let route = format!("/v1/blobs/{digest}");
    let mut client = Client::connect(address).await?;
    let held = client.request(Method::HEAD, &route, Body::empty()).await?;
    if held.status() == StatusCode::OK {
        return Ok(());
    }
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) => {
            // Nothing that we could do later brings it back; the result itself is worth more.
            tracing::error!("cannot read {}: {error}; its output is lost", path.display());
            return Ok(());
        }
    };
    let (sender, pieces) = mpsc::channel(PIECES);
    tokio::task::spawn_blocking(move || feed(file, &sender));
    // A connection of its own, as that of the question may be closed after it.
    let mut client = Client::connect(address).await?;
    client.ask(Method::PUT, &route, Body::bytes(pieces)).await.map(drop)
}

fn feed(mut file: File, sender: &mpsc::Sender<io::Result<Bytes>>) {
    let mut buffer = vec![0; limits::OUTPUT_CHUNK_BYTES];
    loop {
        let piece = match file.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => Ok(Bytes::copy_from_slice(&buffer[..count])),
            Err(error) => Err(error),
        };
        let failed = piece.is_err();
        if sender.blocking_send(piece).is_err() || failed {
            return;
        }
    }
}

/// Where blobs come from: the broker of the latest session.
#[derive(Debug)]
pub(super) struct Source {
    directory: PathBuf,
    address: RefCell<Option<Address>>,
    changed: Notify,
    drawn: Cell<u64>,
}

impl Source {
    /// No broker yet; files that have no name for long are made in `directory`.
    pub(super) fn new(directory: PathBuf) -> Self {
        let (address, changed) = (RefCell::new(None), Notify::new());
        Self { directory, address, changed, drawn: Cell::new(0) }
    }

    /// A session with this broker began.
    pub(super) fn set(&self, address: &Address) {
        *self.address.borrow_mut() = Some(address.clone());
        self.changed.notify_waiters();
    }

    /// A file that is gone when it is closed.
    fn nameless(&self) -> io::Result<File> {
        self.drawn.set(self.drawn.get() + 1);
        let path = self.directory.join(format!("fetched-{}", self.drawn.get()));
        let mut options = File::options();
        let file = options.read(true).write(true).create(true).truncate(true).mode(0o600);
        let file = file.open(&path)?;
        std::fs::remove_file(&path)?;
        Ok(file)
    }

    async fn try_fetch(&self, address: &Address, digest: Digest) -> Result<File, FetchError> {
        let mut client = Client::connect(address).await?;
        let route = format!("/v1/blobs/{digest}");
        let response = client.ask(Method::GET, &route, Body::empty()).await?;
        let mut file = self.nameless()?;
        let mut hasher = blake3::Hasher::new();
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            let broken = |source| ClientError::Broken { address: address.clone(), source };
            let frame = frame.map_err(broken)?;
            if let Some(bytes) = frame.data_ref() {
                hasher.update(bytes);
                file.write_all(bytes)?;
            }
        }
        if hasher.finalize().as_bytes() != &digest.0 {
            return Err(FetchError::Content);
        }
        file.rewind()?;
        Ok(file)
    }
}

/// Why a blob is not here.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error("{0}")]
    Client(#[from] ClientError),
    #[error("cannot keep it: {0}")]
    Io(#[from] io::Error),
    #[error("what the broker sent is something else")]
    Content,
}

impl Fetch for Source {
    async fn fetch(&self, digest: Digest) -> Result<File, String> {
        loop {
            let changed = self.changed.notified();
            let address = self.address.borrow().clone();
            let Some(address) = address else {
                changed.await;
                continue;
            };
            let error = match self.try_fetch(&address, digest).await {
                Ok(file) => return Ok(file),
                Err(error) => error,
            };
            let passes = match &error {
                FetchError::Client(ClientError::Refused(problem)) => problem.retryable,
                FetchError::Client(error) => error.is_gone(),
                FetchError::Content => true,
                FetchError::Io(_) => false,
            };
            if !passes {
                return Err(format!("blob {digest}: {error}"));
            }
            tracing::debug!("blob {digest}: {error}; trying again");
            tokio::time::sleep(limits::UPLOAD_PAUSE).await;
        }
    }
}
