//! Which watchers a key concerns.

use std::collections::BTreeMap;

use bytes::Bytes;
use kvorum_model::KeyRange;

use super::WatcherId;

/// All watchers by what they watch. One that watches a single key is found by the key; ranges stand in a static
/// interval tree that is rebuilt at the first question after a change.
#[derive(Debug, Default)]
pub(super) struct Index {
    points: BTreeMap<Bytes, Vec<WatcherId>>,
    /// By start, then end; watchers of equal ranges together.
    ranges: BTreeMap<Interval, Vec<WatcherId>>,
    tree: Vec<Node>,
    is_stale: bool,
}

/// A range; no `end` means that it is open at the top.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Interval {
    start: Bytes,
    end: End,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Before(Bytes),
    Open,
}

impl End {
    fn is_after(&self, key: &[u8]) -> bool {
        match self {
            End::Before(end) => end.as_ref() > key,
            End::Open => true,
        }
    }
}

/// The nodes are sorted by interval; the middle of a stretch is the root of its subtree.
#[derive(Debug)]
struct Node {
    interval: Interval,
    /// The latest end in the subtree of which this is the root.
    latest_end: End,
    watchers: Vec<WatcherId>,
}

impl Index {
    pub fn insert(&mut self, range: &KeyRange, id: WatcherId) {
        if range.is_point() {
            self.points.entry(range.key.clone()).or_default().push(id);
        } else {
            self.ranges.entry(interval(range)).or_default().push(id);
            self.is_stale = true;
        }
    }

    pub fn remove(&mut self, range: &KeyRange, id: WatcherId) {
        fn remove<K: Ord>(map: &mut BTreeMap<K, Vec<WatcherId>>, key: &K, id: WatcherId) {
            if let Some(ids) = map.get_mut(key) {
                ids.retain(|known| *known != id);
                if ids.is_empty() {
                    map.remove(key);
                }
            }
        }
        if range.is_point() {
            remove(&mut self.points, &range.key, id);
        } else {
            remove(&mut self.ranges, &interval(range), id);
            self.is_stale = true;
        }
    }

    pub fn is_empty(&self) -> bool {
        self.points.is_empty() && self.ranges.is_empty()
    }

    /// Calls `hit` for each watcher of a key, in an order that depends on nothing but the watchers.
    pub fn each(&mut self, key: &[u8], hit: &mut dyn FnMut(WatcherId)) {
        for id in self.points.get(key).into_iter().flatten() {
            hit(*id);
        }
        if self.is_stale {
            self.rebuild();
        }
        visit(&self.tree, key, hit);
    }

    fn rebuild(&mut self) {
        self.is_stale = false;
        self.tree = self
            .ranges
            .iter()
            .map(|(interval, watchers)| Node {
                interval: interval.clone(),
                latest_end: interval.end.clone(),
                watchers: watchers.clone(),
            })
            .collect();
        settle(&mut self.tree);
    }
}

fn interval(range: &KeyRange) -> Interval {
    let end = if range.is_from_key() {
        End::Open
    } else {
        End::Before(range.end.clone())
    };
    Interval {
        start: range.key.clone(),
        end,
    }
}

/// Fills in the latest ends of a stretch; returns that of the whole.
fn settle(nodes: &mut [Node]) -> Option<End> {
    if nodes.is_empty() {
        return None;
    }
    let middle = nodes.len() / 2;
    let (left, rest) = nodes.split_at_mut(middle);
    let (root, right) = rest.split_first_mut().expect("the middle lies in the stretch");
    for end in [settle(left), settle(right)].into_iter().flatten() {
        if end > root.latest_end {
            root.latest_end = end;
        }
    }
    Some(root.latest_end.clone())
}

fn visit(nodes: &[Node], key: &[u8], hit: &mut dyn FnMut(WatcherId)) {
    if nodes.is_empty() {
        return;
    }
    let middle = nodes.len() / 2;
    let root = &nodes[middle];
    if !root.latest_end.is_after(key) {
        return;
    }
    visit(&nodes[..middle], key, hit);
    if root.interval.start.as_ref() <= key {
        if root.interval.end.is_after(key) {
            root.watchers.iter().for_each(|id| hit(*id));
        }
        visit(&nodes[middle + 1..], key, hit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Rng;
    use crate::watch::StreamId;

    fn random_key(rng: &mut Rng) -> Bytes {
        (0..1 + rng.below(3))
            .map(|_| b'a' + rng.below(3) as u8)
            .collect::<Vec<u8>>()
            .into()
    }

    #[test]
    fn a_key_finds_exactly_the_watchers_whose_range_holds_it() {
        let mut rng = Rng::new(3);
        let mut index = Index::default();
        let mut watchers: Vec<(KeyRange, WatcherId)> = Vec::new();
        for n in 0..3_000 {
            if rng.below(3) > 0 || watchers.is_empty() {
                let end = match rng.below(4) {
                    0 => Bytes::new(),
                    1 => Bytes::from_static(&[0]),
                    _ => random_key(&mut rng),
                };
                let range = KeyRange {
                    key: random_key(&mut rng),
                    end,
                };
                if !range.is_point() && !range.is_from_key() && range.end <= range.key {
                    continue;
                }
                let id = WatcherId {
                    stream: StreamId(n),
                    watch: 0,
                };
                index.insert(&range, id);
                watchers.push((range, id));
            } else {
                let (range, id) = watchers.swap_remove(rng.below(watchers.len() as u64) as usize);
                index.remove(&range, id);
            }
            let key = random_key(&mut rng);
            let mut found = Vec::new();
            index.each(&key, &mut |id| found.push(id));
            found.sort();
            let mut expected: Vec<_> = watchers
                .iter()
                .filter(|(range, _)| range.contains(&key))
                .map(|(_, id)| *id)
                .collect();
            expected.sort();
            assert_eq!(found, expected, "{key:?}");
        }
    }
}
