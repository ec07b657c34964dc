use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
};

use hmac::{Hmac, KeyInit as _, Mac as _};
use rustls::{ClientConnection, StreamOwned};
use sha2::Sha256;
use socket2::SockRef;

use super::{HANG, SECRET};

/// The tag a sender writes, in hexadecimal.
pub(crate) fn sign(secret: &str, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(body);
    hex::encode(mac.finalize().into_bytes())
}

/// A signed event for the endpoint at `/hook`, with more header lines (each ended by CRLF).
pub(crate) fn event(key: &str, body: &[u8], more: &str) -> Vec<u8> {
    let mut request = format!(
        "POST /hook HTTP/1.1\r\nHost: hooks.example\r\nContent-Type: application/json\r\n\
         TinyTalk-Signature: {}\r\nContent-Length: {}\r\n{more}",
        sign(SECRET, body),
        body.len()
    );
    if !key.is_empty() {
        request.push_str(&format!("Idempotency-Key: {key}\r\n"));
    }
    request.push_str("\r\n");
    let mut request = request.into_bytes();
    request.extend_from_slice(body);
    request
}

/// What a sender writes to and reads from.
enum Pipe {
    Tcp(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Pipe {
    fn tcp(&self) -> &TcpStream {
        match self {
            Self::Tcp(tcp) => tcp,
            Self::Tls(tls) => &tls.sock,
        }
    }

    fn read(&mut self, chunk: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::Tcp(tcp) => tcp.read(chunk),
            // Closed without a TLS alert is closed, too.
            Self::Tls(tls) => match tls.read(chunk) {
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(0),
                read => read,
            },
        }
    }

    fn write_all(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        match self {
            Self::Tcp(tcp) => tcp.write_all(bytes),
            Self::Tls(tls) => tls.write_all(bytes).and_then(|()| tls.flush()),
        }
    }
}

/// One connection to a daemon.
pub(crate) struct Sender {
    stream: Pipe,
    buffer: Vec<u8>,
}

/// One answer.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self
            .headers
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        let named = self
            .headers
            .iter()
            .filter(|(n, _)| n.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.as_str()).collect()
    }

    pub(crate) fn outcome(&self) -> &str {
        self.header("hookward-outcome").unwrap_or("")
    }

    /// The reason in a problem document, whose other members must fit the answer.
    pub(crate) fn reason(&self) -> String {
        assert_eq!(
            self.header("content-type"),
            Some("application/problem+json"),
            "{self:?}"
        );
        let problem: serde_json::Value = serde_json::from_slice(&self.body).unwrap();
        assert_eq!(problem["status"], self.status, "{self:?}");
        assert!(
            problem["title"].is_string() && problem["detail"].is_string(),
            "{self:?}"
        );
        assert_eq!(
            problem["instance"].as_str(),
            self.header("hookward-event-id"),
            "{self:?}"
        );
        problem["type"]
            .as_str()
            .unwrap()
            .strip_prefix("urn:hookward:")
            .unwrap()
            .to_owned()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Sender {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        Self::of(TcpStream::connect(address).unwrap())
    }

    /// The same over a connection that is there.
    pub(crate) fn of(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(HANG)).unwrap();
        stream.set_write_timeout(Some(HANG)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self {
            stream: Pipe::Tcp(stream),
            buffer: Vec::new(),
        }
    }

    /// The same over a TLS session.
    pub(crate) fn over(session: StreamOwned<ClientConnection, TcpStream>) -> Self {
        Self {
            stream: Pipe::Tls(Box::new(session)),
            buffer: Vec::new(),
        }
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Writes what the other side may refuse to read.
    pub(crate) fn try_write(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    pub(crate) fn hang_up(&mut self) {
        self.stream.tcp().shutdown(Shutdown::Both).unwrap();
    }

    /// Goes away as a crashed process does: with a reset.
    pub(crate) fn reset(self) {
        SockRef::from(self.stream.tcp())
            .set_linger(Some(std::time::Duration::ZERO))
            .unwrap();
    }

    /// The same connection, to write on while another thread reads.
    pub(crate) fn writer(&self) -> TcpStream {
        self.stream.tcp().try_clone().unwrap()
    }

    /// Whatever comes until the other side closes or resets.
    pub(crate) fn rest(&mut self) -> Vec<u8> {
        let mut chunk = [0; 64 * 1024];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => break,
                Ok(n) => self.buffer.extend_from_slice(&chunk[..n]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
                Err(error) => panic!("still open: {error}"),
            }
        }
        std::mem::take(&mut self.buffer)
    }

    /// Reads on until these bytes have come.
    pub(crate) fn read_until(&mut self, wanted: &[u8]) {
        while !self.buffer.windows(wanted.len()).any(|w| w == wanted) {
            assert!(self.fill() > 0, "closed before {wanted:?}");
        }
    }

    pub(crate) fn send(&mut self, request: &[u8]) -> Reply {
        self.write(request);
        self.reply()
    }

    /// Whether the other side has closed the connection, with nothing more to read.
    pub(crate) fn is_closed(&mut self) -> bool {
        assert!(
            self.buffer.is_empty(),
            "{:?}",
            String::from_utf8_lossy(&self.buffer)
        );
        match self.stream.read(&mut [0; 1]) {
            Ok(n) => n == 0,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => true,
            Err(error) => panic!("still open: {error}"),
        }
    }

    fn fill(&mut self) -> usize {
        let mut chunk = [0; 64 * 1024];
        let n = self.stream.read(&mut chunk).unwrap_or_else(|error| {
            panic!(
                "no answer: {error}; had {:?}",
                String::from_utf8_lossy(&self.buffer)
            )
        });
        self.buffer.extend_from_slice(&chunk[..n]);
        n
    }

    fn line(&mut self) -> String {
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return String::from_utf8_lossy(&line).trim_end().to_owned();
            }
            let had = String::from_utf8_lossy(&self.buffer).into_owned();
            assert!(
                self.fill() > 0,
                "closed in the middle of an answer: {had:?}"
            );
        }
    }

    fn take(&mut self, n: usize) -> Vec<u8> {
        while self.buffer.len() < n {
            assert!(self.fill() > 0, "closed in the middle of a body of {n}");
        }
        self.buffer.drain(..n).collect()
    }

    /// Reads one answer; `100 Continue` counts as one.
    pub(crate) fn reply(&mut self) -> Reply {
        let line = self.line();
        let status = line.split(' ').nth(1).and_then(|s| s.parse().ok());
        let status = status.unwrap_or_else(|| panic!("no status line: {line:?}"));
        let mut headers = Vec::new();
        loop {
            let line = self.line();
            let Some((name, value)) = line.split_once(':') else {
                break;
            };
            headers.push((name.to_owned(), value.trim().to_owned()));
        }
        let mut reply = Reply {
            status,
            headers,
            body: Vec::new(),
        };
        if status < 200 || status == 204 || status == 304 {
            return reply;
        }
        if reply.header("transfer-encoding") == Some("chunked") {
            loop {
                let size = usize::from_str_radix(&self.line(), 16).unwrap();
                reply.body.extend(self.take(size));
                self.line();
                if size == 0 {
                    return reply;
                }
            }
        }
        match reply.header("content-length") {
            Some(length) => reply.body = self.take(length.parse().unwrap()),
            None => {
                while self.fill() > 0 {}
                reply.body = std::mem::take(&mut self.buffer);
            }
        }
        reply
    }
}
