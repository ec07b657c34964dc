//! Where an endpoint's events go, and what is added on the way.

use std::{num::NonZeroUsize, path::Path, time::Duration};

use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{MS, endpoint::Reader};
use crate::{
    config::table::{Kind, Table, as_text},
    endpoint::{Rate, TlsMaterial, Transport, Upstream},
    upstream,
};

impl Reader<'_> {
    pub(super) fn upstream(&mut self, table: &mut Table) -> Option<Upstream> {
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
