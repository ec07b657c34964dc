//! Bounds on disk: beyond them 503 before the body is read, and it heals by itself.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that is surprised has failed"
)]

mod support;

use std::process::Command;

use rustix::process::Signal;
use support::{Act, Daemon, SECRET, Upstream, event, eventually, sign};

const BOUND: &str = "max_body = \"16KiB\"\n[endpoints.crm.queue]\nmax_pending_bytes = \"64KiB\"\n\
                     retry = [\"200ms\", \"200ms\", \"200ms\", \"200ms\", \"1h\"]\n";

fn pending(daemon: &Daemon) -> f64 {
    let labels = [("endpoint", "crm"), ("state", "pending")];
    daemon.metric("hookward_queue_events", &labels)
}

#[test]
fn beyond_its_bound_an_endpoint_refuses_before_it_reads_and_heals_when_there_is_room() {
    let upstream = Upstream::new(Act::Wait(
        b"HTTP/1.1 200 X\r\nContent-Length: 0\r\n\r\n".to_vec(),
    ));
    let daemon = Daemon::queue(&upstream.url(), BOUND).start();
    let mut accepted = Vec::new();
    let body = vec![b'x'; 8 << 10];
    let refused = loop {
        let key = format!("k-{}", accepted.len());
        let reply = daemon.sender().send(&event(&key, &body, ""));
        if reply.status != 200 {
            break reply;
        }
        assert_eq!(reply.outcome(), "queued");
        accepted.push(key);
        assert!(accepted.len() < 20, "nothing is refused");
    };
    assert!(accepted.len() >= 4, "{}", accepted.len());
    assert_eq!((refused.status, refused.outcome()), (503, "rejected"));
    assert_eq!(refused.reason(), "queue_full");
    assert_eq!(refused.header("retry-after"), Some("5"));
    // Refused by its head alone: the body never comes.
    let head = format!(
        "POST /hook HTTP/1.1\r\nHost: a\r\nTinyTalk-Signature: {}\r\nContent-Length: {}\r\n\
         Expect: 100-continue\r\nIdempotency-Key: early\r\n\r\n",
        sign(SECRET, &body),
        body.len()
    );
    let early = daemon.sender().send(head.as_bytes());
    assert_eq!((early.status, early.reason().as_str()), (503, "queue_full"));
    let labels = [("endpoint", "crm"), ("reason", "queue_full")];
    assert_eq!(daemon.metric("hookward_rejections_total", &labels), 2.0);
    let bytes = |name| daemon.metric(name, &[("endpoint", "crm")]);
    let left = bytes("hookward_queue_pending_limit_bytes") - bytes("hookward_queue_pending_bytes");
    assert!(
        (0.0..8192.0).contains(&left),
        "{left} bytes are left for one of 8 KiB"
    );

    for _ in &accepted {
        upstream.next_message();
        upstream.release();
    }
    eventually("there is room again", || {
        let reply = daemon.sender().send(&event("later", &body, ""));
        reply.outcome() == "queued"
    });
    upstream.release();
    eventually("all are delivered", || pending(&daemon) == 0.0);
    assert_eq!(upstream.count(), accepted.len() + 1);
}

#[test]
fn delivered_events_make_room_for_new_ones() {
    let upstream = Upstream::new(Act::status(200));
    let more = "max_body = \"16KiB\"\n[endpoints.crm.queue]\nmax_pending_bytes = \"64KiB\"\n\
                max_stored_bytes = \"128KiB\"\n";
    let daemon = Daemon::queue(&upstream.url(), more).start();
    let body = vec![b'x'; 8 << 10];
    for number in 0..24 {
        eventually("it is accepted", || {
            let reply = daemon.sender().send(&event(&number.to_string(), &body, ""));
            assert!(matches!(reply.status, 200 | 503), "{reply:?}");
            reply.status == 200
        });
    }
    eventually("all are delivered", || pending(&daemon) == 0.0);
    assert_eq!(upstream.count(), 24);
    eventually("the bound is kept", || {
        daemon.metric("hookward_queue_bytes", &[]) <= f64::from(128 << 10)
    });
}

#[test]
#[ignore = "needs root and mounts: run by .ci/run"]
fn a_full_disk_refuses_delivers_what_is_there_and_heals() {
    let upstream = Upstream::new(Act::status(503));
    let setup = Daemon::queue(
        &upstream.url(),
        "max_body = \"64KiB\"\n[endpoints.crm.queue]\nretry = [\"100ms\", \"100ms\", \"100ms\", \"1h\"]\n",
    );
    let place = setup.data_dir();
    std::fs::create_dir_all(&place).unwrap();
    let mount = |args: &[&str]| {
        let status = Command::new("mount")
            .args(args)
            .arg(&place)
            .status()
            .unwrap();
        assert!(status.success(), "mount {args:?}");
    };
    mount(&["-t", "tmpfs", "-o", "size=6m", "tmpfs"]);
    let unmount = Unmount(place.clone());
    let daemon = setup.start();
    let ballast = place.join("ballast");
    std::fs::write(&ballast, vec![0; 3 << 20]).unwrap();
    let body = vec![b'x'; 32 << 10];
    let mut accepted = 0;
    let refused = loop {
        let reply = daemon
            .sender()
            .send(&event(&format!("k-{accepted}"), &body, ""));
        if reply.status != 200 {
            break reply;
        }
        accepted += 1;
        assert!(accepted < 1000, "nothing is refused");
    };
    assert_eq!(
        (refused.status, refused.reason().as_str()),
        (503, "storage")
    );
    assert_eq!(refused.header("retry-after"), Some("5"));
    eventually("it is not ready", || daemon.ask("/readyz").status == 503);
    // What was acknowledged goes on being delivered.
    let before = upstream.count();
    upstream.by_default(Act::status(200));
    eventually("attempts go on", || upstream.count() > before);
    std::fs::remove_file(&ballast).unwrap();
    eventually("it heals", || {
        daemon.sender().send(&event("healed", &body, "")).status == 200
    });
    eventually("it is ready", || daemon.ask("/readyz").status == 200);
    eventually("what was given a later time is delivered too", || {
        let _ = Command::new(env!("CARGO_BIN_EXE_hookward"))
            .args([
                "queue",
                "replay",
                "--all",
                "--state",
                "pending",
                "--data-dir",
            ])
            .arg(&place)
            .output()
            .unwrap();
        pending(&daemon) == 0.0
    });
    let setup = daemon.end(Signal::TERM);
    drop(unmount);
    drop(setup);
}

struct Unmount(std::path::PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
