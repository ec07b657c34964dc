//! How a certificate authority is asked.

use std::{
    future::poll_fn,
    io,
    pin::{Pin, pin},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, uri::Scheme};
use http_body::Body as _;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use rustls_pki_types::CertificateDer;

use crate::upstream::Asker;

/// How long one exchange may take.
const PATIENCE: Duration = Duration::from_secs(30);

type Answer = Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>>;

/// Asks an authority, by TLS alone.
#[derive(Debug)]
pub(super) struct Client(std::sync::Arc<Asker>);

impl Client {
    /// `roots` are trusted beside the system's.
    pub(super) fn new(roots: Vec<CertificateDer<'static>>) -> Self {
        Self(Asker::new(roots, PATIENCE).into())
    }
}

impl HttpClient for Client {
    fn request(&self, request: Request<BodyWrapper<Bytes>>) -> Answer {
        let asker = self.0.clone();
        Box::pin(async move {
            let failed = |error: io::Error| Error::Other(Box::new(error));
            let (head, body) = request.into_parts();
            if head.uri.scheme() != Some(&Scheme::HTTPS) {
                return Err(failed(io::Error::other("it names a URL that is not https")));
            }
            let mut body = pin!(body);
            let mut content = Vec::new();
            while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
                let Ok(frame) = frame;
                content.extend_from_slice(&frame.into_data().unwrap_or_default());
            }
            let asking = asker.ask(&head, &content).map_err(failed)?;
            let reply = asking.await.map_err(failed)?;
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
