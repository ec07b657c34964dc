//! Signing as a sender does: for samples, test events, and to explain a refusal.

use std::time::SystemTime;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderName, HeaderValue};
use zeroize::Zeroizing;

use super::{Encoding, Scheme, TimestampUnit, since_epoch, template::Piece, verification};
use crate::secret::Secret;

/// What a sender signs.
#[derive(Clone, Copy, Debug)]
pub struct ToSign<'r> {
    /// The idempotency key.
    pub id: &'r str,
    /// When.
    pub timestamp: SystemTime,
    /// The method.
    pub method: &'r str,
    /// The target: path and query.
    pub url: &'r str,
    /// The body.
    pub body: &'r [u8],
    /// The event's type, where the scheme carries it in a header.
    pub event_type: Option<&'r str>,
}

impl Scheme {
    /// Key bytes, as the sender writes a secret.
    pub fn encode_secret(&self, bytes: &[u8]) -> Zeroizing<Vec<u8>> {
        let prefix = self.spec.secret_prefix.as_deref().unwrap_or_default();
        let written = self.spec.secret_encoding.encode(bytes);
        Zeroizing::new([prefix.as_bytes(), &written].concat())
    }

    /// Signs as the sender does: the headers to send along, signature first.
    pub fn sign(&self, secret: &Secret, request: &ToSign<'_>) -> Vec<(HeaderName, HeaderValue)> {
        let since = since_epoch(request.timestamp);
        let timestamp = match self.spec.timestamp_unit {
            TimestampUnit::Ms => since.as_millis().to_string(),
            TimestampUnit::S => since.as_secs().to_string(),
        };
        let resolve = |piece: Piece| match piece {
            Piece::Body => "",
            Piece::Id => request.id,
            Piece::Method => request.method,
            Piece::Timestamp => timestamp.as_str(),
            Piece::Url => request.url,
        };
        let mut content: Vec<u8> = self
            .content
            .before()
            .iter()
            .flat_map(|p| p.resolve(resolve).bytes())
            .collect();
        content.extend_from_slice(request.body);
        content.extend(
            self.content
                .after()
                .iter()
                .flat_map(|p| p.resolve(resolve).bytes()),
        );
        let tag = verification::tag(self.spec.algorithm, secret, &content);
        let written = match self.spec.encoding {
            Encoding::Auto | Encoding::Hex => hex::encode(tag),
            Encoding::Base64 => STANDARD.encode(tag),
        };
        let value = self.format.write(&written, &timestamp);
        let fields = [
            (self.signature.first(), value.as_str()),
            (self.timestamp_header.as_ref(), &timestamp),
            (self.key_header.as_ref(), request.id),
            (
                self.event_type_header.as_ref(),
                request.event_type.unwrap_or_default(),
            ),
        ];
        fields
            .into_iter()
            .filter(|(_, value)| !value.is_empty())
            .filter_map(|(name, value)| Some((name?.clone(), HeaderValue::from_str(value).ok()?)))
            .collect()
    }
}
