//! Strangers who exhaust: what they take, what is left for others, and that it ends.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that is surprised has failed"
)]

mod support;

use std::{
    collections::BTreeSet,
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::TcpStream,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Instant,
};

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use support::{Act, BODY, Daemon, HANG, Sender, Upstream, event, eventually};

/// Limits that end a slow connection soon.
const SOON: &str =
    "[limits]\nheader_timeout = \"500ms\"\nbody_timeout = \"500ms\"\nidle_timeout = \"500ms\"\n";

/// The ways to be slow: what is sent at first, and what again and again.
const SLOW: [(&str, &str, &str); 5] = [
    ("a silent socket", "", ""),
    ("a lone byte", "P", ""),
    (
        "a slow head",
        "POST /hook HTTP/1.1\r\nHost: a\r\n",
        "X-A: b\r\n",
    ),
    (
        "a slow body",
        "POST /hook HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\
         TinyTalk-Signature: 0000000000000000000000000000000000000000000000000000000000000000\r\n\r\n",
        "x",
    ),
    (
        "a slow reader",
        "",
        "GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n",
    ),
];

/// A connection that does as little as it can, or reads nothing of what it asks for.
struct Slow {
    stream: TcpStream,
    more: Vec<u8>,
}

impl Slow {
    fn new(daemon: &Daemon, first: &str, more: &str) -> Self {
        let mut stream = TcpStream::connect(daemon.public).unwrap();
        stream.write_all(first.as_bytes()).unwrap();
        stream.set_nonblocking(true).unwrap();
        // A reader that does not read asks until nothing more can be sent.
        let more = if first.is_empty() {
            more.repeat(1000)
        } else {
            more.to_owned()
        };
        Self {
            stream,
            more: more.into_bytes(),
        }
    }

    /// Sends on. Whether it was ended.
    fn is_over(&mut self) -> bool {
        let is_reader = self.more.len() > 1000;
        let ended = |error: std::io::Error| error.kind() != ErrorKind::WouldBlock;
        if !self.more.is_empty() && self.stream.write(&self.more).is_err_and(ended) {
            return true;
        }
        // Looking for the end would be reading.
        !is_reader
            && match self.stream.read(&mut [0; 4096]) {
                Ok(0) => true,
                Ok(_) => false,
                Err(error) => ended(error),
            }
    }
}

#[test]
fn whoever_is_slow_is_ended_while_the_others_are_served() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::with(SOON, &Daemon::endpoint("crm", "/hook", &upstream.url(), "")).start();
    let mut slow: Vec<_> = (0..100)
        .map(|number| {
            let (what, first, more) = SLOW[number % SLOW.len()];
            (what, Slow::new(&daemon, first, more))
        })
        .collect();
    let is_over = AtomicBool::new(false);
    let served = thread::scope(|scope| {
        let good = scope.spawn(|| {
            let mut served = 0;
            while !is_over.load(Ordering::Relaxed) {
                let request = event(&format!("k{served}"), BODY.as_bytes(), "");
                assert_eq!(daemon.sender().send(&request).status, 200);
                served += 1;
            }
            served
        });
        let end = Instant::now() + HANG;
        while !slow.is_empty() && Instant::now() < end {
            slow.retain_mut(|(_, connection)| !connection.is_over());
            thread::yield_now();
        }
        is_over.store(true, Ordering::Relaxed);
        good.join().unwrap()
    });
    let left: BTreeSet<_> = slow.iter().map(|(what, _)| what).collect();
    assert_eq!(left, BTreeSet::new(), "never ended");
    assert!(served > 0);
    let timeouts = [("reason", "timeout")];
    assert!(daemon.metric("hookward_rejections_total", &timeouts) >= 60.0);
}

/// Processor time of a process, in the kernel's ticks.
fn ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn too_many_connections_for_the_descriptors_hear_503_and_the_operator_is_answered() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::relay(&upstream.url(), "").start_with_descriptors(256);
    daemon.wait_for_log("raise the limit of open files");
    let mut all: Vec<_> = (0..400).map(|_| daemon.sender()).collect();
    let of = |name: &str, labels: &[(&str, &str)]| daemon.metric(name, labels);
    let refused = || of("hookward_rejections_total", &[("reason", "overloaded")]);
    eventually("each is let in or turned away", || {
        of("hookward_connections", &[]) + refused() == 400.0
    });
    for path in ["/livez", "/readyz"] {
        assert_eq!(daemon.ask(path).status, 200, "{path}");
    }
    let mut served = 0.0;
    for (number, sender) in all.iter_mut().enumerate() {
        let request = event(
            &format!("k{number}"),
            BODY.as_bytes(),
            "Connection: close\r\n",
        );
        if sender.try_write(&request) && sender.rest().starts_with(b"HTTP/1.1 200 ") {
            served += 1.0;
        }
    }
    assert_eq!(served, 400.0 - refused(), "whoever was let in was served");
    assert!((1.0..200.0).contains(&served), "{served}");
    assert!(!daemon.log().contains("cannot accept"), "{}", daemon.log());
    drop(all);
    eventually("all have gone", || of("hookward_connections", &[]) == 0.0);
    let reply = daemon.sender().send(&event("again", BODY.as_bytes(), ""));
    assert_eq!(reply.status, 200);
}

#[test]
fn without_any_descriptor_left_it_waits_and_comes_back_by_itself() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::relay(&upstream.url(), "").start();
    let mut known = daemon.sender();
    let event = |key: &str| event(key, BODY.as_bytes(), "");
    assert_eq!(known.send(&event("before")).status, 200);
    let pid = Pid::from_raw(i32::try_from(daemon.pid()).unwrap());
    let none = Rlimit {
        current: Some(0),
        ..rustix::process::getrlimit(Resource::Nofile)
    };
    let before = prlimit(pid, Resource::Nofile, none).unwrap();
    let waiting: Vec<_> = (0..20).map(|_| daemon.sender()).collect();
    daemon.wait_for_log("cannot accept connections");
    // As long as it lasts it waits: what is connected is served, and the processor is not burnt.
    let (began, used) = (Instant::now(), ticks(daemon.pid()));
    for number in 0..10 {
        let reply = known.send(&event(&format!("during-{number}")));
        assert_eq!(reply.status, 200);
        thread::park_timeout(std::time::Duration::from_millis(100));
    }
    let (passed, used) = (began.elapsed(), ticks(daemon.pid()) - used);
    // A loop that spins uses all of a core.
    let seconds = used as f64 / rustix::param::clock_ticks_per_second() as f64;
    assert!(
        seconds * 4.0 < passed.as_secs_f64(),
        "{seconds} s of {passed:?}"
    );
    prlimit(pid, Resource::Nofile, before).unwrap();
    for (number, mut sender) in waiting.into_iter().enumerate() {
        let reply = sender.send(&event(&format!("after-{number}")));
        assert_eq!(reply.status, 200);
    }
    let said = daemon.log().matches("cannot accept connections").count();
    assert!(said <= 3, "a line for each thread: {said}");
}

/// Every series on `/metrics`, without its value.
fn series(daemon: &Daemon) -> BTreeSet<String> {
    let text = daemon.ask("/metrics").text();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| Some(line.rsplit_once(' ')?.0.to_owned()))
        .collect()
}

/// Memory a process holds, in KiB.
fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Sends one request of everything that a stranger can choose, and takes the answer.
fn strange(daemon: &Daemon, sender: &mut Sender, number: u32) {
    const METHODS: [&str; 5] = ["POST", "GET", "DELETE", "BREW", "M-SEARCH"];
    let mixed = number.wrapping_mul(0x9e37_79b9);
    let method = METHODS[number as usize % METHODS.len()];
    let path = if number.is_multiple_of(3) {
        format!("/hook?{mixed:x}")
    } else {
        format!("/{mixed:x}/{number}")
    };
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {mixed:x}.example\r\nIdempotency-Key: {mixed:x}\r\n\
         X-{mixed:x}: a\r\nTinyTalk-Signature: {:064x}\r\nContent-Length: 2\r\n\r\n{{}}",
        u128::from(mixed)
    );
    let reply = sender.send(request.as_bytes());
    assert!([401, 404, 405].contains(&reply.status), "{reply:?}");
    if reply.header("connection") == Some("close") {
        *sender = daemon.sender();
    }
}

#[test]
fn whatever_strangers_make_up_leaves_no_series_and_no_memory() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::relay(&upstream.url(), "").start();
    let round = |numbers: std::ops::Range<u32>| {
        thread::scope(|scope| {
            for part in 0..4 {
                let (daemon, numbers) = (&daemon, numbers.clone());
                scope.spawn(move || {
                    let mut sender = daemon.sender();
                    let own = numbers.filter(|number| number % 4 == part);
                    own.for_each(|number| strange(daemon, &mut sender, number));
                });
            }
        });
    };
    round(0..2_000);
    let (before, held) = (series(&daemon), resident(daemon.pid()));
    round(2_000..12_000);
    assert_eq!(series(&daemon), before);
    let grown = resident(daemon.pid()).saturating_sub(held);
    assert!(grown <= 8 * 1024, "{grown} KiB");
    assert_eq!(upstream.count(), 0);
}

#[test]
fn nothing_but_the_path_tells_endpoints_apart() {
    let upstream = Upstream::new(Act::status(200));
    let many: Vec<_> = (0..8)
        .map(|number| format!("{{ name = \"s{number}\", env = \"SECRET{number}\" }}"))
        .collect();
    let many = format!("secrets = [{}]\n", many.join(", "));
    let one = Daemon::endpoint("one", "/one", &upstream.url(), "");
    let other = Daemon::endpoint("other", "/two", &upstream.url(), &many);
    let setup = Daemon::with("", &(one + &other));
    let setup = (0..8).fold(setup, |setup, number| {
        setup.env(
            &format!("SECRET{number}"),
            &format!("{number}-secret-of-the-other"),
        )
    });
    let daemon = setup.start();
    let answer = |path: &str, more: &str| {
        let request =
            format!("POST {path} HTTP/1.1\r\nHost: a\r\n{more}Content-Length: 2\r\n\r\n{{}}");
        let mut reply = daemon.sender().send(request.as_bytes());
        let id = reply.header("hookward-event-id").unwrap_or("").to_owned();
        let text = reply.text().replace(&id, "ID");
        reply
            .headers
            .retain(|(name, _)| name != "hookward-event-id" && name != "date");
        (reply.status, reply.headers, text)
    };
    let forged = format!("TinyTalk-Signature: {:064}\r\n", 0);
    for more in ["", "TinyTalk-Signature: no\r\n", forged.as_str()] {
        let first = answer("/one", more);
        assert_eq!(first.0, 401);
        assert_eq!(answer("/two", more), first, "{more}");
    }
    // What is nowhere answers alike, however near it is to what is somewhere.
    let nowhere = answer("/", "");
    assert_eq!(nowhere.0, 404);
    for path in ["/on", "/one/", "/oneone", "/One", "/metrics"] {
        assert_eq!(answer(path, forged.as_str()), nowhere, "{path}");
    }
}
