//! Whatever an upstream says, the sender hears the answer that only one reading fits, or 502; and a
//! connection on which anything else came carries no other event.
//!
//! Every case of `tests/corpus/answers` is said whole, cut in two, and byte by byte. A second event
//! tells whether the connection was used again, and whether a failed one gave its key back.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that is surprised has failed"
)]

mod support;

use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread,
};

use socket2::SockRef;
use support::{
    Calm, Daemon, HANG, SECRET,
    corpus::{Case, cases, plain},
    sign,
};

/// Deadlines of endpoints whose upstream is waited for in vain: where one has passed before the upstream
/// could say anything, the machine was too slow for it, and the next one is tried.
const DEADLINES: [&str; 4] = ["300ms", "3s", "12s", "50s"];
/// Daemons at a time, each with an upstream of its own.
const CROWD: usize = 8;
/// Cases longer than this are not said byte by byte.
const SHORT: usize = 200;
/// Bytes in the body of a request that is not read: more than the system takes in beforehand.
const LARGE: usize = 4_000_000;
/// The second event's answer.
const SECOND: &[u8] = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 6\r\n\r\nsecond";
/// What a sender hears of it.
const SECOND_HEARD: (u16, Option<&[u8]>) = (200, Some(b"second"));

/// What an upstream says to the next request.
struct Part {
    pieces: Vec<Vec<u8>>,
    closes: bool,
    /// It says this before it reads the body, which it reads when it hears this.
    early: Option<Receiver<()>>,
}

/// What happened at an upstream, by the number of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Note {
    /// It was accepted, from this port.
    Begun(usize, u16),
    /// Its part has been said.
    Said(usize),
    /// A request came that there was no part for.
    Second(usize),
    /// The other side has closed.
    Ended(usize),
}

/// An upstream that says what it is told to.
struct Stage {
    address: SocketAddr,
    part: Arc<Mutex<Option<Part>>>,
    notes: Receiver<Note>,
}

impl Stage {
    /// `calm` is set later: it tells when what was said has been heard.
    fn new(calm: Arc<OnceLock<Calm>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        // What is not read does not go far.
        SockRef::from(&listener).set_recv_buffer_size(4096).unwrap();
        let address = listener.local_addr().unwrap();
        let part = Arc::new(Mutex::new(None));
        let (told, notes) = channel();
        let shared = part.clone();
        thread::spawn(move || {
            let mut number = 0;
            while let Ok((stream, from)) = listener.accept() {
                number += 1;
                let (part, told, calm) = (shared.clone(), told.clone(), calm.clone());
                let _ = told.send(Note::Begun(number, from.port()));
                thread::spawn(move || {
                    play(stream, number, &part, &told, &calm);
                    let _ = told.send(Note::Ended(number));
                });
            }
        });
        Self {
            address,
            part,
            notes,
        }
    }

    fn next(&self) -> Note {
        self.notes.recv_timeout(HANG).expect("nothing happens")
    }

    /// The connection on which the part was said; `None`: on none, nor will it be. To be called when the
    /// sender has its answer.
    fn said(&self) -> Option<usize> {
        // Whoever has connected before is accepted before.
        let last = TcpStream::connect(self.address).unwrap();
        let port = last.local_addr().unwrap().port();
        let mut is_last = false;
        let mut open = BTreeSet::new();
        while !is_last || !open.is_empty() {
            match self.next() {
                Note::Begun(_, from) if from == port => is_last = true,
                Note::Begun(number, _) => drop(open.insert(number)),
                Note::Said(number) => return Some(number),
                Note::Ended(number) => drop(open.remove(&number)),
                Note::Second(_) => panic!("nothing was said"),
            }
        }
        None
    }

    /// The connection that carried the second event, when it and the first one have ended.
    fn carried(&self, first: usize) -> usize {
        let mut open = BTreeSet::from([first]);
        let mut carried = None;
        loop {
            match self.next() {
                Note::Begun(..) => {}
                Note::Second(number) => {
                    carried = Some(number);
                    open.insert(number);
                }
                Note::Ended(number) => drop(open.remove(&number)),
                Note::Said(_) => panic!("said twice"),
            }
            if let (true, Some(carried)) = (open.is_empty(), carried) {
                return carried;
            }
        }
    }
}

fn play(
    mut stream: TcpStream,
    number: usize,
    part: &Mutex<Option<Part>>,
    told: &Sender<Note>,
    calm: &OnceLock<Calm>,
) {
    stream.set_read_timeout(Some(HANG)).unwrap();
    stream.set_nodelay(true).unwrap();
    let mut buffer = Vec::new();
    while let Some(length) = read(&mut stream, &mut buffer, |bytes| {
        let end = bytes.windows(4).position(|w| w == b"\r\n\r\n")? + 4;
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let digits = head
            .lines()
            .find_map(|l| l.strip_prefix("content-length: "));
        Some((end, digits.unwrap().parse::<usize>().unwrap()))
    }) {
        let part = part.lock().unwrap().take();
        let is_early = part.as_ref().is_some_and(|part| part.early.is_some());
        let body = |bytes: &[u8]| (bytes.len() >= length).then_some((length, ()));
        if !is_early && read(&mut stream, &mut buffer, body).is_none() {
            return;
        }
        let Some(part) = part else {
            let _ = told.send(Note::Second(number));
            let _ = stream.write_all(SECOND);
            return;
        };
        for piece in &part.pieces {
            // Whoever has heard enough has closed.
            if stream.write_all(piece).is_err() {
                break;
            }
            calm.get().unwrap().wait();
        }
        if part.closes && is_early {
            let _ = told.send(Note::Said(number));
            return;
        }
        if part.closes {
            let _ = stream.shutdown(Shutdown::Write);
        }
        let _ = told.send(Note::Said(number));
        if let Some(heard) = part.early {
            let _ = heard.recv();
            let nothing = |_: &[u8]| None::<(usize, ())>;
            read(&mut stream, &mut buffer, nothing);
        }
    }
}

/// Reads until the buffer holds what is wanted; takes as much off as that says.
fn read<T>(
    stream: &mut TcpStream,
    buffer: &mut Vec<u8>,
    wanted: impl Fn(&[u8]) -> Option<(usize, T)>,
) -> Option<T> {
    loop {
        if let Some((length, found)) = wanted(buffer) {
            buffer.drain(..length);
            return Some(found);
        }
        let mut chunk = [0; 64 * 1024];
        match stream.read(&mut chunk) {
            Ok(n @ 1..) => buffer.extend_from_slice(&chunk[..n]),
            Ok(0) | Err(_) => return None,
        }
    }
}

/// A daemon and the upstream behind it.
struct Gate {
    daemon: Daemon,
    stage: Stage,
    calm: Calm,
    next_key: usize,
}

impl Gate {
    fn new() -> Self {
        let calm = Arc::new(OnceLock::new());
        let stage = Stage::new(calm.clone());
        let url = format!("http://{}/in", stage.address);
        let large = "max_body = \"4MiB\"\n";
        let mut endpoints = Daemon::endpoint("crm", "/hook", &url, large);
        for deadline in DEADLINES {
            let (name, path) = (format!("within_{deadline}"), format!("/within/{deadline}"));
            let more = format!("{large}deadline = \"{deadline}\"\n");
            endpoints += &Daemon::endpoint(&name, &path, &url, &more);
        }
        let daemon = Daemon::with("", &endpoints).replace("threads = 2", "threads = 1");
        let daemon = daemon.start();
        let own = daemon.calm();
        calm.set(own.clone()).unwrap();
        Self {
            daemon,
            stage,
            calm: own,
            next_key: 0,
        }
    }

    /// Sends an event and ends the connection: the status that came back and, where it is whole,
    /// the body.
    fn send(&self, path: &str, body: &[u8]) -> (u16, Option<Vec<u8>>) {
        let mut stream = TcpStream::connect(self.daemon.public).unwrap();
        stream.set_read_timeout(Some(HANG)).unwrap();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: hooks.example\r\nConnection: close\r\n\
             TinyTalk-Signature: {}\r\nIdempotency-Key: k-{}\r\nContent-Length: {}\r\n\r\n",
            sign(SECRET, body),
            self.next_key,
            body.len(),
        );
        stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        heard(&answer)
    }
}

/// The status of an answer and, where it is whole, its body.
fn heard(answer: &[u8]) -> (u16, Option<Vec<u8>>) {
    let end = answer
        .windows(4)
        .position(|w| w == b"\r\n\r\n")
        .unwrap_or(0);
    let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|digits| digits.parse().ok());
    let (status, body) = (
        status.unwrap_or(0),
        answer.get(end + 4..).unwrap_or_default(),
    );
    let value = |name: &str| {
        head.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    };
    let whole = match (value("content-length"), value("transfer-encoding")) {
        _ if matches!(status, 204 | 304) => body.is_empty(),
        (Some(length), None) => length == body.len().to_string(),
        (None, Some("chunked")) => body.ends_with(b"\r\n0\r\n\r\n") || body == b"0\r\n\r\n",
        _ => false,
    };
    (status, whole.then(|| body.to_vec()))
}

/// The bytes of a case, as they are said: whole, in two pieces, byte by byte.
fn ways(case: &Case) -> Vec<Vec<Vec<u8>>> {
    let bytes = case.bytes(|name| match name {
        "field" => b"X: 1\r\n".to_vec(),
        "interim" => b"HTTP/1.1 100 Continue\r\n\r\n".to_vec(),
        other => panic!("{}: no {{{other}}}", case.name),
    });
    let head = bytes.windows(4).position(|w| w == b"\r\n\r\n");
    let head = head.map_or(bytes.len(), |end| end + 4);
    let cuts = [
        1,
        15,
        head / 2,
        head.saturating_sub(2),
        head,
        head + 5,
        bytes.len().saturating_sub(1),
    ];
    let cuts: BTreeSet<usize> = cuts
        .into_iter()
        .filter(|at| (1..bytes.len()).contains(at))
        .collect();
    let cut = |at: usize| vec![bytes[..at].to_vec(), bytes[at..].to_vec()];
    let mut ways = vec![vec![bytes.clone()]];
    ways.extend(cuts.into_iter().map(cut));
    if case.is("early") {
        ways.truncate(3);
    } else if (2..=SHORT).contains(&bytes.len()) {
        ways.push(bytes.chunks(1).map(<[u8]>::to_vec).collect());
    }
    ways
}

/// What a case says a sender has to hear: a status or `torn`, and a body.
fn verdict(case: &Case) -> (&str, Vec<u8>) {
    let text = case.one("heard").unwrap();
    text.split_once(' ')
        .map_or((text, Vec::new()), |(status, body)| (status, plain(body)))
}

/// Whether that is what a sender heard. Our own answers to a failure have a body of ours.
fn is_heard(case: &Case, status: u16, body: Option<&[u8]>) -> bool {
    let (verdict, text) = verdict(case);
    match (verdict, body) {
        ("torn", None) => status == 200,
        ("502" | "504", Some(_)) => status.to_string() == verdict,
        (_, Some(body)) => status.to_string() == verdict && body == text,
        (_, None) => false,
    }
}

/// What became of the first event.
struct First {
    status: u16,
    body: Option<Vec<u8>>,
    /// The connection on which the upstream spoke.
    connection: usize,
    /// Tells the upstream that the answer has been heard.
    heard: Sender<()>,
}

/// Sends the first event, and lets the upstream say a case one way.
fn first(gate: &mut Gate, case: &Case, pieces: &[Vec<u8>]) -> First {
    let is_early = case.is("early");
    let event = if is_early {
        vec![b'x'; LARGE]
    } else {
        b"{}".to_vec()
    };
    let paths = match verdict(case).0 {
        "504" => DEADLINES
            .map(|deadline| format!("/within/{deadline}"))
            .to_vec(),
        _ => vec!["/hook".to_owned()],
    };
    for path in paths {
        let (heard, early) = channel();
        *gate.stage.part.lock().unwrap() = Some(Part {
            pieces: pieces.to_vec(),
            closes: case.is("then close"),
            early: is_early.then_some(early),
        });
        gate.next_key += 1;
        let (status, body) = gate.send(&path, &event);
        if let Some(connection) = gate.stage.said() {
            return First {
                status,
                body,
                connection,
                heard,
            };
        }
    }
    panic!("{}: the upstream is never heard", case.name)
}

/// Lets the upstream say a case one way, then answer a second event; what is wrong with what became of
/// them.
fn run(gate: &mut Gate, case: &Case, pieces: &[Vec<u8>]) -> Result<(), String> {
    let mut wrong = Vec::new();
    let first = first(gate, case, pieces);
    if !is_heard(case, first.status, first.body.as_deref()) {
        let start = |body: Vec<u8>| body[..body.len().min(300)].escape_ascii().to_string();
        wrong.push(format!(
            "heard {} {:?}",
            first.status,
            first.body.map(start)
        ));
    }
    let _ = first.heard.send(());
    gate.calm.wait();
    // An event that failed has given its key back; one that did not is not sent again.
    if matches!(first.status, 200..300) {
        gate.next_key += 1;
    }
    let (status, body) = gate.send("/hook", b"{}");
    if (status, body.as_deref()) != SECOND_HEARD {
        wrong.push(format!("then {status} {body:?}"));
    }
    let is_kept = match (case.is("kept"), case.is("dropped")) {
        (true, false) => true,
        (false, true) => false,
        _ => panic!("{}: kept or dropped?", case.name),
    };
    if (gate.stage.carried(first.connection) == first.connection) != is_kept {
        wrong.push(if is_kept { "dropped" } else { "used again" }.to_owned());
    }
    if wrong.is_empty() {
        return Ok(());
    }
    Err(format!(
        "{}, in {} pieces, the first of {} bytes: {}",
        case.name,
        pieces.len(),
        pieces[0].len(),
        wrong.join("; ")
    ))
}

#[test]
fn an_upstreams_answer_has_one_reading_or_is_502_and_its_connection_is_dropped() {
    let cases = cases("answers");
    assert!(cases.len() >= 60, "{} cases", cases.len());
    let next = AtomicUsize::new(0);
    let (said, wrong) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        let mut gate = Gate::new();
        while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
            for pieces in ways(case) {
                said.fetch_add(1, Ordering::Relaxed);
                if let Err(what) = run(&mut gate, case, &pieces) {
                    wrong.lock().unwrap().push(what);
                }
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..CROWD {
            scope.spawn(work);
        }
    });
    let wrong = wrong.into_inner().unwrap();
    println!("{} cases, said {} times", cases.len(), said.into_inner());
    assert!(
        wrong.is_empty(),
        "{} wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}
