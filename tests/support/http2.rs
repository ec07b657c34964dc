use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::Arc,
};

use bytes::Bytes;
use h2::{SendStream, client::ResponseFuture};
use http::{Request, Response};
use rustls::{ClientConnection, StreamOwned};

use super::{
    HANG, SECRET, sign,
    tls::{Authority, session},
};

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const ACK: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) content: Vec<u8>,
}

impl Frame {
    pub(crate) fn new(kind: u8, flags: u8, stream: u32, content: &[u8]) -> Self {
        let content = content.to_vec();
        Self {
            kind,
            flags,
            stream,
            content,
        }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let length = u32::try_from(self.content.len()).unwrap().to_be_bytes();
        let mut bytes = length[1..].to_vec();
        bytes.extend([self.kind, self.flags]);
        bytes.extend(self.stream.to_be_bytes());
        bytes.extend(&self.content);
        bytes
    }

    /// The code in a GOAWAY or RST_STREAM.
    pub(crate) fn code(&self) -> u32 {
        let code = match self.kind {
            GOAWAY => &self.content[4..8],
            _ => &self.content[..4],
        };
        u32::from_be_bytes(code.try_into().unwrap())
    }
}

/// A header section without compression: literal fields, none of them indexed (RFC 7541 §6.2.2).
pub(crate) fn fields(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            length(&mut block, text.len());
            block.extend(text.as_bytes());
        }
    }
    block
}

/// A length in seven bits, and from 127 on in groups of seven (RFC 7541 §5.1).
fn length(block: &mut Vec<u8>, length: usize) {
    let Some(mut rest) = length.checked_sub(127) else {
        return block.push(u8::try_from(length).unwrap());
    };
    block.push(127);
    while rest >= 128 {
        block.push(u8::try_from(rest % 128).unwrap() | 128);
        rest /= 128;
    }
    block.push(u8::try_from(rest).unwrap());
}

/// The head of a signed event for the endpoint at `/hook`; more fields go behind.
pub(crate) fn head(key: &str, body: &[u8], more: &[(&str, &str)]) -> Vec<u8> {
    let signature = sign(SECRET, body);
    let mut all = vec![
        (":method", "POST"),
        (":scheme", "https"),
        (":authority", "hooks.example"),
        (":path", "/hook"),
        ("tinytalk-signature", signature.as_str()),
        ("content-type", "application/json"),
    ];
    if !key.is_empty() {
        all.push(("idempotency-key", key));
    }
    all.extend(more);
    fields(&all)
}

/// A connection that speaks HTTP/2 in frames.
pub(crate) struct Framed {
    tls: StreamOwned<ClientConnection, TcpStream>,
    buffer: Vec<u8>,
}

impl Framed {
    /// Connects and says hello.
    pub(crate) fn connect(address: SocketAddr, name: &str, authority: &Authority) -> Self {
        let mut framed = Self::silent(address, name, authority);
        framed.write(PREFACE);
        framed.send(&Frame::new(SETTINGS, 0, 0, &[]));
        framed
    }

    /// Connects and says nothing yet.
    pub(crate) fn silent(address: SocketAddr, name: &str, authority: &Authority) -> Self {
        Self {
            tls: session(address, name, authority.client(&[b"h2"])),
            buffer: Vec::new(),
        }
    }

    /// Writes what the other side may refuse to read.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> bool {
        self.tls
            .write_all(bytes)
            .and_then(|()| self.tls.flush())
            .is_ok()
    }

    pub(crate) fn send(&mut self, frame: &Frame) -> bool {
        self.write(&frame.bytes())
    }

    /// Sends a signed event as a stream of this number.
    pub(crate) fn event(&mut self, stream: u32, key: &str, body: &[u8], more: &[(&str, &str)]) {
        self.send(&Frame::new(
            HEADERS,
            END_HEADERS,
            stream,
            &head(key, body, more),
        ));
        self.send(&Frame::new(DATA, END_STREAM, stream, body));
    }

    /// Sends a whole head without a body.
    pub(crate) fn request(&mut self, stream: u32, all: &[(&str, &str)]) {
        let flags = END_HEADERS | END_STREAM;
        self.send(&Frame::new(HEADERS, flags, stream, &fields(all)));
    }

    /// The next frame; `None` when the other side has closed.
    pub(crate) fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(length) = self.buffer.get(..3) {
                let length = u32::from_be_bytes([0, length[0], length[1], length[2]]);
                let whole = 9 + usize::try_from(length).unwrap();
                if self.buffer.len() >= whole {
                    let bytes: Vec<u8> = self.buffer.drain(..whole).collect();
                    let stream = u32::from_be_bytes(bytes[5..9].try_into().unwrap());
                    return Some(Frame::new(bytes[3], bytes[4], stream, &bytes[9..]));
                }
            }
            let mut chunk = [0; 16 * 1024];
            match self.tls.read(&mut chunk) {
                Ok(0) => return None,
                Ok(n) => self.buffer.extend_from_slice(&chunk[..n]),
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::BrokenPipe
                            | ErrorKind::ConnectionReset
                            | ErrorKind::UnexpectedEof
                    ) =>
                {
                    return None;
                }
                Err(error) => panic!("nothing came: {error}"),
            }
        }
    }

    /// The next frame that is looked for; `None` at the end.
    pub(crate) fn find(&mut self, is_wanted: impl Fn(&Frame) -> bool) -> Option<Frame> {
        loop {
            let frame = self.next()?;
            if is_wanted(&frame) {
                return Some(frame);
            }
        }
    }
}

/// The status in the head of an answer, where it is one that has a number of its own
/// (RFC 7541 Appendix A).
pub(crate) fn status(head: &Frame) -> Option<u16> {
    assert_eq!(head.kind, HEADERS, "{head:?}");
    Some(match head.content.first()? {
        0x88 => 200,
        0x89 => 204,
        0x8c => 400,
        0x8d => 404,
        0x8e => 500,
        _ => return None,
    })
}

/// A sender as there are many: a library speaks for it.
pub(crate) struct Client {
    runtime: tokio::runtime::Runtime,
    library: h2::client::SendRequest<Bytes>,
}

impl Client {
    pub(crate) fn connect(address: SocketAddr, name: &str, authority: &Authority) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(authority.client(&[b"h2"])));
        let name = rustls_pki_types::ServerName::try_from(name.to_owned()).unwrap();
        let library = runtime.block_on(async {
            let tcp = tokio::net::TcpStream::connect(address).await.unwrap();
            let tls = connector.connect(name, tcp).await.unwrap();
            let (library, connection) = h2::client::handshake(tls).await.unwrap();
            #[expect(clippy::disallowed_methods, reason = "it ends with the test")]
            tokio::task::spawn(connection);
            library
        });
        Self { runtime, library }
    }

    /// Begins a request whose body follows.
    pub(crate) fn begin(&mut self, request: Request<()>) -> (ResponseFuture, SendStream<Bytes>) {
        self.runtime.block_on(async {
            self.library = self.library.clone().ready().await.unwrap();
            self.library.send_request(request, false).unwrap()
        })
    }

    /// Waits for an answer.
    pub(crate) fn answer(&self, answer: ResponseFuture) -> Result<Response<Vec<u8>>, h2::Error> {
        let whole = async {
            let (head, mut body) = answer.await?.into_parts();
            let mut all = Vec::new();
            while let Some(data) = body.data().await {
                let data = data?;
                all.extend_from_slice(&data);
                body.flow_control().release_capacity(data.len())?;
            }
            Ok(Response::from_parts(head, all))
        };
        let whole = async { tokio::time::timeout(HANG, whole).await };
        self.runtime.block_on(whole).expect("no answer")
    }

    /// Sends a whole request and waits for its answer.
    pub(crate) fn send(&mut self, request: Request<()>, body: &[u8]) -> Response<Vec<u8>> {
        let (answer, mut stream) = self.begin(request);
        let _ = stream.send_data(Bytes::copy_from_slice(body), true);
        self.answer(answer).unwrap()
    }
}

/// A signed event for the endpoint at `/hook`.
pub(crate) fn event(key: &str, body: &[u8]) -> Request<()> {
    Request::post("https://hooks.example/hook")
        .header("tinytalk-signature", sign(SECRET, body))
        .header("content-type", "application/json")
        .header("idempotency-key", key)
        .body(())
        .unwrap()
}
