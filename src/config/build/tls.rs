//! `server.tls`: certificates and keys in files, one pair or a list of them.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::{
    config::{document::remedy, table::Table},
    tls::{Certificate, Misfit, Tls},
};

/// Within this time of its end a certificate is worth a warning, in seconds.
const SOON: u64 = 14 * 24 * 60 * 60;

/// What is read besides the tables.
pub(super) struct Surroundings<'s> {
    pub(super) now: SystemTime,
    pub(super) warnings: &'s mut Vec<String>,
    pub(super) watched: &'s mut BTreeSet<PathBuf>,
}

/// Reads `tls` of the table of the public side; `None` where there is none, or it is wrong.
pub(super) fn read(server: &mut Table, around: &mut Surroundings<'_>) -> Option<Tls> {
    let is_given = server.has("tls");
    let is_list = server.is_list("tls");
    if server.is_empty_list("tls") {
        server.fault("tls", "expected a table, or a list of at least one");
    }
    let mut entries = match is_list {
        true => server.tables("tls"),
        false => vec![server.table("tls")],
    };
    let certificates: Option<Vec<_>> = entries
        .iter_mut()
        .map(|entry| certificate(entry, is_given, around))
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
    let certificates = certificates.filter(|certificates| !certificates.is_empty())?;
    Some(Tls::new(&certificates))
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
        around.watched.insert(path.into());
        read_file(Path::new(path))
            .map_err(|what| entry.fault(name, what))
            .ok()
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

fn read_file(path: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    fs::read(path).map(Zeroizing::new).map_err(|error| {
        let (kind, path) = (error.kind(), path.display());
        format!("{path} cannot be read: {kind}; {}", remedy(kind))
    })
}

/// What is worth a word about a certificate that can be used.
fn doubt(certificate: &Certificate, now: SystemTime, place: &str, path: &str) -> Option<String> {
    let what = match certificate.remaining(now).map(|left| left.as_secs()) {
        _ if certificate.names().is_empty() => {
            "has no subject alternative name, and senders compare nothing else; issue it with one"
                .to_owned()
        }
        None => "is not valid now; senders refuse it until it is renewed".to_owned(),
        Some(left) if left < SOON => {
            format!("ends within {} days; renew it", left / (24 * 60 * 60) + 1)
        }
        Some(_) => return None,
    };
    Some(format!("{place}: the certificate in {path} {what}"))
}
