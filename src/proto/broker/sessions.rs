//! Executors come, are silent, and go.
//!
//! A session that closes leaves its seat waiting: for `reconnect_grace`, or not at all where the
//! process is known to be dead. After its own start the broker waits `lost_after` for the
//! executors of attempts that its facts call running. What an executor announces and the facts do
//! not call running is stopped. An attempt that is lost says whether its processes are surely gone.

use std::collections::{BTreeMap, BTreeSet};

use super::fleet::{Assigned, Seat};
use super::{Broker, Timer};
use crate::proto::capability::Needs;
use crate::proto::event::Output;
use crate::proto::fact::Deployed;
use crate::proto::fold::JobFacts;
use crate::proto::id::{AttemptId, Dot, ExecutorId, JobId, SessionId};
use crate::proto::limits;
use crate::proto::message::{BrokerMessage, Hello, SESSION_VERSION};
use crate::proto::ranges::Ranges;
use crate::proto::view::JobState;

/// What is known of the processes of an attempt that is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tree {
    /// None is left.
    Gone,
    /// Some may still run.
    Unproven,
}

impl Tree {
    /// After a restart of an executor: it boots with none, and an executor that begins kills what
    /// the cgroup of its earlier life holds, if that had one.
    fn after_restart(before: Option<&Hello>, hello: &Hello) -> Self {
        let Some(before) = before else { return Self::Unproven };
        let rebooted = before.incarnation.boot != hello.incarnation.boot;
        let swept = before.cgroup.is_some() && hello.cgroup.is_some();
        if rebooted || swept { Self::Gone } else { Self::Unproven }
    }
}

impl Broker {
    /// After a start: makes seats for the executors of a job's running attempts.
    pub(super) fn expect_executors(&mut self, id: JobId) {
        let Some(job) = self.jobs.get(&id) else { return };
        let Some((_, submitted)) = job.facts.submitted() else { return };
        let needs = submitted.spec.needs.clone();
        let running = running(&job.facts);
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

    pub(super) fn open_session(&mut self, session: SessionId, hello: Hello) {
        if let Err((code, detail)) = self.admit(&hello) {
            self.notice(format!("executor {} is refused: {detail}", hello.executor));
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
        let announced: BTreeSet<AttemptId> = hello.attempts.iter().cloned().collect();
        let life = hello.incarnation.life;
        let tree = Tree::after_restart(seat.hello.as_ref(), &hello);
        seat.heard = heard;
        seat.away_until = None;
        seat.draining = false;
        seat.hello = Some(hello);
        self.fleet.sessions.insert(session, executor.clone());
        self.watch_silence(&executor);
        let log = self.log.clone().expect("sessions come after the log is open");
        let heartbeat_max = Some((self.config.suspect_after / 2).into());
        self.send(session, BrokerMessage::Welcome { log, heartbeat_max });
        self.reconcile(session, &executor, (life, tree), &announced);
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
        Err(("executor-in-use", detail))
    }

    /// Brings our books and what the executor announced in line.
    fn reconcile(
        &mut self,
        session: SessionId,
        executor: &ExecutorId,
        (life, tree): (u64, Tree),
        announced: &BTreeSet<AttemptId>,
    ) {
        let Some(seat) = self.fleet.seats.get(executor) else { return };
        let ours: Vec<(AttemptId, Assigned)> =
            seat.assigned.iter().map(|(id, assigned)| (id.clone(), assigned.clone())).collect();
        for (attempt, assigned) in &ours {
            if announced.contains(attempt) {
                if assigned.stopping {
                    let reason = "it counts no more".to_owned();
                    let attempt = attempt.clone();
                    self.send(session, BrokerMessage::Stop { attempt, reason });
                } else if let Some(job) = assigned.job {
                    self.tell_deployed(job, attempt, executor, Some(session));
                }
                continue;
            }
            let Some(job) = assigned.job.filter(|_| !assigned.stopping) else {
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
                self.lose_attempt(job, attempt, executor, "its executor was restarted", tree);
            }
        }
        for attempt in announced {
            if ours.iter().any(|(known, _)| known == attempt) {
                continue;
            }
            let unknown = Assigned { job: None, needs: Needs::default(), stopping: true };
            if let Some(seat) = self.fleet.seats.get_mut(executor) {
                seat.assign(attempt.clone(), unknown);
            }
            let (attempt, reason) = (attempt.clone(), "it counts no more".to_owned());
            self.send(session, BrokerMessage::Stop { attempt, reason });
        }
    }

    fn release_silently(&mut self, executor: &ExecutorId, attempt: &AttemptId) {
        if let Some(seat) = self.fleet.seats.get_mut(executor) {
            seat.release(attempt);
        }
    }

    /// An executor said something.
    pub(super) fn hear(&mut self, executor: &ExecutorId) {
        if let Some(seat) = self.fleet.seats.get_mut(executor) {
            seat.heard = self.now.mono;
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
            let tree = if tree_gone { Tree::Gone } else { Tree::Unproven };
            self.lose_executor(&executor, "its executor's process ended", tree);
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
        self.lose_executor(executor, reason, Tree::Unproven);
    }

    /// Gives an executor up with all that runs there.
    pub(super) fn lose_executor(&mut self, executor: &ExecutorId, reason: &str, tree: Tree) {
        let Some(seat) = self.fleet.remove(executor) else { return };
        if let Some(session) = seat.session {
            self.outputs.push_back(Output::Close { session });
        }
        let running: Vec<(AttemptId, JobId)> = seat
            .assigned
            .iter()
            .filter_map(|(attempt, assigned)| Some((attempt.clone(), assigned.job?)))
            .collect();
        if !running.is_empty() {
            let count = running.len();
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
    let of_task = |task: &JobFacts| -> Vec<_> {
        let named =
            |(fact, deployed): (&_, &Deployed)| (task.attempt_id(fact), deployed.executor.clone());
        task.running().map(named).collect()
    };
    let Some(states) = facts.states() else { return of_task(facts) };
    let Some(running) = states.get(&JobState::Running) else { return vec![] };
    running.iter().flat_map(|element| of_task(&facts.task(Some(element)))).collect()
}
