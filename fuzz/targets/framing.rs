//! Bytes of a sender's connection: however they are cut, they end and are refused at the same places;
//! and where a request is let through, the parser behind finds the same body in it.
#![no_main]

use hookward::framing::{Framing, Phase};
use hookward_fuzz::{answer::chunked, pieces, take_bytes};
use libfuzzer_sys::fuzz_target;

/// Follows pieces: what the connection is in the middle of, or how many bytes were fine.
fn follow(pieces: &[&[u8]]) -> Result<Phase, ()> {
    let mut framing = Framing::new();
    let mut body = 0;
    for piece in pieces {
        let mut bytes = piece.to_vec();
        let mut at = 0;
        while at < bytes.len() {
            let skipped = usize::try_from(body)
                .unwrap_or(usize::MAX)
                .min(bytes.len() - at);
            body -= skipped as u64;
            at += skipped;
            let pushed = framing.push(&mut bytes[at..]).map_err(drop)?;
            at += pushed.taken;
            body = pushed.body.unwrap_or(body);
        }
    }
    Ok(if body > 0 {
        Phase::Body
    } else {
        framing.phase()
    })
}

/// Checks the first request in these bytes, if it was let through whole, against a parser's reading;
/// what comes behind it.
fn check(bytes: &[u8]) -> Option<&[u8]> {
    let mut copy = bytes.to_vec();
    let pushed = Framing::new().push(&mut copy).ok()?;
    let skipped = bytes
        .iter()
        .take_while(|b| matches!(b, b'\r' | b'\n'))
        .count();
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut fields);
    let Ok(httparse::Status::Complete(head)) = request.parse(bytes) else {
        return None;
    };
    let values = |name: &str| {
        let named = request
            .headers
            .iter()
            .filter(|f| f.name.eq_ignore_ascii_case(name));
        named.map(|f| f.value.trim_ascii()).collect::<Vec<_>>()
    };
    let body = match (
        &values("content-length")[..],
        &values("transfer-encoding")[..],
    ) {
        ([], []) => 0,
        ([digits], []) => {
            assert!(digits.iter().all(u8::is_ascii_digit), "a length of digits");
            str::from_utf8(digits)
                .expect("digits")
                .parse()
                .expect("a number")
        }
        ([], [coding]) => {
            assert!(coding.eq_ignore_ascii_case(b"chunked"), "no other coding");
            chunked(&bytes[head..])?.1
        }
        _ => panic!("one length, or one coding, or neither"),
    };
    assert!(skipped <= pushed.taken);
    let own = usize::try_from(pushed.body.unwrap_or(0)).unwrap_or(usize::MAX);
    let end = pushed.taken.saturating_add(own);
    if head.saturating_add(body) <= bytes.len() {
        assert_eq!(end, head + body, "the same end of the request");
    }
    bytes.get(end..)
}

fuzz_target!(|data: &[u8]| {
    let mut data = data;
    let cuts = take_bytes(&mut data);
    let whole = follow(&[data]);
    assert_eq!(follow(&pieces(data, cuts)), whole, "cut");
    let bytes: Vec<&[u8]> = data.chunks(1).collect();
    assert_eq!(follow(&bytes), whole, "byte by byte");
    let mut rest = data;
    while let Some(next) = check(rest).filter(|next| next.len() < rest.len()) {
        rest = next;
    }
});
