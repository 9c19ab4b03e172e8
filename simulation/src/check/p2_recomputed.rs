//! P2: every verdict that the journal holds follows from what its record says: verdict = policy(inputs).
//!
//! Not verified: that the inputs are those of the spans (a keep of errors is checked on what clients sent), and the
//! verdicts of slices that were trimmed.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use spandrel_model::policy::PolicySet;
use spandrel_model::verdict::{PROMOTED_POLICY, Trigger, Verdict, VerdictRecord};
use spandrel_storage::disk::SimulatedDisk;
use spandrel_storage::journal::{Journal, JournalOptions, RecordKind};

use super::{Violation, violation};
use crate::world::World;

/// Reads the journal in `dir` of a disk after the last stop.
pub(crate) fn verdicts_follow_from_their_records(
    world: &World,
    disk: &SimulatedDisk,
    dir: &Path,
) -> Result<(), Violation> {
    let unreadable =
        |error: &dyn std::fmt::Display| violation("P2", format!("the journal: {error}"));
    let disk = Arc::new(disk.clone());
    let opened = Journal::open(disk, dir, JournalOptions::default(), world.now());
    let (journal, _) = opened.map_err(|error| unreadable(&error))?;
    let mut sets = BTreeMap::new();
    for (version, yaml) in world.policies().iter() {
        let set = PolicySet::parse(yaml, *version).map_err(|error| unreadable(&error))?;
        sets.insert(*version, set);
    }
    let mut count = 0;
    for frame in journal.walk(None) {
        let (_, frame) = frame.map_err(|error| unreadable(&error))?;
        for (number, head) in frame.records().iter().enumerate() {
            if head.kind != RecordKind::Verdicts {
                continue;
            }
            for record in frame.verdicts(number).map_err(|error| unreadable(&error))? {
                check(&sets, &record)
                    .map_err(|problem| violation("P2", format!("{problem}: {record:?}")))?;
                count += 1;
            }
        }
    }
    world.note(format!("{count} verdicts recomputed"));
    Ok(())
}

fn check(sets: &BTreeMap<u32, PolicySet>, record: &VerdictRecord) -> Result<(), String> {
    let Some(set) = sets.get(&record.policy_version) else {
        return Err("a verdict by a policy that was never in force".to_owned());
    };
    if record.trigger == Trigger::Promoted {
        return match (record.verdict, record.policy) {
            (Verdict::Keep, PROMOTED_POLICY) => Ok(()),
            _ => Err("a promotion that does not keep".to_owned()),
        };
    }
    let again = set.recompute(&record.facts(), &record.limiters);
    let said = (record.verdict, record.policy, record.probability);
    match (again.verdict, again.policy, again.probability) {
        recomputed if recomputed == said => Ok(()),
        recomputed => Err(format!(
            "a verdict that says {said:?} is recomputed as {recomputed:?}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smallvec::SmallVec;
    use spandrel_model::ids::{Bucket, Lsn, TraceId, UnixNanos};
    use spandrel_model::verdict::CERTAIN;

    #[test]
    fn a_verdict_that_its_inputs_do_not_give_is_found() {
        let yaml = "policies:\n  - {name: slow, type: latency, threshold_ms: 1000}\n";
        let sets = BTreeMap::from([(1, PolicySet::parse(yaml, 1).unwrap())]);
        let mut record = VerdictRecord {
            tenant: "default".parse().unwrap(),
            trace_id: TraceId([1; 16]),
            verdict: Verdict::Keep,
            trigger: Trigger::Idle,
            pressure: 0,
            policy_version: 1,
            policy: 0,
            votes: 0,
            probability: CERTAIN,
            limiters: SmallVec::new(),
            decided_at: UnixNanos(9),
            bucket: Bucket(0),
            input_lsn: Lsn(1),
            start: UnixNanos(0),
            end: UnixNanos(2 * UnixNanos::PER_SECOND),
            span_count: 1,
            references: SmallVec::new(),
        };
        assert_eq!(check(&sets, &record), Ok(()));
        record.end = UnixNanos(5);
        assert!(check(&sets, &record).is_err());
        record.trigger = Trigger::Promoted;
        assert!(check(&sets, &record).is_err());
        record.policy = PROMOTED_POLICY;
        assert_eq!(check(&sets, &record), Ok(()));
        record.policy_version = 2;
        assert!(check(&sets, &record).is_err());
    }
}
