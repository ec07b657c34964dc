//! What a verified body says about itself: its type, and its key where the scheme keeps it there.
//!
//! Owns reading one string out of a JSON body without building the rest of it. It never decides
//! whether a body is delivered: a body that is no JSON is an event like any other.

pub(crate) mod samples;

use std::{
    borrow::Cow,
    cell::{Cell, RefCell},
    fmt,
};

use serde::de::{
    Deserialize as _, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor,
};

/// The string or integer at a JSON pointer (RFC 6901) in a body; `None` when there is none.
///
/// Reading stops at the value: what comes after it is not looked at. Of members with the same
/// name, the first counts. Integers are given in decimal.
pub fn text_at(body: &[u8], pointer: &str) -> Option<String> {
    if !pointer.starts_with('/') {
        return None;
    }
    let found = RefCell::new(None);
    let mut json = serde_json::Deserializer::from_slice(body);
    // Leaves the rest unread at the value, which the reader takes for an error; what was found is
    // what counts.
    let _ = Walk {
        path: pointer,
        found: &found,
    }
    .deserialize(&mut json);
    found.into_inner()
}

/// Whether nobody can read another value at this pointer than [`text_at`] does: the body is JSON to
/// its end (RFC 8259), and no member on the way comes twice.
pub fn is_certain(body: &[u8], pointer: &str) -> bool {
    let is_doubled = Cell::new(false);
    let Ok(text) = str::from_utf8(body) else {
        return false;
    };
    let mut json = serde_json::Deserializer::from_str(text);
    let whole = Whole {
        path: pointer,
        is_doubled: &is_doubled,
    };
    whole.deserialize(&mut json).is_ok() && json.end().is_ok() && !is_doubled.get()
}

/// Reads everything, and notes a member on the way that comes twice.
struct Whole<'a> {
    path: &'a str,
    is_doubled: &'a Cell<bool>,
}

impl<'de> DeserializeSeed<'de> for Whole<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        if self.path.is_empty() {
            return IgnoredAny::deserialize(json).map(drop);
        }
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Whole<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        let Some((wanted, path)) = step(self.path) else {
            return IgnoredAny.visit_map(members).map(drop);
        };
        let mut is_found = false;
        while let Some(is_wanted) = members.next_key_seed(Is(&wanted))? {
            if is_wanted {
                self.is_doubled.set(self.is_doubled.get() || is_found);
                is_found = true;
                let is_doubled = self.is_doubled;
                members.next_value_seed(Whole { path, is_doubled })?;
            } else {
                members.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let Some((wanted, path)) = step(self.path) else {
            return IgnoredAny.visit_seq(items).map(drop);
        };
        let is_doubled = self.is_doubled;
        let wanted: Option<usize> = wanted.parse().ok();
        for number in 0.. {
            let path = if wanted == Some(number) { path } else { "" };
            if items
                .next_element_seed(Whole { path, is_doubled })?
                .is_none()
            {
                break;
            }
        }
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

/// The first name of a pointer, and the pointer from there.
fn step(path: &str) -> Option<(Cow<'_, str>, &str)> {
    let path = path.strip_prefix('/')?;
    let end = path.find('/').unwrap_or(path.len());
    let (name, rest) = path.split_at_checked(end)?;
    let name = match name.contains('~') {
        true => Cow::Owned(name.replace("~1", "/").replace("~0", "~")),
        false => Cow::Borrowed(name),
    };
    Some((name, rest))
}

struct Walk<'a> {
    /// What is left of the pointer.
    path: &'a str,
    found: &'a RefCell<Option<String>>,
}

impl<'a> Walk<'a> {
    fn keep(&self, text: impl FnOnce() -> String) {
        if self.path.is_empty() {
            *self.found.borrow_mut() = Some(text());
        }
    }
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object on the way to a string")
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        self.keep(|| text.to_owned());
        Ok(())
    }

    fn visit_u64<E>(self, number: u64) -> Result<(), E> {
        self.keep(|| number.to_string());
        Ok(())
    }

    fn visit_i64<E>(self, number: i64) -> Result<(), E> {
        self.keep(|| number.to_string());
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        let Some((wanted, path)) = step(self.path) else {
            return Err(serde::de::Error::custom("an object, not a string"));
        };
        while let Some(is_wanted) = members.next_key_seed(Is(&wanted))? {
            if is_wanted {
                return members.next_value_seed(Walk {
                    path,
                    found: self.found,
                });
            }
            members.next_value::<IgnoredAny>()?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let Some((wanted, path)) = step(self.path) else {
            return Err(serde::de::Error::custom("an array, not a string"));
        };
        let wanted: usize = wanted.parse().map_err(serde::de::Error::custom)?;
        for _ in 0..wanted {
            if items.next_element::<IgnoredAny>()?.is_none() {
                return Ok(());
            }
        }
        items
            .next_element_seed(Walk {
                path,
                found: self.found,
            })
            .map(drop)
    }
}

/// Whether a member's name is the wanted one, without keeping it.
struct Is<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for Is<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<bool, D::Error> {
        json.deserialize_str(self)
    }
}

impl Visitor<'_> for Is<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a member's name")
    }

    fn visit_str<E>(self, name: &str) -> Result<bool, E> {
        Ok(name == self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_at_a_pointer_is_found_wherever_it_stands() {
        let body = br#"{"a":{"b":[0,{"c/d":"deep"}]},"type":"message.created","n":-7}"#;
        assert_eq!(text_at(body, "/type").as_deref(), Some("message.created"));
        assert_eq!(text_at(body, "/a/b/1/c~1d").as_deref(), Some("deep"));
        assert_eq!(text_at(body, "/n").as_deref(), Some("-7"));
    }

    #[test]
    fn nothing_is_found_where_there_is_no_text() {
        let bodies: [&[u8]; 8] = [
            b"",
            b"{}",
            b"[]",
            b"null",
            br#"{"type":null}"#,
            br#"{"type":{"a":1}}"#,
            b"{\"typ",
            b"\xff",
        ];
        for body in bodies {
            assert_eq!(text_at(body, "/type"), None, "{body:?}");
        }
        assert_eq!(text_at(br#"{"type":"x"}"#, "/type/deeper"), None);
    }

    #[test]
    fn what_follows_the_text_is_not_looked_at() {
        assert_eq!(
            text_at(br#"{"type":"x", this is no JSON"#, "/type").as_deref(),
            Some("x")
        );
    }

    #[test]
    fn a_value_is_certain_when_every_reader_finds_it() {
        for (body, pointer, certain) in [
            (r#"{"type":"b"}"#, "/type", true),
            (
                r#" {"x":{"type":1,"type":2},"type":"b","n":[1,-2,3.5,null,true]} "#,
                "/type",
                true,
            ),
            (r#"{"type":"b""#, "/type", false),
            (r#"{"type":"b"} x"#, "/type", false),
            (r#"{"type":"b",}"#, "/type", false),
            (r#"{"type":"b","type":"a"}"#, "/type", false),
            (r#"{"type":"b","t\u0079pe":"a"}"#, "/type", false),
            (r#"{"a":{"t":"b"},"a":{}}"#, "/a/t", false),
            (r#"{"a":[{"t":"b"},{"t":1,"t":2}]}"#, "/a/0/t", true),
            (r#"{"a":[{"t":"b"},{"t":1,"t":2}]}"#, "/a/1/t", false),
            ("", "/type", false),
            ("null", "/type", true),
        ] {
            assert_eq!(is_certain(body.as_bytes(), pointer), certain, "{body}");
        }
        assert!(!is_certain(b"{\"type\":\"b\",\"x\":\"\xff\"}", "/type"));
    }

    #[test]
    fn depth_is_bounded() {
        let body = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(text_at(body.as_bytes(), "/0/0"), None);
    }
}
