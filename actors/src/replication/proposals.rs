//! Proposes changes of shards, and holds those shards that must be still for it.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use ractor::ActorRef;
use spandrel_model::ids::{ShardId, Term};
use spandrel_raft::state::ShardChange;
use spandrel_raft::{ClusterState, Command, Conflict, ProposeError, Settings};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout, timeout_at};

use super::wishes::Wish;
use crate::buggify::{Buggify, Site};
use crate::limits::{HOLD_DEADLINE_MS, HOLD_TOGETHER_MS};
use crate::writer::WriterMessage;

/// Carries wishes to the settings.
///
/// Invariant: a shard in `in_doubt` is held in the term that stands there, unless that term is over.
pub(super) struct Proposals {
    settings: Settings,
    writer: ActorRef<WriterMessage>,
    buggify: Buggify,
    /// Shards whose change was proposed and may have taken place.
    in_doubt: BTreeMap<ShardId, Term>,
}

impl Proposals {
    pub(super) fn new(
        settings: Settings,
        writer: ActorRef<WriterMessage>,
        buggify: Buggify,
    ) -> Self {
        Self {
            settings,
            writer,
            buggify,
            in_doubt: BTreeMap::new(),
        }
    }

    /// One round: what needs no hold first. Nothing more is held while something is in doubt: without a majority each
    /// round would stop more shards that could go on.
    pub(super) async fn round(&mut self, mut wishes: Vec<Wish>) {
        wishes.retain(|wish| !self.in_doubt.contains_key(&wish.shard));
        let (holding, plain): (Vec<Wish>, Vec<Wish>) =
            wishes.into_iter().partition(|wish| wish.holds);
        if !plain.is_empty() {
            let _ = self.propose(&plain).await;
        }
        if self.in_doubt.is_empty() {
            self.in_doubt = self.hold_and_propose(holding).await;
        }
        self.settle().await;
    }

    async fn propose(&self, wishes: &[Wish]) -> Result<(), ProposeError> {
        let changes = wishes.iter().map(|wish| ShardChange {
            shard: wish.shard,
            expected: wish.expected.clone(),
            record: wish.record.clone(),
        });
        let command = Command::SetShards {
            changes: changes.collect(),
        };
        let began = Instant::now();
        let mut proposed = self.settings.propose(command).await;
        if self.buggify.strikes(Site::OutcomeUnknown) && proposed.is_ok() {
            let reason = "the simulation keeps it secret".to_owned();
            proposed = Err(ProposeError::OutcomeUnknown { reason });
        }
        match proposed {
            Ok(_) => {
                let took = began.elapsed();
                tracing::debug!(shards = wishes.len(), ?took, "owners of shards changed");
                Ok(())
            }
            Err(error) => {
                // The next look sees what has changed.
                tracing::debug!(%error, shards = wishes.len(), "owners of shards not changed");
                Err(error)
            }
        }
    }

    /// Holds shards, and proposes for those of which nothing is on its way any more: for all together that are soon,
    /// since each map makes all nodes arrange with each other anew. Returns those, with their terms, of which it is not
    /// known what became of the proposal: they stay held.
    async fn hold_and_propose(&self, wishes: Vec<Wish>) -> BTreeMap<ShardId, Term> {
        let mut in_doubt = BTreeMap::new();
        let deadline = Instant::now() + Duration::from_millis(HOLD_DEADLINE_MS);
        let draining = wishes.into_iter().map(|wish| async {
            let (reply, drained) = oneshot::channel();
            let (shard, term, joining) = (wish.shard, wish.expected.term, wish.joining());
            let hold = WriterMessage::Hold(shard, term, joining, reply);
            self.writer.cast(hold).ok();
            let is_drained = timeout_at(deadline, drained).await;
            (wish, matches!(is_drained, Ok(Ok(true))))
        });
        let mut draining: FuturesUnordered<_> = draining.collect();
        let mut drained = Vec::new();
        loop {
            let more = Duration::from_millis(HOLD_TOGETHER_MS);
            let next = match drained.is_empty() {
                true => Ok(draining.next().await),
                false => timeout(more, draining.next()).await,
            };
            match next {
                Ok(Some((wish, true))) => drained.push(wish),
                Ok(Some((wish, false))) => self.let_go(&wish),
                // No more of them are soon, or there are none.
                Ok(None) | Err(_) => {
                    let together = std::mem::take(&mut drained);
                    in_doubt.extend(self.change(together).await);
                    if draining.is_empty() {
                        return in_doubt;
                    }
                }
            }
        }
    }

    /// Proposes for shards that are held, and lets those go whose change surely did not take place.
    async fn change(&self, mut wishes: Vec<Wish>) -> Vec<(ShardId, Term)> {
        while !wishes.is_empty() {
            match self.propose(&wishes).await {
                Err(ProposeError::OutcomeUnknown { .. }) => {
                    let doubtful = wishes.iter();
                    return doubtful
                        .map(|wish| (wish.shard, wish.expected.term))
                        .collect();
                }
                Err(ProposeError::Conflict(Conflict::ShardChanged { shard, .. })) => {
                    // It is in the way of all others.
                    let Some(at) = wishes.iter().position(|wish| wish.shard == shard) else {
                        break;
                    };
                    self.let_go(&wishes.remove(at));
                }
                _ => break,
            }
        }
        wishes.iter().for_each(|wish| self.let_go(wish));
        Vec::new()
    }

    fn let_go(&self, wish: &Wish) {
        self.release_unless_changed(&self.settings.state(), wish.shard, wish.expected.term);
    }

    /// Asks once what became of the proposals in doubt. Only a read that a majority confirms can tell that a change did
    /// not take place, so that numbers may be given out again.
    async fn settle(&mut self) {
        if self.in_doubt.is_empty() {
            return;
        }
        match self.settings.linearizable().await {
            Ok(state) => {
                for (shard, term) in std::mem::take(&mut self.in_doubt) {
                    self.release_unless_changed(&state, shard, term);
                }
            }
            Err(error) => tracing::debug!(
                %error,
                shards = self.in_doubt.len(),
                "shards are held until a majority says whether their owners have changed"
            ),
        }
    }

    fn release_unless_changed(&self, state: &ClusterState, shard: ShardId, term: Term) {
        // When the change took place, the writer has another term by now or soon, and this one is nobody's.
        if state.shard(shard).is_some_and(|record| record.term == term) {
            let _ = self.writer.cast(WriterMessage::Release(shard, term));
        }
    }
}

#[cfg(test)]
mod tests {
    use ractor::{Actor, ActorProcessingErr};
    use spandrel_raft::state::ShardRecord;
    use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

    use super::*;
    use crate::node::Node;
    use crate::test_support::members::{Cluster, address, stop_all};
    use crate::test_support::pass;

    /// What the writer was told.
    #[derive(Debug, PartialEq, Eq)]
    enum Told {
        Hold(ShardId),
        Release(ShardId),
    }

    /// A writer of which every shard is drained at once.
    struct FakeWriter;

    impl Actor for FakeWriter {
        type Msg = WriterMessage;
        type State = UnboundedSender<Told>;
        type Arguments = UnboundedSender<Told>;

        async fn pre_start(
            &self,
            _: ActorRef<WriterMessage>,
            told: UnboundedSender<Told>,
        ) -> Result<UnboundedSender<Told>, ActorProcessingErr> {
            Ok(told)
        }

        async fn handle(
            &self,
            _: ActorRef<WriterMessage>,
            message: WriterMessage,
            told: &mut UnboundedSender<Told>,
        ) -> Result<(), ActorProcessingErr> {
            match message {
                WriterMessage::Hold(shard, _, _, reply) => {
                    told.send(Told::Hold(shard)).unwrap();
                    reply.send(true).unwrap();
                }
                WriterMessage::Release(shard, _) => told.send(Told::Release(shard)).unwrap(),
                _ => {}
            }
            Ok(())
        }
    }

    /// Three nodes, all of which vote, and whose shards are where they should be: on one each, so that none fails over.
    async fn three() -> (Cluster, [Node; 3]) {
        let cluster = Cluster {
            replication: 1,
            ..Cluster::new()
        };
        let nodes = cluster.three().await;
        pass(5).await;
        (cluster, nodes)
    }

    async fn proposals(settings: &Settings) -> (Proposals, UnboundedReceiver<Told>) {
        let (tell, told) = unbounded_channel();
        let (writer, _) = Actor::spawn(None, FakeWriter, tell).await.unwrap();
        (
            Proposals::new(settings.clone(), writer, Buggify::default()),
            told,
        )
    }

    /// A wish of the same primary in its next term.
    fn wish(state: &ClusterState, shard: u16) -> Wish {
        let expected = state.shard(ShardId(shard)).unwrap().clone();
        Wish {
            shard: ShardId(shard),
            record: ShardRecord {
                term: expected.term.next(),
                ..expected.clone()
            },
            expected,
            holds: true,
        }
    }

    /// Without a majority the keeper asked for ever what had become of one shard's change, and did nothing else.
    #[tokio::test(start_paused = true)]
    async fn a_round_ends_without_a_majority_and_the_shard_stays_held_until_there_is_one() {
        let (cluster, nodes) = three().await;
        let settings = nodes[0].settings();
        let (mut proposals, mut told) = proposals(settings).await;
        let state = settings.linearizable().await.unwrap();

        // when the outcome of a change cannot be learned
        cluster.network.cut_off(&address(1));
        let round = proposals.round(vec![wish(&state, 0), wish(&state, 1)]);
        let limit = Duration::from_secs(30);
        tokio::time::timeout(limit, round).await.expect("it ends");
        for shard in [0, 1] {
            assert_eq!(told.try_recv(), Ok(Told::Hold(ShardId(shard))));
        }

        // then they stay held, and no other shard is stopped in vain
        proposals
            .round(vec![wish(&state, 0), wish(&state, 2)])
            .await;
        assert!(told.try_recv().is_err());

        // and with a majority they are let go, since their terms are still the old ones
        cluster.network.heal(&address(1));
        while !proposals.in_doubt.is_empty() {
            proposals.round(Vec::new()).await;
        }
        assert_eq!(settings.state().shard(ShardId(0)), state.shard(ShardId(0)));
        pass(1).await;
        for shard in [0, 1] {
            assert_eq!(told.try_recv(), Ok(Told::Release(ShardId(shard))));
        }
        stop_all(nodes).await;
    }

    /// What is proposed together takes place together: one that has changed meanwhile is left out.
    #[tokio::test(start_paused = true)]
    async fn a_shard_that_has_changed_meanwhile_keeps_no_other_from_its_change() {
        let (_cluster, nodes) = three().await;
        let settings = nodes[0].settings();
        let (mut proposals, mut told) = proposals(settings).await;
        let state = settings.linearizable().await.unwrap();
        let mut stale = wish(&state, 1);
        stale.expected.moving_to = Some(stale.expected.primary);
        proposals
            .round(vec![wish(&state, 0), stale, wish(&state, 2)])
            .await;
        let now = settings.linearizable().await.unwrap();
        for shard in [0, 2].map(ShardId) {
            let before = state.shard(shard).unwrap().term;
            assert_eq!(now.shard(shard).unwrap().term, before.next());
        }
        assert_eq!(now.shard(ShardId(1)), state.shard(ShardId(1)));
        for shard in [0, 1, 2] {
            assert_eq!(told.try_recv(), Ok(Told::Hold(ShardId(shard))));
        }
        pass(1).await;
        assert_eq!(told.try_recv(), Ok(Told::Release(ShardId(1))));
        assert!(told.try_recv().is_err());
        stop_all(nodes).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_shard_whose_change_took_place_is_not_let_go_in_its_old_term() {
        let (_cluster, nodes) = three().await;
        let settings = nodes[0].settings();
        let (mut proposals, mut told) = proposals(settings).await;
        let term = settings.state().shard(ShardId(0)).unwrap().term;
        proposals.in_doubt.insert(ShardId(0), Term(term.0 - 1));
        proposals.in_doubt.insert(ShardId(1), term);
        proposals.round(Vec::new()).await;
        pass(1).await;
        assert!(proposals.in_doubt.is_empty());
        assert_eq!(told.try_recv(), Ok(Told::Release(ShardId(1))));
        assert!(told.try_recv().is_err());
        stop_all(nodes).await;
    }
}
