//! Files that are damaged, foreign, newer, in use, or cannot be written.

use std::{collections::BTreeSet, io::Write as _, os::unix::fs::PermissionsExt as _};

use rusqlite::Connection;

use super::*;

/// A closed store with some of everything in it.
async fn furnished() -> Dir {
    let dir = Dir::new();
    let queue = open(&dir);
    let crm = queue.crm();
    for id in 1..=20 {
        let event = NewEvent {
            key: keyed(u8::try_from(id).unwrap(), 7, KeyReuse::Duplicate),
            lane: (id % 4 == 0).then(|| Bytes::from_static(b"lane")),
            record: vec![u8::try_from(id).unwrap(); 500 * usize::try_from(id).unwrap()].into(),
            ..event(id)
        };
        crm.queue(event).await;
    }
    crm.lease_one().await.settle(dead()).await.unwrap();
    crm.lease_one().await.settle(DELIVERED).await.unwrap();
    crm.lease_one()
        .await
        .settle(retry(Duration::ZERO))
        .await
        .unwrap();
    crm.quarantine(Uuid::from_u128(99), "signature_mismatch", record_of(99));
    queue.close().await;
    dir
}

fn set(dir: &Dir, sql: &str) {
    Connection::open(dir.store())
        .unwrap()
        .execute_batch(sql)
        .unwrap();
}

/// What opening says, and that it left every byte as it was.
fn refusal(dir: &Dir) -> OpenError {
    let before = fs::read(dir.store()).unwrap_or_default();
    let error = Queue::open(dir, options(start())).expect_err("it must be refused");
    let after = fs::read(dir.store()).unwrap_or_default();
    assert!(after == before, "refused and yet changed: {error}");
    error
}

#[test]
fn a_flipped_bit_anywhere_is_told_or_harmless_and_nothing_altered_is_delivered() {
    run(async {
        let sound = furnished().await;
        let bytes = fs::read(sound.store()).unwrap();
        let genuine: BTreeSet<_> = (1..=20_u128)
            .map(|id| {
                (
                    id,
                    vec![u8::try_from(id).unwrap(); 500 * usize::try_from(id).unwrap()],
                )
            })
            .collect();
        // Every region: all of the header, then a place in each 97 bytes.
        let places = (0..100).chain((100..bytes.len()).step_by(97));
        let (mut refused, mut broke, mut fine) = (0, 0, 0);
        for (number, place) in places.enumerate() {
            let dir = Dir::new();
            fs::create_dir(&*dir).unwrap();
            let mut flipped = bytes.clone();
            flipped[place] ^= 1 << (number % 8);
            fs::write(dir.store(), &flipped).unwrap();
            let Ok(queue) = Queue::open(&dir, options(start())) else {
                refused += 1;
                continue;
            };
            let leased = queue.crm().lease(1000).await;
            match leased {
                Err(Refused::Broken) => {
                    broke += 1;
                    // The next start checks the store: no acknowledgement, no endless loop.
                    drop(queue);
                    let again = Queue::open(&dir, options(start()));
                    if let Err(error) = again {
                        assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
                    }
                }
                Err(other) => panic!("byte {place}: {other}"),
                Ok(leases) => {
                    fine += 1;
                    for lease in leases.leases {
                        let got = (lease.id().as_u128(), lease.record().to_vec());
                        assert!(genuine.contains(&got), "byte {place}: altered");
                        assert_eq!(lease.event_type(), Some("message.created"), "byte {place}");
                    }
                }
            }
        }
        assert!(refused > 0 && fine > 0, "{refused} {broke} {fine}");
    });
}

#[test]
fn a_record_that_is_not_what_was_written_is_a_dead_letter_and_blocks_nobody() {
    run(async {
        let dir = Dir::new();
        let queue = open(&dir);
        for id in 1..=3 {
            queue.crm().queue(in_lane(id, "a")).await;
        }
        queue.close().await;
        drop(queue);
        set(
            &dir,
            "UPDATE payload SET data = CAST('recorc 1' AS BLOB) WHERE id = 1",
        );
        set(&dir, "DELETE FROM payload WHERE id = 2");
        let heard = Arc::new(AtomicU64::new(0));
        let hears = heard.clone();
        let options = Options {
            observer: Observer {
                corrupt_record: Box::new(move |_| {
                    hears.fetch_add(1, Ordering::Relaxed);
                }),
                ..Observer::default()
            },
            ..options(start())
        };
        let queue = Queue::open(&dir, options).unwrap();
        let crm = queue.crm();
        let mut leased = Vec::new();
        for _ in 0..3 {
            leased = crm.lease_ids().await;
        }
        assert_eq!(leased, [3]);
        assert_eq!(heard.load(Ordering::Relaxed), 2);
        let states = [(1, State::Dead), (2, State::Dead), (3, State::Pending)];
        assert_eq!(queue.states().await, states);
        let shown = queue.show(Uuid::from_u128(1), true).await.unwrap().unwrap();
        assert_eq!(shown.record, Some(Err(CorruptRecord)));
        let error = shown.summary.last_error.unwrap();
        assert!(error.contains("not what was written"), "{error}");
    });
}

#[test]
fn a_truncated_store_is_refused_or_breaks_and_is_never_delivered_from() {
    run(async {
        let sound = furnished().await;
        let bytes = fs::read(sound.store()).unwrap();
        for length in [1, 50, 100, 4096, 5000, bytes.len() / 2, bytes.len() - 4096] {
            let dir = Dir::new();
            fs::create_dir(&*dir).unwrap();
            fs::write(dir.store(), &bytes[..length]).unwrap();
            let error = refusal(&dir);
            assert!(
                matches!(error, OpenError::Damaged { .. }),
                "{length}: {error}"
            );
        }
    });
}

#[test]
fn foreign_files_are_refused_with_a_remedy_and_left_alone() {
    let dir = Dir::new();
    fs::create_dir(&*dir).unwrap();
    fs::write(
        dir.store(),
        "not a store at all, but long enough for a header",
    )
    .unwrap();
    let said = refusal(&dir).to_string();
    assert!(
        said.contains("no SQLite file") && said.contains("restore a backup"),
        "{said}"
    );

    fs::remove_file(dir.store()).unwrap();
    set(
        &dir,
        "CREATE TABLE theirs (x); INSERT INTO theirs VALUES (1)",
    );
    let error = refusal(&dir);
    assert!(matches!(&error, OpenError::Damaged { .. }), "{error}");

    // A log without its store holds what was acknowledged.
    fs::remove_file(dir.store()).unwrap();
    let log = dir.0.join("queue.sqlite3-wal");
    fs::write(&log, "what a log may hold").unwrap();
    let error = refusal(&dir);
    assert!(matches!(&error, OpenError::Damaged { .. }), "{error}");
    assert_eq!(fs::read(&log).unwrap(), b"what a log may hold");
}

#[test]
fn a_newer_store_is_named_as_such() {
    run(async {
        let dir = furnished().await;
        set(&dir, "PRAGMA user_version = 2");
        let error = refusal(&dir);
        assert!(
            matches!(error, OpenError::Newer { version: 2, .. }),
            "{error}"
        );
    });
}

#[test]
fn tables_that_were_changed_are_refused() {
    run(async {
        let dir = furnished().await;
        set(&dir, "DROP INDEX event_state");
        let error = refusal(&dir);
        assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
    });
}

#[test]
fn one_directory_has_one_queue_at_a_time() {
    run(async {
        let dir = Dir::new();
        let queue = open(&dir);
        let error = Queue::open(&dir, options(start())).expect_err("it is in use");
        let pid = Some(std::process::id());
        assert!(
            matches!(&error, OpenError::Locked { pid: by, .. } if *by == pid),
            "{error}"
        );
        queue.crm().queue(event(1)).await;
        queue.close().await;
        drop(queue);
        assert_eq!(open(&dir).crm().lease_ids().await, [1]);
    });
}

#[test]
fn the_directory_and_its_files_are_the_owners_alone() {
    let dir = Dir::new();
    let _queue = open(&dir);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir), 0o700);
    assert_eq!(mode(&dir.store()), 0o600);
    assert_eq!(mode(&dir.join("queue.sqlite3-wal")), 0o600);
    assert_eq!(mode(&dir.join("LOCK")), 0o600);
}

#[test]
fn a_broken_store_keeps_its_log_when_it_is_closed() {
    run(async {
        let dir = Dir::new();
        let queue = open(&dir);
        queue.crm().queue(event(1)).await;
        let log = || fs::metadata(dir.join("queue.sqlite3-wal")).map_or(0, |log| log.len());
        let before = log();
        let cause = "disk I/O error".to_owned();
        queue.shared.break_off(Broken { cause });
        drop(queue);
        assert!(before > 0 && log() == before, "{before} {}", log());
        let queue = open(&dir);
        assert_eq!(queue.crm().lease_ids().await, [1]);
        queue.close().await;
        assert_eq!(log(), 0, "closed in good order, it is folded in");
    });
}

#[test]
fn a_broken_store_takes_nothing_and_is_checked_at_the_next_start() {
    run(async {
        let dir = furnished().await;
        let queue = open(&dir);
        let crm = queue.crm();
        let cause = "disk I/O error".to_owned();
        queue.shared.break_off(Broken { cause });
        assert_eq!(queue.broken().await.cause, "disk I/O error");
        assert_eq!(queue.trouble(), Some(Refused::Broken));
        assert_eq!(crm.place(0).err(), Some(Refused::Broken));
        assert_eq!(crm.lease(1).await.err(), Some(Refused::Broken));
        drop((queue, crm));
        // Sound, it opens after the check, and then needs none.
        assert!(
            fs::read_to_string(dir.join("LOCK"))
                .unwrap()
                .starts_with("check")
        );
        drop(open(&dir));
        assert!(
            fs::read_to_string(dir.join("LOCK"))
                .unwrap()
                .starts_with("fine")
        );

        // Damaged in a way that only a check finds, it is refused as often as it is asked.
        let mut bytes = fs::read(dir.store()).unwrap();
        let index = page_of(&dir, "event_uuid");
        bytes[index * 4096 + 4096 - 40..(index + 1) * 4096].fill(0xff);
        fs::write(dir.store(), &bytes).unwrap();
        let mut lock = fs::OpenOptions::new()
            .write(true)
            .open(dir.join("LOCK"))
            .unwrap();
        lock.write_all(b"check").unwrap();
        for _ in 0..2 {
            let error = refusal(&dir);
            assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
        }
    });
}

fn page_of(dir: &Dir, table: &str) -> usize {
    let sql = "SELECT rootpage - 1 FROM sqlite_schema WHERE name = ?1";
    let connection = Connection::open(dir.store()).unwrap();
    let page: u32 = connection
        .query_row(sql, [table], |row| row.get(0))
        .unwrap();
    page.try_into().unwrap()
}

#[test]
fn while_another_program_holds_the_write_lock_old_events_go_on_and_it_heals() {
    run(async {
        let dir = Dir::new();
        let queue = open(&dir);
        let crm = queue.crm();
        for id in 1..=4 {
            crm.queue(event(id)).await;
        }
        let before = crm.lease_one().await;
        // It rolls back as cleanly as a full disk does.
        let other = Connection::open(dir.store()).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        let refused = crm.append(event(5)).await;
        let held = Refused::Storage(StorageFault::Held);
        assert_eq!(refused, Err(AppendError::Refused(held)));
        assert_eq!(queue.trouble(), Some(held));
        assert_eq!(crm.place(0).err(), Some(held));

        let mut leased = crm.lease(2).await.unwrap().leases;
        let ids: Vec<_> = leased
            .iter()
            .map(|l| (l.id().as_u128(), l.attempt()))
            .collect();
        assert_eq!(ids, [(2, 1), (3, 1)]);
        assert_eq!(*leased[0].record(), record_of(2));
        before.settle(DELIVERED).await.unwrap();
        leased
            .remove(0)
            .settle(retry(Duration::ZERO))
            .await
            .unwrap();
        let again = crm.lease(1).await.unwrap().leases;
        assert_eq!((again[0].id().as_u128(), again[0].attempt()), (2, 2));

        other.execute_batch("ROLLBACK").unwrap();
        eventually(async || queue.trouble().is_none()).await;
        crm.queue(event(5)).await;
        let states = [
            (1, State::Delivered),
            (2, State::Leased),
            (3, State::Leased),
            (4, State::Pending),
            (5, State::Pending),
        ];
        assert_eq!(queue.states().await, states);
        for lease in leased.into_iter().chain(again) {
            lease.settle(DELIVERED).await.unwrap();
        }
        let stats = queue.stats_of("crm").await;
        assert_eq!((stats.pending, stats.leased, stats.delivered), (2, 0, 3));
    });
}

/// For a directory on a small file system of its own: 32 MiB of tmpfs, named by
/// `HOOKWARD_SMALL_DIR`.
#[test]
#[ignore = "needs a small file system, named by HOOKWARD_SMALL_DIR"]
fn a_full_disk_refuses_new_events_goes_on_with_old_ones_and_heals() {
    run(async {
        let small = PathBuf::from(std::env::var_os("HOOKWARD_SMALL_DIR").unwrap());
        let others = ["ballast", "filler"].map(|name| small.join(name));
        fs::write(&others[0], vec![0; 16 << 20]).unwrap();
        let queue = open(&small.join("data"));
        let crm = queue.crm();
        let large = |id| NewEvent {
            record: vec![7; 256 * 1024].into(),
            ..event(id)
        };
        let full = Refused::Storage(StorageFault::DiskFull);
        let mut kept = 0;
        let refused = loop {
            match crm.append(large(kept + 1)).await {
                Ok(_) => kept += 1,
                Err(refused) => break refused,
            }
        };
        assert_eq!(refused, AppendError::Refused(full));
        let mut filler = fs::File::create(&others[1]).unwrap();
        while filler.write_all(&[0; 4096]).is_ok() {}

        assert!(kept > 3);
        for id in 1..=kept {
            let lease = crm.lease_one().await;
            assert_eq!(
                (lease.id().as_u128(), lease.record().len()),
                (id, 256 * 1024)
            );
            lease.settle(DELIVERED).await.unwrap();
        }
        assert_eq!(crm.place(0).err(), Some(full));
        for other in &others {
            fs::remove_file(other).unwrap();
        }
        eventually(async || queue.trouble().is_none()).await;
        let delivered = u64::try_from(kept).unwrap();
        assert_eq!(queue.stats_of("crm").await.delivered, delivered);
        crm.queue(large(kept + 1)).await;
        queue.close().await;
    });
}
