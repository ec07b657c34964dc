//! What nobody smuggles past the gate towards the application.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that is surprised has failed"
)]

mod support;

use support::{Act, BODY, Daemon, Upstream, event};

#[test]
fn a_twin_of_a_header_that_the_operator_sets_is_refused() {
    let upstream = Upstream::new(Act::status(200));
    let options = "[endpoints.crm.upstream_options]\nheaders = { X-Api-Key = \"ours\" }\n";
    let daemon = Daemon::relay(&upstream.url(), options).start();
    for twin in ["X_Api_Key", "x-api_key"] {
        let request = event("k", BODY.as_bytes(), &format!("{twin}: evil\r\n"));
        let reply = daemon.sender().send(&request);
        assert_eq!((reply.status, reply.reason().as_str()), (400, "malformed"));
    }
    assert_eq!(upstream.count(), 0);
    let other = event("k", BODY.as_bytes(), "X_Other: fine\r\n");
    assert_eq!(daemon.sender().send(&other).status, 200);
    assert_eq!(upstream.next_message().value("x-api-key"), "ours");
}
