//! `PUT`, `HEAD` and `GET /v1/blobs/{digest}`: large contents by their BLAKE3 digest.
//!
//! Streamed both ways, a bounded piece at a time; the disk is waited for on other threads. What
//! is put is kept only if its bytes have the digest that the path names.
//! Shape: of an upload that broke off, `HEAD` tells in `Upload-Offset` how many bytes are held;
//! `PUT` with `Content-Range: bytes FROM-LAST/SIZE` goes on behind them. `GET` gives a `Range`.
//! Source: RFC 9110 section 14; the client's side is transfer.rs.

use std::io::{Seek, SeekFrom};
use std::rc::Rc;
use std::sync::Arc;

use hyper::body::{Bytes, Incoming};
use hyper::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, HeaderName, HeaderValue, RANGE,
};
use hyper::{Method, Request, Response, StatusCode};
use serde::Serialize;
use tokio::io::AsyncReadExt;
use tokio::time::Instant;

use crate::proto::id::Digest;
use crate::proto::limits;
use crate::runtime::blobs::{BlobError, Blobs, Upload};
use crate::runtime::client::UPLOAD_OFFSET;
use crate::runtime::server::Context;
use crate::runtime::server::answer::{self, Handled, Query};
use crate::runtime::server::body::{Body, Cut};
use crate::runtime::store::Disk;
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
        Method::GET => get(&context, digest, request.headers()).await,
        _ => head(&context, digest).await,
    }
}

/// What a `PUT` says of its body: where it begins, and the size of the blob if that is said.
struct Said {
    from: u64,
    size: Option<u64>,
}

impl Said {
    fn read(headers: &HeaderMap) -> Result<Self, Problem> {
        let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let length: Option<u64> = text(CONTENT_LENGTH).and_then(|value| value.parse().ok());
        let said = match headers.contains_key(CONTENT_RANGE) {
            false => Self { from: 0, size: length },
            true => {
                let bad = |why| Problem::new(400, "bad-range", format!("Content-Range {why}"));
                let range = text(CONTENT_RANGE).and_then(parse_content_range).ok_or_else(|| {
                    bad("is none").hint("go on with 'Content-Range: bytes FROM-LAST/SIZE'")
                })?;
                if range.1 != range.2 {
                    return Err(bad("must reach to the end of the blob"));
                }
                if length.is_some_and(|length| length != range.2 - range.0) {
                    return Err(bad("is of another length than the body"));
                }
                Self { from: range.0, size: Some(range.2) }
            }
        };
        match said.size {
            Some(size) if size > limits::BLOB_BYTES_MAX => Err(problem(BlobError::Long)),
            _ => Ok(said),
        }
    }
}

/// Where `bytes FROM-LAST/SIZE` begins and ends, and the size; `bytes */SIZE` is nothing more at
/// the end (RFC 9110 section 14.4).
fn parse_content_range(text: &str) -> Option<(u64, u64, u64)> {
    let (range, size) = text.strip_prefix("bytes ")?.split_once('/')?;
    let number = |text: &str| text.parse().ok().filter(|number| *number <= limits::COUNTER_MAX);
    let size: u64 = number(size)?;
    if range == "*" {
        return Some((size, size, size));
    }
    let (from, last) = range.split_once('-')?;
    let (from, last) = (number(from)?, number(last)?);
    (from <= last && last < size).then_some((from, last + 1, size))
}

/// `bytes=FROM-` or `bytes=FROM-LAST`. Other kinds may be passed over (RFC 9110 section 14.2).
fn parse_range(text: &str) -> Option<(u64, u64)> {
    let (from, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let last = if last.is_empty() { u64::MAX } else { last.parse().ok()? };
    let from = from.parse().ok()?;
    (from <= last).then_some((from, last))
}

async fn put(context: &Context, digest: Digest, request: Request<Incoming>) -> Handled {
    let said = Said::read(request.headers())?;
    context.room_for_blobs()?;
    let (store, from) = (Arc::clone(&context.blobs), said.from);
    let begun = match from {
        0 => on_disk(move || store.begin(digest).map(Ok)).await?,
        from => {
            context.until_idle(&digest).await;
            on_disk(move || match store.resume(digest, from) {
                Err(BlobError::Offset { held }) => Ok(Err(held)),
                other => other.map(Ok),
            })
            .await?
        }
    };
    let mut upload = match begun {
        Ok(upload) => upload,
        Err(held) => return Ok(elsewhere(from, held)),
    };
    let mut body = request.into_body();
    let (mut pieces, mut held) = (vec![], 0);
    loop {
        let frame = match answer::piece(&mut body, limits::BODY_IDLE_MAX).await {
            Ok(Some(piece)) => piece,
            Ok(None) => break,
            Err(problem) => {
                // What came is worth keeping: the sender may go on behind it.
                drop(write(upload, pieces).await?);
                return Err(problem);
            }
        };
        held += frame.len();
        pieces.push(frame);
        if held >= limits::BLOB_PIECE_BYTES {
            context.room_for_blobs()?;
            upload = write(upload, std::mem::take(&mut pieces)).await?;
            held = 0;
        }
    }
    upload = write(upload, pieces).await?;
    if said.size.is_some_and(|size| size > upload.size()) {
        let what = format!("the body ends at byte {} of the blob", upload.size());
        return Err(Problem::new(400, "bad-body", what).retryable());
    }
    let size = on_disk(move || upload.finish()).await?;
    Ok(answer::json(StatusCode::CREATED, &BlobLine { kind: "blob", digest, size }))
}

/// The answer to who goes on with an upload where it does not stand.
fn elsewhere(from: u64, held: u64) -> Response<Body> {
    let what = format!("the upload stands at byte {held}, not at {from}");
    let document = Problem::new(409, "wrong-offset", what).retryable();
    let document = document.hint(format!("go on behind the first {held} bytes"));
    let mut response = answer::problem(&document);
    response.headers_mut().insert(UPLOAD_OFFSET, held.into());
    response
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

async fn get(context: &Context, digest: Digest, headers: &HeaderMap) -> Handled {
    let asked = headers.get(RANGE).and_then(|value| value.to_str().ok()).and_then(parse_range);
    let (from, last) = asked.unwrap_or((0, u64::MAX));
    let OpenBlob { mut file, size } = context.open_blob(digest, from).await?;
    if asked.is_some() && from >= size {
        let what = format!("blob {digest} has {size} bytes, none at {from}");
        let mut response = answer::problem(&Problem::new(416, "no-such-range", what));
        set(&mut response, CONTENT_RANGE, &format!("bytes */{size}"));
        return Ok(response);
    }
    let end = last.saturating_add(1).min(size);
    let asked_size = end - from;
    let whole = from == 0 && end == size;
    let store = Arc::clone(&context.blobs);
    let mut response = answer::bytes(asked_size, move |sink| async move {
        let mut hasher = whole.then(blake3::Hasher::new);
        let mut buffer = vec![0; limits::BODY_PIECE_BYTES];
        let mut left = asked_size;
        while left > 0 {
            sink.room().await;
            let read = file.read(&mut buffer).await;
            match read.map_err(|error| Cut(format!("blob {digest} cannot be read: {error}")))? {
                0 => return Err(Cut(format!("blob {digest} is shorter than it was"))),
                count => {
                    let count = count.min(usize::try_from(left).unwrap_or(count));
                    left -= count as u64;
                    if let Some(hasher) = &mut hasher {
                        hasher.update(&buffer[..count]);
                        // The last piece leaves only if all of it is what its name says.
                        if left == 0 && *hasher.finalize().as_bytes() != digest.0 {
                            return Err(damaged(&store, &digest));
                        }
                    }
                    sink.bytes(&buffer[..count]);
                }
            }
        }
        Ok(())
    });
    describe(&mut response, digest);
    if asked.is_some() {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        set(&mut response, CONTENT_RANGE, &format!("bytes {from}-{}/{size}", end - 1));
    }
    Ok(response)
}

/// Sets a damaged blob aside, so that who has it can send it again.
fn damaged(store: &Blobs, digest: &Digest) -> Cut {
    if let Err(error) = store.set_aside(digest) {
        tracing::error!("{error}");
    }
    tracing::error!("blob {digest} was damaged on the disk; it is wanted again");
    Cut(format!("blob {digest} is damaged here"))
}

async fn head(context: &Context, digest: Digest) -> Handled {
    let store = Arc::clone(&context.blobs);
    if let Some(size) = on_disk(move || store.has(&digest)).await? {
        let mut response = Response::new(Body::empty());
        response.headers_mut().insert(CONTENT_LENGTH, size.into());
        describe(&mut response, digest);
        return Ok(response);
    }
    context.until_idle(&digest).await;
    let store = Arc::clone(&context.blobs);
    let held = on_disk(move || Ok(store.stands_at(&digest))).await?;
    let mut response = answer::problem(&absent(digest));
    if held > 0 {
        response.headers_mut().insert(UPLOAD_OFFSET, held.into());
    }
    Ok(response)
}

/// Says that ranges may be asked for, and under which name the content is known.
fn describe(response: &mut Response<Body>, digest: Digest) {
    set(response, ETAG, &format!("\"{digest}\""));
    set(response, ACCEPT_RANGES, "bytes");
}

fn set(response: &mut Response<Body>, name: HeaderName, value: &str) {
    let value = HeaderValue::from_str(value).expect("digests and numbers are plain text");
    response.headers_mut().insert(name, value);
}

impl Context {
    /// The store's disk is the blobs' as well, and what is left of it is the store's.
    fn room_for_blobs(&self) -> Result<(), Problem> {
        match self.hub.disk() {
            Disk::Well => Ok(()),
            Disk::Full | Disk::Stalled => Err(answer::disk_full()),
        }
    }

    /// Waits until no upload of this digest is at work, but not for longer than one may be idle:
    /// the one before may just have broken.
    async fn until_idle(&self, digest: &Digest) {
        let end = Instant::now() + limits::UPLOAD_IDLE_AFTER + limits::UPLOAD_IDLE_AFTER / 8;
        while self.blobs.is_busy(digest) && Instant::now() < end {
            tokio::time::sleep(limits::UPLOAD_IDLE_AFTER / 32).await;
        }
    }

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
        let Some((file, size)) = found.await? else {
            let store = Arc::clone(&self.blobs);
            let damaged = on_disk(move || Ok(store.was_damaged(&digest))).await?;
            let words = format!("blob {digest} was damaged on the broker's disk and is not here");
            let mut problem = absent(digest);
            if damaged {
                problem = Problem::new(404, "no-blob", words);
            }
            return Err(problem);
        };
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
        BlobError::Offset { .. } | BlobError::TakenOver => {
            Problem::new(409, "wrong-offset", error.to_string()).retryable()
        }
        error if error.is_full() => answer::disk_full(),
        error => {
            tracing::error!("a blob is not kept or given: {error}");
            Problem::new(500, "blob", error.to_string()).retryable()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_and_nonsense_is_none() {
        assert_eq!(parse_content_range("bytes 2-9/10"), Some((2, 10, 10)));
        assert_eq!(parse_content_range("bytes */10"), Some((10, 10, 10)));
        assert_eq!(parse_range("bytes=7-"), Some((7, u64::MAX)));
        assert_eq!(parse_range("bytes=7-8"), Some((7, 8)));
        for none in [
            "",
            "bytes",
            "bytes 9-2/10",
            "bytes 2-10/10",
            "bytes */x",
            "bytes 2-9/*",
            "bytes -9/10",
            "2-9/10",
            "bytes 2-9/9007199254740992",
            "bytes=9-2",
            "bytes=-5",
            "bytes=1-2,4-5",
            "lines=1-",
        ] {
            assert_eq!((parse_content_range(none), parse_range(none)), (None, None), "{none}");
        }
    }
}
