//! `PUT`, `HEAD` and `GET /v1/blobs/{digest}`: large contents by their BLAKE3 digest.
//!
//! Streamed both ways, a bounded piece at a time; the disk is waited for on other threads. What
//! is put is kept only if its bytes have the digest that the path names.

use std::io::{Seek, SeekFrom};
use std::rc::Rc;
use std::sync::Arc;

use http_body_util::BodyExt;
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_LENGTH;
use hyper::{Method, Request, Response, StatusCode};
use serde::Serialize;
use tokio::io::AsyncReadExt;

use crate::proto::id::Digest;
use crate::proto::limits;
use crate::runtime::blobs::{BlobError, Upload};
use crate::runtime::server::Context;
use crate::runtime::server::answer::{self, Handled, Query};
use crate::runtime::server::body::{Body, Cut};
use crate::wire::problem::Problem;

/// A blob that is open for reading.
#[derive(Debug)]
pub struct OpenBlob {
    /// The file, at the offset that was asked for.
    pub file: tokio::fs::File,
    /// The size of the whole blob in bytes.
    pub size: u64,
}

/// A blob is kept. `type`: `blob`.
#[derive(Serialize)]
struct BlobLine {
    #[serde(rename = "type")]
    kind: &'static str,
    digest: Digest,
    size: u64,
}

/// All methods of `/v1/blobs/{digest}`.
pub async fn blobs(context: Rc<Context>, digest: &str, request: Request<Incoming>) -> Handled {
    let digest: Digest =
        digest.parse().map_err(|error| Problem::new(400, "bad-digest", format!("{error}")))?;
    Query::parse(request.uri().query(), &[])?;
    match *request.method() {
        Method::PUT => put(&context, digest, request).await,
        Method::GET => get(&context, digest).await,
        Method::HEAD => head(&context, digest).await,
        _ => Ok(answer::wrong_method(request.method(), "GET, HEAD, PUT")),
    }
}

async fn put(context: &Context, digest: Digest, request: Request<Incoming>) -> Handled {
    let said = request.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    let said: Option<u64> = said.and_then(|value| value.parse().ok());
    if said.is_some_and(|said| said > limits::BLOB_BYTES_MAX) {
        return Err(problem(BlobError::Long));
    }
    let store = Arc::clone(&context.blobs);
    let mut upload = on_disk(move || store.begin(digest)).await?;
    let mut body = request.into_body();
    let (mut pieces, mut held) = (vec![], 0);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            Problem::new(400, "bad-body", format!("the body broke off: {error}")).retryable()
        })?;
        let Ok(piece) = frame.into_data() else { continue };
        held += piece.len();
        pieces.push(piece);
        if held >= limits::BLOB_PIECE_BYTES {
            upload = write(upload, std::mem::take(&mut pieces)).await?;
            held = 0;
        }
    }
    upload = write(upload, pieces).await?;
    let size = on_disk(move || upload.finish()).await?;
    Ok(answer::json(StatusCode::CREATED, &BlobLine { kind: "blob", digest, size }))
}

async fn write(mut upload: Upload, pieces: Vec<Bytes>) -> Result<Upload, Problem> {
    on_disk(move || {
        for piece in &pieces {
            upload.write(piece)?;
        }
        Ok(upload)
    })
    .await
}

async fn get(context: &Context, digest: Digest) -> Handled {
    let OpenBlob { mut file, size } = context.open_blob(digest, 0).await?;
    Ok(answer::bytes(size, move |sink| async move {
        let mut buffer = vec![0; limits::BODY_PIECE_BYTES];
        let mut left = size;
        while left > 0 {
            sink.room().await;
            let read = file.read(&mut buffer).await;
            match read.map_err(|error| Cut(format!("blob {digest} cannot be read: {error}")))? {
                0 => return Err(Cut(format!("blob {digest} is shorter than it was"))),
                count => {
                    let count = count.min(usize::try_from(left).unwrap_or(count));
                    sink.bytes(&buffer[..count]);
                    left -= count as u64;
                }
            }
        }
        Ok(())
    }))
}

async fn head(context: &Context, digest: Digest) -> Handled {
    let store = Arc::clone(&context.blobs);
    let size = on_disk(move || store.has(&digest)).await?.ok_or_else(|| absent(digest))?;
    let mut response = Response::new(Body::empty());
    response.headers_mut().insert(CONTENT_LENGTH, size.into());
    Ok(response)
}

impl Context {
    /// Opens a blob from an offset on.
    ///
    /// # Errors
    /// It is not here, or cannot be read.
    pub async fn open_blob(&self, digest: Digest, from: u64) -> Result<OpenBlob, Problem> {
        let store = Arc::clone(&self.blobs);
        let found = on_disk(move || {
            let Some((mut file, size)) = store.get(&digest)? else { return Ok(None) };
            file.seek(SeekFrom::Start(from)).map_err(BlobError::Source)?;
            Ok(Some((file, size)))
        });
        let (file, size) = found.await?.ok_or_else(|| absent(digest))?;
        Ok(OpenBlob { file: tokio::fs::File::from_std(file), size })
    }
}

fn absent(digest: Digest) -> Problem {
    Problem::new(404, "no-blob", format!("blob {digest} is not here"))
}

/// Does something on a thread that may wait for the disk.
async fn on_disk<T, F>(work: F) -> Result<T, Problem>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, BlobError> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(problem),
        Err(error) => Err(Problem::new(500, "bug", format!("a disk thread ended: {error}"))),
    }
}

fn problem(error: BlobError) -> Problem {
    match error {
        BlobError::Digest { .. } => Problem::new(422, "wrong-digest", error.to_string())
            .hint("the path must name the BLAKE3 digest of the bytes"),
        BlobError::Long => Problem::new(413, "too-large", error.to_string()),
        error => {
            tracing::error!("a blob is not kept or given: {error}");
            Problem::new(500, "blob", error.to_string()).retryable()
        }
    }
}
