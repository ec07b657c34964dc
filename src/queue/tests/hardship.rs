//! What the queue goes on through, and what it ends for: numbers and times that cannot be, files
//! that are taken away, a full endpoint, a disk that takes nothing at the start.

use std::collections::BTreeSet;

use rusqlite::Connection;

use super::*;

/// A closed store with one event, changed by a statement that no check hinders.
async fn changed(sql: &str) -> Dir {
    let dir = Dir::new();
    let queue = open(&dir);
    for id in 1..=3 {
        queue.crm().queue(event(id)).await;
    }
    queue.close().await;
    drop(queue);
    let store = Connection::open(dir.store()).unwrap();
    store
        .execute_batch("PRAGMA ignore_check_constraints = 1")
        .unwrap();
    store.execute_batch(sql).unwrap();
    dir
}

#[test]
fn a_number_that_was_given_is_not_given_again_whatever_the_store_says() {
    run(async {
        for number in ["1", "-7", "9223372036854775807"] {
            let dir = changed(&format!("UPDATE store SET next_id = {number}")).await;
            let queue = open(&dir);
            queue.crm().queue(event(4)).await;
            queue.crm().queue(event(5)).await;
            assert_eq!(queue.crm().lease_ids().await, [1, 2, 3, 4, 5], "{number}");
        }
    });
}

#[test]
fn a_time_that_cannot_be_is_clamped() {
    run(async {
        for at in [i64::MAX, i64::MIN] {
            let dir = changed(&format!(
                "UPDATE event SET at = {at}, created = {at} WHERE id = 2"
            ))
            .await;
            let queue = open(&dir);
            let page = queue.list(&Filter::default(), Cursor::default(), 10).await;
            let events = page.unwrap().events;
            assert_eq!(events.len(), 3);
            // What shows it takes years of four digits only.
            let year = |time| humantime::format_rfc3339_millis(time).to_string()[..4].to_owned();
            let expected = if at > 0 { "9999" } else { "1970" };
            assert_eq!(year(events[1].appended_at), expected);
            assert_eq!(year(events[1].due_at.unwrap()), expected);
        }
    });
}

#[test]
fn a_clock_that_cannot_be_does_not_make_everything_over() {
    run(async {
        let dir = changed("UPDATE store SET clock = 9223372036854775807").await;
        // The wall clock has gone on since the events were appended.
        let queue = Queue::open(&dir, options(start() + HOUR / 2)).unwrap();
        assert_eq!(queue.crm().lease_one().await.id().as_u128(), 1);
        queue.crm().queue(event(4)).await;
        let page = queue.list(&Filter::default(), Cursor::default(), 10).await;
        let last = page.unwrap().events.pop().unwrap();
        assert!(last.appended_at < start() + HOUR, "{:?}", last.appended_at);
    });
}

#[test]
fn a_row_that_cannot_be_read_does_not_hide_the_others_from_a_listing() {
    run(async {
        for change in [
            "uuid = x'00'",
            "state = 7",
            "endpoint = 99",
            "attempts = -1",
            "last_status = 70000",
        ] {
            let dir = changed(&format!("UPDATE event SET {change} WHERE id = 2")).await;
            let queue = open(&dir);
            let states = [(1, State::Pending), (3, State::Pending)];
            assert_eq!(queue.states().await, states, "{change}");
            assert_eq!(queue.trouble(), None, "{change}");
        }
    });
}

#[test]
fn attempts_that_cannot_be_more_stay_where_they_are() {
    run(async {
        let most = u32::try_from(i32::MAX).unwrap();
        let dir = changed(&format!("UPDATE event SET attempts = {most} WHERE id = 2")).await;
        let queue = open(&dir);
        let crm = queue.crm();
        for _ in 0..3 {
            let leased = crm.lease(10).await.unwrap().leases;
            let attempts: Vec<_> = leased
                .iter()
                .map(|l| (l.id().as_u128(), l.attempt()))
                .collect();
            assert!(attempts.contains(&(2, most)), "{attempts:?}");
            for mut lease in leased {
                lease.sent_again(u32::MAX);
                lease.settle(retry(Duration::ZERO)).await.unwrap();
            }
        }
        let leased = crm.lease(10).await.unwrap().leases;
        assert!(leased.iter().all(|lease| lease.attempt() == most));
        for lease in leased {
            lease.settle(DELIVERED).await.unwrap();
        }
        assert_eq!(queue.stats_of("crm").await.delivered, 3);
        assert_eq!(queue.trouble(), None);
    });
}

#[test]
fn a_row_that_cannot_be_read_is_named_when_it_is_asked_for_and_can_be_dropped() {
    run(async {
        for change in [
            "attempts = -1",
            "last_status = 70000",
            "endpoint = 99",
            "state = 7",
        ] {
            let dir = changed(&format!("UPDATE event SET {change} WHERE id = 2")).await;
            let queue = open(&dir);
            let id = Uuid::from_u128(2);
            let shown = queue.show(id, true).await;
            let error = shown.expect_err("it cannot be read");
            assert_eq!(error, OperateError::Unreadable(id), "{change}");
            assert!(error.to_string().contains(&id.to_string()));
            assert_eq!(queue.trouble(), None, "{change}");
            let ids = Selection::Ids(vec![id]);
            queue.replay(&ids).await.unwrap();
            assert_eq!(queue.drop_events(&ids, false).await, Ok(1), "{change}");
            assert!(queue.show(id, false).await.unwrap().is_none(), "{change}");
            assert_eq!(queue.trouble(), None, "{change}");
            queue.crm().queue(event(4)).await;
        }
    });
}

type Way<'a> = &'a dyn Fn(&Dir, &str);

#[test]
fn files_taken_away_break_the_queue_so_that_nothing_more_is_acknowledged() {
    run(async {
        let move_away = |dir: &Dir, file: &str| {
            fs::rename(dir.join(file), dir.join("elsewhere")).unwrap();
        };
        let replace = |dir: &Dir, file: &str| {
            fs::copy(dir.join(file), dir.join("copy")).unwrap();
            fs::rename(dir.join("copy"), dir.join(file)).unwrap();
        };
        let all = |dir: &Dir, _: &str| fs::remove_dir_all(&**dir).unwrap();
        let ways: [(Way<'_>, &str); 6] = [
            (&move_away, "queue.sqlite3"),
            (&move_away, "queue.sqlite3-wal"),
            (&move_away, "LOCK"),
            (&replace, "queue.sqlite3"),
            (&replace, "LOCK"),
            (&all, "LOCK"),
        ];
        for (way, file) in ways {
            let dir = Dir::new();
            let queue = open(&dir);
            queue.crm().queue(event(1)).await;
            way(&dir, file);
            let broken = tokio::time::timeout(Duration::from_secs(20), queue.broken()).await;
            let cause = broken.expect("it is noticed").cause;
            assert!(
                cause.contains(file) && cause.contains("replaced"),
                "{cause}"
            );
            assert_eq!(queue.crm().place(0).err(), Some(Refused::Broken));
        }
    });
}

#[test]
fn delivered_events_make_room_for_new_ones_at_once() {
    run(async {
        let dir = Dir::new();
        let queue = open(&dir);
        let limits = Limits {
            stored_bytes: 10_000,
            ..LIMITS
        };
        let crm = queue.endpoint(&name("crm"), Some(limits));
        let large = |id| NewEvent {
            record: vec![7; 1000].into(),
            ..event(id)
        };
        for id in 1..=40 {
            crm.place(1000).unwrap().append(large(id)).await.unwrap();
            crm.lease_one().await.settle(DELIVERED).await.unwrap();
        }
        let stats = queue.stats_of("crm").await;
        assert!(stats.stored_bytes <= 10_000, "{}", stats.stored_bytes);
        // What is not delivered makes none.
        for id in 41..=50 {
            crm.queue(large(id)).await;
        }
        let full = Refused::Full(Bound::StoredBytes);
        assert_eq!(crm.append(large(51)).await, Err(AppendError::Refused(full)));
        assert_eq!(queue.stats_of("crm").await.pending, 10);
    });
}

#[test]
fn a_key_that_is_taken_needs_no_room_and_one_that_finds_none_stays_free() {
    run(async {
        let dir = Dir::new();
        let queue = open(&dir);
        let copy = |id, key, body| NewEvent {
            key: keyed(key, body, KeyReuse::Forward),
            record: vec![7; 1000].into(),
            ..event(id)
        };
        let endpoint = |stored_bytes| {
            queue.endpoint(
                &name("crm"),
                Some(Limits {
                    stored_bytes,
                    ..LIMITS
                }),
            )
        };
        // Delivered ones that would make room, were there a bound on how many go at once.
        let crm = endpoint(u64::MAX);
        for id in 1..=1100 {
            let key = u8::try_from(id % 200).unwrap();
            let appended = crm.append(copy(id, key, u64::try_from(id).unwrap())).await;
            assert!(matches!(appended, Ok(Appended::Queued { .. })));
            crm.lease_one().await.settle(DELIVERED).await.unwrap();
        }
        let crm = endpoint(1000);
        let full = Err(AppendError::Refused(Refused::Full(Bound::StoredBytes)));
        let before = queue.stats_of("crm").await.delivered;
        let again = crm.append(copy(3001, 100, 1100)).await;
        assert_eq!(again, Ok(Appended::Duplicate { key_reused: false }));
        assert_eq!(queue.stats_of("crm").await.delivered, before);
        for (id, key) in [(3002, 250), (3003, 100)] {
            assert_eq!(crm.append(copy(id, key, 9)).await, full);
        }
        let fresh = crm.seen(Key([250; 16])).await.unwrap();
        assert_eq!(fresh, None);
        let old = crm.seen(Key([100; 16])).await.unwrap().unwrap();
        assert_eq!(old.body, Some(Fingerprint(1100)));
    });
}

#[test]
fn a_disk_that_takes_nothing_at_the_start_holds_up_no_event_that_is_there() {
    run(async {
        let before = Dir::new();
        let queue = open(&before);
        for id in 1..=3 {
            queue.crm().queue(event(id)).await;
        }
        let lease = queue.crm().lease_one().await;
        let dir = before.as_after_a_kill();
        drop((lease, queue));

        // It rolls back as cleanly as a full disk does.
        let other = Connection::open(dir.store()).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        let queue = open(&dir);
        let crm = queue.crm();
        let held = Refused::Storage(StorageFault::Held);
        assert_eq!(queue.trouble(), Some(held));
        assert_eq!(crm.place(0).err(), Some(held));
        let leased = crm.lease(10).await.unwrap().leases;
        let ids: BTreeSet<_> = leased
            .iter()
            .map(|lease| (lease.id().as_u128(), lease.attempt()))
            .collect();
        assert_eq!(ids, BTreeSet::from([(1, 2), (2, 1), (3, 1)]));
        for lease in leased {
            lease.settle(DELIVERED).await.unwrap();
        }
        other.execute_batch("ROLLBACK").unwrap();
        eventually(async || queue.trouble().is_none()).await;
        crm.queue(event(4)).await;
        let stats = queue.stats_of("crm").await;
        assert_eq!((stats.pending, stats.leased, stats.delivered), (1, 0, 3));
    });
}
