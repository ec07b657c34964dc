//! Why the daemon did not start, or ended.

use std::io;

use crate::queue::{Broken, OpenError};

/// Why the daemon did not start, or ended.
#[derive(Debug)]
pub enum AppError {
    /// Something could not be bound or started: place and cause.
    Start(String, io::Error),
    /// Nothing can be put on disk any more.
    Broken(Broken),
    /// What is on disk cannot be used.
    Queue(OpenError),
    /// An upstream's certificates cannot be used.
    Upstream(String),
    /// It was told to end once more before everything in flight had finished.
    Hurried,
    /// A thread that has to run for ever ended.
    ThreadEnded,
}

impl std::fmt::Display for AppError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Start(place, error) => write!(f, "{place}: {error}"),
            Self::Broken(broken) => broken.fmt(f),
            Self::Queue(error) => write!(f, "data_dir: {error}"),
            Self::Upstream(fault) => f.write_str(fault),
            Self::Hurried => {
                f.write_str("a second signal ended it before everything in flight had finished")
            }
            Self::ThreadEnded => f.write_str("a thread ended by itself; see the log"),
        }
    }
}

impl std::error::Error for AppError {}
