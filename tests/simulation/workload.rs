//! The work: job specs of all shapes, what their runs do, and what executors have.
//!
//! A job's command is `job NUMBER`: the number of its plan, which says how long its runs take and
//! how they end. So a spec says everything, and two jobs of one plan are the same work. An array's
//! command has a third word that becomes its elements' items or numbers.

use std::collections::BTreeMap;
use std::sync::Arc;

use ucp::proto::capability::{Capability, Needs, capable};
use ucp::proto::id::JobId;
use ucp::proto::job::{AfterDeadline, JobSpec, Overlap};
use ucp::proto::precedence::Precedence;
use ucp::proto::ranges::Ranges;
use ucp::proto::rng::Rng;
use ucp::proto::text::Text;
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
    /// Takes its executor down; of an array only every seventh element does, and fails.
    pub poison: bool,
    /// Its program is not there.
    pub unstartable: bool,
    /// Runs so far, by element where it is an array.
    pub runs: BTreeMap<Option<u64>, u32>,
}

impl Plan {
    /// A run begins; its number, from 1.
    pub fn begin(&mut self, element: Option<u64>) -> u32 {
        let runs = self.runs.entry(element).or_default();
        *runs += 1;
        *runs
    }

    /// Whether a run takes its executor down.
    pub fn is_poison(&self, element: Option<u64>) -> bool {
        self.poison && element.is_none_or(|element| element.is_multiple_of(7))
    }

    /// Whether the run with this number fails.
    pub fn fails(&self, element: Option<u64>, run: u32) -> bool {
        run <= self.fail_first && element.is_none_or(|element| element.is_multiple_of(3))
    }

    /// What a run writes: of an array most elements write the same.
    pub fn output(&self, element: Option<u64>, run: u32) -> String {
        match element {
            Some(element) if element.is_multiple_of(5) => format!("element {element}\n"),
            Some(_) => "done\n".to_owned(),
            None => format!("run {run}\n"),
        }
    }

    /// Whether an executor was told to run what was submitted, with the element in its place.
    pub fn runs_as(&self, told: &JobSpec, element: Option<u64>) -> bool {
        let (Some(all), Some(element)) = (&self.spec.array, element) else {
            return element.is_none() && *told == *self.spec;
        };
        let number = element.to_string();
        let place = all.iter().position(|held| held == element);
        let item = place.and_then(|place| self.spec.items.get(place));
        let word = item.map_or(number.clone(), |item| item.lossy().into_owned());
        let has = |name: &str| told.env.get(name).map(|value| value.lossy().into_owned());
        told.command[2].lossy() == word
            && has("UCP_JOB_INDEX") == Some(number)
            && has("UCP_JOB_ITEM") == item.map(|_| word)
    }
}

/// How many of a seed's jobs are arrays, and how long they are.
pub struct Arrays {
    percent: u64,
    longest: u64,
}

impl Arrays {
    /// Many seeds have few and short ones: what one element needs is checked for each of them.
    pub fn draw(rng: &mut Rng) -> Self {
        Self { percent: *rng.pick(&[1, 1, 4, 14]), longest: *rng.pick(&[4, 4, 12, 40]) }
    }
}

/// Turns a spec into an array of up to so many elements, now and then with holes.
fn make_array(spec: &mut JobSpec, longest: u64, rng: &mut Rng) {
    let first = rng.below(4);
    let mut all = Ranges::run(first, first + rng.range(0, longest - 1));
    if rng.chance(40) {
        (0..rng.below(6)).for_each(|_| all.remove(first + 1 + rng.below(20)));
    }
    if rng.chance(40) {
        spec.items = all.iter().map(|element| Text::from(format!("item {element}"))).collect();
    }
    spec.array = Some(all);
    spec.command.push(Text::from("<>".to_owned()));
    spec.placeholder = Some("<>".to_owned());
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
pub fn draw(
    number: usize,
    earlier: &[JobId],
    executors: &[Capability],
    arrays: &Arrays,
    rng: &mut Rng,
) -> Plan {
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
    let array = rng.chance(arrays.percent);
    if array {
        make_array(&mut spec, arrays.longest, rng);
    }
    let lengths: &[u64] = if array {
        &[500, 2_000, 8_000, 50_000, 400_000]
    } else {
        &[2_000, 50_000, 400_000, 3_000_000]
    };
    let longest = *rng.pick(lengths);
    if rng.chance(12) {
        spec.timeout = Some(Span::from_millis(rng.range(1, 1_500)));
    }
    if rng.chance(15) {
        spec.deadline = Some(Span::from_millis(*rng.pick(&[20, 300, 2_000, 20_000])));
        if rng.chance(50) {
            spec.after_deadline = AfterDeadline::Stop;
        }
    }
    if rng.chance(12) {
        spec.overlap = Overlap::Forbid;
    } else if rng.chance(20) {
        spec.key = Some(format!("key{}", rng.below(12)));
    }
    Plan {
        spec: Arc::new(spec),
        duration_us: (longest / 10, longest),
        fail_first: if fails { u32::try_from(rng.range(1, 5)).expect("small") } else { 0 },
        ignores_term: rng.chance(15),
        poison,
        unstartable: rng.chance(3),
        runs: BTreeMap::new(),
    }
}

/// Whether any of these could ever run a job with this spec.
pub fn is_possible(spec: &JobSpec, executors: &[Capability]) -> bool {
    executors.iter().any(|capability| capable(spec.kind(), &spec.needs, capability).is_ok())
}
