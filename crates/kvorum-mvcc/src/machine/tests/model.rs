//! etcd's semantics written down as simply as possible: a whole map per revision.

use std::collections::BTreeMap;

use bytes::Bytes;
use kvorum_model::{
    Command, Compare, CompareResult, CompareTarget, DeleteRangeRequest, DeleteRangeResponse, Error, Event,
    EventKind, KeyRange, KeyValue, PutRequest, PutResponse, RangeRequest, RangeResponse, Reply, RequestOp,
    ResponseOp, Revision, SortOrder, SortTarget, TxnRequest, TxnResponse,
};

type Map = BTreeMap<Bytes, KeyValue>;

pub(crate) struct Model {
    /// The map at each revision; 0 does not exist.
    pub states: Vec<Map>,
    /// The changes of each revision.
    pub events: Vec<Vec<Event>>,
    pub compacted: Revision,
    /// TTL by lease. Which keys a lease has, the newest map says.
    pub leases: BTreeMap<i64, i64>,
}

/// What a command does to the newest map, before it is known to succeed.
struct Work {
    map: Map,
    changed: Vec<Bytes>,
    main: Revision,
}

impl Model {
    pub fn new() -> Self {
        Model {
            states: vec![Map::new(), Map::new()],
            events: vec![vec![], vec![]],
            compacted: 0,
            leases: BTreeMap::new(),
        }
    }

    pub fn revision(&self) -> Revision {
        self.states.len() as Revision - 1
    }

    fn newest(&self) -> &Map {
        self.states.last().unwrap()
    }

    pub fn apply(&mut self, command: &Command) -> Result<Reply, Error> {
        let mut work = Work {
            map: self.newest().clone(),
            changed: vec![],
            main: self.revision() + 1,
        };
        let reply = match command {
            Command::Put(put) => {
                self.check_lease(put)?;
                Reply::Put(work.put(put)?)
            }
            Command::DeleteRange(delete) => Reply::DeleteRange(work.delete(delete)),
            Command::Txn(txn) => {
                let mut path = Vec::new();
                self.path(txn, &mut path);
                self.check(txn, &mut path.clone().into_iter())?;
                Reply::Txn(self.run(txn, &mut path.into_iter(), &mut work))
            }
            Command::Compact(revision) => {
                if *revision <= self.compacted {
                    return Err(Error::Compacted);
                }
                if *revision > self.revision() {
                    return Err(Error::FutureRevision);
                }
                self.compacted = *revision;
                Reply::Compact
            }
            Command::LeaseGrant { id, ttl_s } => {
                if self.leases.contains_key(id) {
                    return Err(Error::LeaseExists);
                }
                let (id, ttl_s) = (*id, (*ttl_s).max(1));
                self.leases.insert(id, ttl_s);
                Reply::LeaseGranted { id, ttl_s }
            }
            Command::LeaseRevoke { id, .. } => {
                self.leases.remove(id).ok_or(Error::LeaseNotFound)?;
                let attached: Vec<Bytes> = self.attached(*id);
                for key in attached {
                    work.map.remove(&key);
                    work.changed.push(key);
                }
                Reply::LeaseRevoked
            }
            other => unreachable!("the model knows no {other:?}"),
        };
        if !work.changed.is_empty() {
            let event = |key: &Bytes| {
                let prev_kv = self.newest().get(key).cloned();
                match work.map.get(key) {
                    Some(kv) => Event {
                        kind: EventKind::Put,
                        kv: kv.clone(),
                        prev_kv,
                    },
                    None => {
                        let kv = KeyValue {
                            key: key.clone(),
                            mod_revision: work.main,
                            ..KeyValue::default()
                        };
                        Event {
                            kind: EventKind::Delete,
                            kv,
                            prev_kv,
                        }
                    }
                }
            };
            let events = work.changed.iter().map(event).collect();
            self.events.push(events);
            self.states.push(work.map);
        }
        Ok(reply)
    }

    /// The keys of a lease, in order.
    pub fn attached(&self, id: i64) -> Vec<Bytes> {
        let kvs = self.newest().values().filter(|kv| kv.lease == id);
        kvs.map(|kv| kv.key.clone()).collect()
    }

    fn check_lease(&self, put: &PutRequest) -> Result<(), Error> {
        if put.lease == 0 || self.leases.contains_key(&put.lease) {
            Ok(())
        } else {
            Err(Error::LeaseNotFound)
        }
    }

    fn path(&self, txn: &TxnRequest, path: &mut Vec<bool>) {
        let succeeded = txn.compare.iter().all(|compare| self.holds(compare));
        path.push(succeeded);
        for op in if succeeded { &txn.success } else { &txn.failure } {
            if let RequestOp::Txn(nested) = op {
                self.path(nested, path);
            }
        }
    }

    fn check(&self, txn: &TxnRequest, path: &mut dyn Iterator<Item = bool>) -> Result<(), Error> {
        for op in if path.next().unwrap() {
            &txn.success
        } else {
            &txn.failure
        } {
            match op {
                RequestOp::Range(range) if range.revision > self.revision() => {
                    return Err(Error::FutureRevision);
                }
                RequestOp::Range(range) if range.revision != 0 && range.revision < self.compacted => {
                    return Err(Error::Compacted);
                }
                RequestOp::Put(put)
                    if (put.ignore_value || put.ignore_lease) && !self.newest().contains_key(&put.key) =>
                {
                    return Err(Error::KeyNotFound);
                }
                RequestOp::Put(put) if self.check_lease(put).is_err() => return Err(Error::LeaseNotFound),
                RequestOp::Txn(nested) => self.check(nested, path)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn run(&self, txn: &TxnRequest, path: &mut dyn Iterator<Item = bool>, work: &mut Work) -> TxnResponse {
        let succeeded = path.next().unwrap();
        let ops = if succeeded { &txn.success } else { &txn.failure };
        let responses = ops
            .iter()
            .map(|op| match op {
                RequestOp::Range(range) => {
                    let map = if range.revision > 0 {
                        &self.states[range.revision as usize]
                    } else {
                        &work.map
                    };
                    ResponseOp::Range(answer(map, range))
                }
                RequestOp::Put(put) => ResponseOp::Put(work.put(put).unwrap()),
                RequestOp::DeleteRange(delete) => ResponseOp::DeleteRange(work.delete(delete)),
                RequestOp::Txn(nested) => ResponseOp::Txn(self.run(nested, path, work)),
            })
            .collect();
        TxnResponse { succeeded, responses }
    }

    fn holds(&self, compare: &Compare) -> bool {
        if let CompareTarget::LiveKeys(n) = compare.target {
            return as_asked(compare.result, (self.newest().len() as i64).cmp(&n));
        }
        let kvs = within(self.newest(), &compare.range);
        if kvs.is_empty() {
            return !matches!(compare.target, CompareTarget::Value(_))
                && holds_of(compare, &KeyValue::default());
        }
        kvs.iter().all(|kv| holds_of(compare, kv))
    }

    pub fn range(&self, request: &RangeRequest) -> Result<RangeResponse, Error> {
        if request.revision > self.revision() {
            return Err(Error::FutureRevision);
        }
        if request.revision > 0 && request.revision < self.compacted {
            return Err(Error::Compacted);
        }
        let at = if request.revision > 0 {
            request.revision
        } else {
            self.revision()
        };
        Ok(answer(&self.states[at as usize], request))
    }
}

impl Work {
    fn put(&mut self, put: &PutRequest) -> Result<PutResponse, Error> {
        let old = self.map.get(&put.key).cloned();
        if old.is_none() && (put.ignore_value || put.ignore_lease) {
            return Err(Error::KeyNotFound);
        }
        let mut kv = old.clone().unwrap_or_else(|| KeyValue {
            key: put.key.clone(),
            create_revision: self.main,
            ..KeyValue::default()
        });
        kv.mod_revision = self.main;
        kv.version += 1;
        if !put.ignore_value {
            kv.value = put.value.clone();
        }
        if !put.ignore_lease {
            kv.lease = put.lease;
        }
        self.map.insert(put.key.clone(), kv);
        self.changed.push(put.key.clone());
        Ok(PutResponse {
            prev_kv: old.filter(|_| put.prev_kv),
        })
    }

    fn delete(&mut self, delete: &DeleteRangeRequest) -> DeleteRangeResponse {
        let found = within(&self.map, &delete.range);
        for kv in &found {
            self.map.remove(&kv.key);
            self.changed.push(kv.key.clone());
        }
        let deleted = found.len() as i64;
        DeleteRangeResponse {
            deleted,
            prev_kvs: if delete.prev_kv { found } else { vec![] },
        }
    }
}

fn within(map: &Map, range: &KeyRange) -> Vec<KeyValue> {
    map.values()
        .filter(|kv| range.contains(&kv.key))
        .cloned()
        .collect()
}

fn holds_of(compare: &Compare, kv: &KeyValue) -> bool {
    let ordering = match &compare.target {
        CompareTarget::Version(n) => kv.version.cmp(n),
        CompareTarget::Create(n) => kv.create_revision.cmp(n),
        CompareTarget::Mod(n) => kv.mod_revision.cmp(n),
        CompareTarget::Value(value) => kv.value.cmp(value),
        CompareTarget::Lease(n) => kv.lease.cmp(n),
        CompareTarget::LiveKeys(_) => unreachable!("compared before"),
    };
    as_asked(compare.result, ordering)
}

fn as_asked(result: CompareResult, ordering: std::cmp::Ordering) -> bool {
    match result {
        CompareResult::Equal => ordering.is_eq(),
        CompareResult::Greater => ordering.is_gt(),
        CompareResult::Less => ordering.is_lt(),
        CompareResult::NotEqual => ordering.is_ne(),
    }
}

/// etcd's pipeline: fetch (with the limit only where it may be pushed down), filter, sort, cut, strip.
fn answer(map: &Map, request: &RangeRequest) -> RangeResponse {
    let mut kvs = within(map, &request.range);
    let count = kvs.len() as i64;
    if request.count_only {
        return RangeResponse {
            kvs: vec![],
            more: false,
            count,
        };
    }
    let filters = [
        request.min_mod_revision,
        request.max_mod_revision,
        request.min_create_revision,
        request.max_create_revision,
    ];
    if request.limit > 0 && request.sort_order == SortOrder::None && filters == [0; 4] {
        kvs.truncate(request.limit as usize + 1);
    }
    let [min_mod, max_mod, min_create, max_create] = filters;
    kvs.retain(|kv| {
        (min_mod == 0 || kv.mod_revision >= min_mod)
            && (max_mod == 0 || kv.mod_revision <= max_mod)
            && (min_create == 0 || kv.create_revision >= min_create)
            && (max_create == 0 || kv.create_revision <= max_create)
    });
    match request.sort_target {
        SortTarget::Key => {}
        SortTarget::Version => kvs.sort_by_key(|kv| kv.version),
        SortTarget::Create => kvs.sort_by_key(|kv| kv.create_revision),
        SortTarget::Mod => kvs.sort_by_key(|kv| kv.mod_revision),
        SortTarget::Value => kvs.sort_by_key(|kv| kv.value.clone()),
    }
    if request.sort_order == SortOrder::Descend {
        match request.sort_target {
            SortTarget::Key => kvs.reverse(),
            SortTarget::Version => kvs.sort_by_key(|kv| std::cmp::Reverse(kv.version)),
            SortTarget::Create => kvs.sort_by_key(|kv| std::cmp::Reverse(kv.create_revision)),
            SortTarget::Mod => kvs.sort_by_key(|kv| std::cmp::Reverse(kv.mod_revision)),
            SortTarget::Value => kvs.sort_by_key(|kv| std::cmp::Reverse(kv.value.clone())),
        }
    }
    let more = request.limit > 0 && kvs.len() > request.limit as usize;
    if more {
        kvs.truncate(request.limit as usize);
    }
    if request.keys_only {
        kvs.iter_mut().for_each(|kv| kv.value.clear());
    }
    RangeResponse { kvs, more, count }
}
