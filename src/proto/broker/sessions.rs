//! Executors come, are silent, and go.
//!
//! A session that closes leaves its seat waiting: for `reconnect_grace`, or not at all where the
//! process is known to be dead. After its own start the broker waits `lost_after` for the
//! executors of attempts that its facts call running. What an executor announces and the facts do
//! not call running is stopped. An attempt that is lost says whether its processes are surely gone.

use std::collections::{BTreeMap, BTreeSet};

use super::fleet::{Assigned, Seat};
use super::{Broker, Timer};
use crate::proto::event::Output;
use crate::proto::fact::Deployed;
use crate::proto::fold::JobFacts;
use crate::proto::id::{AttemptId, Dot, ExecutorId, JobId, SessionId};
use crate::proto::limits;
use crate::proto::message::{BrokerMessage, Hello, SESSION_VERSION};
use crate::proto::ranges::Ranges;
use crate::proto::time::Monotonic;
use crate::proto::view::JobState;

/// The word of a refusal for an identity that another process has.
const IN_USE: &str = "executor-in-use";

/// The attempts that an executor announces, with their jobs where it says so.
type Announced = BTreeMap<AttemptId, Option<JobId>>;

/// What is known of the processes of an attempt that is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tree {
    /// None is left.
    Gone,
    /// Some may still run.
    Unproven,
    /// Their executor has ended, and yet some may still run.
    Loose,
}

impl Tree {
    /// After a restart of an executor: it boots with none, and an executor that begins kills what
    /// the cgroup of its earlier life holds, if that had one.
    fn after_restart(before: Option<&Hello>, hello: &Hello) -> Self {
        let Some(before) = before else { return Self::Loose };
        let rebooted = before.incarnation.boot != hello.incarnation.boot;
        let swept = before.cgroup.is_some() && hello.cgroup.is_some();
        if rebooted || swept { Self::Gone } else { Self::Loose }
    }
}

impl Broker {
    /// After a start: makes seats for the executors of a job's running attempts.
    pub(super) fn expect_executors(&mut self, id: JobId) {
        let Some(job) = self.jobs.get(&id) else { return };
        let Some((_, submitted)) = job.facts.submitted() else { return };
        let needs = submitted.spec.needs.clone();
        // What another broker deployed is expected there.
        let running = running_where(&job.facts, |dot| !self.is_of_another(dot));
        self.hold_after_start(id);
        if !running.is_empty() {
            self.keep_looking();
        }
        let now = self.now.mono;
        let until = now.after(self.config.lost_after);
        for (attempt, executor) in running {
            let seats = &mut self.fleet.seats;
            let seat = seats.entry(executor.clone()).or_insert_with(|| Seat::away(now, until));
            let assigned = Assigned { job: Some(id), needs: needs.clone(), stopping: false };
            seat.assign(attempt, assigned);
            self.set_timer(until, Timer::Executor(executor));
        }
    }

    /// A result brought facts about a job along: what they call running is expected where it was
    /// deployed, or lost where that executor is here and did not announce it.
    pub(super) fn expect_carried(&mut self, id: JobId) {
        let Some(job) = self.jobs.get(&id).filter(|_| self.is_ours(id)) else { return };
        let Some((_, submitted)) = job.facts.submitted() else { return };
        let needs = submitted.spec.needs.clone();
        let now = self.now.mono;
        let until = now.after(self.config.lost_after);
        let running = running_where(&job.facts, |dot| !self.is_of_another(dot));
        for (attempt, executor) in running {
            let seats = &mut self.fleet.seats;
            let seat = seats.entry(executor.clone()).or_insert_with(|| Seat::away(now, until));
            if seat.assigned.contains_key(&attempt) {
                continue;
            }
            if seat.session.is_some() {
                let reason = "its executor does not know of it";
                self.lose_attempt(id, &attempt, &executor, reason, Tree::Unproven);
                continue;
            }
            let assigned = Assigned { job: Some(id), needs: needs.clone(), stopping: false };
            seat.assign(attempt, assigned);
            self.keep_looking();
            self.set_timer(until, Timer::Executor(executor));
        }
    }

    pub(super) fn open_session(&mut self, session: SessionId, hello: Hello, local: bool) {
        if let Err((code, detail)) = self.admit(&hello) {
            self.notice(format!("executor {} is refused: {detail}", hello.executor));
            self.detection.clones += u64::from(code == IN_USE);
            let code = code.to_owned();
            self.send(session, BrokerMessage::Refused { code, detail });
            self.outputs.push_back(Output::Close { session });
            return;
        }
        let executor = hello.executor.clone();
        let (now, heard) = (self.now.mono, self.now.mono);
        let seat = self.fleet.seats.entry(executor.clone()).or_insert_with(|| Seat::away(now, now));
        if let Some(older) = seat.session.replace(session) {
            self.fleet.sessions.remove(&older);
            self.outputs.push_back(Output::Close { session: older });
        }
        let jobs = hello.jobs.iter().copied().map(Some).chain(std::iter::repeat(None));
        let announced: Announced = hello.attempts.iter().cloned().zip(jobs).collect();
        let life = hello.incarnation.life;
        let tree = Tree::after_restart(seat.hello.as_ref(), &hello);
        let heard_before = std::mem::replace(&mut seat.heard, heard);
        (seat.away_until, seat.doubted_until) = (None, None);
        (seat.draining, seat.local) = (false, local);
        seat.hello = Some(hello);
        self.fleet.sessions.insert(session, executor.clone());
        self.watch_silence(&executor);
        self.keep_looking();
        let log = self.log.clone().expect("sessions come after the log is open");
        let bound = self.config.suspect_after.min(self.config.lost_after / 2);
        let heartbeat_max = Some((bound / 2).into());
        let older = self.continued.keys().filter(|older| *self.carried_on_by(older) == log);
        let continues = older.take(limits::LINEAGE_TOLD_MAX).cloned().collect();
        self.send(session, BrokerMessage::Welcome { log, heartbeat_max, continues });
        self.reconcile(session, &executor, (life, tree, heard_before), &announced);
        self.fleet.refresh(&executor);
        self.watch_recall(&executor, now);
    }

    /// Whether an executor may have a session.
    fn admit(&self, hello: &Hello) -> Result<(), (&'static str, String)> {
        if hello.v != SESSION_VERSION {
            let detail = format!("session version {} is not spoken here", hello.v);
            return Err(("session-version", detail));
        }
        if hello.attempts.len() > limits::ATTEMPTS_PER_EXECUTOR_MAX {
            return Err(("too-many-attempts", "it announces too many attempts".into()));
        }
        let has = &hello.capability;
        if !(1..=limits::SLOTS_MAX).contains(&has.slots) || has.labels.len() > limits::LABELS_MAX {
            let (slots, labels) = (limits::SLOTS_MAX, limits::LABELS_MAX);
            let detail = format!("slots are from 1 to {slots}, labels at most {labels}");
            return Err(("bad-capability", detail));
        }
        if self.fleet.sessions.len() >= limits::EXECUTORS_MAX {
            let detail = format!("{} executors are connected already", limits::EXECUTORS_MAX);
            return Err(("too-many-executors", detail));
        }
        let Some(seat) = self.fleet.seats.get(&hello.executor) else { return Ok(()) };
        let Some(older) = seat.hello.as_ref().filter(|_| seat.session.is_some()) else {
            return Ok(());
        };
        let silent = self.now.mono.since(seat.heard) >= self.config.suspect_after;
        if older.incarnation == hello.incarnation || silent {
            return Ok(());
        }
        let detail = format!(
            "executor {} is connected already as process {}; is its data directory a copy?",
            hello.executor, older.pid
        );
        Err((IN_USE, detail))
    }

    /// Brings our books and what the executor announced in line.
    fn reconcile(
        &mut self,
        session: SessionId,
        executor: &ExecutorId,
        (life, tree, heard): (u64, Tree, Monotonic),
        announced: &Announced,
    ) {
        let Some(seat) = self.fleet.seats.get(executor) else { return };
        let ours: Vec<(AttemptId, Assigned)> =
            seat.assigned.iter().map(|(id, assigned)| (id.clone(), assigned.clone())).collect();
        for (attempt, assigned) in &ours {
            if announced.contains_key(attempt) {
                if assigned.stopping {
                    let reason = "it counts no more".to_owned();
                    let attempt = attempt.clone();
                    self.send(session, BrokerMessage::Stop { attempt, reason });
                } else if let Some(job) = assigned.job.filter(|id| !self.is_ghost(*id, attempt)) {
                    self.confirm_lease(Some(session), job, attempt);
                    self.tell_deployed(job, attempt, executor, Some(session));
                }
                continue;
            }
            let Some(job) = assigned.job.filter(|_| !assigned.stopping) else {
                if let Some(job) = assigned.job {
                    // It was to be stopped, and this may be another life that never saw the order.
                    let held = self.jobs.get(&job).and_then(|job| job.facts.attempt(attempt));
                    if held.is_some_and(|(_, deployed)| deployed.life != life) {
                        self.hold_back_one(attempt, job, heard, tree);
                    }
                }
                self.release_silently(executor, attempt);
                continue;
            };
            // The same life that does not know it never got the order; another life lost it.
            // Of another log's attempt the end may be forgotten here (a restored disk): it is
            // not ordered a second time.
            let held = self.jobs.get(&job).and_then(|job| job.facts.attempt(attempt));
            let same_life = held.is_some_and(|(_, deployed)| deployed.life == life);
            if self.log.as_ref() == Some(&attempt.dot.log) && same_life {
                let elements = attempt.element.map(Ranges::one);
                self.start(Some(session), job, attempt, elements.as_ref());
            } else {
                self.release_silently(executor, attempt);
                // Another machine may have taken the identity along: that proves nothing of this
                // attempt where it matters.
                let tree = if self.forbids_overlap(job) { Tree::Unproven } else { tree };
                self.hold_back_one(attempt, job, heard, tree);
                self.lose_attempt(job, attempt, executor, "its executor was restarted", tree);
            }
        }
        let ours: BTreeSet<AttemptId> = ours.into_iter().map(|(attempt, _)| attempt).collect();
        for (attempt, job) in announced.iter().filter(|(attempt, _)| !ours.contains(attempt)) {
            self.meet(session, executor, attempt, *job);
        }
    }

    fn release_silently(&mut self, executor: &ExecutorId, attempt: &AttemptId) {
        let Some(seat) = self.fleet.seats.get_mut(executor) else { return };
        let released = seat.release(attempt);
        if let Some(job) = released.and_then(|assigned| assigned.job) {
            self.released(job, attempt);
        }
    }

    /// An attempt is at no executor any more: its job may have waited for that.
    pub(super) fn released(&mut self, job: JobId, attempt: &AttemptId) {
        self.lay_ghost(job, attempt);
        if self.forbids_overlap(job) {
            self.unsettle_task(job, attempt.element);
        }
    }

    /// An executor said something.
    pub(super) fn hear(&mut self, executor: &ExecutorId) {
        if let Some(seat) = self.fleet.seats.get_mut(executor) {
            (seat.heard, seat.doubted_until) = (self.now.mono, None);
        }
    }

    fn watch_silence(&mut self, executor: &ExecutorId) {
        let due = self.now.mono.after(self.config.lost_after);
        self.set_timer(due, Timer::Executor(executor.clone()));
    }

    pub(super) fn close_session(
        &mut self,
        session: SessionId,
        process_gone: bool,
        tree_gone: bool,
    ) {
        let Some(executor) = self.fleet.sessions.remove(&session) else { return };
        if process_gone {
            let tree = if tree_gone { Tree::Gone } else { Tree::Loose };
            if !self.leave(&executor) {
                self.detection.lost_ended += 1;
            }
            self.lose_executor(&executor, "its executor's process ended", tree);
            return;
        }
        if self.leave(&executor) {
            return;
        }
        let now = self.now.mono;
        let until = now.after(self.config.reconnect_grace);
        if let Some(seat) = self.fleet.seats.get_mut(&executor) {
            (seat.session, seat.heard, seat.away_until) = (None, now, Some(until));
        }
        self.fleet.refresh(&executor);
        self.set_timer(until, Timer::Executor(executor));
    }

    /// One that drained and has nothing any more has left on purpose; says whether it did.
    fn leave(&mut self, executor: &ExecutorId) -> bool {
        let seat = self.fleet.seats.get(executor);
        let left = seat.is_some_and(|seat| seat.draining && seat.assigned.is_empty());
        if left {
            self.fleet.remove(executor);
        }
        left
    }

    /// An executor's timer is due: it may have been silent or away for too long.
    pub(super) fn check_executor(&mut self, executor: &ExecutorId) {
        let Some(seat) = self.fleet.seats.get(executor) else { return };
        let due = match seat.away_until {
            Some(until) => until,
            None => seat.heard.after(self.config.lost_after),
        };
        if due > self.now.mono {
            self.set_timer(due, Timer::Executor(executor.clone()));
            return;
        }
        let reason = match seat.session {
            Some(_) => "its executor was silent",
            None => "its executor stayed away",
        };
        let silent = seat.session.is_some();
        if self.doubts(executor) {
            return;
        }
        let counted = match silent {
            true => &mut self.detection.lost_silent,
            false => &mut self.detection.lost_away,
        };
        *counted += 1;
        self.lose_executor(executor, reason, Tree::Unproven);
    }

    /// Gives an executor up with all that runs there.
    pub(super) fn lose_executor(&mut self, executor: &ExecutorId, reason: &str, tree: Tree) {
        let Some(seat) = self.fleet.remove(executor) else { return };
        if let Some(session) = seat.session {
            self.outputs.push_back(Output::Close { session });
        }
        self.hold_back(&seat, tree);
        let assigned = seat.assigned.iter();
        let known = assigned.filter_map(|(a, assigned)| Some((assigned.job?, a.clone())));
        for (job, attempt) in known.collect::<Vec<_>>() {
            self.released(job, &attempt);
        }
        let running: Vec<(AttemptId, JobId)> = seat
            .assigned
            .iter()
            .filter_map(|(attempt, assigned)| Some((attempt.clone(), assigned.job?)))
            .collect();
        if !running.is_empty() {
            let count = running.len();
            self.detection.attempts_lost += count as u64;
            self.notice(format!("executor {executor} is lost with {count} attempts: {reason}"));
        }
        let mut leases: BTreeMap<(Dot, JobId), Ranges> = BTreeMap::new();
        for (attempt, job) in running {
            match attempt.element {
                Some(element) => leases.entry((attempt.dot, job)).or_default().insert(element),
                None => self.lose_attempt(job, &attempt, executor, reason, tree),
            }
        }
        for ((dot, job), elements) in leases {
            self.lose_elements(job, &dot, &elements, executor, reason, tree);
        }
    }
}

/// The attempts of a job that are under way, and where.
pub(super) fn running(facts: &JobFacts) -> Vec<(AttemptId, ExecutorId)> {
    running_where(facts, |_| true)
}

/// Those of them whose deployment is wanted.
fn running_where(
    facts: &JobFacts,
    is_wanted: impl Fn(&Dot) -> bool,
) -> Vec<(AttemptId, ExecutorId)> {
    let of_task = |task: &JobFacts| -> Vec<_> {
        let wanted = task.running().filter(|(fact, _)| is_wanted(&fact.dot));
        let named =
            |(fact, deployed): (&_, &Deployed)| (task.attempt_id(fact), deployed.executor.clone());
        wanted.map(named).collect()
    };
    let Some(states) = facts.states() else { return of_task(facts) };
    let Some(running) = states.get(&JobState::Running) else { return vec![] };
    // Only elements that such a deployment is about are looked at one by one.
    let mut elements = Ranges::default();
    for (fact, _) in facts.deployed().filter(|(fact, _)| is_wanted(&fact.dot)) {
        if let Some(about) = &fact.elements {
            elements.extend(&about.intersection(running));
        }
    }
    elements.iter().flat_map(|element| of_task(&facts.task(Some(element)))).collect()
}
