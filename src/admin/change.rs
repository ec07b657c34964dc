//! What an operator may change about endpoints, and what comes of it.
//!
//! Asked of whoever holds the configuration, which a change is tried against as a whole: what the
//! file says and what was made at run time are one.

use serde_json::{Map, Value};
use tokio::sync::{mpsc, oneshot};

/// Changes that may wait.
pub const WAITING: usize = 16;

/// What is to change.
pub enum Wish {
    /// A new endpoint.
    Create {
        /// Its name.
        name: String,
        /// Its table, as in the configuration; without secrets one is made.
        settings: Map<String, Value>,
        /// Also where events of an earlier one of this name wait on disk: it gets them.
        takes_over: bool,
    },
    /// An endpoint made at run time gets another table.
    Edit {
        /// Which.
        name: String,
        /// The whole table; `***` stands for a secret it has already.
        settings: Map<String, Value>,
        /// The revisions that it may have now (`If-Match`); `None`: any.
        expected: Option<Vec<String>>,
    },
    /// An endpoint made at run time goes.
    Remove {
        /// Which.
        name: String,
    },
    /// An endpoint is switched on or off.
    Switch {
        /// Which.
        name: String,
        /// On.
        active: bool,
    },
}

impl Wish {
    /// What is done, in a word, and to which endpoint.
    pub fn subject(&self) -> (&'static str, &str) {
        match self {
            Self::Create { name, .. } => ("made", name),
            Self::Edit { name, .. } => ("edited", name),
            Self::Remove { name } => ("removed", name),
            Self::Switch { name, active: true } => ("switched on", name),
            Self::Switch { name, .. } => ("switched off", name),
        }
    }
}

/// Shows no table: it holds secrets.
impl std::fmt::Debug for Wish {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Wish").field(&self.subject()).finish()
    }
}

/// A wish, and where its outcome goes.
#[derive(Debug)]
pub struct Change {
    /// What.
    pub wish: Wish,
    /// Who waits for it.
    pub reply: oneshot::Sender<Result<Changed, Refused>>,
}

/// A change that took effect and is on disk.
#[derive(Default)]
pub struct Changed {
    /// Secrets that were made: names, and the secrets as the sender takes them. Shown once.
    pub generated: Vec<(String, zeroize::Zeroizing<String>)>,
}

/// Shows no secret.
impl std::fmt::Debug for Changed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = self.generated.iter().map(|(name, _)| name).collect();
        f.debug_struct("Changed")
            .field("generated", &names)
            .finish()
    }
}

/// One thing that is wrong with a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// Its key, such as `queue.retry`; empty for the whole.
    pub key: String,
    /// What is wrong, and what would be right.
    pub what: String,
}

/// Why nothing changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It cannot be in the state things are in: what, and what to do.
    Conflict(String),
    /// The process is ending, or too much is asked at once.
    Busy,
    /// It is not as whoever asks saw it.
    Changed,
    /// It could not be put on disk.
    Storage(String),
    /// There is no such endpoint.
    Unknown,
    /// So many events of an earlier endpoint of this name wait on disk.
    Waiting(u64),
    /// The table is wrong.
    Wrong(Vec<Wrong>),
}

/// Where changes are asked for.
#[derive(Clone, Debug)]
pub struct Changes(mpsc::Sender<Change>);

impl Changes {
    /// Changes, and where they arrive.
    pub fn channel() -> (Self, mpsc::Receiver<Change>) {
        let (sender, receiver) = mpsc::channel(WAITING);
        (Self(sender), receiver)
    }

    /// Asks for one and waits for its outcome.
    ///
    /// # Errors
    /// See [`Refused`].
    pub async fn ask(&self, wish: Wish) -> Result<Changed, Refused> {
        let (reply, outcome) = oneshot::channel();
        let change = Change { wish, reply };
        self.0.try_send(change).map_err(|_| Refused::Busy)?;
        outcome.await.unwrap_or(Err(Refused::Busy))
    }
}
