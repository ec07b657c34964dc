//! Noticing that a watched file changed, when it has settled.

use std::{
    collections::BTreeMap, fs, os::unix::fs::MetadataExt as _, path::PathBuf, time::Duration,
};

/// How often the files are looked at. A poll follows symbolic links, so that Kubernetes' swap of
/// `..data` is seen, and works on every file system, which notifications do not.
const POLL: Duration = Duration::from_millis(500);

/// What tells one state of a file from another; `None`: it is not there.
pub(super) type Stamp = Option<(u64, u64, u64, i64, i64)>;

/// The watched files as they were when the configuration was read.
pub(super) struct Watcher {
    seen: BTreeMap<PathBuf, Stamp>,
    /// A state that differs from the one read, seen once.
    pending: Option<BTreeMap<PathBuf, Stamp>>,
}

impl Watcher {
    pub(super) fn new(files: &[PathBuf]) -> Self {
        Self {
            seen: stamps(files.iter()),
            pending: None,
        }
    }

    /// The watched files as they are now.
    pub(super) fn look(&self) -> BTreeMap<PathBuf, Stamp> {
        stamps(self.seen.keys())
    }

    /// Watches these from now on, as they were `seen` or, if they are new, as they are.
    pub(super) fn watch(&mut self, files: &[PathBuf], seen: &BTreeMap<PathBuf, Stamp>) {
        *self = Self::new(files);
        for (path, stamp) in &mut self.seen {
            if let Some(before) = seen.get(path) {
                *stamp = *before;
            }
        }
    }

    /// Watches these too, as they are; whether there was one that nobody had looked at. What a
    /// configuration that was refused names may be all it waits for.
    pub(super) fn watch_also(
        &mut self,
        files: &[PathBuf],
        seen: &mut BTreeMap<PathBuf, Stamp>,
    ) -> bool {
        let new = stamps(files.iter().filter(|path| !seen.contains_key(*path)));
        let is_any = !new.is_empty();
        seen.extend(new);
        self.saw(seen.clone());
        is_any
    }

    /// Notes in which state the files were read: that state is not read again.
    pub(super) fn saw(&mut self, seen: BTreeMap<PathBuf, Stamp>) {
        self.seen = seen;
        self.pending = None;
    }

    /// Resolves when a file has changed and then stood still from one look to the next: a file
    /// that is being written is not read half-way.
    pub(super) async fn changed(&mut self) {
        loop {
            tokio::time::sleep(POLL).await;
            let now = stamps(self.seen.keys());
            if now == self.seen {
                self.pending = None;
            } else if self.pending.as_ref() == Some(&now) {
                self.seen = now;
                self.pending = None;
                return;
            } else {
                self.pending = Some(now);
            }
        }
    }
}

fn stamps<'p>(files: impl Iterator<Item = &'p PathBuf>) -> BTreeMap<PathBuf, Stamp> {
    let stamp = |path: &PathBuf| {
        let data = fs::metadata(path).ok()?;
        Some((
            data.dev(),
            data.ino(),
            data.size(),
            // Also changed by who may read it: a key is often written first, and let be read then.
            data.ctime(),
            data.ctime_nsec(),
        ))
    };
    files.map(|path| (path.clone(), stamp(path))).collect()
}
