//! Whatever bytes arrive, the upstream sees nothing, or exactly one well-framed message whose body is
//! what was verified; and after anything malformed nothing more is parsed.
//!
//! Every case of `tests/corpus/requests` is sent signed and unsigned; whole, with a good request
//! behind it, behind a good request, cut in two, and byte by byte; and judged by what the upstream
//! got. A head in one piece and a head in pieces take different ways through the gate.

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
    net::{Shutdown, SocketAddr, TcpStream},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use support::{
    Calm, Daemon, HANG, Heard, Recorder, SECRET,
    corpus::{Case, cases, plain},
    sign,
};

/// Daemons at a time, each with an upstream of its own.
const CROWD: usize = 4;
/// Cases longer than this are not sent byte by byte.
const SHORT: usize = 420;
/// Cases longer than this may arrive in pieces though they are sent in one.
const LONG: usize = 8 * 1024;
const POST: &[u8] = b"POST /hook HTTP/1.1\r\nHost: hooks.example\r\n";
const NOBODY: &[u8] = b"POST /elsewhere HTTP/1.1\r\nHost: hooks.example\r\n";
const BEFORE: &[u8] = b"a good one before";
const BEHIND: &[u8] = b"a good one behind";

/// How a case is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// In one piece.
    Whole,
    /// In one piece with a good request behind it.
    Followed,
    /// In one piece with a good request before it.
    Behind,
    /// In two pieces, the first of which has this many bytes.
    Cut(usize),
    /// One byte at a time.
    Bytes,
}

/// What has to become of a case.
struct Verdict {
    /// The status of each answer, and whether it has no body though it announces one.
    answers: Vec<(u16, bool)>,
    closes: bool,
}

impl Verdict {
    fn of(case: &Case, is_signed: bool) -> Self {
        let own = if is_signed { "signed" } else { "unsigned" };
        let text = case.one(own).or_else(|| case.one("both"));
        let text = text.unwrap_or_else(|| panic!("{}: no verdict", case.name));
        let (answers, closes) = match text.strip_suffix(" close") {
            Some(answers) => (answers, true),
            None => (text, case.is("then end")),
        };
        let answer = |text: &str| match text.strip_suffix(" bare") {
            Some(status) => (status.parse().unwrap(), true),
            None => (text.parse().unwrap(), false),
        };
        let answers = match answers {
            "nothing" => Vec::new(),
            some => some.split(", ").map(answer).collect(),
        };
        Self { answers, closes }
    }
}

/// A daemon and the application behind it.
struct Gate {
    daemon: Daemon,
    calm: Calm,
    recorder: Recorder,
}

impl Gate {
    fn new() -> Self {
        let recorder = Recorder::new();
        let daemon = Daemon::relay(&recorder.url(), "").replace("threads = 2", "threads = 1");
        let daemon = daemon.start();
        let calm = daemon.calm();
        Self {
            daemon,
            calm,
            recorder,
        }
    }
}

/// A good request.
fn good(body: &[u8], more: &str) -> Vec<u8> {
    let (tag, length) = (sign(SECRET, body), body.len());
    let fields = format!("TinyTalk-Signature: {tag}\r\nContent-Length: {length}\r\n{more}\r\n");
    [POST, fields.as_bytes(), body].concat()
}

fn bodies(case: &Case) -> Vec<Vec<u8>> {
    case.all("body").into_iter().map(plain).collect()
}

/// The bytes of a case.
fn bytes(case: &Case, is_signed: bool) -> Vec<u8> {
    let bodies = bodies(case);
    let mut next = 0;
    let mut signature = |number: Option<usize>| {
        next = number.unwrap_or(next + 1);
        let body = bodies.get(next - 1).map_or(&b""[..], Vec::as_slice);
        match is_signed {
            true => format!("TinyTalk-Signature: {}\r\n", sign(SECRET, body)).into_bytes(),
            false => Vec::new(),
        }
    };
    case.bytes(|name| match name {
        "sig" => signature(None),
        "post" => [POST, &signature(None)].concat(),
        "nobody" => NOBODY.to_vec(),
        other => match other.strip_suffix("sig") {
            Some(number) => signature(Some(number.parse().unwrap())),
            None => panic!("{}: no {{{other}}}", case.name),
        },
    })
}

/// The ways in which a case is sent.
fn ways(case: &Case, bytes: &[u8]) -> Vec<Way> {
    let mut ways = vec![Way::Whole, Way::Behind];
    if !case.is("then end") {
        ways.push(Way::Followed);
    }
    let head = bytes.windows(4).position(|w| w == b"\r\n\r\n");
    let head = head.map_or(bytes.len(), |end| end + 4);
    let cuts = [
        1,
        30,
        head / 2,
        head - 3.min(head),
        head,
        head + 1,
        head + 3,
        bytes.len() - 1.min(bytes.len()),
    ];
    let cuts: BTreeSet<usize> = cuts
        .into_iter()
        .filter(|at| (1..bytes.len()).contains(at))
        .collect();
    ways.extend(cuts.into_iter().map(Way::Cut));
    if bytes.len() <= SHORT {
        ways.push(Way::Bytes);
    }
    ways
}

/// A sender's connection, and what came on it.
struct Line {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Line {
    fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(HANG)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self {
            stream,
            buffer: Vec::new(),
        }
    }

    /// Writes what the other side may refuse to read.
    fn write(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// Reads until the buffer holds what is wanted of it, or the end.
    fn until<T>(&mut self, mut wanted: impl FnMut(&[u8]) -> Option<T>) -> Option<T> {
        loop {
            if let Some(found) = wanted(&self.buffer) {
                return Some(found);
            }
            let mut chunk = [0; 16 * 1024];
            match self.stream.read(&mut chunk) {
                Ok(n @ 1..) => self.buffer.extend_from_slice(&chunk[..n]),
                Ok(0) | Err(_) => return None,
            }
        }
    }

    /// The status of the next answer, of which nothing is left in the buffer.
    fn answer(&mut self, is_bare: bool) -> Option<u16> {
        let end = self.until(|bytes| bytes.windows(4).position(|w| w == b"\r\n\r\n"))?;
        let head: Vec<u8> = self.buffer.drain(..end + 4).collect();
        let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
        let status = head
            .strip_prefix("http/1.")
            .and_then(|head| head[2..5].parse().ok());
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "));
        let length = length.map_or(0, |digits| digits.parse().unwrap());
        if !is_bare {
            self.until(|bytes| (bytes.len() >= length).then_some(()))?;
            self.buffer.drain(..length);
        }
        status
    }
}

/// Says a case one way.
fn say(gate: &Gate, line: &mut Line, bytes: &[u8], way: Way) {
    match way {
        Way::Whole => line.write(bytes),
        Way::Followed => line.write(&[bytes, &last()].concat()),
        Way::Behind => line.write(&[&good(BEFORE, ""), bytes].concat()),
        Way::Cut(at) => {
            line.write(&bytes[..at]);
            gate.calm.wait();
            line.write(&bytes[at..]);
        }
        Way::Bytes => {
            for byte in bytes.chunks(1) {
                line.write(byte);
                gate.calm.wait();
            }
        }
    }
}

/// A good request behind which nothing comes.
fn last() -> Vec<u8> {
    good(BEHIND, "Connection: close\r\n")
}

/// Reads every answer to a case, and to the good request that comes behind it at last: where nothing
/// more is owed, it is not answered.
fn hear(line: &mut Line, case: &Case, expected: &[(u16, bool)], way: Way) -> Vec<u16> {
    let ends = case.is("then end");
    if ends {
        let _ = line.stream.shutdown(Shutdown::Write);
    }
    let mut came = Vec::new();
    while let Some((_, is_bare)) = expected.get(came.len()) {
        match line.answer(*is_bare) {
            Some(100) if case.is("may continue") => {}
            Some(status) => came.push(status),
            None => break,
        }
    }
    if way != Way::Followed && !ends {
        line.write(&last());
    }
    while let Some(status) = line.answer(false) {
        came.push(status);
    }
    came
}

/// Sends a case one way; what is wrong with what became of it.
fn run(gate: &Gate, case: &Case, is_signed: bool, way: Way) -> Result<(), String> {
    let bytes = bytes(case, is_signed);
    let verdict = Verdict::of(case, is_signed);
    let before = (way == Way::Behind).then_some((200, false));
    let answers: Vec<_> = before.into_iter().chain(verdict.answers).collect();
    let mut bodies = bodies(case);
    bodies.resize(answers.len() - usize::from(before.is_some()), Vec::new());
    bodies.splice(0..0, before.map(|_| BEFORE.to_vec()));

    let mut line = Line::connect(gate.daemon.public);
    say(gate, &mut line, &bytes, way);
    let came = hear(&mut line, case, &answers, way);
    let heard = gate.recorder.take();

    let mut expected: Vec<u16> = answers.iter().map(|(status, _)| *status).collect();
    if !verdict.closes {
        expected.push(200);
        bodies.push(BEHIND.to_vec());
    }
    // In pieces a refusal may close where it need not: then nothing behind it is answered.
    let is_in_pieces = matches!(way, Way::Cut(_) | Way::Bytes) || bytes.len() > LONG;
    if is_in_pieces && came.last().is_some_and(|status| *status >= 400) {
        expected.truncate(came.len());
    }
    let passed = expected
        .iter()
        .zip(bodies)
        .filter(|(status, _)| **status == 200);
    let passed: Vec<Heard> = passed.map(|(_, body)| Heard::Message(body)).collect();
    if came == expected && heard == passed && line.buffer.is_empty() {
        return Ok(());
    }
    let signed = if is_signed { "signed" } else { "unsigned" };
    Err(format!(
        "{}, {signed}, {way:?}: answered {came:?}, not {expected:?}; the upstream got {heard:?}, not \
         {passed:?}; left over {:?}",
        case.name,
        line.buffer.escape_ascii().to_string(),
    ))
}

#[test]
fn the_upstream_sees_nothing_or_one_message_whose_body_was_verified() {
    let cases = cases("requests");
    assert!(cases.len() >= 250, "{} cases", cases.len());
    let next = AtomicUsize::new(0);
    let (sent, wrong) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        let gate = Gate::new();
        while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
            for is_signed in [true, false] {
                for way in ways(case, &bytes(case, is_signed)) {
                    sent.fetch_add(1, Ordering::Relaxed);
                    if let Err(what) = run(&gate, case, is_signed, way) {
                        wrong.lock().unwrap().push(what);
                    }
                }
            }
        }
        // What came behind the last answer, on any connection, has come when they have ended.
        let Gate {
            daemon, recorder, ..
        } = gate;
        drop(daemon);
        wrong.lock().unwrap().extend(
            recorder
                .take()
                .into_iter()
                .map(|h| format!("at the end: {h:?}")),
        );
    };
    thread::scope(|scope| {
        for _ in 0..CROWD {
            scope.spawn(work);
        }
    });
    let wrong = wrong.into_inner().unwrap();
    println!("{} cases, sent {} times", cases.len(), sent.into_inner());
    assert!(
        wrong.is_empty(),
        "{} wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}
