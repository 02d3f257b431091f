//! A blob between a file and a broker: streamed, resumed over fresh connections, verified.
//!
//! Does not choose a broker. Algorithm: ask where the transfer stands (up: `HEAD`; down: the
//! file's own length), go on from there, and when the connection breaks do it again, as long as
//! it gets further: [`limits::TRANSFER_TRIES_MAX`] connections in a row that bring nothing end
//! it. Whoever calls again later goes on as well. A broker that takes the connection and does
//! nothing is found by asking it on another (client.rs).
//! Law: `Ok` means that the bytes of this digest are there, whole; at most
//! [`limits::TRANSFER_PIECES`] + 2 pieces are in memory (tests/broker/blobs.rs).

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

use http_body_util::BodyExt;
use hyper::body::Bytes;
use hyper::header::{CONTENT_RANGE, HeaderMap, HeaderValue, RANGE};
use hyper::{Method, StatusCode};
use tokio::sync::mpsc;

use crate::proto::id::Digest;
use crate::proto::limits;
use crate::runtime::client::{self, Body, Client, ClientError, UPLOAD_OFFSET};
use crate::runtime::endpoint::Address;

/// Why a blob did not come or go whole.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    /// The broker could not be reached, went away too often, or refused. What was transferred is
    /// kept, and calling again goes on behind it.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The file here cannot be read or written. The transfer stays as it is; trying again cannot
    /// help unless the cause is gone.
    #[error("cannot {what}")]
    File {
        /// What was tried.
        what: String,
        /// What the system says.
        source: io::Error,
    },
    /// The content is not what the digest says: the file to be sent changed meanwhile, or what
    /// came is damaged. Nothing of it is kept; trying again cannot help.
    #[error("the content is not that of digest {0}")]
    Content(Digest),
}

impl TransferError {
    /// Whether calling again may help, and would go on where this call ended.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Client(ClientError::Refused(problem)) => problem.retryable,
            Self::Client(error) => error.is_gone(),
            Self::File { .. } | Self::Content(_) => false,
        }
    }

    fn file(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::File { what, source }
    }
}

/// Counts connections that bring nothing.
struct Tries {
    vain: u32,
    furthest: u64,
}

impl Tries {
    const fn new() -> Self {
        Self { vain: 0, furthest: 0 }
    }

    /// Waits before another connection, or gives the error back if there is to be none.
    async fn again(&mut self, stands: u64, error: TransferError) -> Result<(), TransferError> {
        // No space is there again no sooner than somebody makes some.
        let full = matches!(&error, TransferError::Client(ClientError::Refused(problem))
            if problem.status == 507);
        if stands > self.furthest {
            (self.vain, self.furthest) = (0, stands);
        } else {
            self.vain += 1;
        }
        if full || !error.is_retryable() || self.vain >= limits::TRANSFER_TRIES_MAX {
            return Err(error);
        }
        tracing::debug!("a transfer stands at byte {stands} and goes on: {error}");
        tokio::time::sleep(limits::TRANSFER_PAUSE * (1 << self.vain)).await;
        Ok(())
    }
}

/// What `work` comes to, unless the broker proves to be silent meanwhile.
async fn unless_silent<T>(
    address: &Address,
    work: impl Future<Output = Result<T, TransferError>>,
) -> Result<T, TransferError> {
    let watch = async {
        loop {
            tokio::time::sleep(limits::TRANSFER_PROBE_EVERY).await;
            let probe = async {
                let mut client = Client::connect(address).await?;
                client.request(Method::GET, "/healthz", Body::empty()).await
            };
            let answered = tokio::time::timeout(limits::TRANSFER_PROBE_WITHIN, probe).await;
            if !matches!(answered, Ok(Ok(_))) {
                return ClientError::Silent { address: address.clone() };
            }
        }
    };
    tokio::select! {
        biased;
        done = work => done,
        silent = watch => Err(silent.into()),
    }
}

fn route(digest: Digest) -> String {
    format!("/v1/blobs/{digest}")
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.parse().ok()
}

/// Gives a broker the content of a file, which must have this digest, unless the broker has it.
///
/// # Errors
/// [`TransferError`], which says whether calling again may help.
pub async fn upload(address: &Address, path: &Path, digest: Digest) -> Result<(), TransferError> {
    let mut tries = Tries::new();
    let mut whole = false;
    loop {
        let mut stands = 0;
        let attempt = upload_on(address, path, digest, whole, &mut stands);
        let error = match unless_silent(address, attempt).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        match error {
            // The beginning that the broker held may have been the wrong one.
            TransferError::Content(_) if stands > 0 && !whole => whole = true,
            error => tries.again(stands, error).await?,
        }
    }
}

/// One connection of an upload. Tells in `stands` where it began.
async fn upload_on(
    address: &Address,
    path: &Path,
    digest: Digest,
    whole: bool,
    stands: &mut u64,
) -> Result<(), TransferError> {
    let mut client = Client::connect(address).await?;
    let held = client.request(Method::HEAD, &route(digest), Body::empty()).await?;
    match held.status() {
        StatusCode::OK => return Ok(()),
        StatusCode::NOT_FOUND => {}
        _ => {
            let problem = client::problem_of(held).await;
            return Err(ClientError::Refused(Box::new(problem)).into());
        }
    }
    let reading = || TransferError::file(format!("read {}", path.display()));
    let mut file = File::open(path).map_err(reading())?;
    let size = file.metadata().map_err(reading())?.len();
    let from = if whole { 0 } else { number(held.headers(), UPLOAD_OFFSET).unwrap_or(0) };
    if from > size {
        *stands = from;
        return Err(TransferError::Content(digest));
    }
    *stands = from;
    file.seek(SeekFrom::Start(from)).map_err(reading())?;
    let (sender, pieces) = mpsc::channel(limits::TRANSFER_PIECES);
    let feeding = tokio::task::spawn_blocking(move || feed(file, size - from, &sender));
    let mut client = Client::connect(address).await?;
    let body = Body::sized(pieces, size - from);
    let response = match from {
        0 => client.request(Method::PUT, &route(digest), body).await,
        from => {
            let range = match size - from {
                0 => format!("bytes */{size}"),
                _ => format!("bytes {from}-{}/{size}", size - 1),
            };
            let range = HeaderValue::from_str(&range).expect("numbers are plain text");
            client.request_with(Method::PUT, &route(digest), (CONTENT_RANGE, range), body).await
        }
    };
    let response = match response {
        Ok(response) => response,
        Err(error) => {
            // The connection was cut because the file could not be read, or for its own reasons.
            return Err(match feeding.await {
                Ok(Err(Feeding::Read(source))) => reading()(source),
                Ok(Err(Feeding::Short)) => TransferError::Content(digest),
                _ => error.into(),
            });
        }
    };
    match client::unless_refused(response).await {
        Ok(_) => Ok(()),
        Err(ClientError::Refused(problem)) if problem.status == 422 => {
            Err(TransferError::Content(digest))
        }
        Err(error) => Err(error.into()),
    }
}

/// Why a file could not be sent to its end.
enum Feeding {
    /// It cannot be read.
    Read(io::Error),
    /// It is shorter than it was.
    Short,
}

/// Reads so many bytes of a file into a body; for a thread that may wait for the disk.
fn feed(
    mut file: File,
    mut left: u64,
    sender: &mpsc::Sender<io::Result<Bytes>>,
) -> Result<(), Feeding> {
    let mut buffer = vec![0; limits::TRANSFER_PIECE_BYTES];
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(buffer.len()).min(buffer.len());
        let failed = match file.read(&mut buffer[..most]) {
            Ok(0) => Feeding::Short,
            Ok(count) => {
                left -= count as u64;
                if sender.blocking_send(Ok(Bytes::copy_from_slice(&buffer[..count]))).is_err() {
                    return Ok(());
                }
                continue;
            }
            Err(again) if again.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => Feeding::Read(error),
        };
        let _ = sender.blocking_send(Err(io::Error::other("the file cannot be read")));
        return Err(failed);
    }
    Ok(())
}

/// Gets a blob from a broker into a file and returns its size. What is in the file already is
/// taken for the beginning of the blob, so that who calls again goes on; the digest proves it.
///
/// # Errors
/// [`TransferError`], which says whether calling again may help.
pub async fn download(
    address: &Address,
    digest: Digest,
    file: &mut File,
) -> Result<u64, TransferError> {
    let mut held = Held::read(file).await?;
    let mut tries = Tries::new();
    let mut from_before = held.size > 0;
    loop {
        let attempt = download_on(address, digest, &mut held);
        let error = match unless_silent(address, attempt).await {
            Ok(()) if *held.hasher.finalize().as_bytes() == digest.0 => return Ok(held.size),
            Ok(()) => TransferError::Content(digest),
            Err(error) => error,
        };
        if !matches!(error, TransferError::Content(_)) {
            tries.again(held.size, error).await?;
            continue;
        }
        file.set_len(0).map_err(TransferError::file("empty a file"))?;
        held = Held::read(file).await?;
        // What was in the file may have been of something else.
        if !std::mem::take(&mut from_before) {
            return Err(error);
        }
    }
}

/// What is in the file of a download, and the hash of it.
struct Held {
    file: File,
    size: u64,
    hasher: blake3::Hasher,
}

impl Held {
    async fn read(file: &File) -> Result<Self, TransferError> {
        let opened = file.try_clone().map_err(TransferError::file("share a file"))?;
        on_disk(move || {
            let mut held = Self { file: opened, size: 0, hasher: blake3::Hasher::new() };
            held.file.rewind()?;
            held.hasher.update_reader(&mut held.file)?;
            held.size = held.file.stream_position()?;
            Ok(held)
        })
        .await
        .map_err(TransferError::file("read a file"))
    }

    /// Writes pieces behind what is there, on a thread that may wait for the disk.
    async fn add(&mut self, pieces: Vec<Bytes>) -> Result<(), TransferError> {
        let file = self.file.try_clone().map_err(TransferError::file("share a file"))?;
        let (mut hasher, mut size) = (self.hasher.clone(), self.size);
        let written = on_disk(move || {
            for piece in &pieces {
                // One that was given up may still be writing: the same bytes in the same place.
                file.write_all_at(piece, size)?;
                hasher.update(piece);
                size += piece.len() as u64;
            }
            Ok((hasher, size))
        });
        (self.hasher, self.size) = written.await.map_err(TransferError::file("write a file"))?;
        Ok(())
    }
}

async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// One connection of a download.
async fn download_on(
    address: &Address,
    digest: Digest,
    held: &mut Held,
) -> Result<(), TransferError> {
    let mut client = Client::connect(address).await?;
    let response = match held.size {
        0 => client.request(Method::GET, &route(digest), Body::empty()).await?,
        from => {
            let range = HeaderValue::from_str(&format!("bytes={from}-"));
            let header = (RANGE, range.expect("numbers are plain text"));
            client.request_with(Method::GET, &route(digest), header, Body::empty()).await?
        }
    };
    match response.status() {
        StatusCode::RANGE_NOT_SATISFIABLE => {
            // All of it is here, or more.
            let size = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
            let whole = size == Some(&*format!("bytes */{}", held.size));
            return if whole { Ok(()) } else { Err(TransferError::Content(digest)) };
        }
        StatusCode::OK if held.size > 0 => return Err(TransferError::Content(digest)),
        _ => {}
    }
    let response = client::unless_refused(response).await?;
    let broken = |source| ClientError::Broken { address: address.clone(), source };
    let mut body = response.into_body();
    let (mut pieces, mut size) = (vec![], 0);
    loop {
        let frame = body.frame().await.transpose();
        let is_over = !matches!(frame, Ok(Some(_)));
        if let Ok(Some(frame)) = &frame
            && let Some(piece) = frame.data_ref()
        {
            size += piece.len();
            pieces.push(piece.clone());
        }
        // What came before a break is worth keeping.
        if is_over || size >= limits::BLOB_PIECE_BYTES {
            held.add(std::mem::take(&mut pieces)).await?;
            size = 0;
        }
        if is_over {
            return frame.map(drop).map_err(|source| broken(source).into());
        }
    }
}
