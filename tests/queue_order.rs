//! Events arrive in the order they came where that is asked for, whatever fails; and one bad event
//! is in nobody else's way.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that is surprised has failed"
)]

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

use rustix::process::Signal;
use support::{Act, Daemon, Upstream, event, eventually};

const CONVERSATIONS: u64 = 5;
const EVENTS: u64 = 150;
const RETRIES: u32 = 3;

fn body(conversation: u64, number: u64) -> String {
    format!(
        r#"{{"type":"message.created","number":{number},"payload":{{"conversationId":"c-{conversation}"}}}}"#
    )
}

/// What becomes of an attempt, by a plain function of the event and the attempt: the model and the
/// application agree on it.
fn status(number: u64, attempt: u32) -> u16 {
    let draw = (number * 7919 + u64::from(attempt) * 104_729) % 100;
    match draw {
        0..=4 => 422,
        5..=39 => 503,
        40..=44 => 302,
        _ => 204,
    }
}

/// What the model says an event comes to: the attempts it takes, and whether it is taken.
fn fate(number: u64) -> (u32, bool) {
    for attempt in 1..=RETRIES + 1 {
        match status(number, attempt) {
            204 => return (attempt, true),
            422 => return (attempt, false),
            _ => {}
        }
    }
    (RETRIES + 1, false)
}

/// One attempt as the application saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Seen {
    conversation: u64,
    number: u64,
    attempt: u32,
}

/// An application that answers by [`status`] and writes down what it saw, in order.
fn application() -> (SocketAddr, Arc<Mutex<Vec<Seen>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
    let all = seen.clone();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let all = all.clone();
            thread::spawn(move || serve(stream, &all));
        }
    });
    (address, seen)
}

fn serve(stream: TcpStream, all: &Mutex<Vec<Seen>>) -> Option<()> {
    let mut answers = stream.try_clone().ok()?;
    let mut requests = BufReader::new(stream);
    loop {
        let (mut attempt, mut length) = (0, 0);
        loop {
            let mut line = String::new();
            requests.read_line(&mut line).ok().filter(|&n| n > 0)?;
            match line.trim_end().split_once(": ") {
                Some(("content-length", value)) => length = value.parse().unwrap(),
                Some(("hookward-attempt", value)) => attempt = value.parse().unwrap(),
                None if line.trim_end().is_empty() => break,
                Some(_) | None => {}
            }
        }
        let mut body = vec![0; length];
        requests.read_exact(&mut body).ok()?;
        let event: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let number = event["number"].as_u64().unwrap();
        let conversation = event["payload"]["conversationId"].as_str().unwrap();
        all.lock().unwrap().push(Seen {
            conversation: conversation.strip_prefix("c-").unwrap().parse().unwrap(),
            number,
            attempt,
        });
        let status = status(number, attempt);
        let answer = format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n");
        answers.write_all(answer.as_bytes()).ok()?;
    }
}

/// Every attempt of the lanes that the model expects, lane by lane in order.
fn expected(lane_of: impl Fn(&Seen) -> u64) -> BTreeMap<u64, Vec<Seen>> {
    let mut lanes: BTreeMap<u64, Vec<Seen>> = BTreeMap::new();
    for number in 0..EVENTS {
        for attempt in 1..=fate(number).0 {
            let seen = Seen {
                conversation: number % CONVERSATIONS,
                number,
                attempt,
            };
            lanes.entry(lane_of(&seen)).or_default().push(seen);
        }
    }
    lanes
}

fn by_lane(seen: &[Seen], lane_of: impl Fn(&Seen) -> u64) -> BTreeMap<u64, Vec<Seen>> {
    let mut lanes: BTreeMap<u64, Vec<Seen>> = BTreeMap::new();
    for attempt in seen {
        lanes.entry(lane_of(attempt)).or_default().push(*attempt);
    }
    lanes
}

fn run(ordering: &str, crashes: bool) -> Vec<Seen> {
    let (address, seen) = application();
    let retry = vec!["\"10ms\""; usize::try_from(RETRIES).unwrap()].join(", ");
    let more = format!("[endpoints.crm.queue]\nordering = \"{ordering}\"\nretry = [{retry}]\n");
    let mut daemon = Daemon::queue(&format!("http://{address}/in"), &more).start();
    for number in 0..EVENTS {
        let body = body(number % CONVERSATIONS, number);
        let request = event(&format!("k-{number}"), body.as_bytes(), "");
        assert_eq!(daemon.sender().send(&request).outcome(), "queued");
        if crashes && number % 40 == 39 {
            daemon = daemon.end(Signal::KILL).start();
        }
    }
    let pending = [("endpoint", "crm"), ("state", "pending")];
    eventually("all came to their ends", || {
        daemon.metric("hookward_queue_events", &pending) == 0.0
    });
    let dead = [("endpoint", "crm"), ("state", "dead")];
    let fates = (0..EVENTS).map(fate);
    if !crashes {
        let lost = f64::from(u32::try_from(fates.filter(|(_, taken)| !taken).count()).unwrap());
        assert_eq!(daemon.metric("hookward_queue_events", &dead), lost);
    }
    let seen = seen.lock().unwrap();
    seen.clone()
}

#[test]
fn events_of_one_conversation_arrive_in_order_whatever_fails() {
    let conversation = |seen: &Seen| seen.conversation;
    let seen = run("/payload/conversationId", false);
    assert_eq!(by_lane(&seen, conversation), expected(conversation));
    // Others pass by one that waits: all lanes were at work side by side.
    let lanes_at_the_start: BTreeSet<u64> = seen.iter().take(40).map(conversation).collect();
    assert!(lanes_at_the_start.len() > 1, "{seen:?}");
}

#[test]
fn events_of_one_endpoint_arrive_in_order_whatever_fails() {
    let all = |_: &Seen| 0;
    assert_eq!(by_lane(&run("endpoint", false), all), expected(all));
}

#[test]
fn without_an_order_every_event_gets_its_attempts() {
    let number = |seen: &Seen| seen.number;
    assert_eq!(by_lane(&run("none", false), number), expected(number));
}

#[test]
fn crashes_change_no_order() {
    // A crash can lose the end of an attempt, so attempts repeat and schedules end earlier; but no
    // event is seen for the first time after a later one of its conversation.
    let seen = run("/payload/conversationId", true);
    for lane in by_lane(&seen, |seen| seen.conversation).values() {
        let mut first: Vec<u64> = Vec::new();
        for attempt in lane {
            if !first.contains(&attempt.number) {
                first.push(attempt.number);
            }
        }
        assert!(first.is_sorted(), "{first:?}");
    }
    let all: BTreeSet<u64> = seen.iter().map(|seen| seen.number).collect();
    assert_eq!(all.len(), usize::try_from(EVENTS).unwrap());
}

/// Twenty events come, and arrive before the one that is in trouble comes again.
fn others_pass_by(daemon: &Daemon, upstream: &Upstream) {
    for number in 0..20 {
        let request = event(&number.to_string(), b"{}", "");
        assert_eq!(daemon.sender().send(&request).outcome(), "queued");
    }
    for _ in 0..20 {
        assert_ne!(upstream.next_message().value("idempotency-key"), "poison");
    }
}

#[test]
fn an_event_that_breaks_the_upstream_blocks_no_other() {
    let upstream = Upstream::new(Act::status(200));
    let retry = ["\"1h\""; 3].join(", ");
    for poison in [Act::Close, Act::Reset, Act::status(500)] {
        let more = format!("[endpoints.crm.queue]\nretry = [{retry}]\n");
        let daemon = Daemon::queue(&upstream.url(), &more).start();
        upstream.then([poison]);
        let request = event("poison", b"{}", "");
        assert_eq!(daemon.sender().send(&request).outcome(), "queued");
        assert_eq!(upstream.next_message().value("idempotency-key"), "poison");
        others_pass_by(&daemon, &upstream);
    }
}

#[test]
fn an_event_that_hangs_the_upstream_blocks_no_other() {
    let upstream = Upstream::new(Act::status(200));
    let more = "[endpoints.crm.upstream_options]\nmax_concurrency = 2\n\
                [endpoints.crm.queue]\nattempt_timeout = \"1h\"\n";
    let daemon = Daemon::queue(&upstream.url(), more).start();
    upstream.then([Act::Hang]);
    assert_eq!(
        daemon.sender().send(&event("poison", b"{}", "")).outcome(),
        "queued"
    );
    upstream.next_message();
    others_pass_by(&daemon, &upstream);
}
