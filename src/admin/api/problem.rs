//! What an operator hears when something cannot be done (RFC 9457).

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};

use crate::{
    admin::{
        change::{Refused, Wrong},
        guard::Denied,
    },
    control::Refusal,
};

pub(in crate::admin) const PROBLEM: HeaderValue =
    HeaderValue::from_static("application/problem+json");

/// Why something was not done.
#[derive(Debug)]
pub(in crate::admin) struct Problem {
    pub(in crate::admin) status: StatusCode,
    /// A word, as in the problem's `type`.
    reason: &'static str,
    detail: String,
    wrong: Vec<Wrong>,
}

impl Problem {
    pub(in crate::admin) fn new(
        status: StatusCode,
        reason: &'static str,
        detail: impl Into<String>,
    ) -> Self {
        Self {
            status,
            reason,
            detail: detail.into(),
            wrong: Vec::new(),
        }
    }

    pub(super) fn absent(what: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "unknown",
            format!("There is no such {what}."),
        )
    }

    pub(super) fn input(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "input", detail)
    }

    pub(super) fn needs_data_dir() -> Self {
        let detail =
            "This needs data_dir in the configuration: a directory of this instance's own.";
        Self::new(StatusCode::CONFLICT, "data_dir", detail)
    }

    /// What a status alone says, for answers that nobody here wrote.
    pub(in crate::admin) fn of(status: StatusCode) -> Self {
        let detail = match status {
            StatusCode::NOT_FOUND => "There is nothing at this path; see /api/v1/openapi.json.",
            StatusCode::METHOD_NOT_ALLOWED => {
                "This path is not asked so; see /api/v1/openapi.json."
            }
            StatusCode::UNSUPPORTED_MEDIA_TYPE => "Send JSON, as application/json.",
            _ => "The request cannot be understood; see /api/v1/openapi.json.",
        };
        Self::new(status, "request", detail)
    }

    fn document(&self) -> Value {
        let errors = self
            .wrong
            .iter()
            .map(|wrong| json!({"key": wrong.key, "detail": wrong.what}));
        let errors: Vec<_> = errors.collect();
        let mut document = json!({
            "type": format!("urn:hookward:{}", self.reason),
            "title": self.status.canonical_reason().unwrap_or("Problem"),
            "status": self.status.as_u16(),
            "detail": self.detail,
        });
        if let (Some(document), false) = (document.as_object_mut(), errors.is_empty()) {
            document.insert("errors".to_owned(), errors.into());
        }
        document
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = Response::new(self.document().to_string().into());
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, PROBLEM);
        if self.status == StatusCode::UNAUTHORIZED {
            let bearer = HeaderValue::from_static("Bearer realm=\"hookward\"");
            headers.insert(header::WWW_AUTHENTICATE, bearer);
        }
        if matches!(
            self.status,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
        ) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("6"));
        }
        response
    }
}

impl From<Denied> for Problem {
    fn from(denied: Denied) -> Self {
        match denied {
            Denied::Host => Self::new(
                StatusCode::MISDIRECTED_REQUEST,
                "host",
                "This instance is not known by that Host: use its address or localhost, or name it in admin.hosts.",
            ),
            Denied::Origin => Self::new(
                StatusCode::FORBIDDEN,
                "origin",
                "Changes are taken from the dashboard's own pages, or with a bearer token.",
            ),
            Denied::Token => Self::new(
                StatusCode::UNAUTHORIZED,
                "token",
                "Send admin.token as a bearer token, or sign in.",
            ),
            Denied::TooMany => Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                "token",
                "Too many wrong tokens came from there; wait a little.",
            ),
        }
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Failed(detail) => Self::new(StatusCode::SERVICE_UNAVAILABLE, "failed", detail),
            Refusal::Unknown(detail) => Self::new(StatusCode::NOT_FOUND, "unknown", detail),
            Refusal::Usage(detail) => Self::input(detail),
        }
    }
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Busy => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "busy",
                "Other changes are under way; try again.",
            ),
            Refused::Changed => Self::new(
                StatusCode::PRECONDITION_FAILED,
                "changed",
                "The endpoint was changed meanwhile; read it again. Nothing was changed now.",
            ),
            Refused::Conflict(detail) => Self::new(StatusCode::CONFLICT, "conflict", detail),
            Refused::Storage(detail) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "storage", detail)
            }
            Refused::Unknown => Self::absent("endpoint"),
            Refused::Waiting(count) => Self::new(
                StatusCode::CONFLICT,
                "events_waiting",
                format!(
                    "Events of an earlier endpoint of this name wait on disk ({count}) and would be \
                     delivered to the new one: drop them, or say takes_over."
                ),
            ),
            Refused::Wrong(wrong) => Self {
                wrong,
                ..Self::new(
                    StatusCode::UNPROCESSABLE_ENTITY,
                    "endpoint",
                    "The endpoint's settings are wrong; nothing was changed.",
                )
            },
        }
    }
}
