//! The MAC itself: key schedules made once, every secret against every tag, in constant time.

use std::{fmt, time::SystemTime};

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha1::Sha1;
use sha2::{Sha256, Sha512};
use subtle::{ConditionallySelectable as _, ConstantTimeEq as _, ConstantTimeGreater as _};

use super::{Algorithm, VerifyError};
use crate::secret::Secret;

/// A MAC in progress. The largest is boxed: it is rare, and the others are moved often.
#[derive(Clone)]
enum Running {
    Sha1(Hmac<Sha1>),
    Sha256(Hmac<Sha256>),
    Sha512(Box<Hmac<Sha512>>),
}

impl Running {
    fn new(algorithm: Algorithm, key: &[u8]) -> Self {
        const ANY_LENGTH: &str = "HMAC takes a key of any length";
        match algorithm {
            Algorithm::HmacSha1 => Self::Sha1(Hmac::new_from_slice(key).expect(ANY_LENGTH)),
            Algorithm::HmacSha256 => Self::Sha256(Hmac::new_from_slice(key).expect(ANY_LENGTH)),
            Algorithm::HmacSha512 => {
                Self::Sha512(Box::new(Hmac::new_from_slice(key).expect(ANY_LENGTH)))
            }
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha1(mac) => mac.update(bytes),
            Self::Sha256(mac) => mac.update(bytes),
            Self::Sha512(mac) => mac.update(bytes),
        }
    }

    fn finish(self) -> Tag {
        let mut tag = Tag {
            bytes: [0; 64],
            len: 0,
        };
        let mut fill = |made: &[u8]| {
            tag.len = made.len();
            for (to, from) in tag.bytes.iter_mut().zip(made) {
                *to = *from;
            }
        };
        match self {
            Self::Sha1(mac) => fill(&mac.finalize().into_bytes()),
            Self::Sha256(mac) => fill(&mac.finalize().into_bytes()),
            Self::Sha512(mac) => fill(&mac.finalize().into_bytes()),
        }
        tag
    }
}

/// A tag of up to 64 bytes.
#[derive(Clone, Copy)]
struct Tag {
    bytes: [u8; 64],
    len: usize,
}

impl Tag {
    fn as_slice(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

/// The tags that a request came with: one, almost always.
#[derive(Clone)]
pub(super) struct Tags {
    len: usize,
    first: Option<[u8; 64]>,
    others: Vec<[u8; 64]>,
}

impl Tags {
    pub(super) fn new(len: usize) -> Self {
        Self {
            len,
            first: None,
            others: Vec::new(),
        }
    }

    pub(super) fn push(&mut self, tag: &[u8]) {
        let mut bytes = [0; 64];
        for (to, from) in bytes.iter_mut().zip(tag) {
            *to = *from;
        }
        if self.first.is_none() {
            self.first = Some(bytes);
        } else {
            self.others.push(bytes);
        }
    }

    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.first
            .iter()
            .chain(&self.others)
            .filter_map(|tag| tag.get(..self.len))
    }
}

/// An endpoint's secrets, their key schedules made.
pub struct Secrets {
    all: Vec<Prepared>,
}

struct Prepared {
    /// Kept where an operator may have something signed or explained.
    key: Option<Secret>,
    name: String,
    not_after: Option<SystemTime>,
    start: Running,
}

/// An endpoint without a secret: nothing could be verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoSecret;

impl Secrets {
    /// Makes the key schedules; the key bytes are wiped.
    ///
    /// # Errors
    /// [`NoSecret`] when there is none.
    pub fn new(algorithm: Algorithm, secrets: Vec<Secret>) -> Result<Self, NoSecret> {
        Self::keeping(algorithm, secrets, false)
    }

    /// Makes the key schedules; the key bytes are kept too, for [`Secrets::keys`], if that is
    /// wanted.
    ///
    /// # Errors
    /// [`NoSecret`] when there is none.
    pub fn keeping(
        algorithm: Algorithm,
        secrets: Vec<Secret>,
        keeps: bool,
    ) -> Result<Self, NoSecret> {
        if secrets.is_empty() {
            return Err(NoSecret);
        }
        let prepare = |secret: Secret| Prepared {
            start: Running::new(algorithm, secret.bytes()),
            name: secret.name().to_owned(),
            not_after: secret.not_after(),
            key: keeps.then_some(secret),
        };
        Ok(Self {
            all: secrets.into_iter().map(prepare).collect(),
        })
    }

    /// Those that are good at `now` with their key bytes, where these are kept.
    pub fn keys(&self, now: SystemTime) -> impl Iterator<Item = &Secret> {
        let keys = self.all.iter().filter_map(|secret| secret.key.as_ref());
        keys.filter(move |key| key.is_good_at(now))
    }

    /// Their names, in the order of their numbers.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.all.iter().map(|secret| secret.name.as_str())
    }

    /// When each stops matching, in the same order.
    pub fn expiries(&self) -> impl ExactSizeIterator<Item = Option<SystemTime>> {
        self.all.iter().map(|secret| secret.not_after)
    }

    /// Starts a MAC with every secret that is good at `now`.
    pub(super) fn begin(&self, tags: Tags, now: SystemTime) -> Verification {
        let good = |secret: &&Prepared| secret.not_after.is_none_or(|end| now < end);
        let mut good = self
            .all
            .iter()
            .zip(0_u32..)
            .filter(|(secret, _)| good(secret))
            .map(|(secret, number)| (number, secret.start.clone()));
        Verification {
            first: good.next(),
            others: good.collect(),
            tags,
            tail: String::new(),
        }
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}

/// The tag of one secret over a whole content.
pub(super) fn tag(algorithm: Algorithm, secret: &Secret, content: &[u8]) -> Vec<u8> {
    let mut running = Running::new(algorithm, secret.bytes());
    running.update(content);
    running.finish().as_slice().to_vec()
}

/// A signature being checked while the body arrives.
pub struct Verification {
    first: Option<(u32, Running)>,
    others: Vec<(u32, Running)>,
    tags: Tags,
    /// What is signed after the body.
    tail: String,
}

impl Verification {
    /// Takes the next bytes of the body.
    pub fn update(&mut self, bytes: &[u8]) {
        for (_, running) in self.first.iter_mut().chain(&mut self.others) {
            running.update(bytes);
        }
    }

    pub(super) fn set_tail(&mut self, tail: String) {
        self.tail = tail;
    }

    /// Compares: every secret's tag with every tag that was sent, none skipped, so that neither
    /// time nor order tells which was nearly right.
    ///
    /// # Errors
    /// [`VerifyError::Mismatch`] when none is equal.
    pub fn finish(mut self) -> Result<Authentic, VerifyError> {
        if !self.tail.is_empty() {
            let tail = std::mem::take(&mut self.tail);
            self.update(tail.as_bytes());
        }
        // 0: none; else the number of the first secret that matched, plus one.
        let mut matched = 0_u32;
        let mut matching = [0_u8; 64];
        let mut len = 0;
        for (number, running) in self.first.into_iter().chain(self.others) {
            let made = running.finish();
            len = made.len;
            for tag in self.tags.iter() {
                let is_new = made.as_slice().ct_eq(tag) & !matched.ct_gt(&0);
                matched.conditional_assign(&(number + 1), is_new);
                for (to, from) in matching.iter_mut().zip(&made.bytes) {
                    to.conditional_assign(from, is_new);
                }
            }
        }
        let secret = matched.checked_sub(1).ok_or(VerifyError::Mismatch)?;
        let secret = usize::try_from(secret).unwrap_or_default();
        Ok(Authentic {
            secret,
            tag: Tag {
                bytes: matching,
                len,
            },
        })
    }
}

impl fmt::Debug for Verification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verification")
    }
}

/// Proof that a signature was good. Only [`Verification::finish`] makes one.
pub struct Authentic {
    secret: usize,
    tag: Tag,
}

impl Authentic {
    /// The number of the secret that matched.
    pub fn secret(&self) -> usize {
        self.secret
    }

    /// The tag, which over the body alone tells one body from another. It is as good as a
    /// signature: it goes nowhere but through a keyed hash.
    pub fn tag(&self) -> &[u8] {
        self.tag.as_slice()
    }
}

impl fmt::Debug for Authentic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authentic")
            .field("secret", &self.secret)
            .finish_non_exhaustive()
    }
}
