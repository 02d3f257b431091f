//! What an executor keeps from one life to the next: its data directory.

use std::path::PathBuf;

use super::{ExecutorError, Settings, blobs, identity};
use crate::proto::id::ExecutorId;
use crate::proto::message::ResultMessage;
use crate::runtime::rundir::{self, PRIVATE_MODE};
use crate::runtime::spool::Spool;

/// What was read from the data directory, which is locked as long as this lives.
pub(super) struct Kept {
    pub executor: ExecutorId,
    pub spool: Spool,
    pub results: Vec<ResultMessage>,
    /// The data directory by its full path.
    pub data: PathBuf,
    pub lock: rundir::DataLock,
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
        for name in ["spool", "output", "rooms", "cache", "cache/blobs"] {
            rundir::ensure_dir(&data.join(name), PRIVATE_MODE)?;
        }
        let (spool, results) = Spool::open(data.join("spool"))?;
        if !results.is_empty() {
            tracing::info!("{} results of an earlier life are to be sent", results.len());
        }
        blobs::tidy(&data.join("output"), &results);
        Ok(Self { executor, spool, results, data: data.clone(), lock })
    }
}
