//! Reading one table of the configuration, key by key.
//!
//! Each key is named once, with its kind and its default; from that one mention come its value, the
//! fault when it is wrong, the effective configuration and the JSON Schema. Faults are gathered,
//! never thrown, and never hold the value that was found: it may be a secret.

use std::{
    cell::RefCell, collections::BTreeMap, ops::RangeInclusive, rc::Rc, str::FromStr as _,
    time::Duration,
};

use serde_json::{Map, Value, json};

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// The key path, such as `endpoints.crm.deadline`.
    pub(super) path: String,
    /// What is wrong and what would be right.
    pub(super) what: String,
}

/// What variables hold, as it is written there, by key path: a value that looks like a number or a
/// list may be meant as a text.
pub(super) type Written = Rc<BTreeMap<String, String>>;

/// Where faults are gathered.
pub(super) type Faults = Rc<RefCell<Vec<Found>>>;

/// What a key holds; also its JSON Schema.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Flag,
    Number,
    Text,
    Duration,
    Size,
    Texts,
    Durations,
    Numbers,
}

impl Kind {
    fn schema(self) -> Value {
        match self {
            Self::Flag => json!({"type": "boolean"}),
            Self::Number => json!({"type": "integer", "minimum": 0}),
            Self::Text => json!({"type": "string"}),
            Self::Duration => duration_schema(),
            Self::Size => json!({"anyOf": [
                {"type": "integer", "minimum": 0},
                {"type": "string", "pattern": "^[0-9]+(\\.[0-9]+)? ?([kKMGT]i?)?[bB]?$"}
            ]}),
            Self::Texts => json!({"anyOf": [
                {"type": "array", "items": {"type": "string"}}, {"type": "string"}
            ]}),
            Self::Durations => json!({"type": "array", "items": duration_schema()}),
            Self::Numbers => json!({"type": "array", "items": {"type": "integer"}}),
        }
    }
}

fn duration_schema() -> Value {
    json!({"type": "string", "pattern": "^([0-9]+ ?[a-zA-Z]+ ?)+$"})
}

/// A table being read.
pub(super) struct Table {
    path: String,
    values: Map<String, Value>,
    known: Vec<&'static str>,
    shown: Map<String, Value>,
    schema: Map<String, Value>,
    faults: Faults,
    written: Written,
}

impl Table {
    pub(super) fn root(values: Map<String, Value>, faults: &Faults, written: Written) -> Self {
        Self::new(String::new(), values, faults, written)
    }

    fn new(path: String, values: Map<String, Value>, faults: &Faults, written: Written) -> Self {
        let (known, shown, schema) = (Vec::new(), Map::new(), Map::new());
        Self {
            path,
            values,
            known,
            shown,
            schema,
            faults: faults.clone(),
            written,
        }
    }

    /// The path of a key in this table; of the table itself for no key.
    pub(super) fn path_of(&self, key: &str) -> String {
        match (self.path.as_str(), key) {
            ("", key) => key.to_owned(),
            (path, "") => path.to_owned(),
            (path, key) => format!("{path}.{key}"),
        }
    }

    /// Notes a fault at a key of this table.
    pub(super) fn fault(&self, key: &str, what: impl Into<String>) {
        let found = Found {
            path: self.path_of(key),
            what: what.into(),
        };
        self.faults.borrow_mut().push(found);
    }

    /// Whether the key was given.
    pub(super) fn has(&self, key: &str) -> bool {
        self.values.get(key).is_some_and(|value| !value.is_null())
    }

    /// Whether the key holds a list.
    pub(super) fn is_list(&self, key: &str) -> bool {
        self.values.get(key).is_some_and(Value::is_array)
    }

    /// Whether the effective configuration shows the key.
    pub(super) fn shows(&self, key: &str) -> bool {
        self.shown.contains_key(key)
    }

    /// Whether the key holds a list without an item.
    pub(super) fn is_empty_list(&self, key: &str) -> bool {
        let list = self.values.get(key).and_then(Value::as_array);
        list.is_some_and(Vec::is_empty)
    }

    /// The keys given, for a table whose keys are names.
    pub(super) fn names(&self) -> Vec<String> {
        self.values.keys().cloned().collect()
    }

    fn take(&mut self, key: &'static str, schema: Value) -> Option<Value> {
        self.known.push(key);
        self.schema.insert(key.to_owned(), schema);
        self.values.remove(key).filter(|value| !value.is_null())
    }

    /// Sets what the effective configuration shows for a key.
    pub(super) fn show(&mut self, key: &str, value: impl Into<Value>) {
        self.shown.insert(key.to_owned(), value.into());
    }

    /// A value as its variable writes it, if it came from one and is neither a text nor a table.
    fn as_written(&self, key: &str, value: Value) -> Value {
        let is_retyped = matches!(value, Value::Array(_) | Value::Bool(_) | Value::Number(_));
        let written = self.written.get(&self.path_of(key));
        match written.filter(|_| is_retyped) {
            Some(written) => Value::String(written.clone()),
            None => value,
        }
    }

    /// Reads a key with a reader of one's own; `None` when absent or wrong.
    pub(super) fn read<T>(
        &mut self,
        key: &'static str,
        kind: Kind,
        expected: &str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Option<T> {
        let mut value = self.take(key, kind.schema())?;
        match kind {
            Kind::Text => value = self.as_written(key, value),
            Kind::Texts if !value.is_array() => value = self.as_written(key, value),
            Kind::Duration
            | Kind::Durations
            | Kind::Flag
            | Kind::Number
            | Kind::Numbers
            | Kind::Size
            | Kind::Texts => {}
        }
        let read = read(&value);
        if read.is_none() {
            self.fault(key, format!("expected {expected}"));
        }
        read
    }

    pub(super) fn text(&mut self, key: &'static str) -> Option<String> {
        let text = self.read(key, Kind::Text, "a text", as_text)?;
        self.show(key, text.clone());
        Some(text)
    }

    pub(super) fn text_or(&mut self, key: &'static str, default: &str) -> String {
        let text = self.text(key).unwrap_or_else(|| default.to_owned());
        self.show(key, text.clone());
        text
    }

    pub(super) fn flag(&mut self, key: &'static str, default: bool) -> bool {
        let flag = self
            .read(key, Kind::Flag, "true or false", Value::as_bool)
            .unwrap_or(default);
        self.show(key, flag);
        flag
    }

    pub(super) fn number(
        &mut self,
        key: &'static str,
        default: usize,
        range: RangeInclusive<usize>,
    ) -> usize {
        let expected = format!("a number from {} to {}", range.start(), range.end());
        let read = |value: &Value| {
            let number = usize::try_from(value.as_u64()?).ok()?;
            range.contains(&number).then_some(number)
        };
        let number = self
            .read(key, Kind::Number, &expected, read)
            .unwrap_or(default);
        let (least, most) = range.into_inner();
        self.describe(
            key,
            json!({"type": "integer", "minimum": least, "maximum": most}),
        );
        self.show(key, number);
        number
    }

    pub(super) fn duration(
        &mut self,
        key: &'static str,
        default: Duration,
        range: RangeInclusive<Duration>,
    ) -> Duration {
        let duration = self.duration_if(key, range).unwrap_or(default);
        self.show(key, write_duration(duration));
        duration
    }

    pub(super) fn duration_if(
        &mut self,
        key: &'static str,
        range: RangeInclusive<Duration>,
    ) -> Option<Duration> {
        let expected = format!(
            "a duration from {} to {}, such as 250ms, 30s, 5m or 24h",
            write_duration(*range.start()),
            write_duration(*range.end())
        );
        let read = |value: &Value| as_duration(value).filter(|duration| range.contains(duration));
        let duration = self.read(key, Kind::Duration, &expected, read)?;
        self.show(key, write_duration(duration));
        Some(duration)
    }

    pub(super) fn size(
        &mut self,
        key: &'static str,
        default: usize,
        range: RangeInclusive<usize>,
    ) -> usize {
        let expected = format!(
            "a size from {} to {}, such as 64KiB, 1MiB or a number of bytes",
            write_size(*range.start()),
            write_size(*range.end())
        );
        let read = |value: &Value| as_size(value).filter(|size| range.contains(size));
        let size = self
            .read(key, Kind::Size, &expected, read)
            .unwrap_or(default);
        self.show(key, write_size(size));
        size
    }

    pub(super) fn choice<T: Copy>(
        &mut self,
        key: &'static str,
        default: &'static str,
        options: &[(&'static str, T)],
    ) -> Option<T> {
        let names: Vec<_> = options.iter().map(|(name, _)| *name).collect();
        let find = |name: &str| options.iter().find(|(n, _)| *n == name).copied();
        let expected = format!("one of {}", names.join(", "));
        let chosen = self
            .read(key, Kind::Text, &expected, |value| find(value.as_str()?))
            .or_else(|| find(default));
        self.schema.insert(key.to_owned(), json!({"enum": names}));
        let (name, choice) = chosen?;
        self.show(key, name);
        Some(choice)
    }

    /// A list of texts, each parsed; one text stands for a list of one. Wrong items are faults of
    /// their own.
    pub(super) fn list<T>(
        &mut self,
        key: &'static str,
        default: &[&str],
        expected: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Vec<T> {
        let given = self.read(
            key,
            Kind::Texts,
            &format!("a list, each item {expected}"),
            as_texts,
        );
        let texts = given.unwrap_or_else(|| default.iter().map(|&t| t.to_owned()).collect());
        self.show(key, texts.clone());
        let mut items = Vec::new();
        for (number, text) in texts.iter().enumerate() {
            match parse(text) {
                Some(item) => items.push(item),
                None => self.fault(&format!("{key}[{number}]"), format!("expected {expected}")),
            }
        }
        items
    }

    /// A table in this one, empty if absent. Hand it back with [`Table::close`].
    pub(super) fn table(&mut self, key: &'static str) -> Self {
        let value = self.take(key, Value::Null);
        self.inner(key, value)
    }

    /// The table under a name that is no key of ours.
    pub(super) fn named(&mut self, name: &str) -> Self {
        let value = self.values.remove(name);
        self.inner(name, value)
    }

    /// A table of these values, as if they stood under this name.
    pub(super) fn given(&mut self, name: &str, values: Map<String, Value>) -> Self {
        self.inner(name, Some(Value::Object(values)))
    }

    fn inner(&mut self, key: &str, value: Option<Value>) -> Self {
        let values = match value {
            None | Some(Value::Null) => Map::new(),
            Some(Value::Object(values)) => values,
            Some(_) => {
                self.fault(key, "expected a table");
                Map::new()
            }
        };
        Self::new(
            self.path_of(key),
            values,
            &self.faults,
            self.written.clone(),
        )
    }

    /// The plain text under a name, if it is no table; taken out if it is one.
    pub(super) fn plain(&mut self, name: &str) -> Option<String> {
        let value = self.values.get(name)?.clone();
        let text = as_text(&self.as_written(name, value))?;
        self.values.remove(name);
        Some(text)
    }

    /// Tables in a list.
    pub(super) fn tables(&mut self, key: &'static str) -> Vec<Self> {
        match self.take(key, Value::Null) {
            None => Vec::new(),
            Some(Value::Array(items)) => {
                let mut tables = Vec::new();
                for (number, item) in items.into_iter().enumerate() {
                    tables.push(self.inner(&format!("{key}[{number}]"), Some(item)));
                }
                tables
            }
            Some(_) => {
                self.fault(key, "expected a list of tables");
                Vec::new()
            }
        }
    }

    /// Ends reading: whatever was given and not read is unknown. What it shows, and its schema.
    pub(super) fn end(self) -> (Value, Value) {
        for key in self.values.keys() {
            let near = self.known.iter().find(|known| is_near(known, key));
            let what = match near {
                Some(near) => format!("unknown key; did you mean {near}?"),
                None => format!("unknown key; there are {}", self.known.join(", ")),
            };
            self.fault(key, what);
        }
        let schema = json!({
            "type": "object", "additionalProperties": false, "properties": self.schema
        });
        (Value::Object(self.shown), schema)
    }

    /// Ends a table that was read out of this one.
    pub(super) fn close(&mut self, key: &str, inner: Self) {
        let (shown, schema) = inner.end();
        if shown.as_object().is_some_and(|shown| !shown.is_empty()) {
            self.show(key, shown);
        }
        self.schema.insert(key.to_owned(), schema);
    }

    /// Sets the schema of a key that is read in a way of its own.
    pub(super) fn describe(&mut self, key: &'static str, schema: Value) {
        self.schema.insert(key.to_owned(), schema);
    }
}

/// A text; numbers and flags are texts too, since an environment variable does not say which it is.
pub(super) fn as_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

fn as_texts(value: &Value) -> Option<Vec<String>> {
    match value.as_array() {
        Some(items) => items.iter().map(as_text).collect(),
        None => Some(vec![as_text(value)?]),
    }
}

pub(super) fn as_duration(value: &Value) -> Option<Duration> {
    humantime::parse_duration(value.as_str()?).ok()
}

fn as_size(value: &Value) -> Option<usize> {
    let bytes = match value.as_str() {
        Some(text) => bytesize::ByteSize::from_str(text).ok()?.as_u64(),
        None => value.as_u64()?,
    };
    usize::try_from(bytes).ok()
}

pub(super) fn write_duration(duration: Duration) -> String {
    let (millis, seconds) = (duration.subsec_millis(), duration.as_secs());
    match (seconds % 3600, seconds % 60) {
        _ if millis > 0 => format!("{}ms", duration.as_millis()),
        (0, 0) if seconds > 0 => format!("{}h", seconds / 3600),
        (_, 0) if seconds > 0 => format!("{}m", seconds / 60),
        _ => format!("{seconds}s"),
    }
}

pub(super) fn write_size(bytes: usize) -> String {
    for (unit, name) in [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")] {
        if bytes > 0 && bytes.is_multiple_of(unit) {
            return format!("{}{name}", bytes / unit);
        }
    }
    bytes.to_string()
}

/// Whether two keys are a slip of the finger apart: one letter added, lost or changed, or two
/// swapped, or the separator.
fn is_near(known: &str, given: &str) -> bool {
    let plain = |text: &str| text.to_ascii_lowercase().replace('-', "_");
    let (a, b) = (plain(known).into_bytes(), plain(given).into_bytes());
    let head = a.iter().zip(&b).take_while(|(x, y)| x == y).count();
    let tail_of = |skip: usize| {
        let (a, b) = (a.iter().skip(skip), b.iter().skip(skip));
        a.rev().zip(b.rev()).take_while(|(x, y)| x == y).count()
    };
    let tail = tail_of(head);
    let (left, right) = (a.len() - head - tail, b.len() - head - tail);
    left <= 1 && right <= 1
        || (left == 2
            && right == 2
            && a.get(head) == b.get(head + 1)
            && a.get(head + 1) == b.get(head))
}
