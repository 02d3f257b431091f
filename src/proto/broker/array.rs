//! Arrays: one job of many elements, of which each is deployed, tried again and told by itself.
//!
//! What is decided of an element is decided by the fold of its own facts. Here elements that stand
//! alike are handled together: one fact deploys many ([`limits::LEASE_ELEMENTS_MAX`]), one accepts
//! many, and nothing is done about those that only wait. So a long array costs what is done about
//! it, not what it has.
//! Who waits for an array's results has so many told at a time as it can take: what it has not
//! taken waits as a set of numbers.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::fleet::Assigned;
use super::{Broker, Timer};
use crate::proto::event::Reply;
use crate::proto::fact::{Body, Deployed, Reason};
use crate::proto::fold::{JobFacts, Step, Tries};
use crate::proto::id::{AttemptId, Dot, ExecutorId, JobId, RequestId, TaskId};
use crate::proto::job::JobSpec;
use crate::proto::limits;
use crate::proto::ranges::Ranges;
use crate::proto::time::Monotonic;
use crate::proto::view::JobState;

/// What there is to do about an array's elements.
#[derive(Debug, Clone, Default)]
pub(super) struct ArrayWork {
    /// Elements whose facts changed since they were settled.
    pub dirty: Ranges,
    /// Elements that may be deployed.
    ready: Ranges,
    /// Those of them whose executor was lost before.
    cautious: Ranges,
    /// Elements that wait for the end of their back-off.
    delayed: BTreeMap<u64, Monotonic>,
    /// Elements per state, as they were counted.
    counted: BTreeMap<JobState, u64>,
    /// What executors get to know of the spec.
    lean: Option<Arc<JobSpec>>,
}

impl Broker {
    /// Does for the elements whose facts changed what their owner has to do.
    pub(super) fn settle_array(&mut self, id: JobId, ours: bool) {
        loop {
            let Some(job) = self.jobs.get_mut(&id) else { return };
            let Some(work) = &mut job.array else { return };
            let dirty = std::mem::take(&mut work.dirty);
            if dirty.is_empty() {
                break;
            }
            if let Some(work) = &mut job.array {
                work.ready.subtract(&dirty);
                work.cautious.subtract(&dirty);
            }
            let (_, held) = self.settle_ghosts(id, ours);
            if ours {
                self.settle_elements(id, &dirty, &held);
            } else {
                self.accept_elements_for_another(id, &dirty);
            }
            self.stop_orphans_of(id, &dirty);
        }
        self.account_array(id);
    }

    /// Accepts results of another broker's array that were reported here.
    fn accept_elements_for_another(&mut self, id: JobId, dirty: &Ranges) {
        let Some(job) = self.jobs.get(&id) else { return };
        let Some(all) = job.facts.elements() else { return };
        let mut accepts: BTreeMap<Dot, Ranges> = BTreeMap::new();
        for (first, last) in job.facts.parts(&dirty.intersection(all)) {
            let Step::Accept(reported) = job.facts.task(Some(first)).step() else { continue };
            if self.accepts_for_another(id, &reported) {
                accepts.entry(reported).or_default().insert_run(first, last);
            }
        }
        for (reported, elements) in accepts {
            self.accept(id, &reported, Some(elements));
        }
    }

    /// `held` are elements of which an attempt lives that no fact speaks of.
    fn settle_elements(&mut self, id: JobId, dirty: &Ranges, held: &Ranges) {
        let Some(job) = self.jobs.get(&id) else { return };
        let Some(all) = job.facts.elements() else { return };
        let mut dirty = dirty.intersection(all);
        dirty.subtract(&self.expire_elements(id, &dirty));
        let Some(job) = self.jobs.get(&id) else { return };
        let mut accepts: BTreeMap<Dot, Ranges> = BTreeMap::new();
        let mut parks: BTreeMap<(u32, u32), Ranges> = BTreeMap::new();
        let (mut ready, mut cautious) = (Ranges::default(), Ranges::default());
        for (first, last) in job.facts.parts(&dirty) {
            let facts = job.facts.task(Some(first));
            match facts.step() {
                Step::Nothing => {}
                Step::Accept(reported) => {
                    accepts.entry(reported).or_default().insert_run(first, last);
                }
                Step::Park { lost } => {
                    let parked = parks.entry((facts.generation(), lost)).or_default();
                    parked.insert_run(first, last);
                }
                Step::Deploy { tries, .. } => {
                    ready.insert_run(first, last);
                    // What has a checkpoint to begin with goes by itself as well.
                    if tries.lost > 0 || !facts.checkpoints(facts.generation()).is_empty() {
                        cautious.insert_run(first, last);
                    }
                }
            }
        }
        for (reported, elements) in accepts {
            self.accept(id, &reported, Some(elements));
        }
        for ((generation, lost), elements) in parks {
            let reason = format!("it took down {lost} executors");
            let body = Body::Parked(Reason { reason });
            self.write_elements(id, generation, Some(elements), body);
        }
        ready.subtract(held);
        ready.subtract(&self.occupied(id).1);
        cautious = cautious.intersection(&ready);
        if !ready.is_empty() {
            self.make_ready(id, &ready, &cautious);
        }
    }

    fn make_ready(&mut self, id: JobId, elements: &Ranges, cautious: &Ranges) {
        use super::deploy::Dependencies;
        match self.dependencies(id) {
            Dependencies::Met => {}
            Dependencies::Open => return,
            Dependencies::Failed(other, state) => {
                let reason = format!("job {other} ended as {}", state.word());
                return self.skip_elements(id, elements, &reason);
            }
        }
        let now = self.now.mono;
        let Some(work) = self.jobs.get_mut(&id).and_then(|job| job.array.as_mut()) else { return };
        work.ready.extend(elements);
        work.cautious.extend(cautious);
        let delayed = work.delayed.iter().filter(|(element, _)| elements.contains(**element));
        let delayed: Vec<(u64, Monotonic)> = delayed.map(|(e, due)| (*e, *due)).collect();
        for (element, due) in delayed {
            if due <= now {
                work.delayed.remove(&element);
            } else {
                work.ready.remove(element);
                work.cautious.remove(element);
                self.timers.insert((due, Timer::Retry(id)));
            }
        }
    }

    fn skip_elements(&mut self, id: JobId, elements: &Ranges, reason: &str) {
        let Some(job) = self.jobs.get(&id) else { return };
        let mut skips: BTreeMap<u32, Ranges> = BTreeMap::new();
        for (first, last) in job.facts.parts(elements) {
            let generation = job.facts.task(Some(first)).generation();
            skips.entry(generation).or_default().insert_run(first, last);
        }
        for (generation, elements) in skips {
            let body = Body::Skipped(Reason { reason: reason.to_owned() });
            self.write_elements(id, generation, Some(elements), body);
        }
    }

    /// Whether any element may be deployed.
    pub(super) fn has_ready(&self, id: JobId) -> bool {
        let work = self.jobs.get(&id).and_then(|job| job.array.as_ref());
        work.is_some_and(|work| !work.ready.is_empty())
    }

    /// Holds elements back after their attempts failed or were lost; `times` says how often.
    pub(super) fn back_off_elements(
        &mut self,
        id: JobId,
        elements: &Ranges,
        times: impl Fn(&Tries) -> u32,
    ) {
        let Some(job) = self.jobs.get(&id) else { return };
        let mut waits = vec![];
        for (first, last) in job.facts.parts(elements) {
            let Step::Deploy { tries, .. } = job.facts.task(Some(first)).step() else { continue };
            if let Some(wait) = super::deploy::back_off(times(&tries)) {
                waits.push((first, last, self.now.mono.after(wait)));
            }
        }
        let Some(work) = self.jobs.get_mut(&id).and_then(|job| job.array.as_mut()) else { return };
        for (first, last, until) in waits {
            (first..=last).for_each(|element| work.delay(element, until));
        }
    }

    /// Whether every element that may be deployed is one that lost an executor before.
    pub(super) fn is_cautious(&self, id: JobId) -> bool {
        let Some(job) = self.jobs.get(&id) else { return false };
        match &job.array {
            Some(work) => work.ready.len() == work.cautious.len(),
            None => matches!(job.facts.step(), Step::Deploy { tries, .. } if tries.lost > 0),
        }
    }

    /// Deploys elements on an executor: as many as it has room for and one fact may cover.
    pub(super) fn deploy_elements(&mut self, id: JobId, executor: &ExecutorId) {
        if self.is_overdue(id) {
            // Its timer is due as well, and comes after this.
            return self.unsettle(id);
        }
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let Some((_, submitted)) = job.facts.submitted() else { return };
        let spec = Arc::clone(&submitted.spec);
        let Some(seat) = self.fleet.seats.get(executor) else { return };
        let Some(life) = seat.hello.as_ref().map(|hello| hello.incarnation.life) else { return };
        let Some(work) = &mut job.array else { return };
        let begins = seat.begins(&spec.needs);
        let wanted = if begins > 0 && !work.cautious.is_empty() {
            // It goes by itself, and only where it begins at once: waiting behind others that
            // take executors down must not count against it.
            work.cautious.clone().take_first(1)
        } else {
            let room = seat.room(&spec.needs).clamp(1, limits::LEASE_ELEMENTS_MAX);
            let mut careless = work.ready.first_of(room + work.cautious.len());
            careless.subtract(&work.cautious);
            careless.take_first(room)
        };
        let Some(chosen) = choose(&job.facts, &wanted) else {
            return self.forget_queued(id);
        };
        let Chosen { generation, fence, elements } = chosen;
        work.forget(&elements);
        let lease_ms = self.lease_ms(id);
        let executor_id = executor.clone();
        let body = Body::Deployed(Deployed { executor: executor_id, life, fence, lease_ms });
        let dot = self.write_elements(id, generation, Some(elements.clone()), body);
        let now = self.now.mono;
        let Some(seat) = self.fleet.seats.get_mut(executor) else { return };
        for element in elements.iter() {
            let attempt = AttemptId::new(dot.clone(), Some(element));
            let needs = spec.needs.clone();
            seat.assign(attempt, Assigned { job: Some(id), needs, stopping: false });
        }
        let session = seat.session;
        self.fleet.refresh(executor);
        self.start(session, id, &AttemptId::from(dot.clone()), Some(&elements));
        self.watch_recall(executor, now);
        for element in elements.iter() {
            let attempt = AttemptId::new(dot.clone(), Some(element));
            self.tell_deployed(id, &attempt, executor, session);
        }
    }

    /// What an executor is told of an array's spec, with the items of some elements.
    pub(super) fn lean_spec(&mut self, id: JobId) -> Option<Arc<JobSpec>> {
        let job = self.jobs.get_mut(&id)?;
        let (_, submitted) = job.facts.submitted()?;
        let spec = &submitted.spec;
        let work = job.array.as_mut()?;
        let lean = work.lean.get_or_insert_with(|| {
            let placeholder = spec.placeholder.clone();
            Arc::new(JobSpec { placeholder, ..spec.without_array() })
        });
        Some(Arc::clone(lean))
    }

    /// Brings counts, watchers and dependants in line with the states of the elements.
    /// Takes a job out of the counts, as another spec of it is held from now on.
    pub(super) fn discount(&mut self, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let Some(born) = job.born.take() else { return };
        let counted = match job.array.take() {
            Some(work) => work.counted,
            None => job.state.map(|state| (state, 1)).into_iter().collect(),
        };
        job.state = None;
        for (state, count) in counted {
            if let Some(held) = self.counts.get_mut(&(born.clone(), state)) {
                *held -= count;
            }
        }
    }

    fn account_array(&mut self, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let Some(born) = job.facts.birth().map(|dot| dot.log.clone()) else { return };
        let (Some(states), Some(work)) = (job.facts.states(), &mut job.array) else { return };
        let counts: BTreeMap<JobState, u64> =
            states.iter().map(|(state, elements)| (*state, elements.len())).collect();
        let before = std::mem::replace(&mut work.counted, counts.clone());
        let was_in = job.born.replace(born.clone()).unwrap_or_else(|| born.clone());
        for (state, count) in before {
            if let Some(held) = self.counts.get_mut(&(was_in.clone(), state)) {
                *held -= count;
            }
        }
        for (state, count) in counts {
            *self.counts.entry((born.clone(), state)).or_default() += count;
        }
        let state = job.facts.state();
        let changed = std::mem::replace(&mut job.state, state) != state;
        if self.array_watches.contains_key(&id) {
            self.telling.insert((job.arrival, id));
        }
        self.tell_elements(id);
        if changed && state.is_some_and(JobState::is_ended) {
            let dependants = self.dependants.get(&id).cloned().unwrap_or_default();
            dependants.into_iter().for_each(|dependant| self.unsettle(dependant));
        }
    }

    /// Tells those who wait for single elements of an array that ended.
    fn tell_elements(&mut self, id: JobId) {
        let of_job = TaskId::new(id, Some(0))..=TaskId::new(id, Some(u64::MAX));
        let mut watched = self.watchers.range(of_job).map(|(task, _)| *task).peekable();
        if watched.peek().is_none() {
            return;
        }
        let ended = self.ended_elements(id);
        let told = watched.filter(|task| task.element.is_some_and(|e| ended.contains(e)));
        for task in told.collect::<Vec<_>>() {
            self.tell_end(task);
        }
    }

    /// Has the ends of all elements told, those that lie behind first.
    pub(super) fn watch_array(&mut self, request: RequestId, id: JobId) {
        let Some(job) = self.jobs.get(&id) else { return };
        let Some(left) = job.facts.elements().cloned() else { return };
        self.telling.insert((job.arrival, id));
        self.array_watches.entry(id).or_default().insert(request, left);
        self.credits.entry(request).or_insert(self.config.elements_told_max);
        self.watched.entry(request).or_default().insert(id.into());
    }

    /// A client took so many of the ends that it was told.
    pub(super) fn take_told(&mut self, request: RequestId, count: usize) {
        let Some(credit) = self.credits.get_mut(&request) else { return };
        *credit = credit.saturating_add(count).min(self.config.elements_told_max);
        let watched = self.watched.get(&request).into_iter().flatten();
        let arrays = watched.filter(|task| self.array_watches.contains_key(&task.job));
        let arrays = arrays.filter_map(|task| Some((self.jobs.get(&task.job)?.arrival, task.job)));
        self.telling.extend(arrays);
    }

    /// Tells the ends of elements to those who wait, as many as they can take.
    pub(super) fn tell_arrays(&mut self) {
        while let Some((_, id)) = self.telling.pop_first() {
            let Some(mut watches) = self.array_watches.remove(&id) else { continue };
            let ended = self.ended_elements(id);
            watches.retain(|request, left| {
                self.tell_array(*request, id, &ended, left);
                !left.is_empty()
            });
            if !watches.is_empty() {
                self.array_watches.insert(id, watches);
            }
        }
    }

    /// Tells one of them the ends of the elements that are `left` to be told.
    fn tell_array(&mut self, request: RequestId, id: JobId, ended: &Ranges, left: &mut Ranges) {
        let mut credit = self.credits.get(&request).copied().unwrap_or(0);
        for element in ended.intersection(left).iter().take(credit) {
            let Some(ended) = self.ended(TaskId::new(id, Some(element))) else { continue };
            self.reply(request, Reply::Ended(Box::new(ended)));
            left.remove(element);
            credit -= 1;
        }
        self.credits.insert(request, credit);
        if left.is_empty()
            && let Some(watched) = self.watched.get_mut(&request)
        {
            watched.remove(&id.into());
            if watched.is_empty() {
                self.watched.remove(&request);
            }
        }
    }

    /// The elements that ended or are parked.
    fn ended_elements(&self, id: JobId) -> Ranges {
        let mut ended = Ranges::default();
        let states = self.jobs.get(&id).and_then(|job| job.facts.states()).into_iter().flatten();
        for (state, elements) in states {
            if state.is_ended() || *state == JobState::Parked {
                ended.extend(elements);
            }
        }
        ended
    }
}

impl ArrayWork {
    /// Holds an element back until then at least.
    pub(super) fn delay(&mut self, element: u64, until: Monotonic) {
        let held = self.delayed.entry(element).or_insert(until);
        *held = (*held).max(until);
    }

    /// The end of an element's back-off.
    pub(super) fn delayed_until(&self, element: u64) -> Option<Monotonic> {
        self.delayed.get(&element).copied()
    }

    /// Has those elements settled again whose back-off is over.
    pub(super) fn wake(&mut self, now: Monotonic) {
        let due = self.delayed.iter().filter(|(_, due)| **due <= now);
        let due: Ranges = due.map(|(element, _)| *element).collect();
        self.dirty.extend(&due);
    }

    /// Takes elements out of those that are to be deployed.
    fn forget(&mut self, elements: &Ranges) {
        self.ready.subtract(elements);
        self.cautious.subtract(elements);
        if !self.delayed.is_empty() {
            elements.iter().for_each(|element| {
                self.delayed.remove(&element);
            });
        }
    }
}

/// Elements that one fact deploys.
struct Chosen {
    generation: u32,
    /// 1 + the greatest fence known of any of them.
    fence: u64,
    elements: Ranges,
}

/// The first of `wanted` with all others that are of the same generation.
fn choose(facts: &JobFacts, wanted: &Ranges) -> Option<Chosen> {
    let mut chosen: Option<Chosen> = None;
    for (first, last) in facts.parts(wanted) {
        let task = facts.task(Some(first));
        let Step::Deploy { fence, .. } = task.step() else { continue };
        let generation = task.generation();
        let chosen =
            chosen.get_or_insert(Chosen { generation, fence, elements: Ranges::default() });
        if chosen.generation == generation {
            chosen.fence = chosen.fence.max(fence);
            chosen.elements.insert_run(first, last);
        }
    }
    chosen
}
