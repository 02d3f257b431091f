//! What the requests, the sessions and the loop share: the way in to the core and the way back.
//!
//! One thread; nothing here waits for the disk. The outside only queues inputs, at most
//! [`limits::INPUTS_QUEUED_MAX`] of them and [`limits::INPUTS_QUEUED_BYTES_MAX`] bytes; then it
//! is no longer read. The loop (drive.rs) takes
//! them at its own pace and hands the answers to the mailbox of each request.
//! Law: inputs are handed to the core in the order in which they were queued.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use tokio::sync::{Notify, oneshot, watch};

use crate::proto::event::{Batch, Input, Reply, Request};
use crate::proto::fold::JobFacts;
use crate::proto::id::{JobId, RequestId, SessionId};
use crate::proto::limits;
use crate::proto::message::BrokerMessage;
use crate::proto::result::Stream;
use crate::proto::view::AuditView;
use crate::runtime::entropy;
use crate::runtime::server::feed::Feed;
use crate::runtime::server::mailbox::Mailbox;
use crate::runtime::server::tally::Tally;
use crate::runtime::session::Sessions;
use crate::runtime::store::{CommitMeter, Disk, StoreError, StoredBooks};

/// The broker is stopping: nothing more is taken and no answer will come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the broker is shutting down")]
pub struct Stopping;

/// What a request gets back.
#[derive(Debug)]
pub enum Answer {
    /// An answer of the core.
    Reply(Reply),
    /// The core's books, and the store's as they are after the batch that they belong to.
    Audit(Box<AuditView>, oneshot::Receiver<Result<StoredBooks, Arc<StoreError>>>),
}

/// The inputs that wait for the core.
#[derive(Debug, Default)]
pub struct Inbox {
    inputs: RefCell<VecDeque<(Input, usize)>>,
    bytes: Cell<usize>,
    stopping: Cell<bool>,
    waker: RefCell<Option<Waker>>,
    space: Notify,
}

impl Inbox {
    /// Queues an input that came as so many bytes, waiting for room.
    ///
    /// # Errors
    /// The broker is stopping; the input was dropped.
    pub async fn push(&self, input: Input, bytes: usize) -> Result<(), Stopping> {
        loop {
            let space = self.space.notified();
            if self.stopping.get() {
                return Err(Stopping);
            }
            if self.has_room() {
                self.put(input, bytes);
                return Ok(());
            }
            space.await;
        }
    }

    /// One input is let in however long it is, so that each gets its turn.
    fn has_room(&self) -> bool {
        self.inputs.borrow().len() < limits::INPUTS_QUEUED_MAX
            && self.bytes.get() < limits::INPUTS_QUEUED_BYTES_MAX
    }

    /// Queues the end of a request or session. There are no more of them than there are requests
    /// and sessions, so they need no room.
    pub fn push_now(&self, input: Input) {
        self.put(input, 0);
    }

    fn put(&self, input: Input, bytes: usize) {
        self.inputs.borrow_mut().push_back((input, bytes));
        self.bytes.set(self.bytes.get() + bytes);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// The next input if there is one.
    pub fn take(&self) -> Option<Input> {
        let (input, bytes) = self.inputs.borrow_mut().pop_front()?;
        self.bytes.set(self.bytes.get() - bytes);
        Some(input)
    }

    /// Whether an input waits.
    #[must_use]
    pub fn has_more(&self) -> bool {
        !self.inputs.borrow().is_empty()
    }

    /// Lets those in that waited for room.
    pub fn made_room(&self) {
        if self.has_room() {
            self.space.notify_waiters();
        }
    }

    /// Waits for an input.
    pub fn poll_filled(&self, context: &mut Context<'_>) -> Poll<()> {
        if !self.inputs.borrow().is_empty() {
            return Poll::Ready(());
        }
        self.waker.replace(Some(context.waker().clone()));
        Poll::Pending
    }

    fn stop(&self) {
        self.stopping.set(true);
        self.space.notify_waiters();
    }
}

/// What everything on the broker's thread shares.
#[derive(Debug)]
pub struct Hub {
    /// The way in.
    pub inbox: Inbox,
    /// The executors' connections.
    pub sessions: Sessions,
    /// What happens, for who reads it.
    pub feed: Rc<Feed>,
    /// What is counted.
    pub tally: Tally,
    requests: RefCell<BTreeMap<RequestId, Rc<Letters>>>,
    next_request: Cell<u64>,
    commits: watch::Sender<u64>,
    disk: RefCell<Option<watch::Receiver<Disk>>>,
    meter: RefCell<Option<Arc<CommitMeter>>>,
    draining: Cell<bool>,
}

/// The answers of one request, and how much of results they hold in memory.
#[derive(Debug, Default)]
struct Letters {
    answers: Mailbox<Answer>,
    inline_bytes: Cell<usize>,
}

impl Default for Hub {
    fn default() -> Self {
        Self {
            inbox: Inbox::default(),
            sessions: Sessions::default(),
            requests: RefCell::default(),
            next_request: Cell::new(1),
            commits: watch::Sender::new(0),
            disk: RefCell::default(),
            feed: Rc::default(),
            tally: Tally::default(),
            meter: RefCell::default(),
            draining: Cell::new(false),
        }
    }
}

impl Hub {
    /// Opens a request: a number and a mailbox for its answers.
    #[must_use]
    pub fn open(self: &Rc<Self>) -> Mail {
        let request = RequestId(self.next_request.get());
        self.next_request.set(request.0 + 1);
        let letters = Rc::new(Letters::default());
        self.requests.borrow_mut().insert(request, Rc::clone(&letters));
        Mail { hub: Rc::clone(self), request, letters, asked: Cell::new(false) }
    }

    /// Hands an answer to its request; one that nobody waits for is dropped.
    pub fn deliver(&self, request: RequestId, mut answer: Answer) {
        let requests = self.requests.borrow();
        let Some(letters) = requests.get(&request) else { return };
        if let Answer::Reply(Reply::Ended(ended)) = &mut answer
            && let Some((_, reported)) = &mut ended.result
        {
            let bytes = reported.result.inline_bytes();
            if letters.inline_bytes.get() + bytes > limits::REPLIES_INLINE_BYTES_MAX {
                // A client that reads slowly must not hold everybody's results in memory: what
                // is left out here is read from the store when its turn comes.
                let mut lean = (**reported).clone();
                leave_out(&mut lean.result.stdout);
                leave_out(&mut lean.result.stderr);
                *reported = Arc::new(lean);
            } else {
                letters.inline_bytes.set(letters.inline_bytes.get() + bytes);
            }
        }
        letters.answers.put(answer);
    }

    /// How many requests wait for answers of the core.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.requests.borrow().len()
    }

    /// The loop handles an input.
    pub fn saw(&self, input: &Input) {
        if self.feed.saw(input) {
            self.committed();
        }
    }

    /// The loop sends something to an executor.
    pub fn sent(&self, session: SessionId, message: &BrokerMessage) {
        if self.feed.sent(session, message) {
            self.committed();
        }
    }

    /// A batch goes to the disk. `job` gives what the core holds about a job.
    pub fn commits_begin<'a>(&self, batch: &Batch, job: impl Fn(JobId) -> Option<&'a JobFacts>) {
        for sealed in &batch.facts {
            if let Some(held) = sealed.fact.job.and_then(&job) {
                self.tally.times(&sealed.fact, held);
            }
        }
        self.feed.hold(batch.facts.iter().map(|sealed| Arc::clone(&sealed.fact)).collect());
    }

    /// The oldest batch on its way to the disk is durable.
    pub fn commits_end(&self) {
        for fact in self.feed.release() {
            self.tally.fact(fact.body.kind());
        }
        self.committed();
    }

    /// Tells those who follow the facts or the events that there are more.
    fn committed(&self) {
        if self.commits.receiver_count() > 0 {
            self.commits.send_modify(|count| *count += 1);
        }
    }

    /// Something that changes with each commit, until the broker stops.
    #[must_use]
    pub fn commits(&self) -> watch::Receiver<u64> {
        self.commits.subscribe()
    }

    /// Takes the store's word for how its disk is.
    pub fn watch_disk(&self, disk: watch::Receiver<Disk>) {
        self.disk.replace(Some(disk));
    }

    /// How the store's disk is.
    #[must_use]
    pub fn disk(&self) -> Disk {
        self.disk.borrow().as_ref().map_or(Disk::Well, |disk| *disk.borrow())
    }

    /// Takes the store's word for how its commits go.
    pub fn watch_commits(&self, meter: Arc<CommitMeter>) {
        self.meter.replace(Some(meter));
    }

    /// How commits go, once there is a store.
    #[must_use]
    pub fn commit_meter(&self) -> Option<Arc<CommitMeter>> {
        self.meter.borrow().clone()
    }

    /// Whether a commit has been under way for so long that the store counts as hanging.
    #[must_use]
    pub fn commit_is_slow(&self) -> bool {
        let now = entropy::now().mono;
        let slow = |meter: &Arc<CommitMeter>| meter.under_way(now) > limits::HEALTH_WITHIN;
        self.meter.borrow().as_ref().is_some_and(slow)
    }

    /// The broker is going to stop: it is no longer ready.
    pub fn drain(&self) {
        self.draining.set(true);
    }

    /// Whether the broker is going to stop.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.draining.get() || self.inbox.stopping.get()
    }

    /// Waits until the broker stops.
    pub async fn stopped(&self) {
        loop {
            let told = self.inbox.space.notified();
            if self.inbox.stopping.get() {
                return;
            }
            told.await;
        }
    }

    /// Ends everything: no input is taken any more, every request and session is told.
    pub fn stop(&self) {
        self.inbox.stop();
        for letters in self.requests.borrow().values() {
            letters.answers.close();
        }
        self.sessions.close_all();
    }
}

/// Whether content that was written is neither inline nor a blob: it is in the store alone.
#[must_use]
pub fn is_left_out(stream: &Stream) -> bool {
    stream.size > 0 && stream.text.is_none() && stream.base64.is_none() && stream.blob.is_none()
}

fn leave_out(stream: &mut Stream) {
    stream.text = None;
    stream.base64 = None;
}

/// One request's way to the core and back. Closed when it is dropped.
#[derive(Debug)]
pub struct Mail {
    hub: Rc<Hub>,
    request: RequestId,
    letters: Rc<Letters>,
    asked: Cell<bool>,
}

impl Mail {
    /// Asks the core.
    ///
    /// # Errors
    /// The broker is stopping.
    pub async fn ask(&self, body: Request) -> Result<(), Stopping> {
        self.ask_sized(body, 0).await
    }

    /// Asks the core what came as so many bytes.
    ///
    /// # Errors
    /// The broker is stopping.
    pub async fn ask_sized(&self, body: Request, bytes: usize) -> Result<(), Stopping> {
        self.asked.set(true);
        self.hub.inbox.push(Input::Request { request: self.request, body }, bytes).await
    }

    /// The next answer. May be dropped while it waits and called again.
    ///
    /// # Errors
    /// The broker is stopping.
    pub async fn next(&self) -> Result<Answer, Stopping> {
        let answer = self.letters.answers.take().await.ok_or(Stopping)?;
        self.opened(&answer);
        Ok(answer)
    }

    /// The next answer if it is there.
    #[must_use]
    pub fn next_now(&self) -> Option<Answer> {
        let answer = self.letters.answers.take_now()?;
        self.opened(&answer);
        Some(answer)
    }

    fn opened(&self, answer: &Answer) {
        if let Answer::Reply(Reply::Ended(ended)) = answer
            && let Some((_, reported)) = &ended.result
        {
            let left = self.letters.inline_bytes.get();
            let bytes = reported.result.inline_bytes();
            self.letters.inline_bytes.set(left.saturating_sub(bytes));
        }
    }
}

impl Drop for Mail {
    fn drop(&mut self) {
        self.hub.requests.borrow_mut().remove(&self.request);
        if self.asked.get() {
            self.hub.inbox.push_now(Input::RequestClosed { request: self.request });
        }
    }
}
