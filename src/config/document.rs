//! The layers of a configuration, merged: file, environment, flags.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
};

use figment::{
    Figment, Metadata, Profile, Provider,
    value::{Dict, Map as Profiles, Value as Parsed},
};
use serde_json::{Map, Value, json};
use zeroize::{Zeroize as _, Zeroizing};

use super::{Fault, Flags, Sources, private};
use crate::roster::Roster;

/// Where the configuration is when nothing says otherwise.
const DEFAULT_FILE: &str = "/etc/hookward/hookward.toml";
const PREFIX: &str = "HOOKWARD_";
const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";
/// Variables of ours that are no configuration.
const RESERVED: [&str; 2] = ["CONFIG", "LOG"];
/// The tables and keys at the top.
pub(super) const TOP: [&str; 9] = [
    "data_dir",
    "shutdown_delay",
    "shutdown_grace",
    "server",
    "admin",
    "log",
    "limits",
    "dedup",
    "endpoints",
];

/// The merged configuration and what it was made of. Not to be printed: a value that stands in it
/// may be a secret. Its own copies are wiped when it is dropped.
#[derive(Clone)]
pub(super) struct Document {
    pub(super) values: Map<String, Value>,
    pub(super) file: Option<PathBuf>,
    pub(super) warnings: Vec<String>,
    /// Variables as they are written, by key path.
    pub(super) written: BTreeMap<String, String>,
    file_values: Value,
    env_values: Value,
    flag_values: Value,
}

/// Shows no value: one may be a secret in a wrong place.
impl std::fmt::Debug for Document {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Document")
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

/// One layer, as figment takes it.
struct Layer(Dict);

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named("hookward")
    }

    fn data(&self) -> Result<Profiles<Profile, Dict>, figment::Error> {
        Ok([(Profile::Default, self.0.clone())].into())
    }
}

impl Document {
    /// Reads and merges every layer.
    ///
    /// # Errors
    /// A file that cannot be read or is no TOML or YAML.
    pub(super) fn read(sources: &Sources) -> Result<Self, Vec<Fault>> {
        let (env, mut warnings) = environment(&sources.env);
        if !sources.unreadable.is_empty() {
            let names = sources.unreadable.join(", ");
            warnings.push(format!(
                "ignored variables that are not UTF-8 text: {names}"
            ));
        }
        let file = sources.file.clone().or_else(|| file_of(&sources.env));
        let file =
            file.or_else(|| Some(DEFAULT_FILE.into()).filter(|path: &PathBuf| path.exists()));
        let file_values = match &file {
            Some(path) => read_file(path).map_err(|fault| vec![fault])?,
            None => Value::Object(Map::new()),
        };
        let flag_values = flags(&sources.flags);
        let merged = Figment::new()
            .merge(Layer(dict(&file_values)))
            .merge(Layer(env.clone()))
            .merge(Layer(dict(&flag_values)));
        // Nothing in the layers fails: they are plain values already.
        let values = merged.extract::<Map<String, Value>>().unwrap_or_default();
        let env_values = serde_json::to_value(&env).unwrap_or_default();
        Ok(Self {
            values,
            file,
            warnings,
            written: written(&sources.env),
            file_values,
            env_values,
            flag_values,
        })
    }

    /// Where durable state lives, as far as this says.
    pub(super) fn data_dir(&self) -> Option<PathBuf> {
        let text = self.values.get("data_dir").and_then(Value::as_str);
        text.map(PathBuf::from)
    }

    /// Where what was made at run time stands, for errors.
    pub(super) fn roster_path(&self) -> String {
        let dir = self.data_dir().unwrap_or_default();
        Roster::path(&dir).display().to_string()
    }

    /// Names the place a key was set: file, variable or flag.
    pub(super) fn origin(&self, path: &str) -> String {
        let keys: Vec<&str> = path.split(['.', '[']).collect();
        let flag = match path {
            "server.listen" | "server.listen[0]" => Some("--listen"),
            "endpoints.default.upstream" => Some("--upstream"),
            "endpoints.default.path" => Some("--path"),
            "endpoints.default.mode" => Some("--mode"),
            _ if path.starts_with("endpoints.default.secrets") => Some("--secret-env"),
            _ => None,
        };
        if let Some(flag) = flag.filter(|_| depth(&self.flag_values, &keys) > 0) {
            return flag.to_owned();
        }
        let deepest = depth(&self.env_values, &keys);
        if deepest > 0 && deepest >= depth(&self.file_values, &keys) {
            // The variable that goes as deep as the key, or one that goes deeper.
            let is_under = |long: &str, short: &str| {
                let rest = long.strip_prefix(short);
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
            };
            let names = || self.written.keys().map(String::as_str);
            let above = names()
                .filter(|name| is_under(path, name))
                .max_by_key(|n| n.len());
            let below = || names().find(|name| is_under(name, path));
            if let Some(name) = above.or_else(below) {
                let name = name.replace('.', "__").to_ascii_uppercase();
                return format!("{PREFIX}{name}");
            }
        }
        self.file
            .as_ref()
            .map_or_else(|| "configuration".to_owned(), |f| f.display().to_string())
    }
}

impl Drop for Document {
    fn drop(&mut self) {
        let layers = [
            &mut self.file_values,
            &mut self.env_values,
            &mut self.flag_values,
        ];
        let merged = self.values.values_mut();
        layers.into_iter().chain(merged).for_each(wipe);
        self.written.values_mut().for_each(String::zeroize);
    }
}

/// How many of these keys, from the first, a value has.
fn depth(value: &Value, keys: &[&str]) -> usize {
    let mut at = Some(value);
    let mut depth = 0;
    for key in keys {
        at = at.and_then(|value| value.get(*key));
        if at.is_none() {
            break;
        }
        depth += 1;
    }
    depth
}

/// The file that `HOOKWARD_CONFIG` names.
fn file_of(env: &[(String, String)]) -> Option<PathBuf> {
    env.iter()
        .find(|(name, path)| name == "HOOKWARD_CONFIG" && !path.is_empty())
        .map(|(_, path)| path.into())
}

fn read_file(path: &Path) -> Result<Value, Fault> {
    let place = path.display().to_string();
    let fault = |what: String| Fault {
        origin: place.clone(),
        path: String::new(),
        what,
    };
    let text = read_text(path).map_err(|error| {
        let is_no_text = error.kind() == io::ErrorKind::InvalidData;
        let reason = format!("{}; {}", error.kind(), remedy(error.kind()));
        fault(format!(
            "cannot be read: {}",
            if is_no_text {
                "not UTF-8 text"
            } else {
                &reason
            }
        ))
    })?;
    let is_yaml = path.extension().is_some_and(|e| e == "yaml" || e == "yml");
    if is_yaml {
        read_yaml(&text)
    } else {
        read_toml(&text)
    }
    .map_err(fault)
}

/// A whole text, which may hold what is meant for nobody's eyes: written once, wiped when dropped.
fn read_text(path: &Path) -> io::Result<Zeroizing<String>> {
    let bytes = private::read(path)?.bytes;
    let text = str::from_utf8(&bytes).map_err(|_| io::ErrorKind::InvalidData)?;
    Ok(Zeroizing::new(text.to_owned()))
}

/// Wipes every text in a value.
fn wipe(value: &mut Value) {
    match value {
        Value::String(text) => text.zeroize(),
        Value::Array(items) => items.iter_mut().for_each(wipe),
        Value::Object(entries) => entries.values_mut().for_each(wipe),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// What helps when a file cannot be read.
pub(super) fn remedy(kind: io::ErrorKind) -> &'static str {
    match () {
        () if kind == io::ErrorKind::NotFound => "create it, or name another",
        () if kind == io::ErrorKind::PermissionDenied => "let this user read it",
        () if kind == io::ErrorKind::IsADirectory => "name a file in it",
        () if kind == io::ErrorKind::FileTooLarge => "name one of at most 1 MiB",
        () => "look at the file system",
    }
}

/// Where a file that a configuration names is: under `$CREDENTIALS_DIRECTORY/` it is one that systemd
/// laid there for this run (`LoadCredential=`).
///
/// # Errors
/// What would be right, where the variable is not set.
pub(super) fn located(path: &Path, env: &[(String, String)]) -> Result<PathBuf, &'static str> {
    let Ok(name) = path.strip_prefix(format!("${CREDENTIALS}")) else {
        return Ok(path.to_owned());
    };
    env.iter()
        .find(|(variable, directory)| variable == CREDENTIALS && !directory.is_empty())
        .map(|(_, directory)| Path::new(directory).join(name))
        .ok_or(
            "CREDENTIALS_DIRECTORY is not set: systemd sets it for a service with LoadCredential; \
             elsewhere, set it to the directory",
        )
}

fn read_toml(text: &str) -> Result<Value, String> {
    let parsed: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        // The message itself quotes the line, which may hold a secret.
        let at = error.span().map_or(0, |span| span.start);
        let before = text.get(..at).unwrap_or(text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().map_or(0, |l| l.chars().count()) + 1;
        format!("not valid TOML at line {line}, column {column}")
    })?;
    Ok(from_toml(toml::Value::Table(parsed)))
}

fn from_toml(value: toml::Value) -> Value {
    match value {
        toml::Value::String(text) => Value::String(text),
        toml::Value::Integer(number) => json!(number),
        toml::Value::Float(number) => json!(number),
        toml::Value::Boolean(flag) => json!(flag),
        toml::Value::Datetime(moment) => Value::String(moment.to_string()),
        toml::Value::Array(items) => items.into_iter().map(from_toml).collect(),
        toml::Value::Table(table) => Value::Object(
            table
                .into_iter()
                .map(|(key, value)| (key, from_toml(value)))
                .collect(),
        ),
    }
}

fn read_yaml(text: &str) -> Result<Value, String> {
    let parsed: Option<Value> = serde_saphyr::from_str(text).map_err(|error| {
        // As above: the message may quote what it found.
        error.location().map_or_else(
            || "not valid YAML".to_owned(),
            |at| {
                format!(
                    "not valid YAML at line {}, column {}",
                    at.line(),
                    at.column()
                )
            },
        )
    })?;
    match parsed {
        None | Some(Value::Null) => Ok(Value::Object(Map::new())),
        Some(value @ Value::Object(_)) => Ok(value),
        Some(_) => Err("expected a mapping at the top".to_owned()),
    }
}

/// The variables that are configuration, and a warning about those that look like it.
fn environment(env: &[(String, String)]) -> (Dict, Vec<String>) {
    let mut layers = Figment::new();
    let mut ignored = BTreeSet::new();
    for (name, value) in env {
        let Some(key) = name.strip_prefix(PREFIX) else {
            continue;
        };
        if RESERVED.contains(&key) {
            continue;
        }
        let key = key.to_ascii_lowercase();
        if TOP.contains(&key.as_str()) || key.contains("__") {
            let parsed: Parsed = value
                .parse()
                .unwrap_or_else(|_| Parsed::from(value.as_str()));
            if let Some(layer) = figment::util::nest(&key.replace("__", "."), parsed).into_dict() {
                layers = layers.merge(Layer(layer));
            }
        } else {
            ignored.insert(name.as_str());
        }
    }
    let warning = format!(
        "ignored variables that name no key: {}",
        ignored.iter().copied().collect::<Vec<_>>().join(", ")
    );
    let warnings = if ignored.is_empty() {
        Vec::new()
    } else {
        vec![warning]
    };
    (layers.extract::<Dict>().unwrap_or_default(), warnings)
}

/// What variables hold, by the key path they name.
fn written(env: &[(String, String)]) -> BTreeMap<String, String> {
    let path = |name: &str| Some(name.strip_prefix(PREFIX)?.to_ascii_lowercase());
    env.iter()
        .filter_map(|(name, text)| Some((path(name)?.replace("__", "."), text.trim().to_owned())))
        .collect()
}

fn flags(flags: &Flags) -> Value {
    let mut endpoint = Map::new();
    for (key, value) in [
        ("upstream", &flags.upstream),
        ("path", &flags.path),
        ("mode", &flags.mode),
    ] {
        if let Some(value) = value {
            endpoint.insert(key.to_owned(), json!(value));
        }
    }
    if let Some(variable) = &flags.secret_env {
        endpoint.insert(
            "secrets".to_owned(),
            json!([{"name": "default", "env": variable}]),
        );
    }
    if !endpoint.is_empty() {
        endpoint.entry("path").or_insert_with(|| json!("/"));
    }
    let mut all = Map::new();
    if !endpoint.is_empty() {
        all.insert("endpoints".to_owned(), json!({"default": endpoint}));
    }
    if !flags.listen.is_empty() {
        all.insert("server".to_owned(), json!({"listen": flags.listen}));
    }
    Value::Object(all)
}

fn dict(value: &Value) -> Dict {
    Parsed::serialize(value)
        .ok()
        .and_then(Parsed::into_dict)
        .unwrap_or_default()
}
