//! What an operator reads in the log, and what nobody can keep out of it.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that is surprised has failed"
)]

mod support;

use support::{Act, BODY, Daemon, Upstream, event};

#[test]
fn a_strangers_flood_hides_no_failure_of_the_upstream() {
    let upstream = Upstream::new(Act::Close);
    let daemon = Daemon::relay(&upstream.url(), "").start();
    let mut stranger = daemon.sender();
    let forged = String::from_utf8(event("k", BODY.as_bytes(), "")).unwrap();
    let forged = forged.replace("message", "massage");
    for round in 0..3 {
        for _ in 0..40 {
            assert_eq!(stranger.send(forged.as_bytes()).status, 401);
        }
        let genuine = event(&format!("k{round}"), BODY.as_bytes(), "");
        let reply = daemon.sender().send(&genuine);
        assert_eq!(reply.status, 502);
        let id = reply.header("hookward-event-id").unwrap();
        daemon.wait_for_log(id);
        let line = daemon.lines().into_iter().find(|l| l["event_id"] == id);
        assert_eq!(line.unwrap()["message"], "delivery failed");
    }
}
