//! What the configuration says about the operator's side.

use std::net::IpAddr;

use crate::{feed::Capture, secret::Secret};

/// Fewest bytes in a token: below, it can be guessed.
pub const TOKEN_LENGTH: usize = 16;

/// Who may use API and dashboard, and what they keep.
#[derive(Debug, Default)]
pub struct Settings {
    /// What opens them; without it there are none.
    pub token: Option<Secret>,
    /// The addresses they listen at.
    pub addresses: Vec<IpAddr>,
    /// Names they are known by beside those of this machine, in lower case.
    pub hosts: Vec<String>,
    /// What is kept for the live view.
    pub capture: Capture,
    /// They listen apart from `/metrics` and health.
    pub has_own_listener: bool,
}
