//! The store's start, its threads, and their end.

use std::{
    fs::File,
    path::Path,
    sync::Arc,
    thread::{Builder, JoinHandle},
};

use rusqlite::Connection;

use super::{
    OpenError, Options,
    clock::{Clock, Millis},
    directory::DataDir,
    fault::Fault,
    keeper::Keeper,
    outage::Outage,
    reader::{self, Desk},
    shared::{Account, Parts, Shared},
    sqlite::{
        self, Role, lease, said,
        tally::Tally,
        tx::{Notes, Tx},
    },
    writer::Writer,
};
use crate::endpoint::EndpointName;

/// The threads that were started; dropped, they are ended and waited for.
pub(super) struct Threads {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
    others: Vec<JoinHandle<()>>,
}

/// What the store knew of itself when it was opened.
struct Known {
    notes: Notes,
    clock: Millis,
    hash_secret: [u64; 2],
    accounts: Vec<Account>,
}

impl Threads {
    /// Opens the store, takes back all leases, and starts.
    pub(super) fn start(dir: &Path, options: Options) -> Result<(Arc<Shared>, Self), OpenError> {
        let dir = DataDir::open(dir)?;
        let file = dir.store();
        let writer = sqlite::open(&dir, &options.observer.damaged_log)?;
        let known = known(&writer).map_err(|e| said(&file, &e))?;
        let clock = Clock::new(options.wall_clock, known.clock);
        let ahead = clock.ahead_of(options.wall_clock);
        if ahead.as_secs() > 60 {
            let seconds = ahead.as_secs();
            tracing::warn!(
                seconds,
                "the system's clock is behind the store's: the schedule goes on from the store's"
            );
        }
        let [keeper, reader, desk] =
            [Role::Keeper, Role::Reader, Role::Reader].map(|role| sqlite::connect(&file, role));
        let (keeper, reader, desk) = (keeper?, reader?, desk?);
        let (front, trays) = Desk::new();
        let open = File::options().read(true).write(true).open(&file);
        let open = open.map_err(|error| OpenError::Io {
            path: file.clone(),
            error,
        })?;
        let shared = Arc::new(Shared::new(Parts {
            dir,
            file: open,
            clock,
            hash_secret: known.hash_secret,
            observer: options.observer,
            desk: front,
            places: options.places,
            accounts: known.accounts,
        }));
        let (notes, outage) = void(&writer, &shared, known.notes).map_err(|e| said(&file, &e))?;
        let writer = Writer::new(shared.clone(), writer, notes, outage);
        let writer = writer.map_err(|e| said(&file, &e))?;

        let mut threads = Self {
            shared: shared.clone(),
            writer: None,
            others: Vec::new(),
        };
        let start = |name: &str, run: Box<dyn FnOnce() + Send>| {
            Builder::new()
                .name(format!("queue-{name}"))
                .spawn(run)
                .map_err(|error| OpenError::Io {
                    path: file.clone(),
                    error,
                })
        };
        threads.writer = Some(start("writer", Box::new(move || writer.run()))?);
        let files = shared.dir.files().map_err(|error| OpenError::Io {
            path: file.clone(),
            error,
        })?;
        let keeper = Keeper::new(shared.clone(), keeper, files);
        threads
            .others
            .push(start("keeper", Box::new(move || keeper.run()))?);
        let (jobs, questions) = (trays.jobs, trays.questions);
        let of = shared.clone();
        let run = move || reader::read(&reader, &of, &jobs);
        threads.others.push(start("reader", Box::new(run))?);
        let of = shared.clone();
        let run = move || reader::answer(&desk, &of, &questions);
        threads.others.push(start("desk", Box::new(run))?);
        Ok((shared, threads))
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.close();
        for keeper in &self.others {
            keeper.thread().unpark();
        }
        // A thread that panicked has said so; there is nothing to add.
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
        self.shared.desk.end();
        for thread in self.others.drain(..) {
            let _ = thread.join();
        }
        // Leases that are still held keep `Shared` alive, but can do nothing any more.
        self.shared.dir.release();
    }
}

fn known(connection: &Connection) -> rusqlite::Result<Known> {
    let store = "SELECT next_id, clock, hash_secret FROM store";
    let (next_id, clock, secret) = connection.query_row(store, [], |row| {
        Ok((row.get(0)?, row.get(1)?, row.get::<_, [u8; 16]>(2)?))
    })?;
    let next_id = sqlite::free_id(connection, next_id)?;
    let mut statement = connection.prepare(&format!(
        "SELECT id, name, paused, {} FROM endpoint",
        Tally::COLUMNS
    ))?;
    let accounts = statement
        .query_map([], |row| {
            let name: String = row.get(1)?;
            let name = EndpointName::new(&name)
                .map_err(|_| lease::damaged("an endpoint's name cannot be one"))?;
            Ok(Account::new(
                name,
                row.get(0)?,
                row.get(2)?,
                Tally::read(row, 3)?,
            ))
        })?
        .collect::<Result<_, _>>()?;
    let secret = u128::from_ne_bytes(secret);
    let half = |n: u128| u64::try_from(n & u128::from(u64::MAX)).unwrap_or_default();
    Ok(Known {
        notes: Notes::new(next_id, clock),
        clock,
        hash_secret: [half(secret), half(secret >> 64)],
        accounts,
    })
}

/// Takes back the leases of the process before, and shows whether the store can be written. While
/// the disk takes nothing they are taken back in memory: what is on disk is delivered all the same.
fn void(
    connection: &Connection,
    shared: &Shared,
    notes: Notes,
) -> rusqlite::Result<(Notes, Outage)> {
    let accounts = shared.accounts();
    let run = || {
        let mut tx = Tx::begin(connection, shared.clock.now(), notes)?;
        let mut voided = 0;
        for account in &accounts {
            voided += lease::void(&mut tx, account)?;
        }
        tx.touch();
        let (notes, _) = tx.commit()?;
        Ok((notes, voided))
    };
    let (notes, voided, outage) = match run() {
        Ok((notes, voided)) => (notes, voided, Outage::default()),
        Err(error) => {
            let Fault::Storage(fault) = Fault::of(&error, &shared.dir) else {
                return Err(error);
            };
            let mut outage = Outage::default();
            let mut voided = 0;
            for account in &accounts {
                voided += outage.void(connection, account, shared.clock.now())?;
            }
            shared.set_storage(Some(fault));
            (notes, voided, outage)
        }
    };
    if voided > 0 {
        tracing::info!(events = voided, "attempts that did not end are repeated");
    }
    Ok((notes, outage))
}
