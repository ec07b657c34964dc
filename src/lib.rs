//! hookward: a reverse proxy that lets only genuine webhooks through.
//!
//! This is a library so that tests, benches and fuzz targets can run its parts; what users rely on
//! is the program. Arrows point down: `cli` and `config` know `app`, `app` knows everything below,
//! `gate` asks the rooms under it, and the core knows nobody.
//!
//! ```text
//! sender ─► server ─► connection ─► gate ─┬─► body ─► signature ─► event ─► dedup ─┬─► upstream ─► application
//!           accept    deadlines,    the   │   budget  constant     type,    one    │   pool,           ▲
//!                     framing       order │           time         key      claim  │   one attempt     │
//!                                         │                                        └─► queue ─► delivery
//!                                         └─► rejection ─► the sender hears why        fsync    again, in order
//! ```

// The process: what was asked, what is configured, what runs.

// Builds every part, binds, runs, reloads, drains.
pub mod app;
// Commands, arguments, exit codes.
pub mod cli;
// File, environment and flags, read into a configuration that is right by construction.
pub mod config;
// What operators set at run time: endpoints of their own, and switches.
pub mod roster;
// Log lines: where they go, and how many refusals are worth one.
pub mod log;
// Which signal means what.
pub mod shutdown;

// The two sides that answer.

// An operator's orders about what is on disk.
pub mod control;
// `/metrics`, `/livez`, `/readyz`, on listeners of their own.
pub mod admin;
// One event loop per core: accept, one task per connection, drain.
pub mod server;

// One request.

// At most N bytes of body out of one budget, shown to a reader as they come.
pub mod body;
// One sender's connection: its bytes, its deadlines, its end.
pub mod connection;
// From the disk to the upstream: when to try again, when to give up, in which order.
pub mod delivery;
// What happens, as it happens, for whoever watches.
pub mod feed;
// A request as it is kept on disk.
pub mod kept;
// One request, top to bottom.
pub mod gate;
// Every metric name and label.
pub mod metrics;
// The durable queue of opaque records: append, lease, settle; on disk before it is acknowledged.
pub mod queue;
// TCP, TLS or a Unix socket.
mod stream;
// Certificates for senders: which one is shown, and until when.
pub mod tls;
// What a request and its attempts tell a tracing backend.
mod trace;
// One event to the application: a connection, one request, its answer.
pub mod upstream;

// The core: no sockets, no files, no clock, no logging.

// How an attempt ended, and what follows.
pub mod attempt;
// Which events were seen: claim, commit, give back.
pub mod dedup;
// What the operator configured for one path.
pub mod endpoint;
// What a verified body says about itself.
pub mod event;
// Where messages end, read more strictly than a parser must.
pub mod framing;
// What is taken off a message, and what is set on it.
pub mod headers;
// The bounds a stranger meets.
pub mod limits;
// Why we refused: status, label, problem document.
pub mod rejection;
// Key bytes that cannot be printed.
pub mod secret;
// How a sender signs, and whether a request was signed so.
pub mod signature;
