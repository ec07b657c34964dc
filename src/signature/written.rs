//! A tag as it is written in a header.

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};

use super::{Encoding, Scheme};

/// Base64 (RFC 4648 §4) with or without padding, and without stray bits.
pub(crate) const LENIENT_BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

impl Scheme {
    /// A tag from its written form; exactly the MAC's length or nothing.
    pub(super) fn decode_tag<'t>(&self, text: &str, tag: &'t mut [u8; 64]) -> Option<&'t [u8]> {
        let tag = tag.get_mut(..self.spec.algorithm.tag_len())?;
        let prefix = self.spec.signature_prefix.as_deref().unwrap_or_default();
        let bare = text.strip_prefix(prefix).unwrap_or(text);
        // What looks like the prefix may be the tag's own beginning.
        let decoded = self.decode_bare(bare, tag);
        if decoded.is_none() && bare.len() < text.len() {
            self.decode_bare(text, tag)?;
        } else {
            decoded?;
        }
        Some(tag)
    }

    fn decode_bare(&self, text: &str, tag: &mut [u8]) -> Option<()> {
        let is_hex = text.len() == tag.len() * 2;
        match self.spec.encoding {
            Encoding::Hex => hex::decode_to_slice(text, tag).ok()?,
            Encoding::Auto if is_hex => hex::decode_to_slice(text, tag).ok()?,
            Encoding::Base64 => base64_to(text, tag)?,
            Encoding::Auto if text.contains(['-', '_']) => {
                base64_to(&text.replace('-', "+").replace('_', "/"), tag)?;
            }
            Encoding::Auto => base64_to(text, tag)?,
        }
        Some(())
    }
}

fn base64_to(text: &str, tag: &mut [u8]) -> Option<()> {
    // The engine wants room for what the text's length allows; a tag has exactly its own.
    let mut room = [0; 96];
    if text.len() > 88 {
        return None;
    }
    let length = LENIENT_BASE64.decode_slice(text, &mut room).ok()?;
    (length == tag.len()).then(|| tag.copy_from_slice(room.get(..length).unwrap_or_default()))
}
