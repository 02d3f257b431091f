//! The broker's HTTP server: connections, routes, and what all handlers share.
//!
//! Decides nothing about jobs (the core) and makes nothing durable (the store). Every limit of
//! what comes in is checked here or in the file of the route; over it the answer is a problem
//! document, and nothing changed. Routes and shapes: wire/api.rs, design section 7.
//! Law: no bytes from outside end in a panic (tests/broker.rs sends many kinds).

use std::cell::Cell;
use std::convert::Infallible;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use crate::proto::event::{self, JobRef, Reply};
use crate::proto::fact::{Body as FactBody, Reported};
use crate::proto::id::Dot;
use crate::proto::limits;
use crate::proto::time::Monotonic;
use crate::proto::view::Ended;
use crate::runtime::blobs::Blobs;
use crate::runtime::client::{SESSION_PROTOCOL, SESSION_ROUTE};
use crate::runtime::endpoint::Stream;
use crate::runtime::entropy;
use crate::runtime::session;
use crate::runtime::store::{Disk, Reader, StoreError};
use crate::wire::problem::Problem;

use answer::{Handled, ProblemCode, Query};
use body::Body;
use hub::{Answer, Hub, is_left_out};
use listen::Listener;
use routes::{Endpoint, Found};

pub mod answer;
pub mod blobs;
pub mod body;
pub mod books;
pub mod events;
pub mod facts;
pub mod feed;
pub mod health;
pub mod hub;
pub mod jobs;
pub mod listen;
pub mod mailbox;
pub mod metrics;
pub mod output;
pub mod peers;
pub mod routes;
pub mod start;
pub mod submit;
pub mod sync;
pub mod tally;

/// The description of all routes, for programs (OpenAPI 3.1).
pub const OPENAPI: &str = include_str!("../../docs/openapi.json");

/// What all handlers share.
pub struct Context {
    /// The way to the core and back.
    pub hub: Rc<Hub>,
    /// The files of large contents.
    pub blobs: Arc<Blobs>,
    /// The other brokers.
    pub peers: peers::Peers,
    data: PathBuf,
    reader: Arc<Mutex<Option<Reader>>>,
    /// When this process began to serve.
    began: Monotonic,
    connections: Cell<usize>,
    turned_away: Cell<usize>,
    blobs_counted: metrics::Counted,
    fewer: Notify,
}

impl Context {
    /// What handlers share, over the data directory whose store is open.
    #[must_use]
    pub fn new(hub: Rc<Hub>, blobs: Arc<Blobs>, data: PathBuf) -> Self {
        let (connections, fewer) = (Cell::new(0), Notify::new());
        let (reader, turned_away) = (Arc::default(), Cell::new(0));
        let (began, blobs_counted) = (entropy::now().mono, metrics::Counted::default());
        let peers = peers::Peers::default();
        Self {
            hub,
            blobs,
            peers,
            data,
            reader,
            began,
            connections,
            turned_away,
            blobs_counted,
            fewer,
        }
    }

    /// How many connections may be open.
    #[must_use]
    pub fn most(&self) -> usize {
        connections_max()
    }

    /// Asks the core something that has one answer.
    ///
    /// # Errors
    /// The core refused, the disk is full, or the broker is stopping.
    pub async fn ask(&self, request: event::Request) -> Result<Reply, Problem> {
        // The core knows what is not durable yet: what it says would have to wait as well.
        if self.hub.disk() == Disk::Stalled {
            return Err(answer::disk_full());
        }
        let mail = self.hub.open();
        mail.ask(request).await?;
        match mail.next().await? {
            Answer::Reply(Reply::Refused { index, refusal }) => {
                Err(Problem::of_refusal(&refusal, index))
            }
            Answer::Reply(reply) => Ok(reply),
            Answer::Audit(..) => Err(self.unexpected()),
        }
    }

    /// Whether a request waits for a job's end.
    ///
    /// # Errors
    /// It waits for what does not come: outcomes are not settled between several brokers yet.
    pub async fn until(&self, query: &Query<'_>) -> Result<bool, Problem> {
        let waits = query.until()?;
        if query.text("until") != Some("final") {
            return Ok(waits);
        }
        let Reply::Status(view) = self.ask(event::Request::Status).await? else {
            return Err(self.unexpected());
        };
        // One broker alone makes every accepted result final at once.
        if view.waits_for.is_empty() {
            return Ok(waits);
        }
        let others: Vec<_> = view.waits_for.iter().map(ToString::to_string).collect();
        let what = format!(
            "nothing becomes final while other brokers are known ({}): outcomes are not settled \
             between brokers yet",
            others.join(", ")
        );
        Err(Problem::new(409, "not-settled", what).hint("wait with --until accepted"))
    }

    /// An answer of the core that does not fit the question: a fault of ours.
    #[must_use]
    pub fn unexpected(&self) -> Problem {
        tracing::error!("the core gave an answer that does not fit the question");
        Problem::new(500, "bug", "the broker's core gave an answer that does not fit the question")
    }

    /// Reads from the store on a thread that may wait for the disk.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn read<T, F>(&self, work: F) -> Result<T, Problem>
    where
        T: Send + 'static,
        F: FnOnce(&Reader) -> Result<T, StoreError> + Send + 'static,
    {
        let (shared, data) = (Arc::clone(&self.reader), self.data.clone());
        let read = move || {
            // One reader is kept for the next; who comes meanwhile opens another.
            let kept = shared.lock().unwrap_or_else(PoisonError::into_inner).take();
            let reader = kept.map_or_else(|| Reader::open(&data), Ok)?;
            let found = work(&reader)?;
            *shared.lock().unwrap_or_else(PoisonError::into_inner) = Some(reader);
            Ok(found)
        };
        let done: Result<T, StoreError> = match tokio::task::spawn_blocking(read).await {
            Ok(done) => done,
            Err(error) => return Err(Problem::new(500, "bug", format!("a reader ended: {error}"))),
        };
        done.map_err(|error| {
            tracing::error!("the store cannot be read: {error}");
            Problem::new(500, "store", error.to_string())
        })
    }

    /// Gets from the store what memory left out of an outcome.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn complete(&self, ended: &mut Ended) -> Result<(), Problem> {
        match &mut ended.result {
            Some((dot, reported)) => self.complete_result(dot, reported).await,
            None => Ok(()),
        }
    }

    /// Gets from the store what memory left out of a result.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn complete_result(
        &self,
        dot: &Dot,
        reported: &mut Arc<Reported>,
    ) -> Result<(), Problem> {
        let result = &reported.result;
        if !is_left_out(&result.stdout) && !is_left_out(&result.stderr) {
            return Ok(());
        }
        let wanted = dot.clone();
        let found = self.read(move |reader| reader.fact(&wanted)).await?;
        match found.as_ref().map(|sealed| &sealed.fact.body) {
            Some(FactBody::Reported(whole)) => {
                *reported = Arc::clone(whole);
                Ok(())
            }
            _ => Err(Problem::new(500, "store", format!("fact {dot} is not in the store"))),
        }
    }

    /// Waits until no connection is left.
    pub async fn all_gone(&self) {
        while self.connections.get() > 0 {
            self.fewer.notified().await;
        }
    }
}

/// Takes connections until the broker stops.
pub async fn accept(context: Rc<Context>, listener: Listener) {
    let most = connections_max();
    let mut said: Option<Instant> = None;
    loop {
        let accepted = tokio::select! {
            biased;
            () = context.hub.stopped() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) if context.connections.get() < most => {
                // Counted before its task runs: more may come before that.
                let counted = Counted::new(&context);
                tokio::task::spawn_local(serve(counted, stream, peer));
            }
            Ok((stream, _)) => turn_away(&context, stream, most),
            Err(error) => {
                if said.is_none_or(|said| said.elapsed() > limits::ACCEPT_WARN_EVERY) {
                    let address = listener.address();
                    tracing::warn!("no connection can be taken on {address}: {error}");
                    said = Some(Instant::now());
                }
                // Most often all descriptors are in use; some come back when connections end.
                tokio::time::sleep(limits::ACCEPT_PAUSE).await;
            }
        }
    }
}

/// How many connections there may be: as many as the system gives descriptors for, less what
/// files need.
fn connections_max() -> usize {
    use nix::sys::resource::{Resource, getrlimit};
    let (given, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((u64::MAX, u64::MAX));
    let given = usize::try_from(given).unwrap_or(usize::MAX);
    limits::CONNECTIONS_MAX.min(given.saturating_sub(limits::DESCRIPTORS_KEPT).max(given / 4))
}

/// Answers a connection that is one too many, without waiting for its request.
fn turn_away(context: &Rc<Context>, mut stream: Stream, most: usize) {
    let tally = &context.hub.tally;
    tally.turned_away.set(tally.turned_away.get() + 1);
    let what = format!("{most} connections are open already, and no more may be");
    let problem = Problem::new(503, "too-many-connections", what).retryable();
    let text = serde_json::to_string(&problem).expect("problems have only string keys");
    let head = "HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 1\r\n";
    let kind = crate::wire::problem::PROBLEM_JSON;
    let size = text.len();
    let answer = format!("{head}content-type: {kind}\r\ncontent-length: {size}\r\n\r\n{text}");
    // A fresh socket has room for it; who does not read it sees the connection close.
    let _ = match &stream {
        Stream::Unix(stream) => stream.try_write(answer.as_bytes()),
        Stream::Tcp(stream) => stream.try_write(answer.as_bytes()),
    };
    if context.turned_away.get() >= limits::TURNED_AWAY_MAX {
        return;
    }
    context.turned_away.set(context.turned_away.get() + 1);
    let context = Rc::clone(context);
    tokio::task::spawn_local(async move {
        // A connection that is closed with bytes unread may take the answer with it.
        let _ = timeout(limits::CLOSE_WITHIN, async {
            let _ = stream.shutdown().await;
            let mut buffer = [0; 4096];
            while let Ok(1..) = stream.read(&mut buffer).await {}
        })
        .await;
        context.turned_away.set(context.turned_away.get() - 1);
    });
}

/// A connection or session counts as long as this lives.
struct Counted(Rc<Context>);

impl Counted {
    fn new(context: &Rc<Context>) -> Self {
        context.connections.set(context.connections.get() + 1);
        Self(Rc::clone(context))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connections.set(self.0.connections.get() - 1);
        self.0.fewer.notify_one();
    }
}

async fn serve(counted: Counted, stream: Stream, peer: Option<i32>) {
    let context = &counted.0;
    let service = service_fn(|request: Request<Incoming>| {
        let context = Rc::clone(context);
        async move { Ok::<_, Infallible>(respond(context, request, peer).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits::HTTP_HEAD_WITHIN)
        .max_buf_size(limits::HTTP_HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = context.hub.stopped() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!("a connection ends: {error}");
    }
}

async fn respond(
    context: Rc<Context>,
    request: Request<Incoming>,
    peer: Option<i32>,
) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let hub = Rc::clone(&context.hub);
    let (name, handled) = match routes::find(request.method(), &path) {
        Found::Route(route, part) => {
            ((route.method, route.path), handle(route.endpoint, part, context, request, peer).await)
        }
        Found::OtherMethods(allowed) => {
            let refused = answer::wrong_method(request.method(), &allowed.join(", "));
            (("other", "other"), Ok(refused))
        }
        Found::Nothing => {
            let problem = Problem::new(404, "no-route", format!("there is nothing at {path:.200}"));
            let hint = "jobs are at /v1/jobs, the broker at /v1/status, all routes in \
                        /v1/openapi.json";
            (("other", "other"), Err(problem.hint(hint)))
        }
    };
    let response = handled.unwrap_or_else(|problem| answer::problem(&problem));
    hub.tally.request(name.0, name.1, response.status().as_u16());
    if let Some(ProblemCode(code)) = response.extensions().get() {
        hub.tally.problem(code.clone());
    }
    response
}

/// Has a request answered. `part` is the text that stands for the braces in the route's path.
async fn handle(
    endpoint: Endpoint,
    part: &str,
    context: Rc<Context>,
    request: Request<Incoming>,
    peer: Option<i32>,
) -> Handled {
    match endpoint {
        Endpoint::ListJobs => jobs::list(&context, request).await,
        Endpoint::SubmitJobs => submit::submit(context, request).await,
        Endpoint::ShowJob => jobs::show(context, job(part), request).await,
        Endpoint::Output => output::output(context, job(part), request).await,
        Endpoint::Why => jobs::why(&context, job(part), request).await,
        Endpoint::Cancel => jobs::cancel(context, job(part), request).await,
        Endpoint::Rerun => jobs::rerun(context, job(part), request).await,
        Endpoint::Status => books::status(&context).await,
        Endpoint::Executors => books::executors(&context).await,
        Endpoint::DeclareLost => books::declare_lost(&context, part, request).await,
        Endpoint::Session => open_session(context, request, peer),
        Endpoint::Audit => books::audit(&context).await,
        Endpoint::Facts => facts::facts(context, request).await,
        Endpoint::SyncHeads => sync::heads(&context, request).await,
        Endpoint::SyncExport => sync::export(context, request).await,
        Endpoint::SyncImport => sync::import(&context, request).await,
        Endpoint::Peers => peers::peers(&context),
        Endpoint::Introduce => peers::introduce(context, request).await,
        Endpoint::Events => events::events(context, request).await,
        Endpoint::Blob => blobs::blobs(context, part, request).await,
        Endpoint::OpenApi => Ok(answer::typed(answer::JSON, OPENAPI)),
        Endpoint::Alive => health::alive(&context).await,
        Endpoint::Ready => health::ready(&context).await,
        Endpoint::Metrics => metrics::metrics(&context).await,
    }
}

fn job(id: &str) -> JobRef {
    JobRef(id.to_owned())
}

/// `POST /v1/executors/session`: HTTP ends and the session begins.
fn open_session(
    context: Rc<Context>,
    mut request: Request<Incoming>,
    peer: Option<i32>,
) -> Handled {
    use hyper::header::{CONNECTION, HeaderValue, UPGRADE};
    let asked = request.headers().get(UPGRADE).and_then(|value| value.to_str().ok());
    if !asked.is_some_and(|asked| asked.eq_ignore_ascii_case(SESSION_PROTOCOL)) {
        return Err(Problem::new(
            426,
            "no-upgrade",
            format!("{SESSION_ROUTE} speaks sessions only"),
        )
        .hint(format!("ask for 'Upgrade: {SESSION_PROTOCOL}'")));
    }
    let upgrade = hyper::upgrade::on(&mut request);
    let counted = Counted::new(&context);
    tokio::task::spawn_local(async move {
        let hub = Rc::clone(&counted.0.hub);
        let upgraded = match upgrade.await {
            Ok(upgraded) => upgraded,
            Err(error) => return tracing::debug!("a session did not come about: {error}"),
        };
        match upgraded.downcast::<TokioIo<Stream>>() {
            Ok(parts) => {
                let stream = parts.io.into_inner();
                session::serve(hub, stream, &parts.read_buf, peer).await;
            }
            Err(_) => tracing::error!("a session came over a connection of another kind"),
        }
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = hyper::StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static(SESSION_PROTOCOL));
    Ok(response)
}
