//! Errors as data: problem documents with a stable code.
//!
//! Source: RFC 9457 (`application/problem+json`), with the members `code`, `hint`, `retryable`.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::proto::event::Refusal;

/// The media type of a problem document.
pub const PROBLEM_JSON: &str = "application/problem+json";

/// One error as a client sees it, over HTTP and on stderr with `--json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Always `problem`.
    #[serde(rename = "type")]
    pub kind: Cow<'static, str>,
    /// The HTTP status.
    pub status: u16,
    /// A stable word for programs.
    pub code: Cow<'static, str>,
    /// What went wrong, in words.
    pub detail: String,
    /// What a person can do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Whether the same request may succeed later.
    pub retryable: bool,
    /// The client's number for the submission that it speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<u64>,
}

impl Problem {
    /// A problem that trying again does not solve.
    #[must_use]
    pub fn new(status: u16, code: &'static str, detail: impl Into<String>) -> Self {
        Self {
            kind: "problem".into(),
            status,
            code: code.into(),
            detail: detail.into(),
            hint: None,
            retryable: false,
            index: None,
        }
    }

    /// The same problem with advice.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same problem, which may pass.
    #[must_use]
    pub fn retryable(mut self) -> Self {
        self.retryable = true;
        self
    }

    /// The problem document of a refusal.
    #[must_use]
    pub fn of_refusal(refusal: &Refusal, index: Option<u64>) -> Self {
        let status = match refusal {
            Refusal::NotFound(_) | Refusal::NoExecutor(_) => 404,
            Refusal::Spec(_) | Refusal::TooMany { .. } => 422,
            Refusal::QueueFull(_) => 503,
            Refusal::DiskFull => 507,
            _ => 409,
        };
        Self {
            kind: "problem".into(),
            status,
            code: refusal.code().into(),
            detail: refusal.to_string(),
            hint: refusal.hint().map(str::to_owned),
            retryable: refusal.is_retryable(),
            index,
        }
    }
}
