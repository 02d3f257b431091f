//! Arrays: one submission, and a result line for each element as it ends.
//!
//! The submission carries its own id and is simply repeated until it is acknowledged. The ends of
//! the elements are asked for apart, and asked for anew when the broker starts again: what was
//! printed is not printed twice.
//! With `--keep-order` lines wait for their turn, at most [`HELD_BYTES_MAX`] of them; what has no
//! room is let go and asked for again when its turn comes.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::{self, IsTerminal};

use hyper::Method;

use crate::cli::exit::Exit;
use crate::cli::output::Outgoing;
use crate::cli::report::{Failure, Reporter, chain};
use crate::proto::id::{JobId, TaskId};
use crate::proto::limits;
use crate::proto::ranges::Ranges;
use crate::proto::view::JobState;
use crate::runtime::client::Body;
use crate::wire::api::ResultLine;

use super::fetch::OutDir;
use super::flags::JobFlags;
use super::interrupt::{Interrupt, Interrupts};
use super::line;
use super::link::{Asked, Link};
use super::progress::Progress;
use super::status::Status;
use super::{query, run};

/// Bytes of lines that wait for their turn with `--keep-order`.
const HELD_BYTES_MAX: usize = 64 << 20;

/// Submits an array and prints the result line of each element.
///
/// # Errors
/// No broker answered for too long, it refused, or nobody reads our lines.
pub async fn submit(
    flags: &JobFlags,
    link: &mut Link,
    (mut status, progress): (Status, Progress),
    reporter: Reporter,
) -> Result<Exit, Failure> {
    let out = flags.out_dir.as_deref().map(OutDir::create).transpose()?;
    let mut interrupts = Interrupts::new()?;
    let spec = run::spec_unless_interrupted(flags, link, &mut interrupts).await?;
    let elements = spec.array.clone().unwrap_or_default();
    if flags.detach {
        return run::detach(spec, link, &mut status).await;
    }
    let (id, body) = run::submission(spec)?;
    let (sent, mut twin) = (Cell::new(false), link.twin());
    let mut results = Results::new(id, elements, flags.keep_order, out, (progress, reporter));
    let work = async {
        link.submit("/v1/jobs", &body, &sent).await?;
        results.gather(flags.until.word(), link, &mut status).await
    };
    let mut work = std::pin::pin!(work);
    let mut cancelling = false;
    let cancel = async {
        query::cancel_until_known(id.into(), &mut twin).await;
        std::future::pending::<()>().await;
    };
    let mut cancel = std::pin::pin!(cancel);
    loop {
        tokio::select! {
            ended = &mut work => {
                return ended.map(|exit| if cancelling { Exit::Cancelled } else { exit });
            }
            interrupt = interrupts.next() => match interrupt {
                _ if !sent.get() => {
                    let what = "interrupted before a broker was reached; nothing was submitted";
                    return Err(Failure::new(Exit::Cancelled, what));
                }
                Interrupt::Cancel if !cancelling => {
                    cancelling = true;
                    reporter.note("cancelling the array; press Ctrl-C again to leave it to itself");
                }
                Interrupt::Cancel | Interrupt::Detach => {
                    let what = format_args!("{id}: outcome unknown: detached, the array goes on");
                    return Err(Failure::new(Exit::Unknown, what)
                        .hint(format_args!("'ucp-submit wait {id}' goes on")));
                }
            },
            () = &mut cancel, if cancelling => {}
        }
    }
}

/// The results of an array's elements, as they come in.
pub struct Results {
    job: JobId,
    /// Elements whose line was not taken yet.
    left: Ranges,
    /// Elements whose line is to be printed, in this order, with `--keep-order`.
    turns: Option<Turns>,
    out: Option<OutDir>,
    outgoing: Outgoing,
    progress: Progress,
    /// Whether what is written may be on the terminal on which the progress is.
    shares_terminal: bool,
    reporter: Reporter,
    failed: bool,
    unfetched: Option<Exit>,
}

/// Lines that wait for their turn.
#[derive(Default)]
struct Turns {
    /// Elements that were not printed.
    left: Ranges,
    held: BTreeMap<u64, String>,
    bytes: usize,
}

impl Results {
    /// Nothing has come in.
    pub fn new(
        job: JobId,
        elements: Ranges,
        keep_order: bool,
        out: Option<OutDir>,
        (mut progress, reporter): (Progress, Reporter),
    ) -> Self {
        progress.submitted(elements.len());
        let shares_terminal = io::stdout().is_terminal();
        let turns = keep_order.then(|| Turns { left: elements.clone(), ..Turns::default() });
        let outgoing = Outgoing::default();
        let (failed, unfetched) = (false, None);
        Self {
            job,
            left: elements,
            turns,
            out,
            outgoing,
            progress,
            shares_terminal,
            reporter,
            failed,
            unfetched,
        }
    }

    /// Takes and prints all results.
    ///
    /// # Errors
    /// No broker answered for too long, or nobody reads our lines.
    pub async fn gather(
        &mut self,
        until: &str,
        link: &mut Link,
        status: &mut Status,
    ) -> Result<Exit, Failure> {
        while !self.left.is_empty() {
            match self.listen(until, link, status).await {
                Ok(()) => {}
                Err(Asked::Gone(error)) => link.lose(&chain(&error)),
                Err(Asked::Failed(failure)) => return Err(failure),
            }
        }
        self.print_turns(until, link, status).await?;
        self.write(status).await?;
        self.progress.finish();
        Ok(match (self.unfetched, self.failed) {
            (Some(exit), _) => exit,
            (None, true) => Exit::No,
            (None, false) => Exit::Done,
        })
    }

    /// One answer, to its end.
    async fn listen(
        &mut self,
        until: &str,
        link: &mut Link,
        status: &mut Status,
    ) -> Result<(), Asked> {
        let path = format!("/v1/jobs/{}?until={until}", self.job);
        let mut answer = link.begin(Method::GET, &path, Body::empty()).await?;
        loop {
            let next = tokio::select! {
                next = answer.next() => next?,
                () = self.progress.due(), if self.progress.is_on() => {
                    self.progress.draw();
                    continue;
                }
            };
            let Some(text) = next else { return Ok(()) };
            self.take(text, until, link, status).await.map_err(Asked::Failed)?;
            if self.outgoing.len().max(status.len()) >= limits::OUTGOING_BYTES_MAX / 16 {
                self.write(status).await.map_err(Asked::Failed)?;
            }
            // What is there at once is printed in one go.
            if !answer.has_line() {
                self.write(status).await.map_err(Asked::Failed)?;
            }
        }
    }

    async fn write(&mut self, status: &mut Status) -> Result<(), Failure> {
        let told = self.outgoing.len().max(status.len());
        if told > 0 && (self.shares_terminal || status.len() > 0) {
            self.progress.hide();
        }
        self.outgoing.write().await?;
        status.write().await
    }

    async fn take(
        &mut self,
        text: String,
        until: &str,
        link: &mut Link,
        status: &mut Status,
    ) -> Result<(), Failure> {
        let head = line::head(&text)?;
        let Some(TaskId { element: Some(element), .. }) = head.job else { return Ok(()) };
        if head.kind != "result" || !self.left.contains(element) {
            return Ok(());
        }
        let well = head.state == Some(JobState::Succeeded);
        self.failed |= !well;
        self.progress.ended(well);
        self.left.remove(element);
        let mut turns = self.turns.take();
        match &mut turns {
            None => self.print(&text, link, status).await?,
            Some(turns) if turns.left.first() == Some(element) => {
                turns.left.remove(element);
                self.print(&text, link, status).await?;
            }
            Some(turns) if turns.bytes < HELD_BYTES_MAX => {
                turns.bytes += text.len();
                turns.held.insert(element, text);
            }
            // No room: it is asked for again when its turn comes.
            Some(_) => {}
        }
        self.turns = turns;
        self.print_turns(until, link, status).await
    }

    /// Prints the lines whose turn it is.
    async fn print_turns(
        &mut self,
        until: &str,
        link: &mut Link,
        status: &mut Status,
    ) -> Result<(), Failure> {
        let Some(mut turns) = self.turns.take() else { return Ok(()) };
        while let Some(next) = turns.left.first().filter(|next| !self.left.contains(*next)) {
            let text = match turns.held.remove(&next) {
                Some(text) => {
                    turns.bytes -= text.len();
                    text
                }
                None => {
                    let path = format!("/v1/jobs/{}/{next}?until={until}", self.job);
                    link.twin().ask(Method::GET, &path, None).await?
                }
            };
            turns.left.remove(next);
            self.print(&text, link, status).await?;
        }
        self.turns = Some(turns);
        Ok(())
    }

    /// Prints a line once its files are here.
    async fn print(
        &mut self,
        text: &str,
        link: &mut Link,
        status: &mut Status,
    ) -> Result<(), Failure> {
        if let Some(out) = &self.out {
            let ended: ResultLine = line::read(text)?;
            let below = ended.index.unwrap_or_default().to_string();
            let fetched = if ended.outputs.is_empty() {
                Ok(())
            } else {
                out.fetch(ended.job, Some(&below), &ended.outputs, &mut link.twin()).await
            };
            if let Err(failure) = fetched {
                let exit = self.reporter.failure(&failure);
                self.unfetched.get_or_insert(exit);
            }
        }
        self.outgoing.push(text);
        status.push(text);
        Ok(())
    }
}
