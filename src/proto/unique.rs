//! Maps from outside in which no key comes twice.
//!
//! Pure. JSON leaves open what a key that comes twice means (RFC 8259 section 4), and readers
//! differ: so it is refused, and the key is named. Fields of structs are so by serde itself.
//! Use: `#[serde(deserialize_with = "unique::map")]`.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};

/// Reads a map.
///
/// # Errors
/// A key comes twice, or an entry is none.
pub fn map<'de, D, K, V>(deserializer: D) -> Result<BTreeMap<K, V>, D::Error>
where
    D: Deserializer<'de>,
    K: Deserialize<'de> + Ord + fmt::Debug,
    V: Deserialize<'de>,
{
    deserializer.deserialize_map(Unique(PhantomData))
}

struct Unique<K, V>(PhantomData<(K, V)>);

impl<'de, K, V> Visitor<'de> for Unique<K, V>
where
    K: Deserialize<'de> + Ord + fmt::Debug,
    V: Deserialize<'de>,
{
    type Value = BTreeMap<K, V>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
        let mut map = BTreeMap::new();
        while let Some(key) = access.next_key::<K>()? {
            if map.contains_key(&key) {
                return Err(A::Error::custom(format_args!("key {key:.200?} comes twice")));
            }
            map.insert(key, access.next_value()?);
        }
        Ok(map)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_comes_twice_is_named() {
        let read = |text| map::<_, String, u64>(&mut serde_json::Deserializer::from_str(text));
        assert_eq!(read(r#"{"a":1,"b":2}"#).expect("a map").len(), 2);
        let said = read(r#"{"a":1,"b":2,"\u0061":1}"#).expect_err("twice").to_string();
        assert!(said.starts_with("key \"a\" comes twice"), "{said}");
    }
}
