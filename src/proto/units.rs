//! Durations and sizes as people write them: `250ms`, `30s`, `7d`; `64K`, `1M`, `2G` (binary).
//!
//! Pure. Durations are whole milliseconds, sizes whole bytes. JSON takes the text or a plain
//! number (milliseconds, bytes) and always writes the text in its shortest exact form.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::proto::limits;

/// Why a text is no duration or size. Nothing changed; trying again cannot help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UnitError {
    /// Not a whole number followed by one of the units.
    #[error("{0:?} is no {1}: a whole number and one of {2} is expected, as in {3}")]
    Form(String, &'static str, &'static str, &'static str),
    /// The number is over what can be held.
    #[error("{0:?} is too large for a {1}")]
    Large(String, &'static str),
}

const SPAN_UNITS: [(&str, u64); 6] = [
    ("ms", 1),
    ("s", 1_000),
    ("m", 60_000),
    ("h", 3_600_000),
    ("d", 86_400_000),
    ("w", 604_800_000),
];
const SIZE_UNITS: [(&str, u64); 5] =
    [("", 1), ("K", 1 << 10), ("M", 1 << 20), ("G", 1 << 30), ("T", 1 << 40)];

fn split(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    Some((text.get(..digits)?.parse().ok()?, text.get(digits..)?))
}

fn shown(text: &str) -> String {
    text.chars().take(40).collect()
}

/// A span of time in milliseconds, at most ten years.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(u64);

impl Span {
    /// A span of whole milliseconds; what is over ten years is cut to ten years.
    #[must_use]
    pub fn from_millis(millis: u64) -> Self {
        Self(millis.min(u64::try_from(limits::TIMEOUT_MAX.as_millis()).unwrap_or(u64::MAX)))
    }

    /// The span for the standard library.
    #[must_use]
    pub fn duration(self) -> Duration {
        Duration::from_millis(self.0)
    }
}

impl From<Duration> for Span {
    fn from(duration: Duration) -> Self {
        Self::from_millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
    }
}

impl FromStr for Span {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let form = || UnitError::Form(shown(text), "duration", "ms, s, m, h, d, w", "250ms or 30s");
        let large = || UnitError::Large(shown(text), "duration");
        let (number, unit) = split(text).ok_or_else(form)?;
        let (_, factor) = SPAN_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(form)?;
        let millis = number.checked_mul(*factor).ok_or_else(large)?;
        if u128::from(millis) > limits::TIMEOUT_MAX.as_millis() {
            return Err(large());
        }
        Ok(Self(millis))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |(_, factor): &&(&str, u64)| self.0 > 0 && self.0.is_multiple_of(*factor);
        let (unit, factor) = SPAN_UNITS.iter().rev().find(fits).unwrap_or(&("s", 1_000));
        write!(f, "{}{unit}", self.0 / factor)
    }
}

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let form = || UnitError::Form(shown(text), "size", "K, M, G, T or no unit", "64K or 2G");
        let large = || UnitError::Large(shown(text), "size");
        let (number, unit) = split(text).ok_or_else(form)?;
        let (_, factor) = SIZE_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(form)?;
        let bytes = number.checked_mul(*factor).ok_or_else(large)?;
        if bytes > limits::COUNTER_MAX { Err(large()) } else { Ok(Self(bytes)) }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |(_, factor): &&(&str, u64)| self.0 > 0 && self.0.is_multiple_of(*factor);
        let (unit, factor) = SIZE_UNITS.iter().rev().find(fits).unwrap_or(&("", 1));
        write!(f, "{}{unit}", self.0 / factor)
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum NumberOrText {
    Number(u64),
    Text(String),
}

macro_rules! text_or_number {
    ($name:ident) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = match NumberOrText::deserialize(deserializer)? {
                    NumberOrText::Number(number) if stringify!($name) == "Span" => {
                        format!("{number}ms")
                    }
                    NumberOrText::Number(number) => number.to_string(),
                    NumberOrText::Text(text) => text,
                };
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

text_or_number!(Span);
text_or_number!(Size);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_and_sizes_read_and_write_the_same_text() {
        for text in ["0s", "250ms", "30s", "5m", "12h", "6d", "2w"] {
            assert_eq!(text.parse::<Span>().expect("a span").to_string(), text);
        }
        for text in ["0", "1", "64K", "1M", "2G", "3T"] {
            assert_eq!(text.parse::<Size>().expect("a size").to_string(), text);
        }
        assert_eq!("7d".parse::<Span>().expect("a span").to_string(), "1w");
    }

    #[test]
    fn wrong_spans_and_sizes_say_what_is_expected() {
        for text in ["", "s", "5", "-1s", "1.5s", "1y", "99999999999999999999s", "9999w"] {
            let said = text.parse::<Span>().expect_err(text).to_string();
            assert!(said.contains("duration"), "{said}");
        }
        for text in ["", "K", "1k", "1KB", "-1", "18446744073709551615T"] {
            let said = text.parse::<Size>().expect_err(text).to_string();
            assert!(said.contains("size"), "{said}");
        }
    }
}
