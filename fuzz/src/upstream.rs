//! An upstream at a Unix socket that says what it is told, and hookward's way to it.

use std::{
    cell::RefCell,
    collections::VecDeque,
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use hookward::{
    headers::{self, Forward},
    upstream::{Pool, Progress, Upstream, UpstreamError},
};
use http::HeaderMap;
use http_body::Body as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    runtime::{Builder, LocalOptions, LocalRuntime},
};

use crate::{config, scratch};

/// What the second request of a round is answered.
const SECOND: &[u8] = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 6\r\n\r\nsecond";
/// Longer than anything here takes.
const HANG: Duration = Duration::from_secs(20);

/// How long an upstream that stays waits for the next request.
const SHORT: Duration = Duration::from_millis(2);

/// What is said to one request.
struct Part {
    pieces: Vec<Vec<u8>>,
    /// The connection ends behind them at once.
    closes: bool,
}

/// An upstream and hookward's connections to it.
pub struct Stage {
    runtime: LocalRuntime,
    upstream: Arc<Upstream>,
    parts: Rc<RefCell<VecDeque<Part>>>,
}

/// What hookward made of an answer: its status and body.
pub type Heard = Result<(u16, Vec<u8>), Option<UpstreamError>>;

impl Default for Stage {
    /// Starts it; one is enough for a process.
    fn default() -> Self {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build_local(LocalOptions::default())
            .expect("a runtime");
        let socket = scratch("stage.sock");
        let text = format!(
            "[endpoints.crm]\npath = \"/hook\"\nupstream = \"unix:{}:/in\"\n\
             secrets = [{{ name = \"main\", env = \"SECRET\" }}]\n",
            socket.display()
        );
        let config = config("stage.toml", &text).expect("a good configuration");
        let endpoint = config.endpoints.iter().next().expect("the one there is");
        let upstream = Upstream::new(&endpoint.upstream, None).expect("no certificates");
        let parts = Rc::new(RefCell::new(VecDeque::new()));
        runtime.block_on(async {
            let listener = UnixListener::bind(&socket).expect("a socket");
            tokio::task::spawn_local(serve(listener, parts.clone()));
        });
        Self {
            runtime,
            upstream: Arc::new(upstream),
            parts,
        }
    }
}

impl Stage {
    /// Sends two requests, the first of which is answered with these pieces and, at once or when
    /// nothing more comes, the end of the connection; what was made of both answers.
    pub fn round(&self, pieces: &[&[u8]], closes: bool) -> (Heard, Heard) {
        let pieces = pieces.iter().map(|piece| piece.to_vec()).collect();
        let part = Part { pieces, closes };
        *self.parts.borrow_mut() = VecDeque::from([part]);
        // A pool of its own: nothing is left of the round before.
        let pool = Rc::new(Pool::new(self.upstream.clone()));
        let round = async {
            let first = self.ask(&pool).await;
            (first, self.ask(&pool).await)
        };
        let round = self
            .runtime
            .block_on(async { tokio::time::timeout(HANG, round).await });
        round.expect("an answer, or the end of the connection, is enough")
    }

    async fn ask(&self, pool: &Rc<Pool>) -> Heard {
        let forward = Forward {
            target: "/in",
            authority: "localhost",
            extra: &[],
            endpoint: "crm",
            event_id: "0",
            event_type: None,
            verified: true,
            received_at: SystemTime::UNIX_EPOCH,
            peer: None,
            peer_is_trusted: false,
            proto: "http",
            body_len: 2,
        };
        let head = headers::request_head(Vec::new(), &HeaderMap::new(), &forward, |_| true);
        let permit = self
            .upstream
            .enter(Instant::now())
            .expect("nobody else is there");
        let progress = Progress::default();
        let sent = pool.send(permit, head, b"{}", true, HANG, &progress);
        let mut answer = sent.await.map_err(Some)?;
        let mut content = Vec::new();
        while let Some(frame) = poll_fn(|cx| Pin::new(&mut answer.body).poll_frame(cx)).await {
            let frame = frame.map_err(|_| None)?;
            content.extend_from_slice(&frame.into_data().expect("no trailers go on"));
        }
        Ok((answer.status.as_u16(), content))
    }
}

async fn serve(listener: UnixListener, parts: Rc<RefCell<VecDeque<Part>>>) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::task::spawn_local(answer(stream, parts.clone()));
    }
}

async fn answer(mut stream: UnixStream, parts: Rc<RefCell<VecDeque<Part>>>) {
    let mut buffer = Vec::new();
    let mut patience = HANG;
    loop {
        while !buffer.ends_with(b"\r\n\r\n{}") {
            let read = tokio::time::timeout(patience, stream.read_buf(&mut buffer));
            if !matches!(read.await, Ok(Ok(1..))) {
                return;
            }
        }
        buffer.clear();
        let part = parts.borrow_mut().pop_front();
        let Some(part) = part else {
            let _ = stream.write_all(SECOND).await;
            return;
        };
        for piece in &part.pieces {
            if stream.write_all(piece).await.is_err() {
                return;
            }
            tokio::task::yield_now().await;
        }
        if part.closes {
            return;
        }
        // Whoever has understood sends the next request at once; whoever waits for more has none.
        patience = SHORT;
    }
}
