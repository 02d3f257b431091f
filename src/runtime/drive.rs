//! THE loop: inputs into the core, outputs out of it, in order, nothing before it is durable.
//!
//! Decides nothing and speaks to no socket: inputs wait in the hub's inbox, orders go to mailboxes
//! and sessions, batches to the store's writer. The core goes on while batches are on their way
//! to the disk, up to [`limits::BATCHES_IN_FLIGHT_MAX`] of them; then inputs wait. While the disk
//! is full, inputs that ask for facts do not reach the core: clients are refused, and results stay
//! with their executors, which send them again in the session that follows.
//! Law: what follows a batch leaves after the batch is durable, and nothing overtakes
//! ([`gate::Gate`], tests there). The simulator runs the core by the same steps.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, Sleep};

use crate::proto::broker::Broker;
use crate::proto::event::{Batch, Input, Output, Refusal, Reply, Request};
use crate::proto::id::{RequestId, SessionId};
use crate::proto::limits;
use crate::proto::message::ExecutorMessage;
use crate::proto::time::Now;
use crate::proto::view::{JobState, StatusView};
use crate::runtime::entropy;
use crate::runtime::ready::Supervisor;
use crate::runtime::server::hub::{Answer, Hub};
use crate::runtime::store::{Disk, StoreError, Writer};

use gate::{Gate, Order};

pub mod gate;

/// The store failed: what was not yet durable was released to nobody. Nothing can be done but
/// to start again once the cause is gone.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the store failed; nothing that was not durable has left")]
pub struct StoreFailed(#[source] pub Arc<StoreError>);

/// The loop with all that it moves.
pub struct Drive {
    broker: Broker,
    hub: Rc<Hub>,
    writer: Writer,
    gate: Gate,
    done: mpsc::Sender<Result<(), Arc<StoreError>>>,
    durable: mpsc::Receiver<Result<(), Arc<StoreError>>>,
    disk: watch::Receiver<Disk>,
    /// Sessions of which a result was left out while the disk was full.
    left_out: BTreeSet<SessionId>,
}

enum Event {
    Durable(Result<(), Arc<StoreError>>),
    Inputs,
    Due,
    Tell,
    Stop,
}

impl Drive {
    /// A loop around an opened core.
    #[must_use]
    pub fn new(broker: Broker, hub: Rc<Hub>, writer: Writer) -> Self {
        let (done, durable) = mpsc::channel(limits::BATCHES_IN_FLIGHT_MAX);
        let disk = writer.disk();
        hub.watch_disk(disk.clone());
        hub.watch_commits(writer.meter());
        let (gate, left_out) = (Gate::default(), BTreeSet::new());
        Self { broker, hub, writer, gate, done, durable, disk, left_out }
    }

    /// Carries out what the core has ordered, and waits until all of it is durable.
    ///
    /// # Errors
    /// The store failed, or its disk is so full that it would have to be waited for.
    pub async fn settle(&mut self) -> Result<(), StoreFailed> {
        self.drain();
        while self.gate.in_flight() > 0 {
            let mut disk = self.disk.clone();
            let result = tokio::select! {
                biased;
                // The sender is held here, so the channel does not close.
                result = self.durable.recv() => result,
                stalled = disk.wait_for(|disk| *disk == Disk::Stalled) => {
                    // The writer has ended: it says why with the next result.
                    if stalled.is_ok() {
                        return Err(StoreFailed(Arc::new(StoreError::Full)));
                    }
                    drop(stalled);
                    self.durable.recv().await
                }
            };
            let Some(result) = result else { break };
            self.release(result)?;
        }
        Ok(())
    }

    /// Runs until `stop` is done; then lets what is under way become durable and leave. Tells the
    /// supervisor in each turn that it turns.
    ///
    /// # Errors
    /// The store failed.
    pub async fn run(
        &mut self,
        stop: impl Future<Output = ()>,
        supervisor: &RefCell<Supervisor>,
    ) -> Result<(), StoreFailed> {
        let mut stop = pin!(stop);
        let mut sleep = pin!(tokio::time::sleep(Duration::ZERO));
        let mut telling = pin!(tokio::time::sleep(Duration::ZERO));
        loop {
            self.set_alarm(sleep.as_mut());
            supervisor.borrow_mut().tell(|| in_short(&self.broker.status()));
            let tell_at = supervisor.borrow().due();
            if let Some(at) = tell_at {
                telling.as_mut().reset(at);
            }
            let event = poll_fn(|context| {
                if tell_at.is_some() && telling.as_mut().poll(context).is_ready() {
                    return Poll::Ready(Event::Tell);
                }
                self.poll_event(context, stop.as_mut(), sleep.as_mut())
            })
            .await;
            match event {
                Event::Tell => {}
                Event::Durable(result) => {
                    self.release(result)?;
                    while let Ok(result) = self.durable.try_recv() {
                        self.release(result)?;
                    }
                }
                Event::Inputs => {
                    self.take_inputs();
                    self.drain();
                    if self.hub.inbox.has_more() {
                        // The sockets get their turn before the next batch of inputs.
                        tokio::task::yield_now().await;
                    }
                }
                Event::Due => {
                    self.broker.handle_timeout(entropy::now());
                    self.drain();
                }
                Event::Stop => return self.settle().await,
            }
        }
    }

    fn poll_event(
        &mut self,
        context: &mut Context<'_>,
        stop: Pin<&mut impl Future<Output = ()>>,
        sleep: Pin<&mut Sleep>,
    ) -> Poll<Event> {
        if let Poll::Ready(Some(result)) = self.durable.poll_recv(context) {
            return Poll::Ready(Event::Durable(result));
        }
        if stop.poll(context).is_ready() {
            return Poll::Ready(Event::Stop);
        }
        if self.gate.in_flight() >= limits::BATCHES_IN_FLIGHT_MAX {
            return Poll::Pending;
        }
        if self.broker.poll_timeout().is_some() && sleep.poll(context).is_ready() {
            return Poll::Ready(Event::Due);
        }
        self.hub.inbox.poll_filled(context).map(|()| Event::Inputs)
    }

    /// Lets `sleep` end when the core wants to be woken; a deadline that stays is not set again.
    fn set_alarm(&self, sleep: Pin<&mut Sleep>) {
        let Some(due) = self.broker.poll_timeout() else { return };
        let wait = due.since(entropy::now().mono);
        let deadline = Instant::now() + wait;
        let set = sleep.deadline();
        let apart = deadline.max(set).duration_since(deadline.min(set));
        if apart > Duration::from_micros(500) || sleep.is_elapsed() {
            sleep.reset(deadline);
        }
    }

    fn take_inputs(&mut self) {
        let now = entropy::now();
        let mut facts = 0;
        for _ in 0..limits::INPUTS_PER_BATCH_MAX {
            let Some(input) = self.hub.inbox.take() else { break };
            if let Input::Request { body: Request::Submit { submissions, .. }, .. } = &input {
                facts += submissions.len();
            }
            self.handle(now, input);
            // Each submission may bring a deployment along, and each result two facts.
            if facts >= limits::FACTS_PER_BATCH_MAX / 4 {
                break;
            }
        }
        self.hub.inbox.made_room();
    }

    fn handle(&mut self, now: Now, input: Input) {
        let is_full = *self.disk.borrow() != Disk::Well;
        if !is_full && !self.left_out.is_empty() {
            for session in std::mem::take(&mut self.left_out) {
                self.hub.sessions.close(session);
            }
        }
        self.hub.saw(&input);
        match input {
            Input::Request { request, body } if is_full && body.makes_facts() => {
                self.refuse(request, &body);
            }
            Input::Message { session, message: ExecutorMessage::Result(_) }
                if is_full || self.left_out.contains(&session) =>
            {
                self.left_out.insert(session);
            }
            input => {
                if let Input::SessionClosed { session, .. } = &input {
                    self.left_out.remove(session);
                }
                self.broker.handle_input(now, input);
            }
        }
    }

    /// Answers a request that the core is not to see, at once: nothing depends on it.
    fn refuse(&self, request: RequestId, body: &Request) {
        let refuse = |index| {
            let reply = Reply::Refused { index, refusal: Refusal::DiskFull };
            self.hub.deliver(request, Answer::Reply(reply));
        };
        match body {
            Request::Submit { submissions, .. } => {
                submissions.iter().for_each(|submission| refuse(Some(submission.index)));
            }
            _ => refuse(None),
        }
    }

    /// Carries out the core's orders: batches go to the disk, what follows them waits for it.
    fn drain(&mut self) {
        while let Some(output) = self.broker.poll_output() {
            let order = match output {
                Output::Persist(batch) => {
                    self.commit(batch);
                    continue;
                }
                Output::Notice(notice) => {
                    tracing::warn!("{notice}");
                    continue;
                }
                Output::Reply { request, reply: Reply::Audit(view) } => {
                    let (done, books) = oneshot::channel();
                    // Queued behind the batch that the core's books belong to, and before any
                    // later one: both speak of the same moment.
                    self.writer.books(Box::new(move |result| {
                        let _ = done.send(result);
                    }));
                    Order::Reply(request, Answer::Audit(view, books))
                }
                Output::Reply { request, reply } => Order::Reply(request, Answer::Reply(reply)),
                Output::Send { session, message } => Order::Send(session, message),
                Output::Close { session } => Order::Close(session),
            };
            if let Some(order) = self.gate.pass(order) {
                self.carry_out(order);
            }
        }
    }

    fn commit(&mut self, batch: Batch) {
        let done = self.done.clone();
        self.hub.commits_begin(&batch, |job| self.broker.job_facts(job));
        self.gate.commit();
        self.writer.commit(
            batch,
            Box::new(move |result| {
                // There is room for as many as may be in flight; after the loop nobody listens.
                let _ = done.try_send(result);
            }),
        );
    }

    fn release(&mut self, result: Result<(), Arc<StoreError>>) -> Result<(), StoreFailed> {
        result.map_err(StoreFailed)?;
        self.gate.durable();
        while let Some(order) = self.gate.next_free() {
            self.carry_out(order);
        }
        self.hub.commits_end();
        Ok(())
    }

    fn carry_out(&self, order: Order) {
        match order {
            Order::Reply(request, answer) => self.hub.deliver(request, answer),
            Order::Send(session, message) => {
                self.hub.sent(session, &message);
                self.hub.sessions.send(session, &message);
            }
            Order::Close(session) => self.hub.sessions.close(session),
        }
    }
}

/// How the broker stands, in one line for people.
#[must_use]
pub fn in_short(view: &StatusView) -> String {
    let count = |state| view.jobs.get(&state).copied().unwrap_or(0);
    let jobs = [JobState::Waiting, JobState::Running, JobState::Parked]
        .map(|state| format!("{} {}", count(state), state.word()));
    format!("{}: jobs {}; executors {}", view.log, jobs.join(", "), view.executors)
}
