//! The broker as a state machine: inputs in, ordered outputs out.
//!
//! Pure: no runtime, clock, randomness or file of its own. Shape of its use, the same in
//! `runtime::drive` and in tests/simulation: hand in some inputs, then drain
//! [`Broker::poll_output`] until it returns nothing, then wait for an input or for
//! [`Broker::poll_timeout`].
//!
//! Laws: in one drain all new facts come first, in one [`Output::Persist`]; everything behind it
//! depends on it. What is decided about a job is decided by `fold` and `arbitrate` from its facts;
//! here is only what a fold cannot know: who is connected, what is free, what waits how long.
//! Source: design sections 2, 4 and 5.

mod array;
mod deadline;
mod deploy;
mod fleet;
mod ghosts;
mod hold;
mod queries;
mod requests;
mod results;
mod sessions;
mod sight;
mod sync;
#[cfg(test)]
mod tests;
mod why;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::proto::event::{Batch, Input, Output, Reply};
use crate::proto::fact::{Body, Continues, FOLD_VERSION, Fact, Joined, SealedFact};
use crate::proto::fold::JobFacts;
use crate::proto::id::{Dot, JobId, LogId, RequestId, TaskId};
use crate::proto::limits;
use crate::proto::log::{LogError, Logs};
use crate::proto::precedence::Rank;
use crate::proto::ranges::Ranges;
use crate::proto::rng::Rng;
use crate::proto::schedule::Queue;
use crate::proto::time::{Monotonic, Now};
use crate::proto::view::{Detection, JobState};

use array::ArrayWork;
use fleet::Fleet;
use ghosts::Ghosts;
use results::{Reports, Unreleased};

/// What an operator sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerConfig {
    /// The broker's name.
    pub name: String,
    /// How long an ended job is kept, in milliseconds of running time.
    pub retention_ms: u64,
    /// Silence after which nothing new is deployed on an executor.
    pub suspect_after: Duration,
    /// Silence after which an executor's attempts are lost.
    pub lost_after: Duration,
    /// How long a closed session may take to come back.
    pub reconnect_grace: Duration,
    /// Jobs that may wait.
    pub queued_max: u64,
    /// Ends of elements that are told to a client before it took any.
    pub elements_told_max: usize,
    /// Whether other brokers can be reached, so that executors keep results until one has them.
    pub has_others: bool,
}

impl Default for BrokerConfig {
    fn default() -> Self {
        Self {
            name: "broker".into(),
            retention_ms: 7 * 86_400_000,
            suspect_after: limits::SUSPECT_AFTER,
            lost_after: limits::LOST_AFTER,
            reconnect_grace: limits::RECONNECT_GRACE,
            queued_max: limits::QUEUED_MAX_DEFAULT,
            elements_told_max: limits::ELEMENTS_TOLD_MAX,
            has_others: false,
        }
    }
}

/// Which log a broker writes after its start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opening {
    /// The log that it wrote before: its continuity is proven.
    Continue(LogId),
    /// A log that nobody ever wrote.
    Fresh {
        /// Its name.
        log: LogId,
        /// The log that was written before, if there is one.
        continues: Option<LogId>,
    },
}

/// A job with what only this broker's process knows of it.
#[derive(Debug)]
struct Job {
    facts: JobFacts,
    /// The state when the job was last settled; counts and queue agree with it.
    state: Option<JobState>,
    /// The log of the job's birth when it was last settled.
    born: Option<LogId>,
    /// The order in which this process met the jobs.
    arrival: u64,
    /// When it began to wait here.
    since: Monotonic,
    /// When its deadline began to count.
    began: Monotonic,
    /// Its place in the queue, while it stands there.
    queued: Option<Rank>,
    /// It waits for its back-off until then.
    not_before: Monotonic,
    /// An earlier attempt may run until then.
    held_until: Monotonic,
    /// What there is to do about its elements, where it is an array.
    array: Option<Box<ArrayWork>>,
}

/// What a timer is for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    /// An executor may have become silent or stayed away.
    Executor(crate::proto::id::ExecutorId),
    /// A job's back-off is over, or that of some of its elements, or its deadline.
    Retry(JobId),
    /// An executor may hold attempts that do not begin.
    Recall(crate::proto::id::ExecutorId),
    /// The broker looks whether it stood still itself.
    Look,
}

/// Somebody who waits for a job's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Watcher {
    request: RequestId,
    attempts: bool,
}

/// One broker.
#[derive(Debug)]
pub struct Broker {
    config: BrokerConfig,
    rng: Rng,
    now: Now,
    /// The log that is written; nothing before `open`.
    log: Option<LogId>,
    opened: Monotonic,
    logs: Logs,
    /// Logs that another one continues, with that one.
    continued: BTreeMap<LogId, LogId>,
    /// Logs with the one that each says it continues.
    continues: BTreeMap<LogId, LogId>,
    jobs: BTreeMap<JobId, Job>,
    /// The jobs in the order in which this process met them.
    arrivals: Vec<JobId>,
    keys: BTreeMap<String, JobId>,
    /// Jobs that wait for another one's end.
    dependants: BTreeMap<JobId, BTreeSet<JobId>>,
    queue: Queue,
    fleet: Fleet,
    watchers: BTreeMap<TaskId, BTreeSet<Watcher>>,
    watched: BTreeMap<RequestId, BTreeSet<TaskId>>,
    /// Those who wait for the ends of all elements of an array, with those not yet told.
    array_watches: BTreeMap<JobId, BTreeMap<RequestId, Ranges>>,
    /// How many ends of elements may be told to each of them before some were taken.
    credits: BTreeMap<RequestId, usize>,
    /// Arrays of which more may be told to those who wait, by arrival.
    telling: BTreeSet<(u64, JobId)>,
    /// What executors said about elements since the last facts were written.
    reports: Reports,
    /// Attempts that are there again after they were given up.
    ghosts: Ghosts,
    detection: Detection,
    /// Leases that an earlier log granted and this one does not know of are over then.
    leases_over: Monotonic,
    /// Whether the next look is set.
    looking: bool,
    /// Some other broker holds each log up to this number.
    held_elsewhere: BTreeMap<LogId, u64>,
    /// Results that executors keep, by the fact that reported them.
    unreleased: BTreeMap<Dot, Vec<Unreleased>>,
    counts: BTreeMap<(LogId, JobState), u64>,
    timers: BTreeSet<(Monotonic, Timer)>,
    /// Jobs whose facts changed since they were settled, by arrival: ids carry wall time, so
    /// their order must decide nothing.
    unsettled: BTreeSet<(u64, JobId)>,
    /// Jobs whose facts changed since the last batch.
    touched: BTreeSet<JobId>,
    /// Reported results whose outputs are still in memory, the oldest first, and their bytes.
    cached: VecDeque<(JobId, Dot, usize)>,
    cached_bytes: usize,
    pending: Batch,
    outputs: VecDeque<Output>,
    draining: bool,
    /// The last batch was full, and more could have been deployed.
    backlog: bool,
}

impl Broker {
    /// A broker that holds nothing.
    #[must_use]
    pub fn new(config: BrokerConfig, rng: Rng) -> Self {
        Self {
            config,
            rng,
            now: Now::default(),
            log: None,
            opened: Monotonic::default(),
            logs: Logs::default(),
            continued: BTreeMap::new(),
            continues: BTreeMap::new(),
            jobs: BTreeMap::new(),
            arrivals: Vec::new(),
            keys: BTreeMap::new(),
            dependants: BTreeMap::new(),
            queue: Queue::default(),
            fleet: Fleet::default(),
            watchers: BTreeMap::new(),
            watched: BTreeMap::new(),
            array_watches: BTreeMap::new(),
            credits: BTreeMap::new(),
            telling: BTreeSet::new(),
            reports: Reports::default(),
            ghosts: Ghosts::new(),
            detection: Detection::default(),
            leases_over: Monotonic::default(),
            looking: false,
            held_elsewhere: BTreeMap::new(),
            unreleased: BTreeMap::new(),
            counts: BTreeMap::new(),
            timers: BTreeSet::new(),
            unsettled: BTreeSet::new(),
            touched: BTreeSet::new(),
            cached: VecDeque::new(),
            cached_bytes: 0,
            pending: Batch::default(),
            outputs: VecDeque::new(),
            draining: false,
            backlog: false,
        }
    }

    /// The log that is written; nothing before `open`.
    #[must_use]
    pub fn log(&self) -> Option<&LogId> {
        self.log.as_ref()
    }

    /// How far each log is held.
    #[must_use]
    pub fn logs(&self) -> &Logs {
        &self.logs
    }

    /// The facts held about a job.
    #[must_use]
    pub fn job_facts(&self, job: JobId) -> Option<&JobFacts> {
        self.jobs.get(&job).map(|job| &job.facts)
    }

    /// Takes over a fact from the store; before [`Broker::open`], in commit order.
    ///
    /// # Errors
    /// [`LogError`] if the fact does not continue its log; nothing is taken over.
    pub fn restore(&mut self, sealed: &SealedFact) -> Result<(), LogError> {
        self.logs.extend(sealed)?;
        self.take(&sealed.fact);
        if let (Some(job), Body::Reported(_)) = (sealed.fact.job, &sealed.fact.body)
            && let Some(held) = self.jobs.get_mut(&job)
        {
            held.facts.strip(&sealed.fact.dot);
        }
        Ok(())
    }

    /// Begins to work: writes `joined` where the log is fresh, and waits for the executors of
    /// attempts that are under way to come back.
    pub fn open(&mut self, now: Now, opening: Opening) {
        self.now = now;
        self.opened = now.mono;
        match opening {
            Opening::Continue(log) => {
                self.own_continued(&log);
                self.log = Some(log);
                self.hold_all_after_start();
            }
            Opening::Fresh { log, continues } => {
                assert!(self.logs.head(&log).seq == 0, "a fresh log holds nothing");
                if let Some(older) = &continues {
                    self.own_continued(older);
                    self.continued.insert(older.clone(), log.clone());
                }
                self.log = Some(log);
                if continues.is_some() {
                    self.hold_all_after_start();
                }
                let continues = continues.map(|log| {
                    let head = self.logs.head(&log);
                    Continues { log, last_seq: head.seq, chain: head.chain }
                });
                let body = Joined {
                    name: self.config.name.clone(),
                    fold_version: FOLD_VERSION,
                    continues,
                };
                self.write(None, 0, None, Body::Joined(body));
            }
        }
        let arrivals = std::mem::take(&mut self.arrivals);
        for id in &arrivals {
            let Some(job) = self.jobs.get_mut(id) else { continue };
            job.since = now.mono;
            job.began = deadline::begin(&job.facts, self.log.as_ref(), now.mono);
            self.expect_executors(*id);
        }
        self.unsettled.extend((0..).zip(arrivals.iter().copied()));
        self.arrivals = arrivals;
        self.settle();
    }

    /// Takes an input. Panics if the outputs of the last one were not drained: that is a fault of
    /// the loop around it, never of the outside.
    pub fn handle_input(&mut self, now: Now, input: Input) {
        assert!(!self.draining, "outputs are drained before the next input");
        self.notice_own_pause(now);
        self.now = now;
        if !matches!(input, Input::Message { .. }) {
            self.write_reports();
        }
        match input {
            Input::Request { request, body } => self.handle_request(request, body),
            Input::RequestClosed { request } => self.close_request(request),
            Input::SessionOpened { session, hello, local } => {
                self.open_session(session, hello, local);
            }
            // A file that we wrote ourselves is no other broker.
            Input::HeldElsewhere { by: Some(log), .. } if self.is_own(&log) => {}
            Input::HeldElsewhere { vector, .. } => self.release_results(vector),
            Input::OthersReachable { others } => self.learn_reachable(others),
            Input::Message { session, message } => self.handle_message(session, message),
            Input::SessionClosed { session, process_gone, tree_gone } => {
                self.close_session(session, process_gone, tree_gone);
            }
        }
        self.settle();
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Now) {
        assert!(!self.draining, "outputs are drained before the next input");
        self.notice_own_pause(now);
        self.now = now;
        self.write_reports();
        while let Some((due, _)) = self.timers.first()
            && *due <= now.mono
        {
            let Some((_, timer)) = self.timers.pop_first() else { break };
            match timer {
                Timer::Executor(executor) => self.check_executor(&executor),
                Timer::Retry(job) => self.wake(job),
                Timer::Recall(executor) => self.check_recall(&executor),
                Timer::Look => self.look(),
            }
        }
        self.settle();
    }

    /// When [`Broker::handle_timeout`] is wanted next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Monotonic> {
        if self.backlog {
            return Some(self.now.mono);
        }
        self.timers.first().map(|(due, _)| *due)
    }

    /// The next order to the outside. The first of a drain is the `Persist`, if anything was
    /// written; when nothing is left the broker is ready for inputs again.
    pub fn poll_output(&mut self) -> Option<Output> {
        if !self.draining {
            self.write_reports();
            self.deploy_waiting();
            self.tell_arrays();
            self.draining = true;
            if !self.pending.facts.is_empty() {
                let rows = std::mem::take(&mut self.touched).into_iter();
                let row = |id: JobId| self.jobs.get(&id).map(|job| job.facts.row(id));
                self.pending.rows = rows.filter_map(row).collect();
                return Some(Output::Persist(std::mem::take(&mut self.pending)));
            }
        }
        let next = self.outputs.pop_front();
        self.draining = next.is_some();
        next
    }

    /// Writes a fact: the next of our log, made durable before anything else of this drain leaves.
    fn write(
        &mut self,
        job: Option<JobId>,
        generation: u32,
        elements: Option<Ranges>,
        body: Body,
    ) -> Dot {
        let log = self.log.clone().expect("nothing is written before the log is open");
        let head = self.logs.head(&log);
        let dot = Dot { log, seq: head.seq + 1 };
        assert!(dot.seq <= limits::COUNTER_MAX, "a log ends at 2^53 - 1");
        let held = job.and_then(|job| self.jobs.get(&job)).map(|job| &job.facts);
        let mut clock = held.map(|facts| facts.clock().clone()).unwrap_or_default();
        clock.raise_to(&dot);
        let birth = match body {
            Body::Submitted(_) => held.and_then(JobFacts::birth).or(Some(&dot)).cloned(),
            _ => held.and_then(JobFacts::birth).cloned(),
        };
        let at = self.now.wall.to_string();
        let fact = Fact { dot: dot.clone(), clock, job, birth, generation, elements, at, body };
        let line: Arc<str> = fact.to_line().into();
        let chain = self.logs.write(&dot.log, &line);
        let sealed = SealedFact { fact: Arc::new(fact), line, chain };
        self.take(&sealed.fact);
        self.pending.facts.push(sealed);
        dot
    }

    /// Writes a fact about a job in its current or a named generation.
    fn write_job(&mut self, job: JobId, generation: u32, body: Body) -> Dot {
        self.touched.insert(job);
        self.write(Some(job), generation, None, body)
    }

    /// Writes a fact about some elements of an array's job, or about a job that is none.
    fn write_elements(
        &mut self,
        job: JobId,
        generation: u32,
        elements: Option<Ranges>,
        body: Body,
    ) -> Dot {
        self.touched.insert(job);
        self.write(Some(job), generation, elements, body)
    }

    /// Adds a fact to what is known, whoever wrote it.
    fn take(&mut self, fact: &Arc<Fact>) {
        if let Body::Joined(Joined { continues: Some(older), .. }) = &fact.body {
            self.learn_continued(&older.log, &fact.dot.log);
        }
        let Some(id) = fact.job else { return };
        let arrival = self.arrivals.len() as u64;
        let now = self.now.mono;
        let job = self.jobs.entry(id).or_insert_with(|| {
            self.arrivals.push(id);
            Job {
                facts: JobFacts::default(),
                state: None,
                born: None,
                arrival,
                since: now,
                began: now,
                queued: None,
                not_before: now,
                held_until: now,
                array: None,
            }
        });
        let spec = |facts: &JobFacts| facts.submitted().map(|(_, body)| Arc::clone(&body.spec));
        let before = if matches!(fact.body, Body::Submitted(_) | Body::Reported(_)) {
            spec(&job.facts)
        } else {
            None
        };
        if !job.facts.insert(Arc::clone(fact)) {
            return;
        }
        let changed = before.filter(|before| spec(&job.facts).as_ref() != Some(before));
        let is_changed = changed.is_some();
        if let Some(before) = changed {
            // Somebody else gave the same id to another job, and was first.
            if let Some(rank) = job.queued.take() {
                self.queue.remove(before.kind(), &before.needs, rank);
            }
            self.discount(id);
        }
        let Some(job) = self.jobs.get_mut(&id) else { return };
        if let Some(all) = job.facts.elements() {
            // What a report carries may be about other elements.
            let carries = matches!(&fact.body, Body::Reported(body) if !body.carried.is_empty());
            let partly = !carries && !is_changed;
            let about = fact.elements.as_ref().filter(|_| partly).unwrap_or(all);
            job.array.get_or_insert_default().dirty.extend(about);
        }
        self.unsettled.insert((job.arrival, id));
        // What a report carries of a job may make it known.
        let tells = matches!(fact.body, Body::Submitted(_) | Body::Reported(_));
        let told = job.facts.submitted().filter(|_| tells && job.state.is_none());
        if let Some((_, body)) = told {
            if let Some(key) = &body.spec.key {
                self.keys.entry(key.clone()).or_insert(id);
            }
            for other in &body.spec.after {
                self.dependants.entry(*other).or_default().insert(id);
            }
            // A result may have made the job known before: it waits from now on.
            if self.log.is_some() {
                (job.since, job.began) = (now, now);
            }
        }
        self.cache(id, fact);
    }

    /// Keeps what a result put out in memory for a while.
    fn cache(&mut self, id: JobId, fact: &Fact) {
        if let Body::Reported(body) = &fact.body {
            let bytes = body.result.inline_bytes();
            if bytes > 0 && self.log.is_some() {
                self.cached.push_back((id, fact.dot.clone(), bytes));
                self.cached_bytes += bytes;
            }
        }
    }

    /// Has a job settled with the others whose facts changed.
    fn unsettle(&mut self, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        if let Some(work) = &mut job.array {
            let states = job.facts.states();
            let waiting = states.and_then(|states| states.get(&JobState::Waiting));
            waiting.into_iter().for_each(|waiting| work.dirty.extend(waiting));
        }
        self.unsettled.insert((job.arrival, id));
    }

    /// The same when a back-off is over: of an array with those elements alone that waited for it.
    fn wake(&mut self, id: JobId) {
        let (now, overdue) = (self.now.mono, self.is_overdue(id));
        let Some(job) = self.jobs.get_mut(&id) else { return };
        if let Some(work) = &mut job.array {
            work.wake(now);
            let open = |(state, _): &(&JobState, _)| {
                matches!(state, JobState::Waiting | JobState::Running) && overdue
            };
            let states = job.facts.states().into_iter().flatten();
            states.filter(open).for_each(|(_, elements)| work.dirty.extend(elements));
        }
        self.unsettled.insert((job.arrival, id));
    }

    /// Forgets the outputs of the oldest results when the memory for them is used up.
    fn trim_cache(&mut self) {
        while self.cached_bytes > limits::RESULT_CACHE_BYTES_MAX
            && let Some((job, dot, bytes)) = self.cached.pop_front()
        {
            self.cached_bytes -= bytes;
            if let Some(job) = self.jobs.get_mut(&job) {
                job.facts.strip(&dot);
            }
        }
    }

    fn reply(&mut self, request: RequestId, reply: Reply) {
        self.outputs.push_back(Output::Reply { request, reply });
    }

    fn notice(&mut self, text: String) {
        self.outputs.push_back(Output::Notice(text));
    }

    fn set_timer(&mut self, due: Monotonic, timer: Timer) {
        self.timers.insert((due, timer));
    }
}
