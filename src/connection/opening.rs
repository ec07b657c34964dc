//! How a connection begins, before HTTP is spoken on it: what a proxy says about who is behind it,
//! then the TLS handshake.
//!
//! Owns what stands before the first request. Nothing here says anything about the request; the
//! time it may take is counted with the first head's.

use std::{fmt, io, net::IpAddr, pin::Pin};

use ipnet::IpNet;
use tokio::{
    io::{AsyncRead as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::TlsStream;

use super::{
    drain,
    preamble::{self, Client},
};
use crate::{
    endpoint::is_trusted,
    rejection::{Malformation, Rejection, parting_answer},
    stream::Stream,
    tls::{self, Tls},
};

type Session = tokio_rustls::server::TlsStream<TcpStream>;

/// What connections begin with, where that is more than HTTP.
#[derive(Debug)]
pub struct Opening {
    tls: Option<Tls>,
    proxies: Option<Proxies>,
}

/// Who says first, by the PROXY protocol, for whom a connection is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proxies {
    /// Everybody.
    All,
    /// Whoever connects from these networks, and by a socket in the file system.
    Of(Vec<IpNet>),
}

impl Proxies {
    fn include(&self, ip: Option<IpAddr>) -> bool {
        match (self, ip) {
            (Self::All, _) | (Self::Of(_), None) => true,
            (Self::Of(networks), Some(_)) => is_trusted(ip, networks),
        }
    }
}

/// A connection on which HTTP is spoken next.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) stream: Stream,
    /// Who is at the other end, as far as is known.
    pub(crate) ip: Option<IpAddr>,
    pub(crate) is_secure: bool,
    /// HTTP/2 was agreed upon.
    pub(crate) is_http2: bool,
}

impl Opened {
    /// A connection on which HTTP is spoken at once.
    pub(crate) fn plain(stream: Stream, ip: Option<IpAddr>) -> Self {
        Self {
            stream,
            ip,
            is_secure: false,
            is_http2: false,
        }
    }
}

/// Why no HTTP can be spoken on a connection.
#[derive(Debug)]
pub enum OpenFault {
    /// The other side went away.
    Gone,
    /// There is no preamble of the PROXY protocol, or none that can be read.
    NoPreamble,
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
            Self::NoPreamble => Some("proxy_protocol"),
            Self::PlainText => Some("plain_text"),
            Self::Slow => Some("timeout"),
            Self::Tls(_) => Some("tls"),
        }
    }

    /// One of each kind that is counted.
    pub const LABELS: [&'static str; 4] = ["plain_text", "proxy_protocol", "timeout", "tls"];
}

impl fmt::Display for OpenFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone => f.write_str("the other side went away"),
            Self::NoPreamble => f.write_str(
                "no PROXY protocol preamble that can be read; is server.proxy_protocol meant?",
            ),
            Self::PlainText => f.write_str("plain HTTP where TLS is spoken; use https"),
            Self::Slow => f.write_str("not ready for HTTP within header_timeout"),
            Self::Tls(error) => write!(f, "no TLS session: {error}"),
        }
    }
}

impl Opening {
    /// What connections begin with; `None` where HTTP is spoken at once.
    pub fn new(tls: Option<Tls>, proxies: Option<Proxies>) -> Option<Self> {
        let is_any = tls.is_some() || proxies.is_some();
        is_any.then_some(Self { tls, proxies })
    }

    /// Whether whoever connects reads HTTP, were it before they have said anything: there is no TLS to
    /// be agreed upon.
    pub(crate) fn is_readable(&self, is_plain: bool) -> bool {
        is_plain || self.tls.is_none()
    }

    /// Makes a connection ready for HTTP. `is_plain`: it came by a listener that speaks no TLS.
    ///
    /// # Errors
    /// See [`OpenFault`]; the connection is of no further use.
    pub(crate) async fn open(
        &self,
        mut stream: Stream,
        mut ip: Option<IpAddr>,
        is_plain: bool,
    ) -> Result<Opened, OpenFault> {
        let mut is_secure = false;
        if self.proxies.as_ref().is_some_and(|all| all.include(ip)) {
            let first = preamble::first(&mut stream).await;
            let told = preamble::read(first.ok_or(OpenFault::Gone)?, &mut stream).await;
            let told = told.map_err(|_| OpenFault::NoPreamble)?;
            is_secure = told.is_secure;
            match told.client {
                Client::Ip(client) => ip = Some(client.to_canonical()),
                Client::Local => ip = None,
                Client::Proxy => {}
            }
        }
        match (stream, &self.tls) {
            (Stream::Tcp(tcp), Some(tls)) if !is_plain => {
                let session = handshake(tls, tcp).await?;
                let protocol = session.get_ref().1.alpn_protocol();
                if protocol == Some(tls::acme::PROTOCOL) {
                    // The handshake is all that an authority comes for.
                    return Err(OpenFault::Gone);
                }
                let is_http2 = protocol == Some(tls::HTTP2);
                Ok(Opened {
                    stream: Stream::Tls(Box::new(TlsStream::Server(session))),
                    ip,
                    is_secure: true,
                    is_http2,
                })
            }
            (stream, _) => Ok(Opened {
                is_secure,
                ..Opened::plain(stream, ip)
            }),
        }
    }
}

async fn handshake(tls: &Tls, mut tcp: TcpStream) -> Result<Session, OpenFault> {
    let mut first = [0; 1];
    match tcp.peek(&mut first).await {
        Ok(0) | Err(_) => return Err(OpenFault::Gone),
        // No TLS record begins with a letter, and every method does.
        Ok(_) if first.iter().all(u8::is_ascii_uppercase) => {
            let answer = parting_answer(Rejection::Malformed(Malformation::PlainText));
            // Whether it is heard is the sender's affair; what it sent is read so that it can be.
            let _ = tcp.write_all(&answer).await;
            let _ = tcp.shutdown().await;
            drain(|cx, buffer| Pin::new(&mut tcp).poll_read(cx, buffer)).await;
            return Err(OpenFault::PlainText);
        }
        Ok(_) => {}
    }
    let accepted = tls.acceptor().accept(tcp).await;
    accepted.map_err(|error| {
        let cause = error.get_ref();
        match cause.is_some_and(|cause| cause.is::<rustls::Error>()) {
            true => OpenFault::Tls(error),
            false => OpenFault::Gone,
        }
    })
}
