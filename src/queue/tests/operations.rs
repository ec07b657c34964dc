//! Listing, showing, replaying, dropping, pausing, copying, purging, the quarantine.

use super::*;

fn only(ids: &[u128]) -> Selection {
    Selection::Ids(ids.iter().map(|id| Uuid::from_u128(*id)).collect())
}

#[test]
fn a_listing_is_filtered_and_goes_on_from_its_cursor() {
    run(async {
        let dir = Dir::new();
        let queue = open(&dir);
        let (crm, erp) = (queue.crm(), queue.endpoint(&name("erp"), Some(LIMITS)));
        for id in 1..=5 {
            crm.queue(event(id)).await;
        }
        crm.lease_one().await.settle(dead()).await.unwrap();
        crm.lease_one().await.settle(DELIVERED).await.unwrap();
        queue.advance(HOUR);
        let other = NewEvent {
            event_type: None,
            ..event(6)
        };
        erp.queue(other).await;
        let ids = async |filter: Filter| -> Vec<u128> {
            let page = queue.list(&filter, Cursor::default(), 100).await.unwrap();
            assert_eq!(page.next, None);
            page.events.iter().map(|e| e.id.as_u128()).collect()
        };
        let all = Filter::default;
        assert_eq!(ids(all()).await, [1, 2, 3, 4, 5, 6]);
        let filter = Filter {
            state: Some(State::Dead),
            ..all()
        };
        assert_eq!(ids(filter).await, [1]);
        let filter = Filter {
            endpoint: Some(name("erp")),
            ..all()
        };
        assert_eq!(ids(filter).await, [6]);
        let filter = Filter {
            error: Some("ANSWERED 410".to_owned()),
            ..all()
        };
        assert_eq!(ids(filter).await, [1]);
        let filter = Filter {
            event_type: Some("message.created".to_owned()),
            older_than: Some(HOUR / 2),
            state: Some(State::Pending),
            ..all()
        };
        assert_eq!(ids(filter).await, [3, 4, 5]);
        let filter = Filter {
            newer_than: Some(HOUR / 2),
            ..all()
        };
        assert_eq!(ids(filter).await, [6]);

        let first = queue.list(&all(), Cursor::default(), 4).await.unwrap();
        let rest = queue.list(&all(), first.next.unwrap(), 4).await.unwrap();
        assert_eq!(
            (first.events.len(), rest.events.len(), rest.next),
            (4, 2, None)
        );
    });
}

#[test]
fn a_record_is_shown_only_when_asked_for() {
    run(async {
        let dir = Dir::new();
        let queue = open(&dir);
        queue.crm().queue(event(1)).await;
        let show = async |with| queue.show(Uuid::from_u128(1), with).await.unwrap().unwrap();
        assert_eq!(show(false).await.record, None);
        assert_eq!(show(true).await.record, Some(Ok(record_of(1))));
        assert!(
            queue
                .show(Uuid::from_u128(2), true)
                .await
                .unwrap()
                .is_none()
        );
    });
}

#[test]
fn dead_and_delivered_events_are_sent_again_with_a_fresh_schedule() {
    run(async {
        let dir = Dir::new();
        let queue = open(&dir);
        let crm = queue.crm();
        for id in 1..=4 {
            crm.queue(event(id)).await;
        }
        crm.lease_one().await.settle(dead()).await.unwrap();
        crm.lease_one().await.settle(DELIVERED).await.unwrap();
        let leased = crm.lease_one().await;
        let all = Selection::All(Filter::default());
        assert_eq!(queue.replay(&all).await, Ok(3), "leased ones are left");
        let again = crm.lease(10).await.unwrap().leases;
        let tries: Vec<_> = again
            .iter()
            .map(|l| (l.id().as_u128(), l.attempt(), l.tries()))
            .collect();
        assert_eq!(tries, [(1, 2, 1), (2, 2, 1), (4, 1, 1)]);
        leased.settle(DELIVERED).await.unwrap();
        assert_eq!(queue.replay(&only(&[9])).await, Ok(0));
    });
}

#[test]
fn a_dropped_event_frees_its_key_unless_told_to_keep_it() {
    run(async {
        let dir = Dir::new();
        let queue = open(&dir);
        let crm = queue.crm();
        let copy = |id, key| NewEvent {
            key: keyed(key, 7, KeyReuse::Duplicate),
            ..event(id)
        };
        crm.queue(copy(1, 1)).await;
        crm.queue(copy(2, 2)).await;
        let leased = crm.lease_one().await;
        assert_eq!(
            queue.drop_events(&only(&[1]), false).await,
            Ok(0),
            "leased ones are left"
        );
        leased.hand_back(None);
        assert_eq!(queue.drop_events(&only(&[1]), false).await, Ok(1));
        assert_eq!(queue.drop_events(&only(&[2]), true).await, Ok(1));
        crm.queue(copy(3, 1)).await;
        let taken = crm.append(copy(4, 2)).await;
        assert_eq!(taken, Ok(Appended::Duplicate { key_reused: false }));
        assert_eq!(queue.states().await, [(3, State::Pending)]);
    });
}

#[test]
fn a_dropped_head_lets_its_lane_go_on() {
    run(async {
        let dir = Dir::new();
        let queue = open(&dir);
        let crm = queue.crm();
        crm.queue(in_lane(1, "a")).await;
        crm.queue(in_lane(2, "a")).await;
        queue.drop_events(&only(&[1]), false).await.unwrap();
        assert_eq!(crm.lease_ids().await, [2]);
    });
}

#[test]
fn a_paused_endpoint_accepts_and_holds_over_a_restart() {
    run(async {
        let dir = Dir::new();
        let queue = open(&dir);
        queue.pause(&name("crm"), true).await.unwrap();
        queue.crm().queue(event(1)).await;
        let held = queue.crm().lease(1).await.unwrap();
        assert!(held.leases.is_empty() && held.next_due.is_none());
        let queue = open(&dir.as_after_a_kill());
        assert!(queue.crm().is_paused());
        assert!(queue.crm().lease(1).await.unwrap().leases.is_empty());
        queue.pause(&name("crm"), false).await.unwrap();
        assert_eq!(queue.crm().lease_ids().await, [1]);
    });
}

#[test]
fn a_copy_made_while_running_is_whole_and_overwrites_nothing() {
    run(async {
        let (dir, copy) = (Dir::new(), Dir::new());
        let queue = open(&dir);
        let crm = queue.crm();
        for id in 1..=3 {
            crm.queue(event(id)).await;
        }
        let _leased = crm.lease_one().await;
        fs::create_dir(&*copy).unwrap();
        queue.backup(copy.store()).await.unwrap();
        let again = queue.backup(copy.store()).await;
        assert!(matches!(again, Err(OperateError::File(_))), "{again:?}");
        crm.queue(event(4)).await;
        assert_eq!(open(&copy).crm().lease_ids().await.len(), 3);
    });
}

#[test]
fn the_counts_are_what_a_listing_counts() {
    run(async {
        let dir = Dir::new();
        let queue = open(&dir);
        let crm = queue.crm();
        for id in 1..=6 {
            crm.queue(event(id)).await;
        }
        queue.advance(HOUR);
        crm.lease_one().await.settle(dead()).await.unwrap();
        crm.lease_one().await.settle(DELIVERED).await.unwrap();
        let _leased = crm.lease_one().await;
        crm.quarantine(Uuid::from_u128(9), "signature_mismatch", record_of(9));
        crm.queue(event(7)).await;
        let stats = queue.stats_of("crm").await;
        let counts = (stats.pending, stats.leased, stats.dead, stats.delivered);
        assert_eq!(counts, (4, 1, 1, 1));
        let bytes = u64::try_from(record_of(1).len()).unwrap();
        assert_eq!(
            (stats.pending_bytes, stats.stored_bytes),
            (5 * bytes, 7 * bytes)
        );
        assert_eq!((stats.quarantined, stats.quarantined_bytes), (1, bytes));
        assert_eq!(queue.stored_bytes(), 8 * bytes);
        assert!(stats.oldest_age.unwrap() >= HOUR);
        // All that is older is over: the oldest is the one appended last.
        for lease in crm.lease(3).await.unwrap().leases {
            lease.settle(DELIVERED).await.unwrap();
        }
        drop(_leased);
        let selection = only(&[3]);
        eventually(async || queue.drop_events(&selection, false).await == Ok(1)).await;
        assert!(queue.stats_of("crm").await.oldest_age.unwrap() < HOUR);
        queue.replay(&only(&[1])).await.unwrap();
        assert!(queue.stats_of("crm").await.oldest_age.unwrap() >= HOUR);
    });
}

#[test]
fn what_is_over_is_purged_and_what_is_not_stays() {
    run(async {
        let dir = Dir::new();
        let queue = open(&dir);
        let crm = queue.crm();
        for id in 1..=3 {
            crm.queue(event(id)).await;
        }
        crm.lease_one().await.settle(dead()).await.unwrap();
        crm.lease_one().await.settle(DELIVERED).await.unwrap();
        queue.advance(25 * HOUR);
        let left = [(1, State::Dead), (3, State::Pending)];
        eventually(async || queue.states().await == left).await;
        queue.advance(31 * 24 * HOUR);
        eventually(async || queue.states().await == [(3, State::Pending)]).await;
    });
}

#[test]
fn near_its_bound_an_endpoint_loses_delivered_events_first_oldest_first() {
    run(async {
        let dir = Dir::new();
        let queue = open(&dir);
        let limits = Limits {
            stored_bytes: 16_000,
            ..LIMITS
        };
        let crm = queue.endpoint(&name("crm"), Some(limits));
        let large = |id| NewEvent {
            record: vec![0; 1000].into(),
            ..event(id)
        };
        for id in 1..=15 {
            crm.queue(large(id)).await;
            let ending = if id <= 2 { dead() } else { DELIVERED };
            crm.lease_one().await.settle(ending).await.unwrap();
        }
        crm.queue(large(16)).await;
        eventually(async || queue.stats_of("crm").await.stored_bytes <= 14_000).await;
        let ids: Vec<_> = queue.states().await.into_iter().map(|(id, _)| id).collect();
        assert_eq!(ids, [1, 2].into_iter().chain(5..=16).collect::<Vec<_>>());
        // Nothing delivered is left: then dead ones go.
        for id in 17..=30 {
            eventually(async || crm.place(1000).is_ok()).await;
            crm.queue(large(id)).await;
        }
        eventually(async || queue.stats_of("crm").await.dead == 0).await;
        assert_eq!(queue.stats_of("crm").await.pending, 15);
    });
}

#[test]
fn expired_keys_are_swept_and_others_stay() {
    run(async {
        let dir = Dir::new();
        let queue = open(&dir);
        let crm = queue.crm();
        for key in 0..40 {
            let window = if key % 2 == 0 { HOUR / 2 } else { 3 * HOUR };
            crm.remember(Key([key; 16]), None, window).await.unwrap();
        }
        queue.advance(HOUR);
        let count = || {
            let connection = rusqlite::Connection::open(dir.store()).unwrap();
            let sql = "SELECT count(*) FROM idem";
            connection
                .query_row(sql, [], |row| row.get::<_, i64>(0))
                .unwrap()
        };
        eventually(async || count() == 20).await;
        assert!(crm.seen(Key([1; 16])).await.unwrap().is_some());
    });
}

#[test]
fn the_quarantine_keeps_the_newest_within_its_bound() {
    run(async {
        let dir = Dir::new();
        let queue = open(&dir);
        let limits = Limits {
            quarantine_bytes: 1000,
            ..LIMITS
        };
        let crm = queue.endpoint(&name("crm"), Some(limits));
        let suspect = |n: u8| Bytes::from(vec![n; 300]);
        for n in 1..=5 {
            crm.quarantine(Uuid::from_u128(n.into()), "signature_mismatch", suspect(n));
        }
        crm.quarantine(
            Uuid::from_u128(6),
            "signature_mismatch",
            vec![6; 1001].into(),
        );
        // Written in turn: what comes after it is on disk when this is.
        crm.queue(event(1)).await;
        let held = queue.quarantined(&name("crm"), 0, 100).await.unwrap();
        let ids: Vec<_> = held.iter().map(|q| q.id.as_u128()).collect();
        assert_eq!(ids, [3, 4, 5]);
        assert_eq!(held[0].record, Ok(suspect(3)));
        assert_eq!(queue.stats_of("crm").await.quarantined_bytes, 900);

        // Let through, it leaves the quarantine in the transaction that keeps it as an event.
        let passed = NewEvent {
            quarantined: Some(held[0].number),
            ..event(3)
        };
        crm.queue(passed).await;
        let rest = queue
            .quarantined(&name("crm"), held[0].number, 1)
            .await
            .unwrap();
        assert_eq!(rest[0].id.as_u128(), 4);
        let numbers = held.iter().map(|q| q.number).collect();
        assert_eq!(queue.discard_quarantined(numbers).await, Ok(2));
        assert_eq!(queue.stats_of("crm").await.quarantined_bytes, 0);
    });
}

#[test]
fn a_quarantined_request_goes_only_when_an_event_has_its_body() {
    run(async {
        let dir = Dir::new();
        let queue = open(&dir);
        let crm = queue.crm();
        let first = NewEvent {
            key: keyed(1, 7, KeyReuse::Reject),
            ..event(1)
        };
        crm.queue(first).await;
        for id in 2..=4 {
            crm.quarantine(Uuid::from_u128(id), "signature_mismatch", record_of(id));
        }
        queue.written().await;
        let held = queue.quarantined(&name("crm"), 0, 100).await.unwrap();
        let mut seconds = held.iter().map(|request| request.number);
        let mut second = |body, key_reuse| NewEvent {
            key: keyed(1, body, key_reuse),
            quarantined: seconds.next(),
            ..event(9)
        };
        let refused = crm.append(second(8, KeyReuse::Reject)).await;
        assert_eq!(refused, Err(AppendError::KeyReuse));
        let reused = crm.append(second(8, KeyReuse::Duplicate)).await;
        assert_eq!(reused, Ok(Appended::Duplicate { key_reused: true }));
        let same = crm.append(second(7, KeyReuse::Duplicate)).await;
        assert_eq!(same, Ok(Appended::Duplicate { key_reused: false }));
        let left = queue.quarantined(&name("crm"), 0, 100).await.unwrap();
        let left: Vec<_> = left.iter().map(|request| request.id.as_u128()).collect();
        assert_eq!(left, [2, 3]);
    });
}

#[test]
fn the_log_stays_within_its_bound_beside_a_writer_that_never_rests() {
    run(async {
        let dir = Dir::new();
        let queue = open(&dir);
        let limits = Limits {
            pending_bytes: 1024 * MIB,
            stored_bytes: 1024 * MIB,
            ..LIMITS
        };
        let crm = queue.endpoint(&name("crm"), Some(limits));
        let mut appends = tokio::task::JoinSet::new();
        let record = Bytes::from(vec![7; 128 * 1024]);
        for id in 1..=2000 {
            if appends.len() == 16 {
                appends.join_next().await;
            }
            let (crm, record) = (crm.clone(), record.clone());
            let event = NewEvent {
                record,
                ..event(id)
            };
            appends.spawn(async move { crm.queue(event).await });
        }
        appends.join_all().await;
        // The file is as long as the log ever was: 32 Ki pages, and a transaction more.
        let log = fs::metadata(dir.join("queue.sqlite3-wal")).unwrap().len();
        assert!(log < 134 * MIB, "{} MiB", log / MIB);
        assert!(dir.store().metadata().unwrap().len() > 128 * MIB);
    });
}
