//! The connection to a broker: found, held, written and read.
//!
//! Knows no message's meaning. Messages of the core go out before live output, which waits for
//! room. Law: after [`Session::close`] nothing of this session reaches the loop as its own, for
//! the loop compares the session's number.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;

use crate::proto::limits;
use crate::proto::message::{BrokerMessage, ExecutorMessage};
use crate::proto::rng::Rng;
use crate::runtime::client::{Client, ClientError};
use crate::runtime::endpoint::{self, Address};
use crate::runtime::entropy;
use crate::wire::lines::Lines;

use super::Event;

/// Bytes read from the connection at a time.
const READ_BYTES: usize = 64 << 10;

type Pipe = TokioIo<Upgraded>;

/// A fresh connection.
pub(super) struct Connected {
    address: Address,
    pipe: Pipe,
}

/// One session; ended by [`Session::close`].
#[derive(Debug)]
pub(super) struct Session {
    number: u64,
    address: Address,
    unsent: RefCell<Vec<u8>>,
    writing: Cell<bool>,
    closed: Cell<bool>,
    garbled: Cell<bool>,
    wake: Notify,
    idle: Notify,
    live: mpsc::Sender<Vec<u8>>,
}

/// The pause before the next attempt to connect, shared by all of them. Grows until it is reset.
#[derive(Debug, Clone)]
pub(super) struct Pause {
    next: Rc<Cell<Duration>>,
    /// The broker that is tried last: it took the connection and not yet us, or made no sense.
    last: Rc<RefCell<Option<Address>>>,
    rng: Rc<RefCell<Rng>>,
}

impl Pause {
    pub(super) fn new() -> Self {
        let rng = Rc::new(RefCell::new(Rng::from_seed(entropy::seed())));
        Self { next: Rc::new(Cell::new(Duration::ZERO)), last: Rc::default(), rng }
    }

    /// A broker took us: the next attempt follows at once.
    pub(super) fn reset(&self) {
        self.next.set(Duration::ZERO);
        self.last.replace(None);
    }

    /// A broker said what nobody understands, even if it took us: others are tried before it.
    pub(super) fn distrust(&self, address: &Address) {
        self.next.set(limits::REJOIN_PAUSE_MAX);
        self.last.replace(Some(address.clone()));
    }

    /// A broker does not want us: others are tried before it, and it is left alone for a while.
    pub(super) fn refused(&self, address: &Address) {
        self.next.set(limits::REFUSED_PAUSE);
        self.last.replace(Some(address.clone()));
    }

    /// Waits between a half and the whole of the pause, so that many executors do not come as one.
    async fn wait(&self) {
        let pause = self.next.get();
        let doubled = (pause * 2).clamp(limits::REJOIN_PAUSE_FIRST, limits::REJOIN_PAUSE_MAX);
        self.next.set(doubled);
        if !pause.is_zero() {
            let half = u64::try_from(pause.as_micros() / 2).unwrap_or(u64::MAX);
            let drawn = self.rng.borrow_mut().next_u64() % half.max(1);
            tokio::time::sleep(Duration::from_micros(half + drawn)).await;
        }
    }
}

/// Looks for a broker until one takes the connection.
pub(super) async fn connect(flags: &[Address], pause: Pause) -> Connected {
    let mut told = false;
    let mut tries = 0;
    loop {
        pause.wait().await;
        tries += 1;
        let mut places = endpoint::candidates(flags).unwrap_or_default();
        let last = pause.last.borrow().clone();
        places.sort_by_key(|place| Some(place) == last.as_ref());
        let mut why = "there is no place to look".to_owned();
        for address in places {
            match timeout(limits::CONNECT_TRY_MAX, try_one(&address)).await {
                Ok(Ok(pipe)) => {
                    pause.last.replace(Some(address.clone()));
                    return Connected { address, pipe };
                }
                Ok(Err(error)) => why = describe(&error),
                Err(_) => why = format!("{address}: no answer"),
            }
        }
        // Programs that are started side by side need a moment to find each other.
        if tries >= limits::REJOIN_TRIES_QUIET && !std::mem::replace(&mut told, true) {
            tracing::warn!("no broker answers, going on looking: {why}");
        }
    }
}

fn describe(error: &ClientError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

async fn try_one(address: &Address) -> Result<Pipe, ClientError> {
    Client::connect(address).await?.upgrade().await
}

impl Session {
    /// Begins to read and to write.
    pub(super) fn begin(connected: Connected, events: mpsc::Sender<Event>) -> Rc<Self> {
        thread_local!(static LAST: Cell<u64> = const { Cell::new(0) });
        let number = LAST.get() + 1;
        LAST.set(number);
        let (live, waiting) = mpsc::channel(1);
        let session = Rc::new(Self {
            number,
            address: connected.address,
            unsent: RefCell::default(),
            writing: Cell::new(false),
            closed: Cell::new(false),
            garbled: Cell::new(false),
            wake: Notify::new(),
            idle: Notify::new(),
            live,
        });
        let (reader, writer) = tokio::io::split(connected.pipe);
        tokio::task::spawn_local(Rc::clone(&session).run(reader, writer, waiting, events));
        session
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    pub(super) fn address(&self) -> &Address {
        &self.address
    }

    /// Whether the broker said what is not understood.
    pub(super) fn is_garbled(&self) -> bool {
        self.garbled.get()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// Sends a message of the core.
    pub(super) fn send(&self, message: &ExecutorMessage) {
        if !self.closed.get() {
            self.unsent.borrow_mut().extend(line(message));
            self.wake.notify_one();
        }
    }

    /// Sends live output when there is room; false when the session is over.
    pub(super) async fn send_live(&self, message: &ExecutorMessage) -> bool {
        !self.closed.get() && self.live.send(line(message)).await.is_ok()
    }

    /// Ends the session; what was not sent is dropped.
    pub(super) fn close(&self) {
        self.closed.set(true);
        self.wake.notify_one();
    }

    /// Lets what is still to be sent go out, for so long at most, and ends the session.
    pub(super) async fn finish(&self, within: Duration) {
        let sent = async {
            while self.writing.get() || !self.unsent.borrow().is_empty() {
                self.idle.notified().await;
            }
        };
        // If it takes longer the broker learns it from the results on disk, another time.
        let _ = timeout(within, sent).await;
        self.close();
    }

    async fn run(
        self: Rc<Self>,
        reader: ReadHalf<Pipe>,
        writer: WriteHalf<Pipe>,
        live: mpsc::Receiver<Vec<u8>>,
        events: mpsc::Sender<Event>,
    ) {
        let reason = tokio::select! {
            reason = self.read(reader, &events) => reason,
            reason = self.write(writer, live) => reason,
        };
        self.closed.set(true);
        self.idle.notify_one();
        // The loop is gone only when the process ends.
        let _ = events.send(Event::Closed(self.number, reason)).await;
    }

    async fn read(&self, mut reader: ReadHalf<Pipe>, events: &mpsc::Sender<Event>) -> String {
        let mut lines = Lines::new();
        let mut buffer = vec![0; READ_BYTES];
        loop {
            while let Some(line) = lines.next() {
                let line = match line {
                    Ok(line) => line,
                    Err(error) => return self.not_understood(&error),
                };
                match serde_json::from_str::<BrokerMessage>(&line) {
                    Ok(message) => {
                        if events.send(Event::Message(self.number, message)).await.is_err() {
                            return "the executor ends".to_owned();
                        }
                    }
                    // A newer broker may say what this version need not know.
                    Err(error) if error.to_string().starts_with("unknown variant") => {
                        tracing::debug!("the broker says something unknown: {error}");
                    }
                    Err(error) => return self.not_understood(&error),
                }
            }
            match reader.read(&mut buffer).await {
                Ok(0) => return "it closed the session".to_owned(),
                Ok(count) => lines.push(&buffer[..count]),
                Err(error) => return format!("the connection broke: {error}"),
            }
        }
    }

    fn not_understood(&self, error: &dyn std::error::Error) -> String {
        self.garbled.set(true);
        format!("what it says is not understood: {error}")
    }

    async fn write(
        &self,
        mut writer: WriteHalf<Pipe>,
        mut live: mpsc::Receiver<Vec<u8>>,
    ) -> String {
        loop {
            if self.closed.get() {
                return "closed from here".to_owned();
            }
            let mut bytes = std::mem::take(&mut *self.unsent.borrow_mut());
            if bytes.is_empty() {
                self.writing.set(false);
                self.idle.notify_one();
                tokio::select! {
                    biased;
                    () = self.wake.notified() => continue,
                    piece = live.recv() => bytes = piece.expect("the session holds a sender"),
                }
            }
            self.writing.set(true);
            if let Err(error) = writer.write_all(&bytes).await {
                return format!("the connection broke: {error}");
            }
        }
    }
}

fn line(message: &ExecutorMessage) -> Vec<u8> {
    let mut line = serde_json::to_vec(message).expect("messages have only string keys");
    line.push(b'\n');
    line
}
