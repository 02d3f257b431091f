//! Clients: they submit, watch, cancel, rerun and ask; they lose requests and replies, grow
//! impatient, and repeat with the same ids what was not answered.
//!
//! Each operation is one request at a time; a repeated one is a further *attempt* of it, and what
//! still comes for an older attempt is not heard. Who is told the ends of an array's elements says
//! now and then how many it has taken.

use ucp::proto::event::{Input, JobRef, Refusal, Reply, Request, Submission};
use ucp::proto::id::{JobId, RequestId, TaskId};
use ucp::proto::ranges::Ranges;
use ucp::proto::view::{Ended, JobState};

use super::broker_host::ELEMENTS_TOLD_MAX;
use super::cluster::World;
use super::counters::Sometimes;
use super::queue::{Draw, Event};
use super::trace::trace;
use super::workload;

/// Operations of one client that may be open at one time.
const OPEN_MAX: usize = 6;
/// Plans of one seed.
const PLANS_MAX: usize = 120;
/// Ends of elements after which a client says at the latest that it took them: not more than the
/// broker tells without that (broker_host.rs).
const TAKEN_LATEST: usize = ELEMENTS_TOLD_MAX;

/// How far a submission has come for its client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage {
    /// Not answered.
    Sent,
    /// Acknowledged as this job; its end is waited for.
    Watched(JobId),
    /// Acknowledged as this array; the ends of these elements are waited for.
    Elements { job: JobId, left: Ranges },
    /// Nothing more is wanted.
    Over,
}

/// What an operation is.
#[derive(Debug)]
pub enum Kind {
    /// Submissions, each with its stage.
    Submit { submissions: Vec<Submission>, stages: Vec<Stage>, watch: bool },
    /// Waits for the end of a job or an element, or of an array for those of the elements `left`.
    Watch { task: TaskId, left: Option<Ranges> },
    /// Cancels a job or an element.
    Cancel { task: TaskId },
    /// Runs a job or an element again.
    Rerun { task: TaskId },
    /// Asks once.
    Query(Request),
}

/// An operation of a client.
#[derive(Debug)]
pub struct Op {
    /// Whose.
    pub client: usize,
    /// What it is.
    pub kind: Kind,
    /// Whether nothing more is wanted.
    pub done: bool,
    attempt: u32,
    request: Option<(u32, RequestId)>,
    last_reply: u64,
    replies_left: u32,
    /// Ends of elements that the client was told and has not said to have taken.
    untaken: usize,
}

impl World {
    /// A client does something.
    pub fn client_acts(&mut self, client: usize) {
        if self.healing {
            return;
        }
        let pause = self.rng.range(1_000, self.pace_us);
        self.queue.push(self.now + pause, Event::ClientActs { client });
        if self.open_ops[client] >= OPEN_MAX {
            return;
        }
        let known = self.known_jobs.len();
        let recent = known.saturating_sub(12);
        let job = if known == 0 {
            None
        } else if self.rng.chance(60) {
            Some(self.known_jobs[recent + self.rng.place(known - recent)])
        } else {
            Some(self.known_jobs[self.rng.place(known)])
        };
        let task = job.map(|job| self.draw_task(job));
        let kind = match (self.rng.below(100), task) {
            (0..45, _) | (_, None) if self.plans.len() < PLANS_MAX => self.draw_submit(),
            (_, None) => return,
            (0..45, Some(task)) => Kind::Query(self.draw_query(task)),
            (45..55, Some(task)) => Kind::Watch { task, left: None },
            (55..65, Some(task)) => Kind::Cancel { task },
            (65..72, Some(task)) => Kind::Rerun { task },
            (_, Some(task)) => Kind::Query(self.draw_query(task)),
        };
        self.open_ops[client] += 1;
        self.ops.push(Op {
            client,
            kind,
            done: false,
            attempt: 0,
            request: None,
            last_reply: 0,
            replies_left: u32::MAX,
            untaken: 0,
        });
        self.send_op(self.ops.len() - 1);
    }

    /// The job, or of an array sometimes one element, which perhaps it has not.
    fn draw_task(&mut self, job: JobId) -> TaskId {
        let Some(all) = self.known_arrays.get(&job) else { return job.into() };
        let numbers: Vec<u64> = all.iter().collect();
        let element = match self.rng.below(100) {
            0..40 => None,
            40..98 => Some(*self.rng.pick(&numbers)),
            _ => Some(1_000 + self.rng.below(2)),
        };
        TaskId::new(job, element)
    }

    fn draw_query(&mut self, task: TaskId) -> Request {
        let text = task.to_string();
        let from = *self.rng.pick(&[0, 0, 24]);
        let job = JobRef(text[from..].to_owned());
        // An audit goes through everything that is held.
        match self.rng.below(20) {
            0..6 => Request::Show { job },
            6..10 => Request::Why { job },
            10..12 => Request::List { state: None, limit: 20 },
            12..14 => Request::List { state: Some(JobState::Waiting), limit: 1_000 },
            14..17 => Request::Status,
            17..19 => Request::Executors,
            _ => Request::Audit,
        }
    }

    fn draw_submit(&mut self) -> Kind {
        let count = *self.rng.pick(&[1, 1, 1, 2, 3, 8]);
        let wall = self.broker.clock.now(self.now).wall;
        let mut submissions = Vec::new();
        for index in 0..count {
            let plan = self.draw_plan();
            let spec = self.plans[plan].spec.clone();
            let id = self.rng.chance(85).then(|| JobId::random(wall, &mut self.rng));
            submissions.push(Submission { index, id, spec });
        }
        let stages = vec![Stage::Sent; submissions.len()];
        Kind::Submit { submissions, stages, watch: self.rng.chance(50) }
    }

    /// A new plan, or one that was submitted before where it has a key.
    fn draw_plan(&mut self) -> usize {
        if self.rng.chance(12) && !self.plans.is_empty() {
            let plan = self.rng.place(self.plans.len());
            if self.plans[plan].spec.key.is_some() {
                self.counters.count(Sometimes::KeyRepeated);
                return plan;
            }
        }
        let number = self.plans.len();
        let mut earlier = self.known_jobs.clone();
        if self.rng.chance(2) {
            let wall = self.broker.clock.now(self.now).wall;
            earlier = vec![JobId::random(wall, &mut self.rng)];
        }
        let plan =
            workload::draw(number, &earlier, &self.capabilities, &self.arrays, &mut self.rng);
        if !workload::is_possible(&plan.spec, &self.capabilities) {
            self.counters.count(Sometimes::Impossible);
        }
        self.plans.push(plan);
        number
    }

    fn send_op(&mut self, op: usize) {
        let patience = self.rng.range(1_000_000, 8_000_000);
        let lost = self.is_lossy() && self.rng.below(100) < self.loss;
        let breaks = self.is_lossy() && self.rng.below(100) < self.loss;
        let breaks_after = self.rng.below(4);
        let delay = self.net.delay(&mut self.rng);
        let entry = &mut self.ops[op];
        entry.attempt += 1;
        entry.untaken = 0;
        if let Kind::Watch { left, .. } = &mut entry.kind {
            *left = None;
        }
        let attempt = entry.attempt;
        entry.replies_left =
            if breaks { u32::try_from(breaks_after).unwrap_or(0) } else { u32::MAX };
        if attempt > 1 && matches!(entry.kind, Kind::Submit { .. }) {
            self.counters.count(Sometimes::DuplicateSubmission);
        }
        self.queue.push(self.now + patience, Event::OpTimeout { op, attempt });
        if lost {
            self.counters.count(Sometimes::RequestLost);
        } else {
            self.queue.push(self.now + delay, Event::RequestArrives { op, attempt });
        }
    }

    fn is_lossy(&self) -> bool {
        !self.healing && self.loss > 0
    }

    /// A request reaches the broker.
    pub fn request_arrives(&mut self, op: usize, attempt: u32) {
        if self.ops[op].done {
            return;
        }
        if self.broker.core.is_none() {
            let soon = self.now + self.rng.range(100_000, 1_000_000);
            return self.queue.push(soon, Event::OpTimeout { op, attempt });
        }
        self.messages += 1;
        let request = self.broker.register(op, attempt);
        let life = self.broker.life;
        let body = self.request_of(op);
        trace!(self, "broker gets {request:?} {body:?}");
        self.tell_broker(Input::Request { request, body });
        if self.ops[op].attempt == attempt {
            self.ops[op].request = Some((life, request));
        } else {
            // Its client gave up before it came.
            self.queue.push(self.now + 500, Event::RequestClosed { life, request });
        }
    }

    fn request_of(&self, op: usize) -> Request {
        let name = |task: &TaskId| JobRef(task.to_string());
        match &self.ops[op].kind {
            Kind::Submit { submissions, stages, watch } => {
                let open = submissions.iter().zip(stages).filter(|(_, s)| **s != Stage::Over);
                let submissions = open.map(|(submission, _)| submission.clone()).collect();
                Request::Submit { submissions, watch: *watch }
            }
            Kind::Watch { task, .. } => {
                Request::Watch { job: name(task), attempts: op.is_multiple_of(2) }
            }
            Kind::Cancel { task } => {
                Request::Cancel { job: name(task), reason: "enough".to_owned() }
            }
            Kind::Rerun { task } => Request::Rerun { job: name(task), reason: "again".to_owned() },
            Kind::Query(request) => request.clone(),
        }
    }

    /// A reply leaves the broker.
    pub fn reply_leaves(&mut self, request: RequestId, reply: Reply) {
        let Some((op, attempt)) = self.broker.requests.get(&request).copied() else { return };
        let delay = self.net.delay(&mut self.rng);
        let entry = &mut self.ops[op];
        if entry.attempt != attempt {
            return;
        }
        if entry.replies_left == 0 {
            return self.counters.count(Sometimes::ReplyLost);
        }
        if entry.replies_left != u32::MAX {
            entry.replies_left -= 1;
        }
        entry.last_reply = (entry.last_reply + 1).max(self.now + delay);
        let reply = Box::new(reply);
        self.queue.push(entry.last_reply, Event::ReplyArrives { op, attempt, reply });
    }

    /// A reply reaches its client.
    pub fn reply_arrives(&mut self, op: usize, attempt: u32, reply: &Reply) {
        let entry = &mut self.ops[op];
        if entry.done || entry.attempt != attempt {
            return;
        }
        self.messages += 1;
        if let Reply::Refused { refusal, .. } = reply {
            let seen = match refusal {
                Refusal::KeyConflict { .. } => Some(Sometimes::KeyConflict),
                Refusal::AfterUnknown(_) => Some(Sometimes::AfterUnknown),
                Refusal::HasEnded { .. } => Some(Sometimes::RefusedEnded),
                Refusal::NotEnded { .. } => Some(Sometimes::RerunRefused),
                _ => None,
            };
            seen.into_iter().for_each(|seen| self.counters.count(seen));
        }
        let done = match &self.ops[op].kind {
            Kind::Submit { .. } => self.submission_answered(op, reply),
            Kind::Watch { .. } => self.watch_answered(op, reply),
            _ => true,
        };
        if let Reply::Ended(ended) = reply
            && ended.element.is_some()
            && !done
        {
            self.take_told(op);
        }
        if done {
            self.finish_op(op);
        }
    }

    /// Says now and then how many ends of elements were taken; always before no more would come.
    fn take_told(&mut self, op: usize) {
        let enough = self.rng.range(1, TAKEN_LATEST as u64);
        let delay = self.net.delay(&mut self.rng);
        let entry = &mut self.ops[op];
        entry.untaken += 1;
        let Some((life, request)) = entry.request else { return };
        if entry.untaken as u64 >= enough {
            let count = std::mem::take(&mut entry.untaken);
            self.queue.push(self.now + delay, Event::TakenArrives { life, request, count });
        }
    }

    /// The broker learns how many ends of elements a client has taken.
    pub fn taken_arrives(&mut self, life: u32, request: RequestId, count: usize) {
        if life == self.broker.life && self.broker.requests.contains_key(&request) {
            let body = Request::Taken { count };
            self.checks.taken_arrives(request, count);
            self.tell_broker(Input::Request { request, body });
        }
    }

    fn watch_answered(&mut self, op: usize, reply: &Reply) -> bool {
        let Kind::Watch { task, left } = &mut self.ops[op].kind else { return true };
        match (reply, left) {
            (Reply::Watched { elements }, left) => {
                let all = self.known_arrays.get(&task.job).cloned().unwrap_or_default();
                let right = all.len() == *elements && task.element.is_none();
                *left = Some(all);
                self.checks.demand("array", right, || format!("{elements} elements of it"));
                false
            }
            (Reply::Ended(ended), Some(left)) => {
                self.counters.count(Sometimes::ElementTold);
                let Some(element) = ended.element.filter(|element| left.contains(*element)) else {
                    let text = format!("{task}: told {ended:?} while {left} were to come");
                    self.checks.fail("told-once", text);
                    return true;
                };
                left.remove(element);
                left.is_empty()
            }
            (Reply::Ended(ended), None) => {
                let right = TaskId::new(ended.job, ended.element) == *task;
                self.checks.demand("told-once", right, || format!("{ended:?} by surprise"));
                true
            }
            (Reply::Refused { .. }, _) => true,
            _ => false,
        }
    }

    fn submission_answered(&mut self, op: usize, reply: &Reply) -> bool {
        let Kind::Submit { submissions, stages, watch } = &mut self.ops[op].kind else {
            return true;
        };
        match reply {
            Reply::Submitted { index, job, known, .. } => {
                let place = usize::try_from(*index).expect("our own index");
                let submission = &submissions[place];
                let wanted = match &submission.spec.key {
                    Some(key) => Some(JobId::keyed(key, &submission.spec.digest())),
                    None => submission.id,
                };
                let right = wanted.is_none_or(|wanted| wanted == *job);
                stages[place] = match &submission.spec.array {
                    _ if !*watch => Stage::Over,
                    Some(all) => Stage::Elements { job: *job, left: all.clone() },
                    None => Stage::Watched(*job),
                };
                let new = !self.known_jobs.contains(job);
                if new {
                    self.known_jobs.push(*job);
                    if let Some(all) = &submission.spec.array {
                        self.known_arrays.insert(*job, all.clone());
                    }
                }
                if *known {
                    self.counters.count(Sometimes::KnownAnswered);
                }
                self.checks.demand("id", right, || format!("{wanted:?} became {job}"));
            }
            Reply::Refused { index: Some(index), .. } => {
                stages[usize::try_from(*index).expect("our own index")] = Stage::Over;
            }
            Reply::Refused { index: None, .. } => stages.fill(Stage::Over),
            Reply::Ended(ended) => self.end_told(op, ended),
            _ => {}
        }
        let Kind::Submit { stages, .. } = &self.ops[op].kind else { return true };
        stages.iter().all(|stage| *stage == Stage::Over)
    }

    /// The end of a submitted job or element is told; of one that was submitted twice it counts
    /// for both.
    fn end_told(&mut self, op: usize, ended: &Ended) {
        let Kind::Submit { stages, .. } = &mut self.ops[op].kind else { return };
        let mut waited_for = false;
        for stage in stages.iter_mut() {
            match stage {
                Stage::Watched(job) if *job == ended.job => *stage = Stage::Over,
                Stage::Elements { job, left } if *job == ended.job => {
                    let element = ended.element.unwrap_or(u64::MAX);
                    waited_for |= left.contains(element);
                    left.remove(element);
                    if left.is_empty() {
                        *stage = Stage::Over;
                    }
                }
                _ => {}
            }
        }
        if ended.element.is_some() {
            self.counters.count(Sometimes::ElementTold);
            let twice = || format!("the end of {}/{:?} was told", ended.job, ended.element);
            self.checks.demand("told-once", waited_for, twice);
        }
    }

    fn finish_op(&mut self, op: usize) {
        let entry = &mut self.ops[op];
        if !std::mem::replace(&mut entry.done, true) {
            self.open_ops[entry.client] -= 1;
        }
        self.close_request(op);
    }

    fn close_request(&mut self, op: usize) {
        if let Some((life, request)) = self.ops[op].request.take() {
            let delay = self.net.delay(&mut self.rng);
            self.queue.push(self.now + delay, Event::RequestClosed { life, request });
        }
    }

    /// The broker learns that nobody waits for a request any more.
    pub fn request_closed(&mut self, life: u32, request: RequestId) {
        if life == self.broker.life && self.broker.requests.remove(&request).is_some() {
            self.tell_broker(Input::RequestClosed { request });
        }
    }

    /// A client has waited long enough: it asks again, or gives up what it cannot repeat.
    pub fn op_timeout(&mut self, op: usize, attempt: u32) {
        let entry = &self.ops[op];
        if entry.done || entry.attempt != attempt {
            return;
        }
        if self.is_patient(op) {
            let again = self.now + 4_000_000;
            return self.queue.push(again, Event::OpTimeout { op, attempt });
        }
        self.close_request(op);
        match &mut self.ops[op].kind {
            Kind::Query(_) => return self.finish_op(op),
            Kind::Submit { submissions, stages, .. } => {
                // A submission that is known by no id or key would be another job if repeated.
                for (submission, stage) in submissions.iter().zip(stages.iter_mut()) {
                    if submission.id.is_none() && submission.spec.key.is_none() {
                        *stage = Stage::Over;
                    }
                }
                if stages.iter().all(|stage| *stage == Stage::Over) {
                    return self.finish_op(op);
                }
            }
            _ => {}
        }
        self.send_op(op);
    }

    /// Whether a client goes on waiting: its connection stands, and only an end is missing.
    fn is_patient(&self, op: usize) -> bool {
        let entry = &self.ops[op];
        let stands = entry.request.is_some_and(|(life, request)| {
            life == self.broker.life && self.broker.requests.contains_key(&request)
        });
        let answered = match &entry.kind {
            Kind::Submit { stages, .. } => !stages.contains(&Stage::Sent),
            Kind::Watch { .. } => true,
            _ => false,
        };
        stands && answered && entry.replies_left == u32::MAX
    }
}
