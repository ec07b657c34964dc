//! What a service manager hears.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that is surprised has failed"
)]

mod support;

use std::{
    io,
    os::unix::net::UnixDatagram,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use support::{Act, Daemon, HANG, Setup, Upstream, eventually};

/// A service manager's ear.
struct Manager(UnixDatagram);

impl Manager {
    fn of(setup: Setup) -> (Self, Setup) {
        let path: PathBuf = setup.dir().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(HANG)).unwrap();
        let setup = setup.env("NOTIFY_SOCKET", path.to_str().unwrap());
        (Self(socket), setup)
    }

    /// The lines of the next message.
    fn hears(&self) -> io::Result<Vec<String>> {
        let mut bytes = [0; 4096];
        let length = self.0.recv(&mut bytes)?;
        let text = std::str::from_utf8(&bytes[..length]).unwrap();
        Ok(text.lines().map(str::to_owned).collect())
    }
}

#[test]
fn a_service_manager_hears_how_it_is() {
    let upstream = Upstream::new(Act::status(200));
    let (manager, setup) = Manager::of(Daemon::relay(&upstream.url(), ""));
    let config = setup.config_path();
    let mut daemon = setup.start();
    assert_eq!(manager.hears().unwrap(), ["READY=1", "STATUS=endpoints: 1"]);

    daemon.signal(Signal::HUP);
    let reloading = manager.hears().unwrap();
    assert_eq!(reloading[0], "RELOADING=1");
    let now = reloading[1].strip_prefix("MONOTONIC_USEC=").unwrap();
    assert!(now.parse::<u64>().unwrap() > 0);
    assert_eq!(manager.hears().unwrap()[0], "READY=1");

    std::fs::write(config, "endpoints = 1").unwrap();
    daemon.signal(Signal::HUP);
    assert_eq!(manager.hears().unwrap()[0], "RELOADING=1");
    let refused = manager.hears().unwrap();
    assert_eq!(refused[0], "READY=1");
    assert!(refused[1].starts_with("STATUS=configuration refused"));

    daemon.signal(Signal::TERM);
    // The changed file may have been noticed too.
    while manager.hears().unwrap() != ["STOPPING=1"] {}
    assert!(daemon.wait().success());
}

#[test]
#[ignore = "needs root to hold one thread: run with --ignored"]
fn the_watchdog_is_fed_only_while_every_event_loop_turns() {
    let upstream = Upstream::new(Act::status(200));
    for thread in ["hookward-1", "hookward-admin", "hookward-deliv"] {
        let (manager, setup) = Manager::of(Daemon::queue(&upstream.url(), ""));
        let daemon = setup.env("WATCHDOG_USEC", "800000").start();
        assert_eq!(manager.hears().unwrap()[0], "READY=1");
        for _ in 0..5 {
            assert_eq!(manager.hears().unwrap(), ["WATCHDOG=1"]);
        }
        assert!(!daemon.log().contains("stands still"), "{thread}");
        let task = task(&daemon, thread);
        let mut strace = Command::new("strace")
            .args([
                "-qq",
                "-o",
                "/dev/null",
                "-e",
                "inject=epoll_wait:delay_enter=60000000",
            ])
            .args(["-p", &task])
            .stderr(Stdio::null())
            .spawn()
            .expect("strace is installed");
        daemon.wait_for_log("an event loop stands still");
        manager.0.set_nonblocking(true).unwrap();
        while manager.hears().is_ok() {}
        manager.0.set_nonblocking(false).unwrap();
        manager
            .0
            .set_read_timeout(Some(Duration::from_millis(800)))
            .unwrap();
        let silence = manager.hears().unwrap_err();
        assert_eq!(silence.kind(), io::ErrorKind::WouldBlock, "{thread}");

        let pid = Pid::from_raw(i32::try_from(strace.id()).unwrap()).unwrap();
        kill_process(pid, Signal::KILL).unwrap();
        strace.wait().unwrap();
        eventually("it is fed again", || {
            manager.hears().is_ok_and(|lines| lines == ["WATCHDOG=1"])
        });
    }
}

/// The number of a daemon's thread, by the beginning of its name.
fn task(daemon: &Daemon, name: &str) -> String {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
    let is_it = |task: &std::fs::DirEntry| {
        let comm = std::fs::read_to_string(task.path().join("comm")).unwrap();
        comm.starts_with(name)
    };
    let found = tasks.map(Result::unwrap).find(is_it).unwrap();
    found.file_name().into_string().unwrap()
}
