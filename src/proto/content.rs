//! What goes into a job: contents by value, by digest or by file, and where they are put.
//!
//! Pure. JSON: one of `{"text":"…"}`, `{"base64":"…"}`, `{"blob":"DIGEST"}`, `{"file":"PATH"}`; a
//! bare string is a digest. `file` is for `ucp-exec run`, which has the file at hand; a broker
//! never reads one. Paths inside a job's directory are relative and have plain parts only.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::proto::id::Digest;
use crate::proto::limits;

/// Bytes, or where they are.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Content {
    /// UTF-8 text.
    Text(String),
    /// Bytes in base64 (RFC 4648 section 4).
    Base64(String),
    /// A blob that a broker has.
    Blob(Digest),
    /// A file of the machine where the spec is read; for `ucp-exec run` alone.
    File(String),
}

/// A file that is in the job's directory when it starts.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Input {
    /// What is in it.
    pub content: Content,
    /// Whether it may be executed.
    pub executable: bool,
}

/// A WebAssembly module with WASI preview 1, binary or text.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Module {
    /// The module.
    pub content: Content,
    /// What the program sees as its own name; `module.wasm` where absent.
    pub name: Option<String>,
}

impl Content {
    /// Checks what can be checked without reading anything.
    ///
    /// # Errors
    /// In words, without the field's name.
    pub fn check(&self, local: bool) -> Result<(), String> {
        let max = limits::STDIN_INLINE_BYTES_MAX;
        let length = match self {
            Self::Blob(_) => return Ok(()),
            Self::File(path) if path.is_empty() => return Err("`file` names no file".into()),
            Self::File(_) if local => return Ok(()),
            Self::File(_) => {
                return Err(
                    "`file` is for `ucp-exec run`; a broker takes `text`, `base64` or the \
                            digest of a `blob`"
                        .into(),
                );
            }
            Self::Text(text) => text.len(),
            Self::Base64(text) => match STANDARD.decode(text) {
                Ok(bytes) => bytes.len(),
                Err(error) => return Err(format!("is no base64: {error}")),
            },
        };
        if length > max && !local {
            return Err(format!("over {max} bytes: send it as a blob"));
        }
        Ok(())
    }

    /// The bytes, where they are in the value itself.
    #[must_use]
    pub fn inline(&self) -> Option<Vec<u8>> {
        match self {
            Self::Text(text) => Some(text.clone().into_bytes()),
            Self::Base64(text) => STANDARD.decode(text).ok(),
            Self::Blob(_) | Self::File(_) => None,
        }
    }
}

/// Checks a path inside a job's directory: relative, of plain parts, and not too long.
///
/// # Errors
/// In words, with the path.
pub fn check_path(path: &str) -> Result<(), String> {
    let plain = |part: &str| !matches!(part, "" | "." | "..");
    if path.len() > limits::PATH_BYTES_MAX || path.contains('\0') {
        return Err(format!(
            "a path has at most {} bytes, none of them NUL",
            limits::PATH_BYTES_MAX
        ));
    }
    if !path.split('/').all(plain) {
        return Err(format!(
            "{path:?} is no path in the job's directory: relative, without `.` and `..`"
        ));
    }
    Ok(())
}

/// All members that any of the three has.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Members {
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    blob: Option<Digest>,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    executable: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
}

impl Members {
    fn of(content: &Content) -> Self {
        let mut members = Self::default();
        match content.clone() {
            Content::Text(text) => members.text = Some(text),
            Content::Base64(text) => members.base64 = Some(text),
            Content::Blob(digest) => members.blob = Some(digest),
            Content::File(path) => members.file = Some(path),
        }
        members
    }

    fn content(&mut self) -> Result<Content, &'static str> {
        let held = [
            self.text.take().map(Content::Text),
            self.base64.take().map(Content::Base64),
            self.blob.take().map(Content::Blob),
            self.file.take().map(Content::File),
        ];
        let mut held = held.into_iter().flatten();
        match (held.next(), held.next()) {
            (Some(content), None) => Ok(content),
            _ => Err("just one of `text`, `base64`, `blob` and `file` is expected"),
        }
    }
}

struct MembersVisitor;

impl<'de> serde::de::Visitor<'de> for MembersVisitor {
    type Value = Members;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a digest or an object with one of `text`, `base64`, `blob` and `file`")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Members, E> {
        let blob = text.parse().map_err(serde::de::Error::custom)?;
        Ok(Members { blob: Some(blob), ..Members::default() })
    }

    fn visit_map<A>(self, map: A) -> Result<Members, A::Error>
    where
        A: serde::de::MapAccess<'de>,
    {
        Members::deserialize(serde::de::value::MapAccessDeserializer::new(map))
    }
}

fn members<'de, D: Deserializer<'de>>(deserializer: D) -> Result<(Content, Members), D::Error> {
    let mut members = deserializer.deserialize_any(MembersVisitor)?;
    let content = members.content().map_err(serde::de::Error::custom)?;
    Ok((content, members))
}

fn unknown<E: serde::de::Error>(field: &str, known: &'static [&'static str]) -> E {
    E::unknown_field(field, known)
}

const CONTENT_FIELDS: &[&str] = &["text", "base64", "blob", "file"];

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match members(deserializer)? {
            (_, Members { executable: true, .. }) => Err(unknown("executable", CONTENT_FIELDS)),
            (_, Members { name: Some(_), .. }) => Err(unknown("name", CONTENT_FIELDS)),
            (content, _) => Ok(content),
        }
    }
}

impl<'de> Deserialize<'de> for Input {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match members(deserializer)? {
            (_, Members { name: Some(_), .. }) => Err(unknown("name", CONTENT_FIELDS)),
            (content, Members { executable, .. }) => Ok(Self { content, executable }),
        }
    }
}

impl<'de> Deserialize<'de> for Module {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match members(deserializer)? {
            (_, Members { executable: true, .. }) => Err(unknown("executable", CONTENT_FIELDS)),
            (content, Members { name, .. }) => Ok(Self { content, name }),
        }
    }
}

impl Serialize for Content {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Members::of(self).serialize(serializer)
    }
}

impl Serialize for Input {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let members = Members { executable: self.executable, ..Members::of(&self.content) };
        members.serialize(serializer)
    }
}

impl Serialize for Module {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let members = Members { name: self.name.clone(), ..Members::of(&self.content) };
        members.serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_round_trip_and_a_bare_string_is_a_digest() {
        let digest = Digest::of(b"x");
        for json in [
            r#"{"text":"a"}"#.to_owned(),
            r#"{"base64":"YQ==","executable":true}"#.to_owned(),
            format!(r#"{{"blob":"{digest}"}}"#),
            r#"{"file":"a.txt"}"#.to_owned(),
        ] {
            let input: Input = serde_json::from_str(&json).expect(&json);
            assert_eq!(serde_json::to_string(&input).expect("JSON"), json);
        }
        let bare: Content = serde_json::from_str(&format!("\"{digest}\"")).expect("a digest");
        assert_eq!(bare, Content::Blob(digest));
        let module: Module =
            serde_json::from_str(r#"{"text":"(module)","name":"a.wat"}"#).expect("a module");
        assert_eq!(module.name.as_deref(), Some("a.wat"));
    }

    #[test]
    fn what_is_no_content_is_refused_with_the_reason() {
        let said = |json: &str| serde_json::from_str::<Content>(json).expect_err(json).to_string();
        assert!(said("{}").starts_with("just one of `text`"));
        assert!(said(r#"{"text":"a","base64":"YQ=="}"#).starts_with("just one of"));
        assert!(said("\"map.wasm\"").contains("is no digest"), "{}", said("\"map.wasm\""));
        assert!(said(r#"{"txt":"a"}"#).starts_with("unknown field `txt`"));
        assert!(said(r#"{"text":"a","name":"b"}"#).starts_with("unknown field `name`"));
        assert!(said("7").contains("a digest or an object"));
    }

    #[test]
    fn paths_stay_inside() {
        for good in ["a", "a/b.c", "..a", "a b", "*.txt"] {
            assert_eq!(check_path(good), Ok(()));
        }
        for bad in ["", "/a", "a/", "a//b", "./a", "a/..", "..", "a\0b"] {
            assert!(check_path(bad).is_err(), "{bad:?}");
        }
    }
}
