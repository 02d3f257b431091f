//! Many jobs: a filter from lines on stdin to lines on stdout.
//!
//! Starts at once and reads no further ahead than [`limits::UNFINISHED_PER_CLIENT_MAX`] jobs that
//! have not ended: then stdin waits. One connection carries lines and results at one time. When
//! the broker goes away, every line that has not ended is sent again under the id that it had, so
//! each is one job, and each result is printed once. A bad line is told with its number and the
//! filter goes on, to end with 65.
//! With `--out-dir` a result is printed when its files are there; they are fetched on a connection
//! of their own, one job after another.
//! Shape: `index` is the number of the line on stdin, from 1; blank lines are passed over. A line
//! that is not UTF-8 is the item nevertheless, in base64 in its result line.

mod fetcher;
mod maker;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::Method;
use hyper::body::Bytes;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use crate::cli::exit::Exit;
use crate::cli::output::Outgoing;
use crate::cli::report::{Failure, Reporter, chain};
use crate::proto::id::JobId;
use crate::proto::limits;
use crate::proto::text::Text;
use crate::proto::view::JobState;
use crate::runtime::client::{Answer, Body, ClientError};
use crate::wire::lines::{LineError, Lines};
use crate::wire::problem::Problem;

use self::fetcher::{Fetched, Fetcher};
use self::maker::Maker;
use super::fetch::OutDir;
use super::flags::JobFlags;
use super::interrupt::{Interrupt, Interrupts};
use super::link::{self, Asked, Link, joined};
use super::status::Status;
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
    item: Option<Text>,
    sent: bool,
}

/// What the filter and whoever stops it both see. All on one thread, never held over a wait.
#[derive(Default)]
struct Shared {
    pending: RefCell<BTreeMap<u64, Pending>>,
    stopping: Cell<bool>,
    stop: Notify,
}

impl Shared {
    /// A job that a broker may know and that has not ended.
    fn sent_after(&self, last: Option<u64>) -> Option<(u64, JobId)> {
        let pending = self.pending.borrow();
        let from = last.map_or(0, |last| last + 1);
        pending.range(from..).find(|(_, job)| job.sent).map(|(index, job)| (*index, job.id))
    }
}

/// Runs the filter to its end.
///
/// # Errors
/// No broker answered for too long, stdin cannot be read, or nobody reads our lines.
pub async fn filter(
    flags: &JobFlags,
    link: &mut Link,
    status: Status,
    reporter: Reporter,
) -> Result<Exit, Failure> {
    let out = flags.out_dir.as_deref().map(OutDir::create).transpose()?;
    let mut interrupts = Interrupts::new()?;
    let spec = run::spec_unless_interrupted(flags, link, &mut interrupts).await?;
    let maker = Maker::new(spec, flags.each);
    let shared = Shared::default();
    let mut twin = link.twin();
    let fetcher = out.map(|out| Fetcher::start(out, link.twin()));
    let filter = Filter::new(&shared, maker, (fetcher, status), flags, reporter);
    let mut work = std::pin::pin!(filter.run(link));
    let mut cancel = std::pin::pin!(cancel_all(&shared, &mut twin));
    loop {
        let stopping = shared.stopping.get();
        tokio::select! {
            ended = &mut work => {
                return ended.map(|exit| if stopping { Exit::Cancelled } else { exit });
            }
            interrupt = interrupts.next() => {
                let left = shared.pending.borrow().values().filter(|job| job.sent).count();
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

/// Cancels whatever may be known to a broker and has not ended, and then never comes back. One
/// whose submission is still under way, or whose broker is away, is asked for again.
async fn cancel_all(shared: &Shared, link: &mut Link) {
    let mut last = None;
    while let Some((index, job)) = shared.sent_after(last) {
        let path = format!("/v1/jobs/{job}/cancel");
        match link.ask(Method::POST, &path, None).await {
            Err(failure) if matches!(failure.exit, Exit::Absent | Exit::NoBroker) => {
                tracing::info!("cancel {job}: {}", failure.what);
                tokio::time::sleep(limits::CONNECT_PAUSE_MAX).await;
            }
            Ok(_) | Err(_) => last = Some(index),
        }
    }
    std::future::pending().await
}

/// The filter: what it has read, sent, and has yet to print.
struct Filter<'a> {
    shared: &'a Shared,
    maker: Maker,
    fetcher: Option<Fetcher>,
    detach: bool,
    until: &'static str,
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
    status: Status,
    bad: bool,
    failed: bool,
    /// How the first job whose files could not be fetched makes us end.
    unfetched: Option<Exit>,
}

impl<'a> Filter<'a> {
    fn new(
        shared: &'a Shared,
        maker: Maker,
        (fetcher, status): (Option<Fetcher>, Status),
        flags: &JobFlags,
        reporter: Reporter,
    ) -> Self {
        Self {
            shared,
            maker,
            fetcher,
            detach: flags.detach,
            until: flags.until.word(),
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
            status,
            bad: false,
            failed: false,
            unfetched: None,
        }
    }

    async fn run(mut self, link: &mut Link) -> Result<Exit, Failure> {
        loop {
            self.outgoing.write().await?;
            self.status.write().await?;
            while !self.ended && self.shared.pending.borrow().is_empty() {
                let fetching = self.fetching() > 0;
                tokio::select! {
                    piece = self.input.recv() => self.take_input(piece)?,
                    () = self.shared.stop.notified() => self.stop(),
                    done = fetcher::next(&mut self.fetcher), if fetching => self.fetched(done),
                }
                self.outgoing.write().await?;
                self.status.write().await?;
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
        Ok(match (self.bad, self.unfetched, self.failed) {
            (true, ..) => Exit::Data,
            (false, Some(exit), _) => exit,
            (false, None, true) => Exit::No,
            (false, None, false) => Exit::Done,
        })
    }

    fn is_done(&self) -> bool {
        self.ended
            && self.shared.pending.borrow().is_empty()
            && self.outgoing.is_empty()
            && self.status.len() == 0
            && self.fetching() == 0
    }

    /// Jobs that have ended and whose files are still to come.
    fn fetching(&self) -> usize {
        self.fetcher.as_ref().map_or(0, Fetcher::waiting)
    }

    /// Whether results are taken: their reader keeps up, and so does what fetches their files.
    fn is_listening(&self) -> bool {
        let most = self.outgoing.len().max(self.status.len());
        most < limits::OUTGOING_BYTES_MAX && self.fetching() < limits::FETCHES_WAITING_MAX
    }

    /// One connection from its beginning until everything has ended or the broker goes away.
    async fn session(&mut self, link: &mut Link) -> Result<(), Asked> {
        let taken = tokio::select! {
            biased;
            client = link.take() => client,
            // What was never sent is forgotten; perhaps nothing is left to wait for.
            () = self.shared.stop.notified() => {
                self.stop();
                return Ok(());
            }
        };
        let mut client = taken.map_err(Asked::Failed)?;
        let address = client.address().clone();
        let (pieces, body) = mpsc::channel(PIECES_MAX);
        self.begin_anew();
        let until = format!("/v1/jobs?until={}", self.until);
        let path = if self.detach { "/v1/jobs" } else { &until };
        let mut head = std::pin::pin!(client.ask(Method::POST, path, Body::lines(body)));
        let mut silence = std::pin::pin!(link::silence(&address, link.answer_within()));
        let mut answer: Option<Answer> = None;
        loop {
            self.cut_lines();
            if self.is_done() {
                return Ok(());
            }
            let room = self.has_room() && !self.input_ended && !self.shared.stopping.get();
            let (listening, fetching) = (self.is_listening(), self.fetching() > 0);
            let (sending, writing) = (!self.ready.is_empty(), !self.outgoing.is_empty());
            let telling = self.status.len() > 0;
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
                told = self.status.write(), if telling => told.map_err(Asked::Failed)?,
                fetched = fetcher::next(&mut self.fetcher), if fetching => self.fetched(fetched),
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
            let next = match self.lines.next_bytes() {
                None if self.input_ended => {
                    self.ended = true;
                    self.lines.rest_bytes()
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

    fn take_line(&mut self, line: &[u8]) {
        let index = self.lines.number();
        match self.maker.job(index, line) {
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
                self.take_result(index, with_item(text, job.item.as_ref()))
                    .map_err(Asked::Failed)?;
            }
            ("problem", index) => {
                let problem: Problem = line::read(text).map_err(Asked::Failed)?;
                self.handle_problem(problem, index)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Prints a result, once its files are here.
    fn take_result(&mut self, index: u64, text: String) -> Result<(), Failure> {
        let ready = match &mut self.fetcher {
            Some(fetcher) => fetcher.take(index, text)?,
            None => Some(text),
        };
        if let Some(text) = ready {
            self.print(&text);
        }
        Ok(())
    }

    fn fetched(&mut self, fetched: Fetched) {
        if let Some(failure) = fetched.failure {
            let exit = self.reporter.failure(&failure);
            self.unfetched.get_or_insert(exit);
        }
        self.print(&fetched.text);
    }

    fn print(&mut self, text: &str) {
        self.outgoing.push(text);
        self.status.push(text);
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

/// The result line with the item that the job was made of, right behind its number.
fn with_item(text: &str, item: Option<&Text>) -> String {
    let Some(item) = item else { return text.to_owned() };
    match item.as_utf8() {
        Some(item) => line::with_members_after(text, "index", &[("item", item)]),
        None => {
            let item = STANDARD.encode(item.bytes());
            let members = [("item", &*item), ("item_encoding", "base64")];
            line::with_members_after(text, "index", &members)
        }
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
