//! What the writer's commands come to: done within a transaction, answered once it is on disk, or
//! failed with it.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::sync::oneshot;

use super::{
    AppendError, Lease, Leases, OperateError, Refused, SettleError, StorageFault,
    clock::{Millis, duration},
    inbox::{Accepted, Command, Expected, Taking},
    lease::Held,
    reader::Job,
    shared::Shared,
    sqlite::{append, lease, operate, purge, tx::Tx},
};

/// What a command came to within its transaction.
pub(super) enum Outcome {
    Appended(Result<Accepted<Held, Expected>, AppendError>),
    Changed(u64),
    Done,
    Leased(Vec<Held>, Option<Millis>),
    Settled(bool),
}

/// Does one command in its transaction.
pub(super) fn apply(
    tx: &mut Tx<'_>,
    shared: &Shared,
    command: &Command,
) -> rusqlite::Result<Outcome> {
    Ok(match command {
        Command::Append { account, entry, .. } => {
            Outcome::Appended(append::append(tx, account, entry)?)
        }
        Command::Change { change, .. } => Outcome::Changed(operate::change(tx, shared, change)?),
        Command::Forget { account, key, .. } => {
            append::forget(tx, account, *key)?;
            Outcome::Done
        }
        Command::Lease { account, .. } if account.paused.load(Ordering::Relaxed) => {
            Outcome::Leased(Vec::new(), None)
        }
        Command::Lease {
            account,
            limit,
            rest,
            ..
        } => {
            let (held, next) = lease::lease(tx, account, *limit)?;
            if let Some(rest) = rest {
                rest.expect(limit.saturating_sub(held.len()));
            }
            Outcome::Leased(held, next.map(|at| at.saturating_sub(tx.now)))
        }
        Command::Pause {
            account, paused, ..
        } => {
            tx.pause(account, *paused)?;
            Outcome::Done
        }
        Command::Purge { account, purge, .. } => {
            Outcome::Changed(purge::purge(tx, account, purge)?)
        }
        Command::Quarantine {
            account, suspect, ..
        } => {
            append::quarantine(tx, account, suspect)?;
            Outcome::Done
        }
        Command::Remember {
            account,
            key,
            body,
            window,
            ..
        } => {
            append::remember(tx, account, *key, *body, *window)?;
            Outcome::Done
        }
        Command::Settle { held, ending, .. } => Outcome::Settled(lease::settle(tx, held, ending)?),
        Command::Sweep { keys, .. } => Outcome::Changed(purge::sweep(tx, keys)?),
    })
}

/// Answers a command whose transaction is on disk. Who has stopped waiting is not told.
pub(super) fn answer(command: Command, outcome: Outcome, shared: &Arc<Shared>) {
    match (command, outcome) {
        (
            Command::Append {
                account,
                entry,
                reply,
                place,
            },
            Outcome::Appended(outcome),
        ) => {
            account.arrived(entry.record.len().try_into().unwrap_or(u64::MAX));
            drop(place);
            let _ = reply.send(outcome.map(|accepted| Accepted {
                key_reused: accepted.key_reused,
                outcome: match accepted.outcome {
                    Taking::Duplicate => Taking::Duplicate,
                    Taking::Expected((held, threshold)) => {
                        threshold.put(Lease::new(shared.clone(), held, entry.record));
                        Taking::Queued
                    }
                    Taking::Leased(held) => {
                        Taking::Leased(Lease::new(shared.clone(), held, entry.record))
                    }
                    Taking::Queued => Taking::Queued,
                },
            }));
        }
        (Command::Change { reply, .. }, Outcome::Changed(count)) => {
            let _ = reply.send(Ok(count));
        }
        (Command::Forget { reply, .. } | Command::Remember { reply, .. }, _) => {
            let _ = reply.send(Ok(()));
        }
        (Command::Lease { reply, .. }, Outcome::Leased(held, next)) => {
            hand_out(held, next.map(duration), reply, shared);
        }
        (Command::Pause { reply, .. }, _) => {
            let _ = reply.send(Ok(()));
        }
        (Command::Purge { reply, .. } | Command::Sweep { reply, .. }, Outcome::Changed(count)) => {
            let _ = reply.send(count);
        }
        (
            Command::Settle {
                reply: Some(reply), ..
            },
            Outcome::Settled(is_held),
        ) => {
            let _ = reply.send(is_held.then_some(()).ok_or(SettleError::Stale));
        }
        // `apply` gives each command its kind of outcome; dropped, a reply says "broken".
        _ => {}
    }
}

/// Gives leases to whoever reads their records.
pub(super) fn hand_out(
    held: Vec<Held>,
    next_due: Option<Duration>,
    reply: oneshot::Sender<Result<Leases, Refused>>,
    shared: &Arc<Shared>,
) {
    let lease = |held| Lease::new(shared.clone(), held, bytes::Bytes::new());
    let leases = Leases {
        leases: held.into_iter().map(lease).collect(),
        next_due,
    };
    if leases.leases.is_empty() {
        let _ = reply.send(Ok(leases));
    } else {
        shared.desk.load(Job::Load { leases, reply });
    }
}

/// Answers a command that was not done: because of the disk, or because the store is broken.
pub(super) fn fail(command: Command, fault: Option<StorageFault>) {
    let refused = fault.map_or(Refused::Broken, Refused::Storage);
    let operate = fault.map_or(OperateError::Broken, OperateError::Storage);
    match command {
        Command::Append {
            account,
            entry,
            reply,
            place,
        } => {
            account.arrived(entry.record.len().try_into().unwrap_or(u64::MAX));
            drop(place);
            let _ = reply.send(Err(AppendError::Refused(refused)));
        }
        Command::Change { reply, .. } => {
            let _ = reply.send(Err(operate));
        }
        Command::Forget { reply, .. } | Command::Remember { reply, .. } => {
            let _ = reply.send(Err(refused));
        }
        Command::Lease { reply, .. } => {
            let _ = reply.send(Err(refused));
        }
        Command::Pause { reply, .. } => {
            let _ = reply.send(Err(operate));
        }
        Command::Purge { reply, .. } | Command::Sweep { reply, .. } => {
            let _ = reply.send(0);
        }
        Command::Quarantine { .. } => {}
        Command::Settle { reply, .. } => {
            if let Some(reply) = reply {
                let _ = reply.send(Err(SettleError::Broken));
            }
        }
    }
}
