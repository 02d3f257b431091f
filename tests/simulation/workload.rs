//! The work: job specs of all shapes, what their runs do, and what executors have.
//!
//! A job's command is `job NUMBER`: the number of its plan, which says how long its runs take and
//! how they end. So a spec says everything, and two jobs of one plan are the same work.

use std::collections::BTreeMap;
use std::sync::Arc;

use ucp::proto::capability::{Capability, Needs, capable};
use ucp::proto::id::JobId;
use ucp::proto::job::JobSpec;
use ucp::proto::precedence::Precedence;
use ucp::proto::rng::Rng;
use ucp::proto::units::{Size, Span};

use super::queue::Draw;

/// What a job is and what its runs do.
#[derive(Debug)]
pub struct Plan {
    /// What is submitted.
    pub spec: Arc<JobSpec>,
    /// The least and the longest time of a run, in microseconds.
    pub duration_us: (u64, u64),
    /// So many runs fail first.
    pub fail_first: u32,
    /// Goes on after the polite signal.
    pub ignores_term: bool,
    /// Takes its executor down.
    pub poison: bool,
    /// Its program is not there.
    pub unstartable: bool,
    /// Runs so far.
    pub runs: u32,
}

/// The plan that a spec belongs to.
pub fn plan_of(spec: &JobSpec) -> usize {
    spec.command[1].lossy().parse().expect("the workload wrote a number")
}

/// What the executor with this number has.
pub fn capability(index: usize, rng: &mut Rng) -> Capability {
    let mut labels = BTreeMap::new();
    labels.insert("zone".to_owned(), (*rng.pick(&["east", "west"])).to_owned());
    if index.is_multiple_of(3) {
        labels.insert("gpu".to_owned(), "a100".to_owned());
    }
    Capability {
        slots: u32::try_from(rng.range(1, 4)).expect("small"),
        memory: Size(rng.range(2, 8) << 30),
        labels,
        arch: "x86_64".to_owned(),
        native: true,
        wasm: true,
        isolation: ucp::proto::isolation::Isolation::default(),
    }
}

fn needs(rng: &mut Rng) -> Needs {
    let mut needs = Needs::default();
    if rng.chance(60) {
        return needs;
    }
    if rng.chance(30) {
        needs.cores = u32::try_from(rng.range(1, 4)).expect("small");
    }
    if rng.chance(30) {
        needs.memory = Some(Size(rng.range(1, 6) << 30));
    }
    if rng.chance(15) {
        needs.disk = Some(Size(rng.range(1, 80) << 30));
    }
    if rng.chance(15) {
        needs.battery = Some(u8::try_from(rng.range(1, 90)).expect("percent"));
    }
    if rng.chance(15) {
        needs.cpu_free = Some(u8::try_from(rng.range(1, 90)).expect("percent"));
    }
    if rng.chance(25) {
        needs.labels.push((*rng.pick(&["gpu", "gpu=a100", "zone=east", "zone=west"])).to_owned());
    }
    needs
}

/// A new plan; `earlier` are jobs that it may wait for. Nearly all can run somewhere.
pub fn draw(number: usize, earlier: &[JobId], executors: &[Capability], rng: &mut Rng) -> Plan {
    let mut spec = JobSpec::command(vec!["job".to_owned(), number.to_string()]);
    spec.needs = needs(rng);
    if !is_possible(&spec, executors) && rng.chance(85) {
        spec.needs = Needs::default();
    }
    if rng.chance(35) {
        spec.precedence = *rng.pick(&Precedence::ALL);
    }
    if rng.chance(15) && !earlier.is_empty() {
        for _ in 0..rng.range(1, 3) {
            spec.after.push(*rng.pick(earlier));
        }
    }
    let fails = rng.chance(25);
    if fails || rng.chance(20) {
        spec.retries = u32::try_from(rng.below(4)).expect("small");
    }
    let poison = rng.chance(2);
    if poison || rng.chance(20) {
        spec.max_lost = u32::try_from(rng.range(1, 3)).expect("small");
    }
    let longest = *rng.pick(&[2_000, 50_000, 400_000, 3_000_000]);
    if rng.chance(12) {
        spec.timeout = Some(Span::from_millis(rng.range(1, 1_500)));
    }
    if rng.chance(20) {
        spec.key = Some(format!("key{}", rng.below(12)));
    }
    Plan {
        spec: Arc::new(spec),
        duration_us: (longest / 10, longest),
        fail_first: if fails { u32::try_from(rng.range(1, 5)).expect("small") } else { 0 },
        ignores_term: rng.chance(15),
        poison,
        unstartable: rng.chance(3),
        runs: 0,
    }
}

/// Whether any of these could ever run a job with this spec.
pub fn is_possible(spec: &JobSpec, executors: &[Capability]) -> bool {
    executors.iter().any(|capability| capable(spec.kind(), &spec.needs, capability).is_ok())
}
