//! `--status-fd N`: the result lines on a descriptor of their own, so that a job's output and what
//! became of it do not mix.
//!
//! The descriptor was opened by whoever started us. It must be looked at before anything of ours
//! is opened, which could have the same number. A reader that goes away is no error.
//! Shape: each line as `--json` prints it; `{"type":"unknown",…}` where the end is not known.

use std::os::fd::{BorrowedFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::cli::output::{Outgoing, OutputError};
use crate::cli::report::Failure;
use crate::proto::id::TaskId;
use crate::wire::api::UnknownLine;

/// Where the lines go, if anywhere.
#[derive(Debug, Default)]
pub struct Status(Option<Outgoing>);

impl Status {
    /// Takes the descriptor that the flag names.
    ///
    /// # Errors
    /// It is not open for writing.
    pub fn open(number: Option<i32>) -> Result<Self, Failure> {
        let Some(number) = number else { return Ok(Self(None)) };
        let wrong = |why: &str| {
            Failure::usage(format_args!("--status-fd {number}: {why}"))
                .hint(format_args!("open it in the shell, as in: {number}>status.jsonl"))
        };
        if number < 0 {
            return Err(wrong("a descriptor is 0 or more"));
        }
        // SAFETY: a number that is not open only makes the calls fail, and nothing of this program
        // has been opened yet, so that the descriptor is borrowed from whoever started it.
        let given = unsafe { BorrowedFd::borrow_raw(number) };
        let flags = fcntl(given, FcntlArg::F_GETFL).map_err(|_| wrong("it is not open"))?;
        if OFlag::from_bits_truncate(flags) & OFlag::O_ACCMODE == OFlag::O_RDONLY {
            return Err(wrong("it is open for reading only"));
        }
        let own: OwnedFd = given.try_clone_to_owned().map_err(|error| wrong(&error.to_string()))?;
        Ok(Self(Some(Outgoing::to(own))))
    }

    /// Takes a line.
    pub fn push(&mut self, line: &str) {
        if let Some(outgoing) = &mut self.0 {
            outgoing.push(line);
        }
    }

    /// Takes the line of a job whose end is not known.
    pub fn push_unknown(&mut self, job: TaskId, why: &str) {
        let line = UnknownLine { kind: "unknown".into(), job, reason: why.to_owned() };
        self.push(&serde_json::to_string(&line).expect("a line has only string keys"));
    }

    /// Bytes that were not written yet.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.as_ref().map_or(0, Outgoing::len)
    }

    /// Writes all; may be dropped while it waits and called again.
    ///
    /// # Errors
    /// The system refused.
    pub async fn write(&mut self) -> Result<(), Failure> {
        let Some(outgoing) = &mut self.0 else { return Ok(()) };
        match outgoing.write().await {
            Err(OutputError::Closed) => {
                self.0 = None;
                Ok(())
            }
            written => Ok(written?),
        }
    }
}
