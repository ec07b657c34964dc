use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

use super::{HANG, SECRET, sign};

/// An application that writes down what it gets, byte for byte, and reads no more into it than one
/// plain message after another.
pub(crate) struct Recorder {
    address: SocketAddr,
    heard: Arc<Mutex<Vec<Heard>>>,
}

/// What came.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Heard {
    /// One message that only one reading fits, signed over this body.
    Message(Vec<u8>),
    /// Anything else, and what is wrong with it.
    Odd(&'static str, Vec<u8>),
}

impl std::fmt::Debug for Heard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let short = |bytes: &[u8]| bytes[..bytes.len().min(600)].escape_ascii().to_string();
        match self {
            Self::Message(body) => write!(f, "message {:?}", short(body)),
            Self::Odd(what, bytes) => write!(f, "{what}: {:?}", short(bytes)),
        }
    }
}

impl Recorder {
    pub(crate) fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let shared = heard.clone();
        thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let heard = shared.clone();
                thread::spawn(move || record(stream, &heard));
            }
        });
        Self { address, heard }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/in", self.address)
    }

    /// What has come since this was asked last.
    pub(crate) fn take(&self) -> Vec<Heard> {
        std::mem::take(&mut self.heard.lock().unwrap())
    }
}

fn record(mut stream: TcpStream, heard: &Mutex<Vec<Heard>>) {
    stream.set_read_timeout(Some(HANG)).unwrap();
    let mut buffer = Vec::new();
    loop {
        let message = loop {
            match message(&buffer) {
                Ok(Some(message)) => break message,
                Ok(None) => {}
                Err(what) => {
                    heard.lock().unwrap().push(Heard::Odd(what, buffer));
                    return;
                }
            }
            let mut chunk = [0; 64 * 1024];
            match stream.read(&mut chunk) {
                Ok(n @ 1..) => buffer.extend_from_slice(&chunk[..n]),
                Ok(0) | Err(_) if buffer.is_empty() => return,
                Ok(_) | Err(_) => {
                    heard.lock().unwrap().push(Heard::Odd("torn", buffer));
                    return;
                }
            }
        };
        let (length, body) = message;
        buffer.drain(..length);
        // Written down before it is answered: whoever has the answer finds it here.
        heard.lock().unwrap().push(Heard::Message(body));
        if stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            .is_err()
        {
            return;
        }
    }
}

/// The first message in these bytes: how many of them it is, and its body; `None` while it is not
/// all there.
fn message(bytes: &[u8]) -> Result<Option<(usize, Vec<u8>)>, &'static str> {
    let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = str::from_utf8(&bytes[..end]).unwrap_or_default();
    let head = if head.is_empty() {
        String::from_utf8_lossy(&bytes[..end]).into_owned()
    } else {
        head.to_owned()
    };
    let mut lines = head.split("\r\n");
    let first: Vec<&str> = lines.next().unwrap_or_default().split(' ').collect();
    let is_plain = matches!(first[..], ["POST", target, "HTTP/1.1"] if target.starts_with("/in"));
    if !is_plain {
        return Err("no plain request line");
    }
    let mut fields = Vec::new();
    for line in lines {
        let (name, value) = line.split_once(": ").ok_or("a line that is no field")?;
        let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if name.is_empty() || !name.bytes().all(is_token) {
            return Err("a name that is none");
        }
        if value.contains(|c: char| c.is_ascii_control() && c != '\t') {
            return Err("a value with a control character");
        }
        fields.push((name.to_ascii_lowercase(), value));
    }
    let values = |wanted: &str| {
        let named = fields.iter().filter(|(name, _)| name == wanted);
        named.map(|(_, value)| *value).collect::<Vec<_>>()
    };
    for framing in [
        "transfer-encoding",
        "trailer",
        "te",
        "upgrade",
        "connection",
    ] {
        if !values(framing).is_empty() {
            return Err("a field that ends at the gate");
        }
    }
    if values("hookward-verified") != ["true"] || values("host").len() != 1 {
        return Err("not exactly one word on verification and host");
    }
    let [length] = values("content-length")[..] else {
        return Err("not exactly one length");
    };
    let length: usize = length.parse().map_err(|_| "a length that is none")?;
    let (start, end) = (end + 4, end + 4 + length);
    let Some(body) = bytes.get(start..end) else {
        return Ok(None);
    };
    if values("tinytalk-signature") != [sign(SECRET, body)] {
        return Err("a signature over another body");
    }
    Ok(Some((end, body.to_vec())))
}
