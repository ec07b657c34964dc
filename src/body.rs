//! At most N bytes of body, out of one budget for all of them, shown to a reader as they come.
//!
//! Owns the memory that strangers' bodies may take: every body is charged to one [`Budget`] before
//! its memory is taken, and when the budget is used up the unfinished body whose last byte is
//! oldest gives way. It leaves deadlines to the connection, and hashing to whoever looks at the
//! bytes.

mod store;

use std::{
    collections::BTreeMap,
    future::poll_fn,
    mem,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker, ready},
};

use bytes::{Buf as _, BufMut, Bytes};

use self::store::Store;

/// First reservation for a body of unknown or large size, in bytes.
const FIRST_RESERVATION: usize = 64 * 1024;
/// First reservation for a body of unknown size.
const SMALL_RESERVATION: usize = 2 * 1024;
/// Room below which more is made for an announced body before it is asked for: a read into the
/// last few bytes of a reservation costs as much as one into many.
const SCANT: usize = 16 * 1024;

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

/// Where a body's bytes come from.
pub trait Source {
    /// Puts the next bytes into `room`, as many as fit: how many, which is 0 only where there is
    /// no room for what comes; `None` at the end of the body.
    ///
    /// # Errors
    /// [`BodyError::Broken`].
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        room: &mut impl BufMut,
    ) -> Poll<Result<Option<usize>, BodyError>>;
}

/// A body that the HTTP library takes apart, frame by frame.
#[derive(Debug)]
pub struct Frames<B> {
    body: B,
    rest: Bytes,
}

impl<B> Frames<B> {
    /// The frames of `body`, none of them read.
    pub fn new(body: B) -> Self {
        let rest = Bytes::new();
        Self { body, rest }
    }
}

impl<B: http_body::Body<Data = Bytes> + Unpin> Source for Frames<B> {
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        room: &mut impl BufMut,
    ) -> Poll<Result<Option<usize>, BodyError>> {
        while self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                None => return Poll::Ready(Ok(None)),
                Some(Err(_)) => return Poll::Ready(Err(BodyError::Broken)),
                // Trailers are not signed: they go no further.
                Some(Ok(frame)) => self.rest = frame.into_data().unwrap_or_default(),
            }
        }
        let here = self.rest.len().min(room.remaining_mut());
        room.put((&mut self.rest).take(here));
        if self.rest.is_empty() {
            // A frame that is kept pins the buffer it was read into.
            self.rest = Bytes::new();
        }
        Poll::Ready(Ok(Some(here)))
    }
}

/// Memory for all bodies together.
#[derive(Debug)]
pub struct Budget {
    max: AtomicUsize,
    used: AtomicUsize,
    next_place: AtomicU64,
    /// By place: whoever's last byte is oldest has the lowest.
    unfinished: Mutex<BTreeMap<u64, Waiting>>,
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
            unfinished: Mutex::default(),
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

    fn unfinished(&self) -> MutexGuard<'_, BTreeMap<u64, Waiting>> {
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
            let oldest = self.unfinished().pop_first();
            let (_, ended) = oldest.ok_or(BodyError::Overloaded)?;
            drop(ended.bytes);
            self.used.fetch_sub(ended.charged, Ordering::AcqRel);
            ended.waker.wake();
        }
        Ok(())
    }
}

/// A body being read: its bytes so far and what they are charged with.
#[derive(Debug)]
struct Unfinished {
    budget: Arc<Budget>,
    bytes: Store,
    charged: usize,
    /// Its place among the unfinished, given when it began to wait for the byte that comes next.
    place: Option<u64>,
    /// It stands there; its bytes do, too.
    is_waiting: bool,
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

    /// Takes the next bytes into the room there is, as [`Source::poll_read`].
    fn poll_read(
        &mut self,
        source: &mut impl Source,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<usize>, BodyError>> {
        self.resume()?;
        let most = self.charged - self.bytes.len();
        let outcome = self.bytes.poll_fill(source, most, cx);
        match outcome {
            Poll::Pending => self.wait(cx.waker()),
            Poll::Ready(_) => self.place = None,
        }
        outcome
    }

    /// Stands among the unfinished until more bytes come.
    fn wait(&mut self, waker: &Waker) {
        let next = || self.budget.next_place.fetch_add(1, Ordering::Relaxed);
        let place = *self.place.get_or_insert_with(next);
        let waiting = Waiting {
            bytes: mem::replace(&mut self.bytes, Store::new()),
            charged: self.charged,
            waker: waker.clone(),
        };
        self.budget.unfinished().insert(place, waiting);
        self.is_waiting = true;
    }

    /// Comes back from waiting: from here on nothing can end this body.
    ///
    /// # Errors
    /// [`BodyError::Overloaded`] when this body had to give way.
    fn resume(&mut self) -> Result<(), BodyError> {
        if let (true, Some(place)) = (self.is_waiting, self.place) {
            let waiting = self.budget.unfinished().remove(&place);
            self.bytes = waiting.ok_or(BodyError::Overloaded)?.bytes;
            self.is_waiting = false;
        }
        Ok(())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let charged = match self.place {
            // Whoever ended it has taken its charge already.
            Some(place) if self.is_waiting => self
                .budget
                .unfinished()
                .remove(&place)
                .map_or(0, |w| w.charged),
            Some(_) | None => self.charged,
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
/// `announced` is its `Content-Length`, where there is one. Bytes go into memory that was charged
/// to the budget first; a body that came in pieces of any size costs at most twice its length.
///
/// # Errors
/// See [`BodyError`].
pub async fn read(
    mut source: impl Source,
    announced: Option<u64>,
    limit: usize,
    budget: &Arc<Budget>,
    mut see: impl FnMut(&[u8]),
) -> Result<Body, BodyError> {
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
        is_waiting: false,
    };
    let expected = announced.unwrap_or_default().min(limit);
    body.grow(first, expected)?;
    loop {
        let before = body.bytes.len();
        if body.charged < expected && body.charged - before < SCANT {
            body.grow(expected.min(body.charged * 4), expected)?;
        }
        let came = poll_fn(|cx| body.poll_read(&mut source, cx)).await?;
        match came {
            None => return Ok(Body(body)),
            Some(0) if before >= limit => return Err(BodyError::TooLarge),
            Some(0) => body.grow((body.charged * 2).max(before + 1).min(limit), expected)?,
            Some(_) => see(body.bytes.as_slice().get(before..).unwrap_or_default()),
        }
    }
}

#[cfg(test)]
mod tests;
