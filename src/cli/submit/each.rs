//! Many jobs: a filter from lines on stdin to lines on stdout.
//!
//! Starts at once and reads no further ahead than [`limits::UNFINISHED_PER_CLIENT_MAX`] jobs that
//! have not ended: then stdin waits. One connection carries lines and results at one time. When
//! the broker goes away, every line that has not ended is sent again under the id that it had, so
//! each is one job, and each result is printed once. A bad line is told with its number and the
//! filter goes on, to end with 65.
//! Shape: `index` is the number of the line on stdin, from 1; blank lines are passed over.

mod maker;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read};

use hyper::Method;
use hyper::body::Bytes;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use crate::cli::exit::Exit;
use crate::cli::output::Outgoing;
use crate::cli::report::{Failure, Reporter, chain};
use crate::proto::id::JobId;
use crate::proto::limits;
use crate::proto::view::JobState;
use crate::runtime::client::{Answer, Body, ClientError};
use crate::wire::lines::{LineError, Lines};
use crate::wire::problem::Problem;

use self::maker::Maker;
use super::flags::JobFlags;
use super::interrupt::{Interrupt, Interrupts};
use super::link::{self, Asked, Link, joined};
use super::{line, run};

/// Bytes read from stdin or sent to the broker at one time.
const PIECE_BYTES: usize = 64 << 10;
/// Pieces that wait to be sent, or to be cut into lines.
const PIECES_MAX: usize = 4;

/// A job that was read and has not ended.
struct Pending {
    id: JobId,
    /// The line that submits it.
    text: String,
    item: Option<String>,
    sent: bool,
}

/// What the filter and whoever stops it both see. All on one thread, never held over a wait.
#[derive(Default)]
struct Shared {
    pending: RefCell<BTreeMap<u64, Pending>>,
    stopping: Cell<bool>,
    stop: Notify,
}

/// Runs the filter to its end.
///
/// # Errors
/// No broker answered for too long, stdin cannot be read, or nobody reads our lines.
pub async fn filter(
    flags: &JobFlags,
    link: &mut Link,
    reporter: Reporter,
) -> Result<Exit, Failure> {
    let maker = Maker::new(run::spec(flags, link).await?, flags.each);
    let shared = Shared::default();
    let mut interrupts = Interrupts::new()?;
    let mut twin = link.twin();
    let mut work = std::pin::pin!(Filter::new(&shared, maker, flags.detach, reporter).run(link));
    let mut cancel = std::pin::pin!(cancel_all(&shared, &mut twin));
    loop {
        let stopping = shared.stopping.get();
        tokio::select! {
            ended = &mut work => {
                return ended.map(|exit| if stopping { Exit::Cancelled } else { exit });
            }
            interrupt = interrupts.next() => {
                let left = shared.pending.borrow().len();
                if interrupt == Interrupt::Detach || stopping {
                    let what = format_args!("outcome unknown: detached, {left} jobs go on");
                    return Err(Failure::new(Exit::Unknown, what)
                        .hint("'ucp-submit list' shows them"));
                }
                shared.stopping.set(true);
                shared.stop.notify_one();
                reporter.note(format_args!("cancelling {left} jobs; Ctrl-C again leaves them"));
            }
            () = &mut cancel, if stopping => {}
        }
    }
}

/// Cancels whatever has not ended, and then never comes back.
async fn cancel_all(shared: &Shared, link: &mut Link) {
    let jobs: Vec<_> = shared.pending.borrow().iter().map(|(k, job)| (*k, job.id)).collect();
    for (index, job) in jobs {
        if shared.pending.borrow().contains_key(&index) {
            let path = format!("/v1/jobs/{job}/cancel");
            let asked = link.ask(Method::POST, &path, None).await;
            asked.map_or_else(|failure| tracing::info!("cancel {job}: {}", failure.what), drop);
        }
    }
    std::future::pending().await
}

/// The filter: what it has read, sent, and has yet to print.
struct Filter<'a> {
    shared: &'a Shared,
    maker: Maker,
    detach: bool,
    reporter: Reporter,
    input: mpsc::Receiver<io::Result<Bytes>>,
    lines: Lines,
    /// Whether stdin has ended; a last line without its end may still be in `lines`.
    input_ended: bool,
    /// Whether no line will come any more.
    ended: bool,
    held_bytes: usize,
    /// Numbers of lines that wait to be sent.
    ready: VecDeque<u64>,
    /// Lines that a full queue did not take, and when they are offered again.
    delayed: Vec<u64>,
    delayed_until: Instant,
    outgoing: Outgoing,
    bad: bool,
    failed: bool,
}

impl<'a> Filter<'a> {
    fn new(shared: &'a Shared, maker: Maker, detach: bool, reporter: Reporter) -> Self {
        Self {
            shared,
            maker,
            detach,
            reporter,
            input: read_stdin(),
            lines: Lines::new(),
            input_ended: false,
            ended: false,
            held_bytes: 0,
            ready: VecDeque::new(),
            delayed: vec![],
            delayed_until: Instant::now(),
            outgoing: Outgoing::default(),
            bad: false,
            failed: false,
        }
    }

    async fn run(mut self, link: &mut Link) -> Result<Exit, Failure> {
        loop {
            self.outgoing.write().await?;
            while !self.ended && self.shared.pending.borrow().is_empty() {
                tokio::select! {
                    piece = self.input.recv() => self.take_input(piece)?,
                    () = self.shared.stop.notified() => self.stop(),
                }
                self.cut_lines();
            }
            if self.is_done() {
                break;
            }
            match self.session(link).await {
                Ok(()) => {}
                Err(Asked::Gone(error)) => link.lose(&chain(&error)),
                Err(Asked::Failed(failure)) => return Err(failure),
            }
        }
        Ok(match (self.bad, self.failed) {
            (true, _) => Exit::Data,
            (false, true) => Exit::No,
            (false, false) => Exit::Done,
        })
    }

    fn is_done(&self) -> bool {
        self.ended && self.shared.pending.borrow().is_empty() && self.outgoing.is_empty()
    }

    /// One connection from its beginning until everything has ended or the broker goes away.
    async fn session(&mut self, link: &mut Link) -> Result<(), Asked> {
        let mut client = link.take().await.map_err(Asked::Failed)?;
        let address = client.address().clone();
        let (pieces, body) = mpsc::channel(PIECES_MAX);
        self.begin_anew();
        let path = if self.detach { "/v1/jobs" } else { "/v1/jobs?until=accepted" };
        let mut head = std::pin::pin!(client.ask(Method::POST, path, Body::lines(body)));
        let mut silence = std::pin::pin!(link::silence(&address, link.answer_within()));
        let mut answer: Option<Answer> = None;
        loop {
            self.cut_lines();
            if self.is_done() {
                return Ok(());
            }
            let room = self.has_room() && !self.input_ended && !self.shared.stopping.get();
            let listening = self.outgoing.len() < limits::OUTGOING_BYTES_MAX;
            let (sending, writing) = (!self.ready.is_empty(), !self.outgoing.is_empty());
            let (until, waiting) = (self.delayed_until, !self.delayed.is_empty());
            tokio::select! {
                response = &mut head, if answer.is_none() => {
                    answer = Some(Answer::new(&address, response?));
                    link.answered();
                }
                error = &mut silence, if answer.is_none() => return Err(link.silent(error)),
                text = next_of(&mut answer), if listening => match text? {
                    Some(text) => self.handle(&text)?,
                    // The body is still open: only a broker that stops ends its answer now.
                    None => return Err(early(&address)),
                },
                permit = pieces.reserve(), if sending => match permit {
                    Ok(permit) => permit.send(Ok(self.next_piece())),
                    // Whoever reads the body has gone; the answer tells why.
                    Err(_) => self.ready.clear(),
                },
                piece = self.input.recv(), if room => {
                    self.take_input(piece).map_err(Asked::Failed)?;
                }
                written = self.outgoing.write(), if writing => {
                    written.map_err(|error| Asked::Failed(error.into()))?;
                }
                () = tokio::time::sleep_until(until), if waiting => {
                    self.ready.extend(self.delayed.drain(..));
                }
                () = self.shared.stop.notified() => self.stop(),
            }
        }
    }

    /// Everything that has not ended is to be sent on a new connection.
    fn begin_anew(&mut self) {
        self.ready = self.shared.pending.borrow().keys().copied().collect();
        self.delayed.clear();
    }

    fn has_room(&self) -> bool {
        self.delayed.is_empty()
            && self.shared.pending.borrow().len() < limits::UNFINISHED_PER_CLIENT_MAX
            && self.held_bytes < limits::UNFINISHED_BYTES_MAX
    }

    fn take_input(&mut self, piece: Option<io::Result<Bytes>>) -> Result<(), Failure> {
        match piece {
            Some(Ok(bytes)) => self.lines.push(&bytes),
            Some(Err(error)) => return Err(Failure::io("cannot read stdin", &error)),
            None => self.input_ended = true,
        }
        Ok(())
    }

    /// Makes jobs of the lines that were read, as far as there is room.
    fn cut_lines(&mut self) {
        while !self.ended && self.has_room() {
            let next = match self.lines.next() {
                None if self.input_ended => {
                    self.ended = true;
                    self.lines.rest()
                }
                next => next,
            };
            match next {
                Some(Ok(text)) => self.take_line(&text),
                Some(Err(error)) => self.refuse(&error),
                None => break,
            }
        }
    }

    fn take_line(&mut self, text: &str) {
        let index = self.lines.number();
        match self.maker.job(index, text) {
            Ok(job) => {
                self.held_bytes += job.text.len();
                self.shared.pending.borrow_mut().insert(index, job);
                self.ready.push_back(index);
            }
            Err(error) => self.tell(index, &Failure::new(Exit::Data, error)),
        }
    }

    fn refuse(&mut self, error: &LineError) {
        self.bad = true;
        self.reporter.failure(&Failure::new(Exit::Data, error));
    }

    fn tell(&mut self, index: u64, failure: &Failure) {
        self.bad = true;
        let what = format!("line {index}: {}", unnumbered(&failure.what));
        let (hint, problem) = (failure.hint.clone(), failure.problem.clone());
        self.reporter.failure(&Failure { exit: failure.exit, what, hint, problem });
    }

    fn next_piece(&mut self) -> Bytes {
        let mut pending = self.shared.pending.borrow_mut();
        let (mut indices, mut bytes) = (vec![], 0);
        while let Some(index) = self.ready.pop_front() {
            if let Some(job) = pending.get_mut(&index) {
                job.sent = true;
                bytes += job.text.len();
                indices.push(index);
            }
            if bytes >= PIECE_BYTES {
                break;
            }
        }
        joined(indices.iter().filter_map(|index| Some(pending.get(index)?.text.as_str())))
    }

    fn handle(&mut self, text: &str) -> Result<(), Asked> {
        let head = line::head(text).map_err(Asked::Failed)?;
        match (&*head.kind, head.index) {
            ("submitted", Some(index)) if self.detach => {
                if let (Some(_), Some(job)) = (self.finish(index), head.job) {
                    self.outgoing.push(&job.to_string());
                }
            }
            ("result", Some(index)) => {
                let Some(job) = self.finish(index) else { return Ok(()) };
                self.failed |= head.state != Some(JobState::Succeeded);
                match &job.item {
                    Some(item) => self.outgoing.push(&line::with_member(text, "item", item)),
                    None => self.outgoing.push(text),
                }
            }
            ("problem", index) => {
                let problem: Problem = line::read(text).map_err(Asked::Failed)?;
                self.handle_problem(problem, index)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn handle_problem(&mut self, problem: Problem, index: Option<u64>) -> Result<(), Asked> {
        let full = problem.code == "queue-full";
        let failure = Failure::from(ClientError::Refused(Box::new(problem)));
        let Some(index) = index else { return Err(Asked::Failed(failure)) };
        if full {
            if self.delayed.is_empty() {
                self.delayed_until = Instant::now() + limits::QUEUE_FULL_PAUSE;
                tracing::info!("{}: offered again later", failure.what);
            }
            self.delayed.push(index);
        } else if self.finish(index).is_some() {
            self.tell(index, &failure);
        }
        Ok(())
    }

    fn finish(&mut self, index: u64) -> Option<Pending> {
        let job = self.shared.pending.borrow_mut().remove(&index)?;
        self.held_bytes -= job.text.len();
        Some(job)
    }

    /// Reads no more, and forgets what was never sent.
    fn stop(&mut self) {
        self.shared.pending.borrow_mut().retain(|_, job| job.sent);
        (self.input_ended, self.ended) = (true, true);
        self.delayed.clear();
    }
}

/// What the broker says of a line, without its own number for it: ours is that on stdin.
fn unnumbered(what: &str) -> &str {
    let parts = what.strip_prefix("line ").and_then(|rest| rest.split_once(": "));
    let numbered = parts.filter(|(number, _)| number.parse::<u64>().is_ok());
    numbered.map_or(what, |(_, words)| words)
}

fn early(address: &crate::runtime::endpoint::Address) -> Asked {
    let what = "broker ended its answer before all jobs did".to_owned();
    Asked::Gone(ClientError::Unknown { address: address.clone(), what })
}

async fn next_of(answer: &mut Option<Answer>) -> Result<Option<String>, ClientError> {
    match answer {
        Some(answer) => answer.next().await,
        None => std::future::pending().await,
    }
}

/// Reads stdin on a thread of its own, which nobody waits for at the end.
fn read_stdin() -> mpsc::Receiver<io::Result<Bytes>> {
    let (pieces, input) = mpsc::channel(PIECES_MAX);
    std::thread::spawn(move || {
        let mut stdin = io::stdin().lock();
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            let read = match stdin.read(&mut piece) {
                Ok(0) => break,
                Ok(length) => Ok(Bytes::copy_from_slice(&piece[..length])),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
            let failed = read.is_err();
            if pieces.blocking_send(read).is_err() || failed {
                break;
            }
        }
    });
    input
}

#[cfg(test)]
mod tests {
    use super::unnumbered;

    #[test]
    fn a_line_has_one_number() {
        assert_eq!(unnumbered("line 4: a job is over"), "a job is over");
        assert_eq!(unnumbered("line x: y"), "line x: y");
        assert_eq!(unnumbered("no job"), "no job");
    }
}
