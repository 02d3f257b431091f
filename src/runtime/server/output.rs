//! `GET /v1/jobs/{id}/output`: what a job wrote, live while it runs.
//!
//! Live pieces are a convenience: they come from the executor past the core and may break off at
//! any moment. The truth is the result: when the job has ended, what is still missing of its
//! streams is sent from the result itself, from the offset that was reached.
//! Law: the pieces of the accepted attempt are, put together, the streams of its result, byte for
//! byte, each byte once, from the offsets that were asked for.

use std::rc::Rc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::Request;
use hyper::body::Incoming;
use tokio::io::AsyncReadExt;

use crate::proto::event::{self, JobRef, Reply};
use crate::proto::id::{AttemptId, ExecutorId, SessionId, TaskId};
use crate::proto::job::JobSpec;
use crate::proto::limits;
use crate::proto::message::StreamName;
use crate::proto::ranges::Ranges;
use crate::proto::result::Stream;
use crate::proto::view::Ended;
use crate::runtime::server::Context;
use crate::runtime::server::answer::{self, Handled, Query};
use crate::runtime::server::body::{Cut, Sink};
use crate::runtime::server::hub::{Answer, Mail};
use crate::runtime::session::follow::{Following, Piece};
use crate::wire::api::{AttemptLine, OutputLine, ResultLine};
use crate::wire::problem::Problem;

/// `GET /v1/jobs/{id}/output?follow=&stdout_from=&stderr_from=&attempt=`.
pub async fn output(context: Rc<Context>, job: JobRef, request: Request<Incoming>) -> Handled {
    let known = ["follow", "stdout_from", "stderr_from", "attempt"];
    let query = Query::parse(request.uri().query(), &known)?;
    let follow = query.flag("follow")?;
    let attempt: Option<AttemptId> = query.value("attempt")?;
    let from = [query.value("stdout_from")?, query.value("stderr_from")?];
    // The first answer decides between a stream and a refusal; a job that waits has none yet.
    let shown = context.ask(event::Request::Show { job }).await?;
    let Reply::Job(view) = shown else { return Err(context.unexpected()) };
    if !follow && view.ended.is_none() {
        let what = format!("job {} has not ended: {}", view.job, view.state.word());
        return Err(Problem::new(409, "not-ended", what).hint("follow=1 sends what comes"));
    }
    let mail = context.hub.open();
    if !view.elements.is_empty() {
        let what = format!("job {} is an array: its elements have output, each its own", view.job);
        let hint = format!("name one, as in {}/{}", view.job, first_of(&view.spec));
        return Err(Problem::new(409, "is-array", what).hint(hint));
    }
    let task = TaskId::new(view.job, view.element);
    let job = JobRef(task.to_string());
    mail.ask(event::Request::Watch { job, attempts: true }).await?;
    let id = task;
    Ok(answer::lines(move |sink| {
        let reach = Reach { attempt, from, wanted: from.map(|from| from.is_some()) };
        Relay { context, mail, sink, job: id, reach, following: None }.serve()
    }))
}

fn first_of(spec: &JobSpec) -> u64 {
    spec.array.as_ref().and_then(Ranges::first).unwrap_or_default()
}

/// How far each stream was sent, and of which attempt.
#[derive(Debug)]
struct Reach {
    attempt: Option<AttemptId>,
    /// Standard output, standard error.
    from: [Option<u64>; 2],
    wanted: [bool; 2],
}

const fn place(stream: StreamName) -> usize {
    match stream {
        StreamName::Stdout => 0,
        StreamName::Stderr => 1,
    }
}

impl Reach {
    /// Turns to an attempt: what was sent of another one does not count for it.
    fn turn_to(&mut self, attempt: &AttemptId) {
        if self.attempt.as_ref() != Some(attempt) {
            self.attempt = Some(attempt.clone());
            self.from = self.wanted.map(|wanted| wanted.then_some(0));
        }
    }

    /// The part of a piece that was not sent yet; `None` where it is not wanted or lies ahead.
    fn cut(&mut self, piece: Piece) -> Option<(u64, String)> {
        let from = self.from[place(piece.stream)].as_mut()?;
        let end = piece.offset.checked_add(piece.size)?;
        if piece.offset > *from || end <= *from {
            return None;
        }
        let offset = *from;
        let skip = usize::try_from(offset - piece.offset).ok()?;
        *from = end;
        if skip == 0 {
            return Some((offset, piece.base64));
        }
        let bytes = STANDARD.decode(&piece.base64).ok()?;
        Some((offset, STANDARD.encode(bytes.get(skip..)?)))
    }
}

struct Relay {
    context: Rc<Context>,
    mail: Mail,
    sink: Sink,
    job: TaskId,
    reach: Reach,
    following: Option<Following>,
}

impl Relay {
    async fn serve(mut self) -> Result<(), Cut> {
        loop {
            self.sink.room().await;
            let piece = async {
                match &self.following {
                    Some(following) => following.next().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                answer = self.mail.next() => match answer? {
                    Answer::Reply(Reply::Deployed { attempt, executor, session, .. }) => {
                        self.begin(&attempt, executor, session);
                    }
                    Answer::Reply(Reply::Ended(ended)) => return self.finish(*ended).await,
                    _ => return Err(Cut("the job is not known any more".into())),
                },
                piece = piece => match piece {
                    Some(piece) => self.pass_on(piece),
                    None => self.following = None,
                },
            }
        }
    }

    fn begin(&mut self, attempt: &AttemptId, executor: ExecutorId, session: Option<SessionId>) {
        self.following = None;
        self.tell_attempt(attempt, executor);
        let [stdout_from, stderr_from] = self.reach.from;
        if stdout_from.is_none() && stderr_from.is_none() {
            return;
        }
        let sessions = &self.context.hub.sessions;
        self.following = session.and_then(|session| {
            Following::start(sessions, session, attempt, stdout_from, stderr_from)
        });
    }

    fn tell_attempt(&mut self, attempt: &AttemptId, executor: ExecutorId) {
        self.reach.turn_to(attempt);
        let attempt = attempt.clone();
        let line = AttemptLine { kind: "attempt".into(), job: self.job, attempt, executor };
        self.sink.line(&line);
    }

    fn pass_on(&mut self, piece: Piece) {
        let (stream, size) = (piece.stream, piece.size);
        if let Some((offset, base64)) = self.reach.cut(piece) {
            self.write(stream, offset, base64);
        }
        if let Some(following) = &mut self.following {
            following.took(size);
        }
    }

    fn write(&self, stream: StreamName, offset: u64, base64: String) {
        let Some(attempt) = self.reach.attempt.clone() else { return };
        self.sink.line(&OutputLine { kind: "output".into(), attempt, stream, offset, base64 });
    }

    /// Sends what is missing of the result's streams, then the result.
    async fn finish(mut self, mut ended: Ended) -> Result<(), Cut> {
        self.following = None;
        self.context.complete(&mut ended).await.map_err(|problem| Cut(problem.detail))?;
        if let Some((_, reported)) = &ended.result {
            if self.reach.attempt.as_ref() != Some(&reported.attempt) {
                self.tell_attempt(&reported.attempt, reported.executor.clone());
            }
            self.send_rest(StreamName::Stdout, &reported.result.stdout).await?;
            self.send_rest(StreamName::Stderr, &reported.result.stderr).await?;
        }
        self.sink.line(&ResultLine::new(&ended, None));
        Ok(())
    }

    async fn send_rest(&self, name: StreamName, stream: &Stream) -> Result<(), Cut> {
        let Some(from) = self.reach.from[place(name)] else { return Ok(()) };
        if from >= stream.size {
            return Ok(());
        }
        let Some(digest) = stream.blob else {
            let bytes = stream.bytes().unwrap_or_default();
            let rest = usize::try_from(from).ok().and_then(|from| bytes.get(from..));
            self.write(name, from, STANDARD.encode(rest.unwrap_or_default()));
            return Ok(());
        };
        let opened = self.context.open_blob(digest, from).await;
        let mut file = opened.map_err(|problem| Cut(problem.detail))?.file;
        let mut offset = from;
        let mut buffer = vec![0; limits::OUTPUT_CHUNK_BYTES];
        while offset < stream.size {
            self.sink.room().await;
            let read = file.read(&mut buffer).await;
            match read.map_err(|error| Cut(format!("blob {digest} cannot be read: {error}")))? {
                0 => return Err(Cut(format!("blob {digest} is shorter than it was"))),
                size => {
                    self.write(name, offset, STANDARD.encode(&buffer[..size]));
                    offset += size as u64;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(seq: u64) -> AttemptId {
        format!("north-00000001.{seq}").parse().expect("an attempt")
    }

    fn piece(offset: u64, bytes: &[u8]) -> Piece {
        let (base64, size) = (STANDARD.encode(bytes), bytes.len() as u64);
        Piece { stream: StreamName::Stdout, offset, base64, size }
    }

    #[test]
    fn each_byte_is_passed_on_once_and_none_is_left_out() {
        let mut reach =
            Reach { attempt: Some(attempt(4)), from: [Some(2), None], wanted: [true, false] };
        let mut cut = |offset, bytes: &[u8]| reach.cut(piece(offset, bytes));
        assert_eq!(cut(0, b"ab"), None, "known already");
        assert_eq!(cut(1, b"bcd"), Some((2, STANDARD.encode(b"cd"))));
        assert_eq!(cut(5, b"f"), None, "a byte before it is missing");
        assert_eq!(cut(4, b"ef"), Some((4, STANDARD.encode(b"ef"))));
        let unwanted = Piece { stream: StreamName::Stderr, ..piece(0, b"x") };
        assert_eq!(reach.cut(unwanted), None);
    }

    #[test]
    fn offsets_count_for_their_attempt_alone() {
        let mut reach =
            Reach { attempt: Some(attempt(4)), from: [Some(9), None], wanted: [true, false] };
        reach.turn_to(&attempt(4));
        assert_eq!(reach.from, [Some(9), None]);
        reach.turn_to(&attempt(5));
        assert_eq!(reach.from, [Some(0), None]);
    }
}
