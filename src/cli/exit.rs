//! The exit statuses of all commands, and which error ends with which.
//!
//! Prints nothing and ends nothing: a command's one entry function turns an [`Exit`] into the
//! status of the process. Statuses from 64 follow BSD's sysexits.h; 124 to 126 and 130 speak of a
//! job that `ucp-submit` ran in the foreground and could not end with that job's own status.
//! Law: tests/cli/exit_status.rs shows each row with the real commands.

use std::io;
use std::process::ExitCode;

use crate::runtime::blobs::BlobError;
use crate::runtime::client::ClientError;
use crate::runtime::continuity::ContinuityError;
use crate::runtime::endpoint::EndpointError;
use crate::runtime::rundir::DirError;
use crate::runtime::store::StoreError;
use crate::wire::problem::Problem;

/// How a command ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done; or the answer is yes.
    Done,
    /// Answered, and the answer is no.
    No,
    /// Wrong usage.
    Usage,
    /// Input is not what it should be.
    Data,
    /// Input is absent.
    Absent,
    /// No broker is reachable.
    NoBroker,
    /// A fault of ours.
    Bug,
    /// A file cannot be created.
    Create,
    /// Reading or writing failed.
    Io,
    /// Not now; trying again later may help.
    Later,
    /// The other side speaks another version.
    Protocol,
    /// Not allowed.
    Denied,
    /// The configuration is wrong.
    Config,
    /// The job's time was over.
    TimedOut,
    /// The job is parked, expired, skipped, or could not be run.
    NotRun,
    /// The job's outcome is not known.
    Unknown,
    /// The job was cancelled.
    Cancelled,
    /// The job's own status.
    Job(u8),
}

impl Exit {
    /// The status of the process.
    #[must_use]
    pub const fn status(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::No => 1,
            Self::Usage => 64,
            Self::Data => 65,
            Self::Absent => 66,
            Self::NoBroker => 69,
            Self::Bug => 70,
            Self::Create => 73,
            Self::Io => 74,
            Self::Later => 75,
            Self::Protocol => 76,
            Self::Denied => 77,
            Self::Config => 78,
            Self::TimedOut => 124,
            Self::NotRun => 125,
            Self::Unknown => 126,
            Self::Cancelled => 130,
            Self::Job(status) => status,
        }
    }

    /// The stable word for programs, used in problem documents on stderr.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::No => "no",
            Self::Usage => "usage",
            Self::Data => "bad-input",
            Self::Absent => "absent",
            Self::NoBroker => "no-broker",
            Self::Bug => "bug",
            Self::Create => "cannot-create",
            Self::Io => "io",
            Self::Later => "later",
            Self::Protocol => "protocol",
            Self::Denied => "denied",
            Self::Config => "config",
            Self::TimedOut => "timed-out",
            Self::NotRun => "not-run",
            Self::Unknown => "unknown-outcome",
            Self::Cancelled => "cancelled",
            Self::Job(_) => "job",
        }
    }

    /// The HTTP status that is nearest to it, for problem documents.
    #[must_use]
    pub const fn http(self) -> u16 {
        match self {
            Self::Done | Self::No | Self::Job(_) | Self::Cancelled => 200,
            Self::Usage => 400,
            Self::Data => 422,
            Self::Absent => 404,
            Self::NoBroker | Self::Later => 503,
            Self::Bug | Self::Create | Self::Io | Self::Config | Self::NotRun => 500,
            Self::Protocol => 505,
            Self::Denied => 403,
            Self::TimedOut | Self::Unknown => 504,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.status())
    }
}

impl From<&EndpointError> for Exit {
    fn from(error: &EndpointError) -> Self {
        match error {
            EndpointError::Form(_) | EndpointError::Tls(_) => Self::Config,
            EndpointError::RunDir(_) => Self::Denied,
            EndpointError::Connect { source, .. }
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                Self::Denied
            }
            EndpointError::Connect { .. } | EndpointError::NoBroker { .. } => Self::NoBroker,
        }
    }
}

impl From<&ClientError> for Exit {
    fn from(error: &ClientError) -> Self {
        match error {
            ClientError::Endpoint(error) => error.into(),
            ClientError::Broken { .. } | ClientError::Silent { .. } => Self::NoBroker,
            ClientError::Line { .. } | ClientError::Unknown { .. } => Self::Protocol,
            ClientError::Refused(problem) => (&**problem).into(),
        }
    }
}

impl From<&Problem> for Exit {
    fn from(problem: &Problem) -> Self {
        match (problem.status, &*problem.code) {
            (_, "queue-full" | "busy" | "home-elsewhere") => Self::Later,
            (_, "after-unknown" | "not-found" | "ambiguous") => Self::Absent,
            (_, "has-ended" | "not-ended" | "id-taken" | "key-conflict") => Self::No,
            (401 | 403, _) => Self::Denied,
            (404, _) => Self::Absent,
            (426 | 505 | 501 | 405, _) => Self::Protocol,
            // A full disk of the broker passes when somebody makes room.
            (408 | 429 | 503 | 504 | 507, _) => Self::Later,
            (400..=499, _) => Self::Data,
            _ => Self::Bug,
        }
    }
}

impl From<&DirError> for Exit {
    fn from(error: &DirError) -> Self {
        match error {
            DirError::InUse { .. } | DirError::Taken(_) => Self::Later,
            DirError::Owner { .. } | DirError::Open { .. } => Self::Denied,
            DirError::Create { .. } => Self::Create,
            DirError::Inspect { source, .. }
            | DirError::Lock { source, .. }
            | DirError::Remove { source, .. } => source.into(),
            DirError::NoHome
            | DirError::NotDirectory(_)
            | DirError::NotSocket(_)
            | DirError::Long(_) => Self::Config,
        }
    }
}

impl From<&StoreError> for Exit {
    /// Damage and versions end with statuses after which a supervisor does not start us again.
    fn from(error: &StoreError) -> Self {
        match error {
            _ if error.is_damage() => Self::Data,
            StoreError::Newer { .. } | StoreError::Foreign(_) => Self::Config,
            StoreError::Open { .. } => Self::Create,
            StoreError::Order { .. } => Self::Bug,
            StoreError::Continuity(error) => error.into(),
            _ => Self::Io,
        }
    }
}

impl From<&ContinuityError> for Exit {
    fn from(error: &ContinuityError) -> Self {
        match error {
            ContinuityError::Name(_) => Self::Config,
            ContinuityError::Create { .. } => Self::Create,
            ContinuityError::Write { .. } => Self::Io,
        }
    }
}

impl From<&BlobError> for Exit {
    fn from(error: &BlobError) -> Self {
        match error {
            BlobError::Digest { .. } | BlobError::Long => Self::Data,
            BlobError::Offset { .. } | BlobError::TakenOver => Self::Later,
            BlobError::Disk { .. } | BlobError::Source(_) => Self::Io,
        }
    }
}

impl From<&io::Error> for Exit {
    fn from(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::Absent,
            io::ErrorKind::PermissionDenied => Self::Denied,
            _ => Self::Io,
        }
    }
}
