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
pub(super) mod tally;
pub(super) mod tx;

use std::{fs, io::Read as _, os::unix::fs::OpenOptionsExt as _, path::Path};

use rusqlite::{
    Connection, ErrorCode, OpenFlags, OptionalExtension as _, Row, config::DbConfig,
    types::ValueRef, wal::CheckpointMode,
};

use super::{DamagedLog, directory::DataDir, fault::OpenError, wal};

/// Marks the file as ours (`PRAGMA application_id`): "hkwd".
const APPLICATION_ID: i64 = 0x686b_7764;
/// The schema's version (`PRAGMA user_version`).
const VERSION: i64 = 1;
/// Statements kept prepared per connection.
const STATEMENTS: usize = 64;
/// No event has a higher number, however long there are events.
const LAST_ID: i64 = 1 << 62;
/// What a fresh log is cut to, in bytes.
const JOURNAL_SIZE_LIMIT: i64 = 128 * 1024 * 1024;

/// Each statement as `sqlite_schema` gives it back. What is read into a narrower type is checked, so
/// that a check of the store finds every row that cannot be read; text is read whatever its bytes.
const SCHEMA: [&str; 11] = [
    "CREATE TABLE store (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    next_id INTEGER NOT NULL,
    clock INTEGER NOT NULL,
    hash_secret BLOB NOT NULL CHECK (length(hash_secret) = 16)
) STRICT",
    "CREATE TABLE endpoint (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    paused INTEGER NOT NULL DEFAULT 0,
    pending INTEGER NOT NULL DEFAULT 0,
    leased INTEGER NOT NULL DEFAULT 0,
    dead INTEGER NOT NULL DEFAULT 0,
    delivered INTEGER NOT NULL DEFAULT 0,
    quarantined INTEGER NOT NULL DEFAULT 0,
    pending_bytes INTEGER NOT NULL DEFAULT 0,
    leased_bytes INTEGER NOT NULL DEFAULT 0,
    dead_bytes INTEGER NOT NULL DEFAULT 0,
    delivered_bytes INTEGER NOT NULL DEFAULT 0,
    quarantined_bytes INTEGER NOT NULL DEFAULT 0
) STRICT",
    "CREATE TABLE event (
    id INTEGER PRIMARY KEY,
    endpoint INTEGER NOT NULL,
    state INTEGER NOT NULL CHECK (state BETWEEN -1 AND 3),
    at INTEGER NOT NULL,
    attempts INTEGER NOT NULL CHECK (attempts BETWEEN 0 AND 2147483647),
    replayed_after INTEGER NOT NULL DEFAULT 0 CHECK (replayed_after BETWEEN 0 AND 2147483647),
    created INTEGER NOT NULL,
    uuid BLOB NOT NULL CHECK (length(uuid) = 16),
    type TEXT,
    key BLOB CHECK (length(key) = 16),
    lane BLOB CHECK (length(lane) = 16),
    bytes INTEGER NOT NULL,
    last_status INTEGER CHECK (last_status BETWEEN 0 AND 65535),
    last_error TEXT
) STRICT",
    "CREATE INDEX event_state ON event (endpoint, state, at)",
    "CREATE INDEX event_lane ON event (endpoint, lane, state) WHERE lane IS NOT NULL AND state < 2",
    "CREATE INDEX event_uuid ON event (uuid)",
    "CREATE TABLE payload (
    id INTEGER PRIMARY KEY,
    crc INTEGER NOT NULL,
    data BLOB NOT NULL
) STRICT",
    "CREATE TABLE attempt (
    event INTEGER NOT NULL,
    number INTEGER NOT NULL CHECK (number BETWEEN 0 AND 2147483647),
    at INTEGER NOT NULL,
    status INTEGER CHECK (status BETWEEN 0 AND 65535),
    error TEXT NOT NULL,
    PRIMARY KEY (event, number)
) STRICT, WITHOUT ROWID",
    "CREATE TABLE idem (
    endpoint INTEGER NOT NULL,
    key BLOB NOT NULL CHECK (length(key) = 16),
    id INTEGER,
    expires INTEGER NOT NULL,
    body INTEGER,
    PRIMARY KEY (endpoint, key)
) STRICT, WITHOUT ROWID",
    "CREATE TABLE quarantine (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    endpoint INTEGER NOT NULL,
    at INTEGER NOT NULL,
    uuid BLOB NOT NULL CHECK (length(uuid) = 16),
    reason TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    crc INTEGER NOT NULL,
    data BLOB NOT NULL
) STRICT",
    "CREATE INDEX quarantine_endpoint ON quarantine (endpoint, number)",
];

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
    /// Page cache, in KiB. The system's own holds the rest.
    fn cache_kib(self) -> i64 {
        match self {
            Self::Keeper => 1024,
            Self::Reader => 4 * 1024,
            Self::Writer => 24 * 1024,
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

/// Looks at a file's first bytes before SQLite does, which may write: what is not ours is left as it
/// is. Places and numbers are those of SQLite's file format, §1.3.
fn expect_ours(file: &Path) -> Result<(), OpenError> {
    let mut head = [0; 100];
    let read = fs::File::open(file).and_then(|mut file| file.read_exact(&mut head));
    if read.is_err() || !head.starts_with(b"SQLite format 3\0") {
        return Err(damaged(file, "it is no SQLite file"));
    }
    let number = |at: usize| {
        let bytes = head.get(at..at + 4).unwrap_or_default();
        bytes.iter().fold(0, |n, byte| n << 8 | i64::from(*byte))
    };
    expect_identity(file, number(68), number(60))
}

fn expect_identity(file: &Path, application_id: i64, version: i64) -> Result<(), OpenError> {
    if application_id != APPLICATION_ID {
        return Err(damaged(file, "it is not hookward's"));
    }
    if version > VERSION {
        return Err(OpenError::Newer {
            file: file.to_owned(),
            version,
        });
    }
    Ok(())
}

/// Makes an empty store under another name: a crash leaves a whole one or none.
fn create(file: &Path) -> Result<(), OpenError> {
    let failed = |e: rusqlite::Error| said(file, &e);
    let io = |error| OpenError::Io {
        path: file.to_owned(),
        error,
    };
    for suffix in ["new", "new-wal", "new-shm", "new-journal"] {
        match fs::remove_file(file.with_extension(suffix)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io(error)),
            _ => {}
        }
    }
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file)
        .map_err(io)?;
    let connection = Connection::open(file).map_err(failed)?;
    connection
        .pragma_update(None, "page_size", 4096)
        .map_err(failed)?;
    set_up(&connection, file, Role::Writer)?;
    let secret: [u8; 16] = rand::random();
    let schema = SCHEMA.join(";\n");
    connection
        .execute_batch(&format!(
            "BEGIN; {schema}; PRAGMA application_id = {APPLICATION_ID}; \
             PRAGMA user_version = {VERSION}; COMMIT;"
        ))
        .map_err(failed)?;
    connection
        .execute("INSERT INTO store VALUES (1, 1, 0, ?1)", [secret])
        .map_err(failed)?;
    // The last connection's end folds the log into the file.
    connection.close().map_err(|(_, e)| failed(e))?;
    fs::File::open(file)
        .and_then(|file| file.sync_all())
        .map_err(io)
}

fn is_ours(connection: &Connection, file: &Path) -> Result<(), OpenError> {
    let failed = |e: rusqlite::Error| said(file, &e);
    let number = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let (application_id, version) = (
        number("application_id").map_err(failed)?,
        number("user_version").map_err(failed)?,
    );
    expect_identity(file, application_id, version)?;
    let mut statement = connection
        .prepare(
            "SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%' \
             ORDER BY sql",
        )
        .map_err(failed)?;
    let found: Vec<String> = statement
        .query_map([], |row| row.get(0))
        .and_then(Iterator::collect)
        .map_err(failed)?;
    let mut made = SCHEMA;
    made.sort_unstable();
    if version != VERSION || found != made {
        return Err(damaged(file, "its tables are not as they were made"));
    }
    Ok(())
}

/// Looks for everything that would break the store again, and makes anew what can be: indexes, which
/// a check does not compare with their tables, and counts.
fn check(connection: &Connection, file: &Path) -> Result<(), OpenError> {
    let failed = |e: rusqlite::Error| said(file, &e);
    let ask = |sql| {
        connection
            .query_row(sql, [], |row| row.get::<_, String>(0))
            .map_err(failed)
    };
    let found = ask("PRAGMA quick_check(1)")?;
    if found != "ok" {
        return Err(damaged(file, &found));
    }
    let strays = ask(
        "SELECT count(*) || '' FROM (SELECT endpoint FROM event UNION SELECT endpoint FROM quarantine)
         WHERE endpoint NOT IN (SELECT id FROM endpoint)",
    )?;
    if strays != "0" {
        return Err(damaged(file, "events of no endpoint"));
    }
    let recount = RECOUNT.map(|(name, rows)| {
        format!(
            "{name} = (SELECT count(*) FROM {rows}),
             {name}_bytes = (SELECT ifnull(sum(bytes), 0) FROM {rows})"
        )
    });
    let recount = recount.join(", ");
    connection
        .execute_batch(&format!(
            "BEGIN; REINDEX; UPDATE endpoint SET {recount}; {ARRANGE}; COMMIT;"
        ))
        .map_err(failed)
}

/// Lets the first of each lane go of which all wait, for what none can tell any more.
const ARRANGE: &str = "UPDATE event SET state = 0 WHERE state = -1 AND id IN (
    SELECT min(id) FROM event WHERE state < 2 GROUP BY endpoint, ifnull(lane, id)
    HAVING max(state) = -1)";

/// Which rows an endpoint's counts count.
const RECOUNT: [(&str, &str); 5] = [
    (
        "dead",
        "event e WHERE e.endpoint = endpoint.id AND e.state = 3",
    ),
    (
        "delivered",
        "event e WHERE e.endpoint = endpoint.id AND e.state = 2",
    ),
    (
        "leased",
        "event e WHERE e.endpoint = endpoint.id AND e.state = 1",
    ),
    (
        "pending",
        "event e WHERE e.endpoint = endpoint.id AND e.state < 1",
    ),
    ("quarantined", "quarantine q WHERE q.endpoint = endpoint.id"),
];

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
