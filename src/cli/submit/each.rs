//! Many jobs: a filter from lines on stdin to lines on stdout.
//!
//! Starts at once and reads no further ahead than [`limits::UNFINISHED_PER_CLIENT_MAX`] jobs that
//! have not ended: then stdin waits. One connection carries lines and results at one time. Items
//! that are there together are sent together, as the elements of one array (pending.rs). When
//! the broker goes away, whatever has not ended is sent again under the id that it had, so
//! each line is one task, and each result is printed once. A bad line is told with its number and
//! the filter goes on, to end with 65.
//! With `--keep-order` results wait for those of earlier lines (order.rs).
//! With `--out-dir` a result is printed when its files are there; they are fetched on a connection
//! of their own, one job after another.
//! Shape: `index` is the number of the line on stdin, from 1, and the task `ID/NUMBER` where it
//! went with others; a spec that is an array has the numbers of its own elements; blank lines are
//! passed over, unless lines end with NUL (`--null`). A line that is not UTF-8 is the item
//! nevertheless, in base64 in its result line.

mod answers;
mod fetcher;
mod input;
mod maker;
mod order;
mod pending;

use std::collections::{HashMap, VecDeque};
use std::io::{self, IsTerminal};
use std::rc::Rc;

use hyper::Method;
use hyper::body::Bytes;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::cli::exit::Exit;
use crate::cli::output::Outgoing;
use crate::cli::report::{Failure, Reporter, chain};
use crate::proto::id::JobId;
use crate::proto::limits;
use crate::proto::ranges::Ranges;
use crate::runtime::client::{Answer, Body, ClientError};
use crate::runtime::endpoint::Address;
use crate::wire::lines::{LineError, Lines};

use self::answers::unnumbered;
use self::fetcher::Fetcher;
use self::maker::{Made, Maker};
use self::order::Order;
use self::pending::{Line, Shared, Submission};
use super::fetch::OutDir;
use super::flags::JobFlags;
use super::interrupt::{Interrupt, Interrupts};
use super::link::{self, Asked, Link, joined};
use super::progress::Progress;
use super::run;
use super::status::Status;

/// Bytes sent to the broker at one time.
const PIECE_BYTES: usize = 64 << 10;
/// Pieces that wait to be sent.
const PIECES_MAX: usize = 4;

/// What is to be sent.
enum Ready {
    /// A line that goes with those behind it.
    Line(u64),
    Submission(Rc<Submission>),
}

/// Runs the filter to its end.
///
/// # Errors
/// No broker answered for too long, stdin cannot be read, or nobody reads our lines.
pub async fn filter(
    flags: &JobFlags,
    link: &mut Link,
    (status, progress): (Status, Progress),
    reporter: Reporter,
) -> Result<Exit, Failure> {
    let out = flags.out_dir.as_deref().map(OutDir::create).transpose()?;
    let mut interrupts = Interrupts::new()?;
    let spec = run::spec_unless_interrupted(flags, link, &mut interrupts).await?;
    let maker = Maker::new(spec, flags.each.then(|| flags.hole()));
    let shared = Shared::default();
    let mut twin = link.twin();
    let fetcher = out.map(|out| Fetcher::start(out, link.twin()));
    let filter = Filter::new(&shared, maker, flags, reporter, Told { fetcher, status, progress });
    let mut work = std::pin::pin!(filter.run(link));
    let mut cancel = std::pin::pin!(cancel_all(&shared, &mut twin));
    loop {
        let stopping = shared.stopping.get();
        tokio::select! {
            ended = &mut work => {
                return ended.map(|exit| if stopping { Exit::Cancelled } else { exit });
            }
            interrupt = interrupts.next() => {
                let left = shared.sent();
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
    while let Some(submission) = shared.sent_after(last) {
        let job = submission.id;
        let path = format!("/v1/jobs/{job}/cancel");
        match link.ask(Method::POST, &path, None).await {
            Err(failure) if matches!(failure.exit, Exit::Absent | Exit::NoBroker) => {
                tracing::info!("cancel {job}: {}", failure.what);
                tokio::time::sleep(limits::CONNECT_PAUSE_MAX).await;
            }
            Ok(_) | Err(_) => last = Some(submission.last),
        }
    }
    std::future::pending().await
}

/// By what the ends of jobs are told, beside stdout.
struct Told {
    fetcher: Option<Fetcher>,
    status: Status,
    progress: Progress,
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
    /// What waits to be sent, by line.
    ready: VecDeque<Ready>,
    /// What a full queue did not take, and when it is offered again.
    delayed: Vec<Ready>,
    delayed_until: Instant,
    /// Lines that are sent together, at the most.
    chunk_lines: usize,
    /// Lines that are arrays, with their elements that have not ended.
    arrays: HashMap<JobId, (u64, Ranges)>,
    order: Order,
    outgoing: Outgoing,
    status: Status,
    progress: Progress,
    /// Whether what is written to stdout may be on the terminal on which the progress is.
    shares_terminal: bool,
    bad: bool,
    failed: bool,
    /// How the first job whose files could not be fetched makes us end.
    unfetched: Option<Exit>,
}

impl<'a> Filter<'a> {
    fn new(
        shared: &'a Shared,
        maker: Maker,
        flags: &JobFlags,
        reporter: Reporter,
        Told { fetcher, status, progress }: Told,
    ) -> Self {
        let shares_terminal = io::stdout().is_terminal() || flags.status_fd.is_some();
        Self {
            shared,
            maker,
            fetcher,
            detach: flags.detach,
            until: flags.until.word(),
            reporter,
            input: input::read_stdin(),
            lines: if flags.null { Lines::null() } else { Lines::new() },
            input_ended: false,
            ended: false,
            held_bytes: 0,
            ready: VecDeque::new(),
            delayed: vec![],
            delayed_until: Instant::now(),
            chunk_lines: limits::CHUNK_LINES_MAX,
            arrays: HashMap::new(),
            order: Order::new(flags.keep_order),
            outgoing: Outgoing::default(),
            status,
            progress,
            shares_terminal,
            bad: false,
            failed: false,
            unfetched: None,
        }
    }

    async fn run(mut self, link: &mut Link) -> Result<Exit, Failure> {
        loop {
            self.write().await?;
            while !self.ended && self.shared.is_empty() {
                let fetching = self.fetching() > 0;
                tokio::select! {
                    piece = self.input.recv() => self.take_input(piece)?,
                    () = self.shared.stop.notified() => self.stop(),
                    done = fetcher::next(&mut self.fetcher), if fetching => self.fetched(done),
                    () = self.progress.due(), if self.progress.is_on() => self.progress.draw(),
                }
                self.write().await?;
                self.cut_lines();
            }
            if self.is_done() {
                break;
            }
            match self.session(link).await {
                Ok(()) => {}
                Err(Asked::Gone(error)) => link.lose(&chain(&error)),
                Err(Asked::Failed(failure)) => {
                    while let Some(text) = self.order.next_of_rest() {
                        self.put(&text);
                    }
                    self.write().await?;
                    return Err(failure);
                }
            }
        }
        self.progress.finish();
        Ok(match (self.bad, self.unfetched, self.failed) {
            (true, ..) => Exit::Data,
            (false, Some(exit), _) => exit,
            (false, None, true) => Exit::No,
            (false, None, false) => Exit::Done,
        })
    }

    /// Writes all that may be written.
    async fn write(&mut self) -> Result<(), Failure> {
        self.release();
        self.make_way();
        self.outgoing.write().await?;
        self.status.write().await
    }

    /// Takes the progress off a terminal that is about to be written to.
    fn make_way(&mut self) {
        if self.shares_terminal && !(self.outgoing.is_empty() && self.status.len() == 0) {
            self.progress.hide();
        }
    }

    fn is_done(&self) -> bool {
        self.ended
            && self.order.is_empty()
            && self.shared.is_empty()
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
            self.release();
            if self.is_done() {
                return Ok(());
            }
            self.make_way();
            let drawing = self.progress.is_on() && self.outgoing.is_empty();
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
                    Ok(permit) => permit.send(Ok(self.next_piece(&address))),
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
                    // They are earlier lines than all that wait.
                    for ready in self.delayed.drain(..).rev() {
                        self.ready.push_front(ready);
                    }
                }
                () = self.progress.due(), if drawing => self.progress.draw(),
                () = self.shared.stop.notified() => self.stop(),
            }
        }
    }

    /// Everything that has not ended is to be sent on a new connection.
    fn begin_anew(&mut self) {
        self.ready.clear();
        self.delayed.clear();
        for (number, line) in self.shared.pending.borrow().iter() {
            match (&line.submission, self.ready.back()) {
                (None, _) => self.ready.push_back(Ready::Line(*number)),
                (Some(own), Some(Ready::Submission(before))) if Rc::ptr_eq(own, before) => {}
                (Some(own), _) => {
                    self.ready.push_back(Ready::Submission(Rc::clone(own)));
                }
            }
        }
    }

    fn has_room(&self) -> bool {
        let unfinished = self.shared.open();
        self.delayed.is_empty()
            && unfinished < limits::UNFINISHED_PER_CLIENT_MAX
            && self.order.has_room(unfinished + self.fetching())
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
        if self.ended {
            self.progress.complete();
        }
    }

    fn take_line(&mut self, line: &[u8]) {
        let index = self.lines.number();
        let line = match self.maker.line(index, line) {
            Ok(Made::Item(item)) => {
                self.ready.push_back(Ready::Line(index));
                let bytes = item.bytes().len();
                Line { item: Some(item), submission: None, bytes }
            }
            Ok(Made::Job(submission, item)) => {
                let (bytes, submission) = (submission.text.len(), Rc::new(submission));
                self.ready.push_back(Ready::Submission(Rc::clone(&submission)));
                Line { item, submission: Some(submission), bytes }
            }
            Err(error) => return self.tell(index, &Failure::new(Exit::Data, error)),
        };
        self.held_bytes += line.bytes;
        self.shared.pending.borrow_mut().insert(index, line);
        self.progress.submitted(1);
    }

    fn refuse(&mut self, error: &LineError) {
        self.bad = true;
        self.reporter.failure(&Failure::new(Exit::Data, error));
    }

    fn tell(&mut self, index: u64, failure: &Failure) {
        self.tell_lines(&Ranges::one(index), failure);
    }

    fn tell_lines(&mut self, lines: &Ranges, failure: &Failure) {
        self.bad = true;
        let word = if lines.len() == 1 { "line" } else { "lines" };
        let what = format!("{word} {lines}: {}", unnumbered(&failure.what));
        let (hint, problem) = (failure.hint.clone(), failure.problem.clone());
        self.reporter.failure(&Failure { exit: failure.exit, what, hint, problem });
    }

    fn next_piece(&mut self, address: &Address) -> Bytes {
        let (mut submissions, mut bytes) = (vec![], 0);
        while bytes < PIECE_BYTES {
            let submission = match self.ready.pop_front() {
                Some(Ready::Submission(own)) if self.shared.lines_of(&own).is_empty() => continue,
                Some(Ready::Submission(submission)) => submission,
                Some(Ready::Line(first)) => match self.gather(first) {
                    Some(submission) => submission,
                    None => continue,
                },
                None => break,
            };
            submission.send_to(address);
            bytes += submission.text.len();
            submissions.push(submission);
        }
        joined(submissions.iter().map(|submission| &*submission.text))
    }

    /// One submission of a line and of those that wait right behind it.
    fn gather(&mut self, first: u64) -> Option<Rc<Submission>> {
        let mut pending = self.shared.pending.borrow_mut();
        let (mut items, mut bytes, mut next) = (vec![], 0, Some(first));
        while let Some(number) = next.take() {
            if let Some(item) = pending.get(&number).and_then(|line| line.item.clone()) {
                bytes += item.bytes().len();
                items.push((number, item));
            }
            if let Some(Ready::Line(behind)) = self.ready.front()
                && items.len() < self.chunk_lines
                && bytes < PIECE_BYTES
            {
                next = Some(*behind);
                self.ready.pop_front();
            }
        }
        let numbers: Vec<u64> = items.iter().map(|(number, _)| *number).collect();
        if items.is_empty() {
            return None;
        }
        let submission = Rc::new(self.maker.chunk(items));
        for number in numbers {
            if let Some(line) = pending.get_mut(&number) {
                line.submission = Some(Rc::clone(&submission));
            }
        }
        Some(submission)
    }

    /// Reads no more, and forgets what was never sent.
    fn stop(&mut self) {
        // A full queue took none of those.
        for ready in std::mem::take(&mut self.delayed) {
            if let Ready::Submission(own) = ready {
                own.sent.set(false);
            }
        }
        self.shared.forget_unsent();
        self.ready.retain(|ready| matches!(ready, Ready::Submission(own) if own.sent.get()));
        (self.input_ended, self.ended) = (true, true);
        self.progress.stop(self.shared.open() as u64);
    }
}

fn early(address: &Address) -> Asked {
    let what = "broker ended its answer before all jobs did".to_owned();
    Asked::Gone(ClientError::Unknown { address: address.clone(), what })
}

async fn next_of(answer: &mut Option<Answer>) -> Result<Option<String>, ClientError> {
    match answer {
        Some(answer) => answer.next().await,
        None => std::future::pending().await,
    }
}
