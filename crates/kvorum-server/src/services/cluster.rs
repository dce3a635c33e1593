//! etcd's Cluster service: who the members are, and changes of that, on any member.
//!
//! A member that is added as a voter is a learner until it is in sync and gets its vote by itself; these answers show
//! it as the voter that it was added as. Headers carry no revision, as in etcd.

use kvorum_model::{Command, MemberRecord};
use kvorum_node::AdminRequest;
use kvorum_proto::Outcome;
use kvorum_proto::etcdserverpb as pb;
use kvorum_proto::etcdserverpb::cluster_server::Cluster;
use kvorum_raft::Configuration;
use std::sync::Arc;
use std::time::Duration;
use tonic::{Request, Response, Status};

use kvorum_mvcc::ClusterState;

use super::Context;
use crate::api::Core;
use crate::metrics::Method;
use crate::operations;
use crate::options::Address;

/// How often, and how many times, a change is looked for in this member's own state.
const PUBLISH_POLL: Duration = Duration::from_millis(5);
const PUBLISH_POLLS: u32 = 100;

/// See the module.
#[derive(Clone, Debug)]
pub struct ClusterService(Core);

impl ClusterService {
    /// The service of this member.
    pub fn new(core: Core) -> Self {
        ClusterService(core)
    }

    /// Who the members are as of the last entry that this member applied.
    fn membership(&self) -> (Configuration, Arc<ClusterState>) {
        let (configuration, cluster) = self.0.handle.state().membership();
        match configuration {
            Some(configuration) => (configuration, cluster),
            // Before the first entry.
            None => {
                let status = self.0.handle.status();
                (status.configuration.clone(), status.cluster.clone())
            }
        }
    }

    fn members(&self) -> Vec<pb::Member> {
        let (configuration, cluster) = self.membership();
        let unknown = MemberRecord::default();
        let member = |id| {
            let record = cluster.members.get(&id).unwrap_or(&unknown);
            member(id, record, configuration.learners.contains(&id))
        };
        configuration.members().into_iter().map(member).collect()
    }

    async fn change(&self, context: &Context, request: AdminRequest) -> Result<Option<u64>, Status> {
        let permitted = self.0.require_admin(context).await;
        permitted.map_err(|status| Outcome::NotApplied.mark(status))?;
        let request = match self.0.operations.strict_reconfiguration {
            true => AdminRequest::Checked {
                request: Box::new(request),
                learners_max: self.0.operations.learners_max,
            },
            false => request,
        };
        operations::change(&self.0, request, context.deadline).await
    }

    /// The members, once this member has applied the change; or, should that take long, as they are here.
    async fn members_once(&self, changed: impl Fn(&Configuration, &ClusterState) -> bool) -> Vec<pb::Member> {
        for _ in 0..PUBLISH_POLLS {
            let (configuration, cluster) = self.membership();
            if changed(&configuration, &cluster) {
                break;
            }
            tokio::time::sleep(PUBLISH_POLL).await;
        }
        self.members()
    }

    async fn list(&self, request: Request<pb::MemberListRequest>) -> Result<pb::MemberListResponse, Status> {
        let context = Context::of(&request, &self.0.handle)?;
        if request.get_ref().linearizable {
            self.0.barrier(&context).await?;
        }
        self.0.require_user(&context).await?;
        Ok(pb::MemberListResponse {
            header: Some(self.0.header(0)),
            members: self.members(),
        })
    }

    async fn add(&self, request: Request<pb::MemberAddRequest>) -> Result<pb::MemberAddResponse, Status> {
        let context = Context::of(&request, &self.0.handle)?;
        let request = request.into_inner();
        let peer_addresses = addresses(&request.peer_ur_ls)?;
        let urls: Vec<String> = request
            .peer_ur_ls
            .iter()
            .map(|url| url.trim().to_owned())
            .collect();
        let record = MemberRecord {
            id: self.0.operations.ids.choose(&urls),
            peer_addresses,
            promote_when_ready: !request.is_learner,
            ..MemberRecord::default()
        };
        let added = self
            .change(&context, AdminRequest::AddLearner(record.clone()))
            .await?;
        let id = added.ok_or_else(|| {
            Outcome::Unknown.mark(Status::internal("kvorum: the answer does not fit the request"))
        })?;
        let members = self
            .members_once(|configuration, cluster| {
                configuration.contains(id) && cluster.members.contains_key(&id)
            })
            .await;
        Ok(pb::MemberAddResponse {
            header: Some(self.0.header(0)),
            member: Some(member(id, &record, true)),
            members,
        })
    }

    async fn remove(&self, id: u64, context: &Context) -> Result<pb::MemberRemoveResponse, Status> {
        self.change(context, AdminRequest::Remove(id)).await?;
        let members = self
            .members_once(|configuration, _| !configuration.contains(id))
            .await;
        Ok(pb::MemberRemoveResponse {
            header: Some(self.0.header(0)),
            members,
        })
    }

    async fn promote(&self, id: u64, context: &Context) -> Result<pb::MemberPromoteResponse, Status> {
        self.change(context, AdminRequest::Promote(id)).await?;
        let members = self
            .members_once(|configuration, _| configuration.voters.contains(&id))
            .await;
        Ok(pb::MemberPromoteResponse {
            header: Some(self.0.header(0)),
            members,
        })
    }

    async fn update(
        &self,
        request: Request<pb::MemberUpdateRequest>,
    ) -> Result<pb::MemberUpdateResponse, Status> {
        let context = Context::of(&request, &self.0.handle)?;
        let request = request.into_inner();
        let permitted = self.0.require_admin(&context).await;
        permitted.map_err(|status| Outcome::NotApplied.mark(status))?;
        let peer_addresses = addresses(&request.peer_ur_ls)?;
        self.0.barrier(&context).await?;
        let (configuration, cluster) = self.membership();
        let refuse = |status| Err(Outcome::NotApplied.mark(status));
        if !configuration.contains(request.id) || !cluster.members.contains_key(&request.id) {
            return refuse(Status::not_found("etcdserver: member not found"));
        }
        let others = cluster.members.values().filter(|other| other.id != request.id);
        if others
            .flat_map(|other| &other.peer_addresses)
            .any(|address| peer_addresses.contains(address))
        {
            return refuse(Status::failed_precondition(
                "etcdserver: Peer URLs already exists",
            ));
        }
        let command = Command::MoveMember {
            id: request.id,
            peer_addresses,
        };
        self.0.write(&context, command).await?;
        Ok(pb::MemberUpdateResponse {
            header: Some(self.0.header(0)),
            members: self.members(),
        })
    }
}

fn member(id: u64, record: &MemberRecord, is_learner: bool) -> pb::Member {
    let url = |address: &String| format!("http://{address}");
    pb::Member {
        id,
        name: record.name.clone(),
        peer_ur_ls: record.peer_addresses.iter().map(url).collect(),
        client_ur_ls: record.client_urls.clone(),
        is_learner: is_learner && !record.promote_when_ready,
    }
}

/// The addresses that peer URLs name: `http://host:port` each, and at least one.
fn addresses(urls: &[String]) -> Result<Vec<String>, Status> {
    let address = |url: &String| {
        let address: Address = url.trim().strip_prefix("http://")?.parse().ok()?;
        (address.port != 0).then(|| address.to_string())
    };
    let mut addresses: Vec<String> = urls
        .iter()
        .map(address)
        .collect::<Option<_>>()
        .filter(|addresses: &Vec<String>| !addresses.is_empty())
        .ok_or_else(|| {
            Outcome::NotApplied.mark(Status::invalid_argument(
                "etcdserver: given member URLs are invalid",
            ))
        })?;
    // As etcd sorts them.
    addresses.sort();
    Ok(addresses)
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn member_list(
        &self,
        request: Request<pb::MemberListRequest>,
    ) -> Result<Response<pb::MemberListResponse>, Status> {
        self.0.counted(Method::MemberList, self.list(request)).await
    }

    async fn member_add(
        &self,
        request: Request<pb::MemberAddRequest>,
    ) -> Result<Response<pb::MemberAddResponse>, Status> {
        self.0.counted(Method::MemberAdd, self.add(request)).await
    }

    async fn member_remove(
        &self,
        request: Request<pb::MemberRemoveRequest>,
    ) -> Result<Response<pb::MemberRemoveResponse>, Status> {
        let context = Context::of(&request, &self.0.handle)?;
        let id = request.into_inner().id;
        self.0
            .counted(Method::MemberRemove, self.remove(id, &context))
            .await
    }

    async fn member_update(
        &self,
        request: Request<pb::MemberUpdateRequest>,
    ) -> Result<Response<pb::MemberUpdateResponse>, Status> {
        self.0.counted(Method::MemberUpdate, self.update(request)).await
    }

    async fn member_promote(
        &self,
        request: Request<pb::MemberPromoteRequest>,
    ) -> Result<Response<pb::MemberPromoteResponse>, Status> {
        let context = Context::of(&request, &self.0.handle)?;
        let id = request.into_inner().id;
        self.0
            .counted(Method::MemberPromote, self.promote(id, &context))
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peer_urls() {
        let check = |urls: &[&str], expected: Option<&[&str]>| {
            let urls: Vec<String> = urls.iter().map(|url| (*url).to_owned()).collect();
            let got = addresses(&urls).ok();
            let expected =
                expected.map(|list| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>());
            assert_eq!(got, expected, "{urls:?}");
        };
        check(&["http://b:2", "http://a:1"], Some(&["a:1", "b:2"]));
        check(&["http://[::1]:2380"], Some(&["[::1]:2380"]));
        for bad in [
            &[][..],
            &["a:1"],
            &["http://a"],
            &["http://a:1/path"],
            &["http://a:0"],
            &["https://a:1"],
            &["http://a:1", "nonsense"],
        ] {
            check(bad, None);
        }
    }
}
