//! At most N bytes of body, out of one budget for all of them, shown to a reader as they come.
//!
//! Owns the memory that strangers' bodies may take: every body is charged to one [`Budget`] before
//! its memory is taken, and when the budget is used up the unfinished body whose last byte is
//! oldest gives way. It leaves deadlines to the connection, and hashing to whoever looks at the
//! bytes.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker, ready},
};

use bytes::Bytes;
use lru::LruCache;

/// First reservation for a body of unknown or large size, in bytes.
const FIRST_RESERVATION: usize = 64 * 1024;
/// First reservation for a body of unknown size.
const SMALL_RESERVATION: usize = 2 * 1024;

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

/// An unfinished body that waits for bytes.
#[derive(Debug)]
struct Waiting {
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
    fn charge(&self, bytes: usize, own_place: Option<u64>) -> Result<(), BodyError> {
        let max = self.max.load(Ordering::Relaxed);
        let take = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= max);
        while self
            .used
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, take)
            .is_err()
        {
            let mut unfinished = self.unfinished();
            let oldest = match unfinished.peek_lru() {
                Some((place, _)) if own_place != Some(*place) => unfinished.pop_lru(),
                Some(_) | None => None,
            };
            // The memory itself follows when the ended body's task runs, in a moment.
            let (_, ended) = oldest.ok_or(BodyError::Overloaded)?;
            self.used.fetch_sub(ended.charged, Ordering::AcqRel);
            drop(unfinished);
            ended.waker.wake();
        }
        Ok(())
    }
}

/// What one body has taken from the budget; given back when dropped.
#[derive(Debug)]
struct Charge {
    budget: Arc<Budget>,
    bytes: usize,
    /// Where it stands among the unfinished, once it had to wait.
    place: Option<u64>,
}

impl Charge {
    fn grow(&mut self, by: usize) -> Result<(), BodyError> {
        self.budget.charge(by, self.place)?;
        self.bytes += by;
        let Some(place) = self.place else {
            return Ok(());
        };
        match self.budget.unfinished().get_mut(&place) {
            Some(waiting) => {
                waiting.charged += by;
                Ok(())
            }
            None => {
                self.budget.used.fetch_sub(by, Ordering::AcqRel);
                Err(BodyError::Overloaded)
            }
        }
    }

    /// Notes that bytes came.
    ///
    /// # Errors
    /// [`BodyError::Overloaded`] when this body had to give way.
    fn touch(&mut self) -> Result<(), BodyError> {
        let Some(place) = self.place else {
            return Ok(());
        };
        match self.budget.unfinished().get(&place) {
            Some(_) => Ok(()),
            None => Err(BodyError::Overloaded),
        }
    }

    /// Stands among the unfinished until more bytes come.
    fn wait(&mut self, waker: &Waker) -> Result<(), BodyError> {
        let mut unfinished = self.budget.unfinished();
        if let Some(place) = self.place {
            let waiting = unfinished.peek_mut(&place).ok_or(BodyError::Overloaded)?;
            waiting.waker.clone_from(waker);
        } else {
            let place = self.budget.next_place.fetch_add(1, Ordering::Relaxed);
            unfinished.put(
                place,
                Waiting {
                    charged: self.bytes,
                    waker: waker.clone(),
                },
            );
            self.place = Some(place);
        }
        Ok(())
    }

    /// Leaves the unfinished: from here on nothing can end this body.
    fn finish(&mut self) -> Result<(), BodyError> {
        let Some(place) = self.place else {
            return Ok(());
        };
        self.budget
            .unfinished()
            .pop(&place)
            .ok_or(BodyError::Overloaded)?;
        self.place = None;
        Ok(())
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let own = match self.place {
            // Whoever ended it has taken its charge already.
            Some(place) => self
                .budget
                .unfinished()
                .pop(&place)
                .map_or(0, |w| w.charged),
            None => self.bytes,
        };
        self.budget.used.fetch_sub(own, Ordering::AcqRel);
    }
}

/// A whole body, its bytes exactly as they came.
#[derive(Debug)]
pub struct Body {
    bytes: Vec<u8>,
    /// Held for its `Drop`: the bytes are charged as long as they exist.
    _charge: Charge,
}

impl Body {
    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
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
    let mut charge = Charge {
        budget: budget.clone(),
        bytes: 0,
        place: None,
    };
    charge.grow(first)?;
    let mut bytes = Vec::with_capacity(first);
    while let Some(data) = poll_fn(|cx| poll_data(&mut incoming, &mut charge, cx)).await {
        let data = data?;
        charge.touch()?;
        let needed = bytes.len() + data.len();
        if needed > limit {
            return Err(BodyError::TooLarge);
        }
        if needed > bytes.capacity() {
            // Fourfold towards a length that was announced, else twofold.
            let ahead = match announced {
                Some(length) => length.min(bytes.capacity() * 4),
                None => bytes.capacity() * 2,
            };
            let capacity = ahead.max(needed).min(limit);
            charge.grow(capacity - bytes.capacity())?;
            bytes.reserve_exact(capacity - bytes.len());
        }
        see(&data);
        bytes.extend_from_slice(&data);
    }
    charge.finish()?;
    Ok(Body {
        bytes,
        _charge: charge,
    })
}

fn poll_data<B>(
    incoming: &mut B,
    charge: &mut Charge,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Bytes, BodyError>>>
where
    B: http_body::Body<Data = Bytes> + Unpin,
{
    loop {
        let frame = match Pin::new(&mut *incoming).poll_frame(cx) {
            Poll::Pending => {
                return charge
                    .wait(cx.waker())
                    .map_or_else(|error| Poll::Ready(Some(Err(error))), |()| Poll::Pending);
            }
            ready => ready!(ready),
        };
        match frame {
            None => return Poll::Ready(None),
            Some(Err(_)) => return Poll::Ready(Some(Err(BodyError::Broken))),
            // Trailers are not signed: they go no further.
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) if data.is_empty() => {}
                Ok(data) => return Poll::Ready(Some(Ok(data))),
                Err(_trailers) => {}
            },
        }
    }
}

#[cfg(test)]
mod tests;
