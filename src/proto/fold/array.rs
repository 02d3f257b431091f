//! The facts of an array's job by element, so that one element's state costs what its own few
//! facts cost.
//!
//! Pure. One fact covers many elements, and most elements of a long array are covered by none but
//! its submission. So nothing is kept per element: facts that follow one deployment (a *lease*)
//! stand together, leases are found by the runs of numbers that they cover, and states are sets of
//! numbers. Elements between two borders of such runs have the same facts and so the same state,
//! which is folded once for all of them.
//! Law: the states are those that folding each element by itself gives (tests/properties/array.rs).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::proto::fact::{Body, Fact, Submitted};
use crate::proto::fold::JobFacts;
use crate::proto::id::Dot;
use crate::proto::limits;
use crate::proto::ranges::Ranges;
use crate::proto::view::JobState;

static NONE: Ranges = Ranges::EMPTY;

/// The facts about an array's job, found by element.
#[derive(Debug, Clone, Default)]
pub(super) struct Array {
    /// Facts that follow no deployment and are about many elements or all, sorted by dot.
    wide: Vec<Arc<Fact>>,
    /// Deployments with what became of them, and facts about few elements that follow none by
    /// themselves; each sorted by dot.
    leases: BTreeMap<Dot, Vec<Arc<Fact>>>,
    /// The runs of numbers that leases cover, by their first number, with the last.
    runs: BTreeMap<u64, Vec<(u64, Dot)>>,
    /// The length of the longest of those.
    longest: u64,
    /// The elements in each state.
    states: BTreeMap<JobState, Ranges>,
    /// The greatest generation that a rerun opened.
    generation: u32,
}

/// The runs are only a way to find things, and may differ with the order of arrival.
impl PartialEq for Array {
    fn eq(&self, other: &Self) -> bool {
        (&self.wide, &self.leases, &self.states) == (&other.wide, &other.leases, &other.states)
    }
}

impl Eq for Array {}

impl Array {
    /// Adds a fact; states are brought up to date by [`Array::refresh`].
    pub(super) fn insert(&mut self, fact: &Arc<Fact>) {
        if let Body::Rerun(_) = fact.body {
            self.generation = self.generation.max(fact.generation);
        }
        let Some(lease) = place_of(fact) else { return place(&mut self.wide, fact) };
        if !self.leases.contains_key(lease) {
            self.leases.insert(lease.clone(), vec![]);
        }
        let Some(held) = self.leases.get_mut(lease) else { return };
        place(held, fact);
        let mut news = Cow::Borrowed(fact.elements.as_ref().unwrap_or(&NONE));
        // What became of a deployment lies within it, unless that one is not held.
        if fact.dot != *lease
            && let Some(deployment) = held.iter().find(|held| held.dot == *lease)
            && let Some(deployed) = &deployment.elements
        {
            news.to_mut().subtract(deployed);
        }
        for (first, last) in news.runs() {
            self.longest = self.longest.max(last - first + 1);
            let held = self.runs.entry(first).or_default();
            if !held.contains(&(last, lease.clone())) {
                held.push((last, lease.clone()));
                held.sort_unstable();
            }
        }
    }

    /// The runs of leases that have a number from `first` to `last`.
    fn upon(&self, first: u64, last: u64) -> impl Iterator<Item = (u64, u64, &Dot)> {
        let from = first.saturating_sub(self.longest);
        let near = self.runs.range(from..=last);
        let runs = near.flat_map(|(start, held)| held.iter().map(|(end, dot)| (*start, *end, dot)));
        runs.filter(move |(_, end, _)| *end >= first)
    }

    /// The submission with the least dot.
    pub(super) fn submitted(&self) -> Option<(&Fact, &Submitted)> {
        self.wide.iter().find_map(|fact| match &fact.body {
            Body::Submitted(body) => Some((&**fact, body)),
            _ => None,
        })
    }

    /// All elements; none while no submission is held.
    fn elements(&self) -> Option<&Ranges> {
        self.submitted().and_then(|(_, body)| body.spec.array.as_ref())
    }

    /// The greatest generation of any element.
    pub(super) fn generation(&self) -> u32 {
        self.generation.max(1)
    }

    /// The facts about one element, sorted by dot.
    pub(super) fn facts_of(&self, element: u64) -> Vec<Arc<Fact>> {
        let concerns = |fact: &&Arc<Fact>| fact.concerns(Some(element));
        let mut facts: Vec<Arc<Fact>> = self.wide.iter().filter(concerns).cloned().collect();
        let mut leases: Vec<&Dot> = self.upon(element, element).map(|(.., dot)| dot).collect();
        leases.sort_unstable();
        leases.dedup();
        for lease in leases {
            let held = self.leases.get(lease).into_iter().flatten();
            facts.extend(held.filter(concerns).cloned());
        }
        // Mostly in order already, so that this is one walk over them.
        facts.sort_by(|a, b| a.dot.cmp(&b.dot));
        facts
    }

    /// Parts `elements` so that all of one part have the same facts.
    pub(super) fn parts(&self, elements: &Ranges) -> Vec<(u64, u64)> {
        let (mut parts, mut borders) = (vec![], vec![]);
        for (first, last) in elements.runs() {
            if first == last {
                parts.push((first, last));
                continue;
            }
            borders.clear();
            let mut border = |covered: &Ranges| {
                for (start, end) in covered.runs_within(first, last) {
                    borders.extend([start, end.saturating_add(1)]);
                }
            };
            self.wide.iter().filter_map(|fact| fact.elements.as_ref()).for_each(&mut border);
            let mut leases: Vec<&Dot> = self.upon(first, last).map(|(.., dot)| dot).collect();
            leases.sort_unstable();
            leases.dedup();
            let held = leases.into_iter().filter_map(|lease| self.leases.get(lease)).flatten();
            held.filter_map(|fact| fact.elements.as_ref()).for_each(border);
            borders.sort_unstable();
            borders.dedup();
            let mut start = first;
            for next in borders.iter().copied().filter(|next| (first + 1..=last).contains(next)) {
                parts.push((start, next - 1));
                start = next;
            }
            parts.push((start, last));
        }
        parts
    }

    /// Brings the states of some elements up to date after facts about them.
    pub(super) fn refresh(&mut self, about: Option<&Ranges>) {
        let Some(all) = self.elements() else { return };
        let elements = match about {
            Some(about) => about.intersection(all),
            None => all.clone(),
        };
        let folded: Vec<_> = self
            .parts(&elements)
            .into_iter()
            .map(|(first, last)| (first, last, self.view(first).state()))
            .collect();
        for (first, last, state) in folded {
            for (held, elements) in &mut self.states {
                if Some(*held) != state {
                    elements.remove_run(first, last);
                }
            }
            if let Some(state) = state {
                self.states.entry(state).or_default().insert_run(first, last);
            }
        }
        self.states.retain(|_, elements| !elements.is_empty());
    }

    /// One element as a job of its own.
    pub(super) fn view(&self, element: u64) -> JobFacts {
        JobFacts::of_element(self.facts_of(element), element)
    }

    pub(super) fn states(&self) -> &BTreeMap<JobState, Ranges> {
        &self.states
    }

    /// Where the array stands as a whole: what any element still does, else how they ended. It
    /// succeeded if all did; else it failed, if any did.
    pub(super) fn state(&self) -> Option<JobState> {
        let open = [JobState::Running, JobState::Waiting, JobState::Parked];
        let ended = [JobState::Failed, JobState::Cancelled, JobState::Expired, JobState::Skipped];
        let held = |state: &JobState| self.states.contains_key(state);
        let first = open.into_iter().chain(ended).find(held);
        first.or_else(|| held(&JobState::Succeeded).then_some(JobState::Succeeded))
    }

    /// Puts another form of a fact in the place of the one that is held.
    pub(super) fn replace(&mut self, fact: &Arc<Fact>) {
        let held = match place_of(fact) {
            Some(lease) => self.leases.get_mut(lease),
            None => Some(&mut self.wide),
        };
        let Some(held) = held else { return };
        if let Ok(at) = held.binary_search_by(|held| held.dot.cmp(&fact.dot)) {
            held[at] = Arc::clone(fact);
        }
    }
}

/// The deployment that a fact stands with, or it by itself where it is about few elements.
fn place_of(fact: &Fact) -> Option<&Dot> {
    let few = |elements: &Ranges| elements.len() <= limits::LEASE_ELEMENTS_MAX;
    fact.lease().or_else(|| fact.elements.as_ref().is_some_and(few).then_some(&fact.dot))
}

fn place(facts: &mut Vec<Arc<Fact>>, fact: &Arc<Fact>) {
    if let Err(at) = facts.binary_search_by(|held| held.dot.cmp(&fact.dot)) {
        facts.insert(at, Arc::clone(fact));
    }
}
