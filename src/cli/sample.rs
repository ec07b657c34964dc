//! A small client that posts sample events.

use std::{
    io::{self, BufRead as _, BufReader, Read, Write as _},
    net::TcpStream,
    sync::Arc,
    time::Duration,
};

use http::{HeaderName, HeaderValue, Uri};
use rustls_pki_types::ServerName;

pub(super) use crate::event::samples::{EVENTS, body_of};

/// How long an answer may take: longer than a sender waits.
const PATIENCE: Duration = Duration::from_secs(40);

/// What came back.
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

impl Reply {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let found = self
            .headers
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

pub(super) trait Wire: Read + io::Write {}
impl<T: Read + io::Write> Wire for T {}

/// Posts a body and reads the answer, on a connection of its own.
///
/// # Errors
/// When the URL cannot be used, or the other side refuses, breaks off or speaks no HTTP.
pub(super) fn post(
    url: &Uri,
    headers: &[(HeaderName, HeaderValue)],
    body: &[u8],
) -> io::Result<Reply> {
    let authority = url
        .authority()
        .ok_or_else(|| io::Error::other("the URL names no host"))?;
    let mut head = format!(
        "POST {} HTTP/1.1\r\nHost: {authority}\r\nContent-Type: application/json\r\n\
         User-Agent: hookward/{}\r\nContent-Length: {}\r\nConnection: close\r\n",
        url.path_and_query().map_or("/", |target| target.as_str()),
        env!("CARGO_PKG_VERSION"),
        body.len()
    )
    .into_bytes();
    for (name, value) in headers {
        head.extend_from_slice(name.as_str().as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(value.as_bytes());
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(b"\r\n");
    head.extend_from_slice(body);
    let mut wire = connect(url, authority)?;
    // A refusal may come before all is read: what was said counts, not the broken pipe.
    let sent = wire.write_all(&head).and_then(|()| wire.flush());
    read_reply(wire).map_err(|error| sent.err().unwrap_or(error))
}

pub(super) fn connect(url: &Uri, authority: &http::uri::Authority) -> io::Result<Box<dyn Wire>> {
    let is_tls = url.scheme_str() == Some("https");
    let port = authority
        .port_u16()
        .unwrap_or(if is_tls { 443 } else { 80 });
    let host = authority
        .host()
        .trim_start_matches('[')
        .trim_end_matches(']');
    let tcp = TcpStream::connect((host, port))?;
    tcp.set_read_timeout(Some(PATIENCE))?;
    tcp.set_write_timeout(Some(PATIENCE))?;
    if !is_tls {
        return Ok(Box::new(tcp));
    }
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    let session =
        rustls::ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
    Ok(Box::new(rustls::StreamOwned::new(session, tcp)))
}

pub(super) fn read_reply(wire: Box<dyn Wire>) -> io::Result<Reply> {
    let broken = || io::Error::from(io::ErrorKind::InvalidData);
    let mut wire = BufReader::new(wire);
    let mut line = || -> io::Result<String> {
        let mut line = String::new();
        wire.by_ref().take(64 * 1024).read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    };
    let status = line()?
        .split(' ')
        .nth(1)
        .and_then(|s| s.parse().ok())
        .ok_or_else(broken)?;
    let mut headers = Vec::new();
    loop {
        let line = line()?;
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
    let length = reply
        .header("content-length")
        .and_then(|length| length.parse().ok());
    // What an application says is shown in part; nothing here needs more of it.
    let limit = length.unwrap_or(u64::MAX).min(1 << 20);
    match wire.take(limit).read_to_end(&mut reply.body) {
        Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => Err(error),
        _ => Ok(reply),
    }
}
