//! What the system is asked for, in which order, and what happens when it fails.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that is surprised has failed"
)]

mod support;

use std::{
    collections::HashMap,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
};

use rustix::process::{Pid, Signal, kill_process};
use support::{Act, BODY, Daemon, HANG, Upstream, event, eventually};

fn send(daemon: &Daemon, key: &str) -> support::Reply {
    daemon.sender().send(&event(key, BODY.as_bytes(), ""))
}

/// strace, attached to every thread of a daemon.
struct Trace {
    child: Child,
}

impl Trace {
    /// Attaches and waits until it has.
    fn attach(daemon: &Daemon, to: &Path, args: &[&str]) -> Self {
        let child = Command::new("strace")
            .args(["-f", "-tt", "-y", "-s", "64", "-o"])
            .arg(to)
            .args(args)
            .args(["-p", &daemon.pid().to_string()])
            .stderr(Stdio::null())
            .spawn()
            .expect("strace is installed");
        let trace = Self { child };
        let tasks = format!("/proc/{}/task", daemon.pid());
        let is_traced = |task: std::fs::DirEntry| {
            let status = std::fs::read_to_string(task.path().join("status"));
            !status.unwrap_or_default().contains("TracerPid:\t0\n")
        };
        eventually("strace is attached to every thread", || {
            let mut tasks = std::fs::read_dir(&tasks).unwrap();
            tasks.all(|task| task.is_ok_and(is_traced))
        });
        trace
    }

    fn detach(mut self) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, Signal::INT).unwrap();
        self.child.wait().unwrap();
    }
}

/// A call: the lines of the trace at which it began and returned, and what it was.
struct Call {
    began: usize,
    returned: usize,
    text: String,
}

/// The calls of a trace, in the order they returned; strace writes one that another thread's came
/// between on two lines.
fn calls(trace: &str) -> Vec<Call> {
    let mut open: HashMap<&str, (usize, &str)> = HashMap::new();
    let mut calls = Vec::new();
    for (number, line) in trace.lines().enumerate() {
        // Short thread numbers are padded.
        let Some((thread, rest)) = line.split_once(' ') else {
            continue;
        };
        let Some((_time, text)) = rest.trim_start().split_once(' ') else {
            continue;
        };
        if let Some(begin) = text.strip_suffix("<unfinished ...>") {
            open.insert(thread, (number, begin));
        } else if let Some((_, rest)) = text.split_once(" resumed>") {
            if let Some((began, begin)) = open.remove(thread) {
                let text = format!("{begin}{rest}");
                calls.push(Call {
                    began,
                    returned: number,
                    text,
                });
            }
        } else {
            let text = text.to_owned();
            calls.push(Call {
                began: number,
                returned: number,
                text,
            });
        }
    }
    calls
}

#[test]
#[ignore = "needs strace and root: run by .ci/run"]
fn every_200_follows_a_sync_that_covers_it() {
    const SENDERS: usize = 4;
    const EACH: usize = 50;
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::queue(&upstream.url(), "").start();
    // What comes after is traced from its first byte on.
    let file = daemon.dir.0.join("trace");
    let wanted = "trace=fsync,fdatasync,write,sendto,sendmsg,writev,recvfrom,read";
    let trace = Trace::attach(&daemon, &file, &["-e", wanted]);
    thread::scope(|scope| {
        for sender in 0..SENDERS {
            let daemon = &daemon;
            scope.spawn(move || {
                let mut connection = daemon.sender();
                for number in 0..EACH {
                    let request = event(&format!("{sender}-{number}"), BODY.as_bytes(), "");
                    assert_eq!(connection.send(&request).outcome(), "queued");
                }
            });
        }
    });
    // strace says what a call was when it has returned, which may be after the sender has its answer.
    eventually("every answer is in the trace", || {
        let calls = calls(&std::fs::read_to_string(&file).unwrap());
        calls.iter().filter(|call| is_answer(call)).count() == SENDERS * EACH
    });
    trace.detach();
    let text = std::fs::read_to_string(&file).unwrap();
    // A commit is frames in the log, then a sync of the log. An answer is covered when a sync that
    // began after its request was read returned before the answer was begun.
    let mut read: HashMap<String, usize> = HashMap::new();
    let mut syncs: Vec<(usize, usize)> = Vec::new();
    let mut answers: Vec<(usize, usize)> = Vec::new();
    for call in calls(&text) {
        let is_sync = call.text.starts_with("fdatasync(") || call.text.starts_with("fsync(");
        if is_sync && call.text.contains("-wal>") && call.text.ends_with("= 0") {
            syncs.push((call.began, call.returned));
        } else if call.text.contains("\"POST /hook") {
            read.insert(socket(&call.text), call.returned);
        } else if is_answer(&call) {
            let was_read = read.remove(&socket(&call.text)).expect(&call.text);
            answers.push((was_read, call.began));
        }
    }
    assert_eq!(answers.len(), SENDERS * EACH, "the trace is not whole");
    for (was_read, begun) in answers {
        let covers = |(from, to): &(usize, usize)| *from > was_read && *to < begun;
        assert!(
            syncs.iter().any(covers),
            "read at line {was_read}, answered at line {begun}, not synced between"
        );
    }
}

/// Whether a call sends a 200.
fn is_answer(call: &Call) -> bool {
    call.text.contains("\"HTTP/1.1 200 OK")
}

/// The socket a call is about, as strace names it.
fn socket(call: &str) -> String {
    let start = call.find("<socket:[").unwrap();
    let end = call[start..].find(']').unwrap();
    call[start..start + end].to_owned()
}

#[test]
#[ignore = "needs strace and root: run by .ci/run"]
fn after_a_failed_sync_nothing_is_acknowledged_and_the_next_start_delivers() {
    let upstream = Upstream::new(Act::status(503));
    let later = "[endpoints.crm.queue]\nretry = [\"2s\", \"2s\", \"2s\", \"2s\", \"2s\", \"2s\"]\n";
    let mut daemon = Daemon::queue(&upstream.url(), later).start();
    assert_eq!(send(&daemon, "before").outcome(), "queued");
    let file = daemon.dir.0.join("trace");
    let failing = [
        "-e",
        "trace=fsync,fdatasync",
        "-e",
        "inject=fsync,fdatasync:error=EIO:when=3+",
    ];
    let trace = Trace::attach(&daemon, &file, &failing);
    let mut acknowledged = vec!["before".to_owned()];
    let refused = (0..1000).find_map(|number| {
        let key = format!("k-{number}");
        let mut connection = std::net::TcpStream::connect(daemon.public).ok()?;
        connection.set_read_timeout(Some(HANG)).unwrap();
        std::io::Write::write_all(&mut connection, &event(&key, BODY.as_bytes(), "")).ok()?;
        let mut answer = vec![0; 4096];
        let length = std::io::Read::read(&mut connection, &mut answer).unwrap_or(0);
        let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
        if answer.starts_with("HTTP/1.1 200") {
            acknowledged.push(key);
            return None;
        }
        Some(answer)
    });
    let refused = refused.expect("something is refused");
    assert!(
        refused.is_empty() || refused.starts_with("HTTP/1.1 503"),
        "{refused}"
    );
    assert_eq!(daemon.wait().code(), Some(1));
    trace.detach();
    let log = daemon.log();
    assert!(log.contains("the next start looks at the store"), "{log}");

    upstream.by_default(Act::status(200));
    let daemon = daemon.end_of_it().start();
    for key in &acknowledged {
        assert_eq!(send(&daemon, key).outcome(), "duplicate", "{key}");
    }
    let delivered = || {
        let labels = [("endpoint", "crm"), ("state", "pending")];
        daemon.metric("hookward_queue_events", &labels) == 0.0
    };
    eventually("all are delivered", delivered);
}
