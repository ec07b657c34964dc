//! What a request and the attempts to deliver it tell a tracing backend: one span each, joined to
//! what the sender's `traceparent` says.
//!
//! Built with the feature `otlp` spans go out by OTLP over HTTP, as the standard `OTEL_…` variables
//! say; without it there is nothing here to be paid for. Nothing of a body, a header or a secret is
//! told; `traceparent` itself passes to the upstream as it came.

#[cfg(not(feature = "otlp"))]
mod off;
#[cfg(feature = "otlp")]
mod otlp;

use http::StatusCode;

#[cfg(not(feature = "otlp"))]
pub(crate) use self::off::{Attempt, Trace, start};
#[cfg(feature = "otlp")]
pub(crate) use self::otlp::{Attempt, Trace, start};

/// What became of a request.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(
    not(feature = "otlp"),
    expect(dead_code, reason = "nobody is told without a backend")
)]
pub(crate) struct Ending<'e> {
    /// The endpoint's name; empty before routing.
    pub(crate) endpoint: &'e str,
    pub(crate) event_id: &'e str,
    pub(crate) status: StatusCode,
    pub(crate) outcome: Option<&'static str>,
    /// Why it was refused or failed.
    pub(crate) reason: Option<&'static str>,
}

/// Which attempt to deliver which event.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(
    not(feature = "otlp"),
    expect(dead_code, reason = "nobody is told without a backend")
)]
pub(crate) struct Delivery<'d> {
    pub(crate) endpoint: &'d str,
    pub(crate) event_id: &'d str,
    /// Counted from 1.
    pub(crate) number: u32,
}
