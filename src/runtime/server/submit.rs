//! Jobs come in: one as JSON, or many as JSON Lines while the answers already go out.
//!
//! Not here: what is done with them (the core). A bad line is answered by a problem line with its
//! number, and the next is read.
//! Shape: `SubmitLine` in; `SubmittedLine`, `Problem` and, with `until`, `ResultLine` out, in the
//! order in which they become true. At most [`limits::UNFINISHED_PER_CLIENT_MAX`] lines of one
//! request are unfinished; then no more are read until some are.

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::{HeaderValue, LOCATION};
use hyper::{Request, StatusCode};
use serde::Deserialize;
use tokio::time::Instant;

use crate::proto::event::{self, Reply, Submission};
use crate::proto::id::JobId;
use crate::proto::job::json_error;
use crate::proto::limits;
use crate::runtime::server::Context;
use crate::runtime::server::answer::{self, Handled, JSON, Query};
use crate::runtime::server::body::{Cut, Sink};
use crate::runtime::server::hub::{Answer, Mail, Stopping};
use crate::wire::api::{NDJSON, ResultLine, SubmitLine, SubmittedLine};
use crate::wire::lines::Lines;
use crate::wire::problem::Problem;

/// `POST /v1/jobs`.
pub async fn submit(context: Rc<Context>, request: Request<Incoming>) -> Handled {
    let query = Query::parse(request.uri().query(), &["until"])?;
    let watch = context.until(&query).await?;
    let kind = answer::media_type(request.headers());
    match kind.as_str() {
        NDJSON | "application/jsonl" | "application/x-jsonlines" => Ok(answer::lines(|sink| {
            let mail = context.hub.open();
            let (waited, arrays, told) = (HashMap::new(), HashMap::new(), Told::default());
            let handed_in = VecDeque::new();
            Stream { context, mail, sink, watch, waited, arrays, told, handed_in, unfinished: 0 }
                .serve(request.into_body())
        })),
        JSON => submit_one(&context, request.into_body(), watch).await,
        _ => Err(Problem::new(415, "wrong-type", format!("a body of type {kind:?} is no job"))
            .hint(format!("send one job as {JSON}, or a job a line as {NDJSON}"))),
    }
}

async fn submit_one(context: &Context, body: Incoming, watch: bool) -> Handled {
    let bytes = answer::whole(body).await?;
    let text = std::str::from_utf8(&bytes)
        .map_err(|_| Problem::new(400, "bad-encoding", "the body is not UTF-8"))?;
    let submissions = vec![read_line(text)?];
    let mail = context.hub.open();
    let began = Instant::now();
    mail.ask_sized(event::Request::Submit { submissions, watch }, text.len()).await?;
    loop {
        let answer = mail.next().await?;
        if matches!(answer, Answer::Reply(Reply::Submitted { .. })) {
            context.hub.tally.submit_ack.observe_time(began.elapsed());
        }
        match answer {
            Answer::Reply(Reply::Submitted { index, job, known, elements })
                if !watch || elements.is_some() =>
            {
                let kind = "submitted".into();
                let line = SubmittedLine { kind, job, index, known, elements };
                let mut response = answer::json(StatusCode::CREATED, &line);
                if let Ok(place) = HeaderValue::try_from(format!("/v1/jobs/{job}")) {
                    response.headers_mut().insert(LOCATION, place);
                }
                return Ok(response);
            }
            Answer::Reply(Reply::Refused { index, refusal }) => {
                return Err(Problem::of_refusal(&refusal, index));
            }
            Answer::Reply(Reply::Ended(mut ended)) => {
                context.complete(&mut ended).await?;
                return Ok(answer::json(StatusCode::CREATED, &ResultLine::new(&ended, None)));
            }
            _ => {}
        }
    }
}

/// Reads one submission.
fn read_line(text: &str) -> Result<Submission, Problem> {
    let wrong = |detail: String| {
        let mut problem = Problem::new(422, "bad-spec", detail);
        problem.index = index_of(text);
        problem
    };
    if text.len() > limits::SPEC_BYTES_MAX {
        let what = format!("a job is over {} bytes of JSON", limits::SPEC_BYTES_MAX);
        return Err(wrong(what).hint("send its standard input as a blob"));
    }
    let line: SubmitLine =
        serde_json::from_str(text).map_err(|error| wrong(json_error(&error).to_string()))?;
    if line.index > limits::COUNTER_MAX {
        return Err(Problem::new(422, "bad-spec", "field `index`: over 2^53 - 1"));
    }
    line.spec.validate().map_err(|error| wrong(error.to_string()))?;
    Ok(Submission { index: line.index, id: line.id, spec: Arc::new(line.spec) })
}

/// The client's number of a line that is otherwise not understood.
fn index_of(text: &str) -> Option<u64> {
    #[derive(Deserialize)]
    struct Indexed {
        #[serde(default)]
        index: u64,
    }
    serde_json::from_str::<Indexed>(text).ok().map(|line| line.index)
}

/// The ends of an array's elements that were taken from the core and not yet answered for.
#[derive(Debug, Default)]
pub struct Told(usize);

impl Told {
    /// One more was passed on; now and then the core is told that there is room again.
    ///
    /// # Errors
    /// The broker is stopping.
    pub async fn took(&mut self, mail: &Mail) -> Result<(), Stopping> {
        self.0 += 1;
        if self.0 >= limits::ELEMENTS_TOLD_MAX / 2 {
            let count = std::mem::take(&mut self.0);
            mail.ask(event::Request::Taken { count }).await?;
        }
        Ok(())
    }
}

/// One request that streams jobs in and answers out.
struct Stream {
    context: Rc<Context>,
    mail: Mail,
    sink: Sink,
    watch: bool,
    /// For each job whose end is waited for the client's numbers for it.
    waited: HashMap<JobId, Vec<u64>>,
    /// For each array whose ends are waited for how many are left.
    arrays: HashMap<JobId, u64>,
    told: Told,
    /// How many lines were handed in together, and when; they are answered in that order.
    handed_in: VecDeque<(usize, Instant)>,
    /// Lines that were handed to the core and are not finished.
    unfinished: usize,
}

impl Stream {
    async fn serve(mut self, mut body: Incoming) -> Result<(), Cut> {
        let mut lines = Lines::new();
        let mut reading = true;
        while reading || self.unfinished > 0 {
            self.sink.room().await;
            let room = self.unfinished < limits::UNFINISHED_PER_CLIENT_MAX;
            tokio::select! {
                biased;
                answer = self.mail.next(), if self.unfinished > 0 => {
                    self.take_answer(answer?).await?;
                    while let Some(answer) = self.mail.next_now() {
                        self.take_answer(answer).await?;
                    }
                }
                frame = body.frame(), if reading && room => match frame {
                    Some(Ok(frame)) => {
                        let Some(bytes) = frame.data_ref() else { continue };
                        lines.push(bytes);
                        self.take_lines(&mut lines, false).await?;
                    }
                    Some(Err(error)) => {
                        return Err(Cut(format!("the request's body broke off: {error}")));
                    }
                    None => {
                        reading = false;
                        self.take_lines(&mut lines, true).await?;
                    }
                },
            }
        }
        Ok(())
    }

    /// Hands whole lines to the core; the last one may lack its end at the end of the body.
    async fn take_lines(&mut self, lines: &mut Lines, ended: bool) -> Result<(), Cut> {
        let (mut submissions, mut bytes) = (vec![], 0);
        loop {
            let line = lines.next().or_else(|| if ended { lines.rest() } else { None });
            let Some(line) = line else { break };
            let read = match line {
                Ok(text) => {
                    bytes += text.len();
                    read_line(&text).map_err(|mut problem| {
                        problem.detail = format!("line {}: {}", lines.number(), problem.detail);
                        problem
                    })
                }
                Err(error) => Err(Problem::new(400, "bad-line", error.to_string())),
            };
            match read {
                Ok(submission) => submissions.push(submission),
                Err(problem) => self.tell_problem(&problem),
            }
            if submissions.len() >= limits::SUBMISSIONS_PER_INPUT_MAX {
                self.hand_in(std::mem::take(&mut submissions), std::mem::take(&mut bytes)).await?;
            }
        }
        if submissions.is_empty() { Ok(()) } else { self.hand_in(submissions, bytes).await }
    }

    async fn hand_in(&mut self, submissions: Vec<Submission>, bytes: usize) -> Result<(), Cut> {
        self.unfinished += submissions.len();
        self.handed_in.push_back((submissions.len(), Instant::now()));
        let watch = self.watch;
        Ok(self.mail.ask_sized(event::Request::Submit { submissions, watch }, bytes).await?)
    }

    fn tell_problem(&self, problem: &Problem) {
        self.context.hub.tally.problem(problem.code.clone());
        self.sink.line(problem);
    }

    /// The next line that was handed in is answered; says when it was handed in.
    fn answered(&mut self) -> Option<Instant> {
        let (left, at) = self.handed_in.front_mut()?;
        let at = *at;
        *left -= 1;
        if *left == 0 {
            self.handed_in.pop_front();
        }
        Some(at)
    }

    async fn take_answer(&mut self, answer: Answer) -> Result<(), Cut> {
        match answer {
            Answer::Reply(Reply::Submitted { index, job, known, elements }) => {
                if let Some(at) = self.answered() {
                    self.context.hub.tally.submit_ack.observe_time(at.elapsed());
                }
                let kind = "submitted".into();
                self.sink.line(&SubmittedLine { kind, job, index, known, elements });
                match elements {
                    _ if !self.watch => self.unfinished -= 1,
                    // Lines that name the same array are finished by the ends told to the first.
                    Some(_) if self.arrays.contains_key(&job) => self.unfinished -= 1,
                    Some(elements) => drop(self.arrays.insert(job, elements)),
                    None => self.waited.entry(job).or_default().push(index),
                }
            }
            Answer::Reply(Reply::Refused { index, refusal }) => {
                self.answered();
                self.tell_problem(&Problem::of_refusal(&refusal, index));
                self.unfinished -= 1;
            }
            Answer::Reply(Reply::Ended(mut ended)) if ended.element.is_some() => {
                self.context.complete(&mut ended).await.map_err(|p| Cut(p.detail))?;
                self.sink.line(&ResultLine::new(&ended, None));
                if let Some(left) = self.arrays.get_mut(&ended.job) {
                    *left = left.saturating_sub(1);
                    if *left == 0 {
                        self.arrays.remove(&ended.job);
                        self.unfinished -= 1;
                    }
                }
                self.sink.room().await;
                self.told.took(&self.mail).await?;
            }
            Answer::Reply(Reply::Ended(mut ended)) => {
                // Lines that named the same job twice are finished by its one end.
                let indexes = self.waited.remove(&ended.job).unwrap_or_default();
                if !indexes.is_empty() {
                    self.context.complete(&mut ended).await.map_err(|p| Cut(p.detail))?;
                }
                for index in indexes {
                    self.sink.line(&ResultLine::new(&ended, Some(index)));
                    self.unfinished -= 1;
                }
                self.sink.room().await;
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_line_keeps_its_number() {
        let problem = read_line(r#"{"index":7,"spec":{"comand":["a"]}}"#).expect_err("a slip");
        assert_eq!((problem.status, problem.index), (422, Some(7)));
        assert!(problem.detail.contains("did you mean `command`?"), "{problem:?}");
        let problem = read_line(r#"{"index":8,"spec":{"command":[]}}"#).expect_err("no program");
        assert_eq!(problem.index, Some(8));
        assert_eq!(read_line("garbage").expect_err("no JSON").index, None);
    }
}
