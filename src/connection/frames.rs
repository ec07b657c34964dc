//! The frames of an HTTP/2 connection (RFC 9113 §4.1) as they come in: what it is in the middle
//! of, and whether what comes is worth its trouble.
//!
//! Watches frame headers on their way to the HTTP library and touches nothing. The library bounds
//! what one stream can do; here is bounded what a whole connection can: frames that ask for work
//! and carry no request (resets, pings, settings, window updates, empty pieces) take from its
//! credit, requests and time give some back. It is pure: moments come in.

use std::time::Instant;

/// What a client says first (RFC 9113 §3.4), in bytes.
const PREFACE: usize = 24;
/// Bytes in a frame's header.
const HEADER: usize = 9;
/// Credit of a connection, at the beginning and at most: one unit is one frame without a request.
const CREDIT: u32 = 1000;
/// What one second gives back.
const CREDIT_PER_SECOND: u32 = 100;
/// What one request gives back: a client acknowledges the answer with a frame or two.
const CREDIT_PER_REQUEST: u32 = 2;
/// What a reset takes: the stream it ends gave [`CREDIT_PER_REQUEST`] and made us work.
const RESET_PRICE: u32 = 4;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// A connection's frames so far.
#[derive(Debug)]
pub(super) struct Frames {
    preface_left: usize,
    header: [u8; HEADER],
    /// How many bytes of the header are here.
    have: usize,
    /// Bytes of the frame's content that are still to come.
    left: usize,
    head: Head,
    credit: u32,
    /// Since when time has given nothing back.
    since: Instant,
}

/// A header section on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Head {
    /// None.
    No,
    /// The frame in hand is not its last.
    Open,
    /// The frame in hand is its last.
    Closing,
}

/// What bytes changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct News {
    /// A header section began.
    pub(super) began: bool,
    /// A header section is here to its end, and no other has begun behind it.
    pub(super) ended: bool,
}

/// The credit is used up: nothing more of this connection is worth reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Flood;

impl Frames {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            preface_left: PREFACE,
            header: [0; HEADER],
            have: 0,
            left: 0,
            head: Head::No,
            credit: CREDIT,
            since: now,
        }
    }

    /// Follows the next bytes.
    ///
    /// # Errors
    /// [`Flood`], at the latest one read behind the frame that was too much.
    pub(super) fn push(&mut self, mut bytes: &[u8], now: Instant) -> Result<News, Flood> {
        let mut news = News::default();
        let preface = self.preface_left.min(bytes.len());
        self.preface_left -= preface;
        bytes = bytes.get(preface..).unwrap_or_default();
        while !bytes.is_empty() {
            if self.left > 0 {
                let here = self.left.min(bytes.len());
                self.left -= here;
                bytes = bytes.get(here..).unwrap_or_default();
                self.end_head(&mut news);
                continue;
            }
            let here = (HEADER - self.have).min(bytes.len());
            let (part, rest) = bytes.split_at_checked(here).unwrap_or_default();
            let room = self.header.get_mut(self.have..self.have + here);
            room.unwrap_or_default().copy_from_slice(part);
            self.have += here;
            bytes = rest;
            if self.have == HEADER {
                self.have = 0;
                self.frame(&mut news, now)?;
                self.end_head(&mut news);
            }
        }
        Ok(news)
    }

    /// A frame's header is here.
    fn frame(&mut self, news: &mut News, now: Instant) -> Result<(), Flood> {
        let [a, b, c, kind, flags, ..] = self.header;
        self.left = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        match kind {
            DATA if self.left > 0 || flags & END_STREAM != 0 => {}
            HEADERS => {
                self.credit = CREDIT.min(self.credit + CREDIT_PER_REQUEST);
                (news.began, news.ended) = (true, false);
                self.head = head(flags);
            }
            CONTINUATION => {
                self.head = head(flags);
                self.spend(1, now)?;
            }
            RST_STREAM => self.spend(RESET_PRICE, now)?,
            _ => self.spend(1, now)?,
        }
        Ok(())
    }

    fn end_head(&mut self, news: &mut News) {
        if self.left == 0 && self.head == Head::Closing {
            self.head = Head::No;
            news.ended = true;
        }
    }

    fn spend(&mut self, price: u32, now: Instant) -> Result<(), Flood> {
        let passed = now.saturating_duration_since(self.since).as_secs();
        if passed > 0 {
            let back = u32::try_from(passed)
                .unwrap_or(CREDIT)
                .saturating_mul(CREDIT_PER_SECOND);
            self.credit = CREDIT.min(self.credit.saturating_add(back));
            self.since = now;
        }
        self.credit = self.credit.checked_sub(price).ok_or(Flood)?;
        Ok(())
    }
}

fn head(flags: u8) -> Head {
    if flags & END_HEADERS == 0 {
        Head::Open
    } else {
        Head::Closing
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const PING: u8 = 6;

    fn frame(kind: u8, flags: u8, content: &[u8]) -> Vec<u8> {
        let [_, a, b, c] = u32::try_from(content.len()).unwrap().to_be_bytes();
        [&[a, b, c, kind, flags, 0, 0, 0, 1], content].concat()
    }

    /// A connection whose preface is over.
    fn frames_at(now: Instant) -> Frames {
        let mut frames = Frames::new(now);
        let news = frames.push(&[0; PREFACE], now);
        assert_eq!(news, Ok(News::default()));
        frames
    }

    #[test]
    fn a_head_begins_with_its_frame_and_ends_with_its_last_byte() {
        let now = Instant::now();
        let whole = [
            frame(HEADERS, 0, b"abc"),
            frame(CONTINUATION, END_HEADERS, b"de"),
        ]
        .concat();
        let mut frames = frames_at(now);
        for (number, byte) in whole.iter().enumerate() {
            let news = frames.push(&[*byte], now).unwrap();
            assert_eq!(news.began, number == HEADER - 1, "at {number}");
            assert_eq!(news.ended, number == whole.len() - 1, "at {number}");
        }
        let both = News {
            began: true,
            ended: true,
        };
        assert_eq!(frames.push(&whole, now), Ok(both));
        // One is whole, and the next has begun.
        let next = [whole.clone(), whole[..HEADER].to_vec()].concat();
        let open = News {
            began: true,
            ended: false,
        };
        assert_eq!(frames.push(&next, now), Ok(open));
        let empty = frame(HEADERS, END_HEADERS, b"");
        let mut another = frames_at(now);
        assert_eq!(another.push(&empty, now), Ok(both));
    }

    fn bearable(frame: &[u8], now: Instant) -> u32 {
        let mut frames = frames_at(now);
        let more = std::iter::repeat_with(|| frames.push(frame, now));
        u32::try_from(more.take(3000).take_while(Result::is_ok).count()).unwrap()
    }

    #[test]
    fn frames_without_a_request_use_the_credit_up() {
        let now = Instant::now();
        for (kind, flags) in [
            (PING, 0),
            (PING, 1),
            (4, 0),
            (8, 0),
            (2, 0),
            (DATA, 0),
            (77, 0),
        ] {
            let content = if kind == DATA { &b""[..] } else { b"12345678" };
            assert_eq!(bearable(&frame(kind, flags, content), now), CREDIT);
        }
        assert_eq!(bearable(&frame(DATA, END_STREAM, b""), now), 3000);
        assert_eq!(bearable(&frame(DATA, 0, b"1"), now), 3000);
        assert_eq!(bearable(&frame(HEADERS, END_HEADERS, b"1"), now), 3000);
        let reset = [
            frame(HEADERS, END_HEADERS, b"1"),
            frame(RST_STREAM, 0, b"1234"),
        ]
        .concat();
        // The first gives nothing back: the credit is whole.
        assert_eq!(bearable(&reset, now), (CREDIT - 2) / 2);
        let acknowledged = [
            frame(HEADERS, 5, b"1"),
            frame(8, 0, b"1234"),
            frame(8, 0, b"1234"),
        ]
        .concat();
        assert_eq!(bearable(&acknowledged, now), 3000);
    }

    #[test]
    fn time_gives_credit_back() {
        let now = Instant::now();
        let mut frames = frames_at(now);
        let ping = frame(PING, 0, b"12345678");
        let mut all =
            |count: u32, now: Instant| (0..count).all(|_| frames.push(&ping, now).is_ok());
        assert!(all(CREDIT, now));
        let later = now + Duration::from_secs(2);
        assert!(all(2 * CREDIT_PER_SECOND, later));
        assert!(!all(1, later));
    }
}
