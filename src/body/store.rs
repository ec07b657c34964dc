//! Where a body's bytes lie: small ones on the heap, large ones in pages of their own.
//!
//! Pages go back to the system the moment a body is dropped, whatever the allocator thinks of it;
//! a few are kept by each thread for its next body, because fresh pages cost more than hashing does.

use std::{
    cell::RefCell,
    task::{Context, Poll},
};

use bytes::BufMut as _;
use memmap2::MmapMut;

use super::{BodyError, Source};

/// From this many bytes on a body has pages of its own.
const MAPPED: usize = 64 * 1024;
/// Most bytes of pages kept by one thread, until it tidies up.
const KEPT: usize = 16 << 20;

thread_local! {
    static SPARE: RefCell<Vec<MmapMut>> = const { RefCell::new(Vec::new()) };
}

/// Gives this thread's spare pages back to the system.
pub(super) fn tidy() {
    SPARE.with_borrow_mut(Vec::clear);
}

/// The bytes of one body.
#[derive(Debug)]
pub(super) struct Store {
    heap: Vec<u8>,
    /// Pages, and how many bytes of them are used; the heap is empty then.
    mapped: Option<(MmapMut, usize)>,
}

impl Store {
    pub(super) fn new() -> Self {
        Self {
            heap: Vec::new(),
            mapped: None,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.mapped
            .as_ref()
            .map_or(self.heap.len(), |(_, len)| *len)
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        match &self.mapped {
            Some((map, len)) => map.get(..*len).unwrap_or_default(),
            None => &self.heap,
        }
    }

    /// What [`Store::reserve`] with the same arguments will have taken in memory: spare pages have
    /// been touched already and cost all they hold, fresh ones only what is put into them.
    pub(super) fn price(&self, capacity: usize, expected: usize) -> usize {
        let is_there = self
            .mapped
            .as_ref()
            .is_some_and(|(map, _)| map.len() >= capacity);
        if is_there || capacity.max(expected) < MAPPED {
            return capacity;
        }
        let length = capacity.max(expected);
        SPARE.with_borrow(|spare| {
            let spare = spare.iter().rfind(|map| fits(map, length));
            spare.map_or(capacity, |map| map.len())
        })
    }

    /// Makes room for `capacity` bytes altogether; whether there is. `expected`: how many there
    /// will be in the end; pages for them cost nothing until they are touched.
    pub(super) fn reserve(&mut self, capacity: usize, expected: usize) -> bool {
        if capacity.max(expected) < MAPPED {
            self.heap
                .reserve_exact(capacity.saturating_sub(self.heap.len()));
            return true;
        }
        if self
            .mapped
            .as_ref()
            .is_some_and(|(map, _)| map.len() >= capacity)
        {
            return true;
        }
        let Some(mut map) = pages(capacity.max(expected)) else {
            return false;
        };
        let len = self.len();
        if let Some(start) = map.get_mut(..len) {
            start.copy_from_slice(self.as_slice());
        }
        if let Some((old, _)) = self.mapped.replace((map, len)) {
            keep(old);
        }
        self.heap = Vec::new();
        true
    }

    /// Takes the next bytes, at most `most`, for which there is room, as [`Source::poll_read`].
    pub(super) fn poll_fill(
        &mut self,
        source: &mut impl Source,
        most: usize,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<usize>, BodyError>> {
        match &mut self.mapped {
            None => source.poll_read(cx, &mut (&mut self.heap).limit(most)),
            Some((map, len)) => {
                let room = map.get_mut(*len..).unwrap_or_default();
                let came = source.poll_read(cx, &mut room.limit(most));
                if let Poll::Ready(Ok(Some(came))) = came {
                    *len += came;
                }
                came
            }
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if let Some((map, _)) = self.mapped.take() {
            keep(map);
        }
    }
}

/// Whether pages are right for a body of this length: large enough, and not much too large.
fn fits(map: &MmapMut, length: usize) -> bool {
    (length..=length.saturating_mul(2)).contains(&map.len())
}

/// Pages for at least `length` bytes: spare ones of about that size, or fresh ones.
fn pages(length: usize) -> Option<MmapMut> {
    let spare = SPARE.with_borrow_mut(|spare| {
        let place = spare.iter().rposition(|map| fits(map, length))?;
        Some(spare.swap_remove(place))
    });
    spare.or_else(|| MmapMut::map_anon(length).ok())
}

fn keep(map: MmapMut) {
    // Not while the thread is being taken apart.
    let _ = SPARE.try_with(|spare| {
        let mut spare = spare.borrow_mut();
        let kept: usize = spare.iter().map(|map| map.len()).sum();
        if kept + map.len() <= KEPT {
            spare.push(map);
        }
    });
}

#[cfg(test)]
mod tests {
    use bytes::{BufMut, Bytes};

    use super::*;

    impl Source for Bytes {
        fn poll_read(
            &mut self,
            _: &mut Context<'_>,
            room: &mut impl BufMut,
        ) -> Poll<Result<Option<usize>, BodyError>> {
            let here = self.len().min(room.remaining_mut());
            room.put(self.split_to(here));
            Poll::Ready(Ok(Some(here)))
        }
    }

    #[test]
    fn bytes_survive_every_move_between_heap_and_pages() {
        for expected in [0, 100, MAPPED, 5 * MAPPED] {
            let mut store = Store::new();
            let mut bytes = Vec::new();
            for piece in 0..200_u8 {
                let mut piece = Bytes::from(vec![piece; 1000]);
                assert!(store.reserve(store.len() + piece.len(), expected));
                bytes.extend_from_slice(&piece);
                let mut cx = Context::from_waker(std::task::Waker::noop());
                let came = store.poll_fill(&mut piece, 1000, &mut cx);
                assert_eq!(came, Poll::Ready(Ok(Some(1000))));
                assert!(store.as_slice() == bytes, "{} of {expected}", bytes.len());
            }
        }
    }

    #[test]
    fn spare_pages_are_used_again_and_bounded() {
        tidy();
        let large = |count: usize| {
            let stores: Vec<_> = (0..count)
                .map(|_| {
                    let mut store = Store::new();
                    assert!(store.reserve(1 << 20, 1 << 20));
                    store
                })
                .collect();
            drop(stores);
            SPARE.with_borrow(Vec::len)
        };
        assert_eq!((large(3), large(3), large(20)), (3, 3, 16));
        tidy();
        assert_eq!(SPARE.with_borrow(Vec::len), 0);
    }
}
