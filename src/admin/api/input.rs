//! What a request says, taken apart; what cannot be is a problem document.

use axum::extract::{FromRequest, FromRequestParts, Json, Query, Request};
use http::request::Parts;
use serde::de::DeserializeOwned;

use super::problem::Problem;

/// A JSON body.
pub(super) struct Input<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Input<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let read = Json::<T>::from_request(request, state).await;
        let Json(value) =
            read.map_err(|refused| Problem::new(refused.status(), "input", refused.body_text()))?;
        Ok(Self(value))
    }
}

/// The query.
pub(super) struct Asked<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Asked<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let read = Query::<T>::from_request_parts(parts, state).await;
        let Query(value) = read.map_err(|refused| Problem::input(refused.body_text()))?;
        Ok(Self(value))
    }
}

/// How much of a listing.
#[derive(Debug, serde::Deserialize)]
pub(super) struct Span {
    /// Where it goes on, as the part before said.
    pub(super) cursor: Option<String>,
    /// At most so many.
    pub(super) limit: Option<usize>,
}

/// Most in one part of a listing, and how many if nothing is said.
pub(super) const LIMITS: (usize, usize) = (500, 100);

impl Span {
    /// The most that are wanted.
    pub(super) fn limit(&self) -> Result<usize, Problem> {
        let (most, usual) = LIMITS;
        match self.limit {
            None => Ok(usual),
            Some(limit) if (1..=most).contains(&limit) => Ok(limit),
            Some(_) => Err(Problem::input(format!("limit: expected 1 to {most}"))),
        }
    }

    /// The cursor as a number that is not negative.
    pub(super) fn number(&self) -> Result<Option<i64>, Problem> {
        let wrong = || Problem::input("cursor: expected next of the part before");
        let parse = |text: &String| text.parse().ok().filter(|n| *n >= 0).ok_or_else(wrong);
        self.cursor.as_ref().map(parse).transpose()
    }
}
