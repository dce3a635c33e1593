//! From a request to the service that answers it, and the last touch to what tonic answers by itself.
//!
//! gRPC goes by the service's name, REST by the path. Errors that tonic makes before a handler sees the request
//! get the codes and texts that clients know: an oversize message is `ResourceExhausted` as in grpc-go, one that
//! does not decode is `InvalidArgument`; and of a write they say that it was not applied.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Request, Response};
use hyper::body::Incoming;
use kvorum_proto::{OUTCOME, Outcome};
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::{Code, Status};

use crate::budget::hold;
use crate::metrics::Metrics;

/// A future that answers.
pub type Answering = Pin<Box<dyn Future<Output = Response<Body>> + Send>>;
/// What a gRPC service answers.
pub type GrpcAnswering = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

/// A gRPC service, whatever its type.
trait Grpc: Send + Sync {
    fn call(&self, request: Request<Incoming>) -> GrpcAnswering;
    fn call_within(&self, request: Request<Body>) -> GrpcAnswering;
}

impl<S> Grpc for S
where
    S: GeneratedService,
{
    fn call(&self, request: Request<Incoming>) -> GrpcAnswering {
        // The generated services are always ready.
        tonic::codegen::Service::call(&mut self.clone(), request)
    }

    fn call_within(&self, request: Request<Body>) -> GrpcAnswering {
        tonic::codegen::Service::call(&mut self.clone(), request)
    }
}

/// What tonic generates: a service for requests from the wire and from within the member.
pub trait GeneratedService:
    tonic::codegen::Service<
        Request<Incoming>,
        Response = Response<Body>,
        Error = Infallible,
        Future = GrpcAnswering,
    > + tonic::codegen::Service<
        Request<Body>,
        Response = Response<Body>,
        Error = Infallible,
        Future = GrpcAnswering,
    > + NamedService
    + Clone
    + Send
    + Sync
    + 'static
{
}

impl<S> GeneratedService for S where
    S: tonic::codegen::Service<
            Request<Incoming>,
            Response = Response<Body>,
            Error = Infallible,
            Future = GrpcAnswering,
        > + tonic::codegen::Service<
            Request<Body>,
            Response = Response<Body>,
            Error = Infallible,
            Future = GrpcAnswering,
        > + NamedService
        + Clone
        + Send
        + Sync
        + 'static
{
}

/// Whatever answers requests that are not gRPC.
pub trait Rest: Send + Sync {
    /// Answers one request.
    fn call(&self, request: Request<Incoming>) -> Answering;
}

/// A part of what another one answers: these paths and what lies below them.
pub(crate) struct Only<R> {
    inner: R,
    paths: &'static [&'static str],
}

impl<R> Only<R> {
    pub(crate) fn new(inner: R, paths: &'static [&'static str]) -> Self {
        Only { inner, paths }
    }
}

impl<R: Rest> Rest for Only<R> {
    fn call(&self, request: Request<Incoming>) -> Answering {
        let path = request.uri().path();
        let is_below = |own: &&str| {
            path.strip_prefix(own)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        match self.paths.iter().any(is_below) {
            true => self.inner.call(request),
            // As Go's router says it.
            false => Box::pin(async { plain(404, "404 page not found\n") }),
        }
    }
}

struct Entry {
    name: &'static str,
    service: Box<dyn Grpc>,
    /// Methods that write: their refusals carry an outcome.
    writes: &'static [&'static str],
}

/// The gRPC services of one listener. Cheap to clone.
#[derive(Clone, Default)]
pub struct Services(Arc<Offer>);

#[derive(Default)]
struct Offer {
    entries: Vec<Entry>,
    is_learner: Option<IsLearner>,
    metrics: Option<Arc<Metrics>>,
}

impl Services {
    fn find(&self, name: &str) -> Option<&Entry> {
        self.0.entries.iter().find(|entry| entry.name == name)
    }

    /// Whether a method writes.
    pub(crate) fn is_write(&self, service: &str, method: &str) -> bool {
        self.find(service)
            .is_some_and(|entry| entry.writes.contains(&method))
    }

    /// Counts a request, and refuses what a learner does not serve.
    fn admit(&self, service: &str, method: &str, headers: &HeaderMap) -> Result<(), Status> {
        if !OF_ETCD.iter().any(|package| service.starts_with(package)) {
            return Ok(());
        }
        if let Some(metrics) = &self.0.metrics {
            let version = headers.get("client-api-version");
            let version = version.and_then(|version| version.to_str().ok());
            metrics.client_requests.note(version, STREAMS.contains(&method));
        }
        let is_learner = || self.0.is_learner.as_ref().is_some_and(|is_learner| is_learner());
        match !OF_LEARNERS.contains(&method) && is_learner() {
            true => Err(Outcome::NotApplied.mark(not_by_learner())),
            false => Ok(()),
        }
    }

    /// Answers a gRPC request of this member's own. A reservation of memory stays with the answer's extensions.
    pub(crate) fn call_within(&self, request: Request<Body>) -> GrpcAnswering {
        let (service, method) = method_of(request.uri().path());
        let found = self
            .find(service)
            .ok_or_else(|| Status::unimplemented(format!("unknown service {service}")));
        let admitted = found.and_then(|entry| {
            self.admit(service, method, request.headers())?;
            Ok(entry)
        });
        let entry = match admitted {
            Ok(entry) => entry,
            Err(status) => return Box::pin(std::future::ready(Ok(status.into_http()))),
        };
        let is_write = entry.writes.contains(&method);
        let answering = entry.service.call_within(request);
        Box::pin(async move { Ok(touch_up(answering.await?, is_write)) })
    }
}

/// Service and method of a gRPC path.
fn method_of(path: &str) -> (&str, &str) {
    path.strip_prefix('/')
        .and_then(|path| path.split_once('/'))
        .unwrap_or_default()
}

/// What one listener serves. Built once, then shared.
#[derive(Clone, Default)]
pub struct Routes(Arc<Table>);

/// What etcd's services answer on a learner, beside serializable ranges, which the handlers tell apart.
const OF_LEARNERS: [&str; 4] = ["Status", "Snapshot", "Range", "RangeStream"];
/// Methods of etcd that are streams.
const STREAMS: [&str; 5] = ["Watch", "LeaseKeepAlive", "Snapshot", "RangeStream", "Observe"];
/// The packages of etcd's services; the health service is one of them there.
const OF_ETCD: [&str; 4] = ["etcdserverpb.", "v3lockpb.", "v3electionpb.", "grpc.health."];

/// Says whether this member is a learner.
type IsLearner = Box<dyn Fn() -> bool + Send + Sync>;

#[derive(Default)]
struct Table {
    grpc: Services,
    rest: Option<Arc<dyn Rest>>,
    /// What the listener is for, told to those who ask for something else.
    purpose: Option<&'static str>,
}

/// Builds [`Routes`].
#[derive(Default)]
pub struct RoutesBuilder {
    grpc: Offer,
    rest: Option<MakeRest>,
    purpose: Option<&'static str>,
    /// The gRPC services are for the rest alone.
    without_grpc: bool,
}

type MakeRest = Box<dyn FnOnce(Services) -> Arc<dyn Rest>>;

impl RoutesBuilder {
    /// Adds a generated gRPC service, the most used first; `writes` are its methods that write.
    pub fn grpc<S: GeneratedService>(mut self, service: S, writes: &'static [&'static str]) -> Self {
        self.grpc.entries.push(Entry {
            name: S::NAME,
            service: Box::new(service),
            writes,
        });
        self
    }

    /// While `is_learner` says so, etcd's services answer only what they do on a learner.
    pub(crate) fn learner(mut self, is_learner: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        self.grpc.is_learner = Some(Box::new(is_learner));
        self
    }

    /// Requests of etcd's services are counted here.
    pub(crate) fn counting(mut self, metrics: Arc<Metrics>) -> Self {
        self.grpc.metrics = Some(metrics);
        self
    }

    /// Sets what answers everything else, given the gRPC services.
    pub fn rest<R: Rest + 'static>(mut self, make: impl FnOnce(Services) -> R + 'static) -> Self {
        self.rest = Some(Box::new(|services| Arc::new(make(services))));
        self
    }

    /// Keeps gRPC from the wire: its services are only for what [`Self::rest`] makes.
    pub fn without_grpc(mut self) -> Self {
        self.without_grpc = true;
        self
    }

    /// Says what this listener is for, to those who mistake it for another.
    pub fn purpose(mut self, text: &'static str) -> Self {
        self.purpose = Some(text);
        self
    }

    /// Done.
    pub fn build(self) -> Routes {
        let grpc = Services(Arc::new(self.grpc));
        Routes(Arc::new(Table {
            rest: self.rest.map(|make| make(grpc.clone())),
            grpc: if self.without_grpc {
                Services::default()
            } else {
                grpc
            },
            purpose: self.purpose,
        }))
    }
}

/// What a learner answers to what it does not serve, in etcd's words.
pub(crate) fn not_by_learner() -> Status {
    Status::failed_precondition("etcdserver: rpc not supported for learner")
}

impl Routes {
    /// The names of the gRPC services.
    pub fn services(&self) -> impl Iterator<Item = &'static str> {
        self.0.grpc.0.entries.iter().map(|entry| entry.name)
    }
}

impl hyper::service::Service<Request<Incoming>> for Routes {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Routed;

    fn call(&self, request: Request<Incoming>) -> Routed {
        if !is_grpc(&request) {
            return match &self.0.rest {
                Some(rest) => Routed::Rest(rest.call(request)),
                None => {
                    let text = self.0.purpose.unwrap_or("only gRPC is served here");
                    Routed::Done(Some(plain(404, format!("{text}\n"))))
                }
            };
        }
        if request.version() < http::Version::HTTP_2 {
            return Routed::Done(Some(plain(505, "gRPC needs HTTP/2\n")));
        }
        let (service, method) = method_of(request.uri().path());
        match self.0.grpc.find(service) {
            Some(entry) => {
                let is_write = entry.writes.contains(&method);
                if let Err(refused) = self.0.grpc.admit(service, method, request.headers()) {
                    return Routed::Done(Some(refused.into_http()));
                }
                Routed::Grpc {
                    answering: entry.service.call(request),
                    is_write,
                }
            }
            None => {
                let why = format!("unknown service {service}");
                let text = self
                    .0
                    .purpose
                    .map_or(why.clone(), |purpose| format!("{why}: {purpose}"));
                Routed::Done(Some(Status::unimplemented(text).into_http()))
            }
        }
    }
}

fn is_grpc(request: &Request<Incoming>) -> bool {
    let kind = request.headers().get(CONTENT_TYPE);
    kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// A short answer in plain text.
pub(crate) fn plain(status: u16, text: impl Into<bytes::Bytes>) -> Response<Body> {
    let body = Body::new(http_body_util::Full::new(text.into()));
    let mut response = Response::new(body);
    *response.status_mut() = http::StatusCode::from_u16(status).expect("a status of this crate");
    response.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}

/// An answer on its way.
pub enum Routed {
    /// By a gRPC service.
    Grpc {
        /// The service's own future.
        answering: GrpcAnswering,
        /// Whether the method writes.
        is_write: bool,
    },
    /// By [`Rest`].
    Rest(Answering),
    /// By the router.
    Done(Option<Response<Body>>),
}

impl Future for Routed {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut *self {
            Routed::Grpc { answering, is_write } => {
                let is_write = *is_write;
                answering
                    .as_mut()
                    .poll(context)
                    .map_ok(|response| hold(touch_up(response, is_write)))
            }
            Routed::Rest(answering) => answering.as_mut().poll(context).map(Ok),
            Routed::Done(response) => Poll::Ready(Ok(response.take().expect("polled after its end"))),
        }
    }
}

/// What tonic answered by itself, in the words that clients know. Answers of handlers pass unchanged: only an
/// error that comes without a body carries its status in the header.
fn touch_up(mut response: Response<Body>, is_write: bool) -> Response<Body> {
    if !response.headers().contains_key(Status::GRPC_STATUS) {
        return response;
    }
    if let Some(status) = Status::from_header_map(response.headers()) {
        if let Some(better) = translated(&status) {
            response = better.into_http();
        }
        if is_write && status.code() != Code::Ok && !response.headers().contains_key(OUTCOME) {
            let outcome = HeaderValue::from_static(Outcome::NotApplied.as_str());
            response.headers_mut().insert(OUTCOME, outcome);
        }
    }
    response
}

/// Tonic's own status as etcd's clients know it.
fn translated(status: &Status) -> Option<Status> {
    let text = status.message();
    match status.code() {
        Code::OutOfRange if text.starts_with("Error, decoded message length too large") => {
            let sizes: Vec<&str> = text
                .split(|c: char| !c.is_ascii_digit())
                .filter(|n| !n.is_empty())
                .collect();
            let (found, max) = (sizes.first().copied()?, sizes.get(1).copied()?);
            let text = format!("grpc: received message larger than max ({found} vs. {max})");
            Some(Status::resource_exhausted(text))
        }
        Code::Internal if text.starts_with("failed to decode Protobuf message") => {
            Some(Status::invalid_argument(text))
        }
        _ => None,
    }
}
