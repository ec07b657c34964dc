//! The data directory: made, checked, locked, and marked when its store must be checked.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use rustix::fs::{FlockOperation, flock, fstatfs};

use super::fault::{OpenError, StorageFault};

/// The store's file in the directory.
const STORE: &str = "queue.sqlite3";
/// The store's log beside it.
const LOG: &str = "queue.sqlite3-wal";
/// The lock's file; its content is one [`note`].
const LOCK: &str = "LOCK";
/// File systems that cannot hold a queue, by the kernel's magic number (`statfs(2)`).
const UNSUITABLE: [(i128, &str); 5] = [
    (0x6969, "NFS"),
    (0x517b, "SMB"),
    (0xff53_4d42, "SMB"),
    (0xfe53_4d42, "SMB"),
    (0x794c_7630, "an overlay (a container's own layer)"),
];

/// A directory that is this process's as long as this lives.
#[derive(Debug)]
pub(super) struct DataDir {
    path: PathBuf,
    lock: Mutex<File>,
    must_check: bool,
}

/// Whether there is a store in a directory, or what is left of one.
pub(super) fn holds_store(dir: &Path) -> bool {
    // Where the log alone is left, opening says what that means.
    [STORE, LOG].iter().any(|name| dir.join(name).exists())
}

/// What others than its owner may do to a data directory that is there, each with the remedy.
///
/// Who may only look into the directory is none: every file that is made in it is its owner's
/// alone, but one that was copied there (a backup, to be restored) may not be.
pub fn exposed(dir: &Path) -> Vec<String> {
    let mode = |path: &Path| fs::metadata(path).map_or(0, |file| file.mode() & 0o777);
    let mut found = Vec::new();
    let bits = mode(dir);
    if bits & 0o022 != 0 {
        let dir = dir.display();
        found.push(format!(
            "{dir} can be written by others than its owner (mode {bits:04o}), who can so remove or \
             replace events: chmod go-w {dir}, or name a directory in it that does not exist, \
             which is made for its owner alone"
        ));
    }
    for name in [STORE, LOG] {
        let file = dir.join(name);
        let bits = mode(&file);
        if bits & 0o077 != 0 {
            let file = file.display();
            found.push(format!(
                "{file}, which holds headers and bodies, is open to others than its owner (mode \
                 {bits:04o}): chmod 600 {file}"
            ));
        }
    }
    found
}

/// A file's device and inode.
type Identity = (u64, u64);

/// Files as they were when the store was opened.
pub(super) struct Files(Vec<(PathBuf, Identity)>);

fn identity_of(file: &fs::Metadata) -> Identity {
    (file.dev(), file.ino())
}

impl DataDir {
    /// Makes the directory if there is none (mode 0700) and locks it.
    pub(super) fn open(path: &Path) -> Result<Self, OpenError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |error: io::Error| OpenError::Io { path, error }
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(at(path))?;
        let dir = File::open(path).map_err(at(path))?;
        let kind = fstatfs(&dir).map_err(|e| at(path)(e.into()))?.f_type;
        if let Some((_, file_system)) = UNSUITABLE.iter().find(|(n, _)| *n == i128::from(kind)) {
            return Err(OpenError::Unsuitable {
                dir: path.to_owned(),
                file_system,
            });
        }

        let lock_path = path.join(LOCK);
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .map_err(at(&lock_path))?;
        let mut text = String::new();
        // Another program's bytes in it are as good as none.
        let _ = lock.read_to_string(&mut text);
        let mut words = text.split_whitespace();
        let (check, pid) = (words.next(), words.next());
        if let Err(error) = flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            if error != rustix::io::Errno::WOULDBLOCK {
                return Err(at(&lock_path)(error.into()));
            }
            return Err(OpenError::Locked {
                dir: path.to_owned(),
                pid: pid.and_then(|pid| pid.parse().ok()),
            });
        }
        let data_dir = Self {
            path: path.to_owned(),
            must_check: check == Some("check"),
            lock: Mutex::new(lock),
        };
        data_dir.note(data_dir.must_check).map_err(at(&lock_path))?;
        dir.sync_all().map_err(at(path))?;
        Ok(data_dir)
    }

    /// The store's file.
    pub(super) fn store(&self) -> PathBuf {
        self.path.join(STORE)
    }

    /// Whether the last run ended in a way that calls for a check of the store.
    pub(super) fn must_check(&self) -> bool {
        self.must_check
    }

    /// Notes whether the next start must check the store. The file keeps its size, so that this
    /// works on a full disk.
    pub(super) fn note(&self, must_check: bool) -> io::Result<()> {
        let mut lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let word = if must_check { "check" } else { "fine " };
        lock.rewind()?;
        lock.write_all(format!("{word} {:10}\n", std::process::id()).as_bytes())?;
        lock.sync_all()
    }

    /// What of the files in use is gone from the directory, or is another file there: what is
    /// written to such a one, no later start finds.
    pub(super) fn missing(&self, files: &Files) -> Option<PathBuf> {
        let is_there = |(path, identity): &&(PathBuf, Identity)| {
            fs::metadata(path).is_ok_and(|there| identity_of(&there) == *identity)
        };
        let missing = files.0.iter().find(|file| !is_there(file));
        missing.map(|(path, _)| path.clone())
    }

    /// The files in use, to be looked for by [`DataDir::missing`]. All of them exist once the store
    /// is open; SQLite makes none of them anew while it is.
    pub(super) fn files(&self) -> io::Result<Files> {
        let names = [LOCK, STORE, LOG, "queue.sqlite3-shm"];
        let files = names.map(|name| {
            let path = self.path.join(name);
            let identity = identity_of(&fs::metadata(&path)?);
            Ok((path, identity))
        });
        Ok(Files(files.into_iter().collect::<io::Result<_>>()?))
    }

    /// Gives the directory free for another; for when nothing can be written through this any more.
    pub(super) fn release(&self) {
        let lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        // At the latest it is given back when the file is closed.
        let _ = flock(&*lock, FlockOperation::Unlock);
    }

    /// Makes new names in the directory last.
    pub(super) fn sync(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }

    /// Why the disk takes nothing, asked of the system by writing: SQLite folds all reasons but
    /// "no space" into one number. `None`: it takes something.
    pub(super) fn why_unwritable(&self) -> Option<StorageFault> {
        let path = self.path.join("probe");
        let write = || -> io::Result<()> {
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&path)?;
            file.write_all(&[0; 64 * 1024])?;
            file.sync_all()
        };
        let written = write();
        // What is left of it is overwritten the next time.
        let _ = fs::remove_file(&path);
        let kind = written.err()?.kind();
        match () {
            () if kind == io::ErrorKind::ReadOnlyFilesystem => Some(StorageFault::ReadOnly),
            () if matches!(
                kind,
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
            ) =>
            {
                Some(StorageFault::DiskFull)
            }
            () => None,
        }
    }
}
