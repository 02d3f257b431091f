//! Text of the command line: bytes that mostly are UTF-8.
//!
//! Pure. Unix lets an argument or the value of a variable be any bytes but NUL. In JSON it is a
//! string where it is UTF-8, else `{"base64":"…"}` (RFC 4648 section 4), so that nothing is lost.

use std::borrow::Cow;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Bytes that mostly are UTF-8. Equal bytes have equal JSON.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Text(Vec<u8>);

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Encoded<'a> {
    base64: Cow<'a, str>,
}

impl Text {
    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The text, where it is UTF-8.
    #[must_use]
    pub fn as_utf8(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }

    /// For people: what is not UTF-8 is replaced.
    #[must_use]
    pub fn lossy(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.0)
    }

    /// The same with every `hole` filled.
    #[must_use]
    pub fn filled(&self, hole: &str, with: &[u8]) -> Self {
        let (hole, mut rest, mut filled) = (hole.as_bytes(), self.0.as_slice(), vec![]);
        while let Some((first, tail)) = rest.split_first() {
            match rest.strip_prefix(hole) {
                Some(after) if !hole.is_empty() => {
                    filled.extend_from_slice(with);
                    rest = after;
                }
                _ => {
                    filled.push(*first);
                    rest = tail;
                }
            }
        }
        Self(filled)
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.lossy(), f)
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lossy())
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self(text.into_bytes())
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }
}

impl From<Vec<u8>> for Text {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl PartialEq<&str> for Text {
    fn eq(&self, other: &&str) -> bool {
        self.0 == other.as_bytes()
    }
}

impl PartialEq<str> for Text {
    fn eq(&self, other: &str) -> bool {
        self.0 == other.as_bytes()
    }
}

impl Serialize for Text {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.as_utf8() {
            Some(text) => serializer.serialize_str(text),
            None => Encoded { base64: STANDARD.encode(&self.0).into() }.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Text;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or {\"base64\":\"…\"}")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Text, E> {
                Ok(text.into())
            }

            fn visit_string<E: serde::de::Error>(self, text: String) -> Result<Text, E> {
                Ok(text.into())
            }

            fn visit_map<A>(self, map: A) -> Result<Text, A::Error>
            where
                A: serde::de::MapAccess<'de>,
            {
                let map = serde::de::value::MapAccessDeserializer::new(map);
                let encoded = Encoded::deserialize(map)?;
                let bytes = STANDARD.decode(&*encoded.base64);
                bytes.map(Text).map_err(serde::de::Error::custom)
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn utf8_is_a_string_and_other_bytes_are_base64() {
        for (text, json) in [
            (Text::from("a \"b\" ü"), r#""a \"b\" ü""#),
            (Text::from(vec![0xff, b'a']), r#"{"base64":"/2E="}"#),
        ] {
            assert_eq!(serde_json::to_string(&text).expect("JSON"), json);
            assert_eq!(serde_json::from_str::<Text>(json).expect("JSON"), text);
        }
        for bad in ["1", "[]", r#"{"base64":"!"}"#, r#"{"text":"a"}"#, "{}"] {
            assert!(serde_json::from_str::<Text>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_hole_is_filled_once() {
        let filled = |text: &str, with: &[u8]| Text::from(text).filled("{}", with);
        assert_eq!(filled("/b/{}.{}{", b"x{}"), "/b/x{}.x{}{");
        assert_eq!(filled("{}", &[0xff]), Text::from(vec![0xff]));
        assert_eq!(filled("none", b"x"), "none");
    }
}
