//! Why a signature does not match: the usual slips, tried one by one.
//!
//! For a person at a terminal who has the secret: it hashes a bounded number of variations of
//! secret and body and names those that would have matched. It is never on the request path, and
//! what it says holds neither the secret nor any tag.

use std::{io::Read as _, time::SystemTime};

use http::HeaderMap;
use serde_json::Value;
use zeroize::Zeroizing;

use super::{Algorithm, Encoding, Scheme, Secrets, SignedRequest, VerifyError};
use crate::secret::{Secret, SecretEncoding};

/// Sizes at which buffers cut a body, in bytes.
const BUFFER_SIZES: [usize; 10] = [
    256,
    512,
    1024,
    2048,
    4096,
    8192,
    16_384,
    32_768,
    65_536,
    1 << 20,
];
/// Most bytes that a compressed body is unpacked to.
const UNPACKED_LIMIT: u64 = 16 << 20;

/// What is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Case<'c> {
    /// How the sender signs.
    pub scheme: &'c Scheme,
    /// The headers as received.
    pub headers: &'c HeaderMap,
    /// The method.
    pub method: &'c str,
    /// The target: path and query.
    pub url: &'c str,
    /// The body as received.
    pub body: &'c [u8],
    /// Now, for timestamps.
    pub now: SystemTime,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// Why it does not match; `None`: it does.
    pub refused: Option<VerifyError>,
    /// What would have matched, or what stands in the way; one sentence each.
    pub findings: Vec<String>,
}

/// Says whether a signature matches with a secret as it is written down, and if not, why.
pub fn explain(case: &Case<'_>, secret: &[u8]) -> Explanation {
    let given = case.scheme.decode_secret(secret);
    let refused = match &given {
        Ok(bytes) => case.check(case.scheme, bytes, case.body).err(),
        Err(_) => Some(VerifyError::Mismatch),
    };
    let mut findings = Vec::new();
    if let Err(expected) = given {
        findings.push(format!("The secret cannot be read: expected {expected}."));
    }
    match refused {
        None => {}
        Some(VerifyError::Missing) => findings.push(case.missing()),
        Some(VerifyError::Expired) => findings.extend(case.expired(secret)),
        Some(VerifyError::Malformed | VerifyError::Mismatch) => {
            findings.extend(case.variations(secret));
            if findings.is_empty() {
                findings.push(NOTHING.to_owned());
            }
        }
    }
    Explanation { refused, findings }
}

/// Says the same for each of an endpoint's secrets that is good: its name, and what was found.
pub fn explain_each<'s>(case: &Case<'_>, secrets: &'s Secrets) -> Vec<(&'s str, Explanation)> {
    let keys = secrets.keys(case.now);
    keys.map(|secret| {
        let written = case.scheme.encode_secret(secret.bytes());
        (secret.name(), explain(case, &written))
    })
    .collect()
}

const NOTHING: &str = "No usual slip explains it: most likely the secret is another one, or the \
                       body was changed before it got here.";

impl Case<'_> {
    fn check(&self, scheme: &Scheme, key: &[u8], body: &[u8]) -> Result<(), VerifyError> {
        let secret = Secret::new(String::new(), key.to_vec(), None);
        let secret = secret.map_err(|_| VerifyError::Mismatch)?;
        let secrets = Secrets::new(scheme.spec().algorithm, vec![secret]);
        let secrets = secrets.map_err(|_| VerifyError::Mismatch)?;
        let request = SignedRequest {
            headers: self.headers,
            method: self.method,
            url: self.url,
        };
        let mut verification = scheme.open(&secrets, &request, self.now)?;
        verification.update(body);
        verification.finish().map(drop)
    }

    /// The same scheme with something changed; never refusing for age.
    fn with(&self, change: impl FnOnce(&mut super::SchemeSpec)) -> Option<Scheme> {
        let mut spec = self.scheme.spec().clone();
        spec.tolerance = None;
        change(&mut spec);
        Scheme::new(spec).ok()
    }

    fn missing(&self) -> String {
        let wanted: Vec<_> = self
            .scheme
            .signature_headers()
            .iter()
            .map(|name| name.as_str())
            .collect();
        let wanted = wanted.join(" or ");
        match self.other_preset() {
            Some((name, header)) => format!(
                "There is no {wanted} header, but {header}: the sender may sign as {name} does."
            ),
            None => format!("There is no {wanted} header: nothing shows who sent this."),
        }
    }

    /// A preset whose signature header is there.
    fn other_preset(&self) -> Option<(&'static str, String)> {
        Scheme::PRESETS.iter().find_map(|name| {
            let preset = Scheme::preset(name)?;
            let header = preset
                .signature_headers()
                .iter()
                .find(|h| self.headers.contains_key(*h));
            Some((*name, header?.to_string()))
        })
    }

    fn expired(&self, secret: &[u8]) -> Vec<String> {
        let key = self.scheme.decode_secret(secret).unwrap_or_default();
        let ageless = self.with(|_| ());
        let matches = ageless.is_some_and(|scheme| self.check(&scheme, &key, self.body).is_ok());
        vec![if matches {
            "The signature itself matches; only its timestamp is too far from this clock."
                .to_owned()
        } else {
            "The timestamp is too far from this clock, and the signature does not match either."
                .to_owned()
        }]
    }

    fn variations(&self, secret: &[u8]) -> Vec<String> {
        let mut findings = Vec::new();
        let Some(scheme) = self.with(|_| ()) else {
            return findings;
        };
        let secrets = secrets(self.scheme, secret);
        let bodies = bodies(self.body);
        for (key, secret_slip) in &secrets {
            for (body, body_slip) in &bodies {
                if self.check(&scheme, key, body).is_ok() {
                    findings.push(match (*secret_slip, *body_slip) {
                        ("", "") => continue,
                        ("", slip) | (slip, "") => format!("It matches with {slip}."),
                        (one, other) => format!("It matches with {one} and {other}."),
                    });
                }
            }
        }
        if !findings.is_empty() {
            // As it is written it is right: another way to write it would explain nothing.
            findings.truncate(8);
            return findings;
        }
        for (scheme, slip) in self.other_schemes() {
            let matches = |key: &[u8]| self.check(&scheme, key, self.body).is_ok();
            match secrets.iter().find(|(key, _)| matches(key)) {
                None => {}
                Some((_, "")) => findings.push(format!("It matches {slip}.")),
                Some((_, other)) => findings.push(format!("It matches {slip}, with {other}.")),
            }
        }
        if findings.is_empty() && BUFFER_SIZES.contains(&self.body.len()) {
            findings.push(format!(
                "The body is exactly {} bytes long, a common buffer size: most likely it was cut \
                 there, and the whole was signed.",
                self.body.len()
            ));
        }
        findings.truncate(8);
        findings
    }

    /// The scheme with its MAC or its writing changed.
    fn other_schemes(&self) -> Vec<(Scheme, &'static str)> {
        let own = self.scheme.spec();
        let algorithms = [
            (Algorithm::HmacSha1, "as HMAC-SHA1"),
            (Algorithm::HmacSha256, "as HMAC-SHA256"),
            (Algorithm::HmacSha512, "as HMAC-SHA512"),
        ];
        let algorithms = algorithms
            .into_iter()
            .filter(|(other, _)| *other != own.algorithm);
        let mut schemes: Vec<_> = algorithms
            .filter_map(|(algorithm, slip)| {
                let change = |spec: &mut super::SchemeSpec| {
                    spec.algorithm = algorithm;
                    spec.encoding = Encoding::Auto;
                    spec.signature_prefix = None;
                };
                Some((self.with(change)?, slip))
            })
            .collect();
        let bare = self.with(|spec| {
            spec.encoding = Encoding::Auto;
            spec.format = spec.format.replace("sha256={signature}", "{signature}");
            spec.signature_prefix = Some("sha256=".to_owned());
        });
        schemes.extend(bare.map(|scheme| (scheme, "in another encoding of the signature")));
        if !self.scheme.signs_body_alone() {
            let alone = self.with(|spec| spec.content = "{body}".to_owned());
            schemes.extend(alone.map(|s| (s, "when the body alone is signed, without timestamp")));
        }
        schemes
    }
}

/// The key bytes a secret may stand for. The first is what the scheme takes it for.
fn secrets(scheme: &Scheme, written: &[u8]) -> Vec<(Zeroizing<Vec<u8>>, &'static str)> {
    let trimmed = written.trim_ascii();
    let plain = trimmed.strip_prefix(b"whsec_").unwrap_or(trimmed);
    let candidates = [
        (scheme.decode_secret(written).ok(), ""),
        (
            scheme.decode_secret(trimmed).ok(),
            "the secret trimmed of spaces and newlines",
        ),
        (
            Some(Zeroizing::new(written.to_vec())),
            "the secret taken as it is written",
        ),
        (
            Some(Zeroizing::new([trimmed, b"\n"].concat())),
            "a newline at the end of the secret",
        ),
        (
            SecretEncoding::Hex.decode(trimmed).ok(),
            "the secret decoded from hexadecimal",
        ),
        (
            SecretEncoding::Base64.decode(plain).ok(),
            "the secret decoded from base64",
        ),
    ];
    distinct(
        candidates
            .into_iter()
            .filter_map(|(bytes, slip)| Some((bytes?, slip)))
            .collect(),
    )
}

/// The bodies that may have been signed instead. The first is the one given.
fn bodies(body: &[u8]) -> Vec<(Vec<u8>, &'static str)> {
    const BOM: &[u8] = b"\xef\xbb\xbf";
    let mut all = vec![(body.to_vec(), "")];
    let mut add = |bytes: Vec<u8>, slip| all.push((bytes, slip));
    add(
        [body, b"\n"].concat(),
        "a newline added at the end of the body",
    );
    add(
        [body, b"\r\n"].concat(),
        "a CRLF added at the end of the body",
    );
    if let Some(cut) = body.strip_suffix(b"\n") {
        let cut = cut.strip_suffix(b"\r").unwrap_or(cut);
        add(cut.to_vec(), "the final newline taken off the body");
    }
    add(
        body.trim_ascii().to_vec(),
        "the body trimmed of spaces and newlines",
    );
    if let Ok(text) = str::from_utf8(body) {
        let unix = text.replace("\r\n", "\n");
        add(
            unix.replace('\n', "\r\n").into_bytes(),
            "LF turned into CRLF in the body",
        );
        add(unix.into_bytes(), "CRLF turned into LF in the body");
    }
    match body.strip_prefix(BOM) {
        Some(rest) => add(rest.to_vec(), "the byte order mark taken off the body"),
        None => add([BOM, body].concat(), "a byte order mark before the body"),
    }
    if let Ok(json) = serde_json::from_slice::<Value>(body) {
        for (bytes, slip) in rewritten(&json) {
            add(bytes, slip);
        }
    }
    let mut unpacked = Vec::new();
    let gunzip = flate2::read::MultiGzDecoder::new(body);
    if gunzip
        .take(UNPACKED_LIMIT)
        .read_to_end(&mut unpacked)
        .is_ok()
        && !unpacked.is_empty()
    {
        add(unpacked, "the body unpacked from gzip");
    }
    for size in BUFFER_SIZES {
        if let Some(cut) = body.get(..size).filter(|cut| cut.len() < body.len()) {
            add(
                cut.to_vec(),
                "only the first bytes of the body, up to a common buffer size",
            );
        }
    }
    distinct(all)
}

/// A JSON value as other programs write it.
fn rewritten(json: &Value) -> Vec<(Vec<u8>, &'static str)> {
    let compact = json.to_string();
    let spaced = spaced(&compact);
    let mut all = vec![
        (compact.clone(), "the body re-serialised as compact JSON"),
        (
            escaped(&compact),
            "the body re-serialised as compact ASCII JSON",
        ),
        (
            compact.replace('/', "\\/"),
            "the body re-serialised by PHP (slashes escaped)",
        ),
        (
            escaped(&compact.replace('/', "\\/")),
            "the body re-serialised by PHP (json_encode)",
        ),
        (
            escaped(&spaced),
            "the body re-serialised by Python (json.dumps)",
        ),
        (
            spaced,
            "the body re-serialised with spaces after commas and colons",
        ),
    ];
    if let Ok(pretty) = serde_json::to_string_pretty(json) {
        let wide: String = pretty
            .split('\n')
            .map(|line| {
                let indent = line.len() - line.trim_start().len();
                format!("{}{line}", " ".repeat(indent))
            })
            .collect::<Vec<_>>()
            .join("\n");
        all.push((pretty, "the body re-serialised as JSON indented by two"));
        all.push((wide, "the body re-serialised as JSON indented by four"));
    }
    all.into_iter()
        .map(|(text, slip)| (text.into_bytes(), slip))
        .collect()
}

/// Compact JSON with a space after each comma and colon outside of strings.
fn spaced(compact: &str) -> String {
    let mut out = String::with_capacity(compact.len() * 5 / 4);
    let (mut is_text, mut is_escaped) = (false, false);
    for c in compact.chars() {
        out.push(c);
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' if is_text => is_escaped = true,
            '"' => is_text = !is_text,
            ',' | ':' if !is_text => out.push(' '),
            _ => {}
        }
    }
    out
}

/// JSON with everything beyond ASCII escaped as UTF-16 code units.
fn escaped(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if c.is_ascii() {
            out.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    out
}

/// Without repetitions: the first of equal ones names them.
fn distinct<T: PartialEq>(all: Vec<(T, &'static str)>) -> Vec<(T, &'static str)> {
    let mut kept: Vec<(T, &'static str)> = Vec::new();
    for (bytes, slip) in all {
        if !kept.iter().any(|(known, _)| *known == bytes) {
            kept.push((bytes, slip));
        }
    }
    kept
}
