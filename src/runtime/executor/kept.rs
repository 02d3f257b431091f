//! What an executor keeps from one life to the next: its data directory.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::PathBuf;
use std::time::Duration;

use super::{ExecutorError, Settings, blobs, identity};
use crate::proto::id::ExecutorId;
use crate::proto::limits;
use crate::proto::message::ResultMessage;
use crate::runtime::entropy;
use crate::runtime::rooms::remove_tree;
use crate::runtime::rundir::{self, PRIVATE_MODE};
use crate::runtime::spool::Spool;

/// Between two tries to take the name.
const PAUSE: Duration = Duration::from_millis(10);

/// What was read from the data directory, which is locked as long as this lives.
pub(super) struct Kept {
    pub executor: ExecutorId,
    /// The number of this process's incarnation.
    pub life: u64,
    pub spool: Spool,
    pub results: Vec<ResultMessage>,
    /// The data directory by its full path.
    pub data: PathBuf,
    pub lock: rundir::DataLock,
    /// Held while this life lasts, whatever its data directory.
    pub sole: UnixListener,
}

impl Kept {
    pub(super) fn open(settings: &Settings) -> Result<Self, ExecutorError> {
        rundir::ensure_dir(&settings.data, PRIVATE_MODE)?;
        let lock = rundir::lock_data(&settings.data)?;
        // Jobs learn their directory by its full path.
        let data = settings.data.canonicalize();
        let data = &data
            .map_err(|source| ExecutorError::System { what: "find the data directory", source })?;
        // Before anything is touched: a newer version may have other uses for the rest.
        let executor = identity::load_or_create(data, &settings.name)?;
        let sole = be_sole(&executor)?;
        // Each attempt keeps its own, and none of an earlier life goes on.
        let checkpoints = data.join("checkpoints");
        if let Err(error) = remove_tree(&checkpoints) {
            tracing::warn!("cannot remove {} as a whole: {error}", checkpoints.display());
        }
        for name in ["spool", "output", "rooms", "checkpoints", "cache", "cache/blobs"] {
            rundir::ensure_dir(&data.join(name), PRIVATE_MODE)?;
        }
        let (spool, results) = Spool::open(data.join("spool"))?;
        if !results.is_empty() {
            tracing::info!("{} results of an earlier life are to be sent", results.len());
        }
        blobs::tidy(&data.join("output"), &results);
        let life = entropy::seed() & limits::COUNTER_MAX;
        Ok(Self { executor, life, spool, results, data: data.clone(), lock, sole })
    }
}

/// Takes the executor's name for this process alone, on this host: a copy of a data directory has
/// a lock of its own, and must not kill what the original runs. The name of a socket goes with the
/// process that has it, however that ends.
fn be_sole(executor: &ExecutorId) -> Result<UnixListener, ExecutorError> {
    let system = |source| ExecutorError::System { what: "take the executor's name", source };
    let name = SocketAddr::from_abstract_name(format!("ucp-exec/{executor}")).map_err(system)?;
    let rounds = limits::NAME_FREE_WITHIN.as_millis() / PAUSE.as_millis();
    for _ in 0..rounds {
        match UnixListener::bind_addr(&name) {
            // One that was killed a moment ago may still be on its way out.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => pause(),
            bound => return bound.map_err(system),
        }
    }
    Err(ExecutorError::Copied { executor: executor.clone() })
}

fn pause() {
    #[allow(clippy::disallowed_methods, reason = "a pause between tries, within a bound")]
    std::thread::sleep(PAUSE);
}
