use std::{collections::VecDeque, convert::Infallible, sync::Arc, task::Wake};

use http_body::Frame;

use super::*;

/// A body whose pieces are given by the test; it waits where a piece is `None`.
struct Script(VecDeque<Option<Bytes>>);

impl http_body::Body for Script {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.0.pop_front() {
            None => Poll::Ready(None),
            Some(None) => Poll::Pending,
            Some(Some(data)) => Poll::Ready(Some(Ok(Frame::data(data)))),
        }
    }
}

fn script<const N: usize>(pieces: [Option<&'static [u8]>; N]) -> Frames<Script> {
    Frames::new(Script(
        pieces
            .into_iter()
            .map(|p| p.map(Bytes::from_static))
            .collect(),
    ))
}

#[derive(Default)]
struct Woken(std::sync::atomic::AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

fn poll<F: Future>(future: Pin<&mut F>, woken: &Arc<Woken>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(&woken.clone().into()))
}

#[test]
fn a_body_is_the_bytes_in_order_and_each_is_seen_once() {
    let budget = Budget::new(1 << 20);
    let mut seen = Vec::new();
    let body = script([Some(b"ab"), Some(b""), Some(b"c")]);
    let mut read = Box::pin(read(body, Some(3), 10, &budget, |b| {
        seen.extend_from_slice(b)
    }));
    let Poll::Ready(Ok(body)) = poll(read.as_mut(), &Arc::default()) else {
        panic!("not ready")
    };
    drop(read);
    assert_eq!(
        (body.as_bytes(), seen.as_slice()),
        (&b"abc"[..], &b"abc"[..])
    );
    assert_eq!(budget.used(), 3);
    drop(body);
    assert_eq!(budget.used(), 0);
}

#[test]
fn one_byte_over_the_limit_is_too_large() {
    let budget = Budget::new(1 << 20);
    let mut read = Box::pin(read(
        script([Some(b"abc"), Some(b"d")]),
        None,
        3,
        &budget,
        |_| (),
    ));
    let outcome = poll(read.as_mut(), &Arc::default());
    assert!(matches!(outcome, Poll::Ready(Err(BodyError::TooLarge))));
}

#[test]
fn single_bytes_cost_at_most_twice_their_number() {
    let budget = Budget::new(1 << 20);
    let pieces = (0..300_000)
        .map(|_| Some(Bytes::from_static(b"x")))
        .chain([None])
        .collect();
    let mut read = Box::pin(read(
        Frames::new(Script(pieces)),
        None,
        1 << 20,
        &budget,
        |_| (),
    ));
    assert!(poll(read.as_mut(), &Arc::default()).is_pending());
    assert!(budget.used() <= 600_000, "{}", budget.used());
}

#[test]
fn the_unfinished_body_with_the_oldest_last_byte_gives_way() {
    let budget = Budget::new(3 * SMALL_RESERVATION);
    let waiting = || script([Some(b"a"), None, Some(b"b"), None, None]);
    let (older, newer) = (Arc::<Woken>::default(), Arc::<Woken>::default());
    let mut first = Box::pin(read(waiting(), None, 1 << 20, &budget, |_| ()));
    let mut second = Box::pin(read(waiting(), None, 1 << 20, &budget, |_| ()));
    assert!(poll(first.as_mut(), &newer).is_pending());
    assert!(poll(second.as_mut(), &older).is_pending());
    // A byte comes for the first: the second is now the one that waited longest.
    assert!(poll(first.as_mut(), &newer).is_pending());

    let large = Some(2 * SMALL_RESERVATION as u64);
    let mut third = Box::pin(read(script([None]), large, 1 << 20, &budget, |_| ()));
    assert!(poll(third.as_mut(), &Arc::default()).is_pending());
    assert!(older.0.load(Ordering::SeqCst) && !newer.0.load(Ordering::SeqCst));
    assert!(matches!(
        poll(second.as_mut(), &older),
        Poll::Ready(Err(BodyError::Overloaded))
    ));
    assert_eq!(budget.used(), 3 * SMALL_RESERVATION);
    drop((first, second, third));
    assert_eq!((budget.used(), budget.waiting()), (0, 0));
}

#[test]
fn a_newcomer_is_refused_when_nothing_is_unfinished() {
    let budget = Budget::new(4);
    let mut whole = Box::pin(read(script([Some(b"abcd")]), Some(4), 10, &budget, |_| ()));
    let Poll::Ready(Ok(held)) = poll(whole.as_mut(), &Arc::default()) else {
        panic!("not ready")
    };
    let mut newcomer = Box::pin(read(script([Some(b"x")]), Some(1), 10, &budget, |_| ()));
    let outcome = poll(newcomer.as_mut(), &Arc::default());
    assert!(matches!(outcome, Poll::Ready(Err(BodyError::Overloaded))));
    drop((whole, held));
    assert_eq!(budget.used(), 0);
}
