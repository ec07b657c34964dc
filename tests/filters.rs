//! Which events an endpoint's list of types keeps from the application.

mod support;

use support::{Act, Daemon, Upstream, event};

#[test]
fn only_what_everybody_understands_is_filtered() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::relay(&upstream.url(), "events = [\"a\"]").start();
    let send = |body: &str| daemon.sender().send(&event("", body.as_bytes(), ""));
    for other in [
        r#"{"type":"b"}"#,
        r#"{"x":[1],"type":"b","y":{"type":"a"}}"#,
    ] {
        assert_eq!(send(other).outcome(), "filtered", "{other}");
    }
    assert_eq!(upstream.count(), 0);
    for unclear in [
        r#"{"type":"b""#,
        r#"{"type":"b"}}"#,
        r#"{"type":"b","type":"a"}"#,
        r#"{"type":7,"type":"a"}"#,
    ] {
        assert_eq!(send(unclear).outcome(), "forwarded", "{unclear}");
        let message = upstream.next_message();
        assert_eq!(message.body, unclear.as_bytes());
        assert!(message.values("hookward-event-type").is_empty());
    }
    let labels = [("event", "none"), ("outcome", "forwarded"), ("code", "2xx")];
    assert_eq!(daemon.metric("hookward_requests_total", &labels), 4.0);
}

#[test]
fn a_type_in_a_header_is_filtered_when_it_stands_there_once() {
    let upstream = Upstream::new(Act::status(200));
    let more = "events = [\"push\"]\nscheme = \"github\"\n";
    let daemon = Daemon::relay(&upstream.url(), more).start();
    let send = |types: &str| {
        let signed = String::from_utf8(event("", b"{}", types)).unwrap();
        let signed = signed.replace("TinyTalk-Signature: ", "X-Hub-Signature-256: sha256=");
        daemon.sender().send(signed.as_bytes())
    };
    assert_eq!(send("X-GitHub-Event: fork\r\n").outcome(), "filtered");
    let twice = "X-GitHub-Event: fork\r\nX-GitHub-Event: push\r\n";
    assert_eq!(send(twice).outcome(), "forwarded");
    assert_eq!(upstream.count(), 1);
}
