//! Locks and elections, which wait as long as it takes: a lost connection is made anew, and the lease finds its place
//! again.

use std::future::Future;

use bytes::Bytes;
use tokio::time::Instant;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::call::{Backoff, LOGINS_MAX};
use crate::error::{Verdict, describe, judge, rejected};
use crate::proto::election::election_client::ElectionClient;
use crate::proto::lock::lock_client::LockClient;
use crate::proto::{election, lock};
use crate::{Client, Error};

/// What etcd's servers say of a lock whose key is gone when its turn comes.
const EXPIRED: &str = "session is expired";

/// These services report every failed step as `Unknown`; its words tell what it was.
fn restored(status: Status) -> Status {
    // Of a broken connection it is the code, too, but then with a cause.
    if status.code() != Code::Unknown || std::error::Error::source(&status).is_some() {
        return status;
    }
    const PASSING: [&str; 5] = [
        "etcdserver: request timed out",
        "etcdserver: no leader",
        "etcdserver: leader changed",
        "etcdserver: server stopped",
        "etcdserver: too many requests",
    ];
    let passes = PASSING.iter().any(|text| status.message().starts_with(text));
    let code = if passes {
        Code::Unavailable
    } else {
        Code::FailedPrecondition
    };
    Status::with_metadata(code, status.message(), status.metadata().clone())
}

impl Client {
    /// Waits until the lease holds the lock `name`, without a deadline. Dropping the future gives the place up.
    ///
    /// # Errors
    /// [`Error::Rejected`], with a lease that is not there or ends meanwhile, for example.
    pub async fn lock(&self, name: impl Into<Bytes>, lease: i64) -> Result<lock::LockResponse, Error> {
        let request = lock::LockRequest {
            name: name.into(),
            lease,
        };
        self.wait(request, lease, |channel, request| async move {
            LockClient::new(channel).lock(request).await
        })
        .await
    }

    /// Gives a lock up. `key` is what [`Client::lock`] answered.
    ///
    /// # Errors
    /// As of every write: see [`Error`].
    pub async fn unlock(&self, key: impl Into<Bytes>) -> Result<lock::UnlockResponse, Error> {
        let request = lock::UnlockRequest { key: key.into() };
        self.write(request, |channel, request| async move {
            LockClient::new(channel).unlock(request).await.map_err(restored)
        })
        .await
    }

    /// Waits until the lease leads the election `name`, without a deadline, and says `value` then. Dropping the
    /// future gives the place up.
    ///
    /// # Errors
    /// [`Error::Rejected`], with a lease that is not there or ends meanwhile, for example.
    pub async fn campaign(
        &self,
        name: impl Into<Bytes>,
        lease: i64,
        value: impl Into<Bytes>,
    ) -> Result<election::CampaignResponse, Error> {
        let request = election::CampaignRequest {
            name: name.into(),
            lease,
            value: value.into(),
        };
        self.wait(request, lease, |channel, request| async move {
            ElectionClient::new(channel).campaign(request).await
        })
        .await
    }

    /// Changes what the leader says.
    ///
    /// # Errors
    /// As of every write, see [`Error`]; [`Error::Rejected`] if it leads no more.
    pub async fn proclaim(
        &self,
        leader: election::LeaderKey,
        value: impl Into<Bytes>,
    ) -> Result<election::ProclaimResponse, Error> {
        let request = election::ProclaimRequest {
            leader: Some(leader),
            value: value.into(),
        };
        self.write(request, |channel, request| async move {
            let mut client = ElectionClient::new(channel);
            client.proclaim(request).await.map_err(restored)
        })
        .await
    }

    /// Gives a leadership up.
    ///
    /// # Errors
    /// As of every write: see [`Error`].
    pub async fn resign(&self, leader: election::LeaderKey) -> Result<election::ResignResponse, Error> {
        let request = election::ResignRequest { leader: Some(leader) };
        self.write(request, |channel, request| async move {
            ElectionClient::new(channel)
                .resign(request)
                .await
                .map_err(restored)
        })
        .await
    }

    /// Who leads the election `name`, and what they say, from now on and at each change.
    pub fn observe(&self, name: impl Into<Bytes>) -> Observer {
        Observer {
            client: self.clone(),
            name: name.into(),
            stream: None,
            seen: 0,
        }
    }

    /// A call that waits for others. To send it again with the same lease changes nothing.
    async fn wait<Q, A, F, R>(&self, request: Q, lease: i64, send: F) -> Result<A, Error>
    where
        Q: Clone,
        F: Fn(Channel, Request<Q>) -> R,
        R: Future<Output = Result<Response<A>, Status>>,
    {
        let (started, mut backoff, mut logins) = (Instant::now(), Backoff::new(), 0);
        loop {
            let status = match self.attempt_to_wait(&request, &send).await {
                Ok(Ok(answer)) => {
                    self.note_attempt(started, None);
                    return Ok(answer);
                }
                Ok(Err(status)) => restored(status),
                Err(message) => Status::unavailable(message),
            };
            if self.is_to_log_in(&status, &mut logins).await {
                continue;
            }
            match judge(&status) {
                // A connection that was lost gave up the place, perhaps after it was found again through another.
                Verdict::Refused
                    if status.message().ends_with(EXPIRED)
                        && self.lease_time_to_live(lease, false).await?.ttl >= 0 => {}
                Verdict::Refused | Verdict::Unimplemented => return Err(rejected(&status)),
                _ => {}
            }
            self.note_attempt(started, Some(&describe(&status)));
            tokio::time::sleep(backoff.next()).await;
        }
    }

    /// Whether a call that failed so is to be sent again with another login. `logins` counts those in a row: who waits
    /// for long may outlive many tokens.
    async fn is_to_log_in(&self, status: &Status, logins: &mut usize) -> bool {
        let again = *logins < LOGINS_MAX && self.relogin(status.message()).await.is_some();
        *logins = if again { *logins + 1 } else { 0 };
        again
    }

    /// One attempt; the outer error is of the connection.
    async fn attempt_to_wait<Q, A, F, R>(&self, request: &Q, send: &F) -> Result<Result<A, Status>, String>
    where
        Q: Clone,
        F: Fn(Channel, Request<Q>) -> R,
        R: Future<Output = Result<Response<A>, Status>>,
    {
        let (position, endpoint) = self.inner.endpoints.preferred();
        let channel = endpoint
            .channel(self.inner.attempt_timeout)
            .await
            .inspect_err(|_| self.inner.endpoints.failed(position))?;
        let mut request = with_leader(request.clone());
        let signed = self
            .sign(&channel, self.inner.attempt_timeout, &mut request)
            .await;
        let answer = match signed {
            Ok(()) => send(channel, request).await.map(Response::into_inner),
            Err(status) => Err(status),
        };
        if let Err(status) = &answer {
            let verdict = judge(status);
            if !matches!(verdict, Verdict::Refused) {
                self.inner.endpoints.failed(position);
            }
            if std::error::Error::source(status).is_some() {
                endpoint.disconnect().await;
            }
        }
        Ok(answer)
    }
}

/// A request to a member that ends it rather than to wait without a leader.
fn with_leader<Q>(message: Q) -> Request<Q> {
    let mut request = Request::new(message);
    request
        .metadata_mut()
        .insert("hasleader", AsciiMetadataValue::from_static("true"));
    request
}

/// One who follows an election. It connects when it is asked for its first item, and again when it must.
#[derive(Debug)]
pub struct Observer {
    client: Client,
    name: Bytes,
    stream: Option<(usize, Streaming<election::LeaderResponse>)>,
    /// The last revision that was told.
    seen: i64,
}

impl Observer {
    /// The next leader, or the next thing that the leader says. What changes while there is no connection may be
    /// passed over: then the present state comes next.
    ///
    /// # Errors
    /// [`Error::Rejected`] if the server refuses the observer.
    pub async fn next(&mut self) -> Result<election::LeaderResponse, Error> {
        let (started, mut backoff, mut logins) = (Instant::now(), Backoff::new(), 0);
        loop {
            let status = match &mut self.stream {
                Some((position, stream)) => match stream.message().await {
                    Ok(Some(answer)) => {
                        self.client.note_attempt(started, None);
                        let revision = answer.kv.as_ref().map_or(0, |kv| kv.mod_revision);
                        if revision > self.seen {
                            self.seen = revision;
                            return Ok(answer);
                        }
                        continue;
                    }
                    ended => {
                        self.client.inner.endpoints.failed(*position);
                        self.stream = None;
                        ended
                            .err()
                            .unwrap_or_else(|| Status::unavailable("the server ended the stream"))
                    }
                },
                None => {
                    let request = election::LeaderRequest {
                        name: self.name.clone(),
                    };
                    let position = self.client.inner.endpoints.preferred().0;
                    let open =
                        |channel, request| async move { ElectionClient::new(channel).observe(request).await };
                    match self.client.attempt_to_wait(&request, &open).await {
                        Ok(Ok(stream)) => {
                            self.stream = Some((position, stream));
                            continue;
                        }
                        Ok(Err(status)) => status,
                        Err(message) => Status::unavailable(message),
                    }
                }
            };
            let status = restored(status);
            if self.client.is_to_log_in(&status, &mut logins).await {
                continue;
            }
            if matches!(judge(&status), Verdict::Refused | Verdict::Unimplemented) {
                return Err(rejected(&status));
            }
            self.client.note_attempt(started, Some(&describe(&status)));
            tokio::time::sleep(backoff.next()).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_tell_what_the_code_does_not() {
        let check = |text: &str, expected: Verdict| {
            assert_eq!(judge(&restored(Status::unknown(text))), expected, "{text}");
        };
        check("etcdserver: requested lease not found", Verdict::Refused);
        check("election: no leader", Verdict::Refused);
        check("mutex: session is expired", Verdict::Refused);
        check(
            "etcdserver: request timed out, possibly due to previous leader failure",
            Verdict::Unknown,
        );
        let stopped = Status::unavailable("etcdserver: server stopped");
        assert_eq!(judge(&restored(stopped)), Verdict::Unknown);
    }
}
