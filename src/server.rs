//! One loop per core: accept, one task per connection, drain.
//!
//! Owns the listeners of one thread and the tasks of its connections. Each thread has its own
//! sockets on the same addresses (`SO_REUSEPORT`), so that no connection is handed from one core to
//! another. What a connection may do and for how long is `connection`'s; what a request means, the
//! handler's.

mod doors;
mod http2;
mod listener;

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    convert::Infallible,
    future::poll_fn,
    io,
    net::IpAddr,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Poll, Waker},
    time::{Duration, Instant},
};

use http::{Method, Request, Response, header};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use prometheus::IntGauge;
use tokio::{
    net::UnixStream,
    sync::watch,
    task::{JoinError, JoinSet},
};

pub use self::{doors::Doors, listener::Socket};
use self::{
    doors::{Caller, Callers, Guard},
    listener::{Accepted, Listener, accept, turn_away},
};
use crate::{
    body::Budget,
    connection::{
        Inflow, Peer, Watch,
        http1::{Io, Line},
        http2::Carrier,
        opening::{OpenFault, Opened, Opening},
    },
    gate::{Gate, Live},
    limits::Limits,
    rejection::{Malformation, Rejection},
    stream::Stream,
    upstream::AnswerBody,
};

/// How long idle connections may still send a request after the listeners have closed: a sender
/// that has just reused its connection is answered, and told to close it.
const LAST_CALL: Duration = Duration::from_secs(1);
/// Pause after an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often it is said that connections cannot be accepted.
const SAID_EVERY: Duration = Duration::from_secs(10);
/// How often a thread's idle state is looked after.
const TICK: Duration = Duration::from_secs(1);
/// The smallest bound the HTTP library accepts for its read buffer, in bytes.
const SMALLEST_BUFFER: usize = 8 * 1024;
/// The bound on that buffer where the header limit is smaller: a body is read in pieces up to it.
const READ_BUFFER: usize = 64 * 1024;
/// The HTTP library's own bound on header fields, kept on the stack.
const FIELDS_ON_STACK: usize = 100;

/// What answers the requests of one thread's connections.
pub trait Handler: 'static {
    /// What a change of configuration brings.
    type News: Clone + 'static;

    /// Answers one request.
    fn handle(
        &self,
        watch: &Watch,
        request: Request<Inflow<'_>>,
    ) -> impl Future<Output = Response<AnswerBody>>;
    /// What new connections begin with, where that is more than HTTP.
    fn opening(&self) -> Option<Arc<Opening>> {
        None
    }
    /// Counts and logs a connection on which no HTTP could be spoken.
    fn not_opened(&self, _fault: &OpenFault, _peer: Option<IpAddr>) {}
    /// The bounds for new connections.
    fn limits(&self) -> Limits;
    /// Most connections of one address, where that has a bound of its own.
    fn most_of_one(&self) -> Option<usize> {
        None
    }
    /// Takes a new configuration.
    fn learn(&self, news: &Self::News);
    /// Looks after idle state, about once a second.
    fn tick(&self, now: Instant);
    /// Counts and logs a request that was refused before it was one.
    fn refused(&self, rejection: Rejection, peer: Option<IpAddr>);
    /// Resolves when what goes on after the last answer has ended.
    fn finish(&self) -> impl Future<Output = ()>;
}

/// How far a process is with ending.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Serving.
    Open,
    /// No longer accepting; requests in flight finish.
    Draining,
}

/// What the loops are told.
#[derive(Clone, Debug)]
pub struct Orders<N> {
    /// How far the process is with ending.
    pub stage: Stage,
    /// The configuration.
    pub news: N,
}

/// One thread's connections.
struct Connections<H> {
    handler: H,
    budget: Arc<Budget>,
    doors: Doors,
    callers: Callers,
    /// To be woken when the stage changes.
    wakers: RefCell<HashMap<u64, Waker>>,
    next: Cell<u64>,
    /// Requests that came by connections which carry several.
    streams: RefCell<JoinSet<()>>,
    is_last_call_over: Cell<bool>,
}

/// Serves until told to drain, then until every connection has ended.
///
/// # Errors
/// When a listener cannot be put on this thread.
pub async fn run<H: Handler>(
    handler: H,
    sockets: Vec<Socket>,
    budget: Arc<Budget>,
    doors: Doors,
    mut orders: watch::Receiver<Orders<H::News>>,
    started: impl FnOnce(),
) -> io::Result<()> {
    let mut listeners: Vec<Listener> = sockets
        .into_iter()
        .map(Listener::new)
        .collect::<io::Result<_>>()?;
    let here = Rc::new(Connections::new(handler, budget, doors));
    let mut tasks = JoinSet::new();
    let mut tick = tokio::time::interval(TICK);
    let mut pause_until = None;
    let mut said_at: Option<Instant> = None;
    let mut last_call = None;
    let turn = Cell::new(0);
    started();
    loop {
        if listeners.is_empty() && tasks.is_empty() {
            here.end_streams().await;
            here.handler.finish().await;
            return Ok(());
        }
        tokio::select! {
            changed = orders.changed() => {
                // Whoever gave the orders is gone: so is the process.
                if changed.is_err() {
                    return Ok(());
                }
                let orders = orders.borrow_and_update().clone();
                here.handler.learn(&orders.news);
                if orders.stage == Stage::Draining {
                    // Whoever is connected already is served.
                    for listener in listeners.drain(..) {
                        listener.accept_rest(|accepted| here.clone().welcome(accepted, &mut tasks));
                    }
                    last_call = Some(tokio::time::Instant::now() + LAST_CALL);
                }
            }
            () = until(last_call) => {
                last_call = None;
                here.is_last_call_over.set(true);
                here.wakers.borrow().values().for_each(Waker::wake_by_ref);
            }
            Some(ended) = tasks.join_next() => note_end(ended),
            Some(ended) = poll_fn(|cx| here.streams.borrow_mut().poll_join_next(cx)) => {
                note_end(ended);
            }
            _ = tick.tick() => here.handler.tick(Instant::now()),
            () = until(pause_until) => pause_until = None,
            accepted = accept(&listeners, &turn), if !listeners.is_empty() && pause_until.is_none() => {
                match accepted {
                    Ok(accepted) => here.clone().welcome(accepted, &mut tasks),
                    // It hung up before it was accepted.
                    Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                    Err(error) => {
                        // Every pause ends in the next failure, for as long as it lasts.
                        if said_at.is_none_or(|at| at.elapsed() >= SAID_EVERY) {
                            tracing::warn!(%error, "cannot accept connections, trying on");
                            said_at = Some(Instant::now());
                        }
                        pause_until = Some(tokio::time::Instant::now() + ACCEPT_PAUSE);
                    }
                }
            }
        }
    }
}

/// What is spoken on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2, from its preface on.
    Http2,
}

/// Serves one connection of the process with itself, until it and all that came by it have ended.
pub async fn serve_one<H: Handler>(
    handler: H,
    socket: UnixStream,
    budget: Arc<Budget>,
    protocol: Protocol,
) {
    // Counted nowhere: it is no sender's.
    let uncounted = IntGauge::new("own_connections", "not shown").ok();
    let Some(doors) = uncounted.map(|gauge| Doors::new(gauge, 1)) else {
        return;
    };
    let Some(_guard) = doors.enter(1) else { return };
    let limits = handler.limits();
    let here = Rc::new(Connections::new(handler, budget.clone(), doors.clone()));
    let (place, began) = (Place::new(&here), Instant::now());
    let (stream, peer) = (Stream::Unix(socket), Peer::new(None, false));
    match protocol {
        Protocol::Http1 => {
            let line = Line::new(stream, peer, &limits, budget, began);
            here.serve_http1(line, &limits, &place).await;
        }
        Protocol::Http2 => {
            let carrier = Carrier::new(stream, peer, &limits, began);
            Box::pin(here.clone().serve_http2(carrier, &place)).await;
        }
    }
    here.end_streams().await;
    here.handler.finish().await;
}

fn note_end(ended: Result<(), JoinError>) {
    if ended.is_err_and(|error| error.is_panic()) {
        tracing::error!("a connection's task panicked");
    }
}

/// Resolves at a moment; never, where there is none.
pub(crate) async fn until(moment: Option<tokio::time::Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

impl<H: Handler> Connections<H> {
    fn new(handler: H, budget: Arc<Budget>, doors: Doors) -> Self {
        Self {
            handler,
            budget,
            doors,
            callers: Callers::default(),
            wakers: RefCell::default(),
            next: Cell::new(0),
            streams: RefCell::default(),
            is_last_call_over: Cell::new(false),
        }
    }

    fn welcome(self: Rc<Self>, accepted: Accepted, tasks: &mut JoinSet<()>) {
        let limits = self.handler.limits();
        let opening = self.handler.opening();
        let bound = self.handler.most_of_one().zip(accepted.peer);
        let caller = bound.map(|(most, peer)| self.callers.enter(peer, most));
        let guard = match caller {
            Some(None) => None,
            None | Some(Some(_)) => self.doors.enter(limits.max_connections),
        };
        let Some(guard) = guard else {
            self.handler.refused(Rejection::Overloaded, accepted.peer);
            // Before TLS was agreed upon nothing can be said.
            let is_plain = accepted.is_plain;
            if opening.is_none_or(|opening| opening.is_readable(is_plain)) {
                turn_away(&accepted.stream);
            }
            return;
        };
        tasks.spawn_local(self.serve(accepted, limits, opening, (guard, caller.flatten())));
    }

    async fn serve(
        self: Rc<Self>,
        accepted: Accepted,
        limits: Limits,
        opening: Option<Arc<Opening>>,
        _guards: (Guard, Option<Caller>),
    ) {
        let began = Instant::now();
        let place = Place::new(&self);
        let opened = match opening {
            None => Opened::plain(accepted.stream, accepted.peer),
            Some(opening) => {
                let (peer, until) = (accepted.peer, began + limits.header_timeout);
                match self.open(&opening, accepted, until, &place).await {
                    Ok(opened) => opened,
                    Err(fault) => return self.handler.not_opened(&fault, peer),
                }
            }
        };
        let peer = Peer::new(opened.ip, opened.is_secure);
        if opened.is_http2 {
            let carrier = Carrier::new(opened.stream, peer, &limits, began);
            // Its state is large: only who has one pays for it.
            return Box::pin(self.clone().serve_http2(carrier, &place)).await;
        }
        let line = Line::new(opened.stream, peer, &limits, self.budget.clone(), began);
        self.serve_http1(line, &limits, &place).await;
    }

    /// Waits for the requests that go on after their connections.
    async fn end_streams(&self) {
        let mut streams = self.streams.take();
        while let Some(ended) = streams.join_next().await {
            note_end(ended);
        }
    }

    /// Makes a connection ready for HTTP, in time and not beyond the last call.
    async fn open(
        &self,
        opening: &Opening,
        accepted: Accepted,
        until: Instant,
        place: &Place<'_, H>,
    ) -> Result<Opened, OpenFault> {
        // A handshake's state is large: only who has one pays for it.
        let mut open = Box::pin(opening.open(accepted.stream, accepted.peer, accepted.is_plain));
        let open = poll_fn(|cx| {
            place.wake_with(cx.waker());
            if self.is_last_call_over.get() {
                return Poll::Ready(Err(OpenFault::Gone));
            }
            open.as_mut().poll(cx)
        });
        let opened = tokio::time::timeout_at(until.into(), open).await;
        opened.unwrap_or(Err(OpenFault::Slow))
    }

    async fn serve_http1(&self, line: Rc<Line>, limits: &Limits, place: &Place<'_, H>) {
        let io = Io(line.clone());
        let service = service_fn(|request: Request<Incoming>| {
            let line = line.clone();
            async move {
                // Where another protocol was asked for, the library forgets what cannot be sent at
                // once.
                let asks_for_more = request.method() == Method::CONNECT
                    || request.headers().contains_key(header::UPGRADE);
                let request = request.map(|incoming| line.inflow(incoming));
                let response = self.handler.handle(&line.watch, request).await;
                line.rest(!asks_for_more);
                Ok::<_, Infallible>(response)
            }
        });
        let mut connection = builder(limits).serve_connection(io, service);
        let mut is_told = false;
        let outcome = poll_fn(|cx| {
            place.wake_with(cx.waker());
            if self.is_last_call_over.get() && !is_told {
                is_told = true;
                Pin::new(&mut connection).graceful_shutdown();
            }
            Pin::new(&mut connection).poll(cx)
        })
        .await;
        drop(connection);
        let unsaid = line.unsaid();
        // Only the library saw these, and answered them: 431, or 400.
        let heard = outcome.err().and_then(|error| match () {
            () if line.watch.verdict().is_some() => None,
            () if error.is_parse_too_large() => Some(Rejection::HeadersTooLarge),
            () if error.is_parse() => Some(Rejection::Malformed(Malformation::Framing)),
            () => None,
        });
        if let Some(rejection) = unsaid.or(heard) {
            self.handler.refused(rejection, line.watch.peer);
        }
        line.finish(unsaid).await;
    }
}

/// A connection's place among those of its thread.
struct Place<'c, H> {
    here: &'c Connections<H>,
    number: u64,
    is_known: Cell<bool>,
}

impl<'c, H> Place<'c, H> {
    fn new(here: &'c Connections<H>) -> Self {
        let number = here.next.get();
        here.next.set(number + 1);
        Self {
            here,
            number,
            is_known: Cell::new(false),
        }
    }

    /// A task's waker stays the same for its life: it is noted once.
    fn wake_with(&self, waker: &Waker) {
        if !self.is_known.replace(true) {
            self.here
                .wakers
                .borrow_mut()
                .insert(self.number, waker.clone());
        }
    }
}

impl<H> Drop for Place<'_, H> {
    fn drop(&mut self) {
        self.here.wakers.borrow_mut().remove(&self.number);
    }
}

fn builder(limits: &Limits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        // A sender that hangs up does not stop the relay of its event.
        .half_close(true)
        .header_read_timeout(None)
        // Answers are small: copied behind their head they go out by send, which costs the system
        // less than a vector of two.
        .writev(false)
        .max_header_size(limits.max_header_bytes)
        .max_buf_size(
            READ_BUFFER
                .max(limits.max_header_bytes)
                .max(SMALLEST_BUFFER),
        );
    if limits.max_header_fields != FIELDS_ON_STACK {
        builder.max_headers(limits.max_header_fields);
    }
    builder
}

impl Handler for Rc<Gate> {
    type News = Arc<Live>;

    async fn handle(&self, watch: &Watch, request: Request<Inflow<'_>>) -> Response<AnswerBody> {
        Gate::handle(self, watch, request).await
    }

    fn opening(&self) -> Option<Arc<Opening>> {
        self.live().opening.clone()
    }

    fn not_opened(&self, fault: &OpenFault, peer: Option<IpAddr>) {
        self.shared().not_opened(fault, peer, Instant::now());
    }

    fn limits(&self) -> Limits {
        self.live().limits
    }

    fn learn(&self, news: &Arc<Live>) {
        if !Arc::ptr_eq(news, &self.live()) {
            self.switch(news.clone());
        }
    }

    fn tick(&self, now: Instant) {
        self.sweep(now);
    }

    fn refused(&self, rejection: Rejection, peer: Option<IpAddr>) {
        self.shared().refused(rejection, peer, Instant::now());
    }

    async fn finish(&self) {
        Gate::finish(self).await;
    }
}
