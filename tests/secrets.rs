//! What the process keeps of a secret, and who may look at it.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that is surprised has failed"
)]

mod support;

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom},
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _},
        process::CommandExt as _,
    },
    path::Path,
    process::{Command, Stdio},
};

use support::{Act, BODY, Daemon, Dir, SECRET, Sender, Upstream, event, eventually, sign};

/// The limit on core files of a process, as `/proc` shows it: soft and hard.
fn core_limit(pid: u32) -> Vec<String> {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = limits.lines().find(|l| l.starts_with("Max core file size"));
    let words = line.unwrap()["Max core file size".len()..].split_whitespace();
    words.take(2).map(str::to_owned).collect()
}

#[test]
fn a_crash_leaves_no_core() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::relay(&upstream.url(), "").start();
    assert_eq!(core_limit(daemon.pid()), ["0", "0"]);
}

/// Nobody: a user without rights, under any name.
const NOBODY: u32 = 65_534;

/// The kernel gives `/proc/PID` of a process that is not dumpable to root, whoever runs it: that
/// is how it can be told from outside, and what keeps others of the same user out of its memory.
#[test]
#[ignore = "needs root: run by .ci/run"]
fn nobody_of_the_same_user_may_look_into_it_and_it_still_sees_itself() {
    let dir = Dir::new();
    fs::set_permissions(&dir.0, fs::Permissions::from_mode(0o755)).unwrap();
    let binary = dir.0.join("hookward");
    fs::copy(env!("CARGO_BIN_EXE_hookward"), &binary).unwrap();
    let upstream = Upstream::nobody();
    let mut child = Command::new(&binary)
        .args(["serve", "--upstream", &format!("http://{upstream}/")])
        .args(["--secret-env", "SECRET", "--listen", "127.0.0.1:0"])
        .env_clear()
        .env("SECRET", SECRET)
        .env("HOOKWARD_ADMIN__LISTEN", r#"["127.0.0.1:0"]"#)
        .current_dir("/")
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .uid(NOBODY)
        .gid(NOBODY)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let admin = lines.find_map(|line| {
        let line: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
        (line["listener"] == "admin").then(|| line["address"].as_str().unwrap().to_owned())
    });
    let pid = child.id();
    let owner = |name: &str| {
        let data = fs::metadata(format!("/proc/{pid}/{name}"));
        data.unwrap().uid()
    };
    let owners = ["environ", "maps", "mem", "fd"].map(owner);
    let mut sender = Sender::connect(admin.unwrap().parse().unwrap());
    let metrics = sender
        .send(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
        .text();
    let runs_as = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(runs_as.contains(&format!("Uid:\t{NOBODY}\t")), "{runs_as}");
    assert_eq!(owners, [0; 4]);
    for own in ["process_open_fds", "process_resident_memory_bytes"] {
        let line = metrics.lines().find(|l| l.starts_with(own));
        let value = line.and_then(|l| l.rsplit(' ').next()).unwrap();
        assert!(value.parse::<f64>().unwrap() > 0.0, "{own} {value}");
    }
}

/// How often each of these bytes is in the memory that a process can write to.
fn count_in_memory(pid: u32, wanted: &[(&str, Vec<u8>)]) -> Vec<usize> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let mut memory = fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut counts = vec![0; wanted.len()];
    for line in maps.lines().filter(|l| l.contains(" rw")) {
        let (from, rest) = line.split_once('-').unwrap();
        let from = u64::from_str_radix(from, 16).unwrap();
        let to = u64::from_str_radix(rest.split(' ').next().unwrap(), 16).unwrap();
        for (from, to) in present(pid, from, to) {
            let mut bytes = vec![0; usize::try_from(to - from).unwrap()];
            memory.seek(SeekFrom::Start(from)).unwrap();
            // What was given back meanwhile, or is the kernel's own, holds nothing of ours.
            let Ok(()) = memory.read_exact(&mut bytes) else {
                continue;
            };
            for (count, (_, wanted)) in counts.iter_mut().zip(wanted) {
                *count += memchr::memmem::find_iter(&bytes, wanted).count();
            }
        }
    }
    counts
}

/// The stretches of an area that are in memory or swapped out, and not merely promised.
///
/// Source: the kernel's documentation, "pagemap": one word a page, bit 63 present, bit 62 swapped.
fn present(pid: u32, from: u64, to: u64) -> Vec<(u64, u64)> {
    let page = u64::try_from(rustix::param::page_size()).unwrap();
    let mut pagemap = fs::File::open(format!("/proc/{pid}/pagemap")).unwrap();
    pagemap.seek(SeekFrom::Start(from / page * 8)).unwrap();
    let mut words = vec![0; usize::try_from((to - from) / page * 8).unwrap()];
    if pagemap.read_exact(&mut words).is_err() {
        return Vec::new();
    }
    let pages = words
        .as_chunks::<8>()
        .0
        .iter()
        .zip((from..to).step_by(rustix::param::page_size()));
    let held = pages.filter(|(word, _)| u64::from_ne_bytes(**word) >> 62 != 0);
    let mut stretches: Vec<(u64, u64)> = Vec::new();
    for (_, at) in held {
        match stretches.last_mut() {
            Some((_, end)) if *end == at => *end += page,
            _ => stretches.push((at, at + page)),
        }
    }
    stretches
}

/// HMAC-SHA-256's inner state after the key (FIPS 198-1, step 4 to 6), as it lies in memory: as
/// good as the key itself.
fn key_schedule(secret: &str) -> Vec<u8> {
    let mut state = [
        0x6a09_e667,
        0xbb67_ae85,
        0x3c6e_f372,
        0xa54f_f53a,
        0x510e_527f,
        0x9b05_688c,
        0x1f83_d9ab,
        0x5be0_cd19_u32,
    ];
    let mut block = [0x36; 64];
    for (to, from) in block.iter_mut().zip(secret.bytes()) {
        *to ^= from;
    }
    sha2::block_api::compress256(&mut state, &[block]);
    state.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

#[test]
#[ignore = "needs root: run by .ci/run"]
fn a_secret_that_was_taken_away_is_nowhere_in_memory() {
    const OLD: &str = "canary-that-flew-away-0123456789";
    const NEW: &str = "canary-that-sings-on-a-different";
    let place = Dir::new();
    let file = place.0.join("secret");
    let keep = |secret: &str| {
        fs::write(&file, hex::encode(secret)).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    };
    keep(OLD);
    let upstream = Upstream::new(Act::status(200));
    let secrets = format!(
        "secrets = [{{ file = \"{}\", encoding = \"hex\" }}]\n",
        file.display()
    );
    let daemon = Daemon::relay(&upstream.url(), &secrets).start();
    let send = |secret: &str, key: &str| {
        let genuine = String::from_utf8(event(key, BODY.as_bytes(), "")).unwrap();
        let body = BODY.as_bytes();
        let signed = genuine.replace(&sign(SECRET, body), &sign(secret, body));
        // Over connections enough that every thread has some.
        let statuses = [(); 16].map(|()| daemon.sender().send(signed.as_bytes()).status);
        assert_eq!(statuses, [200; 16], "{secret}");
    };
    let wanted = [
        ("the old secret", OLD.as_bytes().to_vec()),
        ("the old secret as written", hex::encode(OLD).into_bytes()),
        ("the old key schedule", key_schedule(OLD)),
        ("the new secret", NEW.as_bytes().to_vec()),
        ("the new secret as written", hex::encode(NEW).into_bytes()),
        ("the new key schedule", key_schedule(NEW)),
    ];
    let found = || count_in_memory(daemon.pid(), &wanted);

    send(OLD, "before");
    let before = found();
    assert!(before[2] > 0, "what is in use is found: {before:?}");
    assert_eq!(before[..2], [0, 0], "only its key schedule is kept");

    keep(NEW);
    eventually("it is read again", || {
        daemon.metric("hookward_config_reloads_total", &[]) == 1.0
    });
    send(NEW, "after");
    // A thread's stack holds what was there until something else is put there.
    let mut after = found();
    eventually("the old one is gone", || {
        send(NEW, "again");
        after = found();
        after[..5] == [0; 5]
    });
    assert!(after[5] > 0, "what is in use is found: {after:?}");
}

#[test]
fn a_secret_that_every_user_can_read_or_change_is_worth_a_warning() {
    let place = Dir::new();
    // Where others may enter, and what is written stays on a disk: nothing is said otherwise.
    fs::set_permissions(&place.0, fs::Permissions::from_mode(0o755)).unwrap();
    let file = place.write("secret", "a-secret-in-a-file-0123456789");
    let url = "http://127.0.0.1:9/";
    let warned = |mode: u32| {
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        let config = Daemon::endpoint(
            "crm",
            "/hook",
            url,
            &format!("secrets = [{{ file = \"{}\" }}]", file.display()),
        );
        let listen = "[server]\nlisten = [\"127.0.0.1:8080\"]\n";
        let config = place.write("hookward.toml", &[listen, &config].concat());
        let (out, said) = check(&config);
        assert!(!out.contains("a-secret") && !said.contains("a-secret"));
        said
    };
    let changed = warned(0o602);
    assert!(
        changed.contains("endpoints.crm.secrets[0].file") && changed.contains("chmod o-rwx"),
        "{changed}"
    );
    assert_eq!(warned(0o600), "");
    assert_eq!(warned(0o640), "", "a group is somebody's choice");
}

#[test]
fn what_is_shown_of_a_configuration_holds_no_credential() {
    let place = Dir::new();
    let canary = "canary-in-plain-sight";
    let config = Daemon::endpoint(
        "crm",
        "/hook",
        &format!("http://127.0.0.1:9/in?token={canary}"),
        &format!(
            "[endpoints.crm.upstream_options.headers]\nX-Plain = \"{canary}\"\n\
             X-Other = {{ env = \"OTHER\" }}\n"
        ),
    );
    let config = place.write("hookward.toml", &config);
    let (out, said) = check(&config);
    assert!(!out.contains("canary") && !said.contains("canary"), "{out}");
    assert!(out.contains("http://127.0.0.1:9/in?***"), "{out}");
}

/// What `check` prints of a configuration: on stdout and on stderr.
fn check(config: &Path) -> (String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_hookward"))
        .args(["check", "--config"])
        .arg(config)
        .env_clear()
        .env("SECRET", SECRET)
        .env("OTHER", "canary-in-a-variable")
        .output()
        .unwrap();
    let [out, said] = [output.stdout, output.stderr].map(|b| String::from_utf8(b).unwrap());
    assert!(output.status.success(), "{said}");
    (out, said)
}
