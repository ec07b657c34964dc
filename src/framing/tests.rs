use bytes::BytesMut;

use super::*;

const HEAD: &str = "POST / HTTP/1.1\r\nHost: a\r\n";

/// A connection: the framing, and the bodies that it leaves to its caller.
struct Follower {
    framing: Framing,
    body: u64,
}

impl Follower {
    fn new() -> Self {
        let framing = Framing::new();
        Self { framing, body: 0 }
    }

    /// Follows a piece; where it stops being trustworthy.
    fn push(&mut self, piece: &[u8]) -> Result<(), usize> {
        let mut bytes = piece.to_vec();
        let mut at = 0;
        while at < bytes.len() {
            let skipped = usize::try_from(self.body).unwrap().min(bytes.len() - at);
            self.body -= skipped as u64;
            at += skipped;
            let pushed = self.framing.push(&mut bytes[at..]);
            let pushed = pushed.map_err(|ambiguous| at + ambiguous.after)?;
            at += pushed.taken;
            self.body = pushed.body.unwrap_or(self.body);
        }
        Ok(())
    }

    fn phase(&self) -> Phase {
        if self.body > 0 {
            Phase::Body
        } else {
            self.framing.phase()
        }
    }
}

fn push(text: &str) -> Result<Phase, usize> {
    // Whole, byte by byte, and cut in two anywhere: always the same.
    let outcome = |pieces: &[&[u8]]| {
        let mut follower = Follower::new();
        pieces
            .iter()
            .try_for_each(|p| follower.push(p).map_err(|_| ()))?;
        Ok(follower.phase())
    };
    let whole: Result<Phase, ()> = outcome(&[text.as_bytes()]);
    let bytes: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
    assert_eq!(outcome(&bytes), whole, "byte by byte: {text:?}");
    for cut in 0..text.len() {
        let (a, b) = text.as_bytes().split_at(cut);
        assert_eq!(outcome(&[a, b]), whole, "cut at {cut}: {text:?}");
    }
    let mut follower = Follower::new();
    follower.push(text.as_bytes()).map(|()| follower.phase())
}

#[test]
fn the_library_sees_no_length_of_a_body_that_it_does_not_get() {
    let head = format!("{HEAD}content-length:  12 \r\nX: 1\r\n\r\n");
    let mut bytes = format!("{head}Hello, world").into_bytes();
    let pushed = Framing::new().push(&mut bytes);
    let (taken, body) = (head.len(), Some(12));
    assert_eq!(pushed, Ok(Pushed { taken, body }));
    let masked = head.replace("12", "00");
    assert_eq!(bytes, format!("{masked}Hello, world").into_bytes());
}

#[test]
fn a_body_is_the_librarys_when_its_head_came_in_pieces_or_waits_to_be_asked() {
    let asks = format!("{HEAD}Content-Length: 3\r\nExpect: 100-continue\r\n\r\nabc");
    let plain = format!("{HEAD}Content-Length: 3\r\n\r\nabc");
    let mut bytes = asks.clone().into_bytes();
    let (taken, body) = (asks.len(), None);
    assert_eq!(Framing::new().push(&mut bytes), Ok(Pushed { taken, body }));
    assert_eq!(bytes, asks.into_bytes());
    for cut in 1..plain.len() - 4 {
        let mut framing = Framing::new();
        let mut first = plain.as_bytes()[..cut].to_vec();
        let mut second = plain.as_bytes()[cut..].to_vec();
        framing.push(&mut first).unwrap();
        let (taken, body) = (second.len(), None);
        assert_eq!(framing.push(&mut second), Ok(Pushed { taken, body }));
        assert_eq!([first, second].concat(), plain.as_bytes(), "cut at {cut}");
    }
}

#[test]
fn no_more_than_one_request_is_taken_at_a_time() {
    let chunked = format!("{HEAD}Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n");
    for request in [chunked, format!("{HEAD}\r\n")] {
        let mut bytes = request.repeat(2).into_bytes();
        let (taken, body) = (request.len(), None);
        assert_eq!(Framing::new().push(&mut bytes), Ok(Pushed { taken, body }));
    }
}

#[test]
fn requests_end_where_their_framing_says() {
    let requests = [
        format!("{HEAD}\r\n"),
        format!("{HEAD}Content-Length: 3\r\n\r\nabc"),
        format!("{HEAD}Content-Length: 0\r\n\r\n"),
        format!("{HEAD}Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
        format!(
            "{HEAD}Transfer-Encoding: Chunked\r\n\r\nA;x=y;z=\"q\"\r\n0123456789\r\n0\r\nT: 1\r\n\r\n"
        ),
    ];
    for request in &requests {
        assert_eq!(push(request), Ok(Phase::Between), "{request:?}");
        assert_eq!(push(&format!("\r\n{request}{request}")), Ok(Phase::Between));
        assert_eq!(push(&format!("{request}P")), Ok(Phase::Head));
    }
    assert_eq!(
        push(&format!("{HEAD}Content-Length: 4\r\n\r\nabc")),
        Ok(Phase::Body)
    );
    let long = format!("{HEAD}X: {}\r\nContent-Length: 1\r\n\r\n", "x".repeat(400));
    assert_eq!(push(&long), Ok(Phase::Body));
}

#[test]
fn whatever_two_parsers_could_read_differently_is_refused() {
    let bad = [
        "POST / HTTP/1.1\nHost: a\r\n\r\n".to_owned(),
        "POST /\u{e9} HTTP/1.1\r\n\r\n".to_owned(),
        "POST /a#b HTTP/1.1\r\n\r\n".to_owned(),
        "POST  / HTTP/1.1\r\n\r\n".to_owned(),
        "\n".to_owned(),
        format!("{HEAD}X: 1\n\r\n"),
        format!("{HEAD}\n"),
        format!("{HEAD} folded\r\n\r\n"),
        format!("{HEAD}Content-Length: 1\r\nContent-Length: 1\r\n\r\nx"),
        format!("{HEAD}Content-Length: 1, 1\r\n\r\nx"),
        format!("{HEAD}Content-Length: +1\r\n\r\nx"),
        format!("{HEAD}Content-Length: \r\n\r\nx"),
        format!("{HEAD}Content-Length: 99999999999999999999\r\n\r\n"),
        format!("{HEAD}Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"),
        format!("{HEAD}Transfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n"),
        format!("{HEAD}Transfer-Encoding: gzip, chunked\r\n\r\n"),
        format!("{HEAD}Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n"),
        format!("{HEAD}Transfer-Encoding: identity\r\n\r\n"),
    ];
    for text in &bad {
        assert!(push(text).is_err(), "{text:?}");
    }
    for line in [
        "5;", "5 ", " 5", "5;bad[=x", "0x5", "", "5;a=", "-1", "5;;a", "1\u{e9}",
    ] {
        let text = format!("{HEAD}Transfer-Encoding: chunked\r\n\r\n{line}\r\nabcde\r\n");
        assert!(push(&text).is_err(), "{line:?}");
    }
    let torn = format!("{HEAD}Transfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n");
    assert!(push(&torn).is_err());
}

#[test]
fn chunks_are_joined_however_they_are_cut() {
    let text = b"3\r\nabc\r\n1;x=y\r\nd\r\n0\r\nT: 1\r\n\r\nrest";
    for cut in 0..text.len() {
        let (a, b) = text.split_at(cut);
        let (mut chunks, mut buffer, mut body) = (Chunks::default(), BytesMut::from(a), vec![]);
        let mut came = Some(b);
        loop {
            match chunks.next(&mut buffer).unwrap() {
                Piece::Data(data) => body.extend_from_slice(&data),
                Piece::More => buffer.extend_from_slice(came.take().unwrap()),
                Piece::End => break,
            }
        }
        buffer.extend_from_slice(came.unwrap_or_default());
        assert_eq!(
            (body.as_slice(), &buffer[..]),
            (&b"abcd"[..], &b"rest"[..]),
            "cut at {cut}"
        );
    }
    for bad in ["3\nabc", "3\r\nabcd\r\n", "x\r\n", "3 \r\nabc\r\n"] {
        let (mut chunks, mut buffer) = (Chunks::default(), BytesMut::from(bad));
        let outcome = std::iter::repeat_with(|| chunks.next(&mut buffer))
            .find(|o| !matches!(o, Ok(Piece::Data(_))));
        assert!(matches!(outcome, Some(Err(_))), "{bad:?}");
    }
}

#[test]
fn every_line_of_a_plain_head_ends_with_cr_and_lf() {
    for plain in ["HTTP/1.1 200 OK\r\n\r\n", "a\r\nb\r\n\r\n", "a", ""] {
        assert!(has_plain_lines(plain.as_bytes()), "{plain:?}");
    }
    for bad in [
        "\r\na\r\n\r\n",
        "\na",
        "a\n\r\n",
        "a\r\n\n",
        "a\rb\r\n",
        "a\r\r\n",
        "a\r",
    ] {
        assert!(!has_plain_lines(bad.as_bytes()), "{bad:?}");
    }
}

#[test]
fn a_long_request_line_is_looked_at_to_its_end() {
    let line = |end: &str| format!("POST /?{}{end}\r\nHost: a\r\n\r\n", "a".repeat(400));
    assert_eq!(push(&line(" HTTP/1.1")), Ok(Phase::Between));
    for end in [
        "",
        " ",
        " HTTP/1.1 ",
        " b HTTP/1.1",
        "\u{e9} HTTP/1.1",
        "#b HTTP/1.1",
        "\r HTTP/1.1",
        " HTTP/2.0",
        "\tHTTP/1.1",
    ] {
        assert!(push(&line(end)).is_err(), "{end:?}");
    }
}

#[test]
fn framing_is_not_padded_beyond_reason() {
    let padded = |length: usize| {
        let name = "Content-Length:";
        format!("{HEAD}{name}{:>1$}\r\n\r\nx", 1, length - name.len())
    };
    // With its CR.
    assert_eq!(push(&padded(LINE_LIMIT - 1)), Ok(Phase::Between));
    assert!(push(&padded(LINE_LIMIT)).is_err());
    let coding = format!(
        "{HEAD}Transfer-Encoding:{:>300}\r\n\r\n0\r\n\r\n",
        "chunked"
    );
    assert!(push(&coding).is_err());
}

#[test]
fn trailers_are_fields() {
    let trailed =
        |line: &str| format!("{HEAD}Transfer-Encoding: chunked\r\n\r\n0\r\n{line}\r\n\r\n");
    for line in ["X: 1", "X:", "x-y_z!:\t\u{e9} "] {
        assert_eq!(push(&trailed(line)), Ok(Phase::Between), "{line:?}");
    }
    for line in [
        "X",
        ": 1",
        "X : 1",
        " X: 1",
        "X: \0",
        "X: 1\r2",
        "X\u{e9}: 1",
    ] {
        assert!(push(&trailed(line)).is_err(), "{line:?}");
    }
}

#[test]
fn what_came_before_ambiguity_is_told_apart() {
    let first = format!("{HEAD}\r\n");
    let both = format!("{first}POST / HTTP/1.1\nHost: a\r\n\r\n");
    assert_eq!(push(&both), Err(first.len()));
    let torn = format!("{HEAD}X: 1\n\r\n");
    let ambiguous = Framing::new().push(&mut torn.clone().into_bytes());
    assert_eq!(ambiguous, Err(Ambiguous { after: HEAD.len() }));
}
