//! What was decided lately, for replicas that have just joined. Shards that are filled at the same time share a walk
//! through the journal: its frames hold records of all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

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
    fn asked(&self) -> std::sync::MutexGuard<'_, Vec<Asked>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The newest verdict about each trace of a shard that was decided lately and is not held: spans that come late are of
/// these traces, and a replica that did not know would decide them anew when it leads.
pub(super) async fn decided_lately(
    shared: &Arc<Shared>,
    shard: ShardId,
    held: BTreeSet<Owned>,
) -> Answer {
    let (reply, mut answer) = oneshot::channel();
    shared
        .decided_lately
        .asked()
        .push(Asked { shard, held, reply });
    {
        let _alone = shared.decided_lately.walking.lock().await;
        // The walk before this one may have been for this shard too.
        if let Ok(answer) = answer.try_recv() {
            return answer;
        }
        let asked = std::mem::take(&mut *shared.decided_lately.asked());
        let walker = Arc::clone(shared);
        let walk = move || walk(&walker, asked);
        shared.block(Stage::Frame, walk).await;
    }
    answer
        .await
        .map_err(|_| "the node is stopping".to_owned())?
}

/// What is looked for of one shard.
struct Search {
    /// From this record on.
    first: Lsn,
    asked: Asked,
    newest: BTreeMap<Owned, VerdictRecord>,
}

/// Walks once for all, and answers each.
fn walk(shared: &Shared, asked: Vec<Asked>) {
    let (journal, now) = (&shared.journal, shared.env.now());
    let slices = journal.slices();
    let mut start: Option<FrameId> = None;
    let mut searches: BTreeMap<ShardId, Vec<Search>> = BTreeMap::new();
    for asked in asked {
        let first = first_repeated(&slices, asked.shard, now);
        match journal.locate_from(asked.shard, first) {
            Ok(Some((_, id))) => start = Some(start.map_or(id, |start| start.min(id))),
            Ok(None) => {}
            Err(error) => {
                let _ = asked.reply.send(Err(error.to_string()));
                continue;
            }
        }
        searches.entry(asked.shard).or_default().push(Search {
            first,
            asked,
            newest: BTreeMap::new(),
        });
    }
    let searched = start.map_or(Ok(()), |start| {
        let before = FrameId(start.0.saturating_sub(1));
        let frames = journal.walk_verdicts(Some(before));
        // A frame that cannot be read was reported where it was found.
        let mut frames = frames.filter_map(Result::ok);
        frames.try_for_each(|(_, frame)| look(journal, &frame, &mut searches))
    });
    for Search { asked, newest, .. } in searches.into_values().flatten() {
        let found = searched.clone().map(|()| newest.into_values().collect());
        let _ = asked.reply.send(found);
    }
}

/// Takes from a frame what is newer than what is known.
fn look(
    journal: &Journal,
    frame: &Frame,
    searches: &mut BTreeMap<ShardId, Vec<Search>>,
) -> Result<(), String> {
    for (number, head) in frame.records().iter().enumerate() {
        if !head.kind.is_verdicts() {
            continue;
        }
        let Some(searches) = searches.get_mut(&head.shard) else {
            continue;
        };
        let of_it = searches.iter().any(|search| head.lsn >= search.first);
        if !of_it || journal.is_void(head.shard, head.lsn) {
            continue;
        }
        for verdict in frame.verdicts(number).map_err(|error| error.to_string())? {
            let owned = (verdict.tenant.clone(), verdict.trace_id);
            for search in &mut *searches {
                let known = search.newest.get(&owned);
                let is_newer = known.is_none_or(|known| known.input_lsn <= verdict.input_lsn);
                if is_newer && !search.asked.held.contains(&owned) {
                    search.newest.insert(owned.clone(), verdict.clone());
                }
            }
        }
    }
    Ok(())
}

/// The first record of a shard whose verdicts are repeated: all that the newest [`REPEATED_JOURNAL_BYTES`] of the journal
/// hold, and at least those of the last [`REPEATED_VERDICTS_MS`].
fn first_repeated(slices: &[SliceInfo], shard: ShardId, now: UnixNanos) -> Lsn {
    let since = now.minus(REPEATED_VERDICTS_MS * UnixNanos::PER_MILLI);
    let mut bytes = 0;
    let recent = slices.iter().rev().take_while(|slice| {
        bytes += slice.allocated_bytes;
        bytes <= REPEATED_JOURNAL_BYTES || slice.last_commit >= Some(since)
    });
    let ranges = recent.flat_map(|slice| slice.shards.iter().filter(|range| range.shard == shard));
    ranges.map(|range| range.first).min().unwrap_or_default()
}
