//! Random histories against a model that fits on a screen.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Append {
        key: u8,
        body: u64,
        lane: u8,
    },
    AppendLeased {
        lane: u8,
    },
    Drop {
        id: u128,
    },
    /// So many are expected as they arrive.
    Expect {
        events: usize,
    },
    Hour,
    /// The process is killed and started again; its clock may have gone wrong meanwhile.
    Kill {
        clock_back: bool,
    },
    Lease {
        endings: Vec<End>,
    },
    Pause {
        paused: bool,
    },
    Replay {
        id: u128,
    },
}

#[derive(Clone, Copy, Debug)]
enum End {
    Dead,
    Delivered,
    HandBack,
    Later,
    Retry,
}

fn step() -> impl Strategy<Value = Step> {
    let end = prop_oneof![
        Just(End::Dead),
        Just(End::Delivered),
        Just(End::HandBack),
        Just(End::Later),
        Just(End::Retry)
    ];
    let id = 1..20_u128;
    prop_oneof![
        8 => (0..6_u8, 0..2_u64, 0..4_u8).prop_map(|(key, body, lane)| Step::Append { key, body, lane }),
        1 => (0..4_u8).prop_map(|lane| Step::AppendLeased { lane }),
        1 => id.clone().prop_map(|id| Step::Drop { id }),
        2 => (0..4_usize).prop_map(|events| Step::Expect { events }),
        3 => Just(Step::Hour),
        1 => any::<bool>().prop_map(|clock_back| Step::Kill { clock_back }),
        6 => prop::collection::vec(end, 1..6).prop_map(|endings| Step::Lease { endings }),
        1 => any::<bool>().prop_map(|paused| Step::Pause { paused }),
        2 => id.prop_map(|id| Step::Replay { id }),
    ]
}

/// An event as the model knows it; its place in the list is its order.
#[derive(Debug)]
struct Known {
    id: u128,
    lane: Option<u8>,
    state: State,
    attempts: u32,
    /// The hour it is due in.
    due: u64,
    key: Option<u8>,
}

#[derive(Default)]
struct Model {
    events: Vec<Known>,
    /// Key → event, body, hour it was taken in; taken for half an hour.
    keys: BTreeMap<u8, (u128, u64, u64)>,
    hour: u64,
    /// Events that are leased as they arrive.
    expected: usize,
    paused: bool,
    next: u128,
}

impl Model {
    fn find(&mut self, id: u128) -> Option<&mut Known> {
        self.events.iter_mut().find(|e| e.id == id)
    }

    fn append(&mut self, lane: Option<u8>, key: Option<u8>, state: State) -> u128 {
        self.next += 1;
        self.events.push(Known {
            id: self.next,
            lane,
            state,
            attempts: u32::from(state == State::Leased),
            due: self.hour,
            key,
        });
        self.next
    }

    /// Whether an event of this lane is leased as it arrives.
    fn takes(&mut self, lane: Option<u8>) -> bool {
        let is_live = |e: &Known| matches!(e.state, State::Pending | State::Leased);
        let waits = |e: &Known| lane.is_some() && e.lane == lane && is_live(e);
        let takes = self.expected > 0 && !self.paused && !self.events.iter().any(waits);
        self.expected -= usize::from(takes);
        takes
    }

    fn due(&self) -> Vec<u128> {
        if self.paused {
            return Vec::new();
        }
        let live = |e: &&Known| matches!(e.state, State::Pending | State::Leased);
        let may_go = |event: &&Known| {
            let lane: Vec<_> = self
                .events
                .iter()
                .filter(live)
                .filter(|e| e.lane == event.lane)
                .collect();
            let is_free = event.lane.is_none()
                || lane.first().is_some_and(|first| first.id == event.id)
                    && lane.iter().all(|e| e.state == State::Pending);
            event.state == State::Pending && event.due <= self.hour && is_free
        };
        self.events.iter().filter(may_go).map(|e| e.id).collect()
    }

    fn states(&self) -> Vec<(u128, State)> {
        self.events.iter().map(|e| (e.id, e.state)).collect()
    }
}

struct Run {
    model: Model,
    dir: Dir,
    queue: Queue,
    arrivals: Option<Arrivals>,
    leases: Vec<Lease>,
}

impl Run {
    fn new() -> Self {
        let dir = Dir::new();
        Self {
            model: Model::default(),
            queue: open(&dir),
            arrivals: None,
            dir,
            leases: Vec::new(),
        }
    }

    async fn take(&mut self, step: Step) {
        let crm = self.queue.crm();
        match step {
            Step::Append { key, body, lane } => self.append(&crm, key, body, lane).await,
            Step::AppendLeased { lane } => {
                let lane = (lane > 0).then_some(lane);
                let id = self.model.append(lane, None, State::Leased);
                let event = lane_event(id, lane);
                let taken = crm.place(0).unwrap().append_leased(event).await.unwrap();
                let AppendedLeased::Leased { lease, .. } = taken else {
                    panic!("it has no key");
                };
                self.leases.push(lease);
            }
            Step::Drop { id } => {
                let went = self.queue.drop_events(&one(id), false).await.unwrap();
                let known = self.model.find(id).map(|e| (e.state, e.key));
                let may = known.is_some_and(|(state, _)| state != State::Leased);
                assert_eq!(went, u64::from(may));
                if may {
                    self.model.events.retain(|e| e.id != id);
                    self.model.keys.retain(|_, (owner, ..)| *owner != id);
                }
            }
            Step::Expect { events } => {
                let arrivals = self.arrivals.get_or_insert_with(|| crm.arrivals());
                arrivals.expect(events);
                self.model.expected = events;
            }
            Step::Hour => {
                self.queue.advance(HOUR);
                self.model.hour += 1;
            }
            Step::Kill { clock_back } => self.kill(clock_back).await,
            Step::Lease { endings } => self.lease(&crm, &endings).await,
            Step::Pause { paused } => {
                self.queue.pause(&name("crm"), paused).await.unwrap();
                self.model.paused = paused;
            }
            Step::Replay { id } => {
                let replayed = self.queue.replay(&one(id)).await.unwrap();
                let hour = self.model.hour;
                let known = self.model.find(id).filter(|e| e.state != State::Leased);
                assert_eq!(replayed, u64::from(known.is_some()));
                if let Some(known) = known {
                    (known.state, known.due) = (State::Pending, hour);
                }
            }
        }
    }

    async fn append(&mut self, crm: &Endpoint, key: u8, body: u64, lane: u8) {
        let (key, lane) = ((key > 0).then_some(key), (lane > 0).then_some(lane));
        let hour = self.model.hour;
        let taken = key.and_then(|key| self.model.keys.get(&key).copied());
        let taken = taken.filter(|(_, _, since)| *since == hour);
        let event = NewEvent {
            key: key.and_then(|key| keyed(key, body, KeyReuse::Duplicate)),
            ..lane_event(self.model.next + 1, lane)
        };
        let appended = crm.append(event).await.unwrap();
        match taken {
            Some((_, first, _)) => {
                let key_reused = first != body;
                assert_eq!(appended, Appended::Duplicate { key_reused });
            }
            None => {
                assert_eq!(appended, Appended::Queued { key_reused: false });
                let is_expected = self.model.takes(lane);
                let state = if is_expected {
                    State::Leased
                } else {
                    State::Pending
                };
                let id = self.model.append(lane, key, state);
                key.map(|key| self.model.keys.insert(key, (id, body, hour)));
                if let Some(arrivals) = self.arrivals.as_ref().filter(|_| is_expected) {
                    let arrived = arrivals.next().await;
                    let told: Vec<_> = arrived
                        .iter()
                        .map(|l| (l.id().as_u128(), l.attempt()))
                        .collect();
                    assert_eq!(told, [(id, 1)], "what arrived");
                    assert_eq!(*arrived[0].record(), record_of(id));
                    self.leases.extend(arrived);
                }
            }
        }
    }

    async fn lease(&mut self, crm: &Endpoint, endings: &[End]) {
        let leased = crm.lease(1000).await.unwrap().leases;
        let mut ids: Vec<_> = leased.iter().map(|l| l.id().as_u128()).collect();
        ids.sort_unstable();
        assert_eq!(ids, self.model.due(), "what is due");
        for lease in leased {
            let known = self.model.find(lease.id().as_u128()).unwrap();
            known.attempts += 1;
            known.state = State::Leased;
            assert_eq!(lease.attempt(), known.attempts, "its attempt");
            assert_eq!(*lease.record(), record_of(known.id), "its record");
            self.leases.push(lease);
        }
        for (number, end) in endings.iter().enumerate() {
            if !self.leases.is_empty() {
                let lease = self.leases.remove(number % self.leases.len());
                self.end(lease, *end).await;
            }
        }
    }

    async fn end(&mut self, lease: Lease, end: End) {
        let hour = self.model.hour;
        let known = self.model.find(lease.id().as_u128()).unwrap();
        match end {
            End::Dead => {
                known.state = State::Dead;
                lease.settle(dead()).await.unwrap();
            }
            End::Delivered => {
                known.state = State::Delivered;
                lease.settle(DELIVERED).await.unwrap();
            }
            End::HandBack => {
                (known.state, known.due) = (State::Pending, hour);
                known.attempts -= 1;
                lease.hand_back(None);
            }
            End::Later => self.leases.push(lease),
            End::Retry => {
                (known.state, known.due) = (State::Pending, hour + 1);
                lease.settle(retry(HOUR)).await.unwrap();
            }
        }
    }

    async fn kill(&mut self, clock_back: bool) {
        self.queue.written().await;
        let killed = self.dir.as_after_a_kill();
        let hours = HOUR * u32::try_from(self.model.hour).unwrap();
        let back = if clock_back { HOUR } else { Duration::ZERO };
        let wall_clock = start() + hours - back;
        self.queue = Queue::open(&killed, options(wall_clock)).unwrap();
        self.leases.clear();
        (self.arrivals, self.model.expected) = (None, 0);
        self.dir = killed;
        let hour = self.model.hour;
        for event in &mut self.model.events {
            if event.state == State::Leased {
                (event.state, event.due) = (State::Pending, hour);
            }
        }
    }

    async fn check(&self) {
        assert_eq!(self.queue.states().await, self.model.states());
        let stats = self.queue.stats().await.unwrap();
        let count = |state| {
            self.model
                .events
                .iter()
                .filter(|e| e.state == state)
                .count() as u64
        };
        for stats in stats {
            assert_eq!(stats.pending, count(State::Pending));
            assert_eq!(stats.leased, count(State::Leased));
            assert_eq!(stats.dead, count(State::Dead));
            assert_eq!(stats.delivered, count(State::Delivered));
            let bytes: usize = self
                .model
                .events
                .iter()
                .map(|e| record_of(e.id).len())
                .sum();
            assert_eq!(stats.stored_bytes, bytes as u64);
        }
    }
}

fn lane_event(id: u128, lane: Option<u8>) -> NewEvent {
    NewEvent {
        lane: lane.map(|lane| Bytes::from(vec![lane])),
        ..event(id)
    }
}

fn one(id: u128) -> Selection {
    Selection::Ids(vec![Uuid::from_u128(id)])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn any_history_leaves_what_the_model_says(steps in prop::collection::vec(step(), 1..60)) {
        run(async {
            let mut run = Run::new();
            for step in steps {
                run.take(step).await;
                run.check().await;
            }
            // In the end everything can be delivered, lanes in order.
            for lease in run.leases.drain(..) {
                run.model.find(lease.id().as_u128()).unwrap().state = State::Delivered;
                lease.settle(DELIVERED).await.unwrap();
            }
            run.take(Step::Pause { paused: false }).await;
            run.take(Step::Hour).await;
            while !run.model.due().is_empty() {
                run.take(Step::Lease { endings: vec![End::Delivered; 200] }).await;
            }
            run.check().await;
            assert!(run.model.events.iter().all(|e| !matches!(e.state, State::Pending | State::Leased)));
        });
    }
}
