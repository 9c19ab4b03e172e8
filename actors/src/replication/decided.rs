//! What was decided lately, for replicas that have just joined. Shards that are filled at the same time share a walk
//! through the journal: its frames hold records of all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use spandrel_model::ids::{Lsn, ShardId, TenantId, TraceId, UnixNanos};
use spandrel_model::verdict::VerdictRecord;
use spandrel_storage::journal::{Frame, FrameId, Journal, SliceInfo};
use tokio::sync::oneshot;

use crate::limits::{REPEATED_JOURNAL_BYTES, REPEATED_VERDICTS_MS};
use crate::meters::Stage;
use crate::shared::Shared;

/// A trace and whose it is.
pub(super) type Owned = (TenantId, TraceId);

type Answer = Result<Vec<VerdictRecord>, String>;

/// The shards that wait for a walk.
#[derive(Default)]
pub(crate) struct DecidedLately {
    asked: Mutex<Vec<Asked>>,
    /// Held by whoever walks, for all that have asked by then.
    walking: tokio::sync::Mutex<()>,
}

struct Asked {
    shard: ShardId,
    held: BTreeSet<Owned>,
    reply: oneshot::Sender<Answer>,
}

impl DecidedLately {
    fn asked(&self) -> MutexGuard<'_, Vec<Asked>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Walks for all that have asked and were not answered, or waits for the walk of another.
    async fn ask<Walk>(
        &self,
        shard: ShardId,
        held: BTreeSet<Owned>,
        walk: impl FnOnce(Vec<Asked>) -> Walk,
    ) -> Answer
    where
        Walk: Future<Output = ()>,
    {
        let (reply, mut answer) = oneshot::channel();
        self.asked().push(Asked { shard, held, reply });
        {
            let _alone = self.walking.lock().await;
            // The walk before this one may have been for this shard too.
            if let Ok(answer) = answer.try_recv() {
                return answer;
            }
            let asked = std::mem::take(&mut *self.asked());
            walk(asked).await;
        }
        answer
            .await
            .map_err(|_| "the node is stopping".to_owned())?
    }
}

/// The newest verdict about each trace of a shard that was decided lately and is not held: spans that come late are of
/// these traces, and a replica that did not know would decide them anew when it leads.
pub(super) async fn decided_lately(
    shared: &Arc<Shared>,
    shard: ShardId,
    held: BTreeSet<Owned>,
) -> Answer {
    let walk = |asked| async {
        let walker = Arc::clone(shared);
        let walk = move || walk(&walker, asked);
        shared.block(Stage::Frame, walk).await;
    };
    shared.decided_lately.ask(shard, held, walk).await
}

/// What is found of a shard, or why it could not be read.
type Found = Result<Search, String>;

/// What is looked for of one shard.
struct Search {
    /// From this record on.
    first: Lsn,
    newest: BTreeMap<Owned, VerdictRecord>,
}

/// Walks once for all, and answers each.
fn walk(shared: &Shared, asked: Vec<Asked>) {
    let shards = asked.iter().map(|asked| asked.shard).collect();
    let found = search(&shared.journal, shared.env.now(), shards);
    for Asked { shard, held, reply } in asked {
        // It is one of those that were searched.
        let answer = found[&shard].as_ref().map_err(Clone::clone).map(|search| {
            let newest = search.newest.iter();
            let unknown = newest.filter(|(owned, _)| !held.contains(owned));
            unknown.map(|(_, verdict)| verdict.clone()).collect()
        });
        let _ = reply.send(answer);
    }
}

fn search(
    journal: &Journal,
    now: UnixNanos,
    shards: BTreeSet<ShardId>,
) -> BTreeMap<ShardId, Found> {
    let slices = journal.slices();
    let mut start: Option<FrameId> = None;
    let mut begin = |shard| -> Found {
        let first = first_repeated(&slices, shard, now);
        let located = journal.locate_from(shard, first);
        if let Some((_, id)) = located.map_err(|error| error.to_string())? {
            start = Some(start.map_or(id, |start| start.min(id)));
        }
        Ok(Search {
            first,
            newest: BTreeMap::new(),
        })
    };
    let begun = shards.into_iter().map(|shard| (shard, begin(shard)));
    let mut found: BTreeMap<ShardId, Found> = begun.collect();
    if let Some(start) = start {
        let before = FrameId(start.0.saturating_sub(1));
        // A frame that cannot be read was reported where it was found.
        let frames = journal.walk_verdicts(Some(before)).filter_map(Result::ok);
        frames.for_each(|(_, frame)| look(journal, &frame, &mut found));
    }
    found
}

/// Takes from a frame what is newer than what is known.
fn look(journal: &Journal, frame: &Frame, found: &mut BTreeMap<ShardId, Found>) {
    for (number, head) in frame.records().iter().enumerate() {
        if !head.kind.is_verdicts() {
            continue;
        }
        let Some(of_shard) = found.get_mut(&head.shard) else {
            continue;
        };
        let Ok(search) = of_shard else { continue };
        if head.lsn < search.first || journal.is_void(head.shard, head.lsn) {
            continue;
        }
        match frame.verdicts(number) {
            Ok(verdicts) => search.take(verdicts),
            Err(error) => *of_shard = Err(error.to_string()),
        }
    }
}

impl Search {
    fn take(&mut self, verdicts: Vec<VerdictRecord>) {
        for verdict in verdicts {
            let owned = (verdict.tenant.clone(), verdict.trace_id);
            let known = self.newest.get(&owned);
            if known.is_none_or(|known| known.input_lsn <= verdict.input_lsn) {
                self.newest.insert(owned, verdict);
            }
        }
    }
}

/// The first record of a shard whose verdicts are repeated: all that the newest [`REPEATED_JOURNAL_BYTES`] of the journal
/// hold, and at least those of the last [`REPEATED_VERDICTS_MS`].
pub(super) fn first_repeated(slices: &[SliceInfo], shard: ShardId, now: UnixNanos) -> Lsn {
    let since = now.minus(REPEATED_VERDICTS_MS * UnixNanos::PER_MILLI);
    let mut bytes = 0;
    let recent = slices.iter().rev().take_while(|slice| {
        bytes += slice.allocated_bytes;
        bytes <= REPEATED_JOURNAL_BYTES || slice.last_commit >= Some(since)
    });
    let ranges = recent.flat_map(|slice| slice.shards.iter().filter(|range| range.shard == shard));
    ranges.map(|range| range.first).min().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// One walks for itself; the four that ask meanwhile are answered by one more walk.
    #[tokio::test]
    async fn who_asks_while_another_walks_shares_the_next_walk() {
        let (decided, walks) = (DecidedLately::default(), AtomicUsize::new(0));
        let walk = |asked: Vec<Asked>| async {
            walks.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
            for asked in asked {
                asked.reply.send(Ok(Vec::new())).unwrap();
            }
        };
        let ask = |shard| decided.ask(ShardId(shard), BTreeSet::new(), walk);
        let answers = tokio::join!(ask(0), ask(1), ask(2), ask(1), ask(3));
        let empty = Ok(Vec::new());
        assert_eq!(
            answers,
            (
                empty.clone(),
                empty.clone(),
                empty.clone(),
                empty.clone(),
                empty
            )
        );
        assert_eq!(walks.load(Ordering::Relaxed), 2);
        assert!(decided.asked().is_empty());
    }
}
