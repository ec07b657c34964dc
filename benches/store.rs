//! What the queue's store does: acknowledgements a second with 64 producers, the disk's own syncs
//! beside them, the same while delivery runs, keys by the million, and the start after a kill.
//!
//! `cargo bench --bench store [-- syncs|ingest|delivery|keys|reopen …]`; without a name the first
//! three run. The store lies in `HOOKWARD_BENCH_DIR`, or the system's directory for temporary
//! files. `keys` (5 million, minutes) and `reopen` (1 million events, 1.5 GB) take a number.

#![expect(clippy::print_stdout, reason = "prints its figures")]

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use hookward::{
    dedup::KeyReuse,
    endpoint::EndpointName,
    queue::{
        Appended, Endpoint, Fingerprint, Key, Keyed, Limits, NewEvent, Observer, Options, Queue,
        Settled,
    },
};
use uuid::Uuid;

/// Threads with an event loop each, as the gate has them on this machine, and producers on each.
const THREADS: usize = 2;
const PRODUCERS: usize = 32;
/// Bytes of headers in each record.
const HEADERS: usize = 400;
const RUN: Duration = Duration::from_secs(5);
const LIMITS: Limits = Limits {
    pending_bytes: u64::MAX,
    stored_bytes: u64::MAX,
    keep_delivered: Duration::ZERO,
    keep_dead: Duration::from_secs(24 * 3600),
    quarantine_bytes: 0,
};

fn main() {
    let mut asked: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| a != "--bench")
        .collect();
    let number = asked.iter().find_map(|a| a.parse::<u64>().ok());
    asked.retain(|a| a.parse::<u64>().is_err());
    if let [what, dir] = &asked[..]
        && what == "fill"
    {
        return fill(Path::new(dir), number.unwrap_or(1_000_000));
    }
    let is_asked =
        |name: &str, by_default| asked.iter().any(|a| a == name) || asked.is_empty() && by_default;
    if is_asked("syncs", true) {
        syncs();
    }
    if is_asked("ingest", true) {
        for body in [1024, 16 * 1024] {
            let peak = ingest(body);
            paced(body, peak / 2.0);
        }
    }
    if is_asked("delivery", true) {
        delivery(1024);
    }
    if is_asked("keys", false) {
        keys(number.unwrap_or(5_000_000));
    }
    if is_asked("reopen", false) {
        reopen(number.unwrap_or(1_000_000));
    }
}

/// A directory that is empty, and gone afterwards.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Self {
        let parent =
            std::env::var_os("HOOKWARD_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        let path = parent.join(format!("hookward-store-bench-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("the directory can be made");
        Self(path)
    }

    fn bytes(&self) -> u64 {
        let files = fs::read_dir(&self.0).expect("the directory can be read");
        files
            .flatten()
            .filter_map(|f| f.metadata().ok())
            .map(|m| m.len())
            .sum()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// How long commits took and how many events they held.
#[derive(Default)]
struct Commits {
    count: AtomicU64,
    events: AtomicU64,
    nanos: AtomicU64,
}

fn open(dir: &Path, commits: &Arc<Commits>) -> (Queue, Endpoint) {
    let commits = commits.clone();
    let options = Options {
        places: 4096,
        wall_clock: SystemTime::now(),
        observer: Observer {
            committed: Box::new(move |commit| {
                let nanos = u64::try_from(commit.duration.as_nanos()).unwrap_or(u64::MAX);
                commits.count.fetch_add(1, Ordering::Relaxed);
                commits
                    .events
                    .fetch_add(commit.events as u64, Ordering::Relaxed);
                commits.nanos.fetch_add(nanos, Ordering::Relaxed);
            }),
            ..Observer::default()
        },
    };
    let queue = Queue::open(dir, options).expect("the store opens");
    let name = EndpointName::new("crm").expect("a good name");
    let endpoint = queue.endpoint(&name, Some(LIMITS));
    (queue, endpoint)
}

/// Numbers scattered as a keyed hash scatters keys (SplitMix64).
fn scatter(number: u64) -> u64 {
    let mut z = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

fn event(number: u64, record: Bytes) -> NewEvent {
    let key = u128::from(scatter(number)) << 64 | u128::from(scatter(!number));
    NewEvent {
        id: Uuid::from_u128(u128::from(number) << 64 | 0x7000_8000_0000_0000_0000),
        key: Some(Keyed {
            key: Key(key.to_be_bytes()),
            body: Some(Fingerprint(scatter(number ^ 1 << 63))),
            window: Duration::from_secs(24 * 3600),
            key_reuse: KeyReuse::Duplicate,
        }),
        event_type: Some("message.created".to_owned()),
        lane: None,
        record,
        quarantined: None,
    }
}

/// What the disk does alone: 4 KiB appended and synced, one at a time.
fn syncs() {
    let dir = Dir::new();
    let mut file = fs::File::create(dir.0.join("syncs")).expect("a file can be made");
    let mut took: Vec<Duration> = Vec::new();
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(2) {
        let before = Instant::now();
        file.write_all(&[7; 4096]).expect("the disk takes it");
        file.sync_data().expect("the disk takes it");
        took.push(before.elapsed());
    }
    let rate = took.len() as f64 / began.elapsed().as_secs_f64();
    println!("fdatasync of 4 KiB: {rate:.0}/s, {}", quantiles(&mut took));
}

fn quantiles(took: &mut [Duration]) -> String {
    took.sort_unstable();
    let at = |part: usize| took.get((took.len() * part / 1000).min(took.len().saturating_sub(1)));
    let ms = |d: Option<&Duration>| d.map_or(0.0, |d| d.as_secs_f64() * 1000.0);
    format!(
        "p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms",
        ms(at(500)),
        ms(at(990)),
        ms(took.last())
    )
}

/// Has all producers do something over and over; returns how long each says it took.
fn produce<F: Future<Output = Duration>>(
    end: impl Fn() -> bool + Sync,
    act: impl Fn() -> F + Sync,
) -> Vec<Duration> {
    let all = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_time()
                    .build();
                let producers = (0..PRODUCERS).map(|_| async {
                    let mut took = Vec::new();
                    while !end() {
                        took.push(act().await);
                    }
                    took
                });
                let took = runtime.expect("a runtime").block_on(join_all(producers));
                all.lock()
                    .expect("nobody panics")
                    .extend(took.into_iter().flatten());
            });
        }
    });
    all.into_inner().expect("nobody panics")
}

/// All of them at once on this thread, each woken by itself.
async fn join_all<T>(futures: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    use std::{pin::Pin, task::Poll};
    let mut all: Vec<_> = futures.map(|f| (Box::pin(f), None)).collect();
    std::future::poll_fn(|context| {
        let mut waits = false;
        for (future, done) in &mut all {
            if done.is_none() {
                match Pin::as_mut(future).poll(context) {
                    Poll::Ready(value) => *done = Some(value),
                    Poll::Pending => waits = true,
                }
            }
        }
        if waits {
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    })
    .await;
    all.into_iter().filter_map(|(_, done)| done).collect()
}

async fn append(endpoint: &Endpoint, number: u64, record: &Bytes) -> Duration {
    let before = Instant::now();
    let place = endpoint.place(0).expect("there is room");
    let appended = place.append(event(number, record.clone())).await;
    assert!(
        matches!(appended, Ok(Appended::Queued { .. })),
        "{appended:?}"
    );
    before.elapsed()
}

fn report(what: &str, began: Instant, took: &mut [Duration], commits: &Commits) -> f64 {
    let rate = took.len() as f64 / began.elapsed().as_secs_f64();
    let count = commits.count.load(Ordering::Relaxed).max(1) as f64;
    let batch = commits.events.load(Ordering::Relaxed) as f64 / count;
    let each = commits.nanos.load(Ordering::Relaxed) as f64 / count / 1e6;
    println!(
        "{what}: {rate:.0} acknowledgements/s, {}; {batch:.0} events and {each:.2} ms a commit",
        quantiles(took)
    );
    rate
}

fn ingest(body: usize) -> f64 {
    let (dir, commits) = (Dir::new(), Arc::default());
    let (_queue, endpoint) = open(&dir.0, &commits);
    let record = Bytes::from(vec![0x5a; HEADERS + body]);
    let (next, began) = (AtomicU64::new(1), Instant::now());
    let mut took = produce(
        || began.elapsed() > RUN,
        || append(&endpoint, next.fetch_add(1, Ordering::Relaxed), &record),
    );
    report(&format!("ingest, {body} B"), began, &mut took, &commits)
}

/// Ingest at a rate: each producer begins one append after the other at its times, late or not.
fn paced(body: usize, rate: f64) {
    let (dir, commits) = (Dir::new(), Arc::default());
    let (_queue, endpoint) = open(&dir.0, &commits);
    let record = Bytes::from(vec![0x5a; HEADERS + body]);
    let (next, began) = (AtomicU64::new(1), Instant::now());
    let period = Duration::from_secs_f64((THREADS * PRODUCERS) as f64 / rate);
    let turn = (THREADS * PRODUCERS) as u64;
    let mut took = produce(
        || began.elapsed() > RUN,
        || async {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let took = append(&endpoint, number, &record).await;
            let round = u32::try_from(number / turn).unwrap_or(u32::MAX);
            let offset = period.mul_f64((number % turn) as f64 / turn as f64);
            let at = began + period * round + offset;
            tokio::time::sleep_until((at + period).into()).await;
            took
        },
    );
    report(
        &format!("at {rate:.0}/s, {body} B"),
        began,
        &mut took,
        &commits,
    );
}

/// Ingest while everything is leased and settled as fast as it comes.
fn delivery(body: usize) {
    let (dir, commits) = (Dir::new(), Arc::default());
    let (queue, endpoint) = open(&dir.0, &commits);
    let record = Bytes::from(vec![0x5a; HEADERS + body]);
    let (next, began, is_over) = (AtomicU64::new(1), Instant::now(), AtomicBool::new(false));
    let delivered = std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .build();
            runtime
                .expect("a runtime")
                .block_on(deliver(&endpoint, &is_over))
        });
        let mut took = produce(
            || began.elapsed() > RUN,
            || append(&endpoint, next.fetch_add(1, Ordering::Relaxed), &record),
        );
        report(
            &format!("ingest beside delivery, {body} B"),
            began,
            &mut took,
            &commits,
        );
        is_over.store(true, Ordering::Relaxed);
        worker.join().expect("the worker does not panic")
    });
    let rate = delivered as f64 / began.elapsed().as_secs_f64();
    println!("  delivered meanwhile: {rate:.0}/s");
    drop(queue);
}

async fn deliver(endpoint: &Endpoint, is_over: &AtomicBool) -> u64 {
    let mut delivered = 0;
    while !is_over.load(Ordering::Relaxed) {
        let leases = endpoint.lease(128).await.expect("the store is fine").leases;
        if leases.is_empty() {
            let _ = tokio::time::timeout(Duration::from_millis(10), endpoint.changed()).await;
        }
        delivered += leases.len() as u64;
        let settled = leases
            .into_iter()
            .map(|l| l.settle(Settled::Delivered { status: 200 }));
        for settled in join_all(settled).await {
            settled.expect("the store is fine");
        }
    }
    delivered
}

fn keys(count: u64) {
    let (dir, commits) = (Dir::new(), Arc::default());
    let (queue, endpoint) = open(&dir.0, &commits);
    let before = resident_bytes();
    let (next, began) = (AtomicU64::new(1), Instant::now());
    let window = Duration::from_secs(24 * 3600);
    // A thousand at a time, so that the figures of each do not count as the store's memory.
    let thousand = async || {
        let began = Instant::now();
        for _ in 0..1000 {
            let key = event(next.fetch_add(1, Ordering::Relaxed), Bytes::new()).key;
            let Keyed { key, body, .. } = key.expect("it has one");
            let remembered = endpoint.remember(key, body, window).await;
            remembered.expect("the store is fine");
        }
        began.elapsed()
    };
    produce(|| next.load(Ordering::Relaxed) > count, thousand);
    let (took, remembered) = (began.elapsed(), next.load(Ordering::Relaxed) - 1);
    let memory = resident_bytes().saturating_sub(before);
    drop((queue, endpoint));
    println!(
        "{remembered} remembered keys: {:.0}/s, {} MiB of disk, {} MiB of memory",
        remembered as f64 / took.as_secs_f64(),
        dir.bytes() >> 20,
        memory >> 20
    );
}

/// Has a process fill a store, kills it, and opens what it left.
fn reopen(count: u64) {
    let dir = Dir::new();
    let program = std::env::current_exe().expect("this program has a path");
    let child = Command::new(program)
        .arg("fill")
        .arg(&dir.0)
        .arg(count.to_string())
        .stdout(Stdio::piped())
        .spawn();
    let mut child = child.expect("this program runs");
    let mut said = String::new();
    let stdout = child.stdout.take().expect("it is piped");
    let _ = BufReader::new(stdout).read_line(&mut said);
    child.kill().expect("it runs");
    let _ = child.wait();

    let began = Instant::now();
    let (queue, endpoint) = open(&dir.0, &Arc::default());
    let opened = began.elapsed();
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let leased = runtime.expect("a runtime").block_on(async {
        let leases = endpoint.lease(10).await.expect("the store is fine").leases;
        let stats = queue.stats().await.expect("the store is fine");
        let held: u64 = stats.iter().map(|s| s.pending + s.leased).sum();
        assert!(
            held >= count,
            "{held} of {count} acknowledged events are there"
        );
        leases.len()
    });
    println!(
        "start with {count} pending after a kill: open {opened:.2?}, first {leased} leased {:.2?}; {} MiB of disk",
        began.elapsed(),
        dir.bytes() >> 20
    );
}

fn fill(dir: &Path, count: u64) {
    let (_queue, endpoint) = open(dir, &Arc::default());
    let record = Bytes::from(vec![0x5a; HEADERS + 1024]);
    let (next, is_told) = (AtomicU64::new(1), AtomicBool::new(false));
    produce(
        || false,
        || async {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let took = append(&endpoint, number, &record).await;
            // All before it are acknowledged, or are about to be.
            if number > count + 1000 && !is_told.swap(true, Ordering::Relaxed) {
                println!("filled");
            }
            took
        },
    );
}

fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = status
        .split_whitespace()
        .nth(1)
        .and_then(|n| n.parse().ok())
        .unwrap_or(0);
    pages * 4096
}
