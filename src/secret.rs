//! Key bytes that cannot be printed.
//!
//! Owns a secret's bytes from the moment they are read: they are wiped when dropped, and neither
//! `Debug` nor an error shows them. Where they come from is left to `config`, what is made with
//! them to `signature`.

use std::{fmt, time::SystemTime};

use base64::Engine as _;
use zeroize::Zeroizing;

use crate::signature::LENIENT_BASE64;

/// One of an endpoint's secrets.
pub struct Secret {
    name: String,
    bytes: Zeroizing<Vec<u8>>,
    not_after: Option<SystemTime>,
}

/// A secret without a byte: every signature made with it can be made by anyone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EmptySecret;

impl Secret {
    /// Takes key bytes under a name; from `not_after` on it matches nothing.
    ///
    /// # Errors
    /// [`EmptySecret`] when there are none.
    pub fn new(
        name: String,
        bytes: impl Into<Zeroizing<Vec<u8>>>,
        not_after: Option<SystemTime>,
    ) -> Result<Self, EmptySecret> {
        let bytes = bytes.into();
        if bytes.is_empty() {
            return Err(EmptySecret);
        }
        Ok(Self {
            name,
            bytes,
            not_after,
        })
    }

    /// The name, for metrics and logs.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// From when on it matches nothing.
    pub fn not_after(&self) -> Option<SystemTime> {
        self.not_after
    }

    /// Whether it matches anything at `now`.
    pub fn is_good_at(&self, now: SystemTime) -> bool {
        self.not_after.is_none_or(|end| now < end)
    }

    /// How many bytes it has.
    #[expect(clippy::len_without_is_empty, reason = "a secret is never empty")]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret")
            .field("name", &self.name)
            .field("len", &self.bytes.len())
            .finish()
    }
}

/// How a secret is written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecretEncoding {
    /// Base64 of the key bytes, either alphabet, padding optional.
    Base64,
    /// Hexadecimal digits of the key bytes.
    Hex,
    /// The key bytes themselves.
    Utf8,
}

impl SecretEncoding {
    /// Key bytes, written so.
    pub fn encode(self, bytes: &[u8]) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(match self {
            Self::Base64 => base64::engine::general_purpose::STANDARD
                .encode(bytes)
                .into_bytes(),
            Self::Hex => hex::encode(bytes).into_bytes(),
            Self::Utf8 => bytes.to_vec(),
        })
    }

    /// The key bytes. They are written once, where they stay: a buffer that grew would leave
    /// what it held behind.
    ///
    /// # Errors
    /// What was expected; never what was found.
    pub fn decode(self, text: &[u8]) -> Result<Zeroizing<Vec<u8>>, &'static str> {
        match self {
            Self::Utf8 => Ok(Zeroizing::new(text.to_vec())),
            Self::Hex => {
                let mut bytes = Zeroizing::new(vec![0; text.len() / 2]);
                hex::decode_to_slice(text, &mut bytes)
                    .map_err(|_| "an even number of hexadecimal digits")?;
                Ok(bytes)
            }
            Self::Base64 => {
                let mut plain = Zeroizing::new(text.to_vec());
                for byte in plain.iter_mut() {
                    match byte {
                        b'-' => *byte = b'+',
                        b'_' => *byte = b'/',
                        _ => {}
                    }
                }
                let mut bytes = Zeroizing::new(vec![0; base64::decoded_len_estimate(text.len())]);
                let length = LENIENT_BASE64
                    .decode_slice(&*plain, &mut bytes)
                    .map_err(|_| "base64")?;
                bytes.truncate(length);
                Ok(bytes)
            }
        }
    }
}
