//! Laws of anti-entropy: whatever is cut off, mixed, repeated or lost on the way, what a broker
//! holds is causally closed; and brokers that hold the same facts say the same of every job (I2,
//! A4, A5, A14).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use ucp::proto::broker::{Broker, BrokerConfig, Opening};
use ucp::proto::capability::{Capability, Load, Needs};
use ucp::proto::clock::Clock;
use ucp::proto::event::{Input, JobRef, Output, Reply, Request, Submission};
use ucp::proto::fact::{
    Body, Continues, Fact, Joined, Reported, SealedFact, Submitted, chain_next, chain_start,
};
use ucp::proto::fold::JobFacts;
use ucp::proto::id::{Dot, Incarnation, JobId, LogId, RequestId, SessionId};
use ucp::proto::isolation::Isolation;
use ucp::proto::job::JobSpec;
use ucp::proto::log::Logs;
use ucp::proto::message::{
    BrokerMessage, ExecutorMessage, Hello, ResultMessage, SESSION_VERSION, StartOrder,
};
use ucp::proto::result::JobResult;
use ucp::proto::rng::Rng;
use ucp::proto::sync::{FaultKind, Mark, Received, SyncFault, marks, sort_out};
use ucp::proto::time::Now;
use ucp::proto::units::{Size, Span};
use ucp::proto::view::AuditView;

use crate::log::log_of;

const CLIENT: RequestId = RequestId(1);
const SESSION: SessionId = SessionId(1);

/// A broker with one executor of its own, and its disk.
struct Node {
    broker: Broker,
    now: Now,
    durable: Vec<SealedFact>,
    running: Vec<StartOrder>,
    imported: Option<(u64, u64, Vec<Received>, Vec<SyncFault>)>,
    audit: Option<AuditView>,
    hello: Option<Hello>,
}

fn log_id(number: usize) -> LogId {
    format!("broker{number}-0000000{number}").parse().expect("a name")
}

impl Node {
    fn new(number: usize) -> Self {
        let mut node = Self::without_executor(number);
        let hello = node.hello.clone().expect("kept");
        node.input(Input::SessionOpened { session: SESSION, hello, local: true });
        node
    }

    /// The same, whose executor has not come yet.
    fn without_executor(number: usize) -> Self {
        let mut node = Self {
            broker: Broker::new(BrokerConfig::default(), Rng::from_seed(number as u64)),
            now: Now::default(),
            durable: vec![],
            running: vec![],
            imported: None,
            audit: None,
            hello: None,
        };
        let log = log_id(number);
        node.broker.open(node.now, Opening::Fresh { log, continues: None });
        let hello = Hello {
            cgroup: None,
            v: SESSION_VERSION,
            executor: format!("van{number}-00000001").parse().expect("a name"),
            incarnation: Incarnation { boot: "boot".into(), life: number as u64 },
            pid: 1,
            capability: Capability {
                slots: 2,
                memory: Size(1 << 30),
                labels: BTreeMap::new(),
                arch: "x86_64".into(),
                native: true,
                wasm: true,
                isolation: Isolation::default(),
            },
            load: Load::default(),
            heartbeat: Span::from_millis(1_000),
            attempts: vec![],
            jobs: vec![],
        };
        node.drain();
        node.hello = Some(hello);
        node
    }

    fn drain(&mut self) {
        while let Some(output) = self.broker.poll_output() {
            match output {
                Output::Persist(batch) => self.durable.extend(batch.facts),
                Output::Send { message: BrokerMessage::Start(order), .. } => {
                    self.running.push(*order);
                }
                Output::Send { message: BrokerMessage::Stop { attempt, .. }, .. } => {
                    self.running.retain(|order| order.attempt != attempt);
                }
                Output::Reply { reply: Reply::Audit(view), .. } => self.audit = Some(*view),
                Output::Reply { reply: Reply::Imported { new, known, left, faults }, .. } => {
                    self.imported = Some((new, known, left, faults));
                }
                _ => {}
            }
        }
    }

    fn input(&mut self, input: Input) {
        self.broker.handle_input(self.now, input);
        self.drain();
    }

    fn request(&mut self, body: Request) {
        self.input(Input::Request { request: CLIENT, body });
    }

    fn submit(&mut self, key: Option<u8>, array: bool) {
        let spec = JobSpec {
            key: key.map(|key| format!("key{key}")),
            array: array.then(|| "1-3".parse().expect("a range")),
            retries: 1,
            ..JobSpec::command(vec!["job".into()])
        };
        let submission = Submission { index: 0, id: None, spec: Arc::new(spec) };
        self.request(Request::Submit { submissions: vec![submission], watch: true });
    }

    fn finish(&mut self, pick: usize, exit: i32) {
        if self.running.is_empty() {
            return;
        }
        let order = self.running.swap_remove(pick % self.running.len());
        let elements: Vec<Option<u64>> = match &order.elements {
            Some(elements) => elements.iter().map(Some).collect(),
            None => vec![None],
        };
        for element in elements {
            let mut attempt = order.attempt.clone();
            attempt.element = element;
            let message = ResultMessage {
                attempt,
                job: order.job,
                generation: order.generation,
                result: JobResult { exit: Some(exit), ..JobResult::default() },
                clock: order.clock.clone(),
                took_us: None,
                carried: vec![],
            };
            let message = ExecutorMessage::Result(Box::new(message));
            self.input(Input::Message { session: SESSION, message });
        }
    }

    fn ask_of_some_job(&mut self, pick: usize, ask: fn(JobRef) -> Request) {
        let jobs: Vec<JobId> = self.jobs().into_iter().collect();
        if !jobs.is_empty() {
            let job = JobRef(jobs[pick % jobs.len()].to_string());
            self.request(ask(job));
        }
    }

    fn jobs(&self) -> BTreeSet<JobId> {
        self.durable.iter().filter_map(|sealed| sealed.fact.job).collect()
    }

    /// What this one holds above the logs of another, in the order of its commits.
    fn above(&self, other: &Logs) -> Vec<SealedFact> {
        let is_new = |fact: &&SealedFact| fact.fact.dot.seq > other.head(&fact.fact.dot.log).seq;
        self.durable.iter().filter(is_new).cloned().collect()
    }

    /// Takes facts, and looks whether what is held then is causally closed.
    fn take(&mut self, facts: &[SealedFact], marks: Vec<Mark>) {
        let before = self.durable.len();
        let facts = facts.iter().map(received).collect();
        self.request(Request::Import { facts, marks });
        let mut held = Logs::default();
        for (at, sealed) in self.durable.iter().enumerate() {
            assert_eq!(held.extend(sealed), Ok(()));
            let vector = held.vector();
            let is_held = |(actor, seq)| vector.get::<str>(actor) >= Some(&seq);
            let mut causes = sealed.fact.clock.iter().map(|(actor, seq)| (actor.as_str(), seq));
            assert!(at < before || causes.all(is_held), "{} came before its causes", sealed.line);
        }
        assert_eq!(held, *self.broker.logs(), "what is held is what is durable");
    }

    /// A broker that is started on the same disk.
    fn restarted(&self) -> Broker {
        let mut broker = Broker::new(BrokerConfig::default(), Rng::from_seed(9));
        self.durable.iter().for_each(|sealed| broker.restore(sealed).expect("it follows"));
        broker.open(self.now, Opening::Continue(self.broker.log().expect("open").clone()));
        broker
    }
}

fn received(sealed: &SealedFact) -> Received {
    Received { fact: Arc::clone(&sealed.fact), line: Arc::clone(&sealed.line) }
}

/// A mark at each fact.
fn marks_of(facts: &[SealedFact]) -> Vec<Mark> {
    let mark = |sealed: &SealedFact| Mark {
        log: sealed.fact.dot.log.clone(),
        seq: sealed.fact.dot.seq,
        chain: sealed.chain,
    };
    facts.iter().map(mark).collect()
}

#[derive(Debug, Clone)]
enum Step {
    Submit {
        at: usize,
        key: Option<u8>,
        array: bool,
    },
    Finish {
        at: usize,
        pick: usize,
        exit: i32,
    },
    Cancel {
        at: usize,
        pick: usize,
    },
    Rerun {
        at: usize,
        pick: usize,
    },
    /// Facts go from one to another: how many at the most, mixed with this seed, each this often,
    /// and of the marks one in so many.
    Carry {
        from: usize,
        to: usize,
        most: usize,
        mix: u64,
        times: usize,
        thin: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let at = 0_usize..3;
    prop_oneof![
        3 => (at.clone(), proptest::option::of(0_u8..3), proptest::bool::weighted(0.2))
            .prop_map(|(at, key, array)| Step::Submit { at, key, array }),
        3 => (at.clone(), any::<usize>(), 0..2)
            .prop_map(|(at, pick, exit)| Step::Finish { at, pick, exit }),
        1 => (at.clone(), any::<usize>()).prop_map(|(at, pick)| Step::Cancel { at, pick }),
        1 => (at.clone(), any::<usize>()).prop_map(|(at, pick)| Step::Rerun { at, pick }),
        4 => (at.clone(), at, 0_usize..30, any::<u64>(), 1_usize..3, 1_usize..4).prop_map(
            |(from, to, most, mix, times, thin)| Step::Carry { from, to, most, mix, times, thin }
        ),
    ]
}

fn carry(nodes: &mut [Node], step: &Step) {
    let Step::Carry { from, to, most, mix, times, thin } = *step else { return };
    if from == to {
        return;
    }
    // As from a stick: without asking what the other holds.
    let mut facts = if mix % 2 == 0 {
        nodes[from].above(nodes[to].broker.logs())
    } else {
        nodes[from].durable.clone()
    };
    facts.truncate(most);
    let marks = marks_of(&facts).into_iter().step_by(thin).collect();
    let mut facts: Vec<_> = facts.iter().cycle().take(facts.len() * times).cloned().collect();
    let mut rng = Rng::from_seed(mix);
    if mix % 3 == 0 {
        for at in (1..facts.len()).rev() {
            let other = usize::try_from(rng.below(at as u64 + 1)).expect("small");
            facts.swap(at, other);
        }
    }
    nodes[to].take(&facts, marks);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(160))]

    #[test]
    fn a5_a14_brokers_that_hold_the_same_facts_say_the_same_of_every_job(
        steps in proptest::collection::vec(step(), 1..80)
    ) {
        let mut nodes: Vec<Node> = (0..3).map(Node::new).collect();
        for step in &steps {
            match *step {
                Step::Submit { at, key, array } => nodes[at].submit(key, array),
                Step::Finish { at, pick, exit } => nodes[at].finish(pick, exit),
                Step::Cancel { at, pick } => nodes[at].ask_of_some_job(pick, |job| {
                    Request::Cancel { job, reason: "a test".into() }
                }),
                Step::Rerun { at, pick } => nodes[at].ask_of_some_job(pick, |job| {
                    Request::Rerun { job, reason: "a test".into() }
                }),
                Step::Carry { .. } => carry(&mut nodes, step),
            }
        }
        // Only 0 and 1, and 1 and 2 ever meet: what 0 and 2 have reaches the other through 1. Who
        // learns something may write something about it.
        for _ in 0..30 {
            for (from, to) in [(0, 1), (1, 2), (2, 1), (1, 0)] {
                let facts = nodes[from].above(nodes[to].broker.logs());
                let marks = marks(nodes[from].broker.logs());
                nodes[to].take(&facts, marks);
                let (new, known, left, faults) = nodes[to].imported.take().expect("an answer");
                prop_assert_eq!((new, known), (facts.len() as u64, 0));
                prop_assert!(left.is_empty() && faults.is_empty(), "{:?} {:?}", left, faults);
            }
        }
        let digests: BTreeSet<_> =
            nodes.iter().map(|node| node.broker.logs().digest().to_string()).collect();
        prop_assert_eq!(digests.len(), 1, "they do not come to rest");
        for job in nodes[0].jobs() {
            let views: Vec<_> = nodes.iter().map(|node| {
                let facts = node.broker.job_facts(job).expect("known");
                (facts.row(job), facts.owner().cloned(), facts.clock().clone())
            }).collect();
            prop_assert!(views.windows(2).all(|pair| pair[0] == pair[1]), "{:?}", views);
            let again = nodes[2].restarted();
            let facts = again.job_facts(job).expect("known");
            prop_assert_eq!(&facts.row(job), &views[0].0);
        }
    }

    #[test]
    fn what_is_taken_does_not_depend_on_the_order_of_arrival(
        lengths in proptest::collection::vec(0_u64..12, 3),
        marked in proptest::collection::vec(any::<bool>(), 36),
        mix in any::<u64>(),
    ) {
        let names = ["a-1", "b-2", "c-3"];
        let logs: Vec<_> = names.iter().zip(&lengths).map(|(name, n)| log_of(name, *n)).collect();
        let all: Vec<SealedFact> = logs.into_iter().flatten().collect();
        let marks: Vec<Mark> = marks_of(&all).into_iter().zip(&marked)
            .filter_map(|(mark, marked)| marked.then_some(mark)).collect();
        let own = log_id(1);
        let mut facts: Vec<Received> = all.iter().map(received).collect();
        let first = sort_out(&Logs::default(), &own, facts.clone(), &marks);
        let mut rng = Rng::from_seed(mix);
        for at in (1..facts.len()).rev() {
            facts.swap(at, usize::try_from(rng.below(at as u64 + 1)).expect("small"));
        }
        let second = sort_out(&Logs::default(), &own, facts, &marks);
        prop_assert_eq!(&first, &second);
        // Of each log all up to its last mark, and the rest is handed back.
        let expected: u64 = names.iter().map(|name| {
            marks.iter().filter(|mark| mark.log.as_str() == *name).map(|mark| mark.seq).max()
                .unwrap_or(0)
        }).sum();
        prop_assert_eq!(first.take.len() as u64, expected);
        prop_assert_eq!(first.take.len() + first.left.len(), all.len());
    }

    #[test]
    fn a20_a_changed_byte_is_never_taken(at in 0_usize..10, byte in 0_usize..200) {
        let facts = log_of("a-1", 10);
        let mut came: Vec<Received> = facts.iter().map(received).collect();
        let mut line = came[at].line.to_string().into_bytes();
        let place = byte % line.len();
        line[place] ^= 1;
        // What is no fact any more is refused where it is read.
        let Ok(line) = String::from_utf8(line) else { return Ok(()) };
        let Ok(fact) = Fact::parse(&line) else { return Ok(()) };
        let is_elsewhere = fact.dot != came[at].fact.dot;
        came[at] = Received { fact: Arc::new(fact), line: line.into() };
        let sorted = sort_out(&Logs::default(), &log_id(1), came, &marks_of(&facts));
        prop_assert!(sorted.take.len() <= at, "nothing from the changed one on");
        prop_assert!(is_elsewhere || !sorted.faults.is_empty(), "it is named");
    }
}

#[test]
fn a18_facts_of_our_own_log_that_we_did_not_write_are_refused_and_named() {
    let facts = log_of("a-1", 3);
    let own: LogId = "a-1".parse().expect("a name");
    let mut held = Logs::default();
    held.extend(&facts[0]).expect("the first");
    let came = facts.iter().map(received).collect();
    let sorted = sort_out(&held, &own, came, &marks_of(&facts));
    assert_eq!((sorted.take.len(), sorted.known), (0, 1));
    assert_eq!(sorted.faults, [SyncFault { log: own, seq: 2, kind: FaultKind::Own }]);
}

#[test]
fn a_fact_that_counts_beyond_all_bounds_is_refused() {
    let mut node = Node::new(1);
    node.submit(None, false);
    let deployed = node.durable.last().expect("deployed at once").clone();
    let line = deployed.line.replace("\"fence\":1", &format!("\"fence\":{}", (1_u64 << 53) - 1));
    let fact = Fact::parse(&line).expect("a fact still");
    let mut held = Logs::default();
    for sealed in &node.durable[..node.durable.len() - 1] {
        held.extend(sealed).expect("in order");
    }
    let came = vec![Received { fact: Arc::new(fact), line: line.into() }];
    let sorted = sort_out(&held, &log_id(2), came, &[]);
    assert_eq!(sorted.faults.len(), 1);
    assert_eq!(sorted.faults[0].kind, FaultKind::Unsound);
    assert!(sorted.left.is_empty());
}

#[test]
fn a_broker_waits_for_no_executor_of_another_and_loses_nothing_that_runs_there() {
    let (mut first, mut second) = (Node::new(1), Node::new(2));
    first.submit(None, false);
    let facts = first.durable.clone();
    second.take(&facts, marks_of(&facts));
    let before = second.durable.len();
    let mut again = second.restarted();
    while again.poll_output().is_some() {}
    let mut later = second.now;
    later.mono = later.mono.after(Duration::from_secs(3_600));
    again.handle_timeout(later);
    while let Some(output) = again.poll_output() {
        assert!(!matches!(output, Output::Persist(_)), "it writes nothing: {output:?}");
    }
    assert_eq!(second.durable.len(), before);
}

/// A log that somebody made up: its facts with a right chain.
fn forged(name: &str, bodies: Vec<(Option<JobId>, Body)>) -> Vec<SealedFact> {
    let log: LogId = name.parse().expect("a name");
    let joined = Body::Joined(Joined { name: name.into(), fold_version: 1, continues: None });
    let first = [(None, joined)];
    let needs_first = !matches!(bodies.first(), Some((None, Body::Joined(_))));
    let all = first.into_iter().filter(|_| needs_first).chain(bodies);
    let (mut chain, mut facts) = (chain_start(&log), vec![]);
    for (seq, (job, body)) in (1..).zip(all) {
        let dot = Dot { log: log.clone(), seq };
        let mut clock = Clock::new();
        clock.raise_to(&dot);
        let at = "2026-01-01T00:00:00.000Z".to_owned();
        let (birth, generation) = (job.map(|_| dot.clone()), u32::from(job.is_some()));
        let fact = Fact { dot, clock, job, birth, generation, elements: None, at, body };
        let line: Arc<str> = fact.to_line().into();
        chain = chain_next(&chain, &line);
        facts.push(SealedFact { fact: Arc::new(fact), line, chain });
    }
    facts
}

fn submitted(spec: JobSpec) -> Body {
    Body::Submitted(Submitted { spec: Arc::new(spec), retention_ms: 1, began_us: None })
}

fn command(needs: u32, array: Option<&str>) -> JobSpec {
    JobSpec {
        needs: Needs { cores: needs, ..Needs::default() },
        array: array.map(|text| text.parse().expect("a range")),
        ..JobSpec::command(vec!["job".into()])
    }
}

fn work(node: &mut Node) {
    let mut hello = node.hello.clone().expect("kept");
    hello.incarnation.life += 1;
    node.input(Input::SessionOpened { session: SessionId(2), hello, local: true });
    node.request(Request::List { state: None, limit: 10 });
}

#[test]
fn a35_another_spec_under_the_id_of_a_job_of_ours_changes_what_waits_and_breaks_nothing() {
    for (before, after) in [
        (command(1, None), command(2, None)),
        (command(1, None), command(1, Some("1-3"))),
        (command(1, Some("1-3")), command(1, None)),
        (command(1, Some("1-3")), command(2, Some("2-9"))),
    ] {
        let mut node = Node::without_executor(1);
        let submission = Submission { index: 0, id: None, spec: Arc::new(before.clone()) };
        node.request(Request::Submit { submissions: vec![submission], watch: true });
        let job = node.jobs().into_iter().next().expect("it is taken");
        // The lesser name makes the first submission, the greater one owns.
        let forged = forged("aa-00000001", vec![(Some(job), submitted(after.clone()))]);
        node.take(&forged, marks_of(&forged));
        work(&mut node);
        let held = node.broker.job_facts(job).expect("known");
        assert_eq!(held.submitted().expect("submitted").1.spec.needs, after.needs);
        node.request(Request::Audit);
        let audit = node.audit.take().expect("an answer");
        assert!(audit.faults.is_empty(), "{before:?} {after:?}: {:?}", audit.faults);
        assert_eq!(node.running.len(), 1, "{before:?} {after:?}");
    }
}

#[test]
fn a35_what_no_broker_writes_is_not_taken() {
    let job = JobId::random(ucp::proto::time::WallTime::default(), &mut Rng::from_seed(1));
    let mut huge = command(1, None);
    huge.needs.cores = u32::MAX;
    let begins = forged("bb-00000001", vec![]);
    let cases = [
        (forged("aa-00000001", vec![(Some(job), submitted(huge))]), 1),
        (forged("aa-00000001", vec![(Some(job), submitted(command(1, None)))]), 2),
    ];
    for (facts, taken) in cases {
        let mut node = Node::without_executor(1);
        node.take(&facts, marks_of(&facts));
        let (new, ..) = node.imported.take().expect("an answer");
        // Nothing of it is proven by a mark in front of the fault but what a mark speaks of.
        assert_eq!(new, taken, "{facts:?}");
    }
    let mut node = Node::without_executor(1);
    node.take(&begins, marks_of(&begins));
    assert_eq!(node.imported.take().expect("an answer").0, 1);
}

#[test]
fn a18_a_log_that_claims_to_continue_ours_takes_nothing_from_us() {
    let mut node = Node::without_executor(1);
    node.submit(None, false);
    let job = node.jobs().into_iter().next().expect("it is taken");
    let head = node.broker.logs().head(&log_id(1));
    let continues = Continues { log: log_id(1), last_seq: head.seq, chain: head.chain };
    let joined = Joined { name: "zz".into(), fold_version: 1, continues: Some(continues) };
    let facts = forged("zz-00000001", vec![(None, Body::Joined(joined))]);
    node.take(&facts, marks_of(&facts));
    // After a reboot a fresh log continues ours.
    let mut broker = Broker::new(BrokerConfig::default(), Rng::from_seed(9));
    node.durable.iter().for_each(|sealed| broker.restore(sealed).expect("it follows"));
    let log: LogId = "broker1-0000000f".parse().expect("a name");
    broker.open(node.now, Opening::Fresh { log, continues: Some(log_id(1)) });
    node.broker = broker;
    node.drain();
    work(&mut node);
    assert_eq!(node.running.len(), 1, "{job} is ours");
}

#[test]
fn what_is_carried_at_a_dot_gives_way_to_what_is_held_there() {
    let mut node = Node::new(1);
    node.submit(None, false);
    let real: Vec<_> = node.durable.iter().filter(|sealed| sealed.fact.job.is_some()).collect();
    let mut lie = (*real[0].fact).clone();
    lie.body = submitted(command(7, None));
    let carrier = |carried: &Fact| {
        let result = JobResult { exit: Some(0), ..JobResult::default() };
        let attempt = Dot { log: "nobody-00000001".parse().expect("a name"), seq: 1 }.into();
        let body = Reported {
            attempt,
            executor: "van-1".parse().expect("a name"),
            digest: result.digest(),
            result,
            runs: vec![],
            clock: Clock::new(),
            carried: vec![carried.to_line().into()],
        };
        forged("cc-00000001", vec![(lie.job, Body::Reported(Arc::new(body)))])
    };
    let carrying = carrier(&lie);
    let reported = Arc::clone(&carrying[1].fact);
    let all = |order: [&Arc<Fact>; 2]| {
        let mut facts = JobFacts::default();
        for fact in order {
            facts.insert(Arc::clone(fact));
        }
        facts
    };
    let (one, other) = (all([&reported, &real[0].fact]), all([&real[0].fact, &reported]));
    assert_eq!(one, other);
    assert_eq!(one.submitted().expect("held").1.spec.needs.cores, 1);
    // And of our own log beyond its end nothing is believed.
    lie.dot.seq = 99;
    lie.clock.raise_to(&lie.dot);
    let facts = carrier(&lie);
    node.take(&facts, marks_of(&facts));
    assert_eq!(node.imported.take().expect("an answer").0, 1, "the beginning of its log alone");
}
