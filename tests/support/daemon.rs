use std::{
    io::{BufRead as _, BufReader},
    net::{SocketAddr, TcpListener},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use super::{HANG, SECRET, Sender};

/// A directory of a test's own, removed with it.
#[derive(Debug)]
pub(crate) struct Dir(pub(crate) PathBuf);

impl Dir {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("hookward-test-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A running hookward.
pub(crate) struct Daemon {
    child: Child,
    pub(crate) public: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) dir: Dir,
    /// What it was started with.
    config: String,
    env: Vec<(String, String)>,
    log: Arc<(Mutex<String>, Condvar)>,
}

/// Whether a daemon's serving thread has something to do.
#[derive(Clone, Debug)]
pub(crate) struct Calm(PathBuf);

impl Calm {
    /// Waits until it has nothing to do: whatever was sent before has been read.
    pub(crate) fn wait(&self) {
        let is_asleep = || {
            let stat = std::fs::read_to_string(&self.0).unwrap_or_default();
            // The state stands behind the name, which is in brackets.
            let state = stat.rsplit_once(") ").map_or("", |(_, state)| state);
            state.is_empty() || state.starts_with('S')
        };
        let end = Instant::now() + HANG;
        while !is_asleep() {
            assert!(Instant::now() < end, "it never rests");
            thread::yield_now();
        }
    }
}

/// A hookward about to run.
pub(crate) struct Setup {
    config: String,
    /// Instead of a file.
    flags: Option<Vec<String>>,
    /// Most descriptors it may have.
    descriptors: Option<u32>,
    /// A socket handed over as systemd does.
    passed: Option<TcpListener>,
    env: Vec<(String, String)>,
    dir: Dir,
}

/// Becomes the daemon (`$0`), with stdin as the one socket that systemd would pass.
const PASS: &str = r#"export LISTEN_PID=$$ LISTEN_FDS=1; exec "$0" "$@" 3<&0 </dev/null"#;

impl Setup {
    fn new(config: String) -> Self {
        Self {
            config,
            flags: None,
            descriptors: None,
            passed: None,
            env: Vec::new(),
            dir: Dir::new(),
        }
    }

    /// Hands a listening socket over, in place of what the configuration says.
    pub(crate) fn pass(mut self, listener: TcpListener) -> Self {
        self.passed = Some(listener);
        self
    }

    /// Gives it a place on disk.
    pub(crate) fn on_disk(self) -> Self {
        let place = self.data_dir().display().to_string();
        self.env("HOOKWARD_DATA_DIR", &place)
    }

    /// The place on disk.
    pub(crate) fn data_dir(&self) -> PathBuf {
        self.dir.0.join("data")
    }

    /// The same, with some of its configuration's text replaced.
    pub(crate) fn replace(mut self, from: &str, to: &str) -> Self {
        assert!(self.config.contains(from), "{}", self.config);
        self.config = self.config.replace(from, to);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn config_path(&self) -> PathBuf {
        self.dir.0.join("hookward.toml")
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir.0
    }

    fn command(&self) -> Command {
        let path = self.dir.write("hookward.toml", &self.config);
        let binary = env!("CARGO_BIN_EXE_hookward");
        let (mut command, stdin) = match (&self.passed, self.descriptors) {
            (None, None) => (Command::new(binary), Stdio::null()),
            (None, Some(most)) => {
                let mut shell = Command::new("/bin/sh");
                shell.args([
                    "-c",
                    &format!(r#"ulimit -n {most}; exec "$0" "$@""#),
                    binary,
                ]);
                (shell, Stdio::null())
            }
            (Some(listener), _) => {
                let mut shell = Command::new("/bin/sh");
                shell.args(["-c", PASS, binary]);
                (shell, OwnedFd::from(listener.try_clone().unwrap()).into())
            }
        };
        command
            .env_clear()
            .env("SECRET", SECRET)
            .envs(self.env.iter().cloned());
        match &self.flags {
            Some(flags) => command.arg("serve").args(flags),
            None => command.args(["serve", "--config"]).arg(path),
        };
        command
            .stdin(stdin)
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command
    }

    /// Starts it with no more descriptors than this.
    pub(crate) fn start_with_descriptors(mut self, most: u32) -> Daemon {
        self.descriptors = Some(most);
        self.start()
    }

    /// Starts it and waits until it is ready.
    pub(crate) fn start(self) -> Daemon {
        self.start_when("\"message\":\"ready\"")
    }

    /// Starts it and waits for a text in its log; the addresses are known where that is JSON.
    pub(crate) fn start_when(self, logged: &str) -> Daemon {
        let mut child = self.command().spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let log = Arc::new((Mutex::new(String::new()), Condvar::new()));
        let shared = log.clone();
        thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                shared.0.lock().unwrap().push_str(&(line + "\n"));
                shared.1.notify_all();
            }
            shared.0.lock().unwrap().push_str("[end of log]\n");
            shared.1.notify_all();
        });
        let unknown = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut daemon = Daemon {
            child,
            public: unknown,
            admin: unknown,
            dir: self.dir,
            config: self.config,
            env: self.env,
            log,
        };
        daemon.wait_for_log(logged);
        daemon.public = daemon.address("public").unwrap_or(unknown);
        daemon.admin = daemon.address("admin").unwrap_or(unknown);
        daemon
    }

    /// Starts it where it must not start: its exit code and what it said.
    pub(crate) fn refuse(&self) -> (i32, String) {
        let mut child = self.command().spawn().unwrap();
        let pipe = child.stderr.take().unwrap();
        let said = thread::spawn(move || std::io::read_to_string(pipe).unwrap());
        let status = ended(&mut child);
        if status.is_none() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        let said = said.join().unwrap();
        let code = status.and_then(|s| s.code());
        (code.unwrap_or_else(|| panic!("it started: {said}")), said)
    }
}

impl Daemon {
    /// One relay endpoint named `crm` at `/hook`; `more` goes into its table.
    pub(crate) fn relay(upstream: &str, more: &str) -> Setup {
        Self::with("", &Self::endpoint("crm", "/hook", upstream, more))
    }

    /// The same endpoint in queue mode, with a place on disk; `more` goes into its table.
    pub(crate) fn queue(upstream: &str, more: &str) -> Setup {
        Self::relay(upstream, &format!("mode = \"queue\"\n{more}")).on_disk()
    }

    /// The table of an endpoint.
    pub(crate) fn endpoint(name: &str, path: &str, upstream: &str, more: &str) -> String {
        let secrets = if more.contains("secrets =") {
            ""
        } else {
            "secrets = [{ name = \"main\", env = \"SECRET\" }]\n"
        };
        format!(
            "[endpoints.{name}]\npath = \"{path}\"\nupstream = \"{upstream}\"\n{secrets}{more}\n"
        )
    }

    /// Anything: `top` before the listeners' tables, `rest` after them.
    pub(crate) fn with(top: &str, rest: &str) -> Setup {
        let config = format!(
            "{top}\n[server]\nlisten = [\"127.0.0.1:0\"]\nthreads = 2\n\
             [admin]\nlisten = [\"127.0.0.1:0\"]\n{rest}\n"
        );
        Setup::new(config)
    }

    /// A configuration in full.
    pub(crate) fn config(config: &str) -> Setup {
        Setup::new(config.to_owned())
    }

    /// No file: flags alone, and an admin listener at a port of its own.
    pub(crate) fn flags(flags: &[&str]) -> Setup {
        let mut setup = Setup::new(String::new());
        setup.flags = Some(flags.iter().map(|&flag| flag.to_owned()).collect());
        setup.env("HOOKWARD_ADMIN__LISTEN", r#"["127.0.0.1:0"]"#)
    }

    pub(crate) fn sender(&self) -> Sender {
        Sender::connect(self.public)
    }

    /// A look at the thread that serves, of which there has to be one.
    pub(crate) fn calm(&self) -> Calm {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
        let mut serving = tasks.map(|task| task.unwrap().path()).filter(|task| {
            let name = std::fs::read_to_string(task.join("comm")).unwrap_or_default();
            name.trim_end() == "hookward-0"
        });
        Calm(serving.next().unwrap().join("stat"))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
    }

    /// Ends it with a signal, waits for that, and gives back what it was started with: the same
    /// configuration, the same directory.
    pub(crate) fn end(mut self, signal: Signal) -> Setup {
        self.signal(signal);
        self.wait();
        self.end_of_it()
    }

    /// The same where it has ended.
    pub(crate) fn end_of_it(mut self) -> Setup {
        Setup {
            config: std::mem::take(&mut self.config),
            flags: None,
            descriptors: None,
            passed: None,
            env: std::mem::take(&mut self.env),
            dir: std::mem::replace(&mut self.dir, Dir::new()),
        }
    }

    /// The place on disk.
    pub(crate) fn data_dir(&self) -> PathBuf {
        self.dir.0.join("data")
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        ended(&mut self.child).unwrap_or_else(|| panic!("it does not end"))
    }

    /// The lines of the log so far, every one of which has to be JSON.
    pub(crate) fn lines(&self) -> Vec<serde_json::Value> {
        let parse =
            |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
        let log = self.log();
        log.lines()
            .filter(|l| *l != "[end of log]")
            .map(parse)
            .collect()
    }

    pub(crate) fn log(&self) -> String {
        // Also when a wait for some line has just panicked: then it is wanted most.
        let log = self.log.0.lock().unwrap_or_else(PoisonError::into_inner);
        log.clone()
    }

    /// Waits until the log holds a text.
    pub(crate) fn wait_for_log(&self, text: &str) {
        let mut log = self.log.0.lock().unwrap();
        while !log.contains(text) {
            assert!(
                !log.contains("[end of log]"),
                "ended without {text:?}:\n{log}"
            );
            let (held, timeout) = self.log.1.wait_timeout(log, HANG).unwrap();
            log = held;
            assert!(!timeout.timed_out(), "never logged {text:?}:\n{log}");
        }
    }

    /// Where a listener of this kind is.
    pub(crate) fn address(&self, listener: &str) -> Option<SocketAddr> {
        let log = self.log();
        let line = log.lines().find(|l| {
            l.contains("\"listening\"") && l.contains(&format!("\"listener\":\"{listener}\""))
        });
        let line: serde_json::Value = serde_json::from_str(line?).ok()?;
        line["address"].as_str()?.parse().ok()
    }

    /// Somebody with the token, where there is one.
    pub(crate) fn operator(&self) -> super::Operator {
        super::Operator(self.admin)
    }

    /// The answer of the admin side to a GET.
    pub(crate) fn ask(&self, path: &str) -> super::Reply {
        let mut admin = Sender::connect(self.admin);
        admin.write(
            format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").as_bytes(),
        );
        admin.reply()
    }

    /// The value of a metric; labels as they are written, in any order. 0 when absent.
    pub(crate) fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let text = self.ask("/metrics").text();
        let wanted: Vec<_> = labels.iter().map(|(n, v)| format!("{n}=\"{v}\"")).collect();
        text.lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.rsplit_once(' '))
            .find(|(series, _)| {
                let (series_name, series_labels) = series.split_once('{').unwrap_or((series, ""));
                series_name == name && wanted.iter().all(|label| series_labels.contains(label))
            })
            .map_or(0.0, |(_, value)| value.parse().unwrap())
    }
}

/// How a process ended; `None` when it goes on.
fn ended(child: &mut Child) -> Option<ExitStatus> {
    let end = Instant::now() + HANG;
    loop {
        match child.try_wait().unwrap() {
            None if Instant::now() < end => thread::park_timeout(Duration::from_millis(5)),
            status => return status,
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- the daemon's log\n{}", self.log());
        }
    }
}
