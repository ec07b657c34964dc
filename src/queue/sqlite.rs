//! The SQLite file: its schema, how every connection is set up, and how it is made and checked.
//!
//! ```text
//! event   one row each: where it is, when it is due, what went wrong last
//! payload the record of each, apart, so that a change of state never rewrites a body
//! attempt the last attempts of an event that ended badly
//! idem    which keys are taken, until when, by which event (null: relayed)
//! ```
//!
//! `event.state`: -1 waits for an earlier event of its lane, 0 pending, 1 leased, 2 delivered,
//! 3 dead. `event.at`, in milliseconds: while waiting when it is due, else since when it is so;
//! one index on both serves leasing, purging and counting. Of a lane at most one event is in
//! state 0, and none while one is in state 1; see [`lanes`].
//!
//! `endpoint` carries how many events are in which state, written in the transaction that changes
//! them: a million pending ones are known without being counted.

pub(super) mod append;
pub(super) mod lanes;
pub(super) mod lease;
pub(super) mod operate;
pub(super) mod purge;
mod schema;
pub(super) mod tally;
pub(super) mod tx;

use std::{fs, path::Path};

use rusqlite::{
    Connection, ErrorCode, OpenFlags, OptionalExtension as _, Row, config::DbConfig,
    types::ValueRef, wal::CheckpointMode,
};

use self::schema::{check, create, expect_ours, is_ours};
use super::{DamagedLog, directory::DataDir, fault::OpenError, wal};

/// Statements kept prepared per connection.
const STATEMENTS: usize = 64;
/// No event has a higher number, however long there are events.
const LAST_ID: i64 = 1 << 62;
/// What a fresh log is cut to, in bytes.
const JOURNAL_SIZE_LIMIT: i64 = 128 * 1024 * 1024;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Checkpoints and copies; changes no row.
    Keeper,
    /// Reads.
    Reader,
    /// Changes rows; there is one.
    Writer,
}

impl Role {
    /// Page cache, in KiB. The system's own holds the rest. The writer's is small because SQLite looks
    /// through all of it after each transaction that divided a page.
    fn cache_kib(self) -> i64 {
        match self {
            Self::Keeper => 1024,
            Self::Reader => 4 * 1024,
            Self::Writer => 4 * 1024,
        }
    }
}

/// Opens the store, making it if there is none, and checks that it is ours and can be read.
pub(super) fn open(
    dir: &DataDir,
    damaged_log: impl FnOnce(&DamagedLog),
) -> Result<Connection, OpenError> {
    let file = dir.store();
    let fresh = file.with_extension("new");
    let io = |path: &Path| {
        let path = path.to_owned();
        move |error| OpenError::Io { path, error }
    };
    let log = file.with_extension("sqlite3-wal");
    let log_bytes = fs::metadata(&log).map_or(0, |log| log.len());
    if fs::metadata(&file).is_ok_and(|store| store.len() > 0) {
        expect_ours(&file)?;
    } else if log_bytes > 0 {
        // SQLite would take the log for a stranger's and delete it.
        return Err(damaged(&file, "it is empty or gone, but its log is there"));
    } else {
        create(&fresh)?;
        fs::rename(&fresh, &file).map_err(io(&file))?;
        dir.sync().map_err(io(&file))?;
    }
    let damage = wal::examine(&log)?;
    let connection = connect(&file, Role::Writer)?;
    if dir.must_check() || damage.is_some() {
        tracing::warn!("checking the queue's store after an I/O error or damage");
        check(&connection, &file)?;
        dir.note(false).map_err(io(&file))?;
    }
    if let Some(damage) = damage {
        damaged_log(&damage);
        // What is written next must not stand before the rest of the damaged log.
        connection
            .wal_checkpoint_v2(None::<&str>, CheckpointMode::TRUNCATE)
            .map_err(|e| said(&file, &e))?;
    }
    Ok(connection)
}

/// Opens a connection to a store that exists, and refuses it unless every setting took.
pub(super) fn connect(file: &Path, role: Role) -> Result<Connection, OpenError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(file, flags).map_err(|e| said(file, &e))?;
    set_up(&connection, file, role)?;
    // After a failed sync the last connection's end must not fold the log in: part of what was
    // folded in before may be lost, and the log is what it can be had from. The writer folds it in
    // itself when all is well.
    let keeps_log = connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true);
    if !keeps_log.map_err(|e| said(file, &e))? {
        return Err(refused(file, "no_ckpt_on_close"));
    }
    is_ours(&connection, file)?;
    Ok(connection)
}

fn set_up(connection: &Connection, file: &Path, role: Role) -> Result<(), OpenError> {
    let failed = |e: rusqlite::Error| said(file, &e);
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    connection
        .busy_timeout(std::time::Duration::from_millis(500))
        .map_err(failed)?;
    let mode: String = connection
        .pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))
        .map_err(failed)?;
    if mode != "wal" {
        return Err(refused(file, "journal_mode"));
    }
    // No automatic checkpoints: SQLite swallows their errors, a failed fsync among them. The
    // writer makes them itself and sees what they come to.
    let settings = [
        ("synchronous", 2),
        ("wal_autocheckpoint", 0),
        ("journal_size_limit", JOURNAL_SIZE_LIMIT),
        ("mmap_size", 0),
        ("trusted_schema", 0),
        ("cell_size_check", 1),
        ("temp_store", 2),
        ("cache_size", -role.cache_kib()),
        ("query_only", i64::from(role == Role::Reader)),
    ];
    for (name, value) in settings {
        connection
            .pragma_update(None, name, value)
            .map_err(failed)?;
        let is: Option<i64> = connection
            .pragma_query_value(None, name, |row| row.get(0))
            .optional()
            .map_err(failed)?;
        // Built without memory mapping, SQLite has no such setting.
        if is.unwrap_or(0) != value {
            return Err(refused(file, name));
        }
    }
    let page_size: i64 = connection
        .pragma_query_value(None, "page_size", |row| row.get(0))
        .map_err(failed)?;
    if page_size != 4096 {
        return Err(damaged(file, "its page size is not 4096"));
    }
    Ok(())
}

/// The number of the next event, above that of every row there is: a lower one, from a flipped bit,
/// would break each append, at each start anew.
pub(super) fn free_id(connection: &Connection, noted: i64) -> rusqlite::Result<i64> {
    let sql = "SELECT max(ifnull((SELECT max(id) FROM event), 0),
                          ifnull((SELECT max(id) FROM payload), 0))";
    let last: i64 = connection.query_row(sql, [], |row| row.get(0))?;
    if last > LAST_ID {
        return Err(lease::damaged("an event's number cannot be one"));
    }
    Ok(if noted > LAST_ID {
        last + 1
    } else {
        noted.max(last + 1)
    })
}

/// A text as it is shown: one with a flipped bit may be no UTF-8.
pub(super) fn text(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<String>> {
    Ok(match row.get_ref(column)? {
        ValueRef::Text(text) => Some(String::from_utf8_lossy(text).into_owned()),
        ValueRef::Null | ValueRef::Integer(_) | ValueRef::Real(_) | ValueRef::Blob(_) => None,
    })
}

fn damaged(file: &Path, found: &str) -> OpenError {
    OpenError::Damaged {
        file: file.to_owned(),
        found: found.to_owned(),
    }
}

fn refused(file: &Path, setting: &str) -> OpenError {
    OpenError::Sqlite {
        file: file.to_owned(),
        said: format!(
            "SQLite did not take {setting}, without which what is acknowledged may be lost"
        ),
    }
}

/// What SQLite said on the way to an open store.
pub(super) fn said(file: &Path, error: &rusqlite::Error) -> OpenError {
    // An error that is not SQLite's is a value that cannot be.
    let is_damage = matches!(
        error.sqlite_error_code(),
        None | Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
    );
    if is_damage {
        damaged(file, &error.to_string())
    } else {
        OpenError::Sqlite {
            file: file.to_owned(),
            said: error.to_string(),
        }
    }
}
