//! At most N bytes of body, out of one budget for all of them, shown to a reader as they come.
//!
//! Owns the memory that strangers' bodies may take: every body is charged to one [`Budget`] before
//! its memory is taken, and when the budget is used up the unfinished body whose last byte is
//! oldest gives way. It leaves deadlines to the connection, and hashing to whoever looks at the
//! bytes.

mod store;

use std::{
    future::poll_fn,
    mem,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use lru::LruCache;

use self::store::Store;

/// First reservation for a body of unknown or large size, in bytes.
const FIRST_RESERVATION: usize = 64 * 1024;
/// First reservation for a body of unknown size.
const SMALL_RESERVATION: usize = 2 * 1024;

/// Gives back to the system what this thread keeps for its next large body; to be called now and
/// then.
pub fn tidy() {
    store::tidy();
}

/// Why a body was not read to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyError {
    /// The connection ended, or its framing could not be trusted.
    Broken,
    /// No room, or this body gave way to another.
    Overloaded,
    /// More bytes than allowed.
    TooLarge,
}

/// Memory for all bodies together.
#[derive(Debug)]
pub struct Budget {
    max: AtomicUsize,
    used: AtomicUsize,
    next_place: AtomicU64,
    unfinished: Mutex<LruCache<u64, Waiting>>,
}

/// An unfinished body that waits for bytes: what it has so far lies here, so that whoever needs the
/// room can free it at once.
#[derive(Debug)]
struct Waiting {
    bytes: Store,
    charged: usize,
    waker: Waker,
}

impl Budget {
    /// A budget of `max` bytes.
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self {
            max: AtomicUsize::new(max),
            used: AtomicUsize::new(0),
            next_place: AtomicU64::new(0),
            unfinished: Mutex::new(LruCache::unbounded()),
        })
    }

    /// Changes the bound; what is over it stays until it is finished.
    pub fn resize(&self, max: usize) {
        self.max.store(max, Ordering::Relaxed);
    }

    /// Bytes charged now.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// How many unfinished bodies wait for bytes.
    pub fn waiting(&self) -> usize {
        self.unfinished().len()
    }

    fn unfinished(&self) -> MutexGuard<'_, LruCache<u64, Waiting>> {
        // Nothing panics while it is held, and its content is valid at every step.
        self.unfinished
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Charges `bytes`, ending unfinished bodies, oldest last byte first, until they fit.
    fn charge(&self, bytes: usize) -> Result<(), BodyError> {
        let max = self.max.load(Ordering::Relaxed);
        let take = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= max);
        while self
            .used
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, take)
            .is_err()
        {
            let oldest = self.unfinished().pop_lru();
            let (_, ended) = oldest.ok_or(BodyError::Overloaded)?;
            drop(ended.bytes);
            self.used.fetch_sub(ended.charged, Ordering::AcqRel);
            ended.waker.wake();
        }
        Ok(())
    }
}

/// A body being read: its bytes so far, what they are charged with, and, while it waits, where it
/// stands among the unfinished.
#[derive(Debug)]
struct Unfinished {
    budget: Arc<Budget>,
    bytes: Store,
    charged: usize,
    place: Option<u64>,
}

impl Unfinished {
    /// Makes room for `capacity` bytes altogether, of `expected` in the end.
    fn grow(&mut self, capacity: usize, expected: usize) -> Result<(), BodyError> {
        let price = self.bytes.price(capacity, expected);
        self.budget.charge(price.saturating_sub(self.charged))?;
        self.charged = self.charged.max(price);
        match self.bytes.reserve(capacity, expected) {
            true => Ok(()),
            false => Err(BodyError::Overloaded),
        }
    }

    /// Stands among the unfinished until more bytes come.
    ///
    /// # Errors
    /// [`BodyError::Overloaded`] when this body had to give way meanwhile.
    fn wait(&mut self, waker: &Waker) -> Result<(), BodyError> {
        let mut unfinished = self.budget.unfinished();
        if let Some(place) = self.place {
            let waiting = unfinished.peek_mut(&place).ok_or(BodyError::Overloaded)?;
            waiting.waker.clone_from(waker);
        } else {
            let place = self.budget.next_place.fetch_add(1, Ordering::Relaxed);
            let bytes = mem::replace(&mut self.bytes, Store::new());
            let waiting = Waiting {
                bytes,
                charged: self.charged,
                waker: waker.clone(),
            };
            unfinished.put(place, waiting);
            self.place = Some(place);
        }
        Ok(())
    }

    /// Comes back from waiting: from here on nothing can end this body.
    ///
    /// # Errors
    /// [`BodyError::Overloaded`] when this body had to give way.
    fn resume(&mut self) -> Result<(), BodyError> {
        let Some(place) = self.place else {
            return Ok(());
        };
        let waiting = self
            .budget
            .unfinished()
            .pop(&place)
            .ok_or(BodyError::Overloaded)?;
        self.bytes = waiting.bytes;
        self.place = None;
        Ok(())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let charged = match self.place {
            // Whoever ended it has taken its charge already.
            Some(place) => self
                .budget
                .unfinished()
                .pop(&place)
                .map_or(0, |w| w.charged),
            None => self.charged,
        };
        self.budget.used.fetch_sub(charged, Ordering::AcqRel);
    }
}

/// A whole body, its bytes exactly as they came, charged as long as they exist.
#[derive(Debug)]
pub struct Body(Unfinished);

impl Body {
    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.bytes.as_slice()
    }
}

/// Reads a body of at most `limit` bytes to its end; `see` is shown every byte once, in order.
///
/// `announced` is its `Content-Length`, where there is one. Bytes are copied once, into memory
/// that was charged to the budget first; a body that came in pieces of any size costs at most
/// twice its length.
///
/// # Errors
/// See [`BodyError`].
pub async fn read<B>(
    mut incoming: B,
    announced: Option<u64>,
    limit: usize,
    budget: &Arc<Budget>,
    mut see: impl FnMut(&[u8]),
) -> Result<Body, BodyError>
where
    B: http_body::Body<Data = Bytes> + Unpin,
{
    let announced = announced.map(|n| usize::try_from(n).unwrap_or(usize::MAX));
    let first = announced
        .unwrap_or(SMALL_RESERVATION)
        .min(limit)
        .min(FIRST_RESERVATION);
    let mut body = Unfinished {
        budget: budget.clone(),
        bytes: Store::new(),
        charged: 0,
        place: None,
    };
    let expected = announced.unwrap_or_default().min(limit);
    body.grow(first, expected)?;
    while let Some(data) = poll_fn(|cx| poll_data(&mut incoming, &mut body, cx)).await {
        let data = data?;
        let needed = body.bytes.len() + data.len();
        if needed > limit {
            return Err(BodyError::TooLarge);
        }
        if needed > body.charged {
            // Fourfold towards a length that was announced, else twofold.
            let ahead = match announced {
                Some(length) => length.min(body.charged * 4),
                None => body.charged * 2,
            };
            body.grow(ahead.max(needed).min(limit), expected)?;
        }
        see(&data);
        body.bytes.extend(&data);
    }
    Ok(Body(body))
}

fn poll_data<B>(
    incoming: &mut B,
    body: &mut Unfinished,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Bytes, BodyError>>>
where
    B: http_body::Body<Data = Bytes> + Unpin,
{
    loop {
        let Poll::Ready(frame) = Pin::new(&mut *incoming).poll_frame(cx) else {
            let waits = body.wait(cx.waker());
            return waits.map_or_else(|error| Poll::Ready(Some(Err(error))), |()| Poll::Pending);
        };
        let frame = match frame {
            None => return Poll::Ready(body.resume().err().map(Err)),
            Some(Err(_)) => return Poll::Ready(Some(Err(BodyError::Broken))),
            Some(Ok(frame)) => frame,
        };
        // Trailers are not signed: they go no further.
        if let Some(data) = frame.into_data().ok().filter(|data| !data.is_empty()) {
            return Poll::Ready(Some(body.resume().map(|()| data)));
        }
    }
}

#[cfg(test)]
mod tests;
