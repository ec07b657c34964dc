//! The nouns of the promises: a daemon, a sender, an upstream, all real, on loopback.
#![allow(
    dead_code,
    unused_imports,
    reason = "each promise uses its own part of this"
)]
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that is surprised has failed"
)]

pub(crate) mod corpus;
mod daemon;
pub(crate) mod http2;
pub(crate) mod message;
mod operator;
mod recorder;
mod sender;
pub(crate) mod tls;
mod upstream;

use std::time::Duration;

pub(crate) use daemon::{Calm, Daemon, Dir, Setup};
pub(crate) use operator::{NOBODY, Operator, TOKEN};
pub(crate) use recorder::{Heard, Recorder};
pub(crate) use sender::{Reply, Sender, event, sign};
pub(crate) use upstream::{Act, Upstream};

/// Longer than anything here takes; only a hang reaches it.
pub(crate) const HANG: Duration = Duration::from_secs(60);
/// The secret of every endpoint, unless a test says otherwise.
pub(crate) const SECRET: &str = "a-secret-of-thirty-two-bytes-ab!";
/// A body as a sender makes it.
pub(crate) const BODY: &str =
    r#"{"type":"message.created","payload":{"message":{"role":"user","content":"hi"}}}"#;

/// Waits until something holds, looking again and again.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = std::time::Instant::now() + HANG;
    while !holds() {
        assert!(std::time::Instant::now() < end, "never happened: {what}");
        std::thread::yield_now();
        std::thread::park_timeout(Duration::from_millis(5));
    }
}
