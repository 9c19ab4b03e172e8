//! The comparer: one actor per node that counts what its blocks hold, compares that with other nodes, and has mended what
//! it lacks.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use spandrel_model::ids::{Bucket, NodeId, ShardId, UnixNanos};
use spandrel_raft::Settings;
use spandrel_storage::block::{BlockError, Inventory, PagePlace, Slice};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::comparison::{NoAnswer, Peer};
use super::ledger::{Ledger, Version};
use super::server::waits_for_page;
use super::sharers::sharers;
use crate::assembler_message::AssemblerMessage;
use crate::buggify::Site;
use crate::housekeeping::expired_before;
use crate::limits::{
    COMPARE_EVERY_MS, COMPARE_LOOK_MS, COMPARE_RETRY_MS, COMPARE_ROUNDS, COMPARE_WAITS,
    COPY_BYTES_PER_SECOND, COUNT_SPANS_PER_SECOND, COUNT_SPANS_PER_SECOND_HURRIED,
    MAX_INVENTORY_SLICES, PAGE_MAX_AGE_MS,
};
use crate::link::Link;
use crate::meters::{self, Stage};
use crate::shared::Shared;

/// The comparer's messages.
pub(crate) enum ComparerMessage {
    /// Go on, or look for what is to be compared.
    Tick,
    /// Compare everything now: somebody waits for it, and wants to know that it has begun.
    Look(oneshot::Sender<()>),
}

impl ractor::Message for ComparerMessage {}

/// The actor.
pub(crate) struct Comparer;

/// What it needs.
pub(crate) struct ComparerArguments {
    pub(crate) shared: Arc<Shared>,
    pub(crate) settings: Settings,
    pub(crate) link: Arc<dyn Link>,
    pub(crate) shards: Arc<[ActorRef<AssemblerMessage>]>,
    pub(crate) ledger: Arc<Ledger>,
}

/// Invariants: one bucket is counted at most, and one compared; a step of either is taken within one message.
pub(crate) struct ComparerState {
    arguments: ComparerArguments,
    /// Buckets that have been looked after.
    rested: BTreeMap<Bucket, Rest>,
    counting: Option<Counting>,
    comparing: Option<Comparing>,
    /// Somebody waits.
    hurries: bool,
}

/// A bucket that is left alone for a while.
struct Rest {
    until: Instant,
    /// It was compared with everybody, and nothing was found to be lacking at last.
    is_whole: bool,
}

struct Counting {
    bucket: Bucket,
    version: Version,
    after: PagePlace,
    inventory: Inventory,
}

struct Comparing {
    bucket: Bucket,
    /// What this node had when the round began; `None`: it is to be counted.
    own: Option<Arc<Inventory>>,
    /// Who is to be asked yet in this round, and in which shards.
    peers: VecDeque<(NodeId, BTreeSet<ShardId>)>,
    /// Who is being asked, and the slices that are left in which it has something else.
    asked: Option<(NodeId, Vec<Slice>)>,
    round: u32,
    waits: u32,
    /// Something was mended in this round.
    mended: bool,
    /// Every peer has answered so far.
    is_whole: bool,
}

impl Actor for Comparer {
    type Msg = ComparerMessage;
    type State = ComparerState;
    type Arguments = ComparerArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<ComparerMessage>,
        arguments: ComparerArguments,
    ) -> Result<ComparerState, ActorProcessingErr> {
        let pause = Duration::from_millis(COMPARE_LOOK_MS);
        myself.send_after(pause, || ComparerMessage::Tick);
        Ok(ComparerState {
            arguments,
            rested: BTreeMap::new(),
            counting: None,
            comparing: None,
            hurries: false,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<ComparerMessage>,
        message: ComparerMessage,
        state: &mut ComparerState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            ComparerMessage::Look(reply) => {
                state.rested.clear();
                state.hurries = true;
                state.note_due();
                let _ = reply.send(());
            }
            ComparerMessage::Tick => {
                if state
                    .arguments
                    .shared
                    .env
                    .buggify
                    .strikes(Site::ComparedAgain)
                {
                    state.rested.clear();
                }
                let pause = state.tick().await;
                state.note_due();
                myself.send_after(pause, || ComparerMessage::Tick);
            }
        }
        Ok(())
    }
}

impl ComparerState {
    /// Takes a step; how long to wait for the next one.
    async fn tick(&mut self) -> Duration {
        let pause = Duration::from_millis(COMPARE_LOOK_MS);
        let shared = &self.arguments.shared;
        // Spans of clients come first, and copies of what has too few.
        let is_copying = shared.copying.load(Ordering::Relaxed) != u64::MAX;
        if shared.pressure() >= 2 || is_copying || shared.disk.is_short() {
            return pause;
        }
        if self.counting.is_some() {
            return self.count().await;
        }
        if let Some(bucket) = self.arguments.ledger.next_wanted() {
            self.begin_counting(bucket);
            return Duration::ZERO;
        }
        if self.comparing.is_none() {
            let next = self.due().next();
            self.comparing = next.map(|(bucket, peers)| Comparing {
                bucket,
                own: self.newest(bucket),
                peers: peers.into_iter().collect(),
                asked: None,
                round: 1,
                waits: 0,
                mended: false,
                is_whole: true,
            });
        }
        let Some(comparing) = self.comparing.take() else {
            self.hurries = false;
            return pause;
        };
        match comparing.own.clone() {
            Some(own) => self.compare(comparing, &own).await,
            None => {
                let bucket = comparing.bucket;
                self.comparing = Some(comparing);
                self.begin_counting(bucket);
                Duration::ZERO
            }
        }
    }

    /// What has been counted of a bucket, if nothing has changed since.
    fn newest(&self, bucket: Bucket) -> Option<Arc<Inventory>> {
        let block = self.arguments.shared.blocks.block(bucket).ok()??;
        self.arguments.ledger.newest(bucket, Version::of(&block))
    }

    /// Buckets that should be compared now, the newest first: those that others should hold too, and that no page is
    /// expected for any more. There need be no block that opens: then all of it is lacking.
    fn due(&self) -> impl Iterator<Item = (Bucket, BTreeMap<NodeId, BTreeSet<ShardId>>)> {
        let (shared, now) = (&self.arguments.shared, Instant::now());
        let state = self.arguments.settings.state();
        let blocks = shared.blocks.buckets().unwrap_or_default();
        let unsealed = blocks
            .iter()
            .filter(|block| !block.sealed && block.unopenable.is_none());
        let unsealed: BTreeSet<Bucket> = unsealed.map(|block| block.bucket).collect();
        let waited = PAGE_MAX_AGE_MS * UnixNanos::PER_MILLI;
        let is_due = |bucket: &Bucket| {
            let age = shared.env.now().since(bucket.end(shared.bucket_nanos));
            let rests = self.rested.get(bucket).is_some_and(|rest| rest.until > now);
            age > waited && !unsealed.contains(bucket) && !rests
        };
        let held = state.holders.range(self.oldest()..);
        let buckets: Vec<Bucket> = held.map(|(bucket, _)| *bucket).filter(is_due).collect();
        let me = shared.node;
        let with_peers = buckets.into_iter().rev().map(move |bucket| {
            let peers = sharers(&state, me, bucket);
            (bucket, peers)
        });
        with_peers.filter(|(_, peers)| !peers.is_empty())
    }

    /// The bucket before it is about to go, if it has not gone.
    fn oldest(&self) -> Bucket {
        let (shared, settings) = (&self.arguments.shared, &self.arguments.settings);
        let retention = settings.state().retention_seconds;
        let kept = expired_before(shared, shared.env.now(), retention);
        Bucket(kept.0.saturating_add(1))
    }

    fn note_due(&mut self) {
        let state = self.arguments.settings.state();
        let holders = &state.holders;
        self.rested.retain(|bucket, _| holders.contains_key(bucket));
        let shared = &self.arguments.shared;
        let due = self.due().count() as u64;
        let differing = self.rested.values().filter(|rest| !rest.is_whole);
        shared.uncompared.store(due, Ordering::Relaxed);
        shared
            .differing
            .store(differing.count() as u64, Ordering::Relaxed);
        let comparing = self.comparing.as_ref();
        let comparing = comparing.map_or(u64::MAX, |comparing| comparing.bucket.0.into());
        shared.comparing.store(comparing, Ordering::Relaxed);
    }

    fn begin_counting(&mut self, bucket: Bucket) {
        match self.arguments.shared.blocks.block(bucket) {
            Ok(Some(block)) => {
                self.counting = Some(Counting {
                    bucket,
                    version: Version::of(&block),
                    after: PagePlace::default(),
                    inventory: Inventory::default(),
                });
            }
            // There is no block that opens: nothing of it is here.
            Ok(None) => self.counted(bucket, &Ok(Arc::default())),
            Err(error) => self.counted(bucket, &Err(error.to_string())),
        }
    }

    /// A bucket has been counted, or cannot be.
    fn counted(&mut self, bucket: Bucket, inventory: &Result<Arc<Inventory>, String>) {
        let comparing = self.comparing.as_mut();
        let Some(comparing) = comparing.filter(|comparing| comparing.bucket == bucket) else {
            return;
        };
        match inventory {
            Ok(own) => comparing.own = Some(Arc::clone(own)),
            Err(_) => self.end(bucket, COMPARE_RETRY_MS, false),
        }
    }

    async fn count(&mut self) -> Duration {
        let Some(mut counting) = self.counting.take() else {
            return Duration::ZERO;
        };
        let (shared, bucket) = (Arc::clone(&self.arguments.shared), counting.bucket);
        let before = counting.inventory.spans_read;
        let step = move || {
            let Counting {
                after, inventory, ..
            } = &mut counting;
            let next = shared.blocks.count_spans(bucket, *after, inventory);
            let block = shared.blocks.block(bucket);
            (counting, next, block)
        };
        let shared = &self.arguments.shared;
        let (mut counting, next, block) = shared.block(Stage::Copy, step).await;
        let spans = counting.inventory.spans_read - before;
        let is_same = matches!(block, Ok(Some(block)) if Version::of(&block) == counting.version);
        let is_large = counting.inventory.tallies.len() > MAX_INVENTORY_SLICES;
        let inventory = match next {
            Err(error) => {
                tracing::error!(bucket = bucket.0, %error, "a block cannot be counted");
                Some(Err(format!(
                    "bucket {} cannot be counted: {error}",
                    bucket.0
                )))
            }
            _ if is_large => {
                tracing::warn!(
                    bucket = bucket.0,
                    "too many tenants and shards to be compared"
                );
                Some(Err(format!(
                    "bucket {} is too large to be counted",
                    bucket.0
                )))
            }
            // It was written to: what was counted is of no time.
            Ok(_) if !is_same => None,
            Ok(Some(next)) => {
                counting.after = next;
                self.counting = Some(counting);
                return self.pause_after(spans);
            }
            Ok(None) => {
                meters::spans_counted(counting.inventory.spans_read);
                Some(Ok(Arc::new(counting.inventory)))
            }
        };
        if let Some(inventory) = inventory {
            self.counted(bucket, &inventory);
            let ledger = &self.arguments.ledger;
            ledger.put(bucket, counting.version, inventory);
        }
        self.pause_after(spans)
    }

    fn pause_after(&self, spans: u64) -> Duration {
        let rate = match self.hurries {
            true => COUNT_SPANS_PER_SECOND_HURRIED,
            false => COUNT_SPANS_PER_SECOND,
        };
        Duration::from_millis(spans * 1_000 / rate)
    }

    /// Asks the next peer what it has, or takes over what it has more of the next slice.
    async fn compare(&mut self, mut comparing: Comparing, own: &Inventory) -> Duration {
        let bucket = comparing.bucket;
        if bucket < self.oldest() {
            return Duration::ZERO;
        }
        let outcome = match comparing.asked.take() {
            Some((node, mut slices)) => match slices.pop() {
                Some(slice) => {
                    let pulled = self.peer(node, bucket, own).mend(&slice).await;
                    if matches!(pulled, Err(NoAnswer::Later(_))) {
                        slices.push(slice);
                    }
                    comparing.asked = Some((node, slices));
                    pulled
                }
                None => Ok(Default::default()),
            },
            None => {
                let Some((node, shards)) = comparing.peers.pop_front() else {
                    return self.end_round(comparing, own).await;
                };
                let differing = match self.waits_for_page(&shards, bucket).await {
                    true => Err(NoAnswer::Later(
                        "traces wait for their page here".to_owned(),
                    )),
                    false => self.peer(node, bucket, own).differing(own, &shards).await,
                };
                match differing {
                    Ok(slices) => {
                        comparing.asked = Some((node, slices));
                        comparing.waits = 0;
                        Ok(Default::default())
                    }
                    Err(reason) => {
                        if matches!(reason, NoAnswer::Later(_)) {
                            comparing.peers.push_front((node, shards));
                        }
                        Err(reason)
                    }
                }
            }
        };
        match outcome {
            Ok(pulled) => {
                if pulled.spans > 0 {
                    let (bucket, spans) = (bucket.0, pulled.spans);
                    tracing::warn!(bucket, spans, "this node lacked spans, and has got them");
                    meters::spans_mended(spans);
                    comparing.mended = true;
                }
                self.comparing = Some(comparing);
                let millis = pulled.bytes as u64 * 1_000 / COPY_BYTES_PER_SECOND;
                Duration::from_millis(millis)
            }
            Err(NoAnswer::Later(reason)) => self.wait(comparing, &reason),
            Err(NoAnswer::Never(reason)) => {
                tracing::debug!(bucket = bucket.0, reason, "not compared");
                comparing.asked = None;
                comparing.is_whole = false;
                self.comparing = Some(comparing);
                Duration::ZERO
            }
        }
    }

    async fn waits_for_page(&self, shards: &BTreeSet<ShardId>, bucket: Bucket) -> bool {
        for shard in shards {
            let waits = match self.arguments.shards.get(usize::from(shard.0)) {
                Some(assembler) => waits_for_page(assembler, bucket).await,
                None => None,
            };
            if waits != Some(false) {
                return true;
            }
        }
        false
    }

    fn wait(&mut self, mut comparing: Comparing, reason: &str) -> Duration {
        let bucket = comparing.bucket;
        comparing.waits += 1;
        if comparing.waits <= COMPARE_WAITS {
            self.comparing = Some(comparing);
            return Duration::from_millis(COMPARE_LOOK_MS);
        }
        tracing::debug!(bucket = bucket.0, reason, "not compared in time");
        self.end(bucket, COMPARE_RETRY_MS, false);
        Duration::ZERO
    }

    /// Everybody was asked. What was mended is counted and compared once more.
    async fn end_round(&mut self, mut comparing: Comparing, own: &Inventory) -> Duration {
        let bucket = comparing.bucket;
        let left = match self.forget_damaged(bucket, own).await {
            Ok(left) => left,
            Err(error) => {
                // Nothing was read that was wrong: the disk has failed.
                (self.arguments.shared.env.halt)(&format!("a block cannot be written: {error}"));
                own.damaged.len()
            }
        };
        comparing.mended |= left < own.damaged.len();
        if comparing.mended && comparing.round < COMPARE_ROUNDS {
            let state = self.arguments.settings.state();
            let peers = sharers(&state, self.arguments.shared.node, bucket);
            self.comparing = Some(Comparing {
                bucket,
                own: None,
                peers: peers.into_iter().collect(),
                asked: None,
                round: comparing.round + 1,
                waits: 0,
                mended: false,
                is_whole: true,
            });
            return Duration::ZERO;
        }
        if left > 0 {
            tracing::error!(
                bucket = bucket.0,
                pages = left,
                "pages cannot be read, and no other node has what was on them"
            );
        }
        if comparing.is_whole && left == 0 && !comparing.mended {
            meters::bucket_compared();
            self.end(bucket, COMPARE_EVERY_MS, true);
        } else {
            self.end(bucket, COMPARE_RETRY_MS, false);
        }
        Duration::ZERO
    }

    fn end(&mut self, bucket: Bucket, millis: u64, is_whole: bool) {
        let until = Instant::now() + Duration::from_millis(millis);
        self.rested.insert(bucket, Rest { until, is_whole });
        if self
            .comparing
            .as_ref()
            .is_some_and(|comparing| comparing.bucket == bucket)
        {
            self.comparing = None;
        }
    }

    fn peer(&self, node: NodeId, bucket: Bucket, own: &Inventory) -> Peer<'_> {
        Peer {
            shared: &self.arguments.shared,
            link: self.arguments.link.as_ref(),
            node,
            bucket,
            unreadable: own.damaged_pages(),
        }
    }

    /// Takes out the pages that could not be read and of which everything is on other pages by now. How many are left.
    async fn forget_damaged(&self, bucket: Bucket, own: &Inventory) -> Result<usize, BlockError> {
        let mut left = 0;
        for place in &own.damaged {
            let (shared, place) = (Arc::clone(&self.arguments.shared), *place);
            let forget = move || {
                let _one = shared
                    .block_writes
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                shared.blocks.forget_page(bucket, place)
            };
            match self.arguments.shared.block(Stage::Copy, forget).await {
                Ok(true) => {
                    let (bucket, page) = (bucket.0, place.page);
                    tracing::warn!(bucket, page, "a page that cannot be read is replaced");
                    meters::page_replaced();
                }
                Ok(false) => left += 1,
                Err(error) if error.is_damage() => {
                    tracing::error!(bucket = bucket.0, %error, "a page is not taken out");
                    left += 1;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(left)
    }
}
