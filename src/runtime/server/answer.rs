//! Answers as HTTP: one JSON value, JSON Lines, or a problem document; and what requests say.
//!
//! Reads no socket but the request's body, and of that no more than a named limit.

use std::borrow::Cow;
use std::fmt::Display;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Bytes};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};
use serde::Serialize;
use tokio::time::timeout;

use crate::proto::event::Refusal;
use crate::proto::limits;
use crate::runtime::server::body::{Body, Cut, Sink};
use crate::runtime::server::hub::Stopping;
use crate::wire::api::NDJSON;
use crate::wire::problem::{PROBLEM_JSON, Problem};

/// What a handler comes to.
pub type Handled = Result<Response<Body>, Problem>;

/// The media type of one JSON value.
pub const JSON: &str = "application/json";

impl From<Stopping> for Problem {
    fn from(stopping: Stopping) -> Self {
        Self::new(503, "shutting-down", stopping.to_string()).retryable()
    }
}

impl From<Stopping> for Cut {
    fn from(stopping: Stopping) -> Self {
        Self(stopping.to_string())
    }
}

fn with_type(status: StatusCode, kind: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// One JSON value with a line end, so that it is a line for `curl` too.
pub fn json<T: Serialize>(status: StatusCode, value: &T) -> Response<Body> {
    let mut bytes = serde_json::to_vec(value).expect("answers have only string keys");
    bytes.push(b'\n');
    with_type(status, JSON, Body::whole(bytes))
}

/// JSON Lines that `work` writes as they are sent.
pub fn lines<W>(work: impl FnOnce(Sink) -> W) -> Response<Body>
where
    W: Future<Output = Result<(), Cut>> + 'static,
{
    with_type(StatusCode::OK, NDJSON, Body::streamed(work))
}

/// Text that `work` writes as it is sent.
pub fn stream<W>(kind: &'static str, work: impl FnOnce(Sink) -> W) -> Response<Body>
where
    W: Future<Output = Result<(), Cut>> + 'static,
{
    with_type(StatusCode::OK, kind, Body::streamed(work))
}

/// A text of a type.
pub fn typed(kind: &'static str, text: impl Into<Bytes>) -> Response<Body> {
    with_type(StatusCode::OK, kind, Body::whole(text))
}

/// A value as one line of JSON, without a newline.
pub fn text<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("answers have only string keys")
}

/// Bytes that `work` writes as they are sent.
pub fn bytes<W>(size: u64, work: impl FnOnce(Sink) -> W) -> Response<Body>
where
    W: Future<Output = Result<(), Cut>> + 'static,
{
    let mut response = with_type(StatusCode::OK, "application/octet-stream", Body::streamed(work));
    response.headers_mut().insert(hyper::header::CONTENT_LENGTH, size.into());
    response
}

/// The code of an answer that is a problem document, for those who count them.
#[derive(Debug, Clone)]
pub struct ProblemCode(pub Cow<'static, str>);

/// A problem document.
pub fn problem(problem: &Problem) -> Response<Body> {
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut bytes = serde_json::to_vec(problem).expect("problems have only string keys");
    bytes.push(b'\n');
    let mut response = with_type(status, PROBLEM_JSON, Body::whole(bytes));
    response.extensions_mut().insert(ProblemCode(problem.code.clone()));
    if matches!(problem.status, 503 | 507) {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// The refusal of a method, with those that the route has.
pub fn wrong_method(method: &hyper::Method, allowed: &str) -> Response<Body> {
    let what = format!("{method} does nothing here");
    let document = Problem::new(405, "wrong-method", what).hint(format!("use {allowed}"));
    let mut response = problem(&document);
    if let Ok(allowed) = HeaderValue::from_str(allowed) {
        response.headers_mut().insert(ALLOW, allowed);
    }
    response
}

/// The media type of a request's body, without its parameters; empty where none is named.
#[must_use]
pub fn media_type(headers: &HeaderMap) -> String {
    let named = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    named.split(';').next().unwrap_or("").trim().to_ascii_lowercase()
}

/// No space on the disk of the broker: what came in is not kept.
#[must_use]
pub fn disk_full() -> Problem {
    Problem::of_refusal(&Refusal::DiskFull, None)
}

/// The next piece of a body that holds one value or one blob; `None` at its end.
///
/// # Errors
/// The client went away, or nothing came `within` that time.
pub async fn piece<B>(body: &mut B, within: Duration) -> Result<Option<Bytes>, Problem>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Display,
{
    loop {
        let frame = match timeout(within, body.frame()).await {
            Ok(Some(frame)) => frame,
            Ok(None) => return Ok(None),
            Err(_) => {
                let what = format!("nothing more of the body came within {within:?}");
                return Err(Problem::new(408, "body-idle", what).retryable());
            }
        };
        let frame = frame.map_err(|error| {
            Problem::new(400, "bad-body", format!("the body broke off: {error}")).retryable()
        })?;
        // Trailers say nothing to us.
        if let Ok(piece) = frame.into_data() {
            return Ok(Some(piece));
        }
    }
}

/// The whole body of a request that holds one value. One that says that it is too long is not
/// even begun.
///
/// # Errors
/// It is longer than a line may be, comes too slowly, or the client went away.
pub async fn whole<B>(mut body: B) -> Result<Vec<u8>, Problem>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Display,
{
    let long = || {
        let what = format!("the body is over {} bytes", limits::LINE_BYTES_MAX);
        Problem::new(413, "too-large", what)
            .hint("send many values as JSON Lines, and long input as a blob")
    };
    if body.size_hint().lower() > limits::LINE_BYTES_MAX as u64 {
        return Err(long());
    }
    let mut found = vec![];
    while let Some(piece) = piece(&mut body, limits::BODY_IDLE_MAX).await? {
        if found.len() + piece.len() > limits::LINE_BYTES_MAX {
            return Err(long());
        }
        found.extend_from_slice(&piece);
    }
    Ok(found)
}

/// The parameters behind `?`. Only those that a route knows are let in.
#[derive(Debug)]
pub struct Query<'a>(Vec<(&'a str, Cow<'a, str>)>);

impl<'a> Query<'a> {
    /// Reads the parameters.
    ///
    /// # Errors
    /// One of them is not among `known`, comes twice, or is badly encoded.
    pub fn parse(text: Option<&'a str>, known: &[&str]) -> Result<Self, Problem> {
        let mut found: Vec<(&str, Cow<'_, str>)> = vec![];
        for pair in text.unwrap_or("").split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            if !known.contains(&name) || found.iter().any(|(held, _)| *held == name) {
                let what = format!("parameter {name:?} is not known here, or comes twice");
                let problem = Problem::new(400, "bad-parameter", what);
                return Err(match known {
                    [] => problem.hint("this route takes no parameters"),
                    known => problem.hint(format!("known here: {}", known.join(", "))),
                });
            }
            found.push((name, decode(value).ok_or_else(|| bad(name, "is badly encoded"))?));
        }
        Ok(Self(found))
    }

    /// The text of a parameter.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(held, _)| *held == name).map(|(_, value)| &**value)
    }

    /// Whether a parameter is there and says yes: `1`, `true` or nothing.
    ///
    /// # Errors
    /// It says something else than yes or no.
    pub fn flag(&self, name: &str) -> Result<bool, Problem> {
        match self.text(name) {
            None | Some("0" | "false") => Ok(false),
            Some("" | "1" | "true") => Ok(true),
            Some(_) => Err(bad(name, "must be 1 or 0")),
        }
    }

    /// The value of a parameter.
    ///
    /// # Errors
    /// It is there and no such value.
    pub fn value<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, Problem>
    where
        T::Err: std::fmt::Display,
    {
        let read = |text: &str| text.parse().map_err(|error| bad(name, format!("{error}")));
        self.text(name).map(read).transpose()
    }

    /// Whether `until=accepted` is said.
    ///
    /// # Errors
    /// It says something else.
    pub fn until(&self) -> Result<bool, Problem> {
        match self.text("until") {
            None => Ok(false),
            Some("accepted" | "final") => Ok(true),
            Some(_) => Err(bad("until", "must be accepted or final")),
        }
    }
}

fn bad(name: &str, why: impl std::fmt::Display) -> Problem {
    Problem::new(400, "bad-parameter", format!("parameter `{name}`: {why}"))
}

/// Percent-decodes (RFC 3986 section 2.1).
fn decode(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('%') {
        return Some(text.into());
    }
    let mut bytes = text.bytes();
    let mut found = vec![];
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            found.push(byte);
            continue;
        }
        let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|d| u8::try_from(d).ok());
        found.push(digit(bytes.next()?)? << 4 | digit(bytes.next()?)?);
    }
    String::from_utf8(found).ok().map(Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn a_body_that_stays_away_is_given_up() {
        let (_sender, pieces) = tokio::sync::mpsc::channel(1);
        let mut body = crate::runtime::client::Body::bytes(pieces);
        let given_up = piece(&mut body, Duration::from_millis(5)).await.expect_err("silence");
        assert_eq!(
            (given_up.status, &*given_up.code, given_up.retryable),
            (408, "body-idle", true)
        );
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_body_that_says_that_it_is_too_long_is_not_read() {
        let text = " ".repeat(limits::LINE_BYTES_MAX + 1);
        let refused = whole(crate::runtime::client::Body::json(text)).await.expect_err("too long");
        assert_eq!((refused.status, &*refused.code), (413, "too-large"));
        let fits = " ".repeat(limits::LINE_BYTES_MAX);
        let taken = whole(crate::runtime::client::Body::json(fits)).await.expect("it fits");
        assert_eq!(taken.len(), limits::LINE_BYTES_MAX);
    }

    #[test]
    fn parameters_are_read_and_strange_ones_named() {
        let query = Query::parse(Some("follow&job=a%2Fb&limit=7"), &["follow", "job", "limit"]);
        let query = query.expect("all are known");
        assert_eq!(query.flag("follow"), Ok(true));
        assert_eq!(query.text("job"), Some("a/b"));
        assert_eq!(query.value::<usize>("limit"), Ok(Some(7)));
        let refused = Query::parse(Some("folow=1"), &["follow"]).expect_err("a slip");
        assert_eq!((refused.status, &*refused.code), (400, "bad-parameter"));
        assert!(refused.detail.contains("folow") && refused.hint.is_some(), "{refused:?}");
        for twice_or_broken in ["a=1&a=2", "a=%", "a=%zz", "a=%ff"] {
            assert!(Query::parse(Some(twice_or_broken), &["a"]).is_err(), "{twice_or_broken}");
        }
        let query = Query::parse(Some("a=maybe"), &["a"]).expect("known");
        assert!(query.flag("a").is_err() && query.value::<u64>("a").is_err());
    }
}
