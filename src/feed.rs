//! What happens, as it happens, for whoever watches.
//!
//! Owns a bounded ring of the last requests. Nothing is kept unless somebody watches or capturing
//! is on: the gate asks [`Feed::level`], one relaxed load, and goes on. Small records say what came
//! of a request; with capturing they hold its headers and body too, credentials masked before
//! anything is kept. The oldest give way; nobody who watches can hold a request up.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use tokio::sync::{Notify, futures::Notified};

/// Small records kept while somebody watches without capturing.
const WATCHED: usize = 500;
/// What a record is taken for beside what it holds, in bytes.
const OVERHEAD: usize = 512;
/// How many are looked through before others may get at them.
const STRETCH: usize = 256;
/// Most bytes of a target that are kept.
const TARGET_LIMIT: usize = 512;

/// What is kept of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Nothing.
    Off,
    /// What came of it.
    Watched,
    /// That, and itself.
    Captured,
}

impl Level {
    fn of(number: u8) -> Self {
        match number {
            0 => Self::Off,
            1 => Self::Watched,
            _ => Self::Captured,
        }
    }
}

/// How much is captured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capture {
    /// Requests; 0: none is.
    pub events: usize,
    /// Bytes of all of them.
    pub bytes: usize,
}

/// One request, and what came of it.
#[derive(Debug)]
pub struct Seen {
    /// As in `Hookward-Event-Id`; empty where it had none.
    pub event_id: String,
    /// When its head was read.
    pub at: SystemTime,
    /// Where it went, where there is one.
    pub endpoint: Option<String>,
    /// Its method.
    pub method: String,
    /// Its path and query, cut.
    pub target: String,
    /// The address it came from, as far as the socket tells.
    pub peer: Option<String>,
    /// Its event type's label, once proven.
    pub event: &'static str,
    /// The status it was answered with.
    pub status: u16,
    /// What became of it.
    pub outcome: Option<&'static str>,
    /// Why it was refused, or failed.
    pub reason: Option<&'static str>,
    /// From its first byte to the answer.
    pub took: Duration,
    /// Itself, with capturing.
    pub captured: Option<Captured>,
}

/// A request as it was received, credentials masked.
#[derive(Debug)]
pub struct Captured {
    /// Its headers, as lines: a map's values would hold on to all that was read with them.
    lines: Box<[u8]>,
    /// Its path and query, uncut: it may be signed.
    pub target: String,
    /// Its body, where it was read.
    pub body: Option<Bytes>,
}

impl Captured {
    /// Takes a request down; credentials are masked.
    pub fn new(headers: &HeaderMap, target: &str, body: Option<Bytes>) -> Self {
        let mut lines = Vec::new();
        let mut put = |name: &HeaderName, value: &[u8]| {
            lines.extend_from_slice(name.as_str().as_bytes());
            lines.push(b':');
            lines.extend_from_slice(value);
            lines.push(b'\n');
        };
        for (name, value) in headers {
            // Who read the body has overwritten what was announced in the head.
            let is_length = name == header::CONTENT_LENGTH && body.is_some();
            match () {
                () if is_length => {}
                () if is_credential(name) => put(name, b"***"),
                () => put(name, value.as_bytes()),
            }
        }
        if let Some(body) = &body {
            put(&header::CONTENT_LENGTH, body.len().to_string().as_bytes());
        }
        Self {
            lines: lines.into(),
            target: target.to_owned(),
            body,
        }
    }

    /// Its headers.
    pub fn headers(&self) -> HeaderMap {
        let lines = self.lines.split(|byte| *byte == b'\n');
        let fields = lines.filter_map(|line| {
            let colon = line.iter().position(|byte| *byte == b':')?;
            let (name, value) = line.split_at_checked(colon)?;
            let name = HeaderName::from_bytes(name).ok()?;
            Some((name, HeaderValue::from_bytes(value.get(1..)?).ok()?))
        });
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(name, value);
        }
        headers
    }

    fn bytes(&self) -> usize {
        self.lines.len() + self.target.len() + self.body.as_ref().map_or(0, Bytes::len)
    }
}

/// Whether a header carries what opens something.
pub fn is_credential(name: &HeaderName) -> bool {
    const WORDS: [&str; 13] = [
        "auth",
        "cookie",
        "token",
        "secret",
        "password",
        "api-key",
        "apikey",
        "api_key",
        "access-key",
        "jwt",
        "passwd",
        "session",
        "credential",
    ];
    WORDS.iter().any(|word| name.as_str().contains(word))
}

impl Seen {
    fn bytes(&self) -> usize {
        OVERHEAD + self.target.len() + self.captured.as_ref().map_or(0, Captured::bytes)
    }

    /// A target as a record keeps it.
    pub fn cut(target: &str) -> String {
        let mut end = target.len().min(TARGET_LIMIT);
        while !target.is_char_boundary(end) {
            end -= 1;
        }
        target.get(..end).unwrap_or_default().to_owned()
    }
}

/// The last requests.
#[derive(Debug)]
pub struct Feed {
    level: AtomicU8,
    ring: Mutex<Ring>,
    /// Told of every record, while somebody waits.
    news: Notify,
}

#[derive(Debug, Default)]
struct Ring {
    capture: Capture,
    watchers: usize,
    kept: VecDeque<Arc<Seen>>,
    bytes: usize,
    /// The number of the first kept; they count up from 1.
    first: u64,
    /// Nothing comes any more.
    is_closed: bool,
}

impl Ring {
    fn level(&self) -> Level {
        match (self.capture.events, self.watchers) {
            (0, 0) => Level::Off,
            (0, _) => Level::Watched,
            _ => Level::Captured,
        }
    }

    fn bounds(&self) -> (usize, usize) {
        match self.level() {
            Level::Captured => (self.capture.events, self.capture.bytes),
            Level::Watched => (WATCHED, usize::MAX),
            Level::Off => (0, 0),
        }
    }

    /// A few of those numbered below `before`, the newest first: whoever looks for something must
    /// not keep the gate waiting while it does.
    fn stretch(&self, before: u64) -> Vec<(u64, Arc<Seen>)> {
        let below = before.saturating_sub(self.first);
        let below = usize::try_from(below).unwrap_or(usize::MAX);
        let end = self.kept.len().min(below);
        let start = end.saturating_sub(STRETCH);
        let first = self.first + u64::try_from(start).unwrap_or_default();
        let kept = self.kept.range(start..end).cloned();
        let mut stretch: Vec<_> = (first..).zip(kept).collect();
        stretch.reverse();
        stretch
    }

    fn make_room(&mut self) {
        let (most, bytes) = self.bounds();
        while self.kept.len() > most || self.bytes > bytes {
            let Some(oldest) = self.kept.pop_front() else {
                break;
            };
            self.bytes -= oldest.bytes();
            self.first += 1;
        }
        if self.kept.is_empty() {
            self.kept = VecDeque::new();
        }
    }
}

/// Some of the last requests, with their numbers.
#[derive(Debug)]
pub struct Part {
    /// Oldest first.
    pub seen: Vec<(u64, Arc<Seen>)>,
    /// How many between what was asked for and the first of these were kept no longer.
    pub missed: u64,
    /// Nothing comes after these.
    pub is_last: bool,
}

impl Feed {
    /// Keeps so much.
    pub fn new(capture: Capture) -> Arc<Self> {
        let feed = Self {
            level: AtomicU8::new(0),
            ring: Mutex::new(Ring {
                first: 1,
                ..Ring::default()
            }),
            news: Notify::new(),
        };
        feed.configure(capture);
        Arc::new(feed)
    }

    /// What is to be kept of a request that begins now.
    pub fn level(&self) -> Level {
        Level::of(self.level.load(Ordering::Relaxed))
    }

    /// How much is captured.
    pub fn capture(&self) -> Capture {
        self.ring().capture
    }

    /// Keeps so much from now on; what is over it goes.
    pub fn configure(&self, capture: Capture) {
        self.change(|ring| ring.capture = capture);
    }

    /// Keeps one.
    pub fn push(&self, seen: Seen) {
        let mut ring = self.ring();
        if ring.level() == Level::Off {
            return;
        }
        ring.bytes += seen.bytes();
        ring.kept.push_back(Arc::new(seen));
        ring.make_room();
        let is_watched = ring.watchers > 0;
        drop(ring);
        if is_watched {
            self.news.notify_waiters();
        }
    }

    /// Those numbered above `after`, at most `most`, the oldest first.
    pub fn after(&self, after: u64, most: usize) -> Part {
        let ring = self.ring();
        let next = after.saturating_add(1);
        let missed = ring.first.saturating_sub(next);
        let skip = usize::try_from(next.saturating_sub(ring.first)).unwrap_or(usize::MAX);
        let first = ring.first.max(next);
        let seen = ring.kept.iter().skip(skip).take(most).cloned();
        Part {
            seen: (first..).zip(seen).collect(),
            missed,
            is_last: ring.is_closed,
        }
    }

    /// Those numbered below `before` that `wanted` lets through, at most `most`, the newest first.
    pub fn before(
        &self,
        before: Option<u64>,
        most: usize,
        wanted: impl Fn(&Seen) -> bool,
    ) -> Vec<(u64, Arc<Seen>)> {
        let (mut before, mut found) = (before.unwrap_or(u64::MAX), Vec::new());
        loop {
            let stretch = self.ring().stretch(before);
            let Some((first, _)) = stretch.last() else {
                return found;
            };
            before = *first;
            for (number, seen) in stretch {
                if found.len() >= most {
                    return found;
                }
                if wanted(&seen) {
                    found.push((number, seen));
                }
            }
        }
    }

    /// The last one's number; 0 before the first.
    pub fn last(&self) -> u64 {
        let ring = self.ring();
        let kept = u64::try_from(ring.kept.len()).unwrap_or(u64::MAX);
        (ring.first + kept).saturating_sub(1)
    }

    /// The one with this event id.
    pub fn find(&self, event_id: &str) -> Option<Arc<Seen>> {
        let newest = self.before(None, 1, |seen| seen.event_id == event_id);
        newest.into_iter().next().map(|(_, seen)| seen)
    }

    /// Watches for as long as what is returned lives.
    pub fn watch(self: &Arc<Self>) -> Watcher {
        self.change(|ring| ring.watchers += 1);
        Watcher(self.clone())
    }

    /// Ends whoever watches: the process is ending.
    pub fn close(&self) {
        self.ring().is_closed = true;
        self.news.notify_waiters();
    }

    /// Resolves when something comes after this was called.
    pub fn changed(&self) -> Notified<'_> {
        self.news.notified()
    }

    fn change(&self, change: impl FnOnce(&mut Ring)) {
        let mut ring = self.ring();
        change(&mut ring);
        ring.make_room();
        self.level.store(ring.level() as u8, Ordering::Relaxed);
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        // Nothing panics while it is held, and its content is valid at every step.
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody who watches.
#[derive(Debug)]
pub struct Watcher(Arc<Feed>);

impl Drop for Watcher {
    fn drop(&mut self) {
        self.0.change(|ring| ring.watchers -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(id: u64, body: usize) -> Seen {
        let headers = HeaderMap::new();
        let captured = Captured::new(&headers, "/", Some(vec![0; body].into()));
        Seen {
            event_id: id.to_string(),
            at: SystemTime::UNIX_EPOCH,
            endpoint: None,
            method: "POST".to_owned(),
            target: "/".to_owned(),
            peer: None,
            event: "none",
            status: 200,
            outcome: None,
            reason: None,
            took: Duration::ZERO,
            captured: Some(captured),
        }
    }

    fn ids(part: &[(u64, Arc<Seen>)]) -> Vec<(u64, &str)> {
        part.iter()
            .map(|(n, s)| (*n, s.event_id.as_str()))
            .collect()
    }

    #[test]
    fn nothing_is_kept_unless_somebody_watches() {
        let feed = Feed::new(Capture::default());
        assert_eq!(feed.level(), Level::Off);
        feed.push(seen(1, 0));
        assert!(feed.find("1").is_none());
        let watcher = feed.watch();
        assert_eq!(feed.level(), Level::Watched);
        feed.push(seen(2, 0));
        assert!(feed.find("2").is_some());
        drop(watcher);
        assert_eq!(feed.level(), Level::Off);
        assert!(feed.find("2").is_none());
    }

    #[test]
    fn the_oldest_give_way_by_number_and_by_bytes() {
        let feed = Feed::new(Capture {
            events: 3,
            bytes: 10_000,
        });
        assert_eq!(feed.level(), Level::Captured);
        for id in 1..=4 {
            feed.push(seen(id, 0));
        }
        assert_eq!(
            ids(&feed.before(None, 9, |_| true)),
            [(4, "4"), (3, "3"), (2, "2")]
        );
        assert_eq!(ids(&feed.before(Some(4), 1, |_| true)), [(3, "3")]);
        let part = feed.after(0, 2);
        assert_eq!(
            (ids(&part.seen), part.missed),
            (vec![(2, "2"), (3, "3")], 1)
        );
        feed.push(seen(5, 9_000));
        assert_eq!(ids(&feed.after(3, 9).seen), [(5, "5")]);
        feed.push(seen(6, 20_000));
        assert!(feed.after(0, 9).seen.is_empty());
        assert_eq!(feed.last(), 6);
    }

    #[test]
    fn credentials_are_masked_before_anything_is_kept() {
        let mut headers = HeaderMap::new();
        for name in ["authorization", "cookie", "x-api-key", "x-auth-token"] {
            headers.append(
                HeaderName::from_static(name),
                HeaderValue::from_static("open"),
            );
        }
        headers.insert("tinytalk-signature", HeaderValue::from_static("aa"));
        let captured = Captured::new(&headers, "/", None);
        let headers = captured.headers();
        let shown: Vec<_> = headers.values().map(|v| v.to_str().unwrap()).collect();
        assert_eq!(shown, ["***", "***", "***", "***", "aa"]);
    }
}
