//! What a shard holds, sent again to copies that join (production: `replication/refill.rs`).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use spandrel_model::ids::{Lsn, TraceId};
use spandrel_model::verdict::{Trigger, Verdict, VerdictRecord};

use super::log::{Content, Kind};
use super::node::{Fill, Role, Ticket, Waiting, Work};
use super::world::World;

/// Records of a fill that are on their way at once.
const FILL_RECORDS: usize = 1;

impl World {
    /// What the shard held when replicas joined is sent again, once all of it has come to its assembler.
    pub(crate) fn attach_next(&mut self, node: usize, shard: usize) {
        let Some(process) = self.nodes[node].process.as_mut() else {
            return;
        };
        let Role::Primary(primary) = &mut process.sides[shard].role else {
            return;
        };
        let (joined, term) = (primary.ask_again(), primary.term);
        if joined.is_empty() {
            return;
        }
        let left = self.held_again(node, shard);
        let Some(process) = self.nodes[node].process.as_mut() else {
            return;
        };
        let number = process.number();
        process.fills.insert(
            number,
            Fill {
                shard,
                term,
                joined,
                left,
                open: 0,
                waits: false,
                has_begun: false,
            },
        );
        self.go_on_filling(node, number);
    }

    /// The records of a fill: verdicts of traces that are held and were dropped once, spans, everything that was decided, and verdicts
    /// of what is kept.
    fn held_again(&mut self, node: usize, shard: usize) -> VecDeque<Arc<Content>> {
        let Some(process) = self.nodes[node].process.as_ref() else {
            return VecDeque::new();
        };
        let mut held = process.sides[shard].state.held();
        let log = &self.nodes[node].disk[shard];
        // Also of those that the shard is just asking about.
        for trace in held.iter_mut().filter(|trace| trace.verdict.is_none()) {
            trace.verdict = log.verdict(trace.trace_id).cloned();
        }
        let owned: BTreeSet<TraceId> = held
            .iter()
            .filter(|trace| trace.verdict.is_some())
            .map(|trace| trace.trace_id)
            .collect();
        let (mut verdicts, mut first) = (Vec::new(), Vec::new());
        let mut wanted: BTreeMap<Lsn, BTreeSet<TraceId>> = BTreeMap::new();
        for trace in held {
            match trace.verdict {
                Some(verdict) if follows_drop(&verdict) => first.push(verdict),
                verdict => verdicts.extend(verdict),
            }
            for lsn in trace.references {
                wanted.entry(lsn).or_default().insert(trace.trace_id);
            }
        }
        let decided: Vec<VerdictRecord> = log
            .verdicts()
            .filter(|record| !owned.contains(&record.trace_id))
            .cloned()
            .collect();
        let of = |records: Vec<VerdictRecord>| Kind::Verdicts {
            records,
            again: true,
        };
        let mut kinds = Vec::new();
        if !first.is_empty() {
            kinds.push(of(first));
        }
        let mut repeated = BTreeSet::new();
        for (lsn, traces) in wanted {
            let Some(content) = log.get(lsn) else {
                continue;
            };
            let Kind::Spans { batch, rows, .. } = &content.kind else {
                continue;
            };
            let mut is_wanted = |row: &u32| {
                let span = batch.spans.get(*row as usize);
                span.is_some_and(|span| {
                    let key = (span.trace_id, span.span_id, span.hash);
                    traces.contains(&span.trace_id) && repeated.insert(key)
                })
            };
            let rows: Vec<u32> = rows.iter().copied().filter(&mut is_wanted).collect();
            let values = rows.iter().filter_map(|row| batch.spans.get(*row as usize));
            let values: Vec<u64> = values
                .map(|span| u64::from_be_bytes(span.span_id.0))
                .collect();
            if !rows.is_empty() {
                kinds.push(Kind::Spans {
                    batch: Arc::clone(batch),
                    rows,
                    values,
                    again: true,
                });
            }
        }
        if !decided.is_empty() {
            kinds.push(of(decided));
        }
        // Also when there are none: every replica that joined has a record behind which it goes on.
        kinds.push(of(verdicts));
        kinds.into_iter().map(|kind| self.content(kind)).collect()
    }

    fn go_on_filling(&mut self, node: usize, number: u64) {
        loop {
            let process = self.nodes[node].process.as_mut();
            let Some(fill) = process.and_then(|process| process.fills.get_mut(&number)) else {
                return;
            };
            // The last one only when all others are on every copy, and nothing beside the verdicts that come first.
            let is_alone = fill.left.len() == 1 || fill.waits;
            if fill.open >= FILL_RECORDS || (is_alone && fill.open > 0) {
                return;
            }
            let Some(content) = fill.left.pop_front() else {
                break;
            };
            let is_first = !std::mem::replace(&mut fill.has_begun, true);
            fill.waits = is_first && matches!(content.kind, Kind::Verdicts { .. });
            fill.open += 1;
            let shard = fill.shard;
            self.queue(
                node,
                Waiting {
                    shard,
                    work: Work {
                        content,
                        ticket: Ticket::Fill(number),
                    },
                    reign: None,
                },
            );
        }
    }

    /// A record of a fill counts.
    pub(crate) fn filled(&mut self, node: usize, number: u64) {
        let Some(process) = self.nodes[node].process.as_mut() else {
            return;
        };
        let Some(fill) = process.fills.get_mut(&number) else {
            return;
        };
        fill.open -= 1;
        if fill.open > 0 || !fill.left.is_empty() {
            return self.go_on_filling(node, number);
        }
        let Some(fill) = process.fills.remove(&number) else {
            return;
        };
        if let Role::Primary(primary) = &mut process.sides[fill.shard].role
            && primary.term == fill.term
        {
            primary.sent_again(&fill.joined, true);
        }
    }
}

/// A drop, or a keep that has taken the place of one.
fn follows_drop(verdict: &VerdictRecord) -> bool {
    verdict.verdict == Verdict::Drop
        || matches!(verdict.trigger, Trigger::LateSpan | Trigger::Promoted)
}
