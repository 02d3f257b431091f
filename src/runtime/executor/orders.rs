//! The core's orders, carried out in their order.

use std::path::PathBuf;
use std::rc::Rc;

use nix::libc;

use crate::proto::executor::{ExecutorOutput, Kill};
use crate::proto::id::{AttemptId, LogId};
use crate::proto::message::{ExecutorMessage, ResultMessage};
use crate::runtime::process::Job;

use super::session::Session;
use super::{Announce, ExecutorError, Phase, Registration, Shell, blobs, jobs};

impl Shell<'_> {
    /// Carries out every order that the core has.
    pub(super) async fn carry_out(&mut self, announce: Announce<'_>) -> Result<(), ExecutorError> {
        let mut unspooled = vec![];
        while let Some(output) = self.core.poll_output() {
            if let ExecutorOutput::Spool(result) = output {
                unspooled.push(*result);
                continue;
            }
            // Several results cost hardly more than one.
            self.spool(std::mem::take(&mut unspooled)).await;
            self.obey(output, announce)?;
        }
        self.spool(unspooled).await;
        // The core wants no result of those that it does not hold: they were stopped.
        for attempt in std::mem::take(&mut self.ended) {
            self.end_checkpoint(&attempt);
            if !self.core.holds(&attempt) {
                self.forget(&attempt);
            }
        }
        Ok(())
    }

    fn obey(
        &mut self,
        output: ExecutorOutput,
        announce: Announce<'_>,
    ) -> Result<(), ExecutorError> {
        match output {
            ExecutorOutput::Send(message) => self.send(message),
            ExecutorOutput::Run(order) => {
                let job = Rc::new(Job::new(&order, &self.workshop.output));
                if let Some(until) = self.leases.remove(&order.attempt) {
                    job.control.renew(&self.workshop.link, until);
                }
                self.jobs.insert(order.attempt.clone(), Rc::clone(&job));
                jobs::begin(Rc::clone(&self.workshop), order, job, self.sender.clone());
            }
            ExecutorOutput::Kill { attempt, kill } => {
                if let Some(job) = self.jobs.get(&attempt) {
                    let signal = match kill {
                        Kill::Terminate => libc::SIGTERM,
                        Kill::Kill => libc::SIGKILL,
                    };
                    job.control.signal(&self.workshop.link, signal);
                }
            }
            ExecutorOutput::Spool(_) => unreachable!("taken before"),
            ExecutorOutput::Unspool(attempt) => {
                self.unspooled.remove(&attempt);
                if let Err(error) = self.spool.remove(&attempt) {
                    tracing::warn!("{error}; the result is sent once more after a restart");
                }
            }
            ExecutorOutput::Forget(attempt) => {
                self.unspooled.remove(&attempt);
                self.forget(&attempt);
            }
            ExecutorOutput::Lease { attempt, until } => match self.jobs.get(&attempt) {
                Some(job) => job.control.renew(&self.workshop.link, until),
                None => drop(self.leases.insert(attempt, until)),
            },
            ExecutorOutput::Registered(log) => self.registered(log, announce)?,
            // The session may have ended by itself meanwhile, and another be looked for.
            ExecutorOutput::Reconnect { reason } if self.session.is_some() => {
                self.disconnect(&reason);
            }
            ExecutorOutput::Reconnect { .. } => {}
            ExecutorOutput::Drained => self.drained = true,
            ExecutorOutput::Notice(text) => tracing::warn!("{text}"),
        }
        Ok(())
    }

    fn send(&mut self, message: ExecutorMessage) {
        let Some(session) = &self.session else { return };
        match message {
            ExecutorMessage::Result(result) if blobs::is_long(&result) => {
                let (session, output) = (Rc::clone(session), self.workshop.output.clone());
                tokio::task::spawn_local(blobs::send_after_blobs(session, output, result));
            }
            ExecutorMessage::Checkpoint(message) => {
                let job = self.jobs.get(&message.attempt).cloned();
                let directory = &self.workshop.checkpoints.directory;
                self.sending.begin(session, job, directory, message);
            }
            ExecutorMessage::Stopped { ref attempt, .. }
                if self.jobs.get(attempt).is_some_and(|job| job.leaves_state()) =>
            {
                let attempt = attempt.clone();
                let message = self.sending.hold(session, &attempt, message, &self.sender);
                message.iter().for_each(|message| session.send(message));
            }
            message => session.send(&message),
        }
    }

    fn registered(&mut self, log: LogId, announce: Announce<'_>) -> Result<(), ExecutorError> {
        let Some(session) = &self.session else { return Ok(()) };
        self.pause.reset();
        self.told = None;
        let broker = session.address();
        if self.announced {
            tracing::warn!("registered again, with broker {log} at {broker}");
        } else {
            self.announced = true;
            tracing::info!("registered with broker {log} at {broker}");
            let registration = Registration { executor: &self.executor, broker };
            announce(registration).map_err(ExecutorError::Announce)?;
        }
        self.registered = Some(log);
        let Self { supervisor, phase, registered, session, jobs, .. } = self;
        supervisor.ready(in_short(phase, registered.as_ref(), session.as_deref(), jobs.len()));
        Ok(())
    }

    /// Tells the supervisor that the loop turns, and how the executor stands.
    pub(super) fn tell(&mut self) {
        let Self { supervisor, phase, registered, session, jobs, .. } = self;
        let status = || in_short(phase, registered.as_ref(), session.as_deref(), jobs.len());
        supervisor.tell(status);
    }

    /// Makes results durable, on another thread, so that output is taken meanwhile. What the disk
    /// refuses is held in memory and tried again with the next.
    pub(super) async fn spool(&mut self, results: Vec<ResultMessage>) {
        if results.is_empty() && self.unspooled.is_empty() {
            return;
        }
        let mut results = results;
        results.extend(std::mem::take(&mut self.unspooled).into_values());
        let spool = self.spool.clone();
        let directory = &self.workshop.output;
        let outputs: Vec<PathBuf> =
            results.iter().flat_map(|result| blobs::files_of(directory, result)).collect();
        let written = tokio::task::spawn_blocking(move || {
            let written = spool.write(&results, &outputs);
            (written, results)
        });
        let (written, results) = written.await.expect("writing does not panic");
        if let Err(error) = written {
            tracing::error!("{error}; results are held in memory until the disk takes them");
            let held = results.into_iter().map(|result| (result.attempt.clone(), result));
            self.unspooled.extend(held);
            self.spool_error = Some(error);
        }
    }

    /// Removes the checkpoint of an attempt that is over. One that is handed back sends it first.
    fn end_checkpoint(&mut self, attempt: &AttemptId) {
        if let Some(job) = self.jobs.get(attempt).filter(|job| job.has_checkpoint()) {
            let directory = self.workshop.checkpoints.directory.clone();
            let wanted = job.leaves_state() && !self.core.holds(attempt);
            self.sending.end(attempt.clone(), directory, wanted);
        }
    }

    /// Lets go of an attempt, and of the files that it left beside its result.
    pub(super) fn forget(&mut self, attempt: &AttemptId) {
        // One that an earlier life ran may have left any.
        if self.jobs.remove(attempt).is_none_or(|job| job.has_files()) {
            blobs::discard(&self.workshop.output, attempt);
        }
    }
}

/// How the executor stands, in one line for people.
fn in_short(
    phase: &Phase,
    registered: Option<&LogId>,
    session: Option<&Session>,
    attempts: usize,
) -> String {
    let drains = if matches!(phase, Phase::Working) { "" } else { "draining; " };
    let broker = match (registered, session) {
        (Some(log), Some(session)) => format!("joined to {log} at {}", session.address()),
        _ => "looking for a broker".to_owned(),
    };
    format!("{drains}{broker}; attempts here {attempts}")
}
