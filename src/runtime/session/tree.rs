//! The cgroup of an executor's jobs on this host: is anything of them left?
//!
//! Asked only when the executor's process is gone. The cgroup was seen when the session began; it
//! must be of cgroup v2 and bear the executor's name, so that nobody has another's processes
//! killed. That it is removed is the proof: nothing can begin in it any more, nor beside it
//! (rooms.rs). What cannot be seen from here is not proven, and the `lost` facts say so.
//! Tested in tests/exec/isolation.rs: processes have to end for it.
//! Source: the kernel's Documentation/admin-guide/cgroup-v2.rst, `cgroup.kill`, `cgroup.events`.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::libc;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, fstatfs};

use crate::proto::message::Hello;
use crate::runtime::entropy;
use crate::runtime::isolation::cgroup;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(2);

/// The cgroup of an executor's jobs, where it can be seen from here.
#[derive(Debug)]
pub(super) struct Tree(Option<PathBuf>);

impl Tree {
    /// Looks for the cgroup that an executor names, if it is on this host.
    pub(super) fn watch(hello: &Hello) -> Self {
        let path = hello.cgroup.as_ref().map(PathBuf::from);
        Self(path.filter(|path| is_of(path, hello).unwrap_or(false)))
    }

    /// Kills what is left there, and waits until the cgroup is removed.
    pub(super) async fn is_gone_within(&self, wait: Duration) -> bool {
        let Some(path) = &self.0 else { return false };
        let gone = async {
            // The executor's guard does so as well; who comes first is all the same.
            while !cgroup::try_remove(path) {
                tokio::time::sleep(PAUSE).await;
            }
        };
        tokio::time::timeout(wait, gone).await.is_ok()
    }
}

fn is_of(path: &Path, hello: &Hello) -> Option<bool> {
    let named = cgroup::is_named(path.file_name()?, hello.executor.as_str());
    if !named || entropy::boot_id().ok()? != hello.incarnation.boot {
        return None;
    }
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let directory = File::options().read(true).custom_flags(flags).open(path).ok()?;
    let kind = fstatfs(&directory).ok()?.filesystem_type();
    Some(kind == CGROUP2_SUPER_MAGIC)
}
