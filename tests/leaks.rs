//! However ten thousand deliveries fail, they leave no socket, no task and no claimed key behind.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that is surprised has failed"
)]

mod support;

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use support::{Daemon, HANG, SECRET, Sender, eventually, sign};

/// Deliveries altogether, and senders at a time.
const DELIVERIES: usize = 10_000;
const CROWD: usize = 50;
/// How a delivery fails: the upstream answers as soon as it has the head, breaks off, or says
/// nothing; or the sender hangs up.
const KINDS: [&str; 4] = ["early", "broken", "silent", "left"];
const GOOD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const REFUSAL: &[u8] = b"HTTP/1.1 413 X\r\nContent-Length: 0\r\n\r\n";
const FAILURE: &[u8] = b"HTTP/1.1 500 X\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";

/// An application that fails in the way its path says, until it is well.
struct Patient {
    url: String,
    is_well: Arc<AtomicBool>,
    open: Arc<AtomicUsize>,
    served: Arc<AtomicUsize>,
}

impl Patient {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let patient = Self {
            url: format!("http://{}", listener.local_addr().unwrap()),
            is_well: Arc::default(),
            open: Arc::default(),
            served: Arc::default(),
        };
        let (is_well, open, served) = (
            patient.is_well.clone(),
            patient.open.clone(),
            patient.served.clone(),
        );
        thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let (is_well, open, served) = (is_well.clone(), open.clone(), served.clone());
                open.fetch_add(1, Ordering::SeqCst);
                thread::spawn(move || {
                    attend(stream, &is_well, &served);
                    open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        patient
    }
}

/// Serves one connection until one side ends it.
fn attend(mut stream: TcpStream, is_well: &AtomicBool, served: &AtomicUsize) {
    stream.set_read_timeout(Some(HANG)).unwrap();
    let mut buffer = Vec::new();
    loop {
        let find = |bytes: &[u8]| bytes.windows(4).position(|w| w == b"\r\n\r\n");
        let Some(end) = until(&mut stream, &mut buffer, find) else {
            return;
        };
        let head: Vec<u8> = buffer.drain(..end + 4).collect();
        let head = String::from_utf8_lossy(&head);
        let length = head
            .lines()
            .find_map(|l| l.strip_prefix("content-length: "));
        let length: usize = length.unwrap().parse().unwrap();
        if !is_well.load(Ordering::SeqCst) {
            match head.split(['/', ' ']).nth(2).unwrap() {
                "early" => drop(stream.write_all(REFUSAL)),
                "broken" => {}
                "silent" => drop(until(&mut stream, &mut buffer, |_| None::<()>)),
                _ => {
                    until(&mut stream, &mut buffer, |b| {
                        (b.len() >= length).then_some(())
                    });
                    let _ = stream.write_all(FAILURE);
                }
            }
            return;
        }
        if until(&mut stream, &mut buffer, |b| {
            (b.len() >= length).then_some(())
        })
        .is_none()
        {
            return;
        }
        buffer.drain(..length);
        served.fetch_add(1, Ordering::SeqCst);
        if stream.write_all(GOOD).is_err() {
            return;
        }
    }
}

/// Reads until the buffer holds what is wanted; `None` at the end.
fn until<T>(
    stream: &mut TcpStream,
    buffer: &mut Vec<u8>,
    wanted: impl Fn(&[u8]) -> Option<T>,
) -> Option<T> {
    loop {
        if let Some(found) = wanted(buffer) {
            return Some(found);
        }
        let mut chunk = [0; 16 * 1024];
        match stream.read(&mut chunk) {
            Ok(n @ 1..) => buffer.extend_from_slice(&chunk[..n]),
            Ok(0) | Err(_) => return None,
        }
    }
}

/// The event with this number, which comes to fail as the number says.
fn event(number: usize) -> Vec<u8> {
    let (kind, body) = (KINDS[number % KINDS.len()], format!("{{\"n\":{number}}}"));
    let head = format!(
        "POST /{kind} HTTP/1.1\r\nHost: a\r\nTinyTalk-Signature: {}\r\nIdempotency-Key: k-{number}\r\n\
         Content-Length: {}\r\n\r\n",
        sign(SECRET, body.as_bytes()),
        body.len(),
    );
    [head, body].concat().into_bytes()
}

/// Lets a crowd take the numbers among themselves; each brings what it works with.
fn crowd<T>(begin: impl Fn() -> T + Sync, each: impl Fn(&mut T, usize) + Sync) {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut own = begin();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= DELIVERIES {
                return;
            }
            each(&mut own, number);
        }
    };
    thread::scope(|scope| {
        for _ in 0..CROWD {
            scope.spawn(work);
        }
    });
}

/// Sends an event that fails, on a connection of its own.
fn fail(daemon: &Daemon, number: usize) {
    let mut sender = daemon.sender();
    let event = event(number);
    match KINDS[number % KINDS.len()] {
        "early" => assert_eq!(sender.send(&event).status, 413),
        "broken" => assert_eq!(sender.send(&event).status, 502),
        "silent" => assert_eq!(sender.send(&event).status, 504),
        // One that has said everything, one that has not; politely, or as a process that crashed.
        _ => {
            let said = if number % 8 < 4 {
                event.len()
            } else {
                event.len() - 1
            };
            sender.write(&event[..said]);
            if number % 16 < 8 {
                sender.hang_up();
            } else {
                sender.reset();
            }
        }
    }
}

fn counted(daemon: &Daemon, what: &str) -> usize {
    let place = format!("/proc/{}/{what}", daemon.pid());
    std::fs::read_dir(place).unwrap().count()
}

#[test]
fn ten_thousand_failed_deliveries_leave_nothing_behind() {
    let patient = Patient::new();
    let endpoints: String = KINDS
        .iter()
        .map(|kind| {
            let url = format!("{}/{kind}", patient.url);
            let more = format!(
                "deadline = \"{}\"\n[endpoints.{kind}.upstream_options]\nmax_concurrency = 10000\n",
                if *kind == "silent" { "50ms" } else { "25s" }
            );
            Daemon::endpoint(kind, &format!("/{kind}"), &url, &more)
        })
        .collect();
    let daemon = Daemon::with("", &endpoints).start();
    let idle = (counted(&daemon, "fd"), counted(&daemon, "task"));

    crowd(|| (), |(), number| fail(&daemon, number));
    eventually("no socket and no thread is left", || {
        (counted(&daemon, "fd"), counted(&daemon, "task")) == idle
    });
    eventually("no task is left", || {
        let is_idle =
            |kind: &&str| daemon.metric("hookward_in_flight", &[("endpoint", kind)]) == 0.0;
        daemon.metric("hookward_connections", &[]) == 0.0
            && daemon.metric("hookward_buffered_bytes", &[]) == 0.0
            && KINDS.iter().all(is_idle)
    });
    eventually("the application is left alone", || {
        patient.open.load(Ordering::SeqCst) == 0
    });

    patient.is_well.store(true, Ordering::SeqCst);
    crowd(
        || daemon.sender(),
        |sender: &mut Sender, number| {
            let reply = sender.send(&event(number));
            assert_eq!(
                (reply.status, reply.outcome()),
                (200, "forwarded"),
                "{number}"
            );
        },
    );
    assert_eq!(patient.served.load(Ordering::SeqCst), DELIVERIES);
    assert_eq!(
        daemon.metric("hookward_dedup_entries", &[]),
        DELIVERIES as f64
    );
}
