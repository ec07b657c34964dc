//! One endpoint's table.

use std::{
    collections::BTreeSet,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{DAY, MS, as_moment, queueing::on_disk, read_dedup};
use crate::{
    config::document::{located, remedy},
    config::private::{self, File},
    config::table::{Kind, Table, as_text},
    dedup,
    endpoint::{
        Allow, Dedup, Endpoint, EndpointName, Enforcement, EventFilter, MissingKey, PathPattern,
        Rate, TlsMaterial, Transport, Upstream,
    },
    limits::Limits,
    secret::{Secret, SecretEncoding},
    signature::{Algorithm, Encoding, Scheme, SchemeSpec, Secrets, TimestampUnit},
    upstream,
};

/// Below this many bytes a secret can be guessed.
const SHORT_SECRET: usize = 16;
/// After this long a sender that promises 30 seconds has given up.
const SENDER_PATIENCE: Duration = Duration::from_secs(30);

/// What reading endpoints needs to know, and what it gathers besides.
pub(super) struct Reader<'e> {
    pub(super) env: &'e [(String, String)],
    pub(super) now: SystemTime,
    pub(super) limits: Limits,
    pub(super) dedup: Dedup,
    pub(super) has_data_dir: bool,
    /// When the endpoint in hand was made, if that was at run time.
    pub(super) made: Option<SystemTime>,
    /// Whether key bytes outlive their key schedules: where an API signs and explains.
    pub(super) keeps_keys: bool,
    /// Where the upstreams of such endpoints may be.
    pub(super) allow: Arc<Allow>,
    pub(super) warnings: Vec<String>,
    pub(super) watched: BTreeSet<PathBuf>,
}

impl<'e> Reader<'e> {
    /// Reads with the built-in defaults, until it is told others.
    pub(super) fn new(env: &'e [(String, String)], now: SystemTime, has_data_dir: bool) -> Self {
        let policy = dedup::Policy {
            window: DAY,
            key_reuse: dedup::KeyReuse::Duplicate,
            replay: dedup::Replay::Flag,
        };
        Self {
            env,
            now,
            limits: Limits::default(),
            dedup: Dedup {
                missing_key: MissingKey::Forward,
                policy,
            },
            has_data_dir,
            made: None,
            keeps_keys: false,
            allow: Arc::default(),
            warnings: Vec::new(),
            watched: BTreeSet::new(),
        }
    }
}

impl Reader<'_> {
    /// Reads one endpoint; `None` when something in it is wrong (and noted).
    pub(super) fn endpoint(&mut self, name: &str, table: &mut Table) -> Option<Endpoint> {
        let parsed_name = EndpointName::new(name);
        if let Err(bad) = &parsed_name {
            table.fault("", format!("expected a name of this form: {bad}"));
        }
        let path = table.text("path");
        let path = match path.as_deref().map(PathPattern::parse) {
            None => {
                table.fault("path", "expected a path such as /webhooks/tinytalk");
                None
            }
            Some(Err(expected)) => {
                table.fault("path", format!("expected {expected}"));
                None
            }
            Some(Ok(path)) => Some(path),
        };
        let scheme = scheme(table);
        let secrets = self.secrets(table, scheme.as_ref());
        let upstream = self.upstream(table);
        let events = events(table);
        let active = table.flag("active", true);
        let description = table.text_or("description", "");
        let source = table.text_or("source", "");
        let hour = Duration::from_hours(1);
        let deadline = table.duration("deadline", Duration::from_secs(25), 10 * MS..=hour);
        if deadline > SENDER_PATIENCE {
            let place = table.path_of("deadline");
            self.warnings
                .push(format!("{place}: senders give up after 30s"));
        }
        let reject_status = reject_status(table);
        let enforcement = enforcement(table);
        let mut own = table.table("dedup");
        let dedup = read_dedup(&mut own, self.dedup);
        table.close("dedup", own);
        let max_body = table.size(
            "max_body",
            self.limits.max_body,
            1..=self.limits.max_buffered,
        );
        let on_disk = on_disk(table, self.has_data_dir, deadline, max_body, enforcement);
        let on_disk = on_disk?;
        Some(Endpoint {
            name: parsed_name.ok()?,
            path: path?,
            secrets: secrets?,
            scheme: scheme?,
            upstream: upstream?,
            events,
            active,
            made_at: self.made,
            description,
            source,
            deadline,
            reject_status: reject_status?,
            enforcement: enforcement?,
            max_body,
            dedup: dedup?,
            mode: on_disk.mode,
            queueing: on_disk.queueing,
            quarantine: on_disk.quarantine,
        })
    }

    fn secrets(&mut self, table: &mut Table, scheme: Option<&Scheme>) -> Option<Secrets> {
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

    fn file(&mut self, table: &Table, key: &str, path: &Path) -> Option<Zeroizing<Vec<u8>>> {
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

    fn upstream(&mut self, table: &mut Table) -> Option<Upstream> {
        let url = table.text("upstream");
        let parsed = match url.as_deref().map(Upstream::parse_url) {
            None => {
                table.fault(
                    "upstream",
                    "expected a URL such as http://127.0.0.1:3000/hooks",
                );
                None
            }
            Some(Err(expected)) => {
                table.fault("upstream", format!("expected {expected}"));
                None
            }
            Some(Ok(parsed)) => Some(parsed),
        };
        // What stands in a query may be what lets us in.
        if let Some((before, _)) = url.as_deref().and_then(|url| url.split_once('?')) {
            table.show("upstream", format!("{before}?***"));
        }
        let hour = Duration::from_hours(1);
        let connect_retry = table.duration("connect_retry", Duration::ZERO, Duration::ZERO..=hour);
        let mut options = table.table("upstream_options");
        let max_concurrency = options.number("max_concurrency", 64, 1..=1_000_000);
        let expected = "a rate such as 50/s or 10/m";
        let rate = options.read("rate", Kind::Text, expected, as_rate);
        if let Some((text, _)) = &rate {
            options.show("rate", text.clone());
        }
        let connect_timeout =
            options.duration("connect_timeout", Duration::from_secs(2), 10 * MS..=hour);
        let headers = self.headers(&mut options);
        let parsed = parsed.filter(|(transport, ..)| self.may_be_at(table, transport));
        let is_tls = matches!(parsed, Some((Transport::Tls { .. }, ..)));
        let tls = self.tls(&mut options, is_tls || parsed.is_none());
        table.close("upstream_options", options);
        let (transport, authority, path, query) = parsed?;
        let upstream = Upstream {
            transport,
            authority,
            path,
            query,
            max_concurrency: NonZeroUsize::new(max_concurrency)?,
            rate: rate.map(|(_, rate)| rate),
            headers: headers?,
            connect_timeout,
            connect_retry,
            tls: tls?,
            allow: self.made.map(|_| self.allow.clone()),
        };
        // What would stop the start is said here, with its place.
        if let Err(misfit) = upstream::Upstream::new(&upstream, None) {
            table.fault(misfit.key, misfit.what);
            return None;
        }
        Some(upstream)
    }

    /// Whether an endpoint made at run time may have its upstream there, as far as its URL tells.
    fn may_be_at(&self, table: &Table, transport: &Transport) -> bool {
        if self.made.is_none() {
            return true;
        }
        let may = match transport {
            Transport::Tcp { host, .. } | Transport::Tls { host, .. } => self.allow.may_be(host),
            Transport::Unix { .. } => false,
        };
        if !may {
            table.fault(
                "upstream",
                "expected http or https to where admin.upstream_allow lets endpoints made at run time point",
            );
        }
        may
    }

    fn headers(&mut self, options: &mut Table) -> Option<Vec<(HeaderName, HeaderValue)>> {
        let mut table = options.table("headers");
        let mut headers = Some(Vec::new());
        for text in table.names() {
            let name = HeaderName::from_bytes(text.as_bytes()).ok().filter(is_free);
            if name.is_none() {
                table.fault(
                    &text,
                    "expected the name of an end-to-end header that hookward does not set itself",
                );
            }
            let (value, shown) = self.header_value(&mut table, &text);
            table.show(&text, shown);
            headers = match (headers, name, value) {
                (Some(mut headers), Some(name), Some(value)) => {
                    headers.push((name, value));
                    Some(headers)
                }
                _ => None,
            };
        }
        options.close("headers", table);
        let value = json!({"anyOf": [{"type": "string"}, {"type": "object", "properties":
            {"env": {"type": "string"}, "file": {"type": "string"}}}]});
        options.describe(
            "headers",
            json!({"type": "object", "additionalProperties": value}),
        );
        headers
    }

    /// A header's value, given as such or by file or variable; what it shows never holds it.
    fn header_value(&mut self, table: &mut Table, name: &str) -> (Option<HeaderValue>, Value) {
        let (bytes, shown) = if let Some(text) = table.plain(name) {
            (Some(Zeroizing::new(text.into_bytes())), json!("***"))
        } else {
            let mut entry = table.named(name);
            let bytes = self.hidden(&mut entry);
            entry.show("value", "***");
            (bytes, entry.end().0)
        };
        let value = bytes.and_then(|bytes| {
            // Its bytes stay where they are, and are wiped when the last who shows them is gone.
            let value = HeaderValue::from_maybe_shared(Bytes::from_owner(bytes)).ok();
            if value.is_none() {
                table.fault(
                    name,
                    "expected a header's value: one line of visible characters",
                );
            }
            value
        });
        let value = value.map(|mut value| {
            value.set_sensitive(true);
            value
        });
        (value, shown)
    }

    fn tls(&mut self, options: &mut Table, is_tls: bool) -> Option<TlsMaterial> {
        let paths = ["ca", "client_cert", "client_key"].map(|key| (key, options.text(key)));
        let mut is_fine = true;
        let mut read = |key: &'static str, path: &Option<String>| {
            let path = path.as_ref()?;
            if self.made.is_some() {
                options.fault(key, "expected only in the configuration, not at run time");
                is_fine = false;
                return None;
            }
            if !is_tls {
                options.fault(key, "expected an https upstream with it");
                is_fine = false;
                return None;
            }
            let bytes = self.file(options, key, Path::new(path));
            is_fine &= bytes.is_some();
            bytes
        };
        let [ca, cert, key] = &paths;
        let (ca, cert, key) = (
            read(ca.0, &ca.1),
            read(cert.0, &cert.1),
            read(key.0, &key.1),
        );
        let certificates = |bytes: &[u8]| -> Option<Vec<CertificateDer<'static>>> {
            let all: Vec<_> = CertificateDer::pem_slice_iter(bytes)
                .collect::<Result<_, _>>()
                .ok()?;
            (!all.is_empty()).then_some(all)
        };
        let mut material = TlsMaterial::default();
        if let Some(bytes) = ca {
            match certificates(&bytes) {
                Some(roots) => material.extra_roots = roots,
                None => {
                    options.fault("ca", "expected a file of PEM certificates");
                    is_fine = false;
                }
            }
        }
        match (cert, key) {
            (None, None) => {}
            (Some(cert), Some(key)) => {
                let chain = certificates(&cert);
                let key = PrivateKeyDer::from_pem_slice(&key).ok();
                if chain.is_none() {
                    options.fault("client_cert", "expected a file of PEM certificates");
                }
                if key.is_none() {
                    options.fault("client_key", "expected a file with a PEM private key");
                }
                material.client = chain.zip(key.map(Zeroizing::new));
                is_fine &= material.client.is_some();
            }
            (Some(_), None) | (None, Some(_)) if is_fine => {
                options.fault("client_key", "expected client_cert and client_key together");
                is_fine = false;
            }
            (Some(_), None) | (None, Some(_)) => {}
        }
        is_fine.then_some(material)
    }
}

/// Whether a configured header may have this name.
fn is_free(name: &HeaderName) -> bool {
    let text = name.as_str();
    !text.starts_with("hookward-")
        && !text.starts_with("x-forwarded-")
        && !matches!(
            text,
            "connection"
                | "content-length"
                | "expect"
                | "keep-alive"
                | "te"
                | "trailer"
                | "transfer-encoding"
                | "upgrade"
                | "via"
        )
}

fn as_rate(value: &Value) -> Option<(String, Rate)> {
    let text = as_text(value)?;
    let (count, unit) = text.split_once('/')?;
    let count: f64 = count.trim().parse().ok()?;
    let seconds = match unit.trim() {
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return None,
    };
    let per_second = count / seconds;
    (count > 0.0 && count.is_finite()).then_some((text, Rate { per_second }))
}

fn events(table: &mut Table) -> EventFilter {
    let is_empty = table.is_empty_list("events");
    let expected = "an event type, or *";
    let types = table.list("events", &["*"], expected, |text| {
        (!text.is_empty()).then(|| text.to_owned())
    });
    if is_empty {
        table.fault(
            "events",
            "expected at least one event type, or [\"*\"] for all",
        );
    }
    if types.iter().any(|t| t == "*") {
        EventFilter::All
    } else {
        EventFilter::Only(types)
    }
}

fn reject_status(table: &mut Table) -> Option<StatusCode> {
    let status = table.number("reject_status", 401, 400..=499);
    if matches!(status, 408 | 410 | 429) {
        table.fault(
            "reject_status",
            "expected 400 to 499 without 408, 410 and 429, which mean something else to senders",
        );
        return None;
    }
    u16::try_from(status)
        .ok()
        .and_then(|status| StatusCode::from_u16(status).ok())
}

fn enforcement(table: &mut Table) -> Option<Enforcement> {
    let enforce = table.flag("enforce", true);
    let given = table.has("enforce_from");
    let expected = "a moment such as 2026-12-01T00:00:00Z";
    let from = table.read("enforce_from", Kind::Text, expected, as_moment);
    match (enforce, from) {
        (true, None) if !given => Some(Enforcement::Always),
        (false, Some(from)) => {
            table.show(
                "enforce_from",
                humantime::format_rfc3339_seconds(from).to_string(),
            );
            Some(Enforcement::From(from))
        }
        (false, None) if !given => {
            table.fault(
                "enforce_from",
                "expected with enforce = false: the moment from which it is true again",
            );
            None
        }
        (true, Some(_)) => {
            table.fault("enforce_from", "expected only with enforce = false");
            None
        }
        (_, None) => None,
    }
}

fn scheme(table: &mut Table) -> Option<Scheme> {
    let presets = Scheme::PRESETS.join(", ");
    if let Some(name) = table.plain("scheme") {
        table.show("scheme", name.clone());
        let scheme = Scheme::preset(&name);
        if scheme.is_none() {
            table.fault("scheme", format!("expected one of {presets}, or a table"));
        }
        return scheme;
    }
    if !table.has("scheme") {
        table.show("scheme", "tinytalk");
        table.table("scheme").end();
        return Scheme::preset("tinytalk");
    }
    let mut own = table.table("scheme");
    let spec = scheme_spec(&mut own);
    let scheme = spec.and_then(|spec| match Scheme::new(spec) {
        Ok(scheme) => Some(scheme),
        Err(error) => {
            own.fault(error.field, format!("expected {}", error.expected));
            None
        }
    });
    let (shown, schema) = own.end();
    table.show("scheme", shown);
    table.describe(
        "scheme",
        json!({"anyOf": [{"enum": Scheme::PRESETS}, schema]}),
    );
    scheme
}

fn scheme_spec(own: &mut Table) -> Option<SchemeSpec> {
    let algorithms = [
        ("hmac-sha256", Algorithm::HmacSha256),
        ("hmac-sha1", Algorithm::HmacSha1),
        ("hmac-sha512", Algorithm::HmacSha512),
    ];
    let encodings = [
        ("hex", Encoding::Hex),
        ("base64", Encoding::Base64),
        ("auto", Encoding::Auto),
    ];
    let units = [("s", TimestampUnit::S), ("ms", TimestampUnit::Ms)];
    let secrets = [
        ("utf8", SecretEncoding::Utf8),
        ("hex", SecretEncoding::Hex),
        ("base64", SecretEncoding::Base64),
    ];
    let header = own.list("header", &[], "a header's name", |text| {
        Some(text.to_owned())
    });
    let key_pointer = own.text("key_pointer");
    let key_header = own.text("key_header");
    let has_key = key_pointer.is_some() || key_header.is_some();
    if !has_key {
        own.show("key_header", "Idempotency-Key");
    }
    Some(SchemeSpec {
        header,
        format: own.text_or("format", "{signature}"),
        algorithm: own.choice("algorithm", "hmac-sha256", &algorithms)?,
        encoding: own.choice("encoding", "hex", &encodings)?,
        content: own.text_or("content", "{body}"),
        timestamp_header: own.text("timestamp_header"),
        timestamp_unit: own.choice("timestamp_unit", "s", &units)?,
        tolerance: own.duration_if("tolerance", Duration::from_secs(1)..=DAY),
        key_header: key_header.or_else(|| (!has_key).then(|| "Idempotency-Key".to_owned())),
        key_pointer,
        event_type_pointer: own.text("event_type_pointer"),
        event_type_header: own.text("event_type_header"),
        signature_prefix: own.text("signature_prefix"),
        secret_encoding: own.choice("secret_encoding", "utf8", &secrets)?,
        secret_prefix: own.text("secret_prefix"),
    })
}
