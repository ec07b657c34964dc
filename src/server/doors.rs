//! How many are in at a time over all threads: connections, and requests on connections that carry
//! several.

use std::{
    cell::RefCell,
    collections::HashMap,
    net::IpAddr,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use prometheus::IntGauge;

/// What is open over all threads, and how much may be.
#[derive(Clone, Debug)]
pub struct Doors {
    connections: Arc<AtomicUsize>,
    /// Requests on connections that carry several.
    requests: Arc<AtomicUsize>,
    /// How many connections there are descriptors for.
    room: usize,
    gauge: IntGauge,
}

/// Keeps a connection counted.
pub(super) struct Guard(Doors);

/// Keeps a request counted.
pub(super) struct Seat(Arc<AtomicUsize>);

/// One thread's connections by address, where one address has a bound.
#[derive(Debug, Default)]
pub(super) struct Callers(Rc<RefCell<HashMap<IpAddr, usize>>>);

/// Keeps a connection counted under its address.
pub(super) struct Caller {
    callers: Rc<RefCell<HashMap<IpAddr, usize>>>,
    peer: IpAddr,
}

impl Callers {
    /// Lets another connection of this address in, if fewer than `most` are.
    pub(super) fn enter(&self, peer: IpAddr, most: usize) -> Option<Caller> {
        let mut callers = self.0.borrow_mut();
        let open = callers.get(&peer).copied().unwrap_or_default();
        (open < most).then(|| {
            callers.insert(peer, open + 1);
            Caller {
                callers: self.0.clone(),
                peer,
            }
        })
    }
}

impl Doors {
    /// None is open, and never more than `room` will be, whatever the limits say.
    pub fn new(gauge: IntGauge, room: usize) -> Self {
        Self {
            connections: Arc::default(),
            requests: Arc::default(),
            room,
            gauge,
        }
    }

    /// Lets a connection in, if fewer than `max` are.
    pub(super) fn enter(&self, max: usize) -> Option<Guard> {
        add_one(&self.connections, max.min(self.room))?;
        self.gauge.inc();
        Some(Guard(self.clone()))
    }

    /// Lets a request in that shares its connection with others. There may be as many as connections:
    /// heads and tasks take memory that no body is charged for, and who opens a hundred streams
    /// gets no hundred times as much of it.
    pub(super) fn seat(&self, max: usize) -> Option<Seat> {
        add_one(&self.requests, max.min(self.room))?;
        Some(Seat(self.requests.clone()))
    }
}

fn add_one(count: &AtomicUsize, most: usize) -> Option<usize> {
    let add = |count: usize| (count < most).then_some(count + 1);
    count
        .fetch_update(Ordering::AcqRel, Ordering::Acquire, add)
        .ok()
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::AcqRel);
        self.0.gauge.dec();
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        let mut callers = self.callers.borrow_mut();
        if let Some(open) = callers.get_mut(&self.peer) {
            *open -= 1;
            if *open == 0 {
                callers.remove(&self.peer);
            }
        }
    }
}
