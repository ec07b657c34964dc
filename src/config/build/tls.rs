//! `server.tls`: certificates and keys in files, or from an authority; one table or a list of them.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::SystemTime,
};

use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::{Value, json};

use crate::{
    config::{
        document::{located, remedy},
        private::{self, File},
        table::Table,
    },
    endpoint::{Transport, Upstream},
    tls::{Certificate, Material, Misfit, acme::Settings},
};

/// The authority that is asked where none is named.
const DIRECTORY: &str = "https://acme-v02.api.letsencrypt.org/directory";
/// Most domains of one certificate.
const MOST_DOMAINS: usize = 100;
/// What is read besides the tables.
pub(super) struct Surroundings<'s> {
    pub(super) env: &'s [(String, String)],
    pub(super) now: SystemTime,
    pub(super) has_data_dir: bool,
    pub(super) warnings: &'s mut Vec<String>,
    pub(super) watched: &'s mut BTreeSet<PathBuf>,
}

/// One table.
enum Entry {
    Acme(Settings),
    Files(Certificate),
}

/// Reads `tls` of the table of the public side; `None` where there is none, or it is wrong.
pub(super) fn read(server: &mut Table, around: &mut Surroundings<'_>) -> Option<Material> {
    let is_given = server.has("tls");
    let is_list = server.is_list("tls");
    if server.is_empty_list("tls") {
        server.fault("tls", "expected a table, or a list of at least one");
    }
    let mut entries = match is_list {
        true => server.tables("tls"),
        false => vec![server.table("tls")],
    };
    let read: Option<Vec<_>> = entries
        .iter_mut()
        .map(|table| entry(table, is_given, around))
        .collect();
    let mut schema = Value::Null;
    let mut shown = Vec::new();
    for entry in entries {
        let (effective, described) = entry.end();
        shown.push(effective);
        schema = described;
    }
    if is_list {
        server.show("tls", shown);
    } else if let Some(shown) = shown.pop().filter(|_| is_given) {
        server.show("tls", shown);
    }
    let several = json!({"type": "array", "minItems": 1, "items": schema});
    server.describe("tls", json!({"anyOf": [schema, several]}));
    let mut material = Material {
        certificates: Vec::new(),
        acme: None,
    };
    let read = read.filter(|read| !read.is_empty())?;
    for entry in read {
        match entry {
            Entry::Files(certificate) => material.certificates.push(certificate),
            Entry::Acme(settings) => {
                if material.acme.replace(settings).is_some() {
                    server.fault("tls", "expected acme once; it takes a list of domains");
                }
            }
        }
    }
    Some(material)
}

fn entry(table: &mut Table, is_given: bool, around: &mut Surroundings<'_>) -> Option<Entry> {
    let has_acme = table.has("acme");
    let mut own = table.table("acme");
    let settings = acme(&mut own, has_acme, around);
    if has_acme {
        table.close("acme", own);
    } else {
        table.describe("acme", own.end().1);
        return certificate(table, is_given, around).map(Entry::Files);
    }
    for name in ["cert", "key"] {
        if table.text(name).is_some() {
            table.fault(name, "expected either files or acme; a list can hold both");
        }
    }
    settings.map(Entry::Acme)
}

fn acme(table: &mut Table, is_given: bool, around: &mut Surroundings<'_>) -> Option<Settings> {
    let is_empty = !table.has("domains") || table.is_empty_list("domains");
    let expected = "a DNS name such as hooks.example.com, without a wildcard";
    let domains = table.list("domains", &[], expected, domain);
    let contact = table.text("contact");
    let directory = table.text_or("directory", DIRECTORY);
    let ca = table.text("ca");
    if !is_given {
        return None;
    }
    let faults = [
        (is_empty, "domains", "expected at least one DNS name"),
        (
            domains.len() > MOST_DOMAINS,
            "domains",
            "expected at most 100: one certificate is for all of them",
        ),
        (
            contact.as_ref().is_some_and(|text| !is_contact(text)),
            "contact",
            "expected a URL such as mailto:operator@example.com",
        ),
        (
            !is_directory(&directory),
            "directory",
            "expected the https URL of an ACME directory",
        ),
        (
            !around.has_data_dir,
            "",
            "expected data_dir with it: account and certificate are kept there",
        ),
    ];
    for (_, key, what) in faults.iter().filter(|(is_wrong, ..)| *is_wrong) {
        table.fault(key, *what);
    }
    let roots = match &ca {
        None => Vec::new(),
        Some(path) => {
            let roots = around.file(path).map(|file| roots(&file.bytes));
            match roots {
                Ok(roots) if !roots.is_empty() => roots,
                Ok(_) => {
                    table.fault(
                        "ca",
                        format!("{path} holds no certificate in PEM; name one that does"),
                    );
                    return None;
                }
                Err(what) => {
                    table.fault("ca", what);
                    return None;
                }
            }
        }
    };
    faults
        .iter()
        .all(|(is_wrong, ..)| !is_wrong)
        .then_some(Settings {
            domains,
            contact,
            directory,
            roots,
        })
}

fn roots(bytes: &[u8]) -> Vec<CertificateDer<'static>> {
    let roots: Result<_, _> = CertificateDer::pem_slice_iter(bytes).collect();
    roots.unwrap_or_default()
}

/// A DNS name in lower case (RFC 1123 §2.1), of two labels or more.
fn domain(text: &str) -> Option<String> {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let is_name = text.len() <= 253 && text.contains('.') && text.split('.').all(is_label);
    let is_address = text.parse::<std::net::IpAddr>().is_ok();
    (is_name && !is_address).then(|| text.to_ascii_lowercase())
}

fn is_contact(text: &str) -> bool {
    let address = text.strip_prefix("mailto:").unwrap_or_default();
    address
        .split_once('@')
        .is_some_and(|(who, place)| !who.is_empty() && !place.is_empty())
        && address.bytes().all(|b| b.is_ascii_graphic())
}

fn is_directory(text: &str) -> bool {
    matches!(Upstream::parse_url(text), Ok((Transport::Tls { .. }, ..)))
}

fn certificate(
    entry: &mut Table,
    is_given: bool,
    around: &mut Surroundings<'_>,
) -> Option<Certificate> {
    let (cert, key) = (entry.text("cert"), entry.text("key"));
    if !is_given {
        return None;
    }
    for (name, path) in [("cert", &cert), ("key", &key)] {
        if path.is_none() {
            entry.fault(name, "expected a file in PEM: cert and key go together");
        }
    }
    let (cert, key) = (cert?, key?);
    let mut file = |name: &str, path: &str| {
        let read = around.file(path);
        let File { bytes, exposure } = read.map_err(|what| entry.fault(name, what)).ok()?;
        if let Some(how) = exposure.filter(|how| name == "key" || how.is_writable()) {
            let place = entry.path_of(name);
            around
                .warnings
                .push(format!("{place}: the file named here {how}"));
        }
        Some(bytes)
    };
    let (chain_text, key_text) = (file("cert", &cert), file("key", &key));
    match Certificate::read(&chain_text?, &key_text?) {
        Ok(certificate) => {
            let place = entry.path_of("");
            around
                .warnings
                .extend(doubt(&certificate, around.now, &place, &cert));
            Some(certificate)
        }
        Err(misfit) => {
            let (name, what) = match misfit {
                Misfit::Certificate => {
                    let what = "holds no certificate in PEM that can be read; \
                                write the whole chain into it, the server's own first";
                    ("cert", format!("{cert} {what}"))
                }
                Misfit::Encrypted => {
                    let what =
                        "is encrypted; write it out with openssl pkey, readable by this user alone";
                    ("key", format!("{key} {what}"))
                }
                Misfit::Key => {
                    let what = "holds no private key in PEM that TLS can use; \
                                expected RSA, ECDSA or Ed25519 as PKCS#8, PKCS#1 or SEC1";
                    ("key", format!("{key} {what}"))
                }
                Misfit::Pair => {
                    let what = format!(
                        "{key} is not the key of the first certificate in {cert}; \
                         put the two that belong together there, the server's own certificate first"
                    );
                    ("key", what)
                }
            };
            entry.fault(name, what);
            None
        }
    }
}

impl Surroundings<'_> {
    /// What a file holds that the configuration names; its change means a reload.
    fn file(&mut self, path: &str) -> Result<File, String> {
        let path = located(Path::new(path), self.env)?;
        self.watched.insert(path.clone());
        private::read(&path).map_err(|error| {
            let (kind, path) = (error.kind(), path.display());
            format!("{path} cannot be read: {kind}; {}", remedy(kind))
        })
    }
}

/// What is worth a word about a certificate that can be used.
fn doubt(certificate: &Certificate, now: SystemTime, place: &str, path: &str) -> Option<String> {
    // Whoever renews them does so with more of their time left.
    let soon = certificate.lifetime() / 6;
    let what = match certificate.remaining(now) {
        _ if certificate.names().is_empty() => {
            "has no subject alternative name, and senders compare nothing else; issue it with one"
                .to_owned()
        }
        None => "is not valid now; senders refuse it until it is renewed".to_owned(),
        Some(left) if left < soon => {
            let days = left.as_secs() / (24 * 60 * 60) + 1;
            format!("ends within {days} days; renew it")
        }
        Some(_) => return None,
    };
    Some(format!("{place}: the certificate in {path} {what}"))
}
