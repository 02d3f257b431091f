//! Standard input for a job: a file or our own, inline where it is short, a blob where it is long.
//!
//! A blob is hashed before it is sent, as its name is its digest; what comes through a pipe is
//! therefore kept in an unnamed temporary file in between. At most 64 KiB are held at one time.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;

use base64::Engine;
use hyper::Method;
use hyper::body::Bytes;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use tokio::sync::mpsc;

use crate::cli::exit::Exit;
use crate::cli::report::Failure;
use crate::proto::id::Digest;
use crate::proto::job::Stdin;
use crate::proto::limits;
use crate::runtime::client::Body;

use super::link::{Asked, Link};

/// Bytes read and sent at one time.
const PIECE_BYTES: usize = 64 << 10;
/// Pieces on their way to the broker.
const PIECES_MAX: usize = 4;

/// Whether our standard input is a pipe in which something waits to be read.
#[must_use]
pub fn is_waiting() -> bool {
    use nix::sys::stat::{SFlag, fstat};
    let stdin = io::stdin();
    let kind = fstat(stdin.as_fd()).map_or(0, |found| found.st_mode) & SFlag::S_IFMT.bits();
    let mut asked = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
    kind == SFlag::S_IFIFO.bits()
        && nix::poll::poll(&mut asked, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
        && asked[0].revents().is_some_and(|found| found.contains(PollFlags::POLLIN))
}

/// Reads the file named by `--stdin`, `-` for our own standard input, and uploads it where it is
/// too long for a spec.
///
/// # Errors
/// It cannot be read, or no broker took it.
pub async fn prepare(source: &str, link: &mut Link) -> Result<Option<Stdin>, Failure> {
    let name = if source == "-" { "stdin" } else { source };
    let failed = |error: &io::Error| Failure::io(format_args!("cannot read {name}"), error);
    let mut input: Box<dyn Read> = match source {
        "-" => Box::new(io::stdin().lock()),
        path => Box::new(File::open(path).map_err(|error| failed(&error))?),
    };
    let mut head = vec![];
    let limit = limits::STDIN_INLINE_BYTES_MAX as u64 + 1;
    input.by_ref().take(limit).read_to_end(&mut head).map_err(|error| failed(&error))?;
    if head.len() <= limits::STDIN_INLINE_BYTES_MAX {
        return Ok(inline(head));
    }
    let (file, digest) = match source {
        "-" => spool(&head, input.as_mut())?,
        path => {
            drop(input);
            let mut file = File::open(path).map_err(|error| failed(&error))?;
            let digest = digest_of(&mut file).map_err(|error| failed(&error))?;
            (file, digest)
        }
    };
    upload(file, digest, link).await?;
    Ok(Some(Stdin::Blob(digest)))
}

fn inline(bytes: Vec<u8>) -> Option<Stdin> {
    match String::from_utf8(bytes) {
        Ok(text) if text.is_empty() => None,
        Ok(text) => Some(Stdin::Text(text)),
        Err(error) => {
            let engine = base64::engine::general_purpose::STANDARD;
            Some(Stdin::Base64(engine.encode(error.as_bytes())))
        }
    }
}

/// Keeps a stream in an unnamed temporary file.
fn spool(head: &[u8], rest: &mut dyn Read) -> Result<(File, Digest), Failure> {
    let directory = std::env::temp_dir();
    let shown = directory.display().to_string();
    let mut file = unnamed(&directory).map_err(|error| {
        Failure::new(Exit::Create, format_args!("cannot create a file in {shown}: {error}"))
    })?;
    let failed = |error: &io::Error| {
        Failure::io(format_args!("cannot copy stdin to a file in {shown}"), error)
    };
    file.write_all(head).map_err(|error| failed(&error))?;
    io::copy(rest, &mut file).map_err(|error| failed(&error))?;
    let digest = digest_of(&mut file).map_err(|error| failed(&error))?;
    Ok((file, digest))
}

fn unnamed(directory: &std::path::Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let flags = nix::fcntl::OFlag::O_TMPFILE.bits();
    File::options().read(true).write(true).mode(0o600).custom_flags(flags).open(directory)
}

fn digest_of(file: &mut File) -> io::Result<Digest> {
    file.seek(SeekFrom::Start(0))?;
    let mut hasher = blake3::Hasher::new();
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match file.read(&mut piece) {
            Ok(0) => break,
            Ok(length) => hasher.update(&piece[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
    }
    Ok(Digest(*hasher.finalize().as_bytes()))
}

/// Sends a blob, again and again until a broker has it whole.
async fn upload(mut file: File, digest: Digest, link: &mut Link) -> Result<(), Failure> {
    let path = format!("/v1/blobs/{digest}");
    loop {
        match try_upload(&mut file, &path, link).await {
            Ok(()) => return Ok(()),
            Err(Asked::Gone(error)) => link.lose_question(&error)?,
            Err(Asked::Failed(failure)) => {
                return Err(failure.while_doing("cannot hand over the job's standard input"));
            }
        }
    }
}

async fn try_upload(file: &mut File, path: &str, link: &mut Link) -> Result<(), Asked> {
    let (_, held) = link.request(Method::HEAD, path, Body::empty()).await?;
    if held.status().is_success() {
        return Ok(());
    }
    drop(held);
    let failed = |error| Asked::Failed(Failure::io("cannot read standard input again", &error));
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    let mut reader = file.try_clone().map_err(failed)?;
    let (pieces, body) = mpsc::channel(PIECES_MAX);
    std::thread::spawn(move || {
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            let sent = match reader.read(&mut piece) {
                Ok(0) => break,
                Ok(length) => Ok(Bytes::copy_from_slice(&piece[..length])),
                Err(error) => Err(error),
            };
            let failed = sent.is_err();
            if pieces.blocking_send(sent).is_err() || failed {
                break;
            }
        }
    });
    let mut answer = link.begin(Method::PUT, path, Body::bytes(body)).await?;
    while answer.next().await?.is_some() {}
    Ok(())
}
