//! The requests of the delivery protocol and their answers.
//!
//! `POST /v1/frames` takes frames, `GET /v1/health` tells the counters. A body is bounded
//! before and while it is read; the number of bodies in memory is bounded too, and those that
//! wait for a place get one in turn. Every refusal has a kind, is counted under it and says in `detail` what is wrong and what to do.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use log::Level;
use rustls::pki_types::CertificateDer;
use serde_json::json;
use tokio::sync::Semaphore;

use crate::body::{self, Refusal};
use crate::compact::Compactor;
use crate::health::{self, Health};
use crate::layout;
use crate::logger;
use crate::reload::Rules;
use crate::store::{Store, Stored};
use crate::tls;

const FRAMES_TYPE: &str = "application/vnd.sysflow.frames";

/// When a client may come again after 503, s.
const RETRY_BUSY_S: u32 = 5;
/// When a client may come again after the store failed, s.
const RETRY_STORE_S: u32 = 30;
/// When a client may come again whose share of the store is full, s. Somebody has to make room.
const RETRY_FULL_S: u32 = 300;

/// What is read and thrown away of a body that was refused, so that the client, which sends
/// before it reads, gets to the answer: at most so many bytes, for at most so long.
const DRAIN_BYTES_MAX: usize = 64 << 20;
const DRAIN_TIME_MAX: Duration = Duration::from_secs(5);

/// The parts that requests need.
pub(crate) struct Receiver {
    pub(crate) store: Store,
    pub(crate) compactor: Compactor,
    pub(crate) health: Arc<Health>,
    pub(crate) uploads: Arc<Semaphore>,
    pub(crate) body_bytes_max: usize,
    pub(crate) request_timeout: Duration,
    pub(crate) rules: Arc<Rules>,
}

/// Who asks.
#[derive(Clone)]
pub(crate) struct Client {
    /// Peer address, for the log.
    pub(crate) address: std::net::SocketAddr,
    /// The agent's id, or why the certificate has none that can be used.
    pub(crate) agent: Result<String, String>,
    /// The certificate, and those between it and the CA.
    pub(crate) chain: Arc<[CertificateDer<'static>]>,
    /// The rules by which the connection was let in.
    pub(crate) server: tls::Server,
    /// The connection is one too many: everything is answered with 503.
    pub(crate) surplus: bool,
}

type Answer = Response<Full<Bytes>>;

struct Refused {
    status: StatusCode,
    kind: &'static str,
    detail: String,
    retry_after_s: Option<u32>,
}

fn refuse(status: StatusCode, kind: &'static str, detail: impl Into<String>) -> Refused {
    Refused { status, kind, detail: detail.into(), retry_after_s: None }
}

fn busy(detail: impl Into<String>, retry_after_s: u32) -> Refused {
    Refused {
        retry_after_s: Some(retry_after_s),
        ..refuse(StatusCode::SERVICE_UNAVAILABLE, "unavailable", detail)
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Malformed(detail) => refuse(StatusCode::BAD_REQUEST, "malformed", detail),
            Refusal::Foreign(detail) => refuse(StatusCode::FORBIDDEN, "foreign-frame", detail),
            Refusal::TooLarge(detail) => refuse(StatusCode::PAYLOAD_TOO_LARGE, "too-large", detail),
            Refusal::GenerationLost(detail) => {
                refuse(StatusCode::CONFLICT, "generation-lost", detail)
            }
            Refusal::Conflict(detail) => refuse(StatusCode::CONFLICT, "conflict", detail),
            Refusal::Full(detail) => Refused {
                retry_after_s: Some(RETRY_FULL_S),
                ..refuse(StatusCode::INSUFFICIENT_STORAGE, "quota", detail)
            },
            Refusal::Unavailable(error) => {
                logger::seldom(Level::Error, "store", format_args!("store: {error}"));
                busy(format!("store: {error}: try again"), RETRY_STORE_S)
            }
        }
    }
}

impl Receiver {
    /// Answers one request, in bounded time.
    pub(crate) async fn answer(
        self: Arc<Self>,
        client: Client,
        request: Request<Incoming>,
    ) -> Answer {
        let expects = request.headers().contains_key(header::EXPECT);
        let (parts, mut body) = request.into_parts();
        // Waiting for room, the body and the disk have bounds of their own.
        let answered = tokio::time::timeout(
            3 * self.request_timeout,
            self.route(&client, &parts.method, parts.uri.path(), &parts.headers, &mut body),
        );
        let answered = answered
            .await
            .unwrap_or_else(|_| Err(busy("store: takes too long: try again", RETRY_STORE_S)));
        match answered {
            Ok(answer) => answer,
            Err(refused) => {
                logger::seldom(
                    Level::Warn,
                    refused.kind,
                    format_args!(
                        "{}: {} {}: {} {}: {}",
                        client.address,
                        parts.method,
                        parts.uri.path(),
                        refused.status.as_u16(),
                        refused.kind,
                        refused.detail
                    ),
                );
                self.health.update(|counters| health::count(&mut counters.refused, refused.kind));
                // A client that waits for leave to send has nothing on the way.
                let unread = !body.is_end_stream() && !expects;
                if unread {
                    tokio::spawn(drain(body));
                }
                refused.answer(unread || client.surplus)
            }
        }
    }

    async fn route(
        self: &Arc<Self>,
        client: &Client,
        method: &Method,
        path: &str,
        headers: &header::HeaderMap,
        body: &mut Incoming,
    ) -> Result<Answer, Refused> {
        if client.surplus {
            return Err(busy("all connections are in use: try again", RETRY_BUSY_S));
        }
        match (path, method) {
            ("/v1/frames", &Method::POST) => self.take_frames(client, headers, body).await,
            ("/v1/health", &Method::GET) => {
                let mut counters = self.health.snapshot();
                counters.agents = self.store.agents();
                Ok(json_answer(StatusCode::OK, &json!(counters)))
            }
            ("/v1/frames" | "/v1/health", _) => Err(refuse(
                StatusCode::METHOD_NOT_ALLOWED,
                "method",
                format!("{method} is not for {path}: POST /v1/frames, GET /v1/health"),
            )),
            _ => Err(refuse(
                StatusCode::NOT_FOUND,
                "path",
                format!("{path} is not here: POST /v1/frames, GET /v1/health"),
            )),
        }
    }

    async fn take_frames(
        self: &Arc<Self>,
        client: &Client,
        headers: &header::HeaderMap,
        body: &mut Incoming,
    ) -> Result<Answer, Refused> {
        let agent = match &client.agent {
            Ok(agent) => agent.clone(),
            Err(why) => return Err(refuse(StatusCode::UNAUTHORIZED, "identity", why)),
        };
        if let Err(why) = client.server.check(&client.chain) {
            return Err(refuse(StatusCode::UNAUTHORIZED, "identity", why));
        }
        if self.rules.denies(&agent) {
            let detail = format!("agent {agent:?} is on this collector's list of denied agents");
            return Err(refuse(StatusCode::FORBIDDEN, "denied", detail));
        }
        let content_type = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
        if content_type != Some(FRAMES_TYPE.as_bytes()) {
            let given = content_type.map(String::from_utf8_lossy).unwrap_or_default();
            return Err(refuse(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "content-type",
                format!("content type is {given:?}: send {FRAMES_TYPE}"),
            ));
        }
        // In turn: whoever holds the places with slow bodies cannot be faster than the others.
        let turn = Arc::clone(&self.uploads).acquire_owned();
        let Ok(Ok(permit)) = tokio::time::timeout(self.request_timeout / 2, turn).await else {
            return Err(busy("too many uploads at a time: try again", RETRY_BUSY_S));
        };
        let bytes = tokio::time::timeout(self.request_timeout, self.read(body));
        let bytes = bytes.await.map_err(|_| {
            let seconds = self.request_timeout.as_secs();
            let detail = format!("body took more than {seconds} s: send less at a time");
            refuse(StatusCode::REQUEST_TIMEOUT, "timeout", detail)
        })??;
        let receiver = Arc::clone(self);
        let chain = Arc::clone(&client.chain);
        // Not stopped by the timeout: what has begun to be stored is stored whole.
        let stored = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let frames = body::frames(&agent, &bytes)?;
            // Before the frames: seals in them may be signed with it.
            receiver.store.keep_certificate(&agent, &chain)?;
            let mut stored = receiver.store.put(&agent, &frames)?;
            receiver.compactor.mark(std::mem::take(&mut stored.generations));
            receiver.health.update(|counters| {
                counters.uploads += 1;
                counters.frames_stored += stored.new;
                counters.frames_duplicate += stored.duplicates;
            });
            Ok::<Stored, Refusal>(stored)
        });
        let stored = stored.await.map_err(|error| {
            log::error!("upload: {error}");
            busy("internal error: try again", RETRY_STORE_S)
        })??;
        let streams: Vec<_> = stored
            .streams
            .iter()
            .map(|stream| {
                json!({
                    "run": layout::hex(&stream.run),
                    "class": stream.class,
                    "contiguous": stream.contiguous,
                    "holes": stream.holes,
                })
            })
            .collect();
        Ok(json_answer(StatusCode::OK, &json!({ "streams": streams, "time_ns": unix_time_ns() })))
    }

    /// Reads a body of bounded size.
    async fn read(&self, body: &mut Incoming) -> Result<Vec<u8>, Refused> {
        let limit = self.body_bytes_max;
        let too_large = |size: &str| {
            let detail = format!("body of {size} bytes: send at most {limit} at a time");
            refuse(StatusCode::PAYLOAD_TOO_LARGE, "too-large", detail)
        };
        let announced = body.size_hint();
        if announced.lower() > limit as u64 {
            return Err(too_large(&announced.lower().to_string()));
        }
        // Memory is taken when it is written; a vector that grows would take more on the way.
        let capacity = announced.upper().map_or(limit, |upper| limit.min(upper as usize));
        let mut bytes = Vec::with_capacity(capacity);
        while let Some(part) = body.frame().await {
            let part = part.map_err(|error| {
                let detail = format!("body ends early ({error}): send it anew");
                refuse(StatusCode::BAD_REQUEST, "malformed", detail)
            })?;
            if let Some(data) = part.data_ref() {
                if bytes.len() + data.len() > limit {
                    return Err(too_large(&format!("more than {limit}")));
                }
                bytes.extend_from_slice(data);
            }
        }
        Ok(bytes)
    }
}

impl Refused {
    fn answer(self, close: bool) -> Answer {
        let body = json!({ "error": self.kind, "detail": self.detail });
        let mut answer = json_answer(self.status, &body);
        if let Some(seconds) = self.retry_after_s {
            answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if close {
            answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        answer
    }
}

fn json_answer(status: StatusCode, body: &serde_json::Value) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(format!("{body}\n"))));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

async fn drain(mut body: Incoming) {
    let reading = async {
        let mut bytes = 0;
        while let Some(Ok(part)) = body.frame().await {
            bytes += part.data_ref().map_or(0, Bytes::len);
            if bytes > DRAIN_BYTES_MAX {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(DRAIN_TIME_MAX, reading).await;
}

fn unix_time_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
