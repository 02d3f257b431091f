//! `/v1/sync`: how far logs are held, facts out, and facts in.
//!
//! Facts go out from the store, page by page, each with its chain verified: nothing damaged is
//! passed on. What comes in is parsed here and sorted out by the core (proto/sync.rs); what waits
//! for something is held here, bounded, and offered again with what follows.
//! Law: what is answered as new is durable, and a stream may break off anywhere.

use std::collections::BTreeMap;
use std::rc::Rc;

use hyper::body::{Body as _, Incoming};
use hyper::header::{ACCEPT_ENCODING, CONTENT_ENCODING, HeaderMap, HeaderValue};
use hyper::{Request, StatusCode};

use crate::proto::event::{self, Input, Reply};
use crate::proto::fact::{chain_next, chain_start};
use crate::proto::id::{Digest, LogId};
use crate::proto::limits;
use crate::proto::sync::{FaultKind, Mark, Received, SyncFault};
use crate::runtime::server::Context;
use crate::runtime::server::answer::{self, Handled, Query};
use crate::runtime::server::body::{Cut, Sink};
use crate::runtime::squeeze::{Expander, Squeezer, ZSTD};
use crate::runtime::store::{Entry, Reader, StoreError};
use crate::wire::api::{ExportAsk, Frame, ImportLine, SYNC_VERSION, Since, SyncItem, SyncLine};
use crate::wire::lines::Lines;
use crate::wire::problem::Problem;

/// What the core holds: its log, the ends of all, and their hash.
struct Heads {
    log: LogId,
    marks: Vec<Mark>,
    digest: Digest,
}

impl Heads {
    async fn of(context: &Context) -> Result<Self, Problem> {
        match context.ask(event::Request::Heads).await? {
            Reply::Heads { log, marks, digest } => Ok(Self { log, marks, digest }),
            _ => Err(context.unexpected()),
        }
    }

    fn vector(&self) -> BTreeMap<LogId, u64> {
        self.marks.iter().map(|mark| (mark.log.clone(), mark.seq)).collect()
    }
}

/// `GET /v1/sync?digest=`.
pub async fn heads(context: &Context, request: Request<Incoming>) -> Handled {
    let query = Query::parse(request.uri().query(), &["digest"])?;
    let theirs = query.value::<Digest>("digest")?;
    let Heads { log, marks, digest } = Heads::of(context).await?;
    let equal = theirs == Some(digest);
    let (digest, logs) = if equal { (None, vec![]) } else { (Some(digest), marks) };
    let line = SyncLine { kind: "sync".into(), v: SYNC_VERSION, log, equal, digest, logs };
    Ok(answer::json(StatusCode::OK, &line))
}

/// `POST /v1/sync/export`: the facts that the asker does not hold.
pub async fn export(context: Rc<Context>, request: Request<Incoming>) -> Handled {
    let squeezed = says_zstd(request.headers(), &ACCEPT_ENCODING);
    let body = answer::whole(request.into_body()).await?;
    let ask: ExportAsk = serde_json::from_slice(&body).map_err(|error| {
        Problem::new(422, "bad-vector", format!("the body is no export's: {error}"))
            .hint(r#"send {"since":{"LOG":SEQ}}, with {} for everything"#)
    })?;
    let heads = Heads::of(&context).await?;
    let packer = Packer::new(squeezed).map_err(|error| bug(&error))?;
    let mut response = answer::lines(move |sink| async move {
        Exporter { context, sink, packer, chains: BTreeMap::new() }.serve(ask.since, heads).await
    });
    if squeezed {
        response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static(ZSTD));
    }
    Ok(response)
}

fn bug(error: &std::io::Error) -> Problem {
    Problem::new(500, "bug", format!("the stream cannot be compressed: {error}"))
}

fn says_zstd(headers: &HeaderMap, name: &hyper::header::HeaderName) -> bool {
    let named = headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("");
    named.split(',').any(|coding| coding.split(';').next().is_some_and(|word| word.trim() == ZSTD))
}

/// Turns pages of text into what is sent.
struct Packer(Option<Squeezer>);

impl Packer {
    fn new(squeezed: bool) -> std::io::Result<Self> {
        squeezed.then(Squeezer::new).transpose().map(Self)
    }

    fn send(&mut self, sink: &Sink, page: &str) -> Result<(), Cut> {
        match &mut self.0 {
            None => sink.bytes(page.as_bytes()),
            Some(squeezer) => {
                let piece = squeezer.piece(page.as_bytes());
                sink.bytes(&piece.map_err(|error| Cut(error.to_string()))?);
            }
        }
        Ok(())
    }

    fn end(self, sink: &Sink) -> Result<(), Cut> {
        if let Some(squeezer) = self.0 {
            sink.bytes(&squeezer.end().map_err(|error| Cut(error.to_string()))?);
        }
        Ok(())
    }
}

struct Exporter {
    context: Rc<Context>,
    sink: Sink,
    packer: Packer,
    /// The chain at the last fact of each log that was sent; nothing where the log is left out.
    chains: BTreeMap<LogId, Option<Digest>>,
}

impl Exporter {
    async fn serve(mut self, since: Since, heads: Heads) -> Result<(), Cut> {
        let vector = since.vector();
        let (log, begun) = (heads.log.clone(), vector.clone());
        self.send(&[Frame::Export { v: SYNC_VERSION, log, since: begun }])?;
        if let Since::Marks(marks) = since {
            self.compare(marks, &heads).await?;
        }
        let covered = vector.clone();
        let place = self.read(move |reader| reader.place_before(&covered)).await?;
        let mut after = place.unwrap_or(i64::MAX);
        while after < i64::MAX {
            let wanted = vector.clone();
            let page = self.read(move |reader| page(reader, after, &wanted)).await?;
            let Page { last, entries, before } = page;
            let Some(last) = last else { break };
            after = last;
            self.send_page(&entries, &before)?;
            self.sink.room().await;
        }
        self.send(&[Frame::ExportEnd { vector: heads.vector(), digest: heads.digest }])?;
        self.packer.end(&self.sink)
    }

    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Reader) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Cut> {
        self.context.read(work).await.map_err(|problem| Cut(problem.detail))
    }

    fn send(&mut self, frames: &[Frame]) -> Result<(), Cut> {
        let lines = frames.iter().map(|frame| answer::text(frame) + "\n");
        self.packer.send(&self.sink, &lines.collect::<String>())
    }

    /// Compares what the asker says of its logs with ours, before any of it is believed.
    async fn compare(&mut self, marks: Vec<Mark>, heads: &Heads) -> Result<(), Cut> {
        let held = heads.vector();
        let within = |mark: &Mark| held.get(&mark.log).is_some_and(|seq| *seq >= mark.seq);
        let marks: Vec<Mark> = marks.into_iter().filter(within).collect();
        let faults = self.read(move |reader| disagreeing(reader, &marks)).await?;
        for fault in &faults {
            tracing::error!("sync: {fault}");
            self.chains.insert(fault.log.clone(), None);
        }
        let frames = faults.into_iter().map(|fault| Frame::Fault { fault });
        self.send(&frames.collect::<Vec<_>>())
    }

    /// Sends facts with the marks that prove them; of a log whose chain breaks nothing more.
    fn send_page(&mut self, entries: &[Entry], before: &[Digest]) -> Result<(), Cut> {
        let (mut text, mut faults) = (String::new(), vec![]);
        let mut marks: BTreeMap<&LogId, Mark> = BTreeMap::new();
        for (entry, before) in entries.iter().zip(before) {
            let log = &entry.dot.log;
            let chain = self.chains.entry(log.clone()).or_insert(Some(*before));
            let Some(known) = chain else { continue };
            if chain_next(known, &entry.line) != entry.chain {
                let fault =
                    SyncFault { log: log.clone(), seq: entry.dot.seq, kind: FaultKind::Forked };
                tracing::error!("sync: {fault}; 'ucp-broker check' tells more");
                faults.push(Frame::Fault { fault });
                *chain = None;
                continue;
            }
            *chain = Some(entry.chain);
            text.push_str(&entry.line);
            text.push('\n');
            let mark = Mark { log: log.clone(), seq: entry.dot.seq, chain: entry.chain };
            marks.insert(log, mark);
        }
        let marks: Vec<Mark> = marks.into_values().collect();
        if !marks.is_empty() {
            faults.insert(0, Frame::Marks { marks });
        }
        for frame in &faults {
            text.push_str(&answer::text(frame));
            text.push('\n');
        }
        self.packer.send(&self.sink, &text)
    }
}

/// A page of the store: where it ends, what of it is wanted, and the chain before each of those.
struct Page {
    last: Option<i64>,
    entries: Vec<Entry>,
    before: Vec<Digest>,
}

fn page(reader: &Reader, after: i64, vector: &BTreeMap<LogId, u64>) -> Result<Page, StoreError> {
    let mut entries = reader.entries_after(after, limits::FACTS_PAGE_ROWS)?;
    let last = entries.last().map(|entry| entry.id);
    entries.retain(|entry| entry.dot.seq > vector.get(&entry.dot.log).copied().unwrap_or(0));
    let mut chains: BTreeMap<&LogId, Digest> = BTreeMap::new();
    let mut before = vec![];
    for entry in &entries {
        let log = &entry.dot.log;
        let known = chains.get(log).copied();
        before.push(match known {
            Some(chain) => chain,
            None if entry.dot.seq == 1 => chain_start(log),
            // A fact before it that is not there is a fault that its own chain shows.
            None => reader.chain_at(log, entry.dot.seq - 1)?.unwrap_or(Digest::NOTHING),
        });
        chains.insert(log, entry.chain);
    }
    Ok(Page { last, entries, before })
}

/// Which of these marks are not what is held here.
fn disagreeing(reader: &Reader, marks: &[Mark]) -> Result<Vec<SyncFault>, StoreError> {
    let mut faults = vec![];
    for Mark { log, seq, chain } in marks {
        let held = if *seq == 0 { Some(chain_start(log)) } else { reader.chain_at(log, *seq)? };
        if held.is_some_and(|held| held != *chain) {
            faults.push(SyncFault { log: log.clone(), seq: *seq, kind: FaultKind::Forked });
        }
    }
    Ok(faults)
}

/// `POST /v1/sync/import`: facts of other brokers.
pub async fn import(context: &Context, request: Request<Incoming>) -> Handled {
    let squeezed = says_zstd(request.headers(), &CONTENT_ENCODING);
    if request.headers().contains_key(CONTENT_ENCODING) && !squeezed {
        let what = "the body is compressed in a way that is not known here";
        return Err(Problem::new(415, "bad-coding", what).hint("send zstd, or nothing"));
    }
    let heads = Heads::of(context).await?;
    let mut importer = Importer::new(context, &heads);
    let (mut lines, mut body) = (Lines::new(), request.into_body());
    let mut expander = squeezed.then(Expander::new).transpose().map_err(|error| bug(&error))?;
    let mut ended = body.is_end_stream();
    while !ended {
        let piece = match answer::piece(&mut body, limits::SYNC_IDLE_MAX).await {
            Ok(piece) => piece,
            // A sender that went away has sent what it has sent.
            Err(problem) => {
                importer.finish().await?;
                return Err(problem);
            }
        };
        ended = piece.is_none();
        let piece = piece.unwrap_or_default();
        let Some(expander) = &mut expander else {
            lines.push(&piece);
            importer.take_all(&mut lines).await?;
            continue;
        };
        let mut left = &piece[..];
        while let Some(bytes) = expander.next(&mut left).map_err(|error| {
            let what = format!("the body is not what zstd makes: {error}");
            Problem::new(400, "bad-body", what)
        })? {
            lines.push(bytes);
            importer.take_all(&mut lines).await?;
            // A few bytes may expand to very many: others get their turn.
            tokio::task::yield_now().await;
        }
    }
    if let Some(line) = lines.rest() {
        importer.take(line.map_err(|error| error.to_string()), lines.number()).await?;
    }
    importer.finish().await?;
    let Heads { marks, digest, .. } = Heads::of(context).await?;
    let vector = marks.into_iter().map(|mark| (mark.log, mark.seq)).collect();
    let Importer { new, known, facts, faults, bad, bad_lines, left_out, .. } = importer;
    let waiting = facts.len() as u64 + left_out;
    let kind = "import".into();
    let faults = faults.into_values().collect();
    let line = ImportLine { kind, new, known, waiting, faults, bad, bad_lines, vector, digest };
    Ok(answer::json(StatusCode::OK, &line))
}

/// One stream of facts on its way in.
struct Importer<'a> {
    context: &'a Context,
    own: LogId,
    /// What was held when the stream began.
    held: BTreeMap<LogId, u64>,
    /// Facts that are not taken yet, and their bytes.
    facts: BTreeMap<(u64, LogId), Received>,
    bytes: usize,
    /// Facts and bytes that came since the core was asked last.
    fresh: (usize, usize),
    marks: BTreeMap<(LogId, u64), Mark>,
    /// Whether marks came that the core has not seen.
    marked: bool,
    new: u64,
    known: u64,
    left_out: u64,
    faults: BTreeMap<LogId, SyncFault>,
    bad: Vec<String>,
    bad_lines: u64,
    /// What the sender holds, as it says at the end.
    sender: Option<LogId>,
    sender_holds: BTreeMap<LogId, u64>,
}

impl<'a> Importer<'a> {
    fn new(context: &'a Context, heads: &Heads) -> Self {
        Self {
            context,
            own: heads.log.clone(),
            held: heads.vector(),
            facts: BTreeMap::new(),
            bytes: 0,
            fresh: (0, 0),
            marks: BTreeMap::new(),
            marked: false,
            new: 0,
            known: 0,
            left_out: 0,
            faults: BTreeMap::new(),
            bad: vec![],
            bad_lines: 0,
            sender: None,
            sender_holds: BTreeMap::new(),
        }
    }

    /// Takes the whole lines that there are.
    async fn take_all(&mut self, lines: &mut Lines) -> Result<(), Problem> {
        while let Some(line) = lines.next() {
            self.take(line.map_err(|error| error.to_string()), lines.number()).await?;
        }
        Ok(())
    }

    async fn take(&mut self, line: Result<String, String>, number: u64) -> Result<(), Problem> {
        let said = |error| format!("line {number}: {error}");
        let item =
            line.and_then(|text| SyncItem::parse(&text).map_err(|error| said(error.to_string())));
        match item {
            Ok(SyncItem::Fact(received)) => self.take_fact(received),
            Ok(SyncItem::Frame(Frame::Marks { marks })) => {
                if !marks.is_empty() {
                    self.take_marks(marks).await?;
                }
            }
            Ok(SyncItem::Frame(Frame::Export { log, .. })) => self.sender = Some(log),
            Ok(SyncItem::Frame(Frame::ExportEnd { vector, .. })) => self.sender_holds = vector,
            Ok(SyncItem::Frame(Frame::Fault { fault })) => {
                self.note_faults([fault]);
            }
            Ok(SyncItem::Frame(Frame::Unknown)) => {}
            Err(what) => {
                self.bad_lines += 1;
                if self.bad.len() < limits::SYNC_BAD_TOLD_MAX {
                    self.bad.push(what);
                }
            }
        }
        let (facts, bytes) = self.fresh;
        let full = facts >= limits::SYNC_BATCH_FACTS || bytes >= limits::SYNC_BATCH_BYTES;
        if full && self.marked { self.hand_in().await } else { Ok(()) }
    }

    fn take_fact(&mut self, received: Received) {
        let (dot, bytes) = (&received.fact.dot, received.line.len());
        if self.faults.contains_key(&dot.log) {
            return;
        }
        if self.held.get(&dot.log).is_some_and(|seq| *seq >= dot.seq) {
            self.known += 1;
            return;
        }
        let place = (dot.seq, dot.log.clone());
        if let Some(other) = self.facts.get(&place) {
            self.known += 1;
            if other.line != received.line {
                let (seq, log) = place;
                self.note_faults([SyncFault { log, seq, kind: FaultKind::Forked }]);
            }
            return;
        }
        self.fresh = (self.fresh.0 + 1, self.fresh.1 + bytes);
        self.bytes += bytes;
        self.facts.insert(place, received);
        // What is the farthest from being taken makes room.
        while self.facts.len() > limits::SYNC_WAITING_MAX
            || self.bytes > limits::SYNC_WAITING_BYTES_MAX
        {
            let Some((_, dropped)) = self.facts.pop_last() else { break };
            self.bytes -= dropped.line.len();
            self.left_out += 1;
        }
    }

    /// Nothing more of these logs is taken.
    fn note_faults(&mut self, faults: impl IntoIterator<Item = SyncFault>) {
        for fault in faults {
            if self.faults.len() < limits::SYNC_FAULTS_TOLD_MAX {
                self.facts.retain(|_, received| received.fact.dot.log != fault.log);
                self.faults.insert(fault.log.clone(), fault);
            }
        }
        self.count_bytes();
    }

    fn count_bytes(&mut self) {
        self.bytes = self.facts.values().map(|received| received.line.len()).sum();
    }

    async fn take_marks(&mut self, marks: Vec<Mark>) -> Result<(), Problem> {
        let is_held = |mark: &Mark| self.held.get(&mark.log).is_some_and(|seq| *seq >= mark.seq);
        let (held, ahead): (Vec<Mark>, Vec<Mark>) = marks.into_iter().partition(is_held);
        if !held.is_empty() {
            let faults = self.context.read(move |reader| disagreeing(reader, &held)).await?;
            faults.iter().for_each(|fault| tracing::error!("sync: {fault}"));
            self.note_faults(faults);
        }
        for mark in ahead {
            if self.marks.len() < limits::SYNC_MARKS_MAX {
                self.marks.insert((mark.log.clone(), mark.seq), mark);
                self.marked = true;
            }
        }
        Ok(())
    }

    /// Offers the core what there is.
    async fn hand_in(&mut self) -> Result<(), Problem> {
        (self.fresh, self.marked) = ((0, 0), false);
        if self.facts.is_empty() {
            return Ok(());
        }
        let facts = std::mem::take(&mut self.facts).into_values().collect();
        let marks = self.marks.values().cloned().collect();
        let request = event::Request::Import { facts, marks };
        let reply = self.context.ask(request).await?;
        let Reply::Imported { new, known, left, faults } = reply else {
            return Err(self.context.unexpected());
        };
        (self.new, self.known) = (self.new + new, self.known + known);
        let place =
            |received: Received| ((received.fact.dot.seq, received.fact.dot.log.clone()), received);
        self.facts = left.into_iter().map(place).collect();
        self.note_faults(faults);
        if self.facts.is_empty() {
            self.marks.clear();
        }
        Ok(())
    }

    /// The stream has ended.
    async fn finish(&mut self) -> Result<(), Problem> {
        self.hand_in().await?;
        let vector = std::mem::take(&mut self.sender_holds);
        if self.sender.as_ref().is_some_and(|log| *log != self.own) && !vector.is_empty() {
            let by = self.sender.clone();
            self.context.hub.inbox.push(Input::HeldElsewhere { by, vector }, 0).await?;
        }
        Ok(())
    }
}
