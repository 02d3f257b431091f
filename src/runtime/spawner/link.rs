//! The executor's end of the socket to its spawner.
//!
//! Starts no process itself. A request is written at once where the socket takes it; what it does
//! not take waits in order. Law: each start is answered by exactly one ending, unless the spawner
//! dies; then every receiver fails and [`Link::died`] returns.

use std::collections::{HashMap, VecDeque};
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::socket::{ControlMessage, MsgFlags};
use nix::unistd::Pid;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{Notify, oneshot, watch};

use super::clone::Step;
use super::frame::{self, Ending, Held, JobNumber};
use super::{Mark, Program, raw};
use crate::proto::isolation::Isolation;
use crate::proto::time::Monotonic;
use crate::runtime::isolation;

/// Bytes read from the socket at a time.
const READ_BYTES: usize = 16 << 10;

/// The link to a spawner; clones are the same link.
#[derive(Debug, Clone)]
pub struct Link {
    shared: Arc<Shared>,
    died: watch::Receiver<bool>,
}

/// A program that was asked for.
#[derive(Debug)]
pub struct Started {
    /// Its number, for [`Link::kill`].
    pub job: JobNumber,
    /// How it ended; fails when the spawner died.
    pub ended: oneshot::Receiver<Ending>,
}

#[derive(Debug)]
struct Shared {
    socket: UnixStream,
    pid: Pid,
    isolation: Isolation,
    /// Open as long as this process lives, for those who look for it.
    _mark: Mark,
    state: Mutex<State>,
    backlog: Notify,
}

#[derive(Debug, Default)]
struct State {
    last: u64,
    waiting: HashMap<JobNumber, oneshot::Sender<Ending>>,
    unsent: VecDeque<Unsent>,
    closed: bool,
}

#[derive(Debug)]
struct Unsent {
    job: JobNumber,
    bytes: Vec<u8>,
    sent: usize,
    descriptors: Vec<OwnedFd>,
}

impl Link {
    /// Takes over the socket; needs a tokio runtime.
    pub(super) fn new(socket: UnixStream, pid: Pid, isolation: Isolation, mark: Mark) -> Self {
        let (report, died) = watch::channel(false);
        let state = Mutex::new(State::default());
        let (backlog, _mark) = (Notify::new(), mark);
        let shared = Arc::new(Shared { socket, pid, isolation, _mark, state, backlog });
        tokio::spawn(Arc::clone(&shared).run(report));
        Self { shared, died }
    }

    /// The spawner's process id.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.shared.pid
    }

    /// What kept a job apart that told this of its start.
    #[must_use]
    pub fn isolation(&self, held: Held) -> Isolation {
        isolation::of_job(&self.shared.isolation, held)
    }

    /// Starts a program. `stdin` is `/dev/null` where absent.
    #[must_use]
    pub fn spawn(
        &self,
        program: &Program<'_>,
        stdout: OwnedFd,
        stderr: OwnedFd,
        stdin: Option<OwnedFd>,
    ) -> Started {
        let mut descriptors = vec![stdout, stderr];
        descriptors.extend(stdin);
        let count = u8::try_from(descriptors.len()).expect("three at the most");
        let (tell, ended) = oneshot::channel();
        let mut state = self.shared.state();
        state.last += 1;
        let job = JobNumber(state.last);
        if !state.closed {
            state.waiting.insert(job, tell);
        }
        let bytes = frame::spawn(job, count, program);
        self.shared.send(&mut state, Unsent { job, bytes, sent: 0, descriptors });
        Started { job, ended }
    }

    /// Sends a signal to all of a job's processes that are known; one that has ended is left alone.
    pub fn kill(&self, job: JobNumber, signal: i32) {
        let bytes = frame::kill(job, signal);
        let mut state = self.shared.state();
        self.shared.send(&mut state, Unsent { job, bytes, sent: 0, descriptors: vec![] });
    }

    /// Lets a job with a lease run until this moment. One whose lease is over is killed all the
    /// same.
    pub fn renew(&self, job: JobNumber, until: Monotonic) {
        let bytes = frame::renew(job, until);
        let mut state = self.shared.state();
        self.shared.send(&mut state, Unsent { job, bytes, sent: 0, descriptors: vec![] });
    }

    /// Returns when the spawner is gone. Everything that it started must be taken for unguarded.
    pub async fn died(&self) {
        let mut died = self.died.clone();
        // An error means that the task that watches the socket is gone, so the spawner is not
        // watched any more: the same to whoever waits here.
        let _ = died.wait_for(|died| *died).await;
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends now, or after what waits already.
    fn send(&self, state: &mut State, mut unsent: Unsent) {
        if state.closed {
            return;
        }
        if state.unsent.is_empty() && self.write(state, &mut unsent) {
            return;
        }
        state.unsent.push_back(unsent);
        self.backlog.notify_one();
    }

    /// Writes what the socket takes; true when nothing of it is left to do.
    fn write(&self, state: &mut State, unsent: &mut Unsent) -> bool {
        while unsent.sent < unsent.bytes.len() {
            let fds: Vec<i32> = unsent.descriptors.iter().map(AsRawFd::as_raw_fd).collect();
            let rights = [ControlMessage::ScmRights(&fds)];
            let control = if fds.is_empty() { &rights[..0] } else { &rights[..] };
            let pieces = [IoSlice::new(&unsent.bytes[unsent.sent..])];
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            let sent = self.socket.try_io(Interest::WRITABLE, || {
                let socket = raw(&self.socket);
                nix::sys::socket::sendmsg::<()>(socket, &pieces, control, flags, None)
                    .map_err(io::Error::from)
            });
            match sent {
                Ok(count) => {
                    unsent.sent += count;
                    unsent.descriptors.clear();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    // Nothing of it was taken if it has begun nowhere; else the reader's end of
                    // the socket tells that the spawner is gone.
                    let errno = error.raw_os_error().unwrap_or(nix::libc::EIO);
                    if let Some(tell) =
                        state.waiting.remove(&unsent.job).filter(|_| unsent.sent == 0)
                    {
                        let _ = tell.send(Ending::Failed { step: Step::Process, errno });
                    }
                    return true;
                }
            }
        }
        true
    }

    fn flush(&self) {
        let mut state = self.state();
        while let Some(mut unsent) = state.unsent.pop_front() {
            if !self.write(&mut state, &mut unsent) {
                state.unsent.push_front(unsent);
                return;
            }
        }
    }

    async fn run(self: Arc<Self>, report: watch::Sender<bool>) {
        let shared = self;
        let mut inbox = vec![];
        loop {
            let waits = !shared.state().unsent.is_empty();
            let interest =
                if waits { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
            tokio::select! {
                ready = shared.socket.ready(interest) => {
                    if ready.is_err() {
                        break shared.close(&report);
                    }
                }
                () = shared.backlog.notified() => {}
            }
            shared.flush();
            match shared.read(&mut inbox) {
                Ok(true) => {}
                Ok(false) => break shared.close(&report),
                Err(error) => {
                    tracing::error!("the spawner is not understood: {error}");
                    break shared.close(&report);
                }
            }
        }
    }

    /// Takes the events that are there; false at the end of the stream.
    fn read(&self, inbox: &mut Vec<u8>) -> io::Result<bool> {
        let mut bytes = [0; READ_BYTES];
        loop {
            match self.socket.try_read(&mut bytes) {
                Ok(0) => return Ok(false),
                Ok(count) => inbox.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(_) => return Ok(false),
            }
            let mut used = 0;
            while let Some((frame, length)) = frame::split(&inbox[used..]) {
                let event = frame::event(frame)?;
                if let Some(tell) = self.state().waiting.remove(&event.job) {
                    // Nobody listens any more where the executor is ending.
                    let _ = tell.send(event.ending);
                }
                used += length;
            }
            inbox.drain(..used);
        }
    }

    fn close(&self, report: &watch::Sender<bool>) {
        let mut state = self.state();
        state.closed = true;
        state.waiting.clear();
        state.unsent.clear();
        report.send_replace(true);
    }
}
