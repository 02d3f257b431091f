//! A JSON object as it was written: its members in their order, each value verbatim.
//!
//! Pure. For filters that look at some members and pass the rest on untouched. A member that
//! stands twice is refused, since readers would disagree about it.

use std::collections::BTreeSet;
use std::fmt;

use serde::de::{DeserializeOwned, Error as _, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

/// The members of one object.
#[derive(Debug, Clone, Default)]
pub struct Members(Vec<(String, Box<RawValue>)>);

impl Members {
    /// A member's value, where it is there and not null.
    ///
    /// # Errors
    /// It is there and of another type; the text names it.
    pub fn get<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, String> {
        let Some((_, raw)) = self.0.iter().find(|(held, _)| held == name) else { return Ok(None) };
        serde_json::from_str(raw.get()).map_err(|error| {
            let text = error.to_string();
            format!("`{name}`: {}", text.split(" at line ").next().unwrap_or_default())
        })
    }

    /// Sets a member, at the end unless it is there.
    pub fn set(&mut self, name: &str, value: &impl Serialize) {
        let raw = serde_json::value::to_raw_value(value).expect("only string keys");
        match self.0.iter_mut().find(|(held, _)| held == name) {
            Some((_, held)) => *held = raw,
            None => self.0.push((name.to_owned(), raw)),
        }
    }
}

struct MembersVisitor;

impl<'de> Visitor<'de> for MembersVisitor {
    type Value = Members;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
        let mut members = vec![];
        let mut names = BTreeSet::new();
        while let Some((name, value)) = map.next_entry::<String, Box<RawValue>>()? {
            if !names.insert(name.clone()) {
                return Err(A::Error::custom(format!("member `{name}` stands twice")));
            }
            members.push((name, value));
        }
        Ok(Members(members))
    }
}

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MembersVisitor)
    }
}

impl Serialize for Members {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_keep_their_order_and_their_bytes() {
        let text = r#"{"z":1.50,"a":{"b": [1,  2]},"big":123456789012345678901234567890}"#;
        let mut members: Members = serde_json::from_str(text).expect("an object");
        assert_eq!(serde_json::to_string(&members).expect("JSON"), text);
        assert_eq!(members.get::<f64>("z"), Ok(Some(1.5)));
        assert_eq!(members.get::<u64>("absent"), Ok(None));
        let said = members.get::<u64>("big").expect_err("too big");
        assert!(said.starts_with("`big`: "), "{said}");
        members.set("z", &"new");
        members.set("end", &true);
        let text = serde_json::to_string(&members).expect("JSON");
        assert!(
            text.starts_with(r#"{"z":"new","a""#) && text.ends_with(r#""end":true}"#),
            "{text}"
        );
        let twice = serde_json::from_str::<Members>(r#"{"a":1,"a":1}"#).expect_err("twice");
        assert!(twice.to_string().starts_with("member `a` stands twice"));
    }
}
