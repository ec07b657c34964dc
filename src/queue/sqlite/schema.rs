//! What the store's file holds, how it is made, known again, and checked.

use std::{fs, io::Read as _, os::unix::fs::OpenOptionsExt as _, path::Path};

use rusqlite::Connection;

use super::{Role, damaged, said, set_up};
use crate::queue::fault::OpenError;

/// Marks the file as ours (`PRAGMA application_id`): "hkwd".
const APPLICATION_ID: i64 = 0x686b_7764;
/// The schema's version (`PRAGMA user_version`).
const VERSION: i64 = 1;

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

/// Looks at a file's first bytes before SQLite does, which may write: what is not ours is left as it
/// is. Places and numbers are those of SQLite's file format, §1.3.
pub(super) fn expect_ours(file: &Path) -> Result<(), OpenError> {
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
pub(super) fn create(file: &Path) -> Result<(), OpenError> {
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

pub(super) fn is_ours(connection: &Connection, file: &Path) -> Result<(), OpenError> {
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
pub(super) fn check(connection: &Connection, file: &Path) -> Result<(), OpenError> {
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
