//! What keys and bodies are known by: keyed hashes, which tell a stranger nothing.
//!
//! Owns their shapes, which are the same on disk; which parts of a request go into them is said by
//! who asks.

use std::hash::{BuildHasherDefault, Hash, Hasher};

use siphasher::sip128::{Hasher128, SipHasher13};

/// The secret of one process's hashes.
#[derive(Clone, Copy)]
pub struct HashKeys(pub(super) u64, pub(super) u64);

impl HashKeys {
    /// Takes 16 secret bytes.
    pub fn new(secret: [u64; 2]) -> Self {
        Self(secret[0], secret[1])
    }
}

impl std::fmt::Debug for HashKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HashKeys(***)")
    }
}

/// The keyed digest of an endpoint and an idempotency key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest(pub(super) [u64; 2]);

impl Digest {
    /// Its bytes; the same after a restart where the secret of the hashes is.
    pub fn to_bytes(self) -> [u8; 16] {
        let [high, low] = self.0;
        (u128::from(high) << 64 | u128::from(low)).to_be_bytes()
    }

    /// The inverse of [`Digest::to_bytes`].
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        let number = u128::from_be_bytes(bytes);
        let half = |n: u128| u64::try_from(n & u128::from(u64::MAX)).unwrap_or_default();
        Self([half(number >> 64), half(number)])
    }
}

impl Hash for Digest {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0[0]);
    }
}

/// Takes a digest, which is a good hash already, for the hash.
#[derive(Clone, Copy, Default)]
pub(super) struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }
}

pub(super) type Build = BuildHasherDefault<AsIs>;

/// What tells one body from another: eight bits of basis (how it was made), 56 of keyed hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint(pub(super) u64);

impl Fingerprint {
    pub(super) const HASH: u64 = (1 << 56) - 1;

    pub(super) fn new(basis: u8, hash: u64) -> Self {
        Self(u64::from(basis) << 56 | hash & Self::HASH)
    }

    /// Basis and hash in one number; the same after a restart where the secret of the hashes is.
    pub fn to_number(self) -> u64 {
        self.0
    }

    /// The inverse of [`Fingerprint::to_number`].
    pub fn from_number(number: u64) -> Self {
        Self(number)
    }

    /// Whether two bodies are known to differ. Fingerprints of different bases tell nothing.
    pub(super) fn differs(self, other: Self) -> bool {
        self.0 >> 56 == other.0 >> 56 && self != other
    }
}

/// A keyed hash over a whole body, as it is fed.
pub struct BodyHasher(pub(super) SipHasher13);

/// The keyed hash of a whole body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodyHash(pub(super) [u64; 2]);

impl BodyHasher {
    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    /// The hash of all of them.
    pub fn finish(self) -> BodyHash {
        let hash = self.0.finish128();
        BodyHash([hash.h1, hash.h2])
    }
}
