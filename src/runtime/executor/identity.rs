//! Who this executor is, for good: `identity.json` in its data directory, written once.
//!
//! Shape: `{"v":1,"executor":"NAME-xxxxxxxx"}`. A data directory that was copied has the identity
//! copied; the broker refuses the second of two that live.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::proto::id::ExecutorId;
use crate::runtime::entropy;

/// The version of the file.
const IDENTITY_VERSION: u32 = 1;
/// Bytes of the name before the hyphen and the eight digits.
pub const NAME_BYTES_MAX: usize = crate::proto::limits::NAME_BYTES_MAX - 9;

#[derive(Serialize, Deserialize)]
struct Identity {
    v: u32,
    executor: ExecutorId,
}

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// A file could not be read or written. Trying again may help.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is no identity. Nothing changed; a person must say what became of the old one.
    #[error("{} is damaged: {why}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The file was written by a newer version. Nothing changed; that version can use it.
    #[error("{} is of version {v}, which this version does not know", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        v: u32,
    },
}

/// Reads the identity in `data`, or makes one that begins with `name`.
///
/// # Errors
/// [`IdentityError`]. An identity that is there is never replaced.
pub fn load_or_create(data: &Path, name: &str) -> Result<ExecutorId, IdentityError> {
    let path = data.join("identity.json");
    match std::fs::read(&path) {
        Ok(bytes) => parse(&path, &bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => create(data, &path, name),
        Err(source) => Err(IdentityError::Io { what: "read", path, source }),
    }
}

fn parse(path: &Path, bytes: &[u8]) -> Result<ExecutorId, IdentityError> {
    #[derive(Deserialize)]
    struct Versioned {
        v: u32,
    }
    let path = || path.to_owned();
    match serde_json::from_slice(bytes) {
        Ok(Versioned { v }) if v > IDENTITY_VERSION => {
            return Err(IdentityError::Newer { path: path(), v });
        }
        _ => {}
    }
    let identity: Identity = serde_json::from_slice(bytes)
        .map_err(|error| IdentityError::Damaged { path: path(), why: error.to_string() })?;
    Ok(identity.executor)
}

fn create(data: &Path, path: &Path, name: &str) -> Result<ExecutorId, IdentityError> {
    #[allow(clippy::cast_possible_truncation)] // 32 random bits of 64
    let drawn = entropy::seed() as u32;
    let executor: Result<ExecutorId, _> = format!("{name}-{drawn:08x}").parse();
    let executor = executor.map_err(|error| IdentityError::Damaged {
        path: path.to_owned(),
        why: error.to_string(),
    })?;
    let identity = Identity { v: IDENTITY_VERSION, executor: executor.clone() };
    let mut text = serde_json::to_vec(&identity).expect("an identity has only string keys");
    text.push(b'\n');
    let beside = path.with_extension("new");
    let mut options = File::options();
    options.write(true).create(true).truncate(true).mode(0o600);
    let written = options.open(&beside).and_then(|mut file| {
        file.write_all(&text)?;
        file.sync_all()?;
        std::fs::rename(&beside, path)?;
        File::open(data)?.sync_all()
    });
    written.map_err(|source| IdentityError::Io { what: "write", path: path.to_owned(), source })?;
    Ok(executor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_made_once() {
        let data = tempfile::tempdir().expect("a directory");
        let made = load_or_create(data.path(), "van2").expect("room");
        assert!(made.as_str().starts_with("van2-") && made.as_str().len() == 13, "{made}");
        assert_eq!(load_or_create(data.path(), "other").expect("it is there"), made);
    }

    #[test]
    fn a20_a_damaged_or_newer_identity_is_refused_and_kept() {
        let data = tempfile::tempdir().expect("a directory");
        let path = data.path().join("identity.json");
        for text in ["", "{", r#"{"v":1,"executor":"a b"}"#, r#"{"v":2,"who":"ever"}"#] {
            std::fs::write(&path, text).expect("room");
            assert!(load_or_create(data.path(), "van2").is_err());
            assert_eq!(std::fs::read_to_string(&path).expect("it is there"), text);
        }
    }
}
