//! What a job begins with, put into its directory.
//!
//! Makes `dirs`, and each of `inputs` with the directories above it: mode 0755 for directories and
//! what may be executed, 0644 for the rest, whatever the umask. Contents are copied, never linked:
//! a job may write to its own. Where the file system can, a copy shares blocks until then.
//! Law: returns only when nothing writes to the directory any more (`beside` in attempt.rs).
//! Source: copy_file_range(2), by way of `std::io::copy`.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use crate::proto::content::Content;
use crate::proto::job::JobSpec;
use crate::proto::limits;
use crate::proto::message::StartOrder;
use crate::runtime::process::stdin::{Fetch, open_regular};
use crate::runtime::process::{Control, Unstarted};

use super::{BrokenOff, beside};

/// The mode of directories and of files that may be executed.
const OPEN_MODE: u32 = 0o755;
/// The mode of other files.
const FILE_MODE: u32 = 0o644;

/// Puts all directories and files of a spec into `work`, which is empty.
///
/// # Errors
/// One of them cannot be had or put there; the error names it.
pub(super) async fn put_all(
    fetch: &impl Fetch,
    order: &StartOrder,
    control: &Control,
    work: &Path,
) -> Result<(), Unstarted> {
    let spec = &order.spec;
    if spec.inputs.is_empty() && spec.dirs.is_empty() {
        return Ok(());
    }
    let (at, own) = (work.to_owned(), Arc::clone(spec));
    run(control, move |broken_off| put_own(&at, &own, broken_off)).await?;
    for (path, input) in &spec.inputs {
        // One after the other, so that a job with many has no more than one open.
        let Content::Blob(digest) = input.content else { continue };
        let fetched = tokio::select! {
            biased;
            signal = control.ended_early() => return Err(Unstarted::Killed(signal)),
            fetched = fetch.fetch(digest) => fetched,
        };
        let from =
            fetched.map_err(|error| Unstarted::unable(format!("input {path:?}: {error}")))?;
        let (at, path, executable) = (work.to_owned(), path.clone(), input.executable);
        let put = move |broken_off: &BrokenOff| {
            let made = create(&at, &path, executable);
            let copied = made.and_then(|mut to| copy(from, &mut to, broken_off));
            copied.map_err(|error| cannot(&path, &error))
        };
        run(control, put).await?;
    }
    Ok(())
}

async fn run(
    control: &Control,
    work: impl FnOnce(&BrokenOff) -> Result<(), String> + Send + 'static,
) -> Result<(), Unstarted> {
    match beside(control, work).await {
        (_, Some(signal)) => Err(Unstarted::Killed(signal)),
        (done, None) => done.map_err(Unstarted::unable),
    }
}

/// Puts what needs no broker.
fn put_own(work: &Path, spec: &JobSpec, broken_off: &BrokenOff) -> Result<(), String> {
    for path in &spec.dirs {
        let made = make_directories(work, path);
        made.map_err(|error| format!("directory {path:?} cannot be made: {error}"))?;
    }
    for (path, input) in &spec.inputs {
        if broken_off.is_set() {
            return Ok(());
        }
        let put = match &input.content {
            Content::Blob(_) => continue,
            Content::File(source) => {
                let from = open_regular(Path::new(source))
                    .map_err(|error| format!("input {path:?}: cannot read {source}: {error}"))?;
                let made = create(work, path, input.executable);
                made.and_then(|mut to| copy(from, &mut to, broken_off))
            }
            Content::Text(_) | Content::Base64(_) => {
                let bytes = input.content.inline();
                let bytes = bytes.ok_or_else(|| format!("input {path:?}: no base64"))?;
                let made = create(work, path, input.executable);
                made.and_then(|mut to| to.write_all(&bytes))
            }
        };
        put.map_err(|error| cannot(path, &error))?;
    }
    Ok(())
}

fn cannot(path: &str, error: &io::Error) -> String {
    format!("input {path:?} cannot be put into the job's directory: {error}")
}

/// Makes an empty file, and the directories above it.
pub(super) fn create(work: &Path, path: &str, executable: bool) -> io::Result<File> {
    if let Some((above, _)) = path.rsplit_once('/') {
        make_directories(work, above)?;
    }
    let mode = if executable { OPEN_MODE } else { FILE_MODE };
    let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(work.join(path))?;
    file.set_permissions(Permissions::from_mode(mode))?;
    Ok(file)
}

/// Makes a directory and those above it.
pub(super) fn make_directories(work: &Path, path: &str) -> io::Result<()> {
    let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
    for end in ends {
        let directory = work.join(&path[..end]);
        match DirBuilder::new().mode(OPEN_MODE).create(&directory) {
            Ok(()) => std::fs::set_permissions(&directory, Permissions::from_mode(OPEN_MODE))?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Copies a file from where it stands to its end.
///
/// # Errors
/// Reading or writing failed. Broken off it ends early without an error.
pub(super) fn copy(mut from: File, to: &mut File, broken_off: &BrokenOff) -> io::Result<()> {
    loop {
        let copied = io::copy(&mut (&mut from).take(limits::COPY_PIECE_BYTES), to)?;
        if copied == 0 || broken_off.is_set() {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn put(json: &str) -> (tempfile::TempDir, Result<(), String>) {
        let work = tempfile::tempdir().expect("a directory");
        let spec: JobSpec = serde_json::from_str(json).expect("a spec");
        let done = put_own(work.path(), &spec, &BrokenOff::default());
        (work, done)
    }

    #[test]
    fn files_and_directories_are_made_with_their_modes() {
        let (work, done) = put(r#"{"command":["a"],"dirs":["out/deep"],"inputs":{
                "a/b/c":{"text":"text"},"run":{"base64":"/wA=","executable":true}}}"#);
        assert_eq!(done, Ok(()));
        let mode = |path: &str| {
            let found = work.path().join(path).metadata().expect("it is there");
            found.mode() & 0o7777
        };
        assert_eq!((mode("out/deep"), mode("a"), mode("a/b")), (0o755, 0o755, 0o755));
        assert_eq!((mode("a/b/c"), mode("run")), (0o644, 0o755));
        assert_eq!(std::fs::read(work.path().join("a/b/c")).expect("it is there"), b"text");
        assert_eq!(std::fs::read(work.path().join("run")).expect("it is there"), [0xff, 0]);
    }

    #[test]
    fn what_cannot_be_put_is_named() {
        let (_work, done) = put(r#"{"command":["a"],"dirs":["a"],"inputs":{"a":{"text":""}}}"#);
        assert!(done.expect_err("both").starts_with("input \"a\" cannot be put"));
        let (_work, done) = put(r#"{"command":["a"],"inputs":{"a":{"file":"/no/such"}}}"#);
        assert_eq!(
            done.expect_err("absent"),
            "input \"a\": cannot read /no/such: No such file or directory (os error 2)"
        );
    }
}
