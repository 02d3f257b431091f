//! One HTTP/1.1 connection to a broker: requests one after another, bodies streamed both ways.
//!
//! Does not reconnect and does not choose a broker (endpoint.rs): who calls knows what may be
//! repeated. A request body may still be on its way while the answer comes (full duplex).
//! Shape: answers that are refusals are problem documents (wire/problem.rs), many values are JSON
//! Lines, at most [`limits::LINE_BYTES_MAX`] each.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::{Bytes, Frame, Incoming, SizeHint};
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderName, HeaderValue, UPGRADE, USER_AGENT};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::proto::limits;
use crate::runtime::endpoint::{self, Address, EndpointError, Stream};
use crate::runtime::search::Search;
use crate::wire::api::NDJSON;
use crate::wire::lines::{LineError, Lines};
use crate::wire::problem::Problem;

/// The word in `Upgrade` that asks for an executor's session.
pub const SESSION_PROTOCOL: &str = "ucp-session/1";
/// The route of an executor's session.
pub const SESSION_ROUTE: &str = "/v1/executors/session";
/// The header that says how many bytes a broker holds of an upload that broke off.
pub const UPLOAD_OFFSET: &str = "upload-offset";

/// Why an exchange with a broker did not come to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// No connection. Nothing changed; trying again may help.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// The connection broke. What was asked for may have been done; whoever repeats it must be
    /// able to (submissions are, by their job id).
    #[error("the connection to {address} broke: {source}")]
    Broken {
        /// The broker.
        address: Address,
        /// What the HTTP layer said.
        source: hyper::Error,
    },
    /// The broker takes connections and answers nothing, as a stopped process does. What was asked
    /// for may yet be done; whoever repeats it must be able to.
    #[error("{address} does not answer")]
    Silent {
        /// The broker.
        address: Address,
    },
    /// The broker sent a line that is none. Trying again cannot help.
    #[error("{address} sent something else than lines of JSON: {source}")]
    Line {
        /// The broker.
        address: Address,
        /// What is wrong with it.
        source: LineError,
    },
    /// The broker answered what this version does not understand. Trying again cannot help.
    #[error("{address} answered something unknown: {what}")]
    Unknown {
        /// The broker.
        address: Address,
        /// What was not understood.
        what: String,
    },
    /// The broker refused, and nothing changed; the document says whether trying again helps.
    #[error("{}", .0.detail)]
    Refused(Box<Problem>),
}

impl ClientError {
    /// Whether the broker went away, so that another connection may succeed.
    #[must_use]
    pub const fn is_gone(&self) -> bool {
        matches!(self, Self::Endpoint(_) | Self::Broken { .. } | Self::Silent { .. })
    }
}

/// The body of a request.
#[derive(Debug)]
pub struct Body {
    kind: Option<&'static str>,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Whole(Option<Bytes>),
    Streamed(mpsc::Receiver<io::Result<Bytes>>, Option<u64>),
}

impl Body {
    /// No body.
    #[must_use]
    pub const fn empty() -> Self {
        Self { kind: None, content: Content::Whole(None) }
    }

    /// One JSON value.
    #[must_use]
    pub fn json(text: String) -> Self {
        let content = Content::Whole(Some(text.into()));
        Self { kind: Some("application/json"), content }
    }

    /// Lines of JSON as they come; the body ends when all senders are dropped, and an error given
    /// to one breaks the request off.
    #[must_use]
    pub const fn lines(pieces: mpsc::Receiver<io::Result<Bytes>>) -> Self {
        Self { kind: Some(NDJSON), content: Content::Streamed(pieces, None) }
    }

    /// So many bytes as they come, so that the broker knows before the first whether it takes them.
    #[must_use]
    pub const fn sized(pieces: mpsc::Receiver<io::Result<Bytes>>, size: u64) -> Self {
        let content = Content::Streamed(pieces, Some(size));
        Self { kind: Some("application/octet-stream"), content }
    }

    /// Bytes as they come; ends as [`Body::lines`] does.
    #[must_use]
    pub const fn bytes(pieces: mpsc::Receiver<io::Result<Bytes>>) -> Self {
        Self { kind: Some("application/octet-stream"), content: Content::Streamed(pieces, None) }
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match &mut self.get_mut().content {
            Content::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Content::Streamed(pieces, _) => {
                pieces.poll_recv(context).map(|piece| Some(piece?.map(Frame::data)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.content, Content::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Whole(None) => SizeHint::with_exact(0),
            Content::Whole(Some(bytes)) => SizeHint::with_exact(bytes.len() as u64),
            Content::Streamed(_, Some(size)) => SizeHint::with_exact(*size),
            Content::Streamed(_, None) => SizeHint::default(),
        }
    }
}

/// One connection. Requests go one after another; a further one may begin when the answer to the
/// one before was read to its end.
#[derive(Debug)]
pub struct Client {
    address: Address,
    sender: http1::SendRequest<Body>,
    /// Closed when the connection has ended.
    ended: watch::Receiver<()>,
}

impl Client {
    /// Connects to one address.
    ///
    /// # Errors
    /// Nobody answers there.
    pub async fn connect(address: &Address) -> Result<Self, ClientError> {
        let stream = endpoint::connect(address).await?;
        Self::over(address.clone(), stream).await
    }

    /// Speaks HTTP over a connection that is there.
    ///
    /// # Errors
    /// The connection breaks at once.
    pub async fn over(address: Address, stream: Stream) -> Result<Self, ClientError> {
        let handshake = http1::handshake(TokioIo::new(stream)).await;
        let (sender, connection) =
            handshake.map_err(|source| ClientError::Broken { address: address.clone(), source })?;
        let name = address.to_string();
        let (open, ended) = watch::channel(());
        tokio::spawn(async move {
            // Whoever waits for an answer is told as well; here it is only worth a trace.
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!("connection to {name}: {error}");
            }
            drop(open);
        });
        Ok(Self { address, sender, ended })
    }

    /// Whom this speaks to.
    #[must_use]
    pub const fn address(&self) -> &Address {
        &self.address
    }

    /// Comes back when the connection has ended.
    pub async fn gone(&self) {
        while self.ended.clone().changed().await.is_ok() {}
    }

    /// Whether the other side has gone.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Sends a request and waits for the head of the answer, whatever its status.
    ///
    /// # Errors
    /// The connection broke, or the path is none.
    pub async fn request(
        &mut self,
        method: Method,
        path_and_query: &str,
        body: Body,
    ) -> Result<Response<Incoming>, ClientError> {
        let request = self.build(method, path_and_query, body)?;
        self.send(request).await
    }

    /// Like [`Client::request`], with one more header.
    ///
    /// # Errors
    /// As there.
    pub async fn request_with(
        &mut self,
        method: Method,
        path_and_query: &str,
        header: (HeaderName, HeaderValue),
        body: Body,
    ) -> Result<Response<Incoming>, ClientError> {
        let mut request = self.build(method, path_and_query, body)?;
        request.headers_mut().insert(header.0, header.1);
        self.send(request).await
    }

    /// Like [`Client::request`], but an answer that is a refusal becomes an error.
    ///
    /// # Errors
    /// As there, and [`ClientError::Refused`].
    pub async fn ask(
        &mut self,
        method: Method,
        path_and_query: &str,
        body: Body,
    ) -> Result<Response<Incoming>, ClientError> {
        let response = self.request(method, path_and_query, body).await?;
        unless_refused(response).await
    }

    /// Turns the connection into an executor's session: bytes both ways, HTTP no more.
    ///
    /// # Errors
    /// The connection broke, or the broker refused.
    pub async fn upgrade(mut self) -> Result<TokioIo<hyper::upgrade::Upgraded>, ClientError> {
        let mut request = self.build(Method::POST, SESSION_ROUTE, Body::empty())?;
        let headers = request.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static(SESSION_PROTOCOL));
        let response = self.send(request).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(ClientError::Refused(Box::new(problem_of(response).await)));
        }
        let upgraded = hyper::upgrade::on(response).await;
        upgraded.map(TokioIo::new).map_err(|source| self.broken(source))
    }

    fn build(&self, method: Method, path: &str, body: Body) -> Result<Request<Body>, ClientError> {
        let mut builder = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, self.address.authority())
            .header(USER_AGENT, concat!("ucp/", env!("CARGO_PKG_VERSION")));
        if let Some(kind) = body.kind {
            builder = builder.header(CONTENT_TYPE, kind);
        }
        let what = |error| format!("{path:?} cannot be asked for: {error}");
        builder.body(body).map_err(|error| ClientError::Unknown {
            address: self.address.clone(),
            what: what(error),
        })
    }

    async fn send(&mut self, request: Request<Body>) -> Result<Response<Incoming>, ClientError> {
        let ready = self.sender.ready().await;
        ready.map_err(|source| self.broken(source))?;
        let response = self.sender.send_request(request).await;
        response.map_err(|source| self.broken(source))
    }

    fn broken(&self, source: hyper::Error) -> ClientError {
        ClientError::Broken { address: self.address.clone(), source }
    }
}

/// The answer, unless it is a refusal.
///
/// # Errors
/// [`ClientError::Refused`].
pub async fn unless_refused(
    response: Response<Incoming>,
) -> Result<Response<Incoming>, ClientError> {
    if response.status().is_success() {
        return Ok(response);
    }
    Err(ClientError::Refused(Box::new(problem_of(response).await)))
}

/// Comes back when a broker proves to be silent: asked on a connection of its own, it did not
/// answer `within` that time. To be raced against an answer that may rightly take long; never
/// comes back for a broker that answers, and costs one that answers at once nothing.
pub async fn silence(address: &Address, within: Duration) -> ClientError {
    let end = Instant::now() + within;
    let probe = async {
        tokio::time::sleep(limits::PROBE_AFTER.min(within / 2)).await;
        let mut client = Client::connect(address).await?;
        client.request(Method::GET, "/healthz", Body::empty()).await
    };
    if let Ok(Ok(_)) = tokio::time::timeout_at(end, probe).await {
        return std::future::pending().await;
    }
    // What ended otherwise is told by the connection that waits, if it is told in time.
    tokio::time::sleep_until(end).await;
    ClientError::Silent { address: address.clone() }
}

/// Asks a question of the first broker that answers, and waits at most `wait` for that.
///
/// # Errors
/// Nobody answered, or the broker refused.
pub async fn ask_first(
    flags: &[Address],
    wait: Duration,
    path: &str,
) -> Result<(Address, Response<Incoming>), ClientError> {
    ask_first_of(flags, wait, (Method::GET, path, None)).await
}

/// Like [`ask_first`], for any request that may be made twice: method, path, and perhaps a JSON
/// value as its body.
///
/// # Errors
/// As there.
pub async fn ask_first_of(
    flags: &[Address],
    wait: Duration,
    (method, path, body): (Method, &str, Option<&str>),
) -> Result<(Address, Response<Incoming>), ClientError> {
    let mut search = Search::new(flags, wait);
    loop {
        let body = body.map_or_else(Body::empty, |text| Body::json(text.to_owned()));
        let (address, stream) = search.connect().await?;
        let mut client = Client::over(address.clone(), stream).await?;
        let within = search.answer_within();
        tokio::select! {
            biased;
            response = client.ask(method.clone(), path, body) => {
                return Ok((address, response?));
            }
            _ = silence(&address, within) => {
                search.pass_over(&address);
                search.go_on(&address)?;
            }
        }
    }
}

/// The problem document of an answer that is a refusal; one made up where there is none.
pub async fn problem_of(response: Response<Incoming>) -> Problem {
    let status = response.status();
    let limited = http_body_util::Limited::new(response.into_body(), limits::LINE_BYTES_MAX);
    let bytes = limited.collect().await.map(http_body_util::Collected::to_bytes);
    let parsed = bytes.ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    parsed.unwrap_or_else(|| {
        let mut problem =
            Problem::new(status.as_u16(), "unknown", format!("the broker answered {status}"));
        problem.retryable = status.is_server_error();
        problem
    })
}

/// The lines of an answer, as they come.
#[derive(Debug)]
pub struct Answer {
    address: Address,
    body: Incoming,
    lines: Lines,
    ended: bool,
}

impl Answer {
    /// Reads the body of an answer of `address` as lines.
    #[must_use]
    pub fn new(address: &Address, response: Response<Incoming>) -> Self {
        let address = address.clone();
        Self { address, body: response.into_body(), lines: Lines::new(), ended: false }
    }

    /// Whether the next line is here already.
    #[must_use]
    pub fn has_line(&self) -> bool {
        self.lines.has_line()
    }

    /// The next line; `None` at the end. May be dropped while it waits and called again.
    ///
    /// # Errors
    /// The connection broke, or a line is none.
    pub async fn next(&mut self) -> Result<Option<String>, ClientError> {
        loop {
            let found = if self.ended { self.lines.rest() } else { self.lines.next() };
            match found {
                Some(Ok(line)) => return Ok(Some(line)),
                Some(Err(source)) => {
                    return Err(ClientError::Line { address: self.address.clone(), source });
                }
                None if self.ended => return Ok(None),
                None => {}
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Some(bytes) = frame.data_ref() {
                        self.lines.push(bytes);
                    }
                }
                Some(Err(source)) => {
                    return Err(ClientError::Broken { address: self.address.clone(), source });
                }
                None => self.ended = true,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    async fn pair() -> (Client, TcpStream) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let address = Address::Http { host: "127.0.0.1".to_owned(), port };
        let (client, accepted) = tokio::join!(Client::connect(&address), listener.accept());
        (client.expect("connected"), accepted.expect("accepted").0)
    }

    async fn read_until(stream: &mut TcpStream, end: &str) -> String {
        let mut seen = vec![];
        while !seen.ends_with(end.as_bytes()) {
            seen.push(stream.read_u8().await.expect("a byte"));
        }
        String::from_utf8(seen).expect("text")
    }

    #[tokio::test(flavor = "current_thread")]
    async fn the_answer_streams_while_the_request_is_still_being_sent() {
        let (mut client, mut server) = pair().await;
        let (pieces, body) = mpsc::channel(1);
        let serve = async {
            let head = read_until(&mut server, "\r\n\r\n").await;
            assert!(head.contains("content-type: application/x-ndjson"), "{head}");
            let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
            server.write_all(head.as_bytes()).await.expect("sent");
            read_until(&mut server, "one\n\r\n").await;
            server.write_all(b"4\r\n1\n2\n\r\n").await.expect("sent");
            read_until(&mut server, "two\n\r\n0\r\n\r\n").await;
            server.write_all(b"2\r\n3\n\r\n0\r\n\r\n").await.expect("sent");
        };
        let ask = async {
            let body = Body::lines(body);
            let response = client.ask(Method::POST, "/v1/jobs", body).await.expect("an answer");
            let mut answer = Answer::new(&client.address, response);
            pieces.send(Ok(Bytes::from_static(b"one\n"))).await.expect("taken");
            assert_eq!(answer.next().await.expect("a line").as_deref(), Some("1"));
            pieces.send(Ok(Bytes::from_static(b"two\n"))).await.expect("taken");
            drop(pieces);
            assert_eq!(answer.next().await.expect("a line").as_deref(), Some("2"));
            assert_eq!(answer.next().await.expect("a line").as_deref(), Some("3"));
            assert_eq!(answer.next().await.expect("the end"), None);
        };
        tokio::join!(serve, ask);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_refusal_is_its_problem_and_a_broken_connection_is_gone() {
        let (mut client, mut server) = pair().await;
        let document = serde_json::to_string(&Problem::new(404, "not-found", "no job")).expect("");
        let serve = async {
            read_until(&mut server, "\r\n\r\n").await;
            let head = format!("HTTP/1.1 404 N\r\ncontent-length: {}\r\n\r\n", document.len());
            server.write_all((head + &document).as_bytes()).await.expect("sent");
            drop(server);
        };
        let ask = async {
            let asked = client.ask(Method::GET, "/v1/jobs/1", Body::empty()).await;
            assert!(matches!(&asked, Err(ClientError::Refused(p)) if p.code == "not-found"));
            let asked = client.ask(Method::GET, "/v1/jobs/1", Body::empty()).await;
            assert!(asked.expect_err("gone").is_gone());
        };
        tokio::join!(serve, ask);
    }
}
