//! Replicas of a shard say the same once everything is quiet: of each trace that two of them know, the same verdict, and
//! of a kept one the same moment of its decision.
//!
//! Not verified: a replica that says nothing of a trace (it joined when the trace was in blocks already), and spans: who
//! holds which part is known to the cluster (P1 asks all of it).

use spandrel_model::ids::{NodeId, TraceId};
use spandrel_model::verdict::Verdict;

use super::{Violation, violation};
use crate::model::Seen;

/// What one replica alone says of a trace.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Said {
    pub(crate) node: NodeId,
    /// `None`: it knows of no decision.
    pub(crate) decision: Option<Seen>,
}

/// `said`: what each in-sync node of its shard says of the trace.
pub(crate) fn replicas_say_the_same(trace_id: TraceId, said: &[Said]) -> Result<(), Violation> {
    let known = said
        .iter()
        .filter_map(|said| said.decision.as_ref().map(|seen| (said.node, seen)));
    let known: Vec<_> = known.collect();
    let Some((first, one)) = known.first() else {
        return Ok(());
    };
    for (node, other) in &known {
        let same_time = one.verdict == Verdict::Drop || one.decided_at == other.decided_at;
        if one.verdict != other.verdict || !same_time {
            return Err(violation(
                "converged",
                format!(
                    "of trace {trace_id} node {} says {one:?}, and node {} says {other:?}",
                    first.0, node.0
                ),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use spandrel_model::ids::UnixNanos;

    fn said(node: u64, verdict: Verdict, decided_at: u64) -> Said {
        Said {
            node: NodeId(node),
            decision: Some(Seen {
                verdict,
                decided_at: UnixNanos(decided_at),
                policy: String::new(),
                until: UnixNanos(0),
            }),
        }
    }

    #[test]
    fn replicas_that_differ_are_found() {
        let id = TraceId([1; 16]);
        let silent = Said {
            node: NodeId(3),
            decision: None,
        };
        let same = [said(1, Verdict::Keep, 7), silent, said(2, Verdict::Keep, 7)];
        assert_eq!(replicas_say_the_same(id, &same), Ok(()));
        let differ = [said(1, Verdict::Keep, 7), said(2, Verdict::Drop, 7)];
        assert!(replicas_say_the_same(id, &differ).is_err());
        let twice = [said(1, Verdict::Keep, 7), said(2, Verdict::Keep, 8)];
        assert!(replicas_say_the_same(id, &twice).is_err());
        let drops = [said(1, Verdict::Drop, 7), said(2, Verdict::Drop, 8)];
        assert_eq!(replicas_say_the_same(id, &drops), Ok(()));
    }
}
