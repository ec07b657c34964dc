//! An endpoint's secrets: where each is kept, and what is wrong with it.

use std::{collections::BTreeSet, path::Path};

use serde_json::json;
use zeroize::Zeroizing;

use super::{as_moment, endpoint::Reader};
use crate::{
    config::document::{located, remedy},
    config::private::{self, File},
    config::table::{Kind, Table},
    secret::{Secret, SecretEncoding},
    signature::{Scheme, Secrets},
};

/// Below this many bytes a secret can be guessed.
const SHORT_SECRET: usize = 16;

impl Reader<'_> {
    pub(super) fn secrets(
        &mut self,
        table: &mut Table,
        scheme: Option<&Scheme>,
    ) -> Option<Secrets> {
        let entries = table.tables("secrets");
        if entries.is_empty() {
            table.fault("secrets", "expected at least one, such as [{ name = \"2026-11\", file = \"/run/secrets/tinytalk\" }]");
        }
        let is_single = entries.len() == 1;
        let (mut secrets, mut shown, mut names) = (Vec::new(), Vec::new(), BTreeSet::new());
        let mut is_whole = true;
        for mut entry in entries {
            let secret = self.secret(&mut entry, scheme, is_single);
            match secret {
                Some(secret) if !names.insert(secret.name().to_owned()) => {
                    entry.fault(
                        "name",
                        "expected a name that no other secret of this endpoint has",
                    );
                }
                Some(secret) => secrets.push(secret),
                None => is_whole = false,
            }
            let (effective, schema) = entry.end();
            shown.push(effective);
            table.describe(
                "secrets",
                json!({"type": "array", "minItems": 1, "items": schema}),
            );
        }
        table.show("secrets", shown);
        let has_good = |s: &Secret| s.not_after().is_none_or(|end| self.now < end);
        if is_whole && !secrets.is_empty() && !secrets.iter().any(has_good) {
            self.warnings.push(format!(
                "{}: every secret has expired",
                table.path_of("secrets")
            ));
        }
        Secrets::keeping(scheme?.spec().algorithm, secrets, self.keeps_keys)
            .ok()
            .filter(|_| is_whole)
    }

    fn secret(
        &mut self,
        entry: &mut Table,
        scheme: Option<&Scheme>,
        is_single: bool,
    ) -> Option<Secret> {
        let name = entry
            .text("name")
            .or_else(|| is_single.then(|| "default".to_owned()));
        if name.is_none() {
            entry.fault(
                "name",
                "expected a name, such as the month the secret was made",
            );
        }
        let encodings = [
            ("scheme", None),
            ("utf8", Some(SecretEncoding::Utf8)),
            ("hex", Some(SecretEncoding::Hex)),
            ("base64", Some(SecretEncoding::Base64)),
        ];
        let encoding = entry.choice("encoding", "scheme", &encodings)?;
        let expected = "a moment such as 2026-12-01T00:00:00Z";
        let has_end = entry.has("not_after");
        let not_after = entry.read("not_after", Kind::Text, expected, as_moment);
        if let Some(not_after) = not_after {
            entry.show(
                "not_after",
                humantime::format_rfc3339_seconds(not_after).to_string(),
            );
        }
        // Everything is read before anything is given up: a key that is not read is unknown.
        let text = self.hidden(entry)?;
        let name = name.filter(|_| not_after.is_some() || !has_end)?;
        entry.show("value", "***");
        let decoded = match encoding {
            Some(encoding) => encoding.decode(&text),
            None => scheme?.decode_secret(&text),
        };
        let bytes = match decoded {
            Ok(bytes) => bytes,
            Err(expected) => {
                entry.fault(
                    "encoding",
                    format!("the secret does not fit: expected {expected}"),
                );
                return None;
            }
        };
        if (1..SHORT_SECRET).contains(&bytes.len()) {
            let place = entry.path_of("");
            self.warnings.push(format!(
                "{place}: under {SHORT_SECRET} bytes, which can be guessed"
            ));
        }
        match Secret::new(name, bytes, not_after) {
            Ok(secret) => Some(secret),
            Err(_) => {
                entry.fault("", "the secret is empty: anyone could sign");
                None
            }
        }
    }

    /// What a file or a variable holds, one trailing newline cut.
    ///
    /// At run time a secret is given as it is: whoever may make endpoints may not have the process
    /// read its files and variables out to an upstream.
    pub(super) fn hidden(&mut self, entry: &mut Table) -> Option<Zeroizing<Vec<u8>>> {
        let (file, variable) = (entry.text("file"), entry.text("env"));
        if self.made.is_some() {
            if file.is_some() || variable.is_some() {
                entry.fault("", "expected value at run time, not file or env");
            }
            let value = entry.plain("value").map(String::into_bytes);
            return match value {
                Some(value) if !value.is_empty() => Some(Zeroizing::new(value)),
                Some(_) | None => {
                    entry.fault("value", "expected a text that is not empty");
                    None
                }
            };
        }
        if entry.plain("value").is_some() {
            entry.fault(
                "value",
                "expected file or env instead: a secret does not belong in a configuration",
            );
            return None;
        }
        let (key, empty) = match variable {
            Some(_) => ("env", "the variable named here is empty; set it"),
            None => (
                "file",
                "the file named here is empty; write the secret into it",
            ),
        };
        let bytes = match (file, variable) {
            (Some(path), None) => self.file(entry, "file", Path::new(&path))?,
            (None, Some(name)) => {
                let found = self.env.iter().find(|(n, _)| *n == name);
                match found.map(|(_, value)| value.as_bytes().to_vec()) {
                    Some(bytes) if !bytes.is_empty() => Zeroizing::new(bytes),
                    Some(_) => {
                        entry.fault(key, empty);
                        return None;
                    }
                    None => {
                        let unset = "the variable named here is not set, or not UTF-8 text; set it";
                        entry.fault("env", unset);
                        return None;
                    }
                }
            }
            (Some(_), Some(_)) | (None, None) => {
                entry.fault("file", "expected either file or env");
                return None;
            }
        };
        let cut = bytes
            .strip_suffix(b"\n")
            .map(|b| b.strip_suffix(b"\r").unwrap_or(b));
        let cut = Zeroizing::new(cut.unwrap_or(&bytes).to_vec());
        if cut.is_empty() {
            entry.fault(key, empty);
            return None;
        }
        Some(cut)
    }

    pub(super) fn file(
        &mut self,
        table: &Table,
        key: &str,
        path: &Path,
    ) -> Option<Zeroizing<Vec<u8>>> {
        let path = match located(path, self.env) {
            Ok(path) => path,
            Err(what) => {
                table.fault(key, what);
                return None;
            }
        };
        self.watched.insert(path.clone());
        match private::read(&path) {
            Ok(File { bytes, exposure }) => {
                // What a certificate says is no secret; what may write it decides whom we trust.
                let is_meant = key == "file" || key == "client_key";
                if let Some(how) = exposure.filter(|how| is_meant || how.is_writable()) {
                    let place = table.path_of(key);
                    self.warnings
                        .push(format!("{place}: the file named here {how}"));
                }
                Some(bytes)
            }
            Err(error) => {
                let kind = error.kind();
                let remedy = remedy(kind);
                let what = format!("the file named here cannot be read: {kind}; {remedy}");
                table.fault(key, what);
                None
            }
        }
    }
}
