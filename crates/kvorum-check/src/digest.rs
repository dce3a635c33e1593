//! Compares the chained state digests of the members.
//!
//! Members apply the same log, so two digests taken after the same index must be equal, whoever took them
//! and whenever (a member that restarted must agree with itself as well). The digest is chained: once two
//! members differ they differ for ever, so the smallest index that shows it is the one to look at.

use std::collections::BTreeMap;
use std::fmt::Debug;

use crate::{Checker, Failure};

/// Fails if two of the `(member, index, digest)` reports give different digests for one index.
///
/// # Errors
/// A violation that names the smallest such index, what each member reported for it, and the largest
/// smaller index at which several reports agreed.
pub fn compare_digests<D: Copy + Eq + Debug>(reports: &[(u64, u64, D)]) -> Result<(), Failure> {
    let mut by_index: BTreeMap<u64, Vec<(u64, D)>> = BTreeMap::new();
    for &(member, index, digest) in reports {
        by_index.entry(index).or_default().push((member, digest));
    }
    let mut agreed = None;
    for (index, reports) in by_index {
        if reports.iter().any(|(_, digest)| *digest != reports[0].1) {
            let agreed = agreed.map_or("never before".to_string(), |index: u64| {
                format!("last at index {index}")
            });
            return Err(Failure::violation(
                Checker::Digest,
                format!("members diverge at index {index} (agreed {agreed}): (member, digest) = {reports:?}"),
            ));
        }
        if reports.len() > 1 {
            agreed = Some(index);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_digests_pass_and_a_lone_report_compares_with_nothing() {
        assert_eq!(compare_digests::<u64>(&[]), Ok(()));
        assert_eq!(compare_digests(&[(1, 5, 7u64), (2, 5, 7), (3, 6, 9)]), Ok(()));
    }

    #[test]
    fn the_first_divergence_is_named() {
        let reports = [
            (1, 5, 7u64),
            (2, 5, 7),
            (1, 9, 1),
            (2, 9, 2),
            (1, 7, 3),
            (3, 7, 4),
        ];
        let failure = compare_digests(&reports).expect_err("index 7 diverges");
        assert!(
            failure.message.contains("index 7 (agreed last at index 5)"),
            "{failure}"
        );
    }

    #[test]
    fn a_member_must_agree_with_itself_after_a_restart() {
        assert!(compare_digests(&[(1, 5, 7u64), (1, 5, 8)]).is_err());
    }
}
