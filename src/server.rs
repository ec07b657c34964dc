//! One loop per core: accept, one task per connection, drain.
//!
//! Owns the listeners of one thread and the tasks of its connections. Each thread has its own
//! sockets on the same addresses (`SO_REUSEPORT`), so that no connection is handed from one core to
//! another. What a connection may do and for how long is `connection`'s; what a request means, the
//! handler's.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    convert::Infallible,
    future::poll_fn,
    io,
    net::IpAddr,
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use prometheus::IntGauge;
use tokio::{
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::watch,
    task::JoinSet,
};

use crate::{
    body::Budget,
    connection::{Io, Watch},
    gate::{Gate, Live},
    limits::Limits,
    rejection::{Malformation, Rejection, parting_answer},
    stream::Stream,
    upstream::AnswerBody,
};

/// How long idle connections may still send a request after the listeners have closed: a sender
/// that has just reused its connection is answered, and told to close it.
const LAST_CALL: Duration = Duration::from_secs(1);
/// Pause after an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
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
    /// What answers are made of.
    type Body: http_body::Body<Data = Bytes, Error: Into<BoxError>> + 'static;

    /// Answers one request.
    fn handle(
        &self,
        watch: &Watch,
        request: Request<Incoming>,
    ) -> impl Future<Output = Response<Self::Body>>;
    /// The bounds for new connections.
    fn limits(&self) -> Limits;
    /// Takes a new configuration.
    fn learn(&self, news: &Self::News);
    /// Looks after idle state, about once a second.
    fn tick(&self, now: Instant);
    /// Counts and logs a request that was refused before it was one.
    fn refused(&self, rejection: Rejection, peer: Option<IpAddr>);
    /// Resolves when what goes on after the last answer has ended.
    fn finish(&self) -> impl Future<Output = ()>;
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

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

/// Connections open over all threads, and how many may be.
#[derive(Clone, Debug)]
pub struct Doors {
    open: Arc<AtomicUsize>,
    gauge: IntGauge,
}

impl Doors {
    /// None is open.
    pub fn new(gauge: IntGauge) -> Self {
        Self {
            open: Arc::default(),
            gauge,
        }
    }

    fn enter(&self, max: usize) -> Option<Self> {
        let take = |open: usize| (open < max).then_some(open + 1);
        self.open
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, take)
            .ok()?;
        self.gauge.inc();
        Some(self.clone())
    }

    fn leave(&self) {
        self.open.fetch_sub(1, Ordering::AcqRel);
        self.gauge.dec();
    }
}

/// A bound socket, not yet on any thread.
#[derive(Debug)]
pub enum Socket {
    /// TCP.
    Tcp(std::net::TcpListener),
    /// A stream socket in the file system.
    Unix(std::os::unix::net::UnixListener),
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// A connection, and its other end if that is an IP socket.
type Accepted = (Stream, Option<IpAddr>);

impl Listener {
    fn new(socket: Socket) -> io::Result<Self> {
        Ok(match socket {
            Socket::Tcp(tcp) => Self::Tcp(TcpListener::from_std(tcp)?),
            Socket::Unix(unix) => Self::Unix(UnixListener::from_std(unix)?),
        })
    }

    /// Accepts whoever waits, asking the system itself: the runtime may not know of them yet.
    fn accept_rest(self, mut welcome: impl FnMut(Accepted)) {
        let mut next: Box<dyn FnMut() -> io::Result<Accepted>> = match self {
            Self::Tcp(tcp) => {
                let Ok(tcp) = tcp.into_std() else { return };
                Box::new(move || {
                    let (socket, peer) = tcp.accept()?;
                    socket.set_nonblocking(true)?;
                    let _ = socket.set_nodelay(true);
                    let socket = TcpStream::from_std(socket)?;
                    Ok((Stream::Tcp(socket), Some(peer.ip())))
                })
            }
            Self::Unix(unix) => {
                let Ok(unix) = unix.into_std() else { return };
                Box::new(move || {
                    let (socket, _) = unix.accept()?;
                    socket.set_nonblocking(true)?;
                    Ok((Stream::Unix(UnixStream::from_std(socket)?), None))
                })
            }
        };
        loop {
            match next() {
                Ok(accepted) => welcome(accepted),
                // It hung up before it was accepted.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(_) => return,
            }
        }
    }

    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<Accepted>> {
        match self {
            Self::Tcp(tcp) => tcp.poll_accept(cx).map_ok(|(tcp, peer)| {
                // Answers are written whole; nothing is gained by waiting for more.
                let _ = tcp.set_nodelay(true);
                (Stream::Tcp(tcp), Some(peer.ip()))
            }),
            Self::Unix(unix) => unix
                .poll_accept(cx)
                .map_ok(|(unix, _)| (Stream::Unix(unix), None)),
        }
    }
}

/// One thread's connections.
struct Connections<H> {
    handler: H,
    budget: Arc<Budget>,
    doors: Doors,
    /// To be woken when the stage changes.
    wakers: RefCell<HashMap<u64, Waker>>,
    next: Cell<u64>,
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
    let mut last_call = None;
    started();
    loop {
        if listeners.is_empty() && tasks.is_empty() {
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
            Some(ended) = tasks.join_next() => {
                if ended.is_err_and(|error| error.is_panic()) {
                    tracing::error!("a connection's task panicked");
                }
            }
            _ = tick.tick() => here.handler.tick(Instant::now()),
            () = until(pause_until) => pause_until = None,
            accepted = accept(&listeners), if !listeners.is_empty() && pause_until.is_none() => {
                match accepted {
                    Ok(accepted) => here.clone().welcome(accepted, &mut tasks),
                    // It hung up before it was accepted.
                    Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        pause_until = Some(tokio::time::Instant::now() + ACCEPT_PAUSE);
                    }
                }
            }
        }
    }
}

/// Serves one connection of the process with itself, until it ends.
pub async fn serve_one<H: Handler>(handler: H, socket: UnixStream, budget: Arc<Budget>) {
    // Counted nowhere: it is no sender's.
    let uncounted = IntGauge::new("own_connections", "not shown");
    let Some(doors) = uncounted.ok().and_then(|gauge| Doors::new(gauge).enter(1)) else {
        return;
    };
    let limits = handler.limits();
    let here = Rc::new(Connections::new(handler, budget, doors.clone()));
    let stream = Stream::Unix(socket);
    here.clone().serve(stream, None, limits, Guard(doors)).await;
    here.handler.finish().await;
}

/// Resolves at a moment; never, where there is none.
pub(crate) async fn until(moment: Option<tokio::time::Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

async fn accept(listeners: &[Listener]) -> io::Result<Accepted> {
    poll_fn(|cx| {
        let mut each = listeners.iter().map(|listener| listener.poll_accept(cx));
        each.find(Poll::is_ready).unwrap_or(Poll::Pending)
    })
    .await
}

impl<H: Handler> Connections<H> {
    fn new(handler: H, budget: Arc<Budget>, doors: Doors) -> Self {
        Self {
            handler,
            budget,
            doors,
            wakers: RefCell::default(),
            next: Cell::new(0),
            is_last_call_over: Cell::new(false),
        }
    }

    fn welcome(self: Rc<Self>, (socket, peer): Accepted, tasks: &mut JoinSet<()>) {
        let limits = self.handler.limits();
        let Some(doors) = self.doors.enter(limits.max_connections) else {
            self.handler.refused(Rejection::Overloaded, peer);
            turn_away(&socket);
            return;
        };
        tasks.spawn_local(self.serve(socket, peer, limits, Guard(doors)));
    }

    async fn serve(
        self: Rc<Self>,
        socket: Stream,
        peer: Option<IpAddr>,
        limits: Limits,
        _guard: Guard,
    ) {
        let watch = Watch::new(socket, peer, &limits, self.budget.clone());
        let io = Io(watch.clone());
        let service = service_fn(|request| {
            let (here, watch) = (self.clone(), watch.clone());
            async move { Ok::<_, Infallible>(here.handler.handle(&watch, request).await) }
        });
        let mut connection = builder(&limits).serve_connection(io, service);
        let place = Place::new(&self);
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
        let unsaid = watch.unsaid();
        // Only the library saw these, and answered them: 431, or 400.
        let heard = outcome.err().and_then(|error| match () {
            () if watch.verdict().is_some() => None,
            () if error.is_parse_too_large() => Some(Rejection::HeadersTooLarge),
            () if error.is_parse() => Some(Rejection::Malformed(Malformation::Framing)),
            () => None,
        });
        if let Some(rejection) = unsaid.or(heard) {
            self.handler.refused(rejection, peer);
        }
        watch.finish(unsaid).await;
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

/// Keeps a connection counted.
struct Guard(Doors);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// Says 503 to a connection there is no room for, without waiting for anything.
fn turn_away(socket: &Stream) {
    let answer = parting_answer(Rejection::Overloaded);
    let mut sink = [0; 1024];
    // Whether it is heard is the sender's affair; what it sent is read so that it can be.
    let _ = match socket {
        Stream::Tcp(tcp) => {
            let _ = tcp.try_read(&mut sink);
            tcp.try_write(&answer)
        }
        Stream::Unix(unix) => {
            let _ = unix.try_read(&mut sink);
            unix.try_write(&answer)
        }
        // Its handshake has not begun: nothing can be said.
        Stream::Tls(_) => Ok(0),
    };
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
    type Body = AnswerBody;

    async fn handle(&self, watch: &Watch, request: Request<Incoming>) -> Response<AnswerBody> {
        Gate::handle(self, watch, request).await
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
