//! Where connections come from: a thread's listening sockets, and what is accepted at them.

use std::{
    cell::Cell,
    future::poll_fn,
    io,
    net::IpAddr,
    task::{Context, Poll},
};

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use crate::{
    rejection::{Rejection, parting_answer},
    stream::Stream,
};

/// A bound socket, not yet on any thread.
#[derive(Debug)]
pub enum Socket {
    /// TCP without TLS.
    Plain(std::net::TcpListener),
    /// TCP, with TLS where there are certificates.
    Tcp(std::net::TcpListener),
    /// A stream socket in the file system.
    Unix(std::os::unix::net::UnixListener),
}

/// The same on a thread.
pub(super) enum Listener {
    /// Whether it is without TLS.
    Tcp(TcpListener, bool),
    Unix(UnixListener),
}

/// A connection as it was accepted.
pub(super) struct Accepted {
    pub(super) stream: Stream,
    /// Its other end, if that is an IP socket.
    pub(super) peer: Option<IpAddr>,
    /// It came by a listener that speaks no TLS.
    pub(super) is_plain: bool,
}

impl Accepted {
    fn tcp(tcp: TcpStream, peer: IpAddr, is_plain: bool) -> Self {
        // Answers are written whole; nothing is gained by waiting for more.
        let _ = tcp.set_nodelay(true);
        Self {
            stream: Stream::Tcp(tcp),
            peer: Some(peer.to_canonical()),
            is_plain,
        }
    }

    fn unix(unix: UnixStream) -> Self {
        Self {
            stream: Stream::Unix(unix),
            peer: None,
            is_plain: true,
        }
    }
}

impl Listener {
    pub(super) fn new(socket: Socket) -> io::Result<Self> {
        Ok(match socket {
            Socket::Plain(tcp) => Self::Tcp(TcpListener::from_std(tcp)?, true),
            Socket::Tcp(tcp) => Self::Tcp(TcpListener::from_std(tcp)?, false),
            Socket::Unix(unix) => Self::Unix(UnixListener::from_std(unix)?),
        })
    }

    /// Accepts whoever waits, asking the system itself: the runtime may not know of them yet.
    pub(super) fn accept_rest(self, mut welcome: impl FnMut(Accepted)) {
        let mut next: Box<dyn FnMut() -> io::Result<Accepted>> = match self {
            Self::Tcp(tcp, is_plain) => {
                let Ok(tcp) = tcp.into_std() else { return };
                Box::new(move || {
                    let (socket, peer) = tcp.accept()?;
                    socket.set_nonblocking(true)?;
                    let socket = TcpStream::from_std(socket)?;
                    Ok(Accepted::tcp(socket, peer.ip(), is_plain))
                })
            }
            Self::Unix(unix) => {
                let Ok(unix) = unix.into_std() else { return };
                Box::new(move || {
                    let (socket, _) = unix.accept()?;
                    socket.set_nonblocking(true)?;
                    Ok(Accepted::unix(UnixStream::from_std(socket)?))
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
            Self::Tcp(tcp, is_plain) => tcp
                .poll_accept(cx)
                .map_ok(|(tcp, peer)| Accepted::tcp(tcp, peer.ip(), *is_plain)),
            Self::Unix(unix) => unix
                .poll_accept(cx)
                .map_ok(|(unix, _)| Accepted::unix(unix)),
        }
    }
}

/// Accepts at any of these, beginning with the one whose `turn` it is: a crowd at one of them keeps
/// nobody at another waiting.
pub(super) async fn accept(listeners: &[Listener], turn: &Cell<usize>) -> io::Result<Accepted> {
    let count = listeners.len();
    poll_fn(|cx| {
        let in_turn = listeners.iter().enumerate().cycle().skip(turn.get());
        for (number, listener) in in_turn.take(count) {
            let accepted = listener.poll_accept(cx);
            if accepted.is_ready() {
                turn.set((number + 1) % count);
                return accepted;
            }
        }
        Poll::Pending
    })
    .await
}

/// Says 503 to a connection there is no room for, without waiting for anything.
pub(super) fn turn_away(socket: &Stream) {
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
        // Before its handshake, which has not begun, it is none yet.
        Stream::Tls(_) => Ok(0),
    };
}
