//! One request of our own on a connection of its own, and its answer whole.

use std::{io, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode};
use tokio::io::AsyncWriteExt as _;

use super::{
    Misfit,
    answer::{Rest, poll_fill, take_head},
    connect::Route,
};
use crate::{
    endpoint::{TlsMaterial, Transport},
    framing::Piece,
};

/// Longest answer, in bytes.
const ANSWER_LIMIT: usize = 1 << 20;

/// Somebody we ask ourselves.
#[derive(Debug)]
pub(crate) struct Once {
    route: Route,
    timeout: Duration,
}

/// What they said.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Once {
    /// Prepares the way there; an exchange may take `timeout`, connecting included.
    ///
    /// # Errors
    /// See [`Misfit`].
    pub(crate) fn new(
        transport: &Transport,
        material: &TlsMaterial,
        timeout: Duration,
    ) -> Result<Self, Misfit> {
        let route = Route::new(transport, timeout, material)?;
        Ok(Self { route, timeout })
    }

    /// Sends a whole request; `is_bare`: its answer has no body, whatever its head says.
    ///
    /// # Errors
    /// When no whole answer that can be read came in time.
    pub(crate) async fn ask(&self, request: &[u8], is_bare: bool) -> io::Result<Reply> {
        tokio::time::timeout(self.timeout, self.exchange(request, is_bare))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    async fn exchange(&self, request: &[u8], is_bare: bool) -> io::Result<Reply> {
        let bad = || io::Error::from(io::ErrorKind::InvalidData);
        let (mut stream, _) = self.route.connect().await?;
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
}
