//! How a connection begins, before HTTP is spoken on it: the TLS handshake.
//!
//! Owns what stands before the first request. Nothing here says anything about the request; the
//! time it may take is counted with the first head's.

use std::{fmt, io, net::IpAddr};

use tokio::{io::AsyncWriteExt as _, net::TcpStream};
use tokio_rustls::TlsStream;

use crate::{
    rejection::{Malformation, Rejection, parting_answer},
    stream::Stream,
    tls::Tls,
};

/// What connections begin with, where that is more than HTTP.
#[derive(Debug)]
pub struct Opening {
    tls: Option<Tls>,
}

/// A connection on which HTTP is spoken next.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) stream: Stream,
    /// Who is at the other end, as far as is known.
    pub(crate) ip: Option<IpAddr>,
    pub(crate) is_secure: bool,
}

impl Opened {
    /// A connection on which HTTP is spoken at once.
    pub(crate) fn plain(stream: Stream, ip: Option<IpAddr>) -> Self {
        Self {
            stream,
            ip,
            is_secure: false,
        }
    }
}

/// Why no HTTP can be spoken on a connection.
#[derive(Debug)]
pub enum OpenFault {
    /// The other side went away.
    Gone,
    /// The other side speaks HTTP without TLS.
    PlainText,
    /// It took longer than `header_timeout`.
    Slow,
    /// TLS could not be agreed upon.
    Tls(io::Error),
}

impl OpenFault {
    /// The label in metrics; `None` where nobody did anything wrong.
    pub fn label(&self) -> Option<&'static str> {
        match self {
            Self::Gone => None,
            Self::PlainText => Some("plain_text"),
            Self::Slow => Some("timeout"),
            Self::Tls(_) => Some("tls"),
        }
    }

    /// One of each kind that is counted.
    pub const LABELS: [&'static str; 3] = ["plain_text", "timeout", "tls"];
}

impl fmt::Display for OpenFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone => f.write_str("the other side went away"),
            Self::PlainText => f.write_str("plain HTTP where TLS is spoken; use https"),
            Self::Slow => f.write_str("not ready for HTTP within header_timeout"),
            Self::Tls(error) => write!(f, "no TLS session: {error}"),
        }
    }
}

impl Opening {
    /// What connections begin with; `None` where HTTP is spoken at once.
    pub fn new(tls: Option<Tls>) -> Option<Self> {
        tls.is_some().then_some(Self { tls })
    }

    /// Makes a connection ready for HTTP. `is_plain`: it came by a listener that speaks no TLS.
    ///
    /// # Errors
    /// See [`OpenFault`]; the connection is of no further use.
    pub(crate) async fn open(
        &self,
        stream: Stream,
        ip: Option<IpAddr>,
        is_plain: bool,
    ) -> Result<Opened, OpenFault> {
        match (stream, &self.tls) {
            (Stream::Tcp(tcp), Some(tls)) if !is_plain => {
                let stream = handshake(tls, tcp).await?;
                Ok(Opened {
                    stream,
                    ip,
                    is_secure: true,
                })
            }
            (stream, _) => Ok(Opened::plain(stream, ip)),
        }
    }
}

async fn handshake(tls: &Tls, mut tcp: TcpStream) -> Result<Stream, OpenFault> {
    let mut first = [0; 1];
    match tcp.peek(&mut first).await {
        Ok(0) | Err(_) => return Err(OpenFault::Gone),
        // No TLS record begins with a letter, and every method does.
        Ok(_) if first.iter().all(u8::is_ascii_uppercase) => {
            let answer = parting_answer(Rejection::Malformed(Malformation::PlainText));
            // Whether it is heard is the sender's affair; what it sent is read so that it can be.
            let _ = tcp.try_read(&mut [0; 1024]);
            let _ = tcp.write_all(&answer).await;
            let _ = tcp.shutdown().await;
            return Err(OpenFault::PlainText);
        }
        Ok(_) => {}
    }
    let session = tls.acceptor().accept(tcp).await.map_err(|error| {
        let is_tls = error
            .get_ref()
            .is_some_and(|cause| cause.is::<rustls::Error>());
        if is_tls {
            OpenFault::Tls(error)
        } else {
            OpenFault::Gone
        }
    })?;
    Ok(Stream::Tls(Box::new(TlsStream::Server(session))))
}
