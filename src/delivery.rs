//! Drains the queue into the upstreams: order, retry, backoff, dead letters.

pub mod health;
pub mod schedule;
