//! What the roles of one user allow, as disjoint intervals of keys.

use bytes::Bytes;
use kvorum_model::{Access, KeyRange, Permission};

/// The keys that a user may read, and those that it may write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Grants {
    read: Intervals,
    write: Intervals,
}

impl Grants {
    /// The union of these permissions.
    pub fn of<'a>(permissions: impl Iterator<Item = &'a Permission> + Clone) -> Self {
        let of = |access: Access| {
            let allowed = permissions
                .clone()
                .filter(|permission| permission.access.allows(access));
            Intervals::of(allowed.map(|permission| &permission.range))
        };
        Grants {
            read: of(Access::Read),
            write: of(Access::Write),
        }
    }

    /// Whether every key of a range lies in what is allowed.
    pub fn allow(&self, range: &KeyRange, access: Access) -> bool {
        match access {
            Access::Read => self.read.contain(range),
            Access::Write => self.write.contain(range),
            Access::ReadWrite => self.read.contain(range) && self.write.contain(range),
        }
    }
}

/// A set of keys. Invariants: every interval has a key; they ascend, and neither overlap nor touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Intervals(Vec<(Bytes, End)>);

/// Where an interval ends: before a key, or never. The order is that of the keys they exclude.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Before(Bytes),
    Never,
}

impl End {
    /// Whether `key` is below it, or directly at it.
    fn touches(&self, key: &Bytes) -> bool {
        match self {
            End::Before(end) => end >= key,
            End::Never => true,
        }
    }
}

/// The least key above `key`.
fn successor(key: &[u8]) -> Bytes {
    [key, &[0]].concat().into()
}

/// Where a range ends; one that is turned round ends before it begins.
fn end_of(range: &KeyRange) -> End {
    if range.is_point() {
        End::Before(successor(&range.key))
    } else if range.is_from_key() {
        End::Never
    } else {
        End::Before(range.end.clone())
    }
}

impl Intervals {
    fn of<'a>(ranges: impl Iterator<Item = &'a KeyRange>) -> Self {
        let mut parts: Vec<(Bytes, End)> = ranges
            .map(|range| (range.key.clone(), end_of(range)))
            .filter(|(start, end)| *end > End::Before(start.clone()))
            .collect();
        parts.sort_unstable();
        let mut whole: Vec<(Bytes, End)> = Vec::new();
        for (start, end) in parts {
            match whole.last_mut() {
                Some((_, last)) if last.touches(&start) => *last = end.max(last.clone()),
                _ => whole.push((start, end)),
            }
        }
        Intervals(whole)
    }

    fn contain(&self, range: &KeyRange) -> bool {
        let end = end_of(range);
        let at = self.0.partition_point(|(start, _)| *start <= range.key);
        let Some((_, last)) = at.checked_sub(1).map(|at| &self.0[at]) else {
            return false;
        };
        match &end {
            // It has no keys. As in etcd, allowed where the one that it begins with is.
            End::Before(end) if *end <= range.key => *last > End::Before(range.key.clone()),
            end => last >= end,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(key: &'static str, end: &'static str) -> KeyRange {
        KeyRange {
            key: Bytes::from_static(key.as_bytes()),
            end: Bytes::from_static(end.as_bytes()),
        }
    }

    /// Whether permissions for `granted` (key and end each) allow `asked`.
    #[track_caller]
    fn check(granted: &[(&'static str, &'static str)], asked: (&'static str, &'static str), expected: bool) {
        let permissions: Vec<Permission> = granted
            .iter()
            .map(|(key, end)| Permission {
                access: Access::Read,
                range: range(key, end),
            })
            .collect();
        let grants = Grants::of(permissions.iter());
        let asked_range = range(asked.0, asked.1);
        assert_eq!(
            grants.allow(&asked_range, Access::Read),
            expected,
            "{asked:?} by {granted:?}"
        );
        assert!(
            !grants.allow(&asked_range, Access::Write),
            "nothing may be written"
        );
    }

    #[test]
    fn points_and_ranges() {
        check(&[], ("a", ""), false);
        check(&[("a", "")], ("a", ""), true);
        check(&[("a", "")], ("b", ""), false);
        check(&[("a", "")], ("a", "a\0"), true);
        check(&[("a", "")], ("a", "b"), false);
        check(&[("a", "c")], ("a", ""), true);
        check(&[("a", "c")], ("b", ""), true);
        check(&[("a", "c")], ("c", ""), false);
        check(&[("a", "c")], ("a", "c"), true);
        check(&[("a", "c")], ("a", "c\0"), false);
        check(&[("a", "c")], ("A", "b"), false);
    }

    /// Several permissions together allow what none of them does alone, if they leave no gap.
    #[test]
    fn permissions_that_touch_are_one() {
        check(&[("a", "b"), ("b", "c")], ("a", "c"), true);
        check(&[("b", "c"), ("a", "b")], ("a", "c"), true);
        check(&[("a", "c"), ("b", "d")], ("a", "d"), true);
        check(&[("a", "b"), ("bb", "c")], ("a", "c"), false);
        check(&[("a", ""), ("a\0", "b")], ("a", "b"), true);
        check(&[("a", "z"), ("b", "c")], ("a", "y"), true);
        check(&[("a", "b"), ("a", "\0"), ("x", "y")], ("q", "\0"), true);
    }

    /// GHSA-xg4h-6gfc-h4m8: a request that is open at the top is a range, not the key `\0`.
    #[test]
    fn open_ends_are_ranges() {
        check(&[("a", "")], ("a", "\0"), false);
        check(&[("a", "c")], ("a", "\0"), false);
        check(&[("a", "\0")], ("a", "\0"), true);
        check(&[("a", "\0")], ("b", "\0"), true);
        check(&[("b", "\0")], ("a", "\0"), false);
        check(&[("a", "\0")], ("b", "zzz"), true);
        check(&[("\0", "\0")], ("\0", "\0"), true);
        check(&[("\0", "")], ("\0", "\0"), false);
        check(&[("a", "\0")], ("\0", "\0"), false);
    }

    /// Ranges that are turned round have no keys; etcd answers them to those who may read the first.
    #[test]
    fn ranges_without_keys() {
        check(&[("a", "z")], ("c", "b"), true);
        check(&[("a", "z")], ("c", "c"), true);
        check(&[("b", "z")], ("c", "a"), true);
        check(&[("c", "")], ("c", "b"), true);
        check(&[("b", "c")], ("c", "b"), false);
        check(&[("d", "e")], ("c", "b"), false);
        // A permission of no keys is none.
        check(&[("c", "a")], ("b", ""), false);
    }

    #[test]
    fn to_read_and_to_write_are_two_things() {
        let permission = |access, key, end| Permission {
            access,
            range: range(key, end),
        };
        let permissions = [
            permission(Access::Read, "a", "c"),
            permission(Access::Write, "b", "d"),
            permission(Access::ReadWrite, "x", ""),
        ];
        let grants = Grants::of(permissions.iter());
        let check = |key, end, access, expected| {
            assert_eq!(
                grants.allow(&range(key, end), access),
                expected,
                "{key} {end} {access:?}"
            );
        };
        check("a", "", Access::Read, true);
        check("a", "", Access::Write, false);
        check("b", "", Access::ReadWrite, true);
        check("b", "c", Access::ReadWrite, true);
        check("c", "", Access::Read, false);
        check("c", "", Access::Write, true);
        check("x", "", Access::ReadWrite, true);
    }
}
