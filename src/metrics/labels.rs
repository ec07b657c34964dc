//! The words under which requests are counted: closed sets, so that nobody outside can add a series.

use http::StatusCode;

/// What became of a request, as in `Hookward-Outcome` and the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The same event was delivered before.
    Duplicate,
    /// The upstream did not take it.
    Failed,
    /// Genuine, but of a type the endpoint does not want.
    Filtered,
    /// The upstream answered.
    Forwarded,
    /// On disk, to be delivered.
    Queued,
    /// Refused.
    Rejected,
    /// The upstream answered an event whose signature is missing or wrong.
    Unverified,
}

impl Outcome {
    pub(super) const ALL: [Self; 7] = [
        Self::Duplicate,
        Self::Failed,
        Self::Filtered,
        Self::Forwarded,
        Self::Queued,
        Self::Rejected,
        Self::Unverified,
    ];

    /// The word for it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Duplicate => "duplicate",
            Self::Failed => "failed",
            Self::Filtered => "filtered",
            Self::Forwarded => "forwarded",
            Self::Queued => "queued",
            Self::Rejected => "rejected",
            Self::Unverified => "unverified",
        }
    }

    pub(super) fn number(self) -> usize {
        match self {
            Self::Duplicate => 0,
            Self::Failed => 1,
            Self::Filtered => 2,
            Self::Forwarded => 3,
            Self::Queued => 4,
            Self::Rejected => 5,
            Self::Unverified => 6,
        }
    }
}

/// The label of an event type: one of the sender's five, or `other`, or `none`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventLabel(pub(super) usize);

impl EventLabel {
    /// The event types that the sender documents.
    pub const KNOWN: [&'static str; 5] = [
        "contact.created",
        "message.created",
        "contact.lead.updated",
        "conversation.created",
        "takeover.request",
    ];
    pub(super) const LABELS: [&'static str; 7] = [
        "contact.created",
        "message.created",
        "contact.lead.updated",
        "conversation.created",
        "takeover.request",
        "other",
        "none",
    ];
    /// A type that could not be read, or is not known yet.
    pub const NONE: Self = Self(6);

    /// The label as text.
    pub fn label(self) -> &'static str {
        Self::LABELS.get(self.0).unwrap_or(&"none")
    }

    /// The label for this type.
    pub fn of(event_type: Option<&str>) -> Self {
        let known = |t| {
            Self::KNOWN
                .iter()
                .position(|k| *k == t)
                .map_or(Self(5), Self)
        };
        event_type.map_or(Self::NONE, known)
    }
}

/// Of answers; an interim one is none.
pub(super) const CLASSES: [&str; 4] = ["2xx", "3xx", "4xx", "5xx"];

pub(super) fn class(status: StatusCode) -> usize {
    usize::from(status.as_u16() / 100).clamp(2, 5) - 2
}
