//! What a range or a compare answers, on any [`Source`]: etcd's rules (`txn/range.go`, `txn/txn.go`).

use std::cmp::Ordering;
use std::ops::ControlFlow;

use kvorum_model::{
    Compare, CompareResult, CompareTarget, KeyValue, RangeRequest, RangeResponse, Revision, SortOrder,
    SortTarget,
};

use super::{ReadError, Source, check_bounds, check_revision, kv_bytes};

/// Records kept beyond twice the limit before a sorted answer is trimmed.
const TRIM_RECORDS: usize = 1024;

/// Answers a read. An answer that would hold more than `bytes_max` is refused.
pub(crate) fn answer_range(
    source: &impl Source,
    request: &RangeRequest,
    bytes_max: usize,
) -> Result<RangeResponse, ReadError> {
    check_bounds(&request.range)?;
    let at = check_revision(request.revision, source.revision(), source.compacted())?;
    if request.range.is_point() {
        let found = source.point(&request.range.key, at)?;
        return finish(request, i64::from(found.is_some()), found.into_iter().collect());
    }
    let limit = usize::try_from(request.limit).unwrap_or(0);
    // As in etcd, a sort target without an order does not keep the limit from being applied first.
    let push_down = limit > 0 && request.sort_order == SortOrder::None && !is_filtered(request);
    let fetch_max = if push_down {
        limit.saturating_add(1)
    } else {
        usize::MAX
    };
    let trim_above = match limit {
        0 => usize::MAX,
        _ => limit.saturating_mul(2).saturating_add(TRIM_RECORDS),
    };
    let drop_values = request.keys_only && request.sort_target != SortTarget::Value;

    let (mut kvs, mut count, mut bytes) = (Vec::new(), 0, 0);
    let mut too_large = false;
    source.each(&request.range, at, &mut |found| {
        count += 1;
        if request.count_only || kvs.len() >= fetch_max {
            return Ok(ControlFlow::Continue(()));
        }
        let mut kv = found.into_kv()?;
        if !passes(request, &kv) {
            return Ok(ControlFlow::Continue(()));
        }
        if drop_values {
            kv.value.clear();
        }
        bytes += kv_bytes(&kv);
        kvs.push(kv);
        if kvs.len() > trim_above {
            sort(request, &mut kvs);
            kvs.truncate(limit + 1);
            bytes = kvs.iter().map(kv_bytes).sum();
        }
        too_large = bytes > bytes_max;
        Ok(if too_large {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        })
    })?;
    if too_large {
        return Err(ReadError::TooLarge { bytes_max });
    }
    finish(request, count, kvs)
}

/// Filters (of a point read), sorts, cuts and strips.
fn finish(request: &RangeRequest, count: i64, mut kvs: Vec<KeyValue>) -> Result<RangeResponse, ReadError> {
    if request.count_only {
        return Ok(RangeResponse {
            kvs: Vec::new(),
            more: false,
            count,
        });
    }
    kvs.retain(|kv| passes(request, kv));
    sort(request, &mut kvs);
    let mut more = false;
    if let Ok(limit @ 1..) = usize::try_from(request.limit)
        && kvs.len() > limit
    {
        kvs.truncate(limit);
        more = true;
    }
    if request.keys_only {
        kvs.iter_mut().for_each(|kv| kv.value.clear());
    }
    Ok(RangeResponse { kvs, more, count })
}

fn is_filtered(request: &RangeRequest) -> bool {
    let filters = [
        request.min_mod_revision,
        request.max_mod_revision,
        request.min_create_revision,
        request.max_create_revision,
    ];
    filters != [0; 4]
}

fn passes(request: &RangeRequest, kv: &KeyValue) -> bool {
    let within = |value: Revision, min: Revision, max: Revision| {
        (min == 0 || value >= min) && (max == 0 || value <= max)
    };
    within(
        kv.mod_revision,
        request.min_mod_revision,
        request.max_mod_revision,
    ) && within(
        kv.create_revision,
        request.min_create_revision,
        request.max_create_revision,
    )
}

/// Sorts records that are in key order; equal ones stay in it.
fn sort(request: &RangeRequest, kvs: &mut [KeyValue]) {
    let order = match request.sort_order {
        SortOrder::None if request.sort_target == SortTarget::Key => return,
        SortOrder::None => SortOrder::Ascend,
        order => order,
    };
    kvs.sort_by(|a, b| {
        let ascending = match request.sort_target {
            SortTarget::Key => a.key.cmp(&b.key),
            SortTarget::Version => a.version.cmp(&b.version),
            SortTarget::Create => a.create_revision.cmp(&b.create_revision),
            SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
            SortTarget::Value => a.value.cmp(&b.value),
        };
        if order == SortOrder::Descend {
            ascending.reverse()
        } else {
            ascending
        }
    });
}

/// Whether a compare holds in a state.
pub(crate) fn holds(source: &impl Source, compare: &Compare) -> Result<bool, ReadError> {
    check_bounds(&compare.range)?;
    if let CompareTarget::LiveKeys(operand) = compare.target {
        let live = i64::try_from(source.live_keys()).unwrap_or(i64::MAX);
        return Ok(is_as_asked(compare.result, live.cmp(&operand)));
    }
    if compare.range.is_point() {
        let found = source.point(&compare.range.key, None)?;
        return Ok(found.map_or_else(|| holds_of_missing(compare), |kv| holds_of(compare, &kv)));
    }
    let (mut found_any, mut all) = (false, true);
    source.each(&compare.range, None, &mut |found| {
        found_any = true;
        all = holds_of(compare, &found.into_kv()?);
        Ok(if all {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        })
    })?;
    Ok(if found_any { all } else { holds_of_missing(compare) })
}

fn holds_of_missing(compare: &Compare) -> bool {
    // There is no word for a missing value, so no comparison with one holds.
    !matches!(compare.target, CompareTarget::Value(_)) && holds_of(compare, &KeyValue::default())
}

fn holds_of(compare: &Compare, kv: &KeyValue) -> bool {
    let ordering = match &compare.target {
        CompareTarget::Version(version) => kv.version.cmp(version),
        CompareTarget::Create(revision) => kv.create_revision.cmp(revision),
        CompareTarget::Mod(revision) => kv.mod_revision.cmp(revision),
        CompareTarget::Value(value) => kv.value.cmp(value),
        CompareTarget::Lease(lease) => kv.lease.cmp(lease),
        CompareTarget::LiveKeys(_) => unreachable!("asked of the whole store, not of a key"),
    };
    is_as_asked(compare.result, ordering)
}

fn is_as_asked(result: CompareResult, ordering: Ordering) -> bool {
    match result {
        CompareResult::Equal => ordering == Ordering::Equal,
        CompareResult::Greater => ordering == Ordering::Greater,
        CompareResult::Less => ordering == Ordering::Less,
        CompareResult::NotEqual => ordering != Ordering::Equal,
    }
}
