//! State that a job left on its way: which files, with which contents.
//!
//! Pure. A checkpoint is named by the digest of its manifest, which is itself a blob: JSON in one
//! canonical form (members in a fixed order, paths in the order of their bytes, no blanks), so that
//! equal states have one name. What comes from elsewhere is checked when it is read.
//! Laws: a manifest reads back as it was written; one that was read puts every file beneath the
//! directory it is given, and no file where a directory is (tests below).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::proto::content::check_path;
use crate::proto::id::Digest;
use crate::proto::limits;
use crate::proto::unique;

/// The version of the form.
pub const VERSION: u32 = 1;

/// One file of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeptFile {
    /// Its bytes.
    pub size: u64,
    /// Its content.
    pub blob: Digest,
    /// Whether it may be executed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub executable: bool,
}

/// The files and directories of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The version of the form, [`VERSION`].
    pub v: u32,
    /// Files by their paths in the checkpoint's directory.
    #[serde(deserialize_with = "unique::map")]
    pub files: BTreeMap<String, KeptFile>,
    /// Directories, also those that files are in, in the order of their bytes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dirs: Vec<String>,
}

/// Why a text is no manifest. Another checkpoint may be one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// It is longer than [`limits::CHECKPOINT_MANIFEST_BYTES_MAX`].
    #[error("the manifest has {0} bytes, which is too long")]
    TooLong(usize),
    /// It is no JSON of this shape.
    #[error("the manifest is not understood: {0}")]
    Shape(String),
    /// It is of a newer version.
    #[error("the manifest has version {0}, this program reads version {VERSION}")]
    Version(u32),
    /// A path leads out of the directory, or is in the way of another.
    #[error("the manifest is wrong: {0}")]
    Path(String),
    /// It has more than [`limits::CHECKPOINT_FILES_MAX`] names or
    /// [`limits::CHECKPOINT_BYTES_MAX`] bytes of contents.
    #[error(
        "the checkpoint is over {} names or {} bytes",
        limits::CHECKPOINT_FILES_MAX,
        limits::CHECKPOINT_BYTES_MAX
    )]
    TooLarge,
}

impl Manifest {
    /// The manifest of these files and directories.
    #[must_use]
    pub fn new(files: BTreeMap<String, KeptFile>, dirs: BTreeSet<String>) -> Self {
        Self { v: VERSION, files, dirs: dirs.into_iter().collect() }
    }

    /// Its canonical form.
    ///
    /// # Panics
    /// Never: its keys are texts.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("manifests have only string keys")
    }

    /// The bytes of its files together.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.files.values().fold(0, |sum, file| sum.saturating_add(file.size))
    }

    /// The contents of its files, each once.
    #[must_use]
    pub fn blobs(&self) -> BTreeSet<Digest> {
        self.files.values().map(|file| file.blob).collect()
    }

    /// Reads a manifest and checks all of it.
    ///
    /// # Errors
    /// [`ManifestError`], in words.
    pub fn read(bytes: &[u8]) -> Result<Self, ManifestError> {
        if bytes.len() > limits::CHECKPOINT_MANIFEST_BYTES_MAX {
            return Err(ManifestError::TooLong(bytes.len()));
        }
        #[derive(Deserialize)]
        struct Versioned {
            v: u32,
        }
        let shape = |error: serde_json::Error| ManifestError::Shape(error.to_string());
        let Versioned { v } = serde_json::from_slice(bytes).map_err(shape)?;
        if v != VERSION {
            return Err(ManifestError::Version(v));
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(shape)?;
        manifest.check()?;
        Ok(manifest)
    }

    fn check(&self) -> Result<(), ManifestError> {
        let names = self.files.len() + self.dirs.len();
        if names > limits::CHECKPOINT_FILES_MAX || self.bytes() > limits::CHECKPOINT_BYTES_MAX {
            return Err(ManifestError::TooLarge);
        }
        let wrong = |words: String| Err(ManifestError::Path(words));
        for path in self.files.keys().chain(&self.dirs) {
            check_path(path).map_err(ManifestError::Path)?;
            for (at, _) in path.match_indices('/') {
                if self.files.contains_key(&path[..at]) {
                    return wrong(format!("{:?} is a file, and {path:?} is in it", &path[..at]));
                }
            }
        }
        for (before, dir) in std::iter::once(None).chain(self.dirs.iter().map(Some)).zip(&self.dirs)
        {
            if before.is_some_and(|before| before >= dir) {
                return wrong(format!("directory {dir:?} stands twice or out of order"));
            }
            if self.files.contains_key(dir) {
                return wrong(format!("{dir:?} is a file and a directory"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> KeptFile {
        KeptFile {
            size: text.len() as u64,
            blob: Digest::of(text.as_bytes()),
            executable: text.starts_with("#!"),
        }
    }

    fn manifest(files: &[&str], dirs: &[&str]) -> Manifest {
        let files = files.iter().map(|path| ((*path).to_owned(), file(path))).collect();
        Manifest::new(files, dirs.iter().map(|path| (*path).to_owned()).collect())
    }

    #[test]
    fn a_manifest_reads_back_and_equal_states_have_one_name() {
        let one = manifest(&["b/c", "a", "#!run"], &["b", "empty/deep", "empty"]);
        let bytes = one.to_bytes();
        assert_eq!(Manifest::read(&bytes), Ok(one.clone()));
        let other = manifest(&["#!run", "a", "b/c"], &["empty", "empty/deep", "b"]);
        assert_eq!(Digest::of(&other.to_bytes()), Digest::of(&bytes));
        assert_eq!((one.bytes(), one.blobs().len()), (9, 3));
        let text = String::from_utf8(manifest(&["a"], &[]).to_bytes()).expect("text");
        assert_eq!(
            text,
            format!(r#"{{"v":1,"files":{{"a":{{"size":1,"blob":"{}"}}}}}}"#, Digest::of(b"a"))
        );
    }

    #[test]
    fn what_is_no_manifest_is_refused_with_the_reason() {
        let said = |text: &str| Manifest::read(text.as_bytes()).expect_err(text).to_string();
        assert!(said("{").starts_with("the manifest is not understood"));
        assert!(said(r#"{"files":{}}"#).contains("missing field `v`"));
        assert!(said(r#"{"v":2,"files":[]}"#).contains("has version 2"));
        assert!(said(r#"{"v":1,"files":{},"more":1}"#).contains("unknown field `more`"));
        let one = serde_json::to_string(&file("a")).expect("JSON");
        assert!(said(&format!(r#"{{"v":1,"files":{{"a":{one},"a":{one}}}}}"#)).contains("twice"));
        assert!(said(r#"{"v":1,"files":{},"dirs":["b","a"]}"#).contains("out of order"));
        assert!(said(r#"{"v":1,"files":{},"dirs":["a","a"]}"#).contains("stands twice"));
        for path in ["/etc/passwd", "../a", "a/../../b", "", "a//b", "."] {
            let bytes = manifest(&[path], &[]).to_bytes();
            assert!(matches!(Manifest::read(&bytes), Err(ManifestError::Path(_))), "{path}");
            let bytes = manifest(&[], &[path]).to_bytes();
            assert!(matches!(Manifest::read(&bytes), Err(ManifestError::Path(_))), "{path}");
        }
        for (files, dirs) in [(&["a", "a/b"][..], &[][..]), (&["a"], &["a"]), (&["a"], &["a/b/c"])]
        {
            let bytes = manifest(files, dirs).to_bytes();
            assert!(matches!(Manifest::read(&bytes), Err(ManifestError::Path(_))), "{files:?}");
        }
    }

    #[test]
    fn what_is_too_large_is_refused() {
        let names: Vec<String> =
            (0..=limits::CHECKPOINT_FILES_MAX).map(|n| n.to_string()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        assert_eq!(Manifest::read(&manifest(&names, &[]).to_bytes()), Err(ManifestError::TooLarge));
        let mut large = manifest(&["a", "b"], &[]);
        large.files.values_mut().for_each(|file| file.size = u64::MAX);
        assert_eq!(Manifest::read(&large.to_bytes()), Err(ManifestError::TooLarge));
        let long = vec![b' '; limits::CHECKPOINT_MANIFEST_BYTES_MAX + 1];
        assert_eq!(Manifest::read(&long), Err(ManifestError::TooLong(long.len())));
    }
}
