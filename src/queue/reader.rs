//! The two threads that read: one for deliveries, quick and always free; one for an operator's
//! questions, which may take long.

use std::sync::{
    Arc,
    atomic::Ordering,
    mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
};

use rusqlite::{Connection, OptionalExtension as _, params};
use tokio::sync::oneshot;

use super::{
    Bound, Key, Lease, Leases, OperateError, Refused, Seen, Settled,
    clock::{Millis, duration},
    fault::Fault,
    record::checksum,
    shared::{Account, Shared},
    sqlite::{append, lanes, operate},
};

/// Questions that may wait for the quick reader.
const JOBS: usize = 4096;
/// Questions of operators that may wait.
const QUESTIONS: usize = 64;

/// For the quick reader.
pub(super) enum Job {
    End,
    /// Look for live events of a lane.
    Holds {
        account: Arc<Account>,
        lane: [u8; 16],
        reply: oneshot::Sender<Result<bool, Refused>>,
    },
    /// Fetch the records of events that were leased.
    Load {
        leases: Leases,
        reply: oneshot::Sender<Result<Leases, Refused>>,
    },
    /// Look a key up.
    Seen {
        account: Arc<Account>,
        key: Key,
        reply: oneshot::Sender<Result<Option<Seen>, Refused>>,
    },
}

type Answer = Box<dyn FnOnce(&Connection, &Arc<Shared>) + Send>;

/// An operator's question, answered by the closure itself.
pub(super) enum Question {
    Ask(Answer),
    End,
}

/// Where questions are left.
pub(super) struct Desk {
    jobs: SyncSender<Job>,
    questions: SyncSender<Question>,
}

/// Where the threads find them.
pub(super) struct Trays {
    pub(super) jobs: Receiver<Job>,
    pub(super) questions: Receiver<Question>,
}

impl Desk {
    pub(super) fn new() -> (Self, Trays) {
        let (jobs, jobs_tray) = sync_channel(JOBS);
        let (questions, questions_tray) = sync_channel(QUESTIONS);
        let desk = Self { jobs, questions };
        let trays = Trays {
            jobs: jobs_tray,
            questions: questions_tray,
        };
        (desk, trays)
    }

    /// Has records fetched; waits while too much is asked. When the reader has ended, the leases
    /// are dropped, which gives them back.
    pub(super) fn load(&self, job: Job) {
        let _ = self.jobs.send(job);
    }

    /// Asks the quick reader.
    pub(super) async fn look<T>(
        &self,
        ask: impl FnOnce(oneshot::Sender<Result<T, Refused>>) -> Job,
    ) -> Result<T, Refused> {
        let (reply, answer) = oneshot::channel();
        match self.jobs.try_send(ask(reply)) {
            Ok(()) => answer.await.unwrap_or(Err(Refused::Broken)),
            Err(TrySendError::Full(_)) => Err(Refused::Full(Bound::Commands)),
            Err(TrySendError::Disconnected(_)) => Err(Refused::Broken),
        }
    }

    /// Asks an operator's question.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Connection, &Arc<Shared>) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, OperateError> {
        let (reply, answer) = oneshot::channel();
        let ask = move |connection: &Connection, shared: &Arc<Shared>| {
            let found = question(connection, shared).map_err(|e| match shared.fault(&e) {
                Fault::Broken(_) => OperateError::Broken,
                Fault::Storage(fault) => OperateError::Storage(fault),
            });
            let _ = reply.send(found);
        };
        match self.questions.try_send(Question::Ask(Box::new(ask))) {
            Ok(()) => answer.await.unwrap_or(Err(OperateError::Broken)),
            Err(TrySendError::Full(_)) => Err(OperateError::Busy),
            Err(TrySendError::Disconnected(_)) => Err(OperateError::Broken),
        }
    }

    /// Ends both threads after what they have been asked.
    pub(super) fn end(&self) {
        let _ = self.jobs.send(Job::End);
        let _ = self.questions.send(Question::End);
    }
}

/// Works for deliveries until told to end.
pub(super) fn read(connection: &Connection, shared: &Arc<Shared>, jobs: &Receiver<Job>) {
    while let Ok(job) = jobs.recv() {
        match job {
            Job::End => break,
            Job::Holds {
                account,
                lane,
                reply,
            } => {
                let endpoint = account.id.load(Ordering::Relaxed);
                let held = lanes::is_used(connection, endpoint, &lane);
                let _ = reply.send(held.map_err(|error| broken(shared, &error)));
            }
            Job::Load { leases, reply } => {
                let loaded = load(connection, shared, leases);
                let _ = reply.send(loaded.map_err(|error| broken(shared, &error)));
            }
            Job::Seen {
                account,
                key,
                reply,
            } => {
                let now = shared.clock.now();
                let seen = seen(connection, &account, key, now);
                let _ = reply.send(seen.map_err(|error| broken(shared, &error)));
            }
        }
    }
}

fn broken(shared: &Shared, error: &rusqlite::Error) -> Refused {
    shared.fault(error);
    Refused::Broken
}

/// Answers operators until told to end.
pub(super) fn answer(
    connection: &Connection,
    shared: &Arc<Shared>,
    questions: &Receiver<Question>,
) {
    while let Ok(Question::Ask(answer)) = questions.recv() {
        answer(connection, shared);
    }
}

/// Fetches records. An event whose record is not what was written becomes a dead letter, and is
/// given to nobody.
fn load(connection: &Connection, shared: &Arc<Shared>, leases: Leases) -> rusqlite::Result<Leases> {
    let mut loaded = Leases {
        leases: Vec::with_capacity(leases.leases.len()),
        next_due: leases.next_due,
    };
    // One read transaction: the log's index is locked once, not once per record.
    let transaction = connection.unchecked_transaction()?;
    for mut lease in leases.leases {
        let crc_of = |data: &[u8]| checksum(lease.endpoint(), lease.id(), lease.event_type(), data);
        match operate::payload(&transaction, lease.row(), crc_of)? {
            Ok(record) => {
                lease.set_record(record);
                loaded.leases.push(lease);
            }
            Err(_) => bury(shared, lease),
        }
    }
    transaction.finish()?;
    Ok(loaded)
}

fn bury(shared: &Shared, lease: Lease) {
    let (endpoint, event_id) = (lease.endpoint().clone(), lease.id());
    tracing::error!(
        %endpoint,
        %event_id,
        store = %shared.dir.store().display(),
        remedy = "look after the disk; have its sender send it again, or drop it",
        "an event on disk is not what was written, it is a dead letter"
    );
    (shared.observer.corrupt_record)(&endpoint);
    lease.settle_unheard(Settled::Dead {
        status: None,
        error: "the record on disk is not what was written (checksum): it was not delivered"
            .to_owned(),
    });
}

fn seen(
    connection: &Connection,
    account: &Account,
    key: Key,
    now: Millis,
) -> rusqlite::Result<Option<Seen>> {
    let endpoint = account.id.load(Ordering::Relaxed);
    let found: Option<(i64, Option<i64>)> = connection
        .prepare_cached("SELECT expires, body FROM idem WHERE endpoint = ?1 AND key = ?2")?
        .query_row(params![endpoint, key.0], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .optional()?;
    Ok(found.and_then(|(expires, body)| {
        (expires > append::seconds(now)).then(|| Seen {
            body: body.map(append::from_column),
            remaining: duration(expires.saturating_mul(1000).saturating_sub(now)),
        })
    }))
}
