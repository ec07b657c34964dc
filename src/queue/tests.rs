//! The queue as its callers see it, on real files.

mod damage;
mod events;
mod hardship;
mod model;
mod operations;
mod wal;

use std::{
    fs,
    ops::Deref,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;

use super::*;
use crate::dedup::KeyReuse;

pub(super) const HOUR: Duration = Duration::from_secs(3600);
pub(super) const MIB: u64 = 1024 * 1024;

/// A directory of its own for each test, gone with it.
pub(super) struct Dir(PathBuf);

impl Dir {
    pub(super) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("hookward-queue-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let _ = fs::remove_dir_all(&path);
        Self(path)
    }

    /// What is left of a directory when the process that uses it is killed now.
    pub(super) fn as_after_a_kill(&self) -> Self {
        let copy = Self::new();
        fs::create_dir(&copy.0).unwrap();
        for file in fs::read_dir(&self.0).unwrap() {
            let file = file.unwrap();
            // The log's index lives in memory shared by processes.
            if !file.file_name().to_str().unwrap().ends_with("-shm") {
                fs::copy(file.path(), copy.0.join(file.file_name())).unwrap();
            }
        }
        copy
    }

    pub(super) fn store(&self) -> PathBuf {
        self.0.join("queue.sqlite3")
    }
}

impl Deref for Dir {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub(super) fn start() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

pub(super) fn options(wall_clock: SystemTime) -> Options {
    Options {
        places: 100,
        wall_clock,
        observer: Observer::default(),
    }
}

pub(super) fn open(dir: &Path) -> Queue {
    Queue::open(dir, options(start())).unwrap()
}

pub(super) fn name(text: &str) -> EndpointName {
    EndpointName::new(text).unwrap()
}

pub(super) const LIMITS: Limits = Limits {
    pending_bytes: 64 * MIB,
    stored_bytes: 64 * MIB,
    keep_delivered: Duration::from_secs(24 * 3600),
    keep_dead: Duration::from_secs(30 * 24 * 3600),
    quarantine_bytes: MIB,
};

impl Queue {
    pub(super) fn crm(&self) -> Endpoint {
        self.endpoint(&name("crm"), Some(LIMITS))
    }

    /// Lets the store's time pass.
    pub(super) fn advance(&self, by: Duration) {
        self.shared.clock.advance(by);
    }

    /// Waits for what nobody waited for, such as leases handed back: it is done in turn.
    pub(super) async fn written(&self) {
        let crm = self.endpoint(&name("crm"), None);
        let _ = crm.forget(Key([255; 16])).await;
    }

    pub(super) async fn states(&self) -> Vec<(u128, State)> {
        self.written().await;
        let page = self.list(&Filter::default(), Cursor::default(), 1000).await;
        let events = page.unwrap().events.into_iter();
        events.map(|e| (e.id.as_u128(), e.state)).collect()
    }

    pub(super) async fn stats_of(&self, endpoint: &str) -> Stats {
        self.written().await;
        let all = self.stats().await.unwrap();
        let mut of = all.into_iter().filter(|s| s.endpoint == name(endpoint));
        of.next().expect("the endpoint has held something")
    }
}

impl Endpoint {
    pub(super) async fn append(&self, event: NewEvent) -> Result<Appended, AppendError> {
        self.place(0).unwrap().append(event).await
    }

    /// Appends an event that must be new.
    pub(super) async fn queue(&self, event: NewEvent) {
        let appended = self.append(event).await.unwrap();
        assert!(matches!(appended, Appended::Queued { .. }));
    }

    pub(super) async fn lease_one(&self) -> Lease {
        let mut leases = self.lease(1).await.unwrap().leases;
        leases.pop().expect("an event is due")
    }

    pub(super) async fn lease_ids(&self) -> Vec<u128> {
        let leases = self.lease(1000).await.unwrap().leases;
        let ids = leases.iter().map(|l| l.id().as_u128()).collect();
        for lease in leases {
            lease.hand_back(None);
        }
        ids
    }
}

pub(super) fn record_of(id: u128) -> Bytes {
    format!("record {id}").into()
}

pub(super) fn event(id: u128) -> NewEvent {
    NewEvent {
        id: Uuid::from_u128(id),
        key: None,
        event_type: Some("message.created".to_owned()),
        lane: None,
        record: record_of(id),
        quarantined: None,
    }
}

pub(super) fn keyed(key: u8, body: u64, key_reuse: KeyReuse) -> Option<Keyed> {
    Some(Keyed {
        key: Key([key; 16]),
        body: Some(Fingerprint(body)),
        window: HOUR / 2,
        key_reuse,
    })
}

pub(super) fn in_lane(id: u128, lane: &'static str) -> NewEvent {
    NewEvent {
        lane: Some(lane.into()),
        ..event(id)
    }
}

pub(super) fn retry(after: Duration) -> Settled {
    Settled::Retry {
        after,
        status: Some(503),
        error: "the upstream answered 503".to_owned(),
    }
}

pub(super) fn dead() -> Settled {
    Settled::Dead {
        status: Some(410),
        error: "the upstream answered 410".to_owned(),
    }
}

pub(super) const DELIVERED: Settled = Settled::Delivered { status: 200 };

/// Waits until one of the store's threads has done its part, looking again and again.
pub(super) async fn eventually(mut is_so: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(60), wait).await;
    waited.expect("it happens before a hang is likelier");
}

/// Runs a test's future on a runtime like the ones of the gate.
pub(super) fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build();
    runtime.unwrap().block_on(test)
}
