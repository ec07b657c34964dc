//! How a certificate authority is asked: over our own connections, with the same roots and the same
//! strictness as an application.

use std::{
    collections::HashMap,
    future::poll_fn,
    io::{self, Write as _},
    pin::{Pin, pin},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response, header};
use http_body::Body as _;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use rustls_pki_types::CertificateDer;

use crate::{
    endpoint::{TlsMaterial, Transport, Upstream},
    upstream::Once,
};

/// How long one exchange may take.
const PATIENCE: Duration = Duration::from_secs(30);
const USER_AGENT: &str = concat!("hookward/", env!("CARGO_PKG_VERSION"));

type Answer = Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>>;

/// Asks authorities; keeps the way to each.
#[derive(Debug)]
pub(super) struct Client {
    roots: Vec<CertificateDer<'static>>,
    ways: Mutex<HashMap<String, Arc<Once>>>,
}

impl Client {
    /// `roots` are trusted beside the system's.
    pub(super) fn new(roots: Vec<CertificateDer<'static>>) -> Self {
        Self {
            roots,
            ways: Mutex::default(),
        }
    }

    /// The way to a URL's host, and what its `Host` and target are.
    fn way(&self, url: &http::Uri) -> io::Result<(Arc<Once>, String, String)> {
        let bad = |what: String| io::Error::new(io::ErrorKind::InvalidInput, what);
        let parsed = Upstream::parse_url(&url.to_string());
        let (transport, authority, path, query) = parsed.map_err(|what| bad(what.to_owned()))?;
        if !matches!(transport, Transport::Tls { .. }) {
            return Err(bad("expected an https URL".to_owned()));
        }
        let target = match query {
            Some(query) => format!("{path}?{query}"),
            None => path,
        };
        let mut ways = self.ways.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(way) = ways.get(&authority) {
            return Ok((way.clone(), authority, target));
        }
        let material = TlsMaterial {
            extra_roots: self.roots.clone(),
            client: None,
        };
        let way = Once::new(&transport, &material, PATIENCE);
        let way = Arc::new(way.map_err(|misfit| bad(misfit.what.to_owned()))?);
        ways.insert(authority.clone(), way.clone());
        Ok((way, authority, target))
    }
}

impl HttpClient for Client {
    fn request(&self, request: Request<BodyWrapper<Bytes>>) -> Answer {
        let way = self.way(request.uri());
        Box::pin(async move {
            let failed = |error: io::Error| Error::Other(Box::new(error));
            let (way, host, target) = way.map_err(failed)?;
            let is_bare = *request.method() == Method::HEAD;
            let bytes = written(request, &host, &target).await.map_err(failed)?;
            let reply = way.ask(&bytes, is_bare).await.map_err(failed)?;
            let mut response = Response::new(());
            *response.status_mut() = reply.status;
            *response.headers_mut() = reply.headers;
            Ok(BytesResponse {
                parts: response.into_parts().0,
                body: Box::new(reply.body),
            })
        })
    }
}

/// A request as it is sent.
async fn written(
    request: Request<BodyWrapper<Bytes>>,
    host: &str,
    target: &str,
) -> io::Result<Vec<u8>> {
    let (head, body) = request.into_parts();
    let mut body = pin!(body);
    let mut content = Vec::new();
    while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        let frame = frame.map_err(io::Error::other)?;
        content.extend_from_slice(&frame.into_data().unwrap_or_default());
    }
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
    bytes.extend_from_slice(&content);
    Ok(bytes)
}
