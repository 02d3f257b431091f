//! The other side of the broker: a client of one request at a time, and a played executor.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use serde_json::Value;
use ucp::proto::capability::{Capability, Load};
use ucp::proto::clock::Clock;
use ucp::proto::id::Incarnation;
use ucp::proto::message::{
    BrokerMessage, ExecutorMessage, Hello, ResultMessage, SESSION_VERSION, StartOrder,
};
use ucp::proto::ranges::Ranges;
use ucp::proto::result::JobResult;
use ucp::proto::units::{Size, Span};

use crate::common::DEADLINE;

/// What came back for a request.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("UTF-8")
    }

    /// The one JSON value of the body.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("one JSON value")
    }

    /// The JSON Lines of the body.
    pub fn lines(&self) -> Vec<Value> {
        self.text().lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }
}

/// Where a broker listens, spoken to in plain HTTP, as `curl --unix-socket` does.
#[derive(Debug, Clone)]
pub struct Http(pub PathBuf);

impl Http {
    pub fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.0).expect("the broker listens");
        stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        stream
    }

    /// Begins a request; the connection closes behind the answer.
    pub fn begin(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> UnixStream {
        let mut stream = self.connect();
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n");
        if !kind.is_empty() {
            head.push_str(&format!("content-type: {kind}\r\n"));
        }
        head.push_str(&format!("content-length: {}\r\n\r\n", body.len()));
        stream.write_all(head.as_bytes()).expect("the broker reads");
        // A broker that refuses early need not read the body.
        let _ = stream.write_all(body);
        stream
    }

    /// Begins a request where the broker may be unable to take the connection.
    pub fn connect_and_ask(&self, method: &str, path: &str) -> Option<UnixStream> {
        let mut stream = UnixStream::connect(&self.0).ok()?;
        stream.set_read_timeout(Some(DEADLINE)).ok()?;
        let head = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).ok()?;
        Some(stream)
    }

    pub fn ask(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> Answer {
        read_answer(self.begin(method, path, kind, body))
    }

    pub fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, "", b"")
    }

    /// Submits one job and gives its id.
    pub fn submit(&self, spec: &Value) -> String {
        let body = serde_json::json!({ "spec": spec }).to_string();
        let answer = self.ask("POST", "/v1/jobs", "application/json", body.as_bytes());
        assert_eq!(answer.status, 201, "{}", answer.text());
        answer.json()["job"].as_str().expect("an id").to_owned()
    }
}

/// Reads an answer to its end.
pub fn read_answer(stream: UnixStream) -> Answer {
    let mut reader = BufReader::new(stream);
    let head = read_head(&mut reader);
    let status = head.split(' ').nth(1).and_then(|text| text.parse().ok()).expect("a status");
    let mut body = vec![];
    if head.contains("transfer-encoding: chunked") {
        while let Some(piece) = read_chunk(&mut reader) {
            body.extend(piece);
        }
    } else {
        reader.read_to_end(&mut body).expect("the body");
    }
    Answer { status, head, body }
}

pub fn read_head(reader: &mut impl BufRead) -> String {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(reader.read_line(&mut head).expect("the head") > 0, "cut after {head:?}");
    }
    head.to_ascii_lowercase()
}

/// The next piece of a chunked body; `None` at its end.
pub fn read_chunk(reader: &mut impl BufRead) -> Option<Vec<u8>> {
    let mut size = String::new();
    reader.read_line(&mut size).expect("a chunk's size");
    let size = usize::from_str_radix(size.trim(), 16).expect("a number");
    let mut piece = vec![0; size + 2];
    reader.read_exact(&mut piece).expect("the chunk");
    piece.truncate(size);
    (size > 0).then_some(piece)
}

/// An answer of JSON Lines that is read while it comes.
pub struct Live {
    reader: BufReader<UnixStream>,
    held: String,
}

impl Live {
    pub fn new(stream: UnixStream) -> Self {
        let mut reader = BufReader::new(stream);
        let head = read_head(&mut reader);
        assert!(head.starts_with("http/1.1 200"), "{head}");
        Self { reader, held: String::new() }
    }

    /// The next line; `None` at the end of the answer.
    pub fn line(&mut self) -> Option<Value> {
        loop {
            if let Some((line, rest)) = self.held.split_once('\n') {
                let value = serde_json::from_str(line).expect("JSON");
                self.held = rest.to_owned();
                return Some(value);
            }
            let piece = read_chunk(&mut self.reader)?;
            self.held.push_str(&String::from_utf8(piece).expect("UTF-8"));
        }
    }
}

/// An executor that does only what the test says.
pub struct Played {
    pub stream: UnixStream,
    reader: BufReader<UnixStream>,
}

/// What a played executor says first.
pub fn hello(name: &str, slots: u32) -> Hello {
    let memory = Size(1 << 30);
    Hello {
        cgroup: None,
        v: SESSION_VERSION,
        executor: format!("{name}-00000001").parse().expect("a name"),
        incarnation: Incarnation { boot: "boot".into(), life: 7 },
        pid: std::process::id(),
        capability: Capability {
            slots,
            memory,
            labels: std::collections::BTreeMap::new(),
            arch: "x86_64".into(),
            native: true,
            wasm: true,
            isolation: ucp::proto::isolation::Isolation::default(),
        },
        load: Load { disk_free: memory, cpu_free: 100, battery: None },
        heartbeat: Span::from_millis(1000),
        attempts: vec![],
        jobs: vec![],
    }
}

impl Played {
    /// Asks for a session and says nothing yet.
    pub fn upgrade(socket: &Path) -> Self {
        let mut stream = Http(socket.to_owned()).connect();
        let request = "POST /v1/executors/session HTTP/1.1\r\nhost: x\r\n\
                       connection: Upgrade\r\nupgrade: ucp-session/1\r\n\r\n";
        stream.write_all(request.as_bytes()).expect("the broker reads");
        let mut reader = BufReader::new(stream.try_clone().expect("a second handle"));
        let head = read_head(&mut reader);
        assert!(head.starts_with("http/1.1 101"), "{head}");
        Self { stream, reader }
    }

    /// A registered executor.
    pub fn join(socket: &Path, hello: Hello) -> Self {
        let mut played = Self::upgrade(socket);
        played.say(&ExecutorMessage::Hello(hello));
        assert!(matches!(played.hear(), Some(BrokerMessage::Welcome { .. })));
        played
    }

    pub fn say(&mut self, message: &ExecutorMessage) {
        let line = serde_json::to_string(message).expect("a message");
        self.say_line(&line);
    }

    pub fn say_line(&mut self, line: &str) {
        self.stream.write_all(format!("{line}\n").as_bytes()).expect("the broker reads");
    }

    /// What the broker says next; `None` once it has closed the session.
    pub fn hear(&mut self) -> Option<BrokerMessage> {
        let mut line = String::new();
        match self.reader.read_line(&mut line) {
            Ok(0) | Err(_) => None,
            Ok(_) => Some(serde_json::from_str(&line).expect("a message")),
        }
    }

    /// The next order to run something.
    pub fn start(&mut self) -> StartOrder {
        match self.hear() {
            Some(BrokerMessage::Start(order)) => *order,
            other => panic!("no order to start but {other:?}"),
        }
    }

    /// Sends a result.
    pub fn send_result(&mut self, order: &StartOrder, result: JobResult) {
        let message = ResultMessage {
            attempt: order.attempt.clone(),
            job: order.job,
            generation: order.generation,
            result,
            clock: Clock::default(),
            took_us: None,
            carried: vec![],
        };
        self.say(&ExecutorMessage::Result(Box::new(message)));
    }

    /// Reports a result and waits for its acknowledgement.
    pub fn report(&mut self, order: &StartOrder, result: JobResult) {
        self.send_result(order, result);
        let attempt = order.attempt.clone();
        loop {
            match self.hear() {
                Some(BrokerMessage::Acknowledged { attempt: acknowledged, elements, .. }) => {
                    assert_eq!(acknowledged.dot, attempt.dot);
                    let one = attempt.element.map(Ranges::one);
                    assert_eq!((acknowledged.element, elements), (None, one));
                    return;
                }
                Some(BrokerMessage::Unfollow { .. } | BrokerMessage::Heard { .. }) => {}
                other => panic!("no acknowledgement but {other:?}"),
            }
        }
    }
}

/// A success that wrote this.
pub fn wrote(stdout: &[u8], stderr: &[u8]) -> JobResult {
    use ucp::proto::result::Stream;
    JobResult {
        exit: Some(0),
        stdout: Stream::inline(stdout.to_vec()),
        stderr: Stream::inline(stderr.to_vec()),
        started_at: "2026-01-01T00:00:00.000Z".into(),
        ended_at: "2026-01-01T00:00:01.000Z".into(),
        ..JobResult::default()
    }
}
