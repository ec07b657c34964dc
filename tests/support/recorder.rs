use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

use super::{HANG, SECRET, message::message, sign};

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
            match message(&buffer, |body| sign(SECRET, body)) {
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
