//! Appending, leasing, settling, lanes, keys, bounds, time.

use super::*;

#[test]
fn an_event_is_on_disk_when_it_is_acknowledged() {
    run(async {
        let dir = Dir::new();
        let queue = open(&dir);
        queue.crm().queue(event(1)).await;
        let queue = open(&dir.as_after_a_kill());
        let lease = queue.crm().lease_one().await;
        assert_eq!((lease.id().as_u128(), lease.attempt()), (1, 1));
        assert_eq!(*lease.record(), record_of(1));
        assert_eq!(lease.event_type(), Some("message.created"));
    });
}

#[test]
fn a_duplicate_that_comes_while_the_first_is_being_written_waits_for_its_commit() {
    run(async {
        let dir = Dir::new();
        let crm = open(&dir).crm();
        let copy = |id| NewEvent {
            key: keyed(1, 7, KeyReuse::Duplicate),
            ..event(id)
        };
        let (first, second) = tokio::join!(crm.append(copy(1)), crm.append(copy(2)));
        assert_eq!(first, Ok(Appended::Queued { key_reused: false }));
        assert_eq!(second, Ok(Appended::Duplicate { key_reused: false }));
        assert_eq!(crm.lease_ids().await, [1]);
    });
}

#[test]
fn a_key_stays_taken_over_a_restart_until_its_window_is_over() {
    run(async {
        let dir = Dir::new();
        let queue = open(&dir);
        let copy = |id| NewEvent {
            key: keyed(1, 7, KeyReuse::Duplicate),
            ..event(id)
        };
        queue.crm().queue(copy(1)).await;
        let queue = open(&dir.as_after_a_kill());
        let again = queue.crm().append(copy(2)).await;
        assert_eq!(again, Ok(Appended::Duplicate { key_reused: false }));
        queue.advance(HOUR);
        queue.crm().queue(copy(3)).await;
        // Another endpoint's keys are its own.
        queue
            .endpoint(&name("erp"), Some(LIMITS))
            .queue(copy(4))
            .await;
    });
}

#[test]
fn what_the_same_key_with_another_body_means_is_the_callers_choice() {
    run(async {
        let dir = Dir::new();
        let crm = open(&dir).crm();
        let copy = |id, body, key_reuse| NewEvent {
            key: keyed(1, body, key_reuse),
            ..event(id)
        };
        crm.queue(copy(1, 7, KeyReuse::Duplicate)).await;
        let same = crm.append(copy(2, 8, KeyReuse::Duplicate)).await;
        assert_eq!(same, Ok(Appended::Duplicate { key_reused: true }));
        let refused = crm.append(copy(3, 8, KeyReuse::Reject)).await;
        assert_eq!(refused, Err(AppendError::KeyReuse));
        // Another basis of fingerprints tells nothing.
        let unlike = crm.append(copy(4, 1 << 56 | 8, KeyReuse::Reject)).await;
        assert_eq!(unlike, Ok(Appended::Duplicate { key_reused: false }));
        let forwarded = crm.append(copy(5, 8, KeyReuse::Forward)).await;
        assert_eq!(forwarded, Ok(Appended::Queued { key_reused: true }));
        let again = crm.append(copy(6, 8, KeyReuse::Forward)).await;
        assert_eq!(again, Ok(Appended::Duplicate { key_reused: false }));
        assert_eq!(crm.lease_ids().await, [1, 5]);
    });
}

#[test]
fn keys_of_relayed_events_are_remembered_and_can_be_forgotten() {
    run(async {
        let dir = Dir::new();
        let queue = open(&dir);
        let (crm, key, body) = (queue.crm(), Key([3; 16]), Some(Fingerprint(9)));
        assert_eq!(crm.seen(key).await, Ok(None));
        crm.remember(key, body, HOUR).await.unwrap();
        let queue = open(&dir.as_after_a_kill());
        let crm = queue.crm();
        let seen = crm.seen(key).await.unwrap().unwrap();
        assert_eq!(seen.body, body);
        assert!(seen.remaining > HOUR / 2 && seen.remaining <= HOUR + Duration::from_secs(1));
        let copy = NewEvent {
            key: keyed(3, 9, KeyReuse::Duplicate),
            ..event(1)
        };
        let again = crm.append(copy).await;
        assert_eq!(again, Ok(Appended::Duplicate { key_reused: false }));
        queue.advance(2 * HOUR);
        assert_eq!(crm.seen(key).await, Ok(None));
        crm.remember(key, None, HOUR).await.unwrap();
        crm.forget(key).await.unwrap();
        assert_eq!(crm.seen(key).await, Ok(None));
    });
}

#[test]
fn a_lease_ends_once_and_its_attempts_are_counted_over_restarts() {
    run(async {
        let dir = Dir::new();
        let queue = open(&dir);
        let crm = queue.crm();
        crm.queue(event(1)).await;
        let lease = crm.lease_one().await;
        assert!(crm.lease(1).await.unwrap().leases.is_empty());
        lease.settle(retry(HOUR)).await.unwrap();
        let waiting = crm.lease(1).await.unwrap();
        assert!(waiting.leases.is_empty());
        let due = waiting.next_due.unwrap();
        assert!(due > HOUR / 2 && due <= HOUR, "{due:?}");
        queue.advance(HOUR);
        let second = crm.lease_one().await;
        assert_eq!((second.attempt(), second.tries()), (2, 2));

        // Killed during the second attempt: it counts, and the event is due again.
        let copy = dir.as_after_a_kill();
        let queue = Queue::open(&copy, options(start() + HOUR)).unwrap();
        let third = queue.crm().lease_one().await;
        assert_eq!(third.attempt(), 3);
        third.settle(DELIVERED).await.unwrap();
        let shown = queue
            .show(Uuid::from_u128(1), false)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(shown.summary.state, State::Delivered);
        assert_eq!(shown.summary.last_status, Some(200));
        let ended: Vec<_> = shown
            .attempts
            .iter()
            .map(|a| (a.number, a.status))
            .collect();
        assert_eq!(ended, [(1, Some(503)), (2, None)]);
        drop(second);
    });
}

#[test]
fn a_lease_handed_back_was_no_attempt() {
    run(async {
        let dir = Dir::new();
        let queue = open(&dir);
        let crm = queue.crm();
        crm.queue(event(1)).await;
        crm.lease_one().await.hand_back(Some(HOUR));
        assert!(crm.lease(1).await.unwrap().leases.is_empty());
        queue.advance(HOUR);
        assert_eq!(crm.lease_one().await.attempt(), 1);
    });
}

#[test]
fn a_lease_that_is_dropped_counts_and_comes_back_soon() {
    run(async {
        let dir = Dir::new();
        let queue = open(&dir);
        let crm = queue.crm();
        crm.queue(event(1)).await;
        drop(crm.lease_one().await);
        let waiting = crm.lease(1).await.unwrap();
        assert!(waiting.leases.is_empty());
        assert!(waiting.next_due.unwrap() <= Duration::from_secs(1));
        queue.advance(Duration::from_secs(1));
        assert_eq!(crm.lease_one().await.attempt(), 2);
    });
}

#[test]
fn only_the_last_twenty_attempts_are_kept() {
    run(async {
        let dir = Dir::new();
        let queue = open(&dir);
        let crm = queue.crm();
        crm.queue(event(1)).await;
        for _ in 0..23 {
            crm.lease_one()
                .await
                .settle(retry(Duration::ZERO))
                .await
                .unwrap();
        }
        let shown = queue
            .show(Uuid::from_u128(1), false)
            .await
            .unwrap()
            .unwrap();
        let numbers: Vec<_> = shown.attempts.iter().map(|a| a.number).collect();
        assert_eq!(numbers, (4..=23).collect::<Vec<_>>());
    });
}

#[test]
fn an_event_appended_during_its_first_attempt_is_nobody_elses() {
    run(async {
        let dir = Dir::new();
        let queue = open(&dir);
        let crm = queue.crm();
        let taken = crm.place(0).unwrap().append_leased(event(1)).await.unwrap();
        let AppendedLeased::Leased { lease, .. } = taken else {
            panic!("its key is free");
        };
        assert!(crm.lease(1).await.unwrap().leases.is_empty());
        let after_a_kill = open(&dir.as_after_a_kill());
        assert_eq!(after_a_kill.crm().lease_one().await.attempt(), 2);
        lease.settle(retry(Duration::ZERO)).await.unwrap();
        let second = crm.lease_one().await;
        assert_eq!(
            (second.attempt(), &second.record()[..]),
            (2, &record_of(1)[..])
        );
    });
}

#[test]
fn of_a_lane_one_event_at_a_time_goes_and_in_order() {
    run(async {
        let dir = Dir::new();
        let queue = open(&dir);
        let crm = queue.crm();
        for (id, lane) in [(1, "a"), (2, "a"), (3, "b"), (4, "a")] {
            crm.queue(in_lane(id, lane)).await;
        }
        crm.queue(event(5)).await;
        assert_eq!(crm.lease_ids().await, [1, 3, 5]);
        let first = crm.lease_one().await;
        assert_eq!(crm.lease_ids().await, [3, 5]);
        // A retry blocks its lane, a dead letter lets the next one go.
        first.settle(retry(HOUR)).await.unwrap();
        assert_eq!(crm.lease_ids().await, [3, 5]);
        queue.advance(HOUR);
        let mut due = crm.lease_ids().await;
        due.sort_unstable();
        assert_eq!(due, [1, 3, 5]);
        let leases = crm.lease(3).await.unwrap().leases;
        for lease in leases {
            match lease.id().as_u128() {
                1 => lease.settle(dead()).await.unwrap(),
                _ => lease.hand_back(None),
            }
        }
        let mut due = crm.lease_ids().await;
        due.sort_unstable();
        assert_eq!(due, [2, 3, 5]);
        // Sent again, it goes before those that came after it.
        let one = Selection::Ids(vec![Uuid::from_u128(1)]);
        assert_eq!(queue.replay(&one).await, Ok(1));
        let mut due = crm.lease_ids().await;
        due.sort_unstable();
        assert_eq!(due, [1, 3, 5]);
    });
}

#[test]
fn whoever_is_expected_is_leased_as_it_is_kept_and_the_rest_is_found() {
    run(async {
        let dir = Dir::new();
        let queue = open(&dir);
        let crm = queue.crm();
        let arrivals = crm.arrivals();
        crm.queue(event(1)).await;
        // Of two one is there: the other is expected.
        let found = arrivals.lease(2).await.unwrap().leases;
        assert_eq!(found.len(), 1);
        crm.queue(event(2)).await;
        crm.queue(event(3)).await;
        let arrived = arrivals.next().await;
        let told = |l: &Lease| (l.id().as_u128(), l.attempt(), l.record().clone());
        assert_eq!(
            arrived.iter().map(told).collect::<Vec<_>>(),
            [(2, 1, record_of(2))]
        );
        assert_eq!(crm.lease_ids().await, [3]);

        // A retry is looked for as every other event.
        for lease in arrived {
            lease.settle(retry(HOUR)).await.unwrap();
        }
        queue.advance(HOUR);
        arrivals.expect(9);
        let again = crm.lease(9).await.unwrap().leases;
        let attempts = again.iter().map(|l| (l.id().as_u128(), l.attempt()));
        let mut attempts: Vec<_> = attempts.collect();
        attempts.sort_unstable();
        assert_eq!(attempts, [(2, 2), (3, 1)]);
    });
}

#[test]
fn what_nobody_took_of_what_arrived_is_given_back_untried() {
    run(async {
        let dir = Dir::new();
        let queue = open(&dir);
        let crm = queue.crm();
        let left = crm.arrivals();
        left.expect(2);
        crm.queue(event(1)).await;
        // The one made last has what comes; what is there stays with who expected it.
        let later = crm.arrivals();
        later.expect(1);
        crm.queue(event(2)).await;
        assert_eq!(later.next().await.len(), 1);
        drop(left);
        let back = crm.lease_one().await;
        assert_eq!((back.id().as_u128(), back.attempt()), (1, 1));

        queue.pause(&name("crm"), true).await.unwrap();
        later.expect(1);
        crm.queue(event(3)).await;
        queue.pause(&name("crm"), false).await.unwrap();
        assert_eq!(crm.lease_ids().await, [3], "nothing goes while it is held");
        drop(later);
        crm.queue(event(4)).await;
        assert_eq!(crm.lease_ids().await, [3, 4], "nobody expects it");
    });
}

#[test]
fn bounds_refuse_before_and_after_a_body_is_read() {
    run(async {
        let dir = Dir::new();
        let queue = open(&dir);
        let limits = Limits {
            pending_bytes: 1000,
            ..LIMITS
        };
        let crm = queue.endpoint(&name("crm"), Some(limits));
        let large = |id| NewEvent {
            record: vec![0; 600].into(),
            ..event(id)
        };
        let full = Refused::Full(Bound::PendingBytes);
        assert_eq!(crm.place(1001).err(), Some(full));
        let (one, two) = (crm.place(0).unwrap(), crm.place(0).unwrap());
        let (one, two) = tokio::join!(one.append(large(1)), two.append(large(2)));
        assert_eq!(one, Ok(Appended::Queued { key_reused: false }));
        assert_eq!(two, Err(AppendError::Refused(full)));
        assert_eq!(crm.place(600).err(), Some(full));
        crm.lease_one().await.settle(DELIVERED).await.unwrap();
        crm.queue(large(3)).await;

        let places: Vec<_> = (0..100).map(|_| crm.place(0).unwrap()).collect();
        assert_eq!(crm.place(0).err(), Some(Refused::Full(Bound::Commands)));
        drop(places);
        crm.place(0).map(drop).unwrap();
    });
}

#[test]
fn an_endpoint_is_told_when_something_may_be_due() {
    run(async {
        let dir = Dir::new();
        let queue = open(&dir);
        let crm = queue.crm();
        let soon = |what: &'static str| {
            let crm = crm.clone();
            async move {
                let told = tokio::time::timeout(Duration::from_secs(10), crm.changed()).await;
                told.unwrap_or_else(|_| panic!("not told: {what}"));
            }
        };
        crm.queue(event(1)).await;
        soon("appended").await;
        crm.lease_one().await.hand_back(None);
        soon("handed back").await;
        crm.lease_one().await.settle(DELIVERED).await.unwrap();
        queue
            .replay(&Selection::All(Filter::default()))
            .await
            .unwrap();
        soon("replayed").await;
        queue.pause(&name("crm"), true).await.unwrap();
        queue.pause(&name("crm"), false).await.unwrap();
        soon("resumed").await;
    });
}

#[test]
fn a_clock_set_back_an_hour_between_runs_leaves_the_schedule_as_it_was() {
    run(async {
        let dir = Dir::new();
        let queue = open(&dir);
        queue.crm().queue(event(1)).await;
        let minute = Duration::from_secs(60);
        queue
            .crm()
            .lease_one()
            .await
            .settle(retry(minute))
            .await
            .unwrap();
        queue.close().await;
        drop(queue);
        let queue = Queue::open(&dir, options(start() - HOUR)).unwrap();
        let due = queue.crm().lease(1).await.unwrap().next_due.unwrap();
        assert!(due <= minute && due > minute / 2, "{due:?}");
    });
}

#[test]
fn however_often_it_is_opened_and_closed_time_does_not_jump() {
    run(async {
        let dir = Dir::new();
        let queue = open(&dir);
        let crm = queue.crm();
        crm.queue(event(1)).await;
        let retried = crm.lease_one().await.settle(retry(HOUR)).await;
        retried.unwrap();
        queue.close().await;
        drop((crm, queue));
        for _ in 0..20 {
            let queue = open(&dir);
            queue.close().await;
        }
        let queue = open(&dir);
        let due = queue.crm().lease(1).await.unwrap().next_due.unwrap();
        assert!(due > HOUR - Duration::from_secs(10), "{due:?}");
    });
}

#[test]
fn after_close_nothing_is_taken_and_everything_taken_is_there() {
    run(async {
        let dir = Dir::new();
        let queue = open(&dir);
        let crm = queue.crm();
        let place = crm.place(0).unwrap();
        let lease = {
            crm.queue(event(1)).await;
            crm.lease_one().await
        };
        queue.close().await;
        let late = place.append(event(2)).await;
        assert_eq!(late, Err(AppendError::Refused(Refused::Broken)));
        assert_eq!(lease.settle(DELIVERED).await, Err(SettleError::Broken));
        assert_eq!(crm.place(0).err(), Some(Refused::Broken));
        drop((queue, crm));
        let queue = open(&dir);
        assert_eq!(queue.states().await, [(1, State::Pending)]);
    });
}
