//! Spans by OTLP (HTTP, protobuf), batched on a thread of the library's own; what it cannot take in
//! or send in time is dropped, and a request never waits for it.

use std::{
    env,
    fmt::Display,
    sync::OnceLock,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use opentelemetry::{
    Context, KeyValue,
    propagation::TextMapPropagator as _,
    trace::{Span as _, SpanKind, Status, TraceContextExt as _, Tracer as _, TracerProvider as _},
};
use opentelemetry_http::{HeaderExtractor, HttpClient, HttpError};
use opentelemetry_otlp::{SpanExporter, WithHttpConfig as _};
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    trace::{SdkTracer, SdkTracerProvider, Span},
};
use tokio::runtime::{Builder, LocalOptions};

use super::{Delivery, Ending};
use crate::upstream::Asker;

/// How long one export may take, connecting included.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the last spans have when the process ends.
const LAST_SPANS: Duration = Duration::from_secs(2);
const ENDPOINTS: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
];
const PROTOCOLS: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_PROTOCOL",
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
];

static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// Sends what is left when it is dropped.
#[derive(Debug)]
pub(crate) struct Traces(SdkTracerProvider);

impl Drop for Traces {
    fn drop(&mut self) {
        if let Err(error) = self.0.shutdown_with_timeout(LAST_SPANS) {
            tracing::warn!(%error, "the last spans could not be sent");
        }
    }
}

/// Begins to send spans, where the environment names somewhere to send them.
///
/// # Errors
/// What is wrong with the `OTEL_…` variables, and what would be right.
pub(crate) fn start() -> Result<Option<Traces>, String> {
    let variable = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
    let is_disabled = variable("OTEL_SDK_DISABLED").is_some_and(|v| v.eq_ignore_ascii_case("true"));
    let exporter = variable("OTEL_TRACES_EXPORTER");
    let is_named = ENDPOINTS.iter().any(|name| variable(name).is_some());
    match exporter.as_deref() {
        _ if is_disabled => return Ok(None),
        None if !is_named => return Ok(None),
        Some("none") => return Ok(None),
        None | Some("otlp") => {}
        Some(_) => return Err("OTEL_TRACES_EXPORTER: expected otlp or none".to_owned()),
    }
    for name in PROTOCOLS {
        if variable(name).is_some_and(|protocol| protocol != "http/protobuf") {
            return Err(format!("{name}: expected http/protobuf, or nothing"));
        }
    }
    let exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(Client(Asker::new(Vec::new(), PATIENCE)))
        .build()
        .map_err(|error| format!("OTEL_EXPORTER_OTLP_…: {error}"))?;
    let mut resource = Resource::builder();
    let attributes = variable("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
    if variable("OTEL_SERVICE_NAME").is_none() && !attributes.contains("service.name=") {
        resource = resource.with_service_name("hookward");
    }
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(resource.with_attribute(version).build())
        .build();
    // A process starts once.
    let _ = TRACER.set(provider.tracer("hookward"));
    Ok(Some(Traces(provider)))
}

/// Sends batches, from the library's thread, which may wait.
#[derive(Debug)]
struct Client(Asker);

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (head, content) = request.into_parts();
        let asking = self.0.ask(&head, &content)?;
        let reply = Builder::new_current_thread()
            .enable_all()
            .build_local(LocalOptions::default())?
            .block_on(asking)?;
        let mut response = Response::new(reply.body);
        *response.status_mut() = reply.status;
        *response.headers_mut() = reply.headers;
        Ok(response)
    }
}

/// A request's span; none where nobody is told.
#[derive(Debug, Default)]
pub(crate) struct Trace(Option<Box<Span>>);

impl Trace {
    /// Begins the span of a request whose head came at a moment.
    pub(crate) fn begin(headers: &HeaderMap, now: SystemTime) -> Self {
        let Some(tracer) = TRACER.get() else {
            return Self(None);
        };
        let span = tracer
            .span_builder("request")
            .with_kind(SpanKind::Server)
            .with_start_time(now)
            .start_with_context(tracer, &said(headers));
        Self(Some(Box::new(span)))
    }

    /// Begins the span of an attempt to deliver the request's event.
    pub(crate) fn attempt(&self, delivery: Delivery<'_>) -> Attempt {
        let context = self.0.as_ref().map(|span| {
            let span = span.span_context().clone();
            Context::new().with_remote_span_context(span)
        });
        Attempt::begin(context.as_ref(), delivery)
    }

    /// Ends the span.
    pub(crate) fn end(self, ending: Ending<'_>) {
        let Some(mut span) = self.0 else { return };
        if !ending.endpoint.is_empty() {
            span.update_name(format!("POST {}", ending.endpoint));
            span.set_attribute(endpoint(ending.endpoint));
        }
        span.set_attribute(event_id(ending.event_id));
        span.set_attribute(status(ending.status));
        if let Some(outcome) = ending.outcome {
            span.set_attribute(KeyValue::new("hookward.outcome", outcome));
        }
        if let Some(reason) = ending.reason {
            span.set_attribute(KeyValue::new("error.type", reason));
        }
        if ending.status.is_server_error() {
            span.set_status(Status::error(ending.reason.unwrap_or_default()));
        }
        span.end();
    }
}

/// An attempt's span; none where nobody is told.
#[derive(Debug)]
pub(crate) struct Attempt(Option<Box<Span>>);

impl Attempt {
    fn begin(parent: Option<&Context>, delivery: Delivery<'_>) -> Self {
        let (Some(tracer), Some(parent)) = (TRACER.get(), parent) else {
            return Self(None);
        };
        let attributes = [
            endpoint(delivery.endpoint),
            event_id(delivery.event_id),
            KeyValue::new("hookward.attempt", i64::from(delivery.number)),
        ];
        let span = tracer
            .span_builder(format!("deliver {}", delivery.endpoint))
            .with_kind(SpanKind::Client)
            .with_attributes(attributes)
            .start_with_context(tracer, parent);
        Self(Some(Box::new(span)))
    }

    /// Begins the span of an attempt to deliver what was kept on disk with these headers.
    pub(crate) fn of_kept(headers: &HeaderMap, delivery: Delivery<'_>) -> Self {
        let parent = TRACER.get().map(|_| said(headers));
        Self::begin(parent.as_ref(), delivery)
    }

    /// Ends the span: with the upstream's status, or what came instead of one.
    pub(crate) fn end(self, ended: Result<StatusCode, &dyn Display>) {
        let Some(mut span) = self.0 else { return };
        match ended {
            Ok(answered) => {
                span.set_attribute(status(answered));
                if !answered.is_success() {
                    span.set_status(Status::error(answered.to_string()));
                }
            }
            Err(cause) => span.set_status(Status::error(cause.to_string())),
        }
        span.end();
    }
}

/// The span that a sender says its request belongs to (W3C Trace Context).
fn said(headers: &HeaderMap) -> Context {
    TraceContextPropagator::new().extract_with_context(&Context::new(), &HeaderExtractor(headers))
}

fn endpoint(name: &str) -> KeyValue {
    KeyValue::new("hookward.endpoint", name.to_owned())
}

fn event_id(id: &str) -> KeyValue {
    KeyValue::new("hookward.event_id", id.to_owned())
}

fn status(status: StatusCode) -> KeyValue {
    KeyValue::new("http.response.status_code", i64::from(status.as_u16()))
}
