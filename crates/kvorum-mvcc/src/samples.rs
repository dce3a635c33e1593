//! Which revision the store had when: pairs of entry time and revision, for compaction by age.

use std::collections::VecDeque;

use bytes::Bytes;
use kvorum_model::Revision;

use crate::layout::corrupt;
use crate::state::{Fields, SAMPLES_KEY};
use crate::store::StoreError;

/// Entry time between two samples, in ms.
const INTERVAL_MS: u64 = 60 * 1000;
/// Most samples: of a longer history the oldest part is compacted in coarser steps.
const SAMPLES_MAX: usize = 256;

/// Samples in ascending order of time; part of the replicated state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Samples(VecDeque<(u64, Revision)>);

impl Samples {
    /// Notes that the store stood at `revision` at `time_ms`; the write to make, if the sample was due.
    pub fn note(&mut self, time_ms: u64, revision: Revision) -> Option<(Bytes, Option<Bytes>)> {
        if let Some((last_ms, last)) = self.0.back()
            && (time_ms < last_ms.saturating_add(INTERVAL_MS) || revision == *last)
        {
            return None;
        }
        self.0.push_back((time_ms, revision));
        if self.0.len() > SAMPLES_MAX {
            // Every second of the older half goes.
            let older = SAMPLES_MAX / 2;
            let mut at = 0;
            self.0.retain(|_| {
                at += 1;
                at > older || at % 2 == 1
            });
        }
        Some(self.record())
    }

    /// The newest revision that was reached at `time_ms` or before.
    pub fn at(&self, time_ms: u64) -> Option<Revision> {
        let after = self.0.partition_point(|(sample_ms, _)| *sample_ms <= time_ms);
        Some(self.0.get(after.checked_sub(1)?)?.1)
    }

    /// Forgets what compaction has made useless; the write to make, if there is one.
    pub fn compacted(&mut self, revision: Revision) -> Option<(Bytes, Option<Bytes>)> {
        let keep = self.0.partition_point(|(_, sample)| *sample <= revision);
        if keep == 0 {
            return None;
        }
        // The newest of them stays: it says when the next is due.
        self.0.drain(..keep - 1);
        Some(self.record())
    }

    fn record(&self) -> (Bytes, Option<Bytes>) {
        let mut out = Vec::with_capacity(self.0.len() * 16);
        for (time_ms, revision) in &self.0 {
            out.extend_from_slice(&time_ms.to_le_bytes());
            out.extend_from_slice(&revision.to_le_bytes());
        }
        (SAMPLES_KEY, Some(out.into()))
    }

    pub fn decode(record: &[u8]) -> Result<Samples, StoreError> {
        let mut fields = Fields(record);
        let mut samples = VecDeque::with_capacity(record.len() / 16);
        while fields.end().is_err() {
            let sample = (fields.u64()?, fields.u64()? as Revision);
            if samples
                .back()
                .is_some_and(|last: &(u64, Revision)| last.0 > sample.0 || last.1 > sample.1)
            {
                return Err(corrupt("samples of time and revision are out of order"));
            }
            samples.push_back(sample);
        }
        Ok(Samples(samples))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_revision_of_an_hour_ago_is_found() {
        let mut samples = Samples::default();
        for minute in 0..120u64 {
            samples.note(minute * INTERVAL_MS, minute as Revision + 2);
            assert_eq!(samples.note(minute * INTERVAL_MS + 1, 1_000), None, "not due yet");
        }
        assert_eq!(samples.at(59 * INTERVAL_MS + 30_000), Some(61));
        let mut late = Samples::default();
        late.note(5_000, 2);
        assert_eq!(late.at(4_999), None);
        let (_, record) = samples.compacted(61).unwrap();
        assert_eq!(Samples::decode(&record.unwrap()).unwrap(), samples);
        assert_eq!(samples.0.front(), Some(&(59 * INTERVAL_MS, 61)));
    }

    #[test]
    fn long_histories_get_coarser_not_longer() {
        let mut samples = Samples::default();
        for minute in 0..10_000u64 {
            samples.note(minute * INTERVAL_MS, minute as Revision + 2);
            assert!(samples.0.len() <= SAMPLES_MAX);
        }
        assert_eq!(samples.at(u64::MAX), Some(10_001));
        assert_eq!(samples.at(0), Some(2));
        assert!(samples.at(5_000 * INTERVAL_MS).unwrap() <= 5_002);
    }
}
