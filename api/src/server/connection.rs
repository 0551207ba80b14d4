//! One client's connection: requests come in one after the other, and get their answers in that order.

use super::Limits;
use crate::reply::Payload;
use crate::{Fault, Reply, Request, Service};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes, Incoming};
use hyper::ext::ReasonPhrase;
use hyper::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HeaderName, HeaderValue, SERVER};
use hyper::http::request::Parts;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Response, StatusCode};
use hyper_util::rt::TokioIo;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// Longest request head, in bytes. hyper refuses a longer one with 431.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// How much of a body over the limit is read and dropped so that its sender gets to read the refusal. A sender of
/// more finds the connection closed.
const DRAIN_BYTES_MAX: u64 = 4 * 1024 * 1024;

const DEPRECATION: HeaderName = HeaderName::from_static("deprecation");

/// Serves `stream` until the client closes it, stays quiet for too long, or the server is closing.
pub(super) async fn run<S: Service>(
    stream: UnixStream,
    service: Arc<S>,
    limits: Limits,
    mut closing: watch::Receiver<bool>,
) {
    let activity = Activity::default();
    let answer = service_fn(|request: hyper::Request<Incoming>| {
        let exchange = Exchange { service: &*service, limits, _busy: activity.begin() };
        exchange.run(request)
    });
    let connection = http1::Builder::new()
        .title_case_headers(true)
        .auto_date_header(false)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), answer);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = activity.quiet_for(limits.quiet_max) => {
            tracing::debug!("closing an API connection on which nothing happens");
            return;
        }
        () = told(&mut closing) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "an API connection ended early");
    }
}

/// Resolves when the server is closing, or gone.
async fn told(closing: &mut watch::Receiver<bool>) {
    let _ = closing.wait_for(|closing| *closing).await;
}

/// Since when nothing has been done on a connection; `None` while something is.
struct Activity(Mutex<Option<Instant>>);

impl Default for Activity {
    fn default() -> Self {
        Self(Mutex::new(Some(Instant::now())))
    }
}

/// Marks a connection as busy for as long as it lives.
struct Busy<'a>(&'a Activity);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.set(Some(Instant::now()));
    }
}

impl Activity {
    fn set(&self, quiet_since: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = quiet_since;
    }

    fn begin(&self) -> Busy<'_> {
        self.set(None);
        Busy(self)
    }

    /// Resolves once nothing has been done for `span`.
    ///
    /// Between the end of one request and the end of the next's head nothing is done: this covers an idle client,
    /// one that never finishes a head, and one that does not read its answers.
    async fn quiet_for(&self, span: Duration) {
        loop {
            let quiet_since = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
            match quiet_since {
                None => sleep(span).await,
                Some(since) if since.elapsed() >= span => return,
                Some(since) => sleep_until(since + span).await,
            }
        }
    }
}

/// One request on its way to an answer.
struct Exchange<'a, S> {
    service: &'a S,
    limits: Limits,
    _busy: Busy<'a>,
}

/// Why a body was not read to its end.
enum BodyError {
    TooLong { size_bytes: u64 },
    TooSlow,
    Gone(hyper::Error),
}

impl<S: Service> Exchange<'_, S> {
    /// Answers a request. An error means that the client is gone.
    async fn run(self, request: hyper::Request<Incoming>) -> Result<Response<Full<Bytes>>, hyper::Error> {
        let (head, body) = request.into_parts();
        let mut answer = match timeout(self.limits.body_wait_max, self.body(&head, body)).await {
            Ok(Ok(body)) => self.answer(&head, &body).await,
            Ok(Err(BodyError::Gone(error))) => return Err(error),
            Ok(Err(error)) => self.refuse_body(&error),
            Err(_) => self.refuse_body(&BodyError::TooSlow),
        };
        if asks_to_close(&head) {
            answer.is_last = true;
        }
        Ok(answer.into_response())
    }

    /// Reads the body, up to its limit.
    async fn body(&self, head: &Parts, mut body: Incoming) -> Result<Vec<u8>, BodyError> {
        let limit = u64::try_from(self.limits.payload_bytes_max).unwrap_or(u64::MAX);
        let declared = body.size_hint().upper().unwrap_or(0);
        // Reading would make hyper send `100 Continue`: a client that asks first is told before it sends.
        if declared > limit && (head.headers.contains_key(EXPECT) || declared > DRAIN_BYTES_MAX) {
            return Err(BodyError::TooLong { size_bytes: declared });
        }
        let mut bytes = Vec::new();
        let mut size_bytes = 0;
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(BodyError::Gone)?.into_data() else {
                continue;
            };
            size_bytes += data.len() as u64;
            if size_bytes <= limit {
                bytes.extend_from_slice(&data);
            } else if size_bytes > DRAIN_BYTES_MAX.max(limit) {
                break;
            }
        }
        if size_bytes > limit { Err(BodyError::TooLong { size_bytes }) } else { Ok(bytes) }
    }

    async fn answer(&self, head: &Parts, body: &[u8]) -> Answer {
        let (method, path) = (&head.method, head.uri.path());
        tracing::info!(%method, path, "API request");
        let (deprecated, result) = match Request::parse(method, path, body) {
            Ok(parsed) => (parsed.deprecated, self.service.call(parsed.request).await),
            Err(fault) => (false, Err(fault)),
        };
        if deprecated {
            tracing::warn!(%method, path, "the request uses a deprecated field: cpu_template");
        }
        match result {
            Ok(reply) => Answer { deprecated, ..Answer::of_reply(reply) },
            Err(fault) => {
                tracing::error!(%method, path, %fault, "API request refused");
                Answer { deprecated, ..Answer::of_fault(fault) }
            }
        }
    }

    /// Refuses a body, and closes: what arrives next may be the rest of it.
    fn refuse_body(&self, error: &BodyError) -> Answer {
        let message = match error {
            BodyError::TooLong { size_bytes } => format!(
                "Request payload with size {size_bytes} is larger than the limit of {} allowed by server.",
                self.limits.payload_bytes_max
            ),
            BodyError::TooSlow | BodyError::Gone(_) => format!(
                "The body of the request did not arrive within {} s: send as much as Content-Length says.",
                self.limits.body_wait_max.as_secs_f32()
            ),
        };
        tracing::error!(message, "API request refused");
        Answer { is_last: true, ..Answer::of_fault(Fault::bad_request(message)) }
    }
}

fn asks_to_close(head: &Parts) -> bool {
    let connection = head.headers.get(CONNECTION).and_then(|value| value.to_str().ok());
    connection.is_some_and(|value| value.split(',').any(|token| token.trim().eq_ignore_ascii_case("close")))
}

/// An answer that is not HTTP yet.
struct Answer {
    status: StatusCode,
    payload: Option<Payload>,
    deprecated: bool,
    is_last: bool,
}

impl Answer {
    fn of_reply(reply: Reply) -> Self {
        let payload = reply.payload();
        let status = if payload.is_some() { StatusCode::OK } else { StatusCode::NO_CONTENT };
        Self { status, payload, deprecated: false, is_last: false }
    }

    fn of_fault(fault: Fault) -> Self {
        Self { status: fault.status, payload: Some(fault.payload()), deprecated: false, is_last: false }
    }

    /// The headers, in the order and spelling that clients know.
    fn into_response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::default());
        *response.status_mut() = self.status;
        response.extensions_mut().insert(ReasonPhrase::from_static(b""));
        let connection = if self.is_last { "close" } else { "keep-alive" };
        let headers = response.headers_mut();
        headers.insert(SERVER, HeaderValue::from_static("Firecracker API"));
        headers.insert(CONNECTION, HeaderValue::from_static(connection));
        if self.deprecated {
            headers.insert(DEPRECATION, HeaderValue::from_static("true"));
        }
        if let Some(payload) = self.payload {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(payload.content_type));
            headers.insert(CONTENT_LENGTH, payload.bytes.len().into());
            *response.body_mut() = Full::new(payload.bytes.into());
        }
        response
    }
}
