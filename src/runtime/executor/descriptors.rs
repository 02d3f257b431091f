//! Open files of an executor: as many as it may have, and no more slots than they are enough for.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::proto::limits;

/// Three descriptors a job add up. Jobs themselves keep the usual limit: the spawner was forked
/// before.
pub(super) fn raise_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::debug!("the limit of open files stays as it is: {error}");
    }
}

/// As many slots as there are descriptors for.
pub(super) fn affordable(slots: u32) -> u32 {
    let Ok((soft, _)) = getrlimit(Resource::RLIMIT_NOFILE) else { return slots };
    let most = soft.saturating_sub(limits::DESCRIPTORS_OF_EXECUTOR) / limits::DESCRIPTORS_PER_JOB;
    let most = u32::try_from(most.max(1)).unwrap_or(u32::MAX);
    if most < slots {
        tracing::warn!("{soft} open files are enough for {most} slots, not for {slots}");
    }
    slots.min(most)
}
