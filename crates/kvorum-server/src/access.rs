//! Who asks, and whether they may: the one gate between the surfaces and the state.
//!
//! Every surface (etcd's services, `kvorum.v1`, those of the replaced systems, REST, and whatever comes next) gets at
//! keys, leases and settings only through the functions of [`Core`] in this module and [`Core::write`]; the functions
//! that read the store ([`reads`]) can be called from here alone. So a new adapter needs no check of its own, and cannot
//! forget one. What is about members rather than keys begins with [`Core::require_user`] or [`Core::require_admin`].
//!
//! A request says who asks by a token in its metadata (`token`, or `authorization`, with or without `Bearer`). While
//! authentication is off nobody is asked. What is read is checked against the state as it is here, after the read
//! barrier of a linearizable read; what is written is checked before it is proposed, and again, by every replica alike,
//! when it is applied ([`kvorum_mvcc::AuthState::check_command`]): that check decides. Whatever was checked at an older
//! revision of users, roles and permissions is refused.

pub(crate) mod passwords;
pub mod reads;
pub(crate) mod tokens;

use bytes::Bytes;
use kvorum_model::{
    Access, AuthCommand, Caller, Command, CommandLimits, Error, KeyRange, RangeRequest, RangeResponse,
    Revision, TxnRequest, TxnResponse,
};
use kvorum_mvcc::watch::WatchRequest;
use kvorum_mvcc::{AuthState, LeaseRecord, Page};
use kvorum_proto::status_of;
use tonic::Status;

use self::reads::Answered;
use crate::api::Core;
use crate::local::Seen;
use crate::services::Context;

/// A check that was passed, to be held against the state again once the answer is there.
#[must_use]
struct Passed(Option<Caller>);

/// Without it nobody gets at the events of the hub.
#[derive(Debug)]
pub(crate) struct MayWatch(());

#[cfg(test)]
impl MayWatch {
    pub(crate) fn in_a_test() -> Self {
        MayWatch(())
    }
}

/// Who asks.
impl Core {
    /// The caller; `None` while authentication is off, or if the request names nobody.
    ///
    /// # Errors
    /// The token is none of this member's.
    pub(crate) async fn caller(&self, context: &Context) -> Result<Option<Caller>, Error> {
        let state = self.handle.state();
        let mut auth = state.auth();
        let Some(token) = context.token.as_deref().filter(|_| auth.is_enabled()) else {
            return Ok(None);
        };
        let mut user = self.handle.tokens().user(token);
        if user.is_none() && tokens::index_of(token).is_some_and(|index| index > state.facts().applied) {
            // Another member may have given it out a moment ago.
            let _ = context.barrier(&self.handle).await;
            auth = state.auth();
            user = self.handle.tokens().user(token);
        }
        Ok(Some(Caller {
            user: user.ok_or(Error::InvalidToken)?.as_ref().to_owned(),
            // As of before the look at the token: a user that changes from here on is refused at this revision.
            auth_revision: auth.revision(),
        }))
    }

    async fn permit(
        &self,
        context: &Context,
        check: impl FnOnce(&AuthState, Option<&Caller>) -> Result<(), Error>,
    ) -> Result<Passed, Error> {
        let caller = self.caller(context).await?;
        check(&self.handle.state().auth(), caller.as_ref())?;
        Ok(Passed(caller))
    }

    /// Refuses an answer that was given after users, roles or permissions changed.
    fn confirm(&self, passed: Passed) -> Result<(), Error> {
        match passed.0 {
            Some(caller) if caller.auth_revision != self.handle.state().auth().revision() => {
                Err(Error::OldAuthRevision)
            }
            _ => Ok(()),
        }
    }

    /// Lets only known users pass.
    pub(crate) async fn require_user(&self, context: &Context) -> Result<(), Status> {
        let passed = self.permit(context, AuthState::check_known).await;
        passed.map(drop).map_err(|error| status_of(&error))
    }

    /// Lets only administrators pass.
    pub(crate) async fn require_admin(&self, context: &Context) -> Result<(), Status> {
        let passed = self.permit(context, AuthState::check_admin).await;
        passed.map(drop).map_err(|error| status_of(&error))
    }

    /// For surfaces that are not etcd's: who names nobody is told that it must, rather than that a name is empty.
    pub(crate) fn require_token(&self, context: &Context) -> Result<(), Status> {
        match context.token.is_none() && self.handle.state().auth().is_enabled() {
            true => Err(Status::unauthenticated(
                "kvorum: authentication is on; send a token (etcdserverpb.Auth/Authenticate gives one) as \
                 `Authorization: Bearer TOKEN`",
            )),
            false => Ok(()),
        }
    }
}

/// What is read.
impl Core {
    /// A range. For a linearizable one [`Core::barrier`] comes before it.
    pub(crate) async fn range(
        &self,
        context: &Context,
        request: RangeRequest,
    ) -> Result<Answered<RangeResponse>, Status> {
        let passed = self.may_read(context, &request.range).await?;
        let answered = self.reads.range(request).await?;
        self.confirm(passed).map_err(|error| status_of(&error))?;
        Ok(answered)
    }

    /// A transaction that only reads, likewise.
    pub(crate) async fn read_txn(
        &self,
        context: &Context,
        txn: TxnRequest,
    ) -> Result<Answered<TxnResponse>, Status> {
        // It puts nothing, so that no lease is looked for.
        let no_leases = |_| Ok::<_, Error>(Vec::new());
        let passed = self
            .permit(context, |auth, caller| auth.check_txn(caller, &txn, &no_leases))
            .await
            .map_err(|error| status_of(&error))?;
        let answered = self.reads.txn(txn).await?;
        self.confirm(passed).map_err(|error| status_of(&error))?;
        Ok(answered)
    }

    /// The first part of a range, likewise; whoever goes on asks anew each time.
    pub(crate) async fn page(
        &self,
        context: &Context,
        range: KeyRange,
        at: Revision,
        (records_max, bytes_max): (usize, usize),
    ) -> Result<Seen<Page>, Status> {
        let passed = self.may_read(context, &range).await?;
        let page = self.reads.page(range, at, records_max, bytes_max).await?;
        self.confirm(passed).map_err(|error| status_of(&error))?;
        Ok(page)
    }

    /// How many keys a range has at a revision.
    pub(crate) async fn count(
        &self,
        context: &Context,
        range: KeyRange,
        at: Revision,
    ) -> Result<i64, Status> {
        let passed = self.may_read(context, &range).await?;
        let count = self.reads.count(range, at).await?;
        self.confirm(passed).map_err(|error| status_of(&error))?;
        Ok(count)
    }

    async fn may_read(&self, context: &Context, range: &KeyRange) -> Result<Passed, Status> {
        let check = |auth: &AuthState, caller: Option<&Caller>| auth.check(caller, range, Access::Read);
        let passed = self.permit(context, check).await;
        passed.map_err(|error| status_of(&error))
    }

    /// Whether the caller may watch a range.
    ///
    /// # Errors
    /// Why not.
    pub(crate) async fn may_watch(&self, context: &Context, range: &KeyRange) -> Result<MayWatch, Error> {
        let mut range = range.clone();
        if range.key.is_empty() {
            // As in etcd: from the least key on.
            range.key = Bytes::from_static(&[0]);
        }
        let check = |auth: &AuthState, caller: Option<&Caller>| auth.check(caller, &range, Access::Read);
        self.permit(context, check).await.map(|_| MayWatch(()))
    }

    /// A watch that is refused for what it is before anybody looks at who asks, as in etcd.
    pub(crate) fn refused_anyway(&self, request: &WatchRequest) -> Option<MayWatch> {
        (request.start_revision < 0).then_some(MayWatch(()))
    }
}

/// Leases.
impl Core {
    /// The keys of a lease, each of which the caller must be able to read; `None`: there is no such lease.
    pub(crate) async fn lease_keys(
        &self,
        context: &Context,
        id: i64,
    ) -> Result<Seen<Option<Vec<Bytes>>>, Status> {
        let caller = self.named_caller(context).await?;
        let seen = self.reads.lease_keys(id).await?;
        let keys = || Ok(seen.answer.clone().unwrap_or_default());
        self.check_keys(caller, Access::Read, keys)?;
        Ok(seen)
    }

    /// All leases, of each of which the caller must be able to read all keys.
    pub(crate) async fn leases(&self, context: &Context) -> Result<Seen<Vec<LeaseRecord>>, Status> {
        let caller = self.named_caller(context).await?;
        let leases = self.reads.leases().await?;
        let auth = self.handle.state().auth();
        if caller.is_some() && auth.check_admin(caller.as_ref()).is_err() {
            let mut keys = Vec::new();
            for lease in &leases.answer {
                keys.extend(self.reads.lease_keys(lease.id).await?.answer.unwrap_or_default());
            }
            self.check_keys(caller, Access::Read, || Ok(keys))?;
        }
        Ok(leases)
    }

    /// Whether the caller may renew a lease: write each of its keys.
    pub(crate) async fn may_renew(&self, context: &Context, id: i64) -> Result<(), Status> {
        let caller = self.named_caller(context).await?;
        let auth = self.handle.state().auth();
        if caller.is_some() && auth.check_admin(caller.as_ref()).is_err() {
            let keys = self.reads.lease_keys(id).await?.answer.unwrap_or_default();
            self.check_keys(caller, Access::Write, || Ok(keys))?;
        }
        Ok(())
    }

    async fn named_caller(&self, context: &Context) -> Result<Option<Caller>, Status> {
        let passed = self.permit(context, AuthState::check_known).await;
        passed
            .map(|Passed(caller)| caller)
            .map_err(|error| status_of(&error))
    }

    fn check_keys(
        &self,
        caller: Option<Caller>,
        access: Access,
        keys: impl FnOnce() -> Result<Vec<Bytes>, Error>,
    ) -> Result<(), Status> {
        let auth = self.handle.state().auth();
        let checked = auth.check_keys(caller.as_ref(), access, keys);
        let confirmed = checked.and_then(|()| self.confirm(Passed(caller)));
        confirmed.map_err(|error| status_of(&error))
    }
}

/// What is written.
impl Core {
    /// The caller that a command is to carry, if it may be proposed. Only the keys of leases are left to the check
    /// when it is applied.
    ///
    /// # Errors
    /// Why not, as it stands after the read barrier: here a grant may not have arrived yet.
    pub(crate) async fn permit_command(
        &self,
        limits: &CommandLimits,
        context: &Context,
        command: &Command,
    ) -> Result<Option<Caller>, Error> {
        if !self.handle.state().auth().is_enabled() {
            return Ok(caller_while_off(command));
        }
        command.validate(limits)?;
        let check = |auth: &AuthState, caller: Option<&Caller>| {
            if !matches!(command, Command::Auth(AuthCommand::Authenticate { .. })) {
                auth.check_known(caller)?;
            }
            auth.check_command(caller, command, |_| Ok::<_, Error>(Vec::new()))
        };
        match self.permit(context, check).await {
            Err(Error::PermissionDenied | Error::UserNotFound | Error::OldAuthRevision)
                if context.barrier(&self.handle).await.is_ok() =>
            {
                self.permit(context, check).await
            }
            permitted => permitted,
        }
        .map(|Passed(caller)| caller)
    }
}

/// Authentication may be on by the time a command is applied. Where one without a caller is taken for the cluster's
/// own, a client's says that it comes from nobody.
fn caller_while_off(command: &Command) -> Option<Caller> {
    let is_of_clients = matches!(
        command,
        Command::Put(_)
            | Command::DeleteRange(_)
            | Command::Txn(_)
            | Command::LeaseGrant { .. }
            | Command::LeaseRevoke { .. }
            | Command::Register
            | Command::Auth(_)
    );
    (!is_of_clients).then(Caller::default)
}
