//! Endpoints made at run time, as tables for the configuration.

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::{Made, Roster};

const HEAD: &str = "\
# Endpoints made at run time, as tables for the configuration. Secrets are not in it: put each into
# the file or variable named here, and an upstream's query back where it says ***. Take an endpoint
# away at run time when its table is in the configuration: until then the reload is refused, because
# the two would clash.
";

impl Roster {
    /// Writes its endpoints down, without their secrets.
    pub fn to_toml(&self) -> String {
        let tables = self.endpoints.iter().map(|(name, made)| {
            let table = without_secrets(name, &made.settings);
            (name.clone(), Value::Object(table))
        });
        let tables = json!({"endpoints": tables.collect::<Map<_, _>>()});
        if self.endpoints.is_empty() {
            return HEAD.to_owned();
        }
        // Texts, numbers, flags, lists and tables: TOML can say them all.
        let text = toml::Value::try_from(tables).and_then(|t| toml::to_string_pretty(&t));
        format!("{HEAD}\n{}", text.unwrap_or_default())
    }
}

/// What stands in the place of a secret.
const HIDDEN: &str = "***";

impl Made {
    /// Its table as it was given, secrets as `***`.
    pub fn shown(&self) -> Value {
        let mut table = self.settings.clone();
        let secrets = table.get_mut("secrets").and_then(Value::as_array_mut);
        for secret in secrets.into_iter().flatten() {
            if let Some(value) = secret.get_mut("value") {
                *value = HIDDEN.into();
            }
        }
        for (_, value) in headers_of(&mut table) {
            *value = HIDDEN.into();
        }
        hide_query(&mut table);
        Value::Object(table)
    }

    /// What tells its table, as it is shown, from any other.
    pub fn revision(&self) -> String {
        let digest = Sha256::digest(self.shown().to_string());
        hex::encode(digest.get(..8).unwrap_or_default())
    }
}

/// What stands in an upstream's query may be what lets us in.
fn hide_query(table: &mut Map<String, Value>) {
    if let Some(Value::String(url)) = table.get_mut("upstream")
        && let Some((before, _)) = url.split_once('?')
    {
        *url = format!("{before}?{HIDDEN}");
    }
}

/// The headers that an endpoint's upstream gets.
fn headers_of(table: &mut Map<String, Value>) -> impl Iterator<Item = (&String, &mut Value)> {
    let options = table.get_mut("upstream_options");
    let headers = options
        .and_then(|options| options.get_mut("headers"))
        .and_then(Value::as_object_mut);
    headers.into_iter().flatten()
}

fn without_secrets(endpoint: &str, settings: &Map<String, Value>) -> Map<String, Value> {
    let mut table = settings.clone();
    let secrets = table.get_mut("secrets").and_then(Value::as_array_mut);
    for secret in secrets
        .into_iter()
        .flatten()
        .filter_map(Value::as_object_mut)
    {
        secret.remove("value");
        let name = secret
            .get("name")
            .and_then(Value::as_str)
            .unwrap_or("default");
        let file = format!("/run/secrets/hookward/{endpoint}-{name}");
        secret.insert("file".to_owned(), file.into());
    }
    for (name, value) in headers_of(&mut table) {
        let variable = format!("{endpoint}_{name}").replace('-', "_");
        *value = json!({"env": variable.to_ascii_uppercase()});
    }
    hide_query(&mut table);
    table
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn what_is_written_down_is_toml_and_holds_no_secret() {
        let settings = json!({
            "path": "/hook", "upstream": "http://127.0.0.1:1/?k=very-secret", "active": false,
            "secrets": [{"name": "main", "value": "very-secret"}],
            "upstream_options": {"headers": {"X-Api-Key": "very-secret"}},
            "queue": {"retry": ["1s"]},
        });
        let mut roster = Roster::default();
        let at = SystemTime::UNIX_EPOCH;
        let settings = settings.as_object().unwrap().clone();
        roster
            .endpoints
            .insert("crm".to_owned(), Made { at, settings });
        let text = roster.to_toml();
        assert!(!text.contains("very-secret"), "{text}");
        let read: toml::Table = text.parse().unwrap();
        let crm = &read["endpoints"]["crm"];
        let file = crm["secrets"][0]["file"].as_str().unwrap();
        assert_eq!(file, "/run/secrets/hookward/crm-main");
        let header = &crm["upstream_options"]["headers"]["X-Api-Key"]["env"];
        assert_eq!(header.as_str(), Some("CRM_X_API_KEY"));
        assert_eq!(crm["queue"]["retry"][0].as_str(), Some("1s"));
        assert_eq!(crm["upstream"].as_str(), Some("http://127.0.0.1:1/?***"));
        let shown = roster.endpoints["crm"].shown().to_string();
        assert!(!shown.contains("very-secret"), "{shown}");
    }
}
