//! What an earlier attempt kept, put where this one finds it.
//!
//! The newest checkpoint that can be had whole is used: one that is absent, damaged or wrong is
//! told and the next is tried, and at last the job begins anew. It never fails for that.
//! Laws: what is there when [`restore`] returns is one checkpoint as it was kept, or nothing; and
//! nothing writes to the directory any more.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use crate::proto::checkpoint::{KeptFile, Manifest};
use crate::proto::id::Digest;
use crate::proto::limits;
use crate::proto::message::StartOrder;
use crate::runtime::attempt::{beside, inputs};
use crate::runtime::process::stdin::Fetch;
use crate::runtime::process::{Control, Unstarted};
use crate::runtime::rooms::remove_tree;

/// Why a checkpoint is not there.
enum Failed {
    /// A signal came.
    Killed(i32),
    /// In words.
    Unusable(String),
}

/// Puts the newest of an order's checkpoints that can be had into `target`, which is empty, and
/// says which it is.
///
/// # Errors
/// The attempt was told to end meanwhile.
pub(in crate::runtime::attempt) async fn restore(
    fetch: &impl Fetch,
    order: &StartOrder,
    control: &Control,
    target: &Path,
) -> Result<Option<Digest>, Unstarted> {
    let attempt = &order.attempt;
    for digest in &order.checkpoints {
        match restore_one(fetch, *digest, control, target).await {
            Ok(manifest) => {
                let (files, bytes) = (manifest.files.len(), manifest.bytes());
                let has = format!("{files} files, {bytes} bytes");
                tracing::info!("attempt {attempt} goes on from checkpoint {digest}: {has}");
                return Ok(Some(*digest));
            }
            Err(Failed::Killed(signal)) => return Err(Unstarted::Killed(signal)),
            Err(Failed::Unusable(words)) => {
                tracing::warn!("attempt {attempt}: checkpoint {digest} cannot be used: {words}");
                let at = target.to_owned();
                let (cleared, _) = beside(control, move |_| clear(&at)).await;
                if let Err(error) = cleared {
                    let words =
                        format!("what was begun of a checkpoint cannot be removed: {error}");
                    return Err(Unstarted::Unfit(words));
                }
            }
        }
    }
    if !order.checkpoints.is_empty() {
        tracing::warn!("attempt {attempt} begins anew: none of its checkpoints can be used");
    }
    Ok(None)
}

async fn restore_one(
    fetch: &impl Fetch,
    digest: Digest,
    control: &Control,
    target: &Path,
) -> Result<Manifest, Failed> {
    let file = fetch_one(fetch, digest, control).await?;
    let manifest = on_disk(control, move || read(file)).await?;
    let (at, dirs) = (target.to_owned(), manifest.dirs.clone());
    on_disk(control, move || {
        let mut made = dirs.iter().map(|path| (path, inputs::make_directories(&at, path)));
        made.try_for_each(|(path, made)| made.map_err(|error| cannot(path, &error)))
    })
    .await?;
    // Each content comes once, for all files that have it.
    let mut wanted: BTreeMap<Digest, Vec<(String, KeptFile)>> = BTreeMap::new();
    for (path, file) in &manifest.files {
        wanted.entry(file.blob).or_default().push((path.clone(), file.clone()));
    }
    for (blob, files) in wanted {
        let mut from = fetch_one(fetch, blob, control).await?;
        let at = target.to_owned();
        let put = move |broken_off: &super::BrokenOff| {
            for (path, file) in files {
                io::Seek::rewind(&mut from).map_err(|error| cannot(&path, &error))?;
                let from = from.try_clone().map_err(|error| cannot(&path, &error))?;
                put_one(from, &at, &path, &file, broken_off)?;
            }
            Ok(())
        };
        match beside(control, put).await {
            (_, Some(signal)) => return Err(Failed::Killed(signal)),
            (put, None) => put.map_err(Failed::Unusable)?,
        }
    }
    Ok(manifest)
}

fn put_one(
    from: File,
    target: &Path,
    path: &str,
    file: &KeptFile,
    broken_off: &super::BrokenOff,
) -> Result<(), String> {
    let has = from.metadata().map_err(|error| cannot(path, &error))?.len();
    if has != file.size {
        return Err(format!("{path:?} has {} bytes, and its blob {has}", file.size));
    }
    let put = inputs::create(target, path, file.executable)
        .and_then(|mut to| inputs::copy(from, &mut to, broken_off));
    put.map_err(|error| cannot(path, &error))
}

fn cannot(path: &str, error: &io::Error) -> String {
    format!("{path:?} cannot be put into the job's directory: {error}")
}

async fn fetch_one(fetch: &impl Fetch, digest: Digest, control: &Control) -> Result<File, Failed> {
    tokio::select! {
        biased;
        signal = control.ended_early() => Err(Failed::Killed(signal)),
        fetched = fetch.fetch(digest) => fetched.map_err(Failed::Unusable),
    }
}

async fn on_disk<T: Send + 'static>(
    control: &Control,
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, Failed> {
    match beside(control, move |_| work()).await {
        (_, Some(signal)) => Err(Failed::Killed(signal)),
        (done, None) => done.map_err(Failed::Unusable),
    }
}

fn read(file: File) -> Result<Manifest, String> {
    let most = limits::CHECKPOINT_MANIFEST_BYTES_MAX as u64 + 1;
    let mut bytes = vec![];
    let read = file.take(most).read_to_end(&mut bytes);
    read.map_err(|error| format!("the manifest cannot be read: {error}"))?;
    Manifest::read(&bytes).map_err(|error| error.to_string())
}

/// Removes everything in a directory, and leaves the directory.
fn clear(directory: &Path) -> io::Result<()> {
    for entry in directory.read_dir()? {
        remove_tree(&entry?.path())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::sync::Arc;

    use super::*;
    use crate::proto::clock::Clock;
    use crate::proto::id::JobId;

    /// Blobs in a directory, checked when they are read.
    struct Blobs(tempfile::TempDir);

    impl Fetch for Blobs {
        async fn fetch(&self, digest: Digest) -> Result<File, String> {
            let path = self.0.path().join(digest.to_string());
            match std::fs::read(&path) {
                Ok(bytes) if Digest::of(&bytes) == digest => {
                    Ok(File::open(path).expect("it is there"))
                }
                Ok(_) => Err(format!("blob {digest}: damaged")),
                Err(_) => Err(format!("blob {digest}: absent")),
            }
        }
    }

    impl Blobs {
        fn put(&self, bytes: &[u8]) -> Digest {
            let digest = Digest::of(bytes);
            std::fs::write(self.0.path().join(digest.to_string()), bytes).expect("room");
            digest
        }

        fn manifest(&self, files: &[(&str, &str)]) -> Digest {
            let file = |(path, text): &(&str, &str)| {
                let (size, blob) = (text.len() as u64, self.put(text.as_bytes()));
                let executable = text.starts_with("#!");
                ((*path).to_owned(), KeptFile { size, blob, executable })
            };
            let files = files.iter().map(file).collect();
            let dirs = ["empty/deep".to_owned()].into();
            self.put(&Manifest::new(files, dirs).to_bytes())
        }
    }

    fn order(checkpoints: Vec<Digest>) -> StartOrder {
        StartOrder {
            attempt: "north-1.1".parse().expect("an attempt"),
            job: "01890a5d-ac96-774b-bcce-b302099a8057".parse::<JobId>().expect("an id"),
            generation: 1,
            fence: 1,
            clock: Clock::default(),
            spec: Arc::new(serde_json::from_str(r#"{"command":["a"]}"#).expect("a spec")),
            elements: None,
            items: vec![],
            lease: None,
            checkpoints,
            carried: vec![],
        }
    }

    fn all_below(directory: &Path) -> Vec<String> {
        let mut found = vec![];
        let mut waiting = vec![directory.to_owned()];
        while let Some(at) = waiting.pop() {
            for entry in at.read_dir().expect("readable").flatten() {
                let path = entry.path();
                let name = path.strip_prefix(directory).expect("below").display().to_string();
                found.push(name);
                if path.is_dir() {
                    waiting.push(path);
                }
            }
        }
        found.sort();
        found
    }

    #[tokio::test(flavor = "current_thread")]
    async fn the_newest_checkpoint_that_is_whole_is_put_there_and_else_nothing() {
        let blobs = Blobs(tempfile::tempdir().expect("a directory"));
        let whole = blobs.manifest(&[("n", "1"), ("twin", "1"), ("deep/run", "#!/bin/sh")]);
        let absent = Digest::of(b"no such blob");
        let damaged = blobs.manifest(&[("a", "2"), ("m", "3"), ("z", "4")]);
        let path = blobs.0.path().join(Digest::of(b"3").to_string());
        std::fs::write(path, "x").expect("room");
        let wrong = blobs.put(br#"{"v":1,"files":{},"dirs":["../out"]}"#);
        let mut sized = Manifest::new([].into(), [].into());
        let file = KeptFile { size: 7, blob: Digest::of(b"1"), executable: false };
        sized.files.insert("n".into(), file);
        let sized = blobs.put(&sized.to_bytes());
        let newer = blobs.put(br#"{"v":9}"#);
        let control = Control::default();
        let target = tempfile::tempdir().expect("a directory");
        let inode = target.path().metadata().expect("it is there").ino();
        let broken = vec![absent, damaged, wrong, sized, newer];
        let done = restore(&blobs, &order(broken.clone()), &control, target.path()).await;
        assert!(matches!(done, Ok(None)) && all_below(target.path()).is_empty(), "nothing is left");
        let order = order([broken, vec![whole, damaged]].concat());
        let done = restore(&blobs, &order, &control, target.path()).await;
        assert_eq!(done.expect("no signal"), Some(whole));
        let expected = ["deep", "deep/run", "empty", "empty/deep", "n", "twin"];
        assert_eq!(all_below(target.path()), expected);
        let read = |path: &str| std::fs::read_to_string(target.path().join(path)).expect("a file");
        assert_eq!(
            (read("n"), read("twin"), read("deep/run").as_str()),
            ("1".into(), "1".into(), "#!/bin/sh")
        );
        let mode = |path: &str| target.path().join(path).metadata().expect("a file").mode() & 0o777;
        assert_eq!((mode("n"), mode("deep/run")), (0o644, 0o755));
        assert_eq!(target.path().metadata().expect("it is there").ino(), inode, "the same place");
    }
}
