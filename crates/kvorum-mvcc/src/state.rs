//! The replicated state beside the keyspace, and its records in the store.
//!
//! ```text
//! m s → State: one record, written with every batch
//! m c → the configuration's bytes, opaque here
//! m u → UUID, timing and settings of the cluster
//! m n | id → a member's record (an `AddMember` in the entry format)
//! m x | id → nothing: a member that is gone and never comes back
//! m a | alarm | member → nothing: an alarm that stands
//! m h → samples of time and revision
//! m g → how far background removal has come (this member's own, never digested)
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use bytes::Bytes;
use kvorum_model::{Alarm, Command, MemberRecord, Revision, limits};

use crate::layout::{META, corrupt};
use crate::store::{StoreError, View};

/// The format of the store that this version writes and reads.
pub(crate) const FORMAT: u16 = 1;
/// The feature level of this version.
pub(crate) const FEATURE_LEVEL: u32 = 1;
/// How much history automatic compaction keeps by default, in ms.
pub const HISTORY_MS: u64 = 60 * 60 * 1000;

pub(crate) const STATE_KEY: Bytes = Bytes::from_static(&[META, b's']);
pub(crate) const CONFIGURATION_KEY: Bytes = Bytes::from_static(&[META, b'c']);
pub(crate) const CLUSTER_KEY: Bytes = Bytes::from_static(&[META, b'u']);
pub(crate) const SAMPLES_KEY: Bytes = Bytes::from_static(&[META, b'h']);
pub(crate) const REMOVAL_KEY: Bytes = Bytes::from_static(&[META, b'g']);
/// IDs below this come from the counter; a hash that falls below it would only skip some.
const COUNTED_IDS: u64 = 1 << 32;
const MEMBER: u8 = b'n';
const REMOVED: u8 = b'x';
const ALARM: u8 = b'a';

/// What every batch writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct State {
    /// Term and index of the last applied entry; 0 before the first.
    pub term: u64,
    pub index: u64,
    /// The latest time of an applied entry, in ms.
    pub time_ms: u64,
    /// 1 for the empty keyspace.
    pub revision: Revision,
    /// The last compaction; 0 for none.
    pub compacted: Revision,
    /// Keys that are there.
    pub live_keys: u64,
    /// The chained digest of all applied entries.
    pub digest: u128,
    pub feature_level: u32,
}

impl Default for State {
    fn default() -> Self {
        State {
            term: 0,
            index: 0,
            time_ms: 0,
            revision: 1,
            compacted: 0,
            live_keys: 0,
            digest: 0,
            feature_level: FEATURE_LEVEL,
        }
    }
}

const STATE_BYTES: usize = 2 + 6 * 8 + 16 + 4;

impl State {
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(STATE_BYTES);
        out.extend_from_slice(&FORMAT.to_le_bytes());
        for number in [
            self.term,
            self.index,
            self.time_ms,
            self.revision as u64,
            self.compacted as u64,
            self.live_keys,
        ] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&self.digest.to_le_bytes());
        out.extend_from_slice(&self.feature_level.to_le_bytes());
        out.into()
    }

    pub fn decode(bytes: &[u8]) -> Result<State, StateError> {
        let mut fields = Fields(bytes);
        let format = fields.u16()?;
        if format != FORMAT {
            return Err(StateError::Format(format));
        }
        let state = State {
            term: fields.u64()?,
            index: fields.u64()?,
            time_ms: fields.u64()?,
            revision: fields.u64()? as Revision,
            compacted: fields.u64()? as Revision,
            live_keys: fields.u64()?,
            digest: fields.u128()?,
            feature_level: fields.u32()?,
        };
        fields.end()?;
        if state.revision < 1 || state.compacted < 0 || state.compacted > state.revision {
            return Err(corrupt("the state's revisions contradict each other").into());
        }
        Ok(state)
    }
}

/// Why the state cannot be read.
pub(crate) enum StateError {
    /// Another format wrote it.
    Format(u16),
    Store(StoreError),
}

impl From<StoreError> for StateError {
    fn from(error: StoreError) -> Self {
        StateError::Store(error)
    }
}

/// Reads fixed-width fields.
pub(crate) struct Fields<'a>(pub &'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], StoreError> {
        let (head, rest) = self
            .0
            .split_first_chunk::<N>()
            .ok_or_else(|| corrupt("a meta record is too short"))?;
        self.0 = rest;
        Ok(*head)
    }
    pub fn u8(&mut self) -> Result<u8, StoreError> {
        Ok(u8::from_le_bytes(self.array()?))
    }
    /// A `u32` length and so many bytes.
    pub fn bytes(&mut self) -> Result<Bytes, StoreError> {
        let length = self.u32()? as usize;
        let (head, rest) = self
            .0
            .split_at_checked(length)
            .ok_or_else(|| corrupt("a meta record is too short"))?;
        self.0 = rest;
        Ok(Bytes::copy_from_slice(head))
    }
    /// The same, as text.
    pub fn text(&mut self) -> Result<String, StoreError> {
        String::from_utf8(self.bytes()?.into()).map_err(|_| corrupt("a name is not UTF-8"))
    }
    pub fn u16(&mut self) -> Result<u16, StoreError> {
        Ok(u16::from_le_bytes(self.array()?))
    }
    pub fn u32(&mut self) -> Result<u32, StoreError> {
        Ok(u32::from_le_bytes(self.array()?))
    }
    pub fn u64(&mut self) -> Result<u64, StoreError> {
        Ok(u64::from_le_bytes(self.array()?))
    }
    pub fn u128(&mut self) -> Result<u128, StoreError> {
        Ok(u128::from_le_bytes(self.array()?))
    }
    pub fn end(&self) -> Result<(), StoreError> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(corrupt("a meta record is too long"))
        }
    }
}

/// What all members know of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterState {
    /// Names the cluster; 0 until `ClusterInit` is applied.
    pub uuid: u128,
    /// The minimal election timeout of all members, in ms; 0 until `ClusterInit` is applied.
    pub election_timeout_ms: u64,
    /// The members that said who they are or were added, by ID.
    pub members: BTreeMap<u64, MemberRecord>,
    /// IDs that never come back.
    pub removed: BTreeSet<u64>,
    /// The ID for the next member that joins, from a counter that never goes back.
    pub next_member: u64,
    /// What all members agreed on.
    pub settings: Settings,
    /// The alarms that stand, each with the member that it is about.
    pub alarms: BTreeSet<(Alarm, u64)>,
}

/// Settings of the whole cluster, by `ClusterSetting`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Longest key in bytes.
    pub key_bytes_max: u64,
    /// How much history automatic compaction keeps, in ms; 0: all.
    pub history_ms: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            key_bytes_max: limits::KEY_BYTES_MAX as u64,
            history_ms: HISTORY_MS,
        }
    }
}

impl Default for ClusterState {
    fn default() -> Self {
        ClusterState {
            uuid: 0,
            election_timeout_ms: 0,
            members: BTreeMap::new(),
            removed: BTreeSet::new(),
            next_member: 1,
            settings: Settings::default(),
            alarms: BTreeSet::new(),
        }
    }
}

/// A write to the store.
type Write = (Bytes, Option<Bytes>);

impl ClusterState {
    /// The record of everything but the members.
    pub(crate) fn record(&self) -> Write {
        let mut out = Vec::with_capacity(48);
        out.extend_from_slice(&self.uuid.to_le_bytes());
        for number in [
            self.election_timeout_ms,
            self.next_member,
            self.settings.key_bytes_max,
            self.settings.history_ms,
        ] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        (CLUSTER_KEY, Some(out.into()))
    }

    /// Reads what the store holds.
    pub(crate) fn load(view: &impl View) -> Result<ClusterState, StoreError> {
        let mut cluster = ClusterState::default();
        if let Some(record) = view.get(&CLUSTER_KEY)? {
            let mut fields = Fields(&record);
            cluster.uuid = fields.u128()?;
            cluster.election_timeout_ms = fields.u64()?;
            cluster.next_member = fields.u64()?;
            cluster.settings = Settings {
                key_bytes_max: fields.u64()?,
                history_ms: fields.u64()?,
            };
            fields.end()?;
        }
        for item in prefixed(view, &[META, MEMBER]) {
            let (key, record) = item?;
            let member = match Command::decode(record) {
                Ok(Command::AddMember(member)) => member,
                _ => return Err(corrupt("a member's record")),
            };
            if key != id_key(MEMBER, member.id) {
                return Err(corrupt("a member's record stands under another ID"));
            }
            cluster.members.insert(member.id, member);
        }
        for item in prefixed(view, &[META, REMOVED]) {
            let (key, _) = item?;
            let id = key[2..]
                .try_into()
                .map_err(|_| corrupt("a removed member's key"))?;
            cluster.removed.insert(u64::from_be_bytes(id));
        }
        for item in prefixed(view, &[META, ALARM]) {
            let (key, _) = item?;
            cluster.alarms.insert(read_alarm_key(&key)?);
        }
        Ok(cluster)
    }

    /// A member says who it is. What the cluster decided about it when it was added is not the member's to change: it
    /// may say who it is before it has applied its own addition. One that says no address stays where it is.
    pub(crate) fn publish_member(&mut self, member: &MemberRecord, writes: &mut Vec<Write>) {
        let known = self.members.get(&member.id);
        let promote_when_ready = known.map_or(member.promote_when_ready, |known| known.promote_when_ready);
        let mut member = MemberRecord {
            promote_when_ready,
            ..member.clone()
        };
        if let Some(known) = known.filter(|_| member.peer_addresses.is_empty()) {
            member.peer_addresses.clone_from(&known.peer_addresses);
        }
        self.put_member(&member, writes);
    }

    /// The writes after which the store knows no member, none that was removed, and no alarm.
    pub(crate) fn forget(&self) -> Vec<Write> {
        let members = self.members.keys().map(|id| id_key(MEMBER, *id));
        let removed = self.removed.iter().map(|id| id_key(REMOVED, *id));
        let alarms = self
            .alarms
            .iter()
            .map(|(alarm, member)| alarm_key(*alarm, *member));
        members
            .chain(removed)
            .chain(alarms)
            .map(|key| (key, None))
            .collect()
    }

    /// Whether an alarm of this kind stands, whoever it is about.
    pub fn has_alarm(&self, alarm: Alarm) -> bool {
        self.alarms.iter().any(|(standing, _)| *standing == alarm)
    }

    /// An alarm rises or is disarmed; whether it stood before.
    pub(crate) fn set_alarm(
        &mut self,
        alarm: Alarm,
        member: u64,
        raised: bool,
        writes: &mut Vec<Write>,
    ) -> bool {
        let before = self.alarms.contains(&(alarm, member));
        if raised != before {
            if raised {
                self.alarms.insert((alarm, member));
            } else {
                self.alarms.remove(&(alarm, member));
            }
            writes.push((alarm_key(alarm, member), raised.then(Bytes::new)));
        }
        before
    }

    /// A member's peers reach it elsewhere.
    pub(crate) fn move_member(&mut self, id: u64, peer_addresses: Vec<String>, writes: &mut Vec<Write>) {
        if let Some(member) = self.members.get(&id) {
            let member = MemberRecord {
                peer_addresses,
                ..member.clone()
            };
            self.put_member(&member, writes);
        }
    }

    /// A member says who it is, or is added. One that was removed stays removed; a record of another incarnation
    /// changes nothing, as a data directory never becomes another.
    fn put_member(&mut self, member: &MemberRecord, writes: &mut Vec<Write>) {
        let known = self.members.get(&member.id);
        let other =
            known.is_some_and(|known| known.incarnation != 0 && known.incarnation != member.incarnation);
        if other || known == Some(member) || self.removed.contains(&member.id) {
            return;
        }
        writes.push((
            id_key(MEMBER, member.id),
            Some(Command::AddMember(member.clone()).encode()),
        ));
        self.members.insert(member.id, member.clone());
    }

    /// A member joins: its ID is not given out again.
    pub(crate) fn add_member(&mut self, member: &MemberRecord, writes: &mut Vec<Write>) {
        self.put_member(member, writes);
        if member.id >= self.next_member && member.id < COUNTED_IDS {
            self.next_member = member.id + 1;
            writes.push(self.record());
        }
    }

    /// A member is gone, for ever.
    pub(crate) fn remove_member(&mut self, id: u64, writes: &mut Vec<Write>) {
        if self.members.remove(&id).is_some() {
            writes.push((id_key(MEMBER, id), None));
        }
        // Nobody would disarm them any more.
        for (alarm, member) in self.alarms.clone() {
            if member == id {
                self.set_alarm(alarm, member, false, writes);
            }
        }
        if self.removed.insert(id) {
            writes.push((id_key(REMOVED, id), Some(Bytes::new())));
        }
    }
}

fn alarm_key(alarm: Alarm, member: u64) -> Bytes {
    let mut out = vec![
        META,
        ALARM,
        match alarm {
            Alarm::NoSpace => 1,
            Alarm::Corrupt => 2,
        },
    ];
    out.extend_from_slice(&member.to_be_bytes());
    out.into()
}

fn read_alarm_key(key: &[u8]) -> Result<(Alarm, u64), StoreError> {
    let unknown = || corrupt("an alarm's key");
    let (head, member) = key.split_last_chunk::<8>().ok_or_else(unknown)?;
    let alarm = match head {
        [META, ALARM, 1] => Alarm::NoSpace,
        [META, ALARM, 2] => Alarm::Corrupt,
        _ => return Err(unknown()),
    };
    Ok((alarm, u64::from_be_bytes(*member)))
}

fn id_key(kind: u8, id: u64) -> Bytes {
    let mut out = vec![META, kind];
    out.extend_from_slice(&id.to_be_bytes());
    out.into()
}

/// All records whose key begins so. The last byte of `prefix` is not 0xff.
pub(crate) fn prefixed<'a>(
    view: &'a impl View,
    prefix: &[u8],
) -> impl Iterator<Item = Result<(Bytes, Bytes), StoreError>> + 'a {
    let mut end = prefix.to_vec();
    *end.last_mut().expect("a prefix is not empty") += 1;
    view.range(
        Bound::Included(Bytes::copy_from_slice(prefix)),
        Bound::Excluded(end.into()),
    )
}
