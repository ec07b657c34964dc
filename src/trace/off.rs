//! The same without a backend: nothing is kept, nothing is done.

use std::{fmt::Display, time::SystemTime};

use http::{HeaderMap, StatusCode};

use super::{Delivery, Ending};

/// What is never started.
#[derive(Debug)]
pub(crate) enum Traces {}

/// Starts nothing.
pub(crate) fn start() -> Result<Option<Traces>, String> {
    Ok(None)
}

/// A request's span.
#[derive(Debug, Default)]
pub(crate) struct Trace(());

impl Trace {
    #[inline]
    pub(crate) fn begin(_: &HeaderMap, _: SystemTime) -> Self {
        Self(())
    }

    #[inline]
    pub(crate) fn attempt(&self, _: Delivery<'_>) -> Attempt {
        Attempt(())
    }

    #[inline]
    pub(crate) fn end(self, _: Ending<'_>) {}
}

/// An attempt's span.
#[derive(Debug)]
pub(crate) struct Attempt(());

impl Attempt {
    #[inline]
    pub(crate) fn of_kept(_: &HeaderMap, _: Delivery<'_>) -> Self {
        Self(())
    }

    #[inline]
    pub(crate) fn end(self, _: Result<StatusCode, &dyn Display>) {}
}
