//! What can go wrong with files, and which of it heals.

use std::{fmt, io, path::PathBuf};

use rusqlite::ffi;

use super::directory::DataDir;

/// The disk takes nothing at the moment; what was not acknowledged was rolled back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StorageFault {
    /// No space, or no quota, is left.
    DiskFull,
    /// Another program holds the store's write lock.
    Held,
    /// The file system is read-only.
    ReadOnly,
}

impl fmt::Display for StorageFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DiskFull => "no space is left on its disk",
            Self::Held => "another program holds its write lock",
            Self::ReadOnly => "its file system is read-only",
        })
    }
}

impl StorageFault {
    /// What an operator can do about it.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::DiskFull => "free space there, or a quota; it heals by itself",
            Self::Held => "end what else has the store's file open; it heals by itself",
            Self::ReadOnly => {
                "mount it writable; a disk that fails turns read-only: see the kernel's log"
            }
        }
    }
}

/// Why nothing is acknowledged any more: the process has to end with 1, and the next start checks
/// the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// What SQLite or the system said; holds no data.
    pub cause: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the queue's store is broken: {}; look after its disk (the kernel's log), then start \
             again: the start checks the store",
            self.cause
        )
    }
}

impl std::error::Error for Broken {}

/// The bits of an extended result code that say its kind.
const PRIMARY: i32 = 0xff;

/// What an error of SQLite means for what comes after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Nothing may be acknowledged any more.
    Broken(Broken),
    /// It was rolled back cleanly and may work later.
    Storage(StorageFault),
}

impl Fault {
    /// Tells by SQLite's extended code; where that folds several reasons into one, by asking the
    /// system.
    ///
    /// After a failed fsync the kernel may have thrown away what it could not write and report
    /// success the next time, so that only a write that failed before any sync can heal.
    pub(super) fn of(error: &rusqlite::Error, dir: &DataDir) -> Self {
        let broken = Self::Broken(Broken {
            cause: error.to_string(),
        });
        let Some(sqlite) = error.sqlite_error() else {
            return broken;
        };
        match sqlite.extended_code {
            ffi::SQLITE_IOERR_WRITE
            | ffi::SQLITE_IOERR_TRUNCATE
            | ffi::SQLITE_IOERR_SHMOPEN
            | ffi::SQLITE_IOERR_SHMSIZE
            | ffi::SQLITE_IOERR_SHMMAP => dir.why_unwritable().map_or(broken, Self::Storage),
            extended => match extended & PRIMARY {
                ffi::SQLITE_FULL => Self::Storage(StorageFault::DiskFull),
                ffi::SQLITE_READONLY => Self::Storage(StorageFault::ReadOnly),
                ffi::SQLITE_BUSY | ffi::SQLITE_LOCKED => Self::Storage(StorageFault::Held),
                ffi::SQLITE_CANTOPEN => dir.why_unwritable().map_or(broken, Self::Storage),
                _ => broken,
            },
        }
    }
}

/// Why a store cannot be opened. Nothing in it was changed.
#[derive(Debug)]
pub enum OpenError {
    /// The file is damaged, or not a store of ours.
    Damaged {
        /// Which file.
        file: PathBuf,
        /// What was found.
        found: String,
    },
    /// A file or directory could not be used.
    Io {
        /// Which.
        path: PathBuf,
        /// How.
        error: io::Error,
    },
    /// Another process uses the directory.
    Locked {
        /// The directory.
        dir: PathBuf,
        /// The process that left its number in it.
        pid: Option<u32>,
    },
    /// The file was written by a newer hookward.
    Newer {
        /// Which file.
        file: PathBuf,
        /// Its version.
        version: i64,
    },
    /// SQLite did not take a setting that durability rests on, or could not be used otherwise.
    Sqlite {
        /// Which file.
        file: PathBuf,
        /// What it said.
        said: String,
    },
    /// The directory is on a file system that does not keep what was synced, or locks badly.
    Unsuitable {
        /// The directory.
        dir: PathBuf,
        /// Which file system.
        file_system: &'static str,
    },
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Damaged { file, found } => write!(
                f,
                "{}: damaged ({found}); nothing was changed: copy the directory, then restore a backup \
                 (`hookward queue backup` makes them), or save what can be read with `sqlite3 {} .recover`, \
                 or move the file away to begin with an empty queue",
                file.display(),
                file.display()
            ),
            Self::Io { path, error } => write!(
                f,
                "{}: {error}; the directory must exist or be creatable, and be writable by this user",
                path.display()
            ),
            Self::Locked { dir, pid } => {
                write!(f, "{}: in use by another hookward", dir.display())?;
                if let Some(pid) = pid {
                    write!(f, " (process {pid})")?;
                }
                f.write_str("; stop it, or give each its own data_dir")
            }
            Self::Newer { file, version } => write!(
                f,
                "{}: written by a newer hookward (store version {version}); start that version, \
                 or give this one another data_dir",
                file.display()
            ),
            Self::Sqlite { file, said } => write!(
                f,
                "{}: {said}; is its disk full, read-only or failing, or another program at it?",
                file.display()
            ),
            Self::Unsuitable { dir, file_system } => write!(
                f,
                "{}: {file_system} does not keep or lock files reliably enough for a queue; \
                 put data_dir on a local disk or a volume",
                dir.display()
            ),
        }
    }
}

impl std::error::Error for OpenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { error, .. } => Some(error),
            Self::Damaged { .. }
            | Self::Locked { .. }
            | Self::Newer { .. }
            | Self::Sqlite { .. }
            | Self::Unsuitable { .. } => None,
        }
    }
}
