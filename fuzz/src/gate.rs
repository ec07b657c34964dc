//! A whole gate in this process: a sender's Unix socket on one side, an application's on the other,
//! and nothing between them that is not the real thing.

use std::{
    cell::RefCell,
    rc::Rc,
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

use hookward::{
    body::Budget,
    dedup::{HashKeys, Table},
    gate::{Gate, Live, Refusals, Shared},
    log::Sampler,
    metrics::Metrics,
    server::{self, Doors, Orders, Protocol, Socket, Stage},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    runtime::{Builder, LocalOptions, LocalRuntime},
    sync::watch,
};

use crate::{config, message::message, scratch, tag};

/// Longer than anything here takes.
const HANG: Duration = Duration::from_secs(20);
/// Turns of the loop in which what was sent is read.
const TURNS: usize = 3;

/// What an application got: bodies, or what was wrong with a message.
type Heard = Rc<RefCell<Vec<Result<Vec<u8>, String>>>>;

/// The gate, and what its application got.
pub struct Running {
    runtime: LocalRuntime,
    gate: Rc<Gate>,
    public: std::path::PathBuf,
    heard: Heard,
    _orders: watch::Sender<Orders<Arc<Live>>>,
}

impl Default for Running {
    /// Starts it; one is enough for a process.
    fn default() -> Self {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build_local(LocalOptions::default())
            .expect("a runtime");
        let (public, upstream) = (scratch("public.sock"), scratch("upstream.sock"));
        let text = format!(
            "[endpoints.crm]\npath = \"/hook\"\nupstream = \"unix:{}:/in\"\n\
             secrets = [{{ name = \"main\", env = \"SECRET\" }}]\n",
            upstream.display()
        );
        let config = config("gate.toml", &text).expect("a good configuration");
        let metrics = Arc::new(Metrics::new("fuzz"));
        let shared = Arc::new(Shared {
            budget: Budget::new(config.limits.max_buffered),
            table: Table::new(
                config.dedup_capacity,
                1024,
                HashKeys::new([1, 2]),
                Instant::now(),
            ),
            feed: hookward::feed::Feed::new(config.admin.capture),
            queue: None,
            access_log: AtomicBool::new(false),
            is_leaving: AtomicBool::new(false),
            refusals: Refusals::new(Instant::now()),
            notices: Sampler::new(Instant::now()),
            metrics,
        });
        let live = Live::new(
            config.endpoints,
            config.limits,
            Vec::new(),
            None,
            &shared,
            None,
        );
        let live = Arc::new(live.expect("an upstream without certificates"));
        let heard = Heard::default();
        let (orders, seen) = watch::channel(Orders {
            stage: Stage::Open,
            news: live.clone(),
        });
        let gate = Gate::new(shared.clone(), live);
        let serving = gate.clone();
        runtime.block_on(async {
            let application = UnixListener::bind(&upstream).expect("a socket");
            tokio::task::spawn_local(serve(application, heard.clone()));
            let socket = std::os::unix::net::UnixListener::bind(&public).expect("a socket");
            socket
                .set_nonblocking(true)
                .expect("a socket that does not block");
            let (budget, doors) = (
                shared.budget.clone(),
                Doors::new(shared.metrics.connections.clone(), 64),
            );
            tokio::task::spawn_local(async move {
                let sockets = vec![Socket::Unix(socket)];
                server::run(serving, sockets, budget, doors, seen, || {}).await
            });
        });
        Self {
            runtime,
            gate,
            public,
            heard,
            _orders: orders,
        }
    }
}

impl Running {
    /// Sends these pieces on a connection of their own, and nothing more; what the application got.
    pub fn send(&self, pieces: &[&[u8]]) -> Vec<Result<Vec<u8>, String>> {
        let answers = self.wait(async {
            let sender = UnixStream::connect(&self.public).await.expect("the gate");
            exchange(sender, pieces).await
        });
        assert_answers(&answers);
        self.heard.take()
    }

    /// The same by HTTP/2.
    pub fn send_http2(&self, pieces: &[&[u8]]) -> Vec<Result<Vec<u8>, String>> {
        let answers = self.wait(async {
            let (sender, socket) = UnixStream::pair().expect("two sockets");
            let budget = Budget::new(1 << 20);
            let serve = server::serve_one(self.gate.clone(), socket, budget, Protocol::Http2);
            tokio::join!(exchange(sender, pieces), serve).0
        });
        assert_frames(&answers);
        self.heard.take()
    }

    fn wait<T>(&self, whole: impl Future<Output = T>) -> T {
        let whole = async { tokio::time::timeout(HANG, whole).await };
        let done = self.runtime.block_on(whole);
        done.expect("a connection whose sender has closed is closed")
    }
}

/// Sends these pieces and nothing more; what comes back.
async fn exchange(mut sender: UnixStream, pieces: &[&[u8]]) -> Vec<u8> {
    for piece in pieces {
        if sender.write_all(piece).await.is_err() {
            break;
        }
        for _ in 0..TURNS {
            tokio::task::yield_now().await;
        }
    }
    let _ = sender.shutdown().await;
    let mut answers = Vec::new();
    let _ = sender.read_to_end(&mut answers).await;
    answers
}

/// Whatever the sender hears by HTTP/2 is whole frames no longer than it has to take (RFC 9113 §4.2).
fn assert_frames(mut bytes: &[u8]) {
    while let [high, middle, low, rest @ ..] = bytes {
        let length = u32::from_be_bytes([0, *high, *middle, *low]);
        assert!(length <= 16_384, "a frame of {length} bytes");
        let end = 6 + usize::try_from(length).expect("it is small");
        bytes = rest.get(end..).expect("half a frame");
    }
    assert!(bytes.is_empty(), "half a frame");
}

/// Whatever the sender hears is answers of ours from end to end.
fn assert_answers(mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let mut fields = [httparse::EMPTY_HEADER; 64];
        let mut answer = httparse::Response::new(&mut fields);
        let parsed = answer.parse(bytes).expect("an answer");
        let httparse::Status::Complete(length) = parsed else {
            panic!("half an answer")
        };
        let value = |name: &str| {
            let named = answer
                .headers
                .iter()
                .find(|f| f.name.eq_ignore_ascii_case(name));
            named.and_then(|f| str::from_utf8(f.value).ok()?.parse::<usize>().ok())
        };
        // What answers HEAD announces a body that does not come.
        let body = value("content-length").unwrap_or(0);
        bytes = bytes.get(length + body..).unwrap_or_default();
    }
}

async fn serve(application: UnixListener, heard: Heard) {
    while let Ok((stream, _)) = application.accept().await {
        tokio::task::spawn_local(record(stream, heard.clone()));
    }
}

async fn record(mut stream: UnixStream, heard: Heard) {
    let mut buffer = Vec::new();
    loop {
        match message(&buffer, tag) {
            Ok(Some((length, body))) => {
                buffer.drain(..length);
                heard.borrow_mut().push(Ok(body));
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
                if stream.write_all(answer).await.is_err() {
                    return;
                }
            }
            Ok(None) => match stream.read_buf(&mut buffer).await {
                Ok(1..) => {}
                Ok(0) | Err(_) if buffer.is_empty() => return,
                Ok(_) | Err(_) => {
                    let what = format!("torn: {}", buffer.escape_ascii());
                    heard.borrow_mut().push(Err(what));
                    return;
                }
            },
            Err(what) => {
                let what = format!("{what}: {}", buffer.escape_ascii());
                heard.borrow_mut().push(Err(what));
                return;
            }
        }
    }
}
