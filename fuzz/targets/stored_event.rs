//! What a damaged disk may hold in the place of an event: refused, or sent as one well-framed message.
#![no_main]

use std::sync::Arc;

use bytes::Bytes;
use hookward::{kept::Kept, queue::Record};
use hookward_fuzz::config;
use libfuzzer_sys::fuzz_target;

thread_local! {
    static ENDPOINT: Arc<hookward::endpoint::Endpoint> = {
        let text = "[endpoints.crm]\npath = \"/hook/*\"\nupstream = \"http://localhost:1/in\"\n\
                    secrets = [{ name = \"main\", env = \"SECRET\" }]\n";
        let config = config("stored.toml", text).expect("a good configuration");
        config.endpoints.iter().next().expect("the one there is").clone()
    };
}

fuzz_target!(|data: &[u8]| {
    let bytes = Bytes::copy_from_slice(data);
    let Ok(record) = Record::decode(bytes.clone()) else {
        assert!(Kept::read(bytes).is_err());
        return;
    };
    // What was read can be written, and read again as the same.
    let again = Record::decode(record.encode().expect("parts as long as they came"));
    assert!(again == Ok(record), "the same record");
    let Ok(kept) = Kept::read(bytes) else {
        return;
    };
    let mut head = ENDPOINT.with(|endpoint| kept.request_head(endpoint, "id", None, 3));
    let head = head.for_attempt(1);
    let head = head.strip_suffix(b"\r\n\r\n").expect("the end of the head");
    let mut lines = head.split(|b| *b == b'\n');
    let first = lines.next().expect("a request line");
    assert_eq!(
        first.iter().filter(|b| **b == b' ').count(),
        2,
        "{}",
        first.escape_ascii()
    );
    assert!(first.starts_with(b"POST /in"), "{}", first.escape_ascii());
    let mut lengths = 0;
    for line in lines {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        assert!(!line.contains(&b'\r'), "{}", line.escape_ascii());
        assert!(
            line.contains(&b':') && line[0] != b' ',
            "{}",
            line.escape_ascii()
        );
        lengths += usize::from(line.starts_with(b"content-length: "));
        assert!(!line.starts_with(b"transfer-encoding:"));
    }
    assert_eq!(lengths, 1);
});
