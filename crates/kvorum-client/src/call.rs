//! One call: attempts at one endpoint after another until an answer, a refusal, or the deadline.
//!
//! A read may be sent again at any time. A write is sent again only if the last attempt certainly did not take
//! effect, or under the same number of a session, by which the cluster recognises it.

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout};
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::Client;
use crate::error::{Error, Verdict, describe, judge, rejected};
use crate::login::Relogin;
use crate::proto::v1::{self, kvorum_client::KvorumClient};
use crate::session::{Acquired, Permit};

/// The metadata that names a write (see [`crate::session`]).
const SESSION_METADATA: &str = "kvorum-session";
/// First and longest pause between attempts; each is drawn from its upper half.
const BACKOFF_FIRST: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_millis(500);

/// A last attempt that has less time than this is not held against its server.
const REST: Duration = Duration::from_millis(500);

/// A pause that doubles, with jitter, so that clients do not come back all at once.
#[derive(Debug)]
pub(crate) struct Backoff(Duration);

impl Backoff {
    pub(crate) fn new() -> Self {
        Backoff(BACKOFF_FIRST)
    }

    pub(crate) fn next(&mut self) -> Duration {
        let pause = self.0.mul_f64(0.5 + fastrand::f64() / 2.0);
        self.0 = (self.0 * 2).min(BACKOFF_MAX);
        pause
    }
}

/// Most times that one call logs in anew.
pub(crate) const LOGINS_MAX: usize = 3;

/// How an attempt ended that brought no answer.
struct Failure {
    verdict: Verdict,
    message: String,
    status: Option<Status>,
}

impl Client {
    /// A call that may be repeated at will.
    pub(crate) async fn read<Q, A, F, R>(&self, request: Q, send: F) -> Result<A, Error>
    where
        Q: Clone,
        F: Fn(Channel, Request<Q>) -> R,
        R: Future<Output = Result<Response<A>, Status>>,
    {
        self.read_until(Instant::now() + self.inner.timeout, request, send)
            .await
    }

    async fn read_until<Q, A, F, R>(&self, deadline: Instant, request: Q, send: F) -> Result<A, Error>
    where
        Q: Clone,
        F: Fn(Channel, Request<Q>) -> R,
        R: Future<Output = Result<Response<A>, Status>>,
    {
        let mut attempts = Attempts::new(self, deadline);
        loop {
            match attempts
                .one(&request, None, self.inner.attempt_timeout, &send)
                .await
            {
                Ok(answer) => return Ok(answer),
                Err(failure) if attempts.relogin(&failure).await.is_some() => {}
                Err(Failure {
                    verdict: Verdict::Refused | Verdict::Unimplemented,
                    status: Some(status),
                    ..
                }) => {
                    return Err(rejected(&status));
                }
                Err(failure) => attempts.pause(failure.message).await?,
            }
        }
    }

    /// A write: under a session, if the cluster has them.
    pub(crate) async fn write<Q, A, F, R>(&self, request: Q, send: F) -> Result<A, Error>
    where
        Q: Clone,
        F: Fn(Channel, Request<Q>) -> R,
        R: Future<Output = Result<Response<A>, Status>>,
    {
        let deadline = Instant::now() + self.inner.timeout;
        let permit = self.permit(deadline).await?;
        self.write_until(deadline, permit, request, send).await
    }

    /// A change of the cluster itself, which knows no sessions.
    pub(crate) async fn admin<Q, A, F, R>(&self, request: Q, send: F) -> Result<A, Error>
    where
        Q: Clone,
        F: Fn(Channel, Request<Q>) -> R,
        R: Future<Output = Result<Response<A>, Status>>,
    {
        self.write_until(Instant::now() + self.inner.timeout, None, request, send)
            .await
    }

    async fn write_until<Q, A, F, R>(
        &self,
        deadline: Instant,
        mut permit: Option<Permit>,
        request: Q,
        send: F,
    ) -> Result<A, Error>
    where
        Q: Clone,
        F: Fn(Channel, Request<Q>) -> R,
        R: Future<Output = Result<Response<A>, Status>>,
    {
        let mut attempts = Attempts::new(self, deadline);
        // Whether an earlier attempt may have taken effect.
        let mut doubtful = false;
        loop {
            let at_most = if permit.is_some() {
                self.inner.attempt_timeout
            } else {
                self.inner.timeout
            };
            let failure = match attempts.one(&request, permit.as_ref(), at_most, &send).await {
                Ok(answer) => {
                    permit.into_iter().for_each(Permit::answered);
                    return Ok(answer);
                }
                Err(failure) => failure,
            };
            match attempts.relogin(&failure).await {
                // Under this number the session keeps the refusal. That an earlier attempt was refused likewise, or
                // came to nothing, is known only if there was none whose fate is open.
                Some(Relogin::Outdated) if !doubtful => {
                    if let Some(refused) = permit.take() {
                        refused.answered();
                        permit = self.permit(deadline).await?;
                    }
                    continue;
                }
                Some(_) => continue,
                None => {}
            }
            match failure.verdict {
                Verdict::Refused if doubtful && Relogin::of(&failure.message).is_some() => {
                    return Err(Error::Unknown {
                        message: failure.message,
                    });
                }
                Verdict::Refused | Verdict::Unimplemented => {
                    permit.into_iter().for_each(Permit::answered);
                    let message = failure.message;
                    return Err(failure
                        .status
                        .map_or(Error::Protocol(message), |status| rejected(&status)));
                }
                // Nothing was ever sent under this number but what this refusal answers: take a fresh one.
                Verdict::SessionExpired if !doubtful => {
                    drop(permit.take());
                    permit = self.permit(deadline).await?;
                }
                Verdict::SessionExpired => {
                    return Err(Error::Unknown {
                        message: failure.message,
                    });
                }
                Verdict::Unknown if permit.is_none() => {
                    return Err(Error::Unknown {
                        message: failure.message,
                    });
                }
                Verdict::Unknown => doubtful = true,
                Verdict::Retry => {}
            }
            if let Err(given_up) = attempts.pause(failure.message).await {
                return match (doubtful, given_up) {
                    (true, Error::Unavailable { message }) => Err(Error::Unknown { message }),
                    (_, given_up) => {
                        permit.into_iter().for_each(Permit::answered);
                        Err(given_up)
                    }
                };
            }
        }
    }

    /// A number to write under; registers a session where none has room.
    async fn permit(&self, deadline: Instant) -> Result<Option<Permit>, Error> {
        if !self.inner.use_sessions {
            return Ok(None);
        }
        loop {
            let acquired = tokio::time::timeout_at(deadline, self.inner.sessions.acquire()).await;
            match acquired {
                Ok(Acquired::Permit(permit)) => return Ok(Some(permit)),
                Ok(Acquired::Unsupported) => return Ok(None),
                Ok(Acquired::Register(registration)) => {
                    let send = |channel, request| async move {
                        KvorumClient::new(channel).register_session(request).await
                    };
                    let registered = self
                        .read_until(deadline, v1::RegisterSessionRequest {}, send)
                        .await;
                    match registered {
                        Ok(answer) => registration.registered(answer.session_id),
                        Err(Error::Rejected {
                            code: tonic::Code::Unimplemented,
                            ..
                        }) => registration.unsupported(),
                        Err(error) => return Err(error),
                    }
                }
                Err(_) => {
                    let message = "too many writes in flight: no session has room".to_owned();
                    return Err(Error::Unavailable { message });
                }
            }
        }
    }
}

/// Whether the transport gave up because the time that it was told is over: no word of a server.
fn is_own_timeout(status: &Status) -> bool {
    let causes = std::iter::successors(std::error::Error::source(status), |error| error.source());
    causes
        .into_iter()
        .any(|cause| cause.is::<tonic::TimeoutExpired>())
}

/// The attempts of one call.
struct Attempts<'a> {
    client: &'a Client,
    started: Instant,
    /// What the last attempt failed with.
    said: Option<String>,
    deadline: Instant,
    backoff: Backoff,
    /// Attempts since the last pause: each endpoint is tried once before one.
    in_this_round: usize,
    logins: usize,
}

impl<'a> Attempts<'a> {
    fn new(client: &'a Client, deadline: Instant) -> Self {
        Attempts {
            client,
            started: Instant::now(),
            said: None,
            deadline,
            backoff: Backoff::new(),
            in_this_round: 0,
            logins: 0,
        }
    }

    /// Whether the attempt failed for the want of another login, and is to be repeated at once.
    async fn relogin(&mut self, failure: &Failure) -> Option<Relogin> {
        if self.logins >= LOGINS_MAX || failure.verdict != Verdict::Refused {
            return None;
        }
        self.logins += 1;
        self.client.relogin(failure.status.as_ref()?.message()).await
    }

    /// One attempt, and its end noted.
    async fn one<Q, A, F, R>(
        &mut self,
        request: &Q,
        permit: Option<&Permit>,
        at_most: Duration,
        send: &F,
    ) -> Result<A, Failure>
    where
        Q: Clone,
        F: Fn(Channel, Request<Q>) -> R,
        R: Future<Output = Result<Response<A>, Status>>,
    {
        let result = self.attempt(request, permit, at_most, send).await;
        let message = match &result {
            Err(failure) if matches!(failure.verdict, Verdict::Retry | Verdict::Unknown) => {
                Some(failure.message.as_str())
            }
            _ => None,
        };
        self.client.note_attempt(self.started, message);
        self.said = message.map(str::to_owned);
        result
    }

    async fn attempt<Q, A, F, R>(
        &mut self,
        request: &Q,
        permit: Option<&Permit>,
        at_most: Duration,
        send: &F,
    ) -> Result<A, Failure>
    where
        Q: Clone,
        F: Fn(Channel, Request<Q>) -> R,
        R: Future<Output = Result<Response<A>, Status>>,
    {
        self.in_this_round += 1;
        let endpoints = &self.client.inner.endpoints;
        let (position, endpoint) = endpoints.preferred();
        let remaining = || self.deadline.saturating_duration_since(Instant::now());
        let channel = match endpoint.channel(remaining().min(at_most)).await {
            Ok(channel) => channel,
            Err(message) => {
                endpoints.failed(position);
                return Err(Failure {
                    verdict: Verdict::Retry,
                    message,
                    status: None,
                });
            }
        };
        let wait = remaining().min(at_most);
        let mut request = Request::new(request.clone());
        request.set_timeout(wait);
        if let Err(status) = self.client.sign(&channel, wait, &mut request).await {
            // The request itself was never sent.
            let verdict = match judge(&status) {
                Verdict::Unknown => Verdict::Retry,
                verdict => verdict,
            };
            if verdict == Verdict::Retry {
                endpoints.failed(position);
            }
            let message = format!("{}: {}", endpoint.name, describe(&status));
            return Err(Failure {
                verdict,
                message,
                status: Some(status),
            });
        }
        if let Some(permit) = permit {
            let value = AsciiMetadataValue::try_from(permit.metadata()).expect("digits and a dash");
            request.metadata_mut().insert(SESSION_METADATA, value);
        }
        let status = match timeout(wait, send(channel, request)).await {
            Ok(Ok(answer)) => return Ok(answer.into_inner()),
            Ok(Err(status)) if !is_own_timeout(&status) => status,
            Ok(Err(_)) | Err(_) => {
                endpoints.failed(position);
                endpoint.disconnect().await;
                // The rest of the time proves nothing: what was said before tells more.
                let said = self.said.take().filter(|_| wait < REST);
                let message = said.unwrap_or(format!("{} did not answer within {wait:.1?}", endpoint.name));
                return Err(Failure {
                    verdict: Verdict::Unknown,
                    message,
                    status: None,
                });
            }
        };
        let verdict = judge(&status);
        if !matches!(verdict, Verdict::Refused | Verdict::SessionExpired) {
            endpoints.failed(position);
        }
        let broken = std::error::Error::source(&status).is_some();
        if broken {
            endpoint.disconnect().await;
        }
        let message = format!("{}: {}", endpoint.name, describe(&status));
        Err(Failure {
            verdict,
            message,
            status: Some(status),
        })
    }

    /// Waits before the next attempt, or gives up with what was seen last.
    async fn pause(&mut self, message: String) -> Result<(), Error> {
        let now = Instant::now();
        if now >= self.deadline {
            return Err(Error::Unavailable { message });
        }
        if self.in_this_round >= self.client.inner.endpoints.len() {
            self.in_this_round = 0;
            sleep_until((now + self.backoff.next()).min(self.deadline)).await;
            if Instant::now() >= self.deadline {
                return Err(Error::Unavailable { message });
            }
        }
        Ok(())
    }
}
