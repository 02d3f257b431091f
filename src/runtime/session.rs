//! The executors' connections: one JSON line a message, both ways, after an HTTP upgrade.
//!
//! Decides nothing: what an executor says goes to the core, what the core orders goes to the
//! executor. Live output alone goes past the core, straight to whoever follows it.
//! Law: a session is told to the core as opened before its first message, and as closed after
//! its last; on the same host together with whether the process has gone (peer.rs), and then with
//! whether its jobs have (tree.rs).

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::{Poll, Waker};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use crate::proto::event::Input;
use crate::proto::id::SessionId;
use crate::proto::limits;
use crate::proto::message::{BrokerMessage, ExecutorMessage, Hello, SESSION_VERSION};
use crate::runtime::server::hub::Hub;
use crate::wire::lines::{LineError, Lines};

use follow::Follower;
use peer::Peer;
use tree::Tree;

pub mod follow;
pub mod peer;
mod tree;

/// Why a session ends.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
enum SessionEnd {
    /// The executor closed the connection.
    #[error("the executor closed it")]
    Closed,
    /// The connection broke.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The bytes are no lines.
    #[error("{0}")]
    Line(#[from] LineError),
    /// A line is no message.
    #[error("a message is not understood: {0}")]
    Message(serde_json::Error),
    /// The broker is stopping.
    #[error("the broker is shutting down")]
    Stopping,
    /// The core ordered it.
    #[error("ordered by the broker")]
    Ordered,
    /// It was not registered.
    #[error("refused: {detail}")]
    Refused {
        /// A stable word.
        code: &'static str,
        /// In words.
        detail: String,
    },
}

/// All sessions by their numbers.
#[derive(Debug, Default)]
pub struct Sessions {
    open: RefCell<BTreeMap<SessionId, Rc<Link>>>,
    drawn: Cell<u64>,
}

/// The broker's end of one session: what is still to be sent, and who follows output there.
#[derive(Debug, Default)]
pub struct Link {
    unsent: RefCell<Vec<u8>>,
    closing: Cell<bool>,
    waker: RefCell<Option<Waker>>,
    followers: RefCell<BTreeMap<u64, Rc<Follower>>>,
    followers_drawn: Cell<u64>,
}

impl Sessions {
    /// The session's link, while it is open.
    #[must_use]
    pub fn link(&self, session: SessionId) -> Option<Rc<Link>> {
        self.open.borrow().get(&session).cloned()
    }

    /// Sends a message; one for a session that has ended is dropped, as the core will be told.
    pub fn send(&self, session: SessionId, message: &BrokerMessage) {
        if let Some(link) = self.open.borrow().get(&session) {
            link.send(message);
        }
    }

    /// Ends a session after what is still to be sent.
    pub fn close(&self, session: SessionId) {
        if let Some(link) = self.open.borrow().get(&session) {
            link.close();
        }
    }

    /// Ends all sessions, as the broker ends: their executors are told.
    pub fn close_all(&self) {
        for link in self.open.borrow().values() {
            link.send(&BrokerMessage::Leaving);
            link.close();
        }
    }

    fn add(&self) -> Result<(SessionId, Rc<Link>), SessionEnd> {
        let mut open = self.open.borrow_mut();
        if open.len() >= limits::EXECUTORS_MAX {
            let detail = format!("{} executors are here already", limits::EXECUTORS_MAX);
            return Err(SessionEnd::Refused { code: "too-many-executors", detail });
        }
        let session = SessionId(self.drawn.get() + 1);
        self.drawn.set(session.0);
        let link = Rc::new(Link::default());
        open.insert(session, Rc::clone(&link));
        Ok((session, link))
    }

    fn remove(&self, session: SessionId) {
        if let Some(link) = self.open.borrow_mut().remove(&session) {
            link.end_followers();
        }
    }
}

impl Link {
    /// Queues a message.
    pub fn send(&self, message: &BrokerMessage) {
        if self.closing.get() {
            return;
        }
        let mut unsent = self.unsent.borrow_mut();
        serde_json::to_writer(&mut *unsent, message).expect("messages have only string keys");
        unsent.push(b'\n');
        if unsent.len() > limits::SESSION_UNSENT_BYTES_MAX {
            tracing::warn!("an executor does not read what it is sent; its session is closed");
            unsent.clear();
            self.closing.set(true);
        }
        self.wake();
    }

    fn close(&self) {
        self.closing.set(true);
        self.wake();
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn add_follower(&self, follower: &Rc<Follower>) -> Option<u64> {
        let mut followers = self.followers.borrow_mut();
        if followers.len() >= limits::FOLLOWERS_PER_EXECUTOR_MAX {
            return None;
        }
        let number = self.followers_drawn.get() + 1;
        self.followers_drawn.set(number);
        followers.insert(number, Rc::clone(follower));
        Some(number)
    }

    fn remove_follower(&self, number: u64) -> bool {
        self.followers.borrow_mut().remove(&number).is_some()
    }

    fn end_followers(&self) {
        self.followers.take().into_values().for_each(|follower| follower.end());
    }

    /// What is to be sent next; `None` once the session is to end and all is sent.
    async fn unsent(&self) -> Option<Vec<u8>> {
        poll_fn(|context| {
            let mut unsent = self.unsent.borrow_mut();
            if !unsent.is_empty() {
                return Poll::Ready(Some(std::mem::take(&mut *unsent)));
            }
            if self.closing.get() {
                return Poll::Ready(None);
            }
            self.waker.replace(Some(context.waker().clone()));
            Poll::Pending
        })
        .await
    }

    /// Hands live output to its follower.
    fn relay(&self, message: ExecutorMessage) {
        let number = match &message {
            ExecutorMessage::Output(chunk) => chunk.follow,
            ExecutorMessage::OutputEnd { follow } => *follow,
            _ => return,
        };
        let follower = self.followers.borrow().get(&number).cloned();
        let Some(follower) = follower else { return };
        let goes_on = match message {
            ExecutorMessage::Output(chunk) => follower.offer(chunk),
            _ => false,
        };
        if !goes_on {
            follower.end();
            self.remove_follower(number);
        }
    }
}

/// Serves one session to its end. `early` are bytes that came with the request's head.
pub async fn serve<S>(hub: Rc<Hub>, stream: S, early: &[u8], peer: Option<i32>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let local = peer.is_some();
    let process = peer;
    let peer = Peer::watch(peer);
    let (reader, mut writer) = tokio::io::split(stream);
    let mut lines = Lines::new();
    lines.push(early);
    let mut incoming =
        Incoming { reader, lines, buffer: vec![0; limits::BODY_PIECE_BYTES], size: 0 };
    let greeted = match timeout(limits::HELLO_WITHIN, greet(&mut incoming)).await {
        Ok(greeted) => greeted.and_then(|hello| Ok((hello, hub.sessions.add()?))),
        Err(_) => Err(SessionEnd::Refused {
            code: "no-hello",
            detail: format!("no `hello` came within {:?}", limits::HELLO_WITHIN),
        }),
    };
    let (hello, (session, link)) = match greeted {
        Ok(greeted) => greeted,
        Err(end) => {
            tracing::info!("a connection for an executor's session ends: {end}");
            refuse(&mut writer, end).await;
            return;
        }
    };
    let executor = hello.executor.clone();
    let tree = Tree::watch(&hello, process);
    tracing::debug!("{executor} opens session {}", session.0);
    let opened = Input::SessionOpened { session, hello, local };
    let end = match hub.inbox.push(opened, incoming.size).await {
        Err(_) => SessionEnd::Stopping,
        Ok(()) => tokio::select! {
            end = read(&hub, session, &link, &mut incoming) => end,
            end = write(&link, &mut writer) => end,
        },
    };
    // One that has ended reads no more, and its last words may still be unread here.
    let end = match end {
        SessionEnd::Io(error) => {
            let last = read(&hub, session, &link, &mut incoming);
            timeout(limits::CLOSE_WITHIN, last).await.unwrap_or(SessionEnd::Io(error))
        }
        end => end,
    };
    hub.sessions.remove(session);
    let process_gone = match end {
        // The executor is there still, or has nothing to do with it.
        SessionEnd::Ordered | SessionEnd::Stopping => false,
        _ => peer.is_gone_within(limits::PROCESS_GONE_WITHIN).await,
    };
    tracing::debug!("session {} of {executor} ends: {end}", session.0);
    let tree_gone = process_gone && tree.is_gone_within(limits::TREE_GONE_WITHIN).await;
    hub.inbox.push_now(Input::SessionClosed { session, process_gone, tree_gone });
    refuse(&mut writer, end).await;
}

struct Incoming<R> {
    reader: R,
    lines: Lines,
    buffer: Vec<u8>,
    /// Bytes of the latest message.
    size: usize,
}

impl<R: AsyncRead + Unpin> Incoming<R> {
    /// The next message; lines of kinds that are not known are passed over.
    async fn next(&mut self) -> Result<ExecutorMessage, SessionEnd> {
        loop {
            while let Some(line) = self.lines.next() {
                let line = line?;
                if let Some(message) = parse(&line)? {
                    self.size = line.len();
                    return Ok(message);
                }
            }
            match self.reader.read(&mut self.buffer).await? {
                0 => return Err(SessionEnd::Closed),
                size => self.lines.push(&self.buffer[..size]),
            }
        }
    }
}

/// Reads a message. A newer executor may say things that are not known here: `None`.
fn parse(line: &str) -> Result<Option<ExecutorMessage>, SessionEnd> {
    #[derive(serde::Deserialize)]
    struct Tagged<'a> {
        #[serde(rename = "type", borrow)]
        kind: std::borrow::Cow<'a, str>,
    }
    let error = match serde_json::from_str(line) {
        Ok(message) => return Ok(Some(message)),
        Err(error) => error,
    };
    match serde_json::from_str::<Tagged<'_>>(line) {
        Ok(tagged) if error.to_string().starts_with("unknown variant") => {
            tracing::debug!("an executor said {:?}, which is not known here", tagged.kind);
            Ok(None)
        }
        _ => Err(SessionEnd::Message(error)),
    }
}

async fn greet<R: AsyncRead + Unpin>(incoming: &mut Incoming<R>) -> Result<Hello, SessionEnd> {
    let refused = |code, detail| Err(SessionEnd::Refused { code, detail });
    match incoming.next().await? {
        ExecutorMessage::Hello(hello) if hello.v != SESSION_VERSION => refused(
            "protocol-version",
            format!("session version {} is spoken here, not {}", SESSION_VERSION, hello.v),
        ),
        ExecutorMessage::Hello(hello)
            if hello.attempts.len() > limits::ATTEMPTS_PER_EXECUTOR_MAX =>
        {
            refused("too-many-attempts", format!("over {}", limits::ATTEMPTS_PER_EXECUTOR_MAX))
        }
        ExecutorMessage::Hello(hello) => Ok(hello),
        _ => refused("no-hello", "the first message must be `hello`".into()),
    }
}

async fn read<R: AsyncRead + Unpin>(
    hub: &Hub,
    session: SessionId,
    link: &Link,
    incoming: &mut Incoming<R>,
) -> SessionEnd {
    loop {
        let message = match incoming.next().await {
            Ok(message) => message,
            Err(end) => return end,
        };
        if matches!(message, ExecutorMessage::Output(_) | ExecutorMessage::OutputEnd { .. }) {
            link.relay(message);
            continue;
        }
        let pushed = hub.inbox.push(Input::Message { session, message }, incoming.size).await;
        if pushed.is_err() {
            return SessionEnd::Stopping;
        }
    }
}

async fn write<W: AsyncWrite + Unpin>(link: &Link, writer: &mut W) -> SessionEnd {
    while let Some(bytes) = link.unsent().await {
        if let Err(error) = writer.write_all(&bytes).await {
            return SessionEnd::Io(error);
        }
    }
    SessionEnd::Ordered
}

/// Says why a session ends where the executor can do something about it, and closes it.
async fn refuse<W: AsyncWrite + Unpin>(writer: &mut W, end: SessionEnd) {
    let (code, detail) = match end {
        SessionEnd::Refused { code, detail } => (code, detail),
        SessionEnd::Line(error) => ("bad-message", error.to_string()),
        SessionEnd::Message(error) => ("bad-message", error.to_string()),
        SessionEnd::Ordered | SessionEnd::Stopping => {
            let _ = writer.shutdown().await;
            return;
        }
        SessionEnd::Closed | SessionEnd::Io(_) => return,
    };
    let refused = BrokerMessage::Refused { code: code.into(), detail };
    let mut line = serde_json::to_vec(&refused).expect("messages have only string keys");
    line.push(b'\n');
    // Nobody may be there to read it, and nobody waits for it.
    let sent = async {
        writer.write_all(&line).await?;
        writer.shutdown().await
    };
    let _ = timeout(limits::CLOSE_WITHIN, sent).await;
}
