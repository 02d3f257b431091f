//! Contents on their way to a broker, before the job that names them.
//!
//! Each blob is sent once in a run, and not at all where the broker has it. The broker takes it
//! only if it has the digest that was taken before: a file that another program changed in
//! between is read once more, and then given up. How they are sent is runtime/transfer.rs.

use std::collections::BTreeSet;

use hyper::Method;

use crate::cli::exit::Exit;
use crate::cli::report::Failure;
use crate::proto::content::{Content, Input};
use crate::proto::id::Digest;
use crate::proto::job::JobSpec;
use crate::proto::limits;
use crate::runtime::client::Body;
use crate::runtime::transfer::{self, TransferError};

use super::files::{Found, Held, Source, Wanted, changing};
use super::link::{Asked, Link};

/// Reads the files that are wanted, sends those that do not fit the spec, and names all in it.
///
/// # Errors
/// One cannot be read, changes all the time, or no broker took it.
pub async fn fill(spec: &mut JobSpec, wanted: Wanted, link: &mut Link) -> Result<(), Failure> {
    if wanted.is_empty() {
        return Ok(());
    }
    let Found { stdin, wasm, inputs, dirs, .. } = on_disk(move || wanted.read()).await?;
    let mut sent = Sent::default();
    if let (Some(held), Some(module)) = (wasm, &mut spec.wasm) {
        module.content = sent.content(held, link).await?;
    }
    for (path, (held, executable)) in inputs {
        let content = sent.content(held, link).await?;
        spec.inputs.insert(path, Input { content, executable });
    }
    spec.dirs.extend(dirs);
    if let Some(held) = stdin {
        spec.stdin = Some(sent.content(held, link).await?);
    }
    spec.validate().map_err(|error| Failure::new(Exit::Data, error))
}

/// Does something on a thread that may wait for the disk.
async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| {
        Err(Failure::new(Exit::Bug, format_args!("a thread that reads files ended: {error}")))
    })
}

/// The blobs that the broker has.
#[derive(Default)]
struct Sent(BTreeSet<Digest>);

impl Sent {
    async fn content(&mut self, held: Held, link: &mut Link) -> Result<Content, Failure> {
        let mut source = match held {
            Held::Inline(content) => return Ok(content),
            Held::Long(source) => source,
        };
        for _ in 0..limits::CHANGED_TRIES_MAX {
            if self.0.contains(&source.digest) || send(&source, link).await? {
                self.0.insert(source.digest);
                return Ok(Content::Blob(source.digest));
            }
            tracing::info!("{} changed while it was sent", source.name);
            source = on_disk(move || source.again()).await?;
        }
        Err(changing(&source.name))
    }
}

/// Sends a blob, again and again until a broker has it whole. Tells whether it has: not if the
/// file has another content by now.
async fn send(source: &Source, link: &mut Link) -> Result<bool, Failure> {
    loop {
        let error = match try_send(source, link).await {
            Ok(sent) => return Ok(sent),
            Err(Asked::Gone(error)) => error,
            Err(Asked::Failed(failure)) => {
                let doing = format_args!("cannot hand over {}", source.name);
                return Err(failure.while_doing(doing));
            }
        };
        link.lose_question(&error)?;
    }
}

async fn try_send(source: &Source, link: &mut Link) -> Result<bool, Asked> {
    // The first contact is bounded, and tells which broker it is.
    let path = format!("/v1/blobs/{}", source.digest);
    let (address, held) = link.request(Method::HEAD, &path, Body::empty()).await?;
    if held.status().is_success() {
        return Ok(true);
    }
    drop(held);
    match transfer::upload(&address, &source.path, source.digest).await {
        Ok(()) => Ok(true),
        Err(TransferError::Content(_)) => Ok(false),
        Err(TransferError::Client(error)) => Err(error.into()),
        Err(TransferError::File { source, .. }) => {
            Err(Asked::Failed(Failure::io("cannot read it again", &source)))
        }
    }
}
