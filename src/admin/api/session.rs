//! Signing in and out, for browsers.

use axum::{
    Json,
    response::{IntoResponse as _, Response},
};
use http::{HeaderValue, StatusCode, header};
use serde::Deserialize;
use serde_json::{Value, json};

use super::problem::Problem;

/// A token, to be turned into a session.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::admin) struct SignIn {
    pub(in crate::admin) token: zeroize::Zeroizing<String>,
}

impl SignIn {
    pub(in crate::admin) fn read(body: &[u8]) -> Result<Self, Problem> {
        serde_json::from_slice(body).map_err(|_| {
            // The reader's own words quote what it found.
            Problem::input("expected a JSON object with token, a text")
        })
    }
}

/// The answer that sets a cookie.
pub(in crate::admin) fn with_cookie(cookie: HeaderValue) -> Response {
    ([(header::SET_COOKIE, cookie)], StatusCode::NO_CONTENT).into_response()
}

/// Says that whoever asks was let in.
pub(super) async fn show() -> Json<Value> {
    Json(json!({"signed_in": true}))
}
