//! The spawner's own process: one thread, one loop.
//!
//! Uses nothing of the executor's runtime. Requests come and endings go over one socket
//! (frame.rs); children are reaped when SIGCHLD says so. Everything is done before it waits
//! again, so there is no state between two waits but the tables below.
//! A job whose lease is over is killed as if the executor had asked for it; one whose lease is over
//! before its start is not started. Who stops the spawner itself, or whoever may, keeps it from
//! that; and when a machine that was suspended goes on, a job may run for the moment that it takes
//! to kill it.
//! Law: an ending is told when the job's main process was reaped, its cgroup is empty where it has
//! one, and no child of the spawner belongs to the job any more.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{ControlMessageOwned, MsgFlags};
use nix::unistd::Pid;

use super::clone::{Failure, Step};
use super::frame::{self, Ending, Held, JobNumber, Kept, Order, Request};
use super::leases::Leases;
use super::rooms::{Prepared, Rooms};
use super::start::Starter;
use super::sys::{self, Used, Zombie};
use super::tree::{self, Children};
use super::{ATTEMPT_VARIABLE, Mark, raw};
use crate::runtime::entropy;
use crate::runtime::isolation::Plan;
use crate::runtime::isolation::cgroup;

/// Bytes read from the socket at a time.
const READ_BYTES: usize = 16 << 10;
/// Descriptors that may come beside one piece of a stream: three a frame, with room.
const DESCRIPTORS_PER_READ: usize = 32;
/// How long to wait for a signal before all that is left is killed again.
const KILL_AGAIN_MS: u16 = 50;
/// How long to wait for a signal before a cgroup that was killed is looked at again.
const LOOK_AGAIN_MS: u16 = 1;

struct Job {
    pid: i32,
    attempt: Vec<u8>,
    ended: Option<Used>,
    strays: u32,
    /// The room whose cgroup it began in.
    grouped: Option<u32>,
    held: Held,
    /// How often memory was used up in its cgroup before it began.
    memory_kills: u64,
    /// It was killed as its lease was over.
    lapsed: bool,
}

/// Whose a child is that is no main process.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    Job(JobNumber),
    /// Of some job up to this one.
    UpTo(JobNumber),
}

/// A child that is no main process, once it was seen.
#[derive(Clone, Copy)]
struct Stray {
    owner: Owner,
    killed: bool,
}

impl Job {
    const fn waits_for_its_cgroup(&self) -> bool {
        self.ended.is_some() && self.grouped.is_some()
    }
}

struct Spawner {
    socket: UnixStream,
    signals: SignalFd,
    parent: Pid,
    children: Children,
    starter: Starter,
    rooms: Rooms,
    leases: Leases,
    inbox: Vec<u8>,
    descriptors: VecDeque<OwnedFd>,
    outbox: Vec<u8>,
    jobs: BTreeMap<JobNumber, Job>,
    /// Main processes that were not reaped, and groups of jobs that were not told ended.
    groups: HashMap<i32, JobNumber>,
    strays: HashMap<i32, Stray>,
    last: JobNumber,
    /// Jobs whose main process was reaped and that were not told ended.
    ending: usize,
}

/// Runs until the executor is gone and nothing of its jobs is left.
pub(super) fn run(socket: UnixStream, parent: Pid, plan: Plan, mark: &Mark) -> io::Result<()> {
    sys::close_others(mark.descriptor().into_iter().chain([raw(&socket)]).collect());
    let mut spawner = Spawner::new(socket, parent, plan)?;
    let outcome = spawner.serve();
    spawner.end_all();
    mark.set();
    outcome
}

impl Spawner {
    fn new(socket: UnixStream, parent: Pid, plan: Plan) -> io::Result<Self> {
        sys::quiet_signals()?;
        // A session of its own: no terminal, and Ctrl-C there reaches neither it nor the jobs.
        nix::unistd::setsid()?;
        nix::sys::prctl::set_child_subreaper(true)?;
        nix::sys::prctl::set_name(c"ucp-spawner")?;
        // The guard's end wakes the loop, which then ends; the executor's end closes the socket.
        nix::sys::prctl::set_pdeathsig(Signal::SIGCHLD)?;
        if nix::unistd::getppid() != parent {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let null = File::options().read(true).write(true).open("/dev/null")?;
        nix::unistd::dup2_stdin(&null)?;
        nix::unistd::dup2_stdout(&null)?;
        socket.set_nonblocking(true)?;
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGCHLD);
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let rooms = Rooms::new(plan);
        Ok(Self {
            socket,
            signals: SignalFd::with_flags(&mask, flags)?,
            parent,
            children: Children::of_this_thread(),
            starter: Starter::new(rooms.owner()),
            rooms,
            leases: Leases::new()?,
            inbox: vec![],
            descriptors: VecDeque::new(),
            outbox: vec![],
            jobs: BTreeMap::new(),
            groups: HashMap::new(),
            strays: HashMap::new(),
            last: JobNumber(0),
            ending: 0,
        })
    }

    /// Serves until the executor is gone.
    fn serve(&mut self) -> io::Result<()> {
        loop {
            // The last process of a cgroup may be counted a moment longer than it tells its end.
            let soon = self.ending > 0 && self.jobs.values().any(Job::waits_for_its_cgroup);
            self.wait(soon.then_some(LOOK_AGAIN_MS), true)?;
            if nix::unistd::getppid() != self.parent || !self.receive()? {
                return Ok(());
            }
            self.serve_inbox()?;
            self.end_lapsed();
            self.reap();
            self.sweep();
            self.flush()?;
            self.leases.set_timer()?;
        }
    }

    /// Waits until there is something to do, and takes the signals that came.
    fn wait(&self, millis: Option<u16>, heed: bool) -> io::Result<()> {
        let mut interest = PollFlags::POLLIN;
        interest.set(PollFlags::POLLOUT, !self.outbox.is_empty());
        let mut watched = [
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.socket.as_fd(), interest),
            PollFd::new(self.leases.as_fd(), PollFlags::POLLIN),
        ];
        let count = if heed { 3 } else { 1 };
        let timeout = millis.map_or(PollTimeout::NONE, PollTimeout::from);
        match nix::poll::poll(&mut watched[..count], timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        if watched[0].any() == Some(true) {
            while self.signals.read_signal()?.is_some() {}
        }
        Ok(())
    }

    /// Reads what is there; false when the executor closed its end.
    fn receive(&mut self) -> io::Result<bool> {
        let mut space = nix::cmsg_space!([i32; DESCRIPTORS_PER_READ]);
        let mut bytes = [0; READ_BYTES];
        loop {
            let mut pieces = [IoSliceMut::new(&mut bytes)];
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
            let socket = raw(&self.socket);
            let received =
                nix::sys::socket::recvmsg::<()>(socket, &mut pieces, Some(&mut space), flags);
            let message = match received {
                Ok(message) => message,
                Err(Errno::EAGAIN) => return Ok(true),
                Err(Errno::EINTR) => continue,
                Err(_) => return Ok(false),
            };
            let length = message.bytes;
            for control in message.cmsgs()? {
                if let ControlMessageOwned::ScmRights(descriptors) = control {
                    // SAFETY: the kernel has just made these for us; nobody else owns them.
                    let own = |fd: i32| unsafe { OwnedFd::from_raw_fd(fd) };
                    self.descriptors.extend(descriptors.into_iter().map(own));
                }
            }
            if length == 0 {
                return Ok(false);
            }
            self.inbox.extend_from_slice(&bytes[..length]);
            if length < READ_BYTES && self.descriptors.len() < DESCRIPTORS_PER_READ {
                // Most likely all; if not, the socket is still readable at the next wait.
                return Ok(true);
            }
        }
    }

    fn serve_inbox(&mut self) -> io::Result<()> {
        let inbox = std::mem::take(&mut self.inbox);
        let mut rest = inbox.as_slice();
        while let Some((frame, used)) = frame::split(rest) {
            match frame::request(frame)? {
                Request::Kill { job, signal } => self.kill(job, signal),
                // One that is over stays so.
                Request::Renew { job, until } if self.leases.has(job) => {
                    self.leases.hold(job, until);
                }
                Request::Renew { .. } => {}
                Request::Spawn { job, order } => {
                    let count = usize::from(order.descriptors).min(self.descriptors.len());
                    let taken: Vec<OwnedFd> = self.descriptors.drain(..count).collect();
                    match self.start(&order, &taken) {
                        Ok((pid, prepared)) => self.spawned(job, pid, order, &prepared),
                        Err(Failure { step, errno }) => {
                            self.tell(job, Ending::Failed { step, errno: errno as i32 });
                        }
                    }
                }
            }
            rest = &rest[used..];
        }
        self.inbox = rest.to_vec();
        Ok(())
    }

    fn start(&mut self, order: &Order, taken: &[OwnedFd]) -> Result<(i32, Prepared), Failure> {
        let mut prepared = self.rooms.prepare(order.room.as_ref(), order.memory)?;
        if order.lease.is_some_and(|until| until <= entropy::now().mono) {
            return Err(Failure { step: Step::Lease, errno: Errno::ETIME });
        }
        let confinement = self.rooms.confinement(&prepared);
        let started = match self.starter.start(order, taken, confinement) {
            // The cgroup does not take it. The job begins beside it, and its result says so.
            Err(Failure { step: Step::Process, errno })
                if prepared.held.cgroup == Kept::Yes
                    && self.rooms.has_tree()
                    && !matches!(errno, Errno::EAGAIN | Errno::ENOMEM) =>
            {
                prepared.held.cgroup = Kept::Refused;
                order.room.iter().for_each(|(number, _)| self.rooms.leave(*number));
                let confinement = self.rooms.confinement(&prepared);
                self.starter.start(order, taken, confinement)
            }
            started => started,
        };
        Ok((started?, prepared))
    }

    fn spawned(&mut self, number: JobNumber, pid: i32, order: Order, prepared: &Prepared) {
        self.last = self.last.max(number);
        self.groups.insert(pid, number);
        let Prepared { held, memory_kills, .. } = *prepared;
        let grouped = order.room.map(|(room, _)| room).filter(|_| held.cgroup == Kept::Yes);
        if let Some(until) = order.lease {
            self.leases.hold(number, until);
        }
        let (attempt, lapsed) = (order.attempt, false);
        let job = Job { pid, attempt, ended: None, strays: 0, grouped, held, memory_kills, lapsed };
        self.jobs.insert(number, job);
    }

    /// Kills what has no lease any more.
    fn end_lapsed(&mut self) {
        if self.leases.is_empty() {
            return;
        }
        for number in self.leases.over(entropy::now().mono) {
            if let Some(job) = self.jobs.get_mut(&number).filter(|job| job.ended.is_none()) {
                job.lapsed = true;
                self.kill(number, libc::SIGKILL);
            }
        }
    }

    fn kill(&mut self, number: JobNumber, signal: i32) {
        let Some(job) = self.jobs.get(&number) else { return };
        if job.ended.is_some() {
            return;
        }
        // The main process by itself too, as it may have left its group.
        sys::kill(-job.pid, signal);
        sys::kill(job.pid, signal);
        let Some(group) = job.grouped.and_then(|room| self.rooms.group(room)) else { return };
        if signal == libc::SIGKILL {
            return group.kill();
        }
        for pid in group.processes() {
            if pid != job.pid && tree::group_of(pid) != Some(job.pid) {
                sys::kill(pid, signal);
            }
        }
    }

    /// Reaps every child that ended. A main process takes its group with it: it is still a zombie
    /// then, so that the group's number cannot be another's.
    fn reap(&mut self) {
        while let Zombie::Of(pid) = sys::next_zombie() {
            let number = self.groups.get(&pid).copied();
            let main = number.filter(|number| {
                self.jobs.get(number).is_some_and(|job| job.pid == pid && job.ended.is_none())
            });
            if main.is_some() {
                sys::kill(-pid, libc::SIGKILL);
            }
            let used = sys::reap(pid);
            self.strays.remove(&pid);
            if let Some(job) = main.and_then(|number| self.jobs.get_mut(&number)) {
                job.ended = Some(used);
                main.into_iter().for_each(|number| self.leases.forget(number));
                self.ending += 1;
                let group = job.grouped.and_then(|room| self.rooms.group(room));
                if let Some(group) = group.filter(|group| !group.is_empty()) {
                    let left = group.processes();
                    let known: BTreeSet<i32> = self.children.list().into_iter().collect();
                    // Those that are children already are counted when they are looked through.
                    let unseen = left.iter().filter(|left| !known.contains(left)).count();
                    job.strays += u32::try_from(unseen).unwrap_or(u32::MAX);
                    group.kill();
                }
            }
        }
    }

    /// Kills what ended jobs left behind, and tells those ended of which nothing is left.
    fn sweep(&mut self) {
        if self.ending == 0 {
            return;
        }
        let is_main = |pid: &i32| {
            let job = self.groups.get(pid).and_then(|number| self.jobs.get(number));
            job.is_some_and(|job| job.pid == *pid && job.ended.is_none())
        };
        let found: Vec<i32> =
            self.children.list().into_iter().filter(|pid| !is_main(pid)).collect();
        let mut held: Vec<JobNumber> = vec![];
        for pid in found {
            let owner = self.owner_of(pid);
            let doomed = match owner {
                Owner::Job(number) => self.jobs.get(&number).is_none_or(|job| job.ended.is_some()),
                Owner::UpTo(last) => self.jobs.range(..=last).all(|(_, job)| job.ended.is_some()),
            };
            let before = self.strays.insert(pid, Stray { owner, killed: doomed });
            if !doomed {
                continue;
            }
            sys::kill(pid, libc::SIGKILL);
            let killed = before.is_some_and(|stray| stray.killed);
            match owner {
                Owner::Job(number) => {
                    held.push(number);
                    if let Some(job) = self.jobs.get_mut(&number).filter(|_| !killed) {
                        job.strays += 1;
                    }
                }
                Owner::UpTo(last) => {
                    held.extend(self.jobs.range(..=last).map(|(number, _)| *number));
                }
            }
        }
        self.tell_ended(&held);
    }

    fn owner_of(&self, pid: i32) -> Owner {
        let known = self.strays.get(&pid).map(|stray| stray.owner);
        if let Some(known @ Owner::Job(_)) = known {
            return known;
        }
        let by_group = || self.groups.get(&tree::group_of(pid)?).copied();
        let by_attempt = || {
            let attempt = tree::environment(pid, ATTEMPT_VARIABLE)?;
            let named = |(_, job): &(&JobNumber, &Job)| job.attempt == attempt;
            self.jobs.iter().find(named).map(|(number, _)| *number)
        };
        let by_cgroup = || {
            let room = cgroup::room_of(pid)?;
            let grouped = |(_, job): &(&JobNumber, &Job)| job.grouped == Some(room);
            self.jobs.iter().find(grouped).map(|(number, _)| *number)
        };
        match by_group().or_else(by_attempt).or_else(by_cgroup) {
            Some(number) => Owner::Job(number),
            None => known.unwrap_or(Owner::UpTo(self.last)),
        }
    }

    fn tell_ended(&mut self, held: &[JobNumber]) {
        let over = |(number, job): (&JobNumber, &Job)| {
            let used = job.ended.filter(|_| !held.contains(number))?;
            let group = job.grouped.and_then(|room| self.rooms.group(room));
            let empty = group.is_none_or(cgroup::Group::is_empty);
            let kills = group.map_or(0, cgroup::Group::memory_kills);
            empty.then_some((*number, used, kills > job.memory_kills))
        };
        let over: Vec<_> = self.jobs.iter().filter_map(over).collect();
        for (number, used, out_of_memory) in over {
            let Some(job) = self.jobs.remove(&number) else { continue };
            // The number may be another job's by now.
            if self.groups.get(&job.pid) == Some(&number) {
                self.groups.remove(&job.pid);
            }
            self.ending -= 1;
            let Used { status, cpu_us, memory_max } = used;
            let Job { strays, held, lapsed, .. } = job;
            self.tell(
                number,
                Ending::Exited { status, cpu_us, memory_max, strays, out_of_memory, lapsed, held },
            );
        }
    }

    fn tell(&mut self, job: JobNumber, ending: Ending) {
        self.outbox.extend(frame::ended(job, ending));
    }

    /// Writes as much as the socket takes.
    fn flush(&mut self) -> io::Result<()> {
        while !self.outbox.is_empty() {
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            match nix::sys::socket::send(raw(&self.socket), &self.outbox, flags) {
                Ok(sent) => drop(self.outbox.drain(..sent)),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Kills everything, again and again until no child is left.
    fn end_all(&mut self) {
        self.descriptors.clear();
        self.rooms.kill_all();
        for (_, job) in self.jobs.iter().filter(|(_, job)| job.ended.is_none()) {
            sys::kill(-job.pid, libc::SIGKILL);
        }
        loop {
            for pid in self.children.list() {
                sys::kill(pid, libc::SIGKILL);
            }
            loop {
                match sys::next_zombie() {
                    Zombie::NoChild => return,
                    Zombie::NoneYet => break,
                    Zombie::Of(pid) => drop(sys::reap(pid)),
                }
            }
            // An error here only means that everything is killed again at once.
            let _ = self.wait(Some(KILL_AGAIN_MS), false);
        }
    }
}
