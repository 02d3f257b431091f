//! What of our files goes into a job: its module, its inputs, its standard input.
//!
//! Reads them all before anything is sent, and speaks to nobody (upload.rs does). A short file
//! goes into the spec; of a long one only the digest is taken here, so that at most 64 KiB of it
//! are held. A directory is taken with all regular files below it, in the order of their names; a
//! link in it is followed only to a regular file inside it. What comes through a pipe is kept in
//! an unnamed temporary file until it is sent.
//! Law: what a spec names was one content of the file: a file that another program changes while
//! it is read is read once more, and then given up (tests/cli/files.rs).

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io::{self, IsTerminal, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::cli::exit::Exit;
use crate::cli::report::Failure;
use crate::proto::content::{Content, check_path};
use crate::proto::id::Digest;
use crate::proto::limits;

use super::flags::{Given, JobFlags, plain};

/// Bytes read at one time.
const PIECE_BYTES: usize = 64 << 10;

/// What the flags name; owned, as it is read on another thread.
#[derive(Debug)]
pub struct Wanted {
    stdin: Option<PathBuf>,
    wasm: Option<PathBuf>,
    inputs: Vec<Given>,
    inline_max: usize,
}

/// What was read.
#[derive(Debug, Default)]
pub struct Found {
    /// The standard input.
    pub stdin: Option<Held>,
    /// The module.
    pub wasm: Option<Held>,
    /// Files by their paths in the job's directory, and whether they may be executed.
    pub inputs: BTreeMap<String, (Held, bool)>,
    /// Empty directories.
    pub dirs: Vec<String>,
    inline_bytes: usize,
}

/// One content: here already, or in a file.
#[derive(Debug)]
pub enum Held {
    /// In the value itself.
    Inline(Content),
    /// In a file that is sent as a blob.
    Long(Source),
}

/// A file whose content is sent as a blob.
#[derive(Debug)]
pub struct Source {
    /// What it is called in messages.
    pub name: String,
    /// Where it is read.
    pub path: PathBuf,
    /// What was in it when it was read.
    pub digest: Digest,
    /// Keeps an unnamed file open.
    _unnamed: Option<File>,
}

impl Wanted {
    /// What the flags name; `many` jobs share it.
    #[must_use]
    pub fn of(flags: &JobFlags, many: bool) -> Self {
        let each = limits::INPUT_INLINE_EACH_BYTES_MAX;
        let inline_max = if many { each } else { limits::INPUT_INLINE_BYTES_MAX };
        let (stdin, wasm, inputs) = (flags.stdin.clone(), flags.wasm.clone(), flags.inputs.clone());
        Self { stdin, wasm, inputs, inline_max }
    }

    /// Whether no file is named.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.stdin.is_none() && self.wasm.is_none() && self.inputs.is_empty()
    }

    /// Reads everything; waits for the disk, and for whoever writes a pipe.
    ///
    /// # Errors
    /// A file is absent or cannot be read (66), is none that a job can have, or changes all the
    /// time (65).
    pub fn read(self) -> Result<Found, Failure> {
        let mut found = Found::default();
        if let Some(path) = &self.wasm {
            let held = read(path, 0).map_err(|failure| no_data(path, failure))?;
            found.wasm = Some(held);
        }
        for given in &self.inputs {
            found.take(given, self.inline_max)?;
        }
        if let Some(path) = &self.stdin {
            let held = read(path, limits::STDIN_INLINE_BYTES_MAX)?;
            let empty = matches!(&held, Held::Inline(Content::Text(text)) if text.is_empty());
            found.stdin = (!empty).then_some(held);
        }
        Ok(found)
    }
}

fn no_data(path: &Path, failure: Failure) -> Failure {
    if failure.exit == Exit::Absent && !path.exists() {
        return failure.hint("--wasm takes a file; data that is called by a name is not there yet");
    }
    failure
}

impl Found {
    fn take(&mut self, given: &Given, inline_max: usize) -> Result<(), Failure> {
        let file = &given.file;
        let found = if file == Path::new("-") { None } else { Some(examine(file)?) };
        let is_dir = found.as_ref().is_some_and(Metadata::is_dir);
        let path = target(given, is_dir)?;
        if is_dir {
            let root = file.canonicalize().map_err(|error| unreadable(file, &error))?;
            return Walk { root: &root, flag: given, inline_max, found: self }.take(file, &path);
        }
        let executable = found.is_some_and(|found| may_run(&found));
        self.add(given, path, file, executable, inline_max)
    }

    fn add(
        &mut self,
        given: &Given,
        path: String,
        file: &Path,
        executable: bool,
        inline_max: usize,
    ) -> Result<(), Failure> {
        let flag = given.file.display();
        check_path(&path).map_err(|why| Failure::usage(format_args!("--in {flag}: {why}")))?;
        if self.inputs.len() >= limits::INPUTS_MAX {
            let what = format_args!("--in {flag}: over {} files", limits::INPUTS_MAX);
            return Err(Failure::new(Exit::Data, what).hint("give an archive of them"));
        }
        if self.inputs.contains_key(&path) {
            let what = format_args!("--in {}: {path:?} is there already", file.display());
            return Err(Failure::usage(what).hint("give it another path: --in FILE=PATH"));
        }
        let left = limits::INPUTS_INLINE_BYTES_MAX.saturating_sub(self.inline_bytes);
        let held = read(file, inline_max.min(left))?;
        if let Held::Inline(content) = &held {
            self.inline_bytes += serde_json::to_string(content).map_or(0, |text| text.len());
        }
        self.inputs.insert(path, (held, executable));
        Ok(())
    }
}

/// Where an input is put: `PATH`, `PATH/NAME` for a file where `PATH` ends with a slash, else its
/// own name. The empty path is the job's directory itself, for a directory's content.
fn target(given: &Given, is_dir: bool) -> Result<String, Failure> {
    let file = &given.file;
    let name = || {
        let wrong = |why: &str| {
            Failure::usage(format_args!("--in {}: {why}", file.display()))
                .hint("say where it is to be put: --in FILE=PATH")
        };
        let name = file.file_name().ok_or_else(|| wrong("it has no name of its own"))?;
        name.to_str().map(str::to_owned).ok_or_else(|| wrong("its name is not UTF-8"))
    };
    let top = |path: &str| path.split('/').all(|part| matches!(part, "" | "."));
    match &given.path {
        None if is_dir && file.components().all(|part| part == std::path::Component::CurDir) => {
            Ok(String::new())
        }
        None => name(),
        Some(path) if path.starts_with('/') => Ok(path.clone()),
        Some(path) if is_dir && top(path) => Ok(String::new()),
        Some(path) if !is_dir && top(path) => name(),
        Some(path) if !is_dir && path.ends_with('/') => Ok(format!("{}/{}", plain(path), name()?)),
        Some(path) => Ok(plain(path)),
    }
}

/// A directory on its way into the job.
struct Walk<'a> {
    root: &'a Path,
    flag: &'a Given,
    inline_max: usize,
    found: &'a mut Found,
}

impl Walk<'_> {
    fn take(&mut self, directory: &Path, prefix: &str) -> Result<(), Failure> {
        let failed = |error: &io::Error| unreadable(directory, error);
        let entries = directory.read_dir().map_err(|error| failed(&error))?;
        let mut names = vec![];
        for entry in entries {
            names.push(entry.map_err(|error| failed(&error))?.file_name());
        }
        names.sort();
        if names.is_empty() && !prefix.is_empty() {
            check_path(prefix).map_err(Failure::usage)?;
            self.found.dirs.push(prefix.to_owned());
        }
        for name in names {
            let file = directory.join(&name);
            let Some(name) = name.to_str() else {
                return Err(unfit(&file, "its name is not UTF-8"));
            };
            let path = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}/{name}") };
            self.entry(&file, path)?;
        }
        Ok(())
    }

    fn entry(&mut self, file: &Path, path: String) -> Result<(), Failure> {
        let mut found = file.symlink_metadata().map_err(|error| unreadable(file, &error))?;
        if found.is_symlink() {
            let target = file.canonicalize();
            let target = target.map_err(|_| unfit(file, "the link leads nowhere"))?;
            if !target.starts_with(self.root) {
                return Err(unfit(file, "the link leads out of the directory"));
            }
            found = examine(file)?;
            if !found.is_file() {
                return Err(unfit(file, "the link leads to something else than a file"));
            }
        }
        if found.is_dir() {
            return self.take(file, &path);
        }
        if !found.is_file() {
            return Err(unfit(file, "it is neither a file nor a directory"));
        }
        let (given, executable, inline_max) = (self.flag, may_run(&found), self.inline_max);
        self.found.add(given, path, file, executable, inline_max)
    }
}

fn may_run(found: &Metadata) -> bool {
    found.permissions().mode() & 0o100 != 0
}

fn examine(path: &Path) -> Result<Metadata, Failure> {
    path.metadata().map_err(|error| unreadable(path, &error))
}

fn unfit(path: &Path, why: &str) -> Failure {
    let what = format_args!("cannot give {} to the job: {why}", path.display());
    Failure::new(Exit::Data, what).hint("a directory is given with the regular files in it")
}

/// An input that cannot be read is as good as absent.
fn unreadable(path: &Path, error: &io::Error) -> Failure {
    let name = if path == Path::new("-") { Path::new("stdin") } else { path };
    let failure = Failure::io(format_args!("cannot read {}", name.display()), error);
    let denied = error.kind() == io::ErrorKind::PermissionDenied;
    if denied { Failure { exit: Exit::Absent, ..failure } } else { failure }
}

/// Reads one file, or our standard input. At most `inline_max` bytes are kept in the value.
fn read(path: &Path, inline_max: usize) -> Result<Held, Failure> {
    for _ in 0..limits::CHANGED_TRIES_MAX {
        match try_read(path, inline_max).map_err(|error| unreadable(path, &error))? {
            Some(held) => return Ok(held),
            None => tracing::info!("{} changed while it was read", path.display()),
        }
    }
    Err(changing(&path.display().to_string()))
}

/// The end of all tries to read a file that another program writes.
#[must_use]
pub fn changing(name: &str) -> Failure {
    let what = format_args!("{name} changes while it is read; nothing was submitted");
    Failure::new(Exit::Data, what).hint("give it once it is written, or a copy of it")
}

/// Reads a file; nothing where it changed meanwhile.
fn try_read(path: &Path, inline_max: usize) -> io::Result<Option<Held>> {
    if path == Path::new("-") {
        return spool(&mut io::stdin().lock(), "stdin", inline_max).map(Some);
    }
    let name = path.display().to_string();
    let mut file = File::open(path)?;
    let before = file.metadata()?;
    if before.is_dir() {
        return Err(io::Error::new(io::ErrorKind::IsADirectory, "is a directory"));
    }
    let kind = before.file_type();
    if kind.is_block_device() || (kind.is_char_device() && !is_harmless(&file, &before)) {
        return Err(io::Error::other("is a device, which may have no end"));
    }
    // A pipe; or a file of the kernel, which has a content but no size.
    if !before.is_file() || before.len() == 0 {
        return spool(&mut file, &name, inline_max).map(Some);
    }
    let (head, rest) = head(&mut file, inline_max)?;
    let (held, size) = match rest {
        None => (Held::Inline(inline(&head)), head.len() as u64),
        Some(mut hasher) => {
            let size = copy(&mut file, &mut hasher, &mut io::sink())? + head.len() as u64;
            let digest = Digest(*hasher.finalize().as_bytes());
            (Held::Long(Source { name, path: path.to_owned(), digest, _unnamed: None }), size)
        }
    };
    let after = file.metadata()?;
    let stamp = |found: &Metadata| (found.len(), found.mtime(), found.mtime_nsec());
    let same = stamp(&before) == stamp(&after) && size == before.len();
    Ok(same.then_some(held))
}

/// Whether a device is a terminal or `/dev/null`.
fn is_harmless(file: &File, found: &Metadata) -> bool {
    let null = Path::new("/dev/null").metadata().is_ok_and(|null| null.rdev() == found.rdev());
    null || file.is_terminal()
}

/// The first bytes; and where there are more, a hasher that has seen them.
fn head(input: &mut dyn Read, inline_max: usize) -> io::Result<(Vec<u8>, Option<blake3::Hasher>)> {
    let mut head = vec![];
    input.take(inline_max as u64 + 1).read_to_end(&mut head)?;
    if head.len() <= inline_max && (inline_max > 0 || head.is_empty()) {
        return Ok((head, None));
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(&head);
    Ok((head, Some(hasher)))
}

fn inline(bytes: &[u8]) -> Content {
    match std::str::from_utf8(bytes) {
        Ok(text) => Content::Text(text.to_owned()),
        Err(_) => Content::Base64(STANDARD.encode(bytes)),
    }
}

/// Keeps a stream in an unnamed temporary file, unless it is short.
fn spool(input: &mut dyn Read, name: &str, inline_max: usize) -> io::Result<Held> {
    let (head, rest) = head(input, inline_max)?;
    let Some(mut hasher) = rest else { return Ok(Held::Inline(inline(&head))) };
    let directory = std::env::temp_dir();
    let kept = |error: io::Error| {
        let what = format!("cannot keep it in {}: {error}", directory.display());
        io::Error::other(what)
    };
    let mut file = unnamed(&directory).map_err(kept)?;
    file.write_all(&head).map_err(kept)?;
    copy(input, &mut hasher, &mut file)?;
    file.seek(SeekFrom::Start(0))?;
    let digest = Digest(*hasher.finalize().as_bytes());
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let name = name.to_owned();
    Ok(Held::Long(Source { name, path, digest, _unnamed: Some(file) }))
}

fn unnamed(directory: &Path) -> io::Result<File> {
    let flags = nix::fcntl::OFlag::O_TMPFILE.bits();
    File::options().read(true).write(true).mode(0o600).custom_flags(flags).open(directory)
}

/// Reads to the end, past the hasher, and gives the number of bytes.
fn copy(
    input: &mut dyn Read,
    hasher: &mut blake3::Hasher,
    output: &mut dyn Write,
) -> io::Result<u64> {
    let (mut piece, mut size) = (vec![0; PIECE_BYTES], 0);
    loop {
        match input.read(&mut piece) {
            Ok(0) => return Ok(size),
            Ok(length) => {
                if size + length as u64 > limits::BLOB_BYTES_MAX {
                    let max = limits::BLOB_BYTES_MAX;
                    return Err(io::Error::other(format!("it has over {max} bytes")));
                }
                hasher.update(&piece[..length]);
                output.write_all(&piece[..length])?;
                size += length as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

impl Source {
    /// Reads the file once more, as it had another content when it was sent.
    ///
    /// # Errors
    /// It cannot be read, or changes again.
    pub fn again(self) -> Result<Self, Failure> {
        match try_read(&self.path, 0).map_err(|error| unreadable(&self.path, &error))? {
            Some(Held::Long(source)) => Ok(Self { digest: source.digest, ..self }),
            // It is empty now, or still being written.
            Some(Held::Inline(_)) | None => Err(changing(&self.name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put_at(file: &str, path: Option<&str>, is_dir: bool) -> Option<String> {
        let given = Given { file: file.into(), path: path.map(str::to_owned) };
        target(&given, is_dir).ok()
    }

    #[test]
    fn an_input_is_put_under_its_name_or_where_it_is_told() {
        for (file, path, is_dir, at) in [
            ("d/a.csv", None, false, Some("a.csv")),
            ("d/a.csv", Some("b"), false, Some("b")),
            ("d/a.csv", Some("./b//c"), false, Some("b/c")),
            ("d/a.csv", Some("b/"), false, Some("b/a.csv")),
            ("d/a.csv", Some("."), false, Some("a.csv")),
            ("d", None, true, Some("d")),
            ("d", Some("."), true, Some("")),
            (".", None, true, Some("")),
            ("..", None, true, None),
            ("d", Some("e/"), true, Some("e")),
        ] {
            assert_eq!(put_at(file, path, is_dir).as_deref(), at, "{file} {path:?}");
        }
    }

    #[test]
    fn short_content_is_in_the_value_and_an_empty_one_is_empty() {
        let held = spool(&mut &b"ab"[..], "x", 2).expect("held");
        assert!(matches!(held, Held::Inline(Content::Text(text)) if text == "ab"));
        let held = spool(&mut &b"\xff"[..], "x", 2).expect("held");
        assert!(matches!(held, Held::Inline(Content::Base64(_))));
        for (bytes, max) in [(&b"abc"[..], 2), (b"a", 0)] {
            let Held::Long(source) = spool(&mut { bytes }, "x", max).expect("held") else {
                panic!("{bytes:?} is long");
            };
            assert_eq!(source.digest, Digest::of(bytes));
            assert_eq!(std::fs::read(&source.path).expect("its content"), bytes);
        }
        let held = spool(&mut &b""[..], "x", 0).expect("held");
        assert!(matches!(held, Held::Inline(Content::Text(text)) if text.is_empty()));
    }
}
