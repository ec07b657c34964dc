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
    server::{self, Doors, Orders, Socket, Stage},
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

/// The gate, and what its application got.
pub struct Running {
    runtime: LocalRuntime,
    public: std::path::PathBuf,
    heard: Rc<RefCell<Vec<Result<Vec<u8>, String>>>>,
    _orders: watch::Sender<Orders<Arc<Live>>>,
}

impl Running {
    /// Starts it; one is enough for a process.
    pub fn new() -> Self {
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
        let heard = Rc::new(RefCell::new(Vec::new()));
        let (orders, seen) = watch::channel(Orders {
            stage: Stage::Open,
            news: live.clone(),
        });
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
            let gate = Gate::new(shared.clone(), live);
            tokio::task::spawn_local(async move {
                let sockets = vec![Socket::Unix(socket)];
                server::run(gate, sockets, budget, doors, seen, || {}).await
            });
        });
        Self {
            runtime,
            public,
            heard,
            _orders: orders,
        }
    }

    /// Sends these pieces on a connection of their own, and nothing more; what the application got.
    pub fn send(&self, pieces: &[&[u8]]) -> Vec<Result<Vec<u8>, String>> {
        let whole = async {
            let mut sender = UnixStream::connect(&self.public).await.expect("the gate");
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
        };
        let answers = self
            .runtime
            .block_on(async { tokio::time::timeout(HANG, whole).await });
        let answers = answers.expect("a connection whose sender has closed is closed");
        assert_answers(&answers);
        self.heard.take()
    }
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

async fn serve(application: UnixListener, heard: Rc<RefCell<Vec<Result<Vec<u8>, String>>>>) {
    while let Ok((stream, _)) = application.accept().await {
        tokio::task::spawn_local(record(stream, heard.clone()));
    }
}

async fn record(mut stream: UnixStream, heard: Rc<RefCell<Vec<Result<Vec<u8>, String>>>>) {
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
