//! The queue: which waiting job goes next.
//!
//! Pure. Jobs of one kind with the same needs wait in one class, ordered by [`Rank`]; of all
//! classes that fit a free executor the one whose head has the least rank is served (invariant
//! I8). Ranks are unique, since they hold the order of arrival.

use std::collections::BTreeMap;

use crate::proto::capability::{Kind, Needs};
use crate::proto::id::JobId;
use crate::proto::precedence::{Precedence, Rank};

type Classes = BTreeMap<Needs, BTreeMap<Rank, (JobId, Precedence)>>;

/// The jobs that wait for an executor.
#[derive(Debug, Clone, Default)]
pub struct Queue {
    native: Classes,
    wasm: Classes,
    levels: BTreeMap<Precedence, u64>,
}

impl Queue {
    /// Adds a job.
    pub fn insert(
        &mut self,
        kind: Kind,
        needs: &Needs,
        rank: Rank,
        job: JobId,
        precedence: Precedence,
    ) {
        let classes = self.classes(kind);
        let class = match classes.get_mut(needs) {
            Some(class) => class,
            None => classes.entry(needs.clone()).or_default(),
        };
        if class.insert(rank, (job, precedence)).is_none() {
            *self.levels.entry(precedence).or_default() += 1;
        }
    }

    /// Takes a job out.
    pub fn remove(&mut self, kind: Kind, needs: &Needs, rank: Rank) {
        let classes = self.classes(kind);
        let Some(class) = classes.get_mut(needs) else { return };
        let removed = class.remove(&rank);
        if class.is_empty() {
            classes.remove(needs);
        }
        if let Some((_, precedence)) = removed
            && let Some(count) = self.levels.get_mut(&precedence)
        {
            *count -= 1;
        }
    }

    /// Takes a job out wherever it stands.
    pub fn purge(&mut self, job: JobId) {
        for classes in [&mut self.native, &mut self.wasm] {
            for class in classes.values_mut() {
                class.retain(|_, (held, precedence)| {
                    if *held == job
                        && let Some(count) = self.levels.get_mut(precedence)
                    {
                        *count -= 1;
                    }
                    *held != job
                });
            }
            classes.retain(|_, class| !class.is_empty());
        }
    }

    fn classes(&mut self, kind: Kind) -> &mut Classes {
        match kind {
            Kind::Native => &mut self.native,
            Kind::Wasm => &mut self.wasm,
        }
    }

    /// The first job of each class.
    pub fn heads(&self) -> impl Iterator<Item = (Kind, &Needs, Rank, JobId)> {
        let kinds = [(Kind::Native, &self.native), (Kind::Wasm, &self.wasm)];
        kinds.into_iter().flat_map(|(kind, classes)| {
            classes.iter().filter_map(move |(needs, class)| {
                class.first_key_value().map(|(rank, (job, _))| (kind, needs, *rank, *job))
            })
        })
    }

    /// Jobs that wait, by level.
    #[must_use]
    pub fn levels(&self) -> &BTreeMap<Precedence, u64> {
        &self.levels
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.native.is_empty() && self.wasm.is_empty()
    }
}
