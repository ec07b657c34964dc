//! The bounds a stranger meets before anything is known about them.
//!
//! Owns the numbers, in the units the rest of the program uses. Who applies which bound: the
//! connection applies header and time limits, the gate applies targets and bodies.

use std::time::Duration;

/// Limits on what a sender may send and how long it may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest body in bytes, where the endpoint names none of its own.
    pub max_body: usize,
    /// All bodies held in memory together, in bytes.
    pub max_buffered: usize,
    /// Connections open at a time, over all public listeners; and requests under way at a time on
    /// those of them that carry several.
    pub max_connections: usize,
    /// Request line and header section together, in bytes; at least 8 KiB.
    pub max_header_bytes: usize,
    /// Number of header fields.
    pub max_header_fields: usize,
    /// Request target in bytes.
    pub max_target_bytes: usize,
    /// First byte, TLS handshake and header section together.
    pub header_timeout: Duration,
    /// From a request's first byte to the last of its body; also how long our answer may stay
    /// unread.
    pub body_timeout: Duration,
    /// How long a kept-alive connection may wait for its next request.
    pub idle_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_body: 1 << 20,
            max_buffered: 64 << 20,
            max_connections: 10_000,
            max_header_bytes: 32 << 10,
            max_header_fields: 100,
            max_target_bytes: 8 << 10,
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(20),
            idle_timeout: Duration::from_secs(75),
        }
    }
}
