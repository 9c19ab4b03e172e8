//! Asks several nodes at once, and the next holder where one fails or is late.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use spandrel_model::ids::{NodeId, ShardId};
use spandrel_model::search::MissingPart;
use tokio::time::Instant;

use super::super::missing::missing_parts;
use super::super::part::NodePart;
use super::super::plan::{Demand, ScatterPlan, Standing};
use crate::limits::{ANSWER_MARGIN_MS, LATE_ANSWER_MS};

/// A question that several nodes answer, each for its part.
#[async_trait]
pub(super) trait Question: Sync {
    type Answer: Send;

    /// Takes out of an answer what the node holds and cannot read: who holds the same is asked as well, and where nobody
    /// does it is missing.
    fn damage(&self, _answer: &mut Self::Answer) -> Option<MissingPart> {
        None
    }

    /// Asks one node, this one included. What is not answered after `left` is given up.
    async fn ask(
        &self,
        node: NodeId,
        part: &NodePart,
        left: Duration,
    ) -> Result<Self::Answer, String>;
}

/// An answer, and who answered for what.
#[derive(Debug)]
pub(super) struct Reply<A> {
    pub(super) node: NodeId,
    pub(super) part: NodePart,
    pub(super) answer: A,
}

/// What came of asking.
#[derive(Debug)]
pub(super) struct Scattered<A> {
    pub(super) replies: Vec<Reply<A>>,
    /// What nobody has answered.
    pub(super) missing: Vec<MissingPart>,
}

enum Event<A> {
    Answered(NodeId, NodePart, Result<A, String>),
    Late(NodeId),
}

/// What a wait has brought.
enum Turn {
    /// An answer, or nothing: the plan stands.
    Expected,
    /// A node failed, is late, or has answered after all.
    Changed,
    /// Nothing can happen any more, or not in time.
    Over,
}

struct Scatter<'a, Q: Question> {
    question: &'a Q,
    deadline: Instant,
    asked: BTreeMap<NodeId, NodePart>,
    events: FuturesUnordered<BoxFuture<'a, Event<Q::Answer>>>,
    replies: Vec<Reply<Q::Answer>>,
}

/// Asks until everything that is demanded was answered, nobody is left to be asked, or the time is over. Questions that
/// are under way then are given up.
pub(super) async fn scatter<Q: Question>(
    demand: &Demand<'_>,
    standing: &mut Standing,
    deadline: Instant,
    question: &Q,
) -> Scattered<Q::Answer> {
    let mut scatter = Scatter {
        question,
        deadline,
        asked: BTreeMap::new(),
        events: FuturesUnordered::new(),
        replies: Vec::new(),
    };
    let mut plan = ScatterPlan::new(demand, standing);
    loop {
        let open = open_asks(&plan, standing);
        if open.is_empty() {
            break;
        }
        open.iter()
            .for_each(|(node, part)| scatter.ask(*node, part));
        let turn = match Instant::now() < deadline {
            true => scatter.wait(standing).await,
            false => Turn::Over,
        };
        match turn {
            Turn::Expected => continue,
            Turn::Changed => {}
            Turn::Over => give_up(&open, standing),
        }
        plan = ScatterPlan::new(demand, standing);
    }
    let mut missing = missing_parts(&plan, demand, standing);
    let damaged = standing.damaged.iter();
    // Of those shards nobody else was asked: they are still this node's.
    let needed = damaged.filter(|(node, damage)| {
        plan.asks.get(node).is_some_and(|part| {
            let has = |shard: &ShardId| part.stored.contains(*shard) || part.live.contains(*shard);
            damage.shards.is_empty() || damage.shards.iter().any(has)
        })
    });
    missing.extend(needed.map(|(_, damage)| damage.clone()));
    Scattered {
        missing,
        replies: scatter.replies,
    }
}

/// What of a plan is not answered yet.
fn open_asks(plan: &ScatterPlan, standing: &Standing) -> Vec<(NodeId, NodePart)> {
    let open = plan.asks.iter().map(|(node, part)| {
        let answered = standing.answered.get(node);
        let left = answered.map_or_else(|| part.clone(), |answered| part.without(answered));
        (*node, left)
    });
    open.filter(|(_, left)| !left.is_empty()).collect()
}

fn give_up(open: &[(NodeId, NodePart)], standing: &mut Standing) {
    for (node, _) in open {
        let reason = format!("node {} did not answer in time", node.0);
        standing.failed.insert(*node, reason);
    }
}

impl<'a, Q: Question> Scatter<'a, Q> {
    /// Asks a node for what it was not asked for yet.
    fn ask(&mut self, node: NodeId, part: &NodePart) {
        let asked = self.asked.entry(node).or_default();
        let part = part.without(asked);
        if part.is_empty() {
            return;
        }
        asked.add(&part);
        let question = self.question;
        let left = self.deadline.saturating_duration_since(Instant::now());
        let late = (left / 2).min(Duration::from_millis(LATE_ANSWER_MS));
        let ask = async move {
            let answer = question.ask(node, &part, left).await;
            Event::Answered(node, part, answer)
        };
        self.events.push(ask.boxed());
        let late = tokio::time::sleep(late).map(move |()| Event::Late(node));
        self.events.push(late.boxed());
    }

    /// Waits for something to happen, at most until the deadline.
    async fn wait(&mut self, standing: &mut Standing) -> Turn {
        let event = tokio::time::timeout_at(self.deadline, self.events.next()).await;
        let failover = |reason| {
            let counter = metrics::counter!("spandrel_query_failovers_total", "reason" => reason);
            counter.increment(1);
            Turn::Changed
        };
        match event {
            Ok(Some(Event::Answered(node, part, Ok(mut answer)))) => {
                standing.answered.entry(node).or_default().add(&part);
                let damage = self.question.damage(&mut answer);
                self.replies.push(Reply { node, part, answer });
                let was_late = standing.late.remove(&node);
                match (damage, was_late) {
                    (Some(damage), _) => {
                        standing.damaged.insert(node, damage);
                        failover("damaged")
                    }
                    (None, true) => Turn::Changed,
                    (None, false) => Turn::Expected,
                }
            }
            Ok(Some(Event::Answered(node, _, Err(reason)))) => {
                tracing::debug!(node = node.0, reason, "a holder did not answer");
                standing.failed.insert(node, reason);
                failover("failed")
            }
            Ok(Some(Event::Late(node))) if self.is_open(node, standing) => {
                match standing.late.insert(node) {
                    true => failover("late"),
                    false => Turn::Expected,
                }
            }
            Ok(Some(Event::Late(_))) => Turn::Expected,
            Ok(None) | Err(_) => Turn::Over,
        }
    }

    fn is_open(&self, node: NodeId, standing: &Standing) -> bool {
        let answered = standing.answered.get(&node);
        let asked = self.asked.get(&node);
        asked.is_some_and(|asked| {
            answered.is_none_or(|answered| !asked.without(answered).is_empty())
        })
    }
}

/// The milliseconds that a node is given to answer, so that its answer is here in time.
pub(super) fn answer_ms(left: Duration) -> u64 {
    let margin = (left / 10).min(Duration::from_millis(ANSWER_MARGIN_MS));
    u64::try_from(left.saturating_sub(margin).as_millis()).unwrap_or(u64::MAX)
}
