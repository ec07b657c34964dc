#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "what was not expected is shown whatever it is"
)]

use std::{
    collections::HashMap as Model,
    pin::Pin,
    task::{Context, Poll, Wake},
    thread,
};

use proptest::prelude::*;

use super::*;

const POLICY: Policy = Policy {
    window: Duration::from_secs(60),
    key_reuse: KeyReuse::Duplicate,
    replay: Replay::Flag,
};

fn table(capacity: usize) -> (Arc<Table>, Instant) {
    let now = Instant::now();
    let capacity = NonZeroUsize::new(capacity).unwrap();
    (Table::new(capacity, 8, HashKeys::new([1, 2]), now), now)
}

fn ask(table: &Table, key: &str, body: u8, now: Instant) -> Ask {
    let body = Some(table.fingerprint("crm", 0, &[body]));
    Ask {
        digest: Some(table.digest("crm", key.as_bytes())),
        body,
        policy: POLICY,
        now,
    }
}

fn first(decision: Decision) -> (Claim, bool, bool) {
    match decision {
        Decision::First {
            claim,
            key_reused,
            replayed,
        } => (claim, key_reused, replayed),
        other => panic!("not the first: {other:?}"),
    }
}

struct Nothing;
impl Wake for Nothing {
    fn wake(self: Arc<Self>) {}
}

fn poll(waiter: &mut Waiter) -> Poll<Ended> {
    Pin::new(waiter).poll(&mut Context::from_waker(&Arc::new(Nothing).into()))
}

#[test]
fn a_committed_key_is_a_duplicate_until_its_window_is_over() {
    let (table, now) = table(10);
    first(table.claim(ask(&table, "k", 1, now))).0.commit(now);
    let at = |seconds| ask(&table, "k", 1, now + Duration::from_secs(seconds));
    assert!(matches!(
        table.claim(at(59)),
        Decision::Duplicate { key_reused: false }
    ));
    assert!(matches!(table.claim(at(60)), Decision::First { .. }));
    assert_eq!(
        table.evictions(),
        Evictions {
            capacity: 0,
            expired: 1
        }
    );
}

#[test]
fn a_claim_that_is_dropped_or_released_gives_the_key_back() {
    let (table, now) = table(10);
    drop(table.claim(ask(&table, "k", 1, now)));
    first(table.claim(ask(&table, "k", 1, now)))
        .0
        .release(Some(502));
    let panicking = table.clone();
    let panicked = thread::spawn(move || {
        let _claim = first(panicking.claim(ask(&panicking, "k", 1, now)));
        panic!("while it holds a claim");
    });
    assert!(panicked.join().is_err());
    assert!(matches!(
        table.claim(ask(&table, "k", 1, now)),
        Decision::First {
            replayed: false,
            ..
        }
    ));
    assert_eq!((table.in_flight(), table.entries()), (0, 0));
}

#[test]
fn others_wait_for_the_first_and_hear_how_it_ended() {
    let (table, now) = table(10);
    for committed in [false, true] {
        let (claim, ..) = first(table.claim(ask(&table, "k", 1, now)));
        let mut waiters: Vec<_> = (0..3)
            .map(|_| match table.claim(ask(&table, "k", 1, now)) {
                Decision::InFlight {
                    waiter,
                    key_reused: false,
                } => waiter,
                other => panic!("{other:?}"),
            })
            .collect();
        assert!(waiters.iter_mut().all(|w| poll(w).is_pending()));
        drop(waiters.pop());
        let ended = if committed {
            claim.commit(now);
            Ended::Committed
        } else {
            claim.release(Some(503));
            Ended::Released { status: Some(503) }
        };
        assert!(waiters.iter_mut().all(|w| poll(w) == Poll::Ready(ended)));
    }
}

#[test]
fn keys_in_flight_are_bounded_and_never_evicted() {
    let (table, now) = table(1);
    let keys: Vec<_> = (0..8).map(|n| n.to_string()).collect();
    let claims: Vec<_> = keys
        .iter()
        .map(|k| first(table.claim(ask(&table, k, 1, now))).0)
        .collect();
    assert!(matches!(
        table.claim(ask(&table, "one more", 1, now)),
        Decision::Full
    ));
    assert!(matches!(
        table.claim(ask(&table, "0", 1, now)),
        Decision::InFlight { .. }
    ));
    claims.into_iter().for_each(|claim| claim.commit(now));
    assert_eq!((table.entries(), table.in_flight()), (1, 0));
    assert_eq!(table.evictions().capacity, 7);
}

#[test]
fn the_same_key_with_another_body_is_what_the_policy_says() {
    let (table, now) = table(10);
    first(table.claim(ask(&table, "k", 1, now))).0.commit(now);
    let with = |key_reuse| {
        let asked = ask(&table, "k", 2, now);
        table.claim(Ask {
            policy: Policy {
                key_reuse,
                ..POLICY
            },
            ..asked
        })
    };
    assert!(matches!(
        with(KeyReuse::Duplicate),
        Decision::Duplicate { key_reused: true }
    ));
    assert!(matches!(with(KeyReuse::Reject), Decision::KeyReuse));
    let (claim, key_reused, _) = first(with(KeyReuse::Forward));
    assert!(key_reused);
    // In flight, with a third body: it goes through beside the claim that holds the key.
    let third = Ask {
        policy: Policy {
            key_reuse: KeyReuse::Forward,
            ..POLICY
        },
        ..ask(&table, "k", 3, now)
    };
    let (beside, ..) = first(table.claim(third));
    beside.commit(now);
    claim.commit(now);
    assert!(matches!(
        table.claim(ask(&table, "k", 2, now)),
        Decision::Duplicate { key_reused: false }
    ));
}

#[test]
fn a_body_under_another_secret_is_not_known_to_differ() {
    let (table, now) = table(10);
    first(table.claim(ask(&table, "k", 1, now))).0.commit(now);
    let body = Some(table.fingerprint("crm", 1, &[9]));
    let asked = Ask {
        body,
        ..ask(&table, "k", 1, now)
    };
    assert!(matches!(
        table.claim(asked),
        Decision::Duplicate { key_reused: false }
    ));
}

#[test]
fn the_same_body_under_another_key_is_what_the_policy_says() {
    let (table, now) = table(100);
    first(table.claim(ask(&table, "a", 1, now))).0.commit(now);
    let with = |key: &str, replay| {
        let asked = ask(&table, key, 1, now);
        table.claim(Ask {
            policy: Policy { replay, ..POLICY },
            ..asked
        })
    };
    assert!(matches!(with("b", Replay::Reject), Decision::Replay));
    assert!(!first(with("c", Replay::Off)).2);
    assert!(first(with("d", Replay::Flag)).2);
    assert_eq!(table.in_flight(), 0);
    let bare = Ask {
        digest: None,
        ..ask(&table, "", 1, now)
    };
    let flagged = table.claim(bare);
    assert!(
        matches!(flagged, Decision::First { replayed: true, .. }),
        "the key was taken off"
    );
}

#[test]
fn a_retry_is_no_replay_even_when_its_key_was_evicted() {
    let (table, now) = table(8);
    first(table.claim(ask(&table, "k", 1, now))).0.commit(now);
    for n in 0..8_u8 {
        let asked = Ask {
            body: None,
            ..ask(&table, &format!("other-{n}"), 1, now)
        };
        first(table.claim(asked)).0.commit(now);
    }
    assert!(!first(table.claim(ask(&table, "k", 1, now))).2);
}

#[test]
fn endpoints_do_not_share_keys() {
    let (table, now) = table(10);
    first(table.claim(ask(&table, "k", 1, now))).0.commit(now);
    let other = Ask {
        digest: Some(table.digest("erp", b"k")),
        ..ask(&table, "k", 2, now)
    };
    assert!(matches!(table.claim(other), Decision::First { .. }));
}

#[test]
fn a_sweep_takes_expired_keys_out() {
    let (table, now) = table(10);
    for key in ["a", "b"] {
        first(table.claim(ask(&table, key, 1, now))).0.commit(now);
    }
    table.sweep(now + Duration::from_secs(59));
    assert_eq!(table.entries(), 2);
    table.sweep(now + Duration::from_secs(61));
    assert_eq!((table.entries(), table.evictions().expired), (0, 2));
}

#[test]
fn of_many_threads_with_one_key_one_is_first() {
    for copies in [2, 8, 50] {
        let (table, now) = table(100);
        let claims: Vec<_> = thread::scope(|scope| {
            let ask = || table.claim(ask(&table, "k", 1, now));
            let threads: Vec<_> = (0..copies).map(|_| scope.spawn(ask)).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        let firsts = claims
            .iter()
            .filter(|d| matches!(d, Decision::First { .. }))
            .count();
        let waiting = claims
            .iter()
            .filter(|d| matches!(d, Decision::InFlight { .. }))
            .count();
        assert_eq!((firsts, waiting), (1, copies - 1));
    }
}

#[derive(Clone, Debug)]
enum Step {
    Claim { key: u8, body: u8 },
    End { pick: usize, commit: bool },
    Pass { seconds: u64 },
    Sweep,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..6_u8, 0..3_u8).prop_map(|(key, body)| Step::Claim { key, body }),
        4 => (any::<usize>(), any::<bool>()).prop_map(|(pick, commit)| Step::End { pick, commit }),
        2 => (0..50_u64).prop_map(|seconds| Step::Pass { seconds }),
        1 => Just(Step::Sweep),
    ]
}

proptest! {
    /// Against a map from key to state, with time as input; capacity is never reached.
    #[test]
    fn it_behaves_as_a_map_of_states_does(
        steps in prop::collection::vec(step(), 1..80),
        reuse in prop_oneof![Just(KeyReuse::Duplicate), Just(KeyReuse::Reject)],
    ) {
        let (table, created) = table(100);
        let policy = Policy { key_reuse: reuse, replay: Replay::Off, ..POLICY };
        let mut passed = 0;
        let mut running: Vec<(u8, u8, Claim)> = Vec::new();
        let mut done: Model<u8, (u8, u64)> = Model::new();
        for step in steps {
            let now = created + Duration::from_secs(passed);
            match step {
                Step::Pass { seconds } => passed += seconds,
                Step::Sweep => table.sweep(now),
                Step::End { .. } if running.is_empty() => {}
                Step::End { pick, commit } => {
                    let (key, body, claim) = running.swap_remove(pick % running.len());
                    if commit {
                        claim.commit(now);
                        done.insert(key, (body, passed + 60));
                    } else {
                        claim.release(None);
                    }
                }
                Step::Claim { key, body } => {
                    let asked = Ask { policy, ..ask(&table, &key.to_string(), body, now) };
                    let decision = table.claim(asked);
                    let known = running.iter().find(|(k, ..)| *k == key).map(|(_, b, _)| *b);
                    let finished = done.get(&key).filter(|(_, until)| passed < *until).map(|(b, _)| *b);
                    match (known, finished) {
                        (Some(other), _) | (None, Some(other)) if other != body && reuse == KeyReuse::Reject => {
                            prop_assert!(matches!(decision, Decision::KeyReuse));
                        }
                        (Some(other), _) => {
                            let as_expected = matches!(decision, Decision::InFlight { key_reused, .. } if key_reused == (other != body));
                            prop_assert!(as_expected);
                        }
                        (None, Some(other)) => {
                            let as_expected = matches!(decision, Decision::Duplicate { key_reused } if key_reused == (other != body));
                            prop_assert!(as_expected);
                        }
                        (None, None) => {
                            let (claim, key_reused, _) = first(decision);
                            prop_assert!(!key_reused);
                            running.push((key, body, claim));
                        }
                    }
                }
            }
            prop_assert_eq!(table.in_flight(), running.len());
        }
    }

    /// However it is used, it never holds more than it may.
    #[test]
    fn capacity_is_kept(keys in prop::collection::vec(any::<u16>(), 1..200), capacity in 1..20_usize) {
        let (table, now) = table(capacity);
        for key in keys {
            if let Decision::First { claim, .. } = table.claim(ask(&table, &key.to_string(), 1, now)) {
                claim.commit(now);
            }
            prop_assert!(table.entries() <= capacity);
        }
    }
}
