//! The files of jobs that have ended, fetched beside the filter, one job after another.
//!
//! On a connection of its own, so that results go on coming meanwhile. Shape: a job's files are
//! put below a directory that is called after its line.

use tokio::sync::mpsc;

use crate::cli::report::Failure;
use crate::proto::limits;
use crate::wire::api::ResultLine;

use super::super::fetch::OutDir;
use super::super::line;
use super::super::link::Link;

/// A job whose files are wanted.
struct Wanted {
    index: u64,
    below: String,
    text: String,
    ended: Box<ResultLine>,
}

/// A job whose files are here, or cannot be had.
pub struct Fetched {
    /// The number of its line.
    pub index: u64,
    /// Its result line.
    pub text: String,
    /// Why they are not here.
    pub failure: Option<Failure>,
}

/// Fetches files as long as it is there.
pub struct Fetcher {
    wanted: mpsc::Sender<Wanted>,
    fetched: mpsc::Receiver<Fetched>,
    waiting: usize,
}

impl Fetcher {
    /// Begins to fetch into a directory.
    pub fn start(out: OutDir, mut link: Link) -> Self {
        let (wanted, mut jobs) = mpsc::channel::<Wanted>(limits::FETCHES_WAITING_MAX);
        let (done, fetched) = mpsc::channel(limits::FETCHES_WAITING_MAX);
        tokio::spawn(async move {
            while let Some(Wanted { index, below, text, ended }) = jobs.recv().await {
                let all = out.fetch(ended.job, Some(&below), &ended.outputs, &mut link).await;
                let failure = all.err();
                if done.send(Fetched { index, text, failure }).await.is_err() {
                    return;
                }
            }
        });
        Self { wanted, fetched, waiting: 0 }
    }

    /// Jobs that were taken and not given back.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Takes the result line of a job whose files go `below` this; gives it back at once where
    /// there is nothing to fetch.
    ///
    /// # Errors
    /// The line is no result.
    pub fn take(
        &mut self,
        index: u64,
        below: String,
        text: String,
    ) -> Result<Option<String>, Failure> {
        let ended: Box<ResultLine> = line::read(&text)?;
        if ended.outputs.is_empty() {
            return Ok(Some(text));
        }
        let wanted = Wanted { index, below, text, ended };
        match self.wanted.try_send(wanted) {
            Ok(()) => {
                self.waiting += 1;
                Ok(None)
            }
            // No more are taken than there is room for, and it ends only with us.
            Err(refused) => Ok(Some(refused.into_inner().text)),
        }
    }
}

/// The next job whose files are here; waits for ever where there is no fetcher.
pub async fn next(fetcher: &mut Option<Fetcher>) -> Fetched {
    let fetched = match fetcher {
        Some(fetcher) => fetcher.fetched.recv().await,
        None => None,
    };
    match (fetched, fetcher) {
        (Some(fetched), Some(fetcher)) => {
            fetcher.waiting -= 1;
            fetched
        }
        _ => std::future::pending().await,
    }
}
