//! A job's standard input, as a descriptor that is ready to be read from its start.
//!
//! No bytes are fed while the job runs: what is given inline goes to a file in memory (memfd), a
//! blob to a file on disk that has no name any more. Either ends with its descriptor.

use std::fs::File;
use std::future::Future;
use std::io::{Seek, Write};
use std::os::fd::OwnedFd;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::proto::id::Digest;
use crate::proto::job::Stdin;
use crate::proto::message::StartOrder;

/// Where blobs come from.
pub trait Fetch {
    /// Brings a blob here and opens it at its start. Must not return before the whole content was
    /// checked against the digest, and must go on trying while no broker answers.
    fn fetch(&self, digest: Digest) -> impl Future<Output = Result<File, String>>;
}

/// Opens the job's standard input; nothing where it is `/dev/null`.
///
/// # Errors
/// In words, why there is none; the job cannot run.
pub async fn prepare(order: &StartOrder, fetch: &impl Fetch) -> Result<Option<OwnedFd>, String> {
    match &order.spec.stdin {
        None => Ok(None),
        Some(Stdin::Text(text)) => in_memory(text.as_bytes()).map(Some),
        Some(Stdin::Base64(text)) => {
            let bytes = STANDARD.decode(text).map_err(|error| format!("no base64: {error}"))?;
            in_memory(&bytes).map(Some)
        }
        Some(Stdin::Blob(digest)) => fetch.fetch(*digest).await.map(|file| Some(file.into())),
    }
}

fn in_memory(bytes: &[u8]) -> Result<OwnedFd, String> {
    let made = memfd_create(c"ucp-stdin", MFdFlags::MFD_CLOEXEC);
    let mut file = File::from(made.map_err(|error| format!("no file in memory: {error}"))?);
    let written = file.write_all(bytes).and_then(|()| file.rewind());
    written.map_err(|error| format!("no room in memory: {error}"))?;
    Ok(file.into())
}
