//! How a sender signs, and whether a request was signed so.
//!
//! A scheme is data ([`SchemeSpec`]): where the signature stands, how it is written, what it
//! covers. [`Scheme::open`] reads the headers, [`Verification`] takes the body as it arrives, and
//! only its `finish` makes an [`Authentic`]. Every secret is tried against every signature that was
//! sent, in constant time, whatever the others say. No clock, no logging, no status: `now` comes
//! in, a [`VerifyError`] goes out.
//!
//! What a scheme is made of is `spec`'s, how its texts are read `template`'s, how a tag is written
//! `written`'s, signing as a sender does `sign`'s; here is what a request's headers say.

pub mod explain;
mod presets;
mod sign;
mod spec;
mod template;
mod verification;
mod written;

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName};
use zeroize::Zeroizing;

pub(crate) use self::written::LENIENT_BASE64;
pub use self::{
    sign::ToSign,
    spec::{Algorithm, Encoding, SchemeSpec, SpecError, TimestampUnit},
    verification::{Authentic, NoSecret, Secrets, Verification},
};
use self::{
    template::{Content, Format, Piece},
    verification::Tags,
};

/// Most signatures read from one request.
const SIGNATURES_LIMIT: usize = 16;
/// Most digits in a timestamp.
const TIMESTAMP_DIGITS: usize = 16;

/// Why a signature was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VerifyError {
    /// Signed too long ago, or too far in the future.
    Expired,
    /// There, but not readable, or there twice.
    Malformed,
    /// No secret makes it.
    Mismatch,
    /// Not there.
    Missing,
}

/// Where something about an event stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeySource<'s> {
    /// In a header.
    Header(&'s HeaderName),
    /// Nowhere.
    None,
    /// In the body, at a JSON pointer.
    Pointer(&'s str),
}

/// Where an event's type stands.
pub type EventTypeSource<'s> = KeySource<'s>;

/// What of a request may be signed, besides its body.
#[derive(Clone, Copy, Debug)]
pub struct SignedRequest<'r> {
    /// The headers as received.
    pub headers: &'r HeaderMap,
    /// The method.
    pub method: &'r str,
    /// The target: path and query.
    pub url: &'r str,
}

/// A scheme, ready for use.
#[derive(Clone, Debug)]
pub struct Scheme {
    spec: SchemeSpec,
    signature: Vec<HeaderName>,
    format: Format,
    content: Content,
    timestamp_header: Option<HeaderName>,
    key_header: Option<HeaderName>,
    event_type_header: Option<HeaderName>,
    all: Vec<HeaderName>,
}

impl Scheme {
    /// The names of the presets, as in the configuration.
    pub const PRESETS: &'static [&'static str] =
        &["tinytalk", "github", "stripe", "standard-webhooks"];

    /// The preset with this name.
    pub fn preset(name: &str) -> Option<Self> {
        Self::new(presets::spec(name)?).ok()
    }

    /// Makes a spelled-out scheme ready.
    ///
    /// # Errors
    /// [`SpecError`] with the first key that makes no sense.
    pub fn new(spec: SchemeSpec) -> Result<Self, SpecError> {
        let fault = |field, expected| SpecError { field, expected };
        let name = |field, text: &String| {
            HeaderName::from_bytes(text.as_bytes()).map_err(|_| fault(field, "a header's name"))
        };
        let optional =
            |field, text: &Option<String>| text.as_ref().map(|text| name(field, text)).transpose();
        let pointer = |field, text: &Option<String>| match text {
            Some(text) if !text.starts_with('/') => {
                Err(fault(field, "a JSON pointer such as /type"))
            }
            Some(_) | None => Ok(()),
        };
        let signature: Vec<_> = spec
            .header
            .iter()
            .map(|header| name("header", header))
            .collect::<Result<_, _>>()?;
        if signature.is_empty() {
            return Err(fault("header", "at least one header's name"));
        }
        let format = Format::parse(&spec.format).map_err(|expected| fault("format", expected))?;
        let content =
            Content::parse(&spec.content).map_err(|expected| fault("content", expected))?;
        let timestamp_header = optional("timestamp_header", &spec.timestamp_header)?;
        let key_header = optional("key_header", &spec.key_header)?;
        let event_type_header = optional("event_type_header", &spec.event_type_header)?;
        pointer("key_pointer", &spec.key_pointer)?;
        pointer("event_type_pointer", &spec.event_type_pointer)?;
        if key_header.is_some() && spec.key_pointer.is_some() {
            return Err(fault("key_pointer", "nothing, because key_header is set"));
        }
        if event_type_header.is_some() && spec.event_type_pointer.is_some() {
            return Err(fault(
                "event_type_pointer",
                "nothing, because event_type_header is set",
            ));
        }
        if timestamp_header.is_some() && format.has_timestamp() {
            return Err(fault(
                "timestamp_header",
                "nothing, because format holds {timestamp}",
            ));
        }
        let has_timestamp = timestamp_header.is_some() || format.has_timestamp();
        let signs_timestamp = content.holds(Piece::Timestamp);
        if signs_timestamp && !has_timestamp {
            return Err(fault(
                "timestamp_header",
                "a header's name, because content holds {timestamp}",
            ));
        }
        if spec.tolerance.is_some() && !signs_timestamp {
            return Err(fault(
                "tolerance",
                "a content that holds {timestamp}: an unsigned one proves nothing",
            ));
        }
        if content.holds(Piece::Id) && key_header.is_none() {
            return Err(fault(
                "key_header",
                "a header's name, because content holds {id}",
            ));
        }
        let read = [&timestamp_header, &key_header, &event_type_header];
        let mut all = signature.clone();
        all.extend(read.into_iter().flatten().cloned());
        Ok(Self {
            spec,
            signature,
            format,
            content,
            timestamp_header,
            key_header,
            event_type_header,
            all,
        })
    }

    /// The scheme, spelled out.
    pub fn spec(&self) -> &SchemeSpec {
        &self.spec
    }

    /// The headers that may carry the signature.
    pub fn signature_headers(&self) -> &[HeaderName] {
        &self.signature
    }

    /// Every header the scheme reads.
    pub fn header_names(&self) -> impl Iterator<Item = &HeaderName> {
        self.all.iter()
    }

    /// Where the idempotency key stands.
    pub fn key_source(&self) -> KeySource<'_> {
        source(self.key_header.as_ref(), self.spec.key_pointer.as_deref())
    }

    /// Where the event's type stands.
    pub fn event_type_source(&self) -> EventTypeSource<'_> {
        source(
            self.event_type_header.as_ref(),
            self.spec.event_type_pointer.as_deref(),
        )
    }

    /// Whether the signature covers the body and nothing else, so that equal tags mean equal
    /// bodies and unequal ones unequal bodies.
    pub fn signs_body_alone(&self) -> bool {
        self.content.is_body_alone()
    }

    /// The key bytes of a secret as the sender writes it.
    ///
    /// # Errors
    /// What was expected; never what was found.
    pub fn decode_secret(&self, text: &[u8]) -> Result<Zeroizing<Vec<u8>>, &'static str> {
        let prefix = self.spec.secret_prefix.as_deref().unwrap_or_default();
        self.spec
            .secret_encoding
            .decode(text.strip_prefix(prefix.as_bytes()).unwrap_or(text))
    }

    /// Reads the headers and prepares to hash the body.
    ///
    /// # Errors
    /// [`VerifyError::Missing`], [`VerifyError::Malformed`] or [`VerifyError::Expired`]: what the
    /// headers alone decide.
    pub fn open(
        &self,
        secrets: &Secrets,
        request: &SignedRequest<'_>,
        now: SystemTime,
    ) -> Result<Verification, VerifyError> {
        let mut sent = self
            .signature
            .iter()
            .flat_map(|name| request.headers.get_all(name));
        let value = sent.next().ok_or(VerifyError::Missing)?;
        if sent.next().is_some() {
            return Err(VerifyError::Malformed);
        }
        let value = value.to_str().map_err(|_| VerifyError::Malformed)?;
        let (tags, pair_timestamp) = self.read(value)?;
        let header_timestamp = match &self.timestamp_header {
            Some(name) => Some(only(request.headers, name)?),
            None => None,
        };
        let timestamp = pair_timestamp.or(header_timestamp);
        if let Some(timestamp) = timestamp {
            // Also where its age does not matter: a number cannot hold bytes of what is around it.
            let number = timestamp_number(timestamp).ok_or(VerifyError::Malformed)?;
            if let Some(tolerance) = self.spec.tolerance {
                self.check_age(number, tolerance, now)?;
            }
        }
        let id = match &self.key_header {
            Some(name) if self.content.holds(Piece::Id) => only(request.headers, name)?,
            Some(_) | None => "",
        };
        let resolve = |piece: Piece| match piece {
            Piece::Body => "",
            Piece::Id => id,
            Piece::Method => request.method,
            Piece::Timestamp => timestamp.unwrap_or_default(),
            Piece::Url => request.url,
        };
        // Otherwise one signature would be good for two requests.
        if !self.content.is_cut_one_way(resolve) {
            return Err(VerifyError::Malformed);
        }
        let mut verification = secrets.begin(tags, now);
        for part in self.content.before() {
            verification.update(part.resolve(resolve).as_bytes());
        }
        let after = self.content.after();
        verification.set_tail(after.iter().map(|p| p.resolve(resolve)).collect());
        Ok(verification)
    }

    /// The tags and, in a scheme of pairs, the timestamp in a signature header.
    fn read<'v>(&self, value: &'v str) -> Result<(Tags, Option<&'v str>), VerifyError> {
        let mut tags = Tags::new(self.spec.algorithm.tag_len());
        let mut timestamp = None;
        let mut count = 0;
        for item in self.format.items(value) {
            let item = item.ok_or(VerifyError::Malformed)?;
            match item {
                template::Item::Signature(text) => {
                    count += 1;
                    let mut tag = [0; 64];
                    let tag = self
                        .decode_tag(text, &mut tag)
                        .ok_or(VerifyError::Malformed)?;
                    tags.push(tag);
                }
                template::Item::Timestamp(text) => {
                    if timestamp.replace(text).is_some() {
                        return Err(VerifyError::Malformed);
                    }
                }
            }
        }
        let is_complete = timestamp.is_some() == self.format.has_timestamp();
        if !(1..=SIGNATURES_LIMIT).contains(&count) || !is_complete {
            return Err(VerifyError::Malformed);
        }
        Ok((tags, timestamp))
    }

    fn check_age(
        &self,
        number: u64,
        tolerance: Duration,
        now: SystemTime,
    ) -> Result<(), VerifyError> {
        // The sender's clock is as coarse as its unit; ours is cut to the same.
        let (signed, now) = match self.spec.timestamp_unit {
            TimestampUnit::Ms => (Duration::from_millis(number), since_epoch(now)),
            TimestampUnit::S => (
                Duration::from_secs(number),
                Duration::from_secs(since_epoch(now).as_secs()),
            ),
        };
        if signed.abs_diff(now) > tolerance {
            Err(VerifyError::Expired)
        } else {
            Ok(())
        }
    }
}

fn source<'s>(header: Option<&'s HeaderName>, pointer: Option<&'s str>) -> KeySource<'s> {
    header
        .map(KeySource::Header)
        .or(pointer.map(KeySource::Pointer))
        .unwrap_or(KeySource::None)
}

/// The one value of a header that is signed: absent, doubled or not text is unreadable.
fn only<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Result<&'h str, VerifyError> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().map_err(|_| VerifyError::Malformed),
        _ => Err(VerifyError::Malformed),
    }
}

/// A timestamp as a number: 1 to 16 digits and nothing else.
fn timestamp_number(text: &str) -> Option<u64> {
    let is_plain =
        (1..=TIMESTAMP_DIGITS).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|_| is_plain)
}

fn since_epoch(moment: SystemTime) -> Duration {
    moment
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests;
