//! Requests of our own, each on a connection of its own, and their answers whole: over the same
//! connections, with the same roots and the same strictness as towards an application.

use std::{
    collections::HashMap,
    io::{self, Write as _},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, StatusCode, Uri, header, request::Parts};
use rustls_pki_types::CertificateDer;
use tokio::io::AsyncWriteExt as _;

use super::{
    answer::{Rest, poll_fill, take_head},
    connect::Route,
};
use crate::{
    endpoint::{TlsMaterial, Upstream},
    framing::Piece,
};

/// Longest answer, in bytes.
const ANSWER_LIMIT: usize = 1 << 20;

const USER_AGENT: &str = concat!("hookward/", env!("CARGO_PKG_VERSION"));

/// Asks others; keeps the way to each.
#[derive(Debug)]
pub(crate) struct Asker {
    roots: Vec<CertificateDer<'static>>,
    timeout: Duration,
    /// By authority; as many as there are others.
    ways: Mutex<HashMap<String, Arc<Route>>>,
}

/// Where a URL leads.
struct Place {
    way: Arc<Route>,
    host: String,
    target: String,
}

/// What they said.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Asker {
    /// `roots` are trusted beside the system's; an exchange may take `timeout`, connecting included.
    pub(crate) fn new(roots: Vec<CertificateDer<'static>>, timeout: Duration) -> Self {
        Self {
            roots,
            timeout,
            ways: Mutex::default(),
        }
    }

    /// Sends a whole request.
    ///
    /// # Errors
    /// A URL that leads nowhere; then, when no whole answer that can be read came in time.
    pub(crate) fn ask(
        &self,
        head: &Parts,
        content: &[u8],
    ) -> io::Result<impl Future<Output = io::Result<Reply>> + Send + 'static> {
        let place = self.place(&head.uri)?;
        let bytes = written(head, content, &place)?;
        let is_bare = head.method == Method::HEAD;
        let timeout = self.timeout;
        Ok(async move {
            tokio::time::timeout(timeout, exchange(&place.way, &bytes, is_bare))
                .await
                .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        })
    }

    fn place(&self, url: &Uri) -> io::Result<Place> {
        let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, what);
        let parsed = Upstream::parse_url(&url.to_string());
        let (transport, host, path, query) =
            parsed.map_err(|expected| bad(&format!("expected {expected}")))?;
        let target = match query {
            Some(query) => format!("{path}?{query}"),
            None => path,
        };
        let key = format!("{}://{host}", url.scheme_str().unwrap_or_default());
        let mut ways = self.ways.lock().unwrap_or_else(PoisonError::into_inner);
        let way = match ways.get(&key) {
            Some(way) => way.clone(),
            None => {
                let material = TlsMaterial {
                    extra_roots: self.roots.clone(),
                    client: None,
                };
                let way = Route::new(&transport, self.timeout, &material);
                let way = Arc::new(way.map_err(|misfit| bad(misfit.what))?);
                ways.insert(key, way.clone());
                way
            }
        };
        Ok(Place { way, host, target })
    }
}

/// A request as it is sent.
fn written(head: &Parts, content: &[u8], place: &Place) -> io::Result<Vec<u8>> {
    let (host, target) = (&place.host, &place.target);
    let mut bytes = Vec::new();
    write!(
        bytes,
        "{} {target} HTTP/1.1\r\nhost: {host}\r\n",
        head.method
    )?;
    if !head.headers.contains_key(header::USER_AGENT) {
        write!(bytes, "user-agent: {USER_AGENT}\r\n")?;
    }
    for (name, value) in &head.headers {
        write!(bytes, "{name}: ")?;
        bytes.extend_from_slice(value.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    let length = content.len();
    write!(
        bytes,
        "connection: close\r\ncontent-length: {length}\r\n\r\n"
    )?;
    bytes.extend_from_slice(content);
    Ok(bytes)
}

async fn exchange(way: &Route, request: &[u8], is_bare: bool) -> io::Result<Reply> {
    let bad = || io::Error::from(io::ErrorKind::InvalidData);
    let (mut stream, _) = way.connect().await?;
    stream.write_all(request).await?;
    stream.flush().await?;
    let mut buffer = BytesMut::new();
    let mut fill = async |buffer: &mut BytesMut| {
        let came = std::future::poll_fn(|cx| poll_fill(&mut stream, buffer, cx)).await;
        match came {
            // Who closes without a TLS alert has closed all the same.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
            came => came,
        }
    };
    let head = loop {
        match take_head(&mut buffer).map_err(|_| bad())? {
            Some(head) => break head,
            None if fill(&mut buffer).await? == 0 => {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            None => {}
        }
    };
    let mut rest = if is_bare { Rest::Length(0) } else { head.rest };
    let mut body = BytesMut::new();
    loop {
        match rest.next(&mut buffer).map_err(|_| bad())? {
            Some(Piece::Data(data)) if body.len() + data.len() > ANSWER_LIMIT => {
                return Err(bad());
            }
            Some(Piece::Data(data)) => body.extend_from_slice(&data),
            Some(Piece::End | Piece::More) => break,
            None => {
                if fill(&mut buffer).await? == 0 {
                    match rest {
                        Rest::UntilClose => break,
                        Rest::Chunked(_) | Rest::Length(_) => {
                            return Err(io::ErrorKind::UnexpectedEof.into());
                        }
                    }
                }
            }
        }
    }
    Ok(Reply {
        status: head.status,
        headers: head.headers,
        body: body.freeze(),
    })
}
