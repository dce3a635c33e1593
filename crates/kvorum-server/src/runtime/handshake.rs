//! Who may speak to whom: the Hello at the head of each peer stream, and how it is judged.

use std::collections::BTreeMap;
use std::sync::{Mutex, RwLock};

use kvorum_model::MemberRecord;
use kvorum_mvcc::ClusterState;
use kvorum_proto::kvorum::v1::Hello;
use tonic::Status;

use super::identity::Identity;
use super::strangers::name_cluster;

/// The version of the peer protocol.
const PROTOCOL: u32 = 1;

/// What this member knows about itself and the others when it meets one.
#[derive(Debug)]
pub struct Acquaintance {
    identity: RwLock<Identity>,
    boot: u64,
    record: MemberRecord,
    members: RwLock<BTreeMap<u64, MemberRecord>>,
    removed: RwLock<Vec<u64>>,
    /// Incarnations met before the cluster's records named them.
    seen: Mutex<BTreeMap<u64, u128>>,
}

impl Acquaintance {
    /// Of a member that starts. `record` is what it publishes of itself.
    pub fn new(identity: Identity, boot: u64, record: MemberRecord) -> Self {
        Acquaintance {
            identity: RwLock::new(identity),
            boot,
            record,
            members: RwLock::default(),
            removed: RwLock::default(),
            seen: Mutex::default(),
        }
    }

    /// The cluster's records changed. Returns the identity to store, if the cluster's UUID became known.
    pub fn learn(&self, cluster: &ClusterState) -> Option<Identity> {
        *self.members.write().expect("no panic while held") = cluster.members.clone();
        *self.removed.write().expect("no panic while held") = cluster.removed.iter().copied().collect();
        let mut identity = self.identity.write().expect("no panic while held");
        if identity.cluster_uuid != 0 || cluster.uuid == 0 {
            return None;
        }
        identity.cluster_uuid = cluster.uuid;
        Some(identity.clone())
    }

    /// This member's identity as it stands.
    pub fn identity(&self) -> Identity {
        self.identity.read().expect("no panic while held").clone()
    }

    /// What to say to `to` (0: whoever answers).
    pub fn hello(&self, to: u64) -> Hello {
        let identity = self.identity.read().expect("no panic while held");
        let uuid = identity.cluster_uuid;
        Hello {
            version: PROTOCOL,
            cluster_uuid: if uuid == 0 {
                Vec::new()
            } else {
                uuid.to_be_bytes().to_vec()
            }
            .into(),
            token_hash: identity.token_hash.to_be_bytes().to_vec().into(),
            member_id: identity.member,
            to_member_id: to,
            incarnation: identity.incarnation.to_be_bytes().to_vec().into(),
            boot: self.boot,
            feature_level: self.record.feature_level,
            name: identity.name.clone(),
            peer_addresses: self.record.peer_addresses.clone(),
        }
    }

    /// Judges a Hello that came in, from a dialler or from the one dialled.
    ///
    /// # Errors
    /// FailedPrecondition with one line for people; PermissionDenied if the speaker was removed for good.
    pub fn judge(&self, hello: &Hello) -> Result<(), Status> {
        let identity = self.identity();
        if hello.version != PROTOCOL {
            return refuse(format!(
                "peer protocol version {} is not spoken here (this member speaks {PROTOCOL}): upgrade the older one",
                hello.version
            ));
        }
        let theirs = read_u128(&hello.cluster_uuid)?;
        if theirs != 0 && identity.cluster_uuid != 0 {
            if theirs != identity.cluster_uuid {
                let why = format!(
                    "this is cluster {:032x}, not {theirs:032x}: check addresses and data directories",
                    identity.cluster_uuid
                );
                return Err(name_cluster(
                    Status::failed_precondition(why),
                    identity.cluster_uuid,
                ));
            }
        } else if hello.member_id == 0 && hello.token_hash.is_empty() {
            // A joiner that knows only this address and its own name; it takes the cluster from the answer.
        } else if read_u128(&hello.token_hash)? != identity.token_hash {
            return refuse(
                "this is another cluster: its token or founders differ; check --cluster-token and --initial-cluster"
                    .to_owned(),
            );
        }
        if hello.to_member_id != 0 && hello.to_member_id != identity.member {
            return refuse(format!(
                "this is member {:016x} ({}), not {:016x}: check the peer addresses",
                identity.member, identity.name, hello.to_member_id
            ));
        }
        if hello.member_id == 0 {
            Ok(())
        } else {
            self.judge_member(hello)
        }
    }

    /// # Errors
    /// PermissionDenied if this member was removed for good.
    pub fn check_not_removed(&self, id: u64) -> Result<(), Status> {
        if !self.removed.read().expect("no panic while held").contains(&id) {
            return Ok(());
        }
        Err(Status::permission_denied(format!(
            "member {id:016x} was removed from the cluster; start it anew with an empty directory as a new member"
        )))
    }

    fn judge_member(&self, hello: &Hello) -> Result<(), Status> {
        let id = hello.member_id;
        self.check_not_removed(id)?;
        let incarnation = read_u128(&hello.incarnation)?;
        let recorded = self
            .members
            .read()
            .expect("no panic while held")
            .get(&id)
            .map_or(0, |m| m.incarnation);
        let known = match recorded {
            0 => *self
                .seen
                .lock()
                .expect("no panic while held")
                .entry(id)
                .or_insert(incarnation),
            recorded => recorded,
        };
        if known != incarnation {
            return refuse(format!(
                "member {id:016x} ({}) lost its data; replace it: `kvorum member replace {}`",
                hello.name, hello.name
            ));
        }
        Ok(())
    }

    /// Whether the cluster's records name this member. (A Hello is taken from others as well: a member may call before
    /// its own entry was applied here.)
    pub fn is_member(&self, id: u64) -> bool {
        self.members
            .read()
            .expect("no panic while held")
            .contains_key(&id)
    }

    /// What a joiner says, that knows only its name and addresses.
    pub fn joiner_hello(name: &str, peer_addresses: Vec<String>) -> Hello {
        Hello {
            version: PROTOCOL,
            name: name.to_owned(),
            peer_addresses,
            ..Hello::default()
        }
    }

    /// The ID that a joiner of this name was given and has not taken up yet, if any; else that of a member that was
    /// added by its addresses alone (as etcd's API does), if this joiner has one of them.
    pub fn awaited(&self, name: &str, peer_addresses: &[String]) -> Option<u64> {
        let members = self.members.read().expect("no panic while held");
        let mut new = members.values().filter(|member| member.incarnation == 0);
        let named = new.clone().find(|member| member.name == name);
        let is_at = |address: &String| peer_addresses.contains(address);
        named
            .or_else(|| new.find(|member| member.name.is_empty() && member.peer_addresses.iter().any(is_at)))
            .map(|member| member.id)
    }
}

fn refuse(why: String) -> Result<(), Status> {
    Err(Status::failed_precondition(why))
}

/// 16 bytes, big-endian, or none for 0.
pub(crate) fn read_u128(bytes: &[u8]) -> Result<u128, Status> {
    match bytes {
        [] => Ok(0),
        _ => {
            let bytes = bytes
                .try_into()
                .map_err(|_| Status::invalid_argument("malformed Hello: not 16 bytes"))?;
            Ok(u128::from_be_bytes(bytes))
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::identity::{founder_id, token_hash};
    use super::*;

    fn member(name: &str, incarnation: u128) -> Acquaintance {
        let founders: Vec<u64> = ["a", "b", "c"].map(|name| founder_id("t", name)).into();
        let identity = Identity {
            member: founder_id("t", name),
            name: name.into(),
            token: "t".into(),
            token_hash: token_hash("t", &founders),
            cluster_uuid: 0,
            incarnation,
            founders,
            started: true,
        };
        Acquaintance::new(identity, 1, MemberRecord::default())
    }

    fn named(acquaintance: &Acquaintance, uuid: u128) {
        acquaintance.identity.write().unwrap().cluster_uuid = uuid;
    }

    #[track_caller]
    fn refused(result: Result<(), Status>, part: &str) {
        let status = result.unwrap_err();
        assert!(status.message().contains(part), "{}", status.message());
        assert!(!status.message().contains('\n'));
    }

    #[test]
    fn founders_of_one_cluster_meet() {
        let (a, b) = (member("a", 1), member("b", 2));
        b.judge(&a.hello(b.identity().member)).unwrap();
        named(&a, 7);
        b.judge(&a.hello(0)).unwrap();
    }

    #[test]
    fn strangers_are_told_why() {
        let (a, b) = (member("a", 1), member("b", 2));
        let mut hello = a.hello(0);
        hello.token_hash = vec![9; 16].into();
        refused(b.judge(&hello), "another cluster");
        hello.token_hash = vec![9; 3].into();
        refused(b.judge(&hello), "malformed");
        let mut newer = a.hello(0);
        newer.version = 2;
        refused(b.judge(&newer), "version 2");
        refused(b.judge(&a.hello(99)), "check the peer addresses");
        named(&a, 7);
        named(&b, 8);
        refused(b.judge(&a.hello(0)), "this is cluster");
    }

    #[test]
    fn an_empty_directory_under_a_known_id_is_refused() {
        let b = member("b", 2);
        b.judge(&member("a", 1).hello(0)).unwrap();
        refused(b.judge(&member("a", 3).hello(0)), "lost its data; replace it");
        // And so after b restarted, once the cluster's records name the incarnation.
        let b = member("b", 2);
        let mut cluster = ClusterState::default();
        let id = founder_id("t", "a");
        cluster.members.insert(
            id,
            MemberRecord {
                id,
                incarnation: 1,
                ..MemberRecord::default()
            },
        );
        b.learn(&cluster);
        refused(b.judge(&member("a", 3).hello(0)), "lost its data; replace it");
        b.judge(&member("a", 1).hello(0)).unwrap();
    }
}
