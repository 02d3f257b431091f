//! What a job left behind, from its broker into a directory of ours.
//!
//! Each file is written under a temporary name beside its place and gets its own name when its
//! bytes have the digest that the result tells; one that is there already is replaced. The paths
//! come from outside and are checked again: nothing is written outside of the directory, neither
//! by the words of a path nor through a link in it.
//! Law: whatever the paths, only places below the directory are written (tests below,
//! tests/cli/files.rs).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use hyper::Method;

use crate::cli::exit::Exit;
use crate::cli::report::{Failure, chain};
use crate::proto::content::check_path;
use crate::proto::id::TaskId;
use crate::proto::result::OutputFile;
use crate::runtime::client::{self, Body};
use crate::runtime::transfer::{self, TransferError};

use super::link::{Asked, Link};
use super::run;

/// A directory that outputs are put into.
#[derive(Debug, Clone)]
pub struct OutDir {
    /// What it is called in messages.
    shown: PathBuf,
    /// Where it really is.
    root: PathBuf,
}

impl OutDir {
    /// Makes the directory where it is absent, before a job is run for it.
    ///
    /// # Errors
    /// It cannot be made (73).
    pub fn create(path: &Path) -> Result<Self, Failure> {
        let failed = |error| cannot_create(path, &error);
        fs::create_dir_all(path).map_err(failed)?;
        let root = path.canonicalize().map_err(failed)?;
        Ok(Self { shown: path.to_owned(), root })
    }

    /// A directory in it, which is made where it is absent.
    ///
    /// # Errors
    /// It cannot be made (73).
    pub fn below(&self, name: &str) -> Result<Self, Failure> {
        Self::create(&self.shown.join(name))
    }

    /// Fetches all files of a job, those of one of many into a directory of its own.
    ///
    /// # Errors
    /// The first file that cannot be written (73, 74), is not at the broker, or is not what the
    /// result says; those before it are there.
    pub async fn fetch(
        &self,
        job: TaskId,
        below: Option<&str>,
        outputs: &BTreeMap<String, OutputFile>,
        link: &mut Link,
    ) -> Result<(), Failure> {
        for (path, output) in outputs {
            let fetched = self.fetch_one(below, path, output, link).await;
            fetched.map_err(|failure| {
                let shown = self.shown.display();
                failure.while_doing(format_args!("{job}: cannot fetch {path:?}")).hint(
                    format_args!("'ucp-submit output {job} --out-dir {shown}' fetches it again"),
                )
            })?;
        }
        Ok(())
    }

    async fn fetch_one(
        &self,
        below: Option<&str>,
        path: &str,
        output: &OutputFile,
        link: &mut Link,
    ) -> Result<(), Failure> {
        check_path(path).map_err(|why| Failure::new(Exit::Data, why))?;
        let whole = below.map_or_else(|| path.to_owned(), |below| format!("{below}/{path}"));
        let place = self.place(&whole)?;
        let mut partial = Partial::create(&place, output.executable)?;
        download(output, &mut partial, link).await?;
        partial.keep(&place)
    }

    /// The place of a path, with the directories above it; no link leads out of ours.
    fn place(&self, path: &str) -> Result<PathBuf, Failure> {
        let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
        let mut directory = self.root.clone();
        for part in above.split('/').filter(|part| !part.is_empty()) {
            directory.push(part);
            match fs::create_dir(&directory) {
                Ok(()) => continue,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(cannot_create(&directory, &error)),
            }
            let failed = |error| cannot_create(&directory, &error);
            let real = directory.canonicalize().map_err(failed)?;
            let wrong = |what: &str| {
                Err(Failure::new(Exit::Create, format_args!("{} {what}", directory.display())))
            };
            if !real.starts_with(&self.root) {
                return wrong("leads out of the directory");
            }
            if !real.is_dir() {
                return wrong("is no directory");
            }
            directory = real;
        }
        Ok(directory.join(name))
    }
}

fn cannot_create(path: &Path, error: &io::Error) -> Failure {
    Failure::new(Exit::Create, format_args!("cannot create {}: {error}", path.display()))
}

/// A file under its temporary name; removed again unless it is kept.
struct Partial {
    path: PathBuf,
    file: File,
}

impl Partial {
    fn create(place: &Path, executable: bool) -> Result<Self, Failure> {
        let path = place.with_file_name(format!(".ucp-{}.part", run::fresh_id()));
        let mode = if executable { 0o777 } else { 0o666 };
        let opened = File::options().read(true).write(true).create_new(true).mode(mode).open(&path);
        let file = opened.map_err(|error| cannot_create(place, &error))?;
        Ok(Self { path, file })
    }

    fn keep(self, place: &Path) -> Result<(), Failure> {
        fs::rename(&self.path, place).map_err(|error| cannot_create(place, &error))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // It is gone where it was renamed.
        let _ = fs::remove_file(&self.path);
    }
}

/// Fetches a blob, again and again until it is whole.
async fn download(
    output: &OutputFile,
    partial: &mut Partial,
    link: &mut Link,
) -> Result<(), Failure> {
    loop {
        match try_download(output, &mut partial.file, link).await {
            Ok(()) => return Ok(()),
            Err(Asked::Gone(error)) => link.lose(&chain(&error)),
            Err(Asked::Failed(failure)) => return Err(failure),
        }
    }
}

async fn try_download(output: &OutputFile, file: &mut File, link: &mut Link) -> Result<(), Asked> {
    let damaged = |what: &str| {
        let what = format_args!("the broker's copy is damaged: {what}");
        Asked::Failed(Failure::new(Exit::Data, what))
    };
    // The first contact is bounded, and tells which broker it is.
    let path = format!("/v1/blobs/{}", output.blob);
    let (address, held) = link.request(Method::HEAD, &path, Body::empty()).await?;
    client::unless_refused(held).await?;
    match transfer::download(&address, output.blob, file).await {
        Ok(size) if size == output.size => Ok(()),
        Ok(_) => Err(damaged("it has another size than the result says")),
        Err(TransferError::Content(_)) => Err(damaged("it has another digest")),
        Err(TransferError::Client(error)) => Err(error.into()),
        Err(TransferError::File { source, .. }) => {
            let what = format_args!("cannot write it: {source}");
            Err(Asked::Failed(Failure::new(Exit::Io, what)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_link_leads_out_of_the_directory() {
        let outside = tempfile::tempdir().expect("a directory");
        let inside = tempfile::tempdir().expect("a directory");
        let out = OutDir::create(&inside.path().join("new/deep")).expect("it is made");
        let root = inside.path().join("new/deep").canonicalize().expect("it is there");
        assert_eq!(out.place("a").expect("a place"), root.join("a"));
        assert_eq!(out.place("b/c/d").expect("a place"), root.join("b/c/d"));
        assert!(root.join("b/c").is_dir());
        std::os::unix::fs::symlink(root.join("b"), root.join("near")).expect("a link");
        assert_eq!(out.place("near/x").expect("a place"), root.join("b/x"));
        for (name, target) in
            [("far", outside.path()), ("up", Path::new("..")), ("lost", "x".as_ref())]
        {
            std::os::unix::fs::symlink(target, root.join(name)).expect("a link");
            let failure = out.place(&format!("{name}/x")).expect_err(name);
            assert_eq!(failure.exit, Exit::Create, "{}", failure.what);
        }
        fs::write(root.join("file"), "").expect("a file");
        assert_eq!(out.place("file/x").map_err(|failure| failure.exit), Err(Exit::Create));
    }
}
