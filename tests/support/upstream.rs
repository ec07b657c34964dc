use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread,
};

use socket2::SockRef;

use super::HANG;

/// What an application does with one message.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    /// Answers with these bytes.
    Answer(Vec<u8>),
    /// Answers with these bytes and closes.
    AnswerAndClose(Vec<u8>),
    /// Answers as soon as the head is there, without reading the body, and reads no more.
    AnswerEarly(Vec<u8>),
    /// Closes without a word.
    Close,
    /// Reads and never answers.
    Hang,
    /// Resets the connection without a word.
    Reset,
    /// Answers with the first part, and with the second when the test says so.
    Parts(Vec<u8>, Vec<u8>),
    /// Answers with this when the test says so.
    Wait(Vec<u8>),
}

impl Act {
    /// A whole answer with this status and body.
    pub(crate) fn status(status: u16) -> Self {
        Self::answer(status, "", b"done")
    }

    pub(crate) fn answer(status: u16, headers: &str, body: &[u8]) -> Self {
        let length = body.len();
        let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n{headers}\r\n");
        Self::Answer([head.as_bytes(), body].concat())
    }
}

/// What arrived, byte for byte.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) head: String,
    /// The head as it came, for values that are not text.
    pub(crate) head_bytes: Vec<u8>,
    pub(crate) body: Vec<u8>,
    /// Which connection it came on, counted from 1.
    pub(crate) connection: usize,
}

impl Message {
    pub(crate) fn values(&self, name: &str) -> Vec<&str> {
        let fields = self.head.lines().filter_map(|line| line.split_once(": "));
        fields
            .filter(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, v)| v)
            .collect()
    }

    pub(crate) fn value(&self, name: &str) -> &str {
        let values = self.values(name);
        assert_eq!(values.len(), 1, "{name} in {}", self.head);
        values[0]
    }
}

/// An application that does as it is told.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    messages: Receiver<Message>,
    shared: Arc<Shared>,
    release: Sender<()>,
}

struct Shared {
    acts: Mutex<Vec<Act>>,
    default: Mutex<Act>,
    arrived: AtomicUsize,
    connections: AtomicUsize,
    released: Mutex<Receiver<()>>,
}

trait Wire: std::io::Read + std::io::Write + Send {
    /// Makes the coming close a reset.
    fn reset(&self);
}

impl Wire for TcpStream {
    fn reset(&self) {
        let now = Some(std::time::Duration::ZERO);
        SockRef::from(self).set_linger(now).unwrap();
    }
}

impl Wire for UnixStream {
    fn reset(&self) {}
}

impl Upstream {
    /// An application at a port of its own that answers everything with this.
    pub(crate) fn new(default: Act) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        Self::serve(default, address, move || {
            let stream = listener.accept().ok()?.0;
            stream.set_read_timeout(Some(HANG)).ok()?;
            Some(Box::new(stream))
        })
    }

    /// The same at a Unix socket.
    pub(crate) fn unix(path: &Path, default: Act) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        Self::serve(default, nowhere, move || {
            Some(Box::new(listener.accept().ok()?.0))
        })
    }

    /// The same at an address that was given up before.
    pub(crate) fn at(address: SocketAddr, default: Act) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        Self::serve(default, address, move || {
            Some(Box::new(listener.accept().ok()?.0))
        })
    }

    /// An address where nobody listens.
    pub(crate) fn nobody() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
    }

    fn serve(
        default: Act,
        address: SocketAddr,
        accept: impl Fn() -> Option<Box<dyn Wire>> + Send + 'static,
    ) -> Self {
        let (arrived, messages) = channel();
        let (release, released) = channel();
        let shared = Arc::new(Shared {
            acts: Mutex::default(),
            default: Mutex::new(default),
            arrived: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            released: Mutex::new(released),
        });
        let own = shared.clone();
        thread::spawn(move || {
            while let Some(wire) = accept() {
                let number = own.connections.fetch_add(1, Ordering::SeqCst) + 1;
                let (own, arrived) = (own.clone(), arrived.clone());
                thread::spawn(move || own.connection(wire, number, &arrived));
            }
        });
        Self {
            address,
            messages,
            shared,
            release,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/in", self.address)
    }

    /// What is done with the next messages, before the default.
    pub(crate) fn then(&self, acts: impl IntoIterator<Item = Act>) -> &Self {
        self.shared.acts.lock().unwrap().extend(acts);
        self
    }

    pub(crate) fn by_default(&self, act: Act) {
        *self.shared.default.lock().unwrap() = act;
    }

    /// Lets one waiting answer go.
    pub(crate) fn release(&self) {
        self.release.send(()).unwrap();
    }

    /// The next message, waited for.
    pub(crate) fn next_message(&self) -> Message {
        self.messages.recv_timeout(HANG).expect("no message came")
    }

    /// How many messages have come.
    pub(crate) fn count(&self) -> usize {
        self.shared.arrived.load(Ordering::SeqCst)
    }

    pub(crate) fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }
}

impl Shared {
    fn act(&self) -> Act {
        let mut acts = self.acts.lock().unwrap();
        if acts.is_empty() {
            self.default.lock().unwrap().clone()
        } else {
            acts.remove(0)
        }
    }

    fn connection(&self, mut wire: Box<dyn Wire>, number: usize, arrived: &Sender<Message>) {
        let mut buffer = Vec::new();
        while let Some(head) = read_head(&mut *wire, &mut buffer) {
            let mut message = Message {
                head: String::from_utf8_lossy(&head).into_owned(),
                head_bytes: head,
                body: Vec::new(),
                connection: number,
            };
            let act = self.act();
            if let Act::AnswerEarly(answer) = &act {
                self.note(message, arrived);
                let _ = wire.write_all(answer);
                thread::sleep(HANG);
                return;
            }
            let length = message.value("content-length").parse().unwrap();
            while buffer.len() < length {
                let mut chunk = [0; 64 * 1024];
                match wire.read(&mut chunk) {
                    Ok(0) | Err(_) => return,
                    Ok(n) => buffer.extend_from_slice(&chunk[..n]),
                }
            }
            message.body = buffer.drain(..length).collect();
            self.note(message, arrived);
            match act {
                Act::Answer(answer) => drop(wire.write_all(&answer)),
                Act::AnswerAndClose(answer) => {
                    let _ = wire.write_all(&answer);
                    return;
                }
                Act::AnswerEarly(_) | Act::Close => return,
                Act::Reset => {
                    wire.reset();
                    return;
                }
                Act::Parts(first, second) => {
                    let _ = wire.write_all(&first);
                    let _ = self.released.lock().unwrap().recv();
                    let _ = wire.write_all(&second);
                }
                Act::Hang => {
                    thread::sleep(HANG);
                    return;
                }
                Act::Wait(answer) => {
                    let _ = self.released.lock().unwrap().recv();
                    let _ = wire.write_all(&answer);
                }
            }
        }
    }

    fn note(&self, message: Message, arrived: &Sender<Message>) {
        self.arrived.fetch_add(1, Ordering::SeqCst);
        let _ = arrived.send(message);
    }
}

fn read_head(wire: &mut dyn Wire, buffer: &mut Vec<u8>) -> Option<Vec<u8>> {
    loop {
        if let Some(end) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
            return Some(buffer.drain(..end + 4).collect());
        }
        let mut chunk = [0; 64 * 1024];
        match wire.read(&mut chunk) {
            Ok(0) | Err(_) => return None,
            Ok(n) => buffer.extend_from_slice(&chunk[..n]),
        }
    }
}
