//! A job's standard input, as a descriptor that is ready to be read from its start.
//!
//! No bytes are fed while the job runs: what is given inline goes to a file in memory (memfd), a
//! blob to a file on disk that has no name any more. Either ends with its descriptor.

use std::fs::File;
use std::future::Future;
use std::io::{self, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nix::fcntl::{FcntlArg, OFlag};
use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::proto::content::Content;
use crate::proto::id::Digest;
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
        Some(Content::Text(text)) => in_memory(text.as_bytes()).map(Some),
        Some(Content::Base64(text)) => {
            let bytes = STANDARD.decode(text).map_err(|error| format!("no base64: {error}"))?;
            in_memory(&bytes).map(Some)
        }
        Some(Content::Blob(digest)) => fetch.fetch(*digest).await.map(|file| Some(file.into())),
        Some(Content::File(path)) => {
            let file = open_stream(Path::new(path));
            Ok(Some(file.map_err(|error| format!("cannot read {path}: {error}"))?.into()))
        }
    }
}

/// Opens what a spec names as a file of this machine; a pipe or a device is not waited for.
fn open_at_once(path: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)
}

/// Opens a regular file; anything else may have no end.
///
/// # Errors
/// It cannot be opened, or is something else.
pub fn open_regular(path: &Path) -> io::Result<File> {
    let file = open_at_once(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    Ok(file)
}

/// Opens a file or device that the job reads by itself. A named pipe is refused: nobody can say
/// whether its writer is yet to come.
fn open_stream(path: &Path) -> io::Result<File> {
    let file = open_at_once(path)?;
    let kind = file.metadata()?.file_type();
    if !kind.is_file() && !kind.is_char_device() {
        return Err(io::Error::other("it is neither a file nor a terminal or such a device"));
    }
    nix::fcntl::fcntl(&file, FcntlArg::F_SETFL(OFlag::empty()))?;
    Ok(file)
}

fn in_memory(bytes: &[u8]) -> Result<OwnedFd, String> {
    let made = memfd_create(c"ucp-stdin", MFdFlags::MFD_CLOEXEC);
    let mut file = File::from(made.map_err(|error| format!("no file in memory: {error}"))?);
    let written = file.write_all(bytes).and_then(|()| file.rewind());
    written.map_err(|error| format!("no room in memory: {error}"))?;
    Ok(file.into())
}
