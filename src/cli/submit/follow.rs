//! A job's output as it is written, from the byte after the last that was printed.
//!
//! Asks again when the broker went away. At most one piece of output is held: the broker sends no
//! more than the connection takes, so a slow reader of ours costs no memory. Should another
//! attempt take over, its output is printed from the beginning, and stderr says so.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::Method;

use crate::cli::exit::Exit;
use crate::cli::output;
use crate::cli::report::{self, Failure, Reporter};
use crate::proto::id::{AttemptId, TaskId};
use crate::proto::message::StreamName;
use crate::runtime::client::Body;
use crate::wire::api::{AttemptLine, OutputLine, ResultLine};

use super::line;
use super::link::{Asked, Link};
use super::outcome;

/// How a job ended, as it was told.
#[derive(Debug)]
pub struct Ended {
    /// What is known of it.
    pub line: Box<ResultLine>,
    /// The broker's own words.
    pub text: String,
}

impl Ended {
    /// Reads a result line.
    ///
    /// # Errors
    /// It is none.
    pub fn read(text: String) -> Result<Self, Failure> {
        Ok(Self { line: line::read(&text)?, text })
    }
}

/// Follows a job's output and remembers how much of it was printed.
pub struct Follower {
    job: TaskId,
    attempt: Option<AttemptId>,
    /// Bytes printed of each stream that is wanted.
    stdout: Option<u64>,
    stderr: Option<u64>,
    /// Whether standard error is what was asked for, and so goes to our stdout.
    stderr_is_data: bool,
    reporter: Reporter,
}

impl Follower {
    /// Both streams, each to ours; nothing printed yet.
    pub fn both(job: TaskId, reporter: Reporter) -> Self {
        let (stdout, stderr) = (Some(0), Some(0));
        Self { job, attempt: None, stdout, stderr, stderr_is_data: false, reporter }
    }

    /// One stream, to our standard output; nothing printed yet.
    pub fn one(job: TaskId, stderr: bool, reporter: Reporter) -> Self {
        let (stdout, stderr) = ((!stderr).then_some(0), stderr.then_some(0));
        Self { job, attempt: None, stdout, stderr, stderr_is_data: true, reporter }
    }

    /// Passes output on until the job ends, whatever becomes of the broker meanwhile.
    ///
    /// # Errors
    /// No broker answered for too long, it refused, or nobody reads (then there are no words).
    pub async fn follow(&mut self, link: &mut Link) -> Result<Ended, Failure> {
        loop {
            match self.follow_once(true, link).await {
                Ok(Some(ended)) => return Ok(ended),
                // A broker that stops in order ends its answers without a result.
                Ok(None) => link.lose("the answer ended before the job did"),
                Err(Asked::Gone(error)) => link.lose_question(&error)?,
                Err(Asked::Failed(failure)) => return Err(failure),
            }
        }
    }

    /// Passes on what one answer holds; the result line where the job ended.
    ///
    /// # Errors
    /// Whether the broker went away, or something failed.
    pub async fn follow_once(
        &mut self,
        go_on: bool,
        link: &mut Link,
    ) -> Result<Option<Ended>, Asked> {
        let mut answer = link.begin(Method::GET, &self.path(go_on), Body::empty()).await?;
        while let Some(text) = answer.next().await? {
            let head = line::head(&text).map_err(Asked::Failed)?;
            match &*head.kind {
                "attempt" => {
                    let line: AttemptLine = line::read(&text).map_err(Asked::Failed)?;
                    self.switch(&line.attempt);
                }
                "output" => {
                    let line: OutputLine = line::read(&text).map_err(Asked::Failed)?;
                    self.print(&line).await.map_err(Asked::Failed)?;
                }
                "result" => {
                    let ended = Ended::read(text).map_err(Asked::Failed)?;
                    self.rest(&ended.line).await.map_err(Asked::Failed)?;
                    outcome::tell_cut(&ended.line, self.reporter);
                    // Reading to the end leaves the connection free for the job's files.
                    while let Ok(Some(_)) = answer.next().await {}
                    return Ok(Some(ended));
                }
                _ => {}
            }
        }
        Ok(None)
    }

    fn path(&self, go_on: bool) -> String {
        let mut path = format!("/v1/jobs/{}/output?", self.job);
        let mut add = |name: &str, value: String| path.push_str(&format!("{name}={value}&"));
        if go_on {
            add("follow", "1".to_owned());
        }
        if let Some(from) = self.stdout {
            add("stdout_from", from.to_string());
        }
        if let Some(from) = self.stderr {
            add("stderr_from", from.to_string());
        }
        if let Some(attempt) = &self.attempt {
            add("attempt", attempt.to_string());
        }
        path.truncate(path.len() - 1);
        path
    }

    fn switch(&mut self, attempt: &AttemptId) {
        if self.attempt.as_ref() == Some(attempt) {
            return;
        }
        if self.attempt.is_some() {
            self.reporter.note(format_args!(
                "{}: runs anew as attempt {attempt}; its output follows from the beginning",
                self.job
            ));
        }
        self.attempt = Some(attempt.clone());
        self.stdout = self.stdout.map(|_| 0);
        self.stderr = self.stderr.map(|_| 0);
    }

    async fn print(&mut self, line: &OutputLine) -> Result<(), Failure> {
        let bytes = STANDARD.decode(&line.base64).map_err(|error| {
            Failure::new(Exit::Protocol, format_args!("the broker sent broken output: {error}"))
        })?;
        self.switch(&line.attempt);
        self.put(line.stream, line.offset, &bytes).await
    }

    /// Prints the part of a piece that was not printed before.
    async fn put(&mut self, name: StreamName, offset: u64, bytes: &[u8]) -> Result<(), Failure> {
        let printed = match name {
            StreamName::Stdout => &mut self.stdout,
            StreamName::Stderr => &mut self.stderr,
        };
        let Some(printed) = printed else { return Ok(()) };
        if offset > *printed {
            let missing = offset - *printed;
            self.reporter.note(format_args!("{}: {missing} bytes of output are missing", self.job));
            *printed = offset;
        }
        let known = usize::try_from(*printed - offset).unwrap_or(usize::MAX);
        let Some(fresh) = bytes.get(known..).filter(|fresh| !fresh.is_empty()) else {
            return Ok(());
        };
        match name {
            StreamName::Stderr if !self.stderr_is_data => report::bytes(fresh).await,
            StreamName::Stdout | StreamName::Stderr => output::bytes(fresh).await?,
        }
        *printed += fresh.len() as u64;
        Ok(())
    }

    /// Prints what only the result holds: the executor may have gone before all was passed on.
    async fn rest(&mut self, ended: &ResultLine) -> Result<(), Failure> {
        let Some(attempt) = &ended.attempt else { return Ok(()) };
        self.switch(attempt);
        let streams = [
            (StreamName::Stdout, &ended.stdout, &ended.encoding),
            (StreamName::Stderr, &ended.stderr, &ended.stderr_encoding),
        ];
        for (name, text, encoding) in streams {
            let Some(text) = text else { continue };
            let bytes = match encoding {
                Some(_) => STANDARD.decode(text).unwrap_or_default(),
                None => text.clone().into_bytes(),
            };
            self.put(name, 0, &bytes).await?;
        }
        Ok(())
    }
}
