//! What was acknowledged survives: crashes under load, restarts, an orderly end.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that is surprised has failed"
)]

mod support;

use std::{
    collections::{HashMap, HashSet},
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use support::{Act, BODY, Daemon, HANG, Upstream, event, eventually};

fn send(daemon: &Daemon, key: &str, body: &str) -> support::Reply {
    daemon.sender().send(&event(key, body.as_bytes(), ""))
}

/// An application that counts which keys it got under which ids, and takes its time now and then.
struct Ledger {
    address: SocketAddr,
    /// By key: every event id it came under, with how often.
    got: Arc<Mutex<HashMap<String, HashMap<String, usize>>>>,
}

impl Ledger {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let got: Arc<Mutex<HashMap<String, HashMap<String, usize>>>> = Arc::default();
        let all = got.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let all = all.clone();
                thread::spawn(move || Self::serve(stream, &all));
            }
        });
        Self { address, got }
    }

    fn serve(
        mut stream: TcpStream,
        all: &Mutex<HashMap<String, HashMap<String, usize>>>,
    ) -> Option<()> {
        let (mut buffer, mut chunk) = (Vec::new(), [0; 16 * 1024]);
        loop {
            let end = loop {
                if let Some(end) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                    break end + 4;
                }
                match stream.read(&mut chunk).ok()? {
                    0 => return None,
                    n => buffer.extend_from_slice(&chunk[..n]),
                }
            };
            let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
            let value = |name: &str| {
                let line = head
                    .lines()
                    .find_map(|l| l.strip_prefix(name)?.strip_prefix(": "));
                line.unwrap_or_default().to_owned()
            };
            let length: usize = value("content-length").parse().ok()?;
            while buffer.len() < end + length {
                match stream.read(&mut chunk).ok()? {
                    0 => return None,
                    n => buffer.extend_from_slice(&chunk[..n]),
                }
            }
            buffer.drain(..end + length);
            *all.lock()
                .unwrap()
                .entry(value("idempotency-key"))
                .or_default()
                .entry(value("hookward-event-id"))
                .or_default() += 1;
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").ok()?;
        }
    }
}

/// Sends events under fresh keys until told to stop or the other side is gone; what was
/// acknowledged, with its id.
fn load(
    address: SocketAddr,
    name: &str,
    next: &AtomicUsize,
    stop: &AtomicBool,
) -> Vec<(String, String)> {
    let mut acknowledged = Vec::new();
    let Ok(mut stream) = TcpStream::connect(address) else {
        return acknowledged;
    };
    stream.set_read_timeout(Some(HANG)).unwrap();
    while !stop.load(Ordering::Relaxed) {
        let key = format!("{name}-{}", next.fetch_add(1, Ordering::Relaxed));
        if stream.write_all(&event(&key, BODY.as_bytes(), "")).is_err() {
            break;
        }
        let Some((status, id)) = answer(&mut stream) else {
            break;
        };
        assert_eq!(status, "200");
        acknowledged.push((key, id));
    }
    acknowledged
}

/// One whole answer's status and event id.
fn answer(stream: &mut TcpStream) -> Option<(String, String)> {
    let (mut buffer, mut chunk) = (Vec::new(), [0; 4096]);
    loop {
        let text = String::from_utf8_lossy(&buffer).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let value = |name: &str| {
                head.lines()
                    .find_map(|l| l.strip_prefix(name)?.strip_prefix(": "))
                    .map(str::to_owned)
            };
            let length: usize = value("content-length")?.parse().ok()?;
            if body.len() >= length {
                return Some((head.get(9..12)?.to_owned(), value("hookward-event-id")?));
            }
        }
        match stream.read(&mut chunk) {
            Ok(0) | Err(_) => return None,
            Ok(n) => buffer.extend_from_slice(&chunk[..n]),
        }
    }
}

/// Kills it under load again and again; every acknowledged event has to reach the upstream under
/// the id it was acknowledged with, more than once only if it was in flight at a kill.
fn survives(rounds: usize, senders: usize, under_load: Duration) {
    const PLACES: usize = 16;
    let ledger = Ledger::new();
    let url = format!("http://{}/in", ledger.address);
    let more = format!(
        "[endpoints.crm.upstream_options]\nmax_concurrency = {PLACES}\n\
         [endpoints.crm.queue]\nretry = [\"20ms\", \"20ms\", \"20ms\", \"20ms\", \"20ms\", \"20ms\"]\n"
    );
    let mut setup = Daemon::queue(&url, &more);
    let next = AtomicUsize::new(0);
    let mut acknowledged: Vec<(String, String)> = Vec::new();
    for round in 0..rounds {
        let daemon = setup.start();
        let stop = AtomicBool::new(false);
        let name = format!("r{round}");
        setup = thread::scope(|scope| {
            let (name, next, stop, address) = (&name, &next, &stop, daemon.public);
            let loads: Vec<_> = (0..senders)
                .map(|_| scope.spawn(move || load(address, name, next, stop)))
                .collect();
            // How long the load lasts; the kill comes at another moment each round.
            thread::sleep(under_load + under_load * u32::try_from(round % 7).unwrap() / 7);
            let setup = daemon.end(Signal::KILL);
            stop.store(true, Ordering::Relaxed);
            for load in loads {
                acknowledged.extend(load.join().unwrap());
            }
            setup
        });
    }
    assert!(
        acknowledged.len() > rounds * senders,
        "{}",
        acknowledged.len()
    );
    let daemon = setup.start();
    let pending = [("endpoint", "crm"), ("state", "pending")];
    let mut left = f64::MAX;
    while left > 0.0 {
        let before = left;
        eventually("some of what is left is delivered", || {
            left = daemon.metric("hookward_queue_events", &pending);
            left < before
        });
    }
    let got = ledger.got.lock().unwrap();
    let mut again = 0;
    for (key, id) in &acknowledged {
        let ids = got.get(key).unwrap_or_else(|| panic!("{key} is lost"));
        let ids: Vec<_> = ids.keys().collect();
        assert_eq!(ids, [id], "{key}");
    }
    for (key, ids) in got.iter() {
        assert_eq!(ids.len(), 1, "{key} came under {ids:?}");
        again += ids.values().sum::<usize>() - 1;
    }
    // At a kill at most so many attempts were under way, or ended and not yet on disk.
    let limit = rounds * (PLACES + 64);
    assert!(again <= limit, "{again} attempts were repeated");
}

#[test]
fn every_acknowledged_event_survives_thirty_kills_under_load() {
    survives(30, 8, Duration::from_millis(60));
}

#[test]
#[ignore = "takes minutes: cargo test --test queue_recovery -- --ignored"]
fn every_acknowledged_event_survives_three_hundred_kills_under_load() {
    survives(300, 32, Duration::from_millis(300));
}

#[test]
fn a_restart_knows_the_keys_of_queued_and_of_relayed_events() {
    for mode in ["queue", "relay"] {
        for signal in [Signal::TERM, Signal::KILL] {
            let upstream = Upstream::new(Act::status(200));
            let setup = Daemon::relay(&upstream.url(), &format!("mode = \"{mode}\"")).on_disk();
            let daemon = setup.start();
            let first = send(&daemon, "k", BODY);
            assert_eq!(first.status, 200);
            assert_eq!(upstream.next_message().value("idempotency-key"), "k");
            // Its delivery is on disk: else a crash repeats it.
            let pending = [("endpoint", "crm"), ("state", "pending")];
            eventually("it is delivered", || {
                daemon.metric("hookward_queue_events", &pending) == 0.0
            });
            let daemon = daemon.end(signal).start();
            assert_eq!(send(&daemon, "k", BODY).outcome(), "duplicate", "{mode}");
            assert_ne!(send(&daemon, "other", BODY).outcome(), "duplicate");
            assert_eq!(upstream.next_message().value("idempotency-key"), "other");
        }
    }
}

#[test]
fn a_relayed_event_that_failed_is_not_remembered() {
    let upstream = Upstream::new(Act::status(200));
    upstream.then([Act::status(500)]);
    let daemon = Daemon::relay(&upstream.url(), "").on_disk().start();
    assert_eq!(send(&daemon, "k", BODY).status, 500);
    let daemon = daemon.end(Signal::TERM).start();
    assert_eq!(send(&daemon, "k", BODY).outcome(), "forwarded");
}

#[test]
fn a_window_ends_on_disk_too() {
    let upstream = Upstream::new(Act::status(200));
    for mode in ["queue", "relay"] {
        let more = format!("mode = \"{mode}\"\ndedup = {{ window = \"1s\" }}");
        let daemon = Daemon::relay(&upstream.url(), &more).on_disk().start();
        let first = send(&daemon, "k", BODY).outcome().to_owned();
        let daemon = daemon.end(Signal::TERM).start();
        eventually("the key is free again", || {
            send(&daemon, "k", BODY).outcome() == first
        });
    }
}

#[test]
fn attempts_go_on_counting_after_a_crash() {
    let upstream = Upstream::new(Act::status(500));
    let retry = "[endpoints.crm.queue]\nretry = [\"300ms\", \"300ms\", \"300ms\", \"300ms\"]\n";
    let daemon = Daemon::queue(&upstream.url(), retry).start();
    let id = send(&daemon, "k", BODY);
    let id = id.header("hookward-event-id").unwrap();
    assert_eq!(upstream.next_message().value("hookward-attempt"), "1");
    let labels = [("endpoint", "crm"), ("result", "retry")];
    eventually("its end is noted", || {
        daemon.metric("hookward_deliveries_total", &labels) == 1.0
    });
    let _daemon = daemon.end(Signal::KILL).start();
    let again = upstream.next_message();
    assert_eq!(again.value("hookward-event-id"), id);
    let attempt: u32 = again.value("hookward-attempt").parse().unwrap();
    assert!(attempt >= 2, "{attempt}");
}

#[test]
fn an_attempt_under_way_at_a_crash_is_made_again() {
    let upstream = Upstream::new(Act::status(200));
    upstream.then([Act::Hang]);
    let daemon = Daemon::queue(&upstream.url(), "").start();
    send(&daemon, "k", BODY);
    assert_eq!(upstream.next_message().value("hookward-attempt"), "1");
    let _daemon = daemon.end(Signal::KILL).start();
    assert_eq!(upstream.next_message().value("hookward-attempt"), "2");
}

#[test]
fn at_the_end_attempts_under_way_finish_and_the_rest_stays() {
    const EVENTS: usize = 20;
    let answer = b"HTTP/1.1 200 X\r\nContent-Length: 0\r\n\r\n".to_vec();
    let upstream = Upstream::new(Act::Wait(answer));
    let more = "[endpoints.crm.upstream_options]\nmax_concurrency = 1\n";
    let mut daemon = Daemon::queue(&upstream.url(), more).start();
    for number in 0..EVENTS {
        assert_eq!(send(&daemon, &number.to_string(), BODY).outcome(), "queued");
    }
    upstream.next_message();
    daemon.signal(Signal::TERM);
    daemon.wait_for_log("\"stopping\"");
    // One attempt is under way; another may begin before the word is everywhere.
    (0..EVENTS).for_each(|_| upstream.release());
    assert!(daemon.wait().success());
    let before = upstream.count();
    assert!(before < EVENTS, "{before} attempts");
    let daemon = daemon.end_of_it().start();
    let rest: HashSet<_> = (1..EVENTS)
        .map(|_| {
            let message = upstream.next_message();
            assert_eq!(message.value("hookward-attempt"), "1");
            message.value("idempotency-key").to_owned()
        })
        .collect();
    assert_eq!(rest.len(), EVENTS - 1);
    let pending = [("endpoint", "crm"), ("state", "pending")];
    eventually("nothing is left", || {
        daemon.metric("hookward_queue_events", &pending) == 0.0
    });
    assert_eq!(upstream.count(), EVENTS);
}

#[test]
fn the_end_does_not_wait_for_an_upstream_beyond_its_grace() {
    let upstream = Upstream::new(Act::Hang);
    let setup = Daemon::queue(&upstream.url(), "").env("HOOKWARD_SHUTDOWN_GRACE", "300ms");
    let mut daemon = setup.start();
    send(&daemon, "k", BODY);
    upstream.next_message();
    let began = Instant::now();
    daemon.signal(Signal::TERM);
    assert!(daemon.wait().success());
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "{:?}",
        began.elapsed()
    );
    upstream.by_default(Act::status(200));
    let _daemon = daemon.end_of_it().start();
    assert_eq!(upstream.next_message().value("hookward-attempt"), "2");
}

#[test]
fn an_endpoint_that_is_taken_out_keeps_its_events_for_when_it_is_back() {
    let upstream = Upstream::new(Act::status(503));
    let later =
        "mode = \"queue\"\n[endpoints.crm.queue]\nretry = [\"3s\", \"3s\", \"3s\", \"3s\"]\n";
    let other = Daemon::endpoint("other", "/other", &upstream.url(), "");
    let crm = Daemon::endpoint("crm", "/hook", &upstream.url(), later);
    let daemon = Daemon::with("", &format!("{other}{crm}")).on_disk().start();
    assert_eq!(send(&daemon, "k", BODY).outcome(), "queued");
    upstream.next_message();
    let config = daemon.dir.0.join("hookward.toml");
    let whole = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, whole.replace(&crm, "")).unwrap();
    daemon.wait_for_log("configuration reloaded");
    assert_eq!(send(&daemon, "k", BODY).status, 404);
    let count = upstream.count();
    upstream.by_default(Act::status(200));
    std::fs::write(&config, whole).unwrap();
    eventually("it is delivered when the endpoint is back", || {
        upstream.count() > count
    });
}

#[test]
fn what_is_no_store_of_ours_stops_the_start_and_is_left_alone() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::queue(&upstream.url(), "").start();
    let place = daemon.data_dir();
    assert_eq!(send(&daemon, "k", BODY).outcome(), "queued");
    upstream.next_message();
    let setup = daemon.end(Signal::TERM);
    let store = place.join("queue.sqlite3");
    let good = std::fs::read(&store).unwrap();
    let newer = {
        // The file's user version: four bytes at offset 60 of its header.
        let mut bytes = good.clone();
        bytes[60..64].copy_from_slice(&9999_u32.to_be_bytes());
        bytes
    };
    let garbage = b"this is not a database, but somebody's notes about one".repeat(400);
    for (bytes, part) in [
        (garbage, "damaged"),
        (good[..good.len() / 2].to_vec(), "damaged"),
        (newer, "newer hookward"),
    ] {
        std::fs::write(&store, &bytes).unwrap();
        let (code, said) = setup.refuse();
        assert_eq!(code, 1, "{said}");
        let last = said.lines().last().unwrap();
        assert!(
            last.contains(part) && last.contains("queue.sqlite3"),
            "{said}"
        );
        assert_eq!(std::fs::read(&store).unwrap(), bytes, "it was changed");
    }
    std::fs::write(&store, &good).unwrap();
    let daemon = setup.start();
    assert_eq!(send(&daemon, "k", BODY).outcome(), "duplicate");
}

#[test]
fn a_body_under_another_key_is_known_after_a_restart() {
    let upstream = Upstream::new(Act::status(200));
    for mode in ["mode = \"queue\"\n", ""] {
        for (replay, status) in [("reject", 422), ("flag", 200)] {
            let more = format!("{mode}dedup = {{ replay = \"{replay}\" }}\n");
            let daemon = Daemon::relay(&upstream.url(), &more).on_disk().start();
            let bodies = [0; 5].map(|_| format!("{{\"n\":\"{}\"}}", uuid::Uuid::new_v4()));
            for (number, body) in bodies.iter().enumerate() {
                assert_eq!(send(&daemon, &format!("k-{number}"), body).status, 200);
            }
            let daemon = daemon.end(Signal::KILL).start();
            for (number, body) in bodies.iter().enumerate() {
                let again = send(&daemon, &format!("k-{number}"), body);
                assert_eq!((again.status, again.outcome()), (200, "duplicate"));
                let other = send(&daemon, &format!("other-{number}"), body);
                assert_eq!(other.status, status, "{other:?}");
            }
            let replays = daemon.metric("hookward_replays_total", &[("endpoint", "crm")]);
            assert_eq!(replays, 5.0);
            assert_eq!(send(&daemon, "new", "{}").status, 200);
        }
    }
}

#[test]
fn what_was_relayed_before_its_window_ended_is_no_replay_after() {
    let upstream = Upstream::new(Act::status(200));
    let more = "dedup = { replay = \"reject\", window = \"100ms\" }\n";
    let daemon = Daemon::relay(&upstream.url(), more).on_disk().start();
    assert_eq!(send(&daemon, "a", BODY).status, 200);
    let daemon = daemon.end(Signal::KILL).start();
    eventually("the body is new again", || {
        send(&daemon, "b", BODY).status == 200
    });
}

#[test]
fn keys_relayed_while_the_store_could_not_be_written_are_written_when_it_can() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::relay(&upstream.url(), "").on_disk().start();
    let store = daemon.data_dir().join("queue.sqlite3");
    let other = rusqlite::Connection::open(store).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    for number in 0..3 {
        let reply = send(
            &daemon,
            &format!("k-{number}"),
            &format!("{{\"n\":{number}}}"),
        );
        assert_eq!((reply.status, reply.outcome()), (200, "forwarded"));
    }
    daemon.wait_for_log("idempotency key not on disk yet");
    eventually("it is not ready", || daemon.ask("/readyz").status == 503);
    other.execute_batch("ROLLBACK").unwrap();
    eventually("it is ready", || daemon.ask("/readyz").status == 200);
    let daemon = daemon.end(Signal::KILL).start();
    for number in 0..3 {
        let again = send(
            &daemon,
            &format!("k-{number}"),
            &format!("{{\"n\":{number}}}"),
        );
        assert_eq!(again.outcome(), "duplicate", "{number}");
    }
    assert_eq!(upstream.count(), 3);
}

#[test]
fn a_damaged_log_is_told_counted_and_kept_and_the_instance_goes_on() {
    let upstream = Upstream::new(Act::status(200));
    let waits = "[endpoints.crm.queue]\nretry = [\"1h\"]\n";
    upstream.by_default(Act::status(500));
    let daemon = Daemon::queue(&upstream.url(), waits).start();
    for number in 0..10 {
        assert_eq!(
            send(&daemon, &format!("k-{number}"), BODY).outcome(),
            "queued"
        );
    }
    let setup = daemon.end(Signal::KILL);
    let log = setup.data_dir().join("queue.sqlite3-wal");
    let mut bytes = std::fs::read(&log).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::write(&log, &bytes).unwrap();
    let daemon = setup.start();
    daemon.wait_for_log("the store's log is damaged behind byte");
    let copy = daemon.data_dir().join("queue.sqlite3.damaged-1");
    assert!(daemon.log().contains(copy.to_str().unwrap()));
    assert_eq!(std::fs::read(copy).unwrap(), bytes);
    let corrupt = [("endpoint", "")];
    assert_eq!(
        daemon.metric("hookward_queue_corrupt_records_total", &corrupt),
        1.0
    );
    assert_eq!(send(&daemon, "new", BODY).outcome(), "queued");
    let daemon = daemon.end(Signal::KILL).start();
    assert!(!daemon.log().contains("is damaged"));
}
