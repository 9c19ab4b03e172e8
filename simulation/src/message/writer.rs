//! A primary's records: numbered, framed, sent, and what follows when they count (production: `writer/mod.rs` and
//! `assembler_actor.rs`).

use std::sync::Arc;

use spandrel_actors::assembler::Effects;
use spandrel_actors::replication::LiveSet;
use spandrel_model::ids::{Lsn, TenantId, TraceId};
use spandrel_model::verdict::VerdictRecord;

use super::log::{Content, Kind};
use super::node::{BuiltFrame, Frame, Landing, Role, Sent, Ticket, Waiting, Work};
use super::process::{earlier, set_mark};
use super::world::{Event, MS, World};

/// Records that one frame holds at most.
const FRAME_RECORDS: usize = 6;

impl World {
    /// A client's spans have come to a node.
    pub(crate) fn take_request(&mut self, node: usize, request: usize) {
        let client = &self.clients[request];
        let shard = client.shard;
        let kind = Kind::Spans {
            batch: Arc::clone(&client.batch),
            rows: (0u32..).take(client.batch.spans.len()).collect(),
            values: client.values.clone(),
            again: false,
        };
        let content = self.content(kind);
        self.queue(
            node,
            Waiting {
                shard,
                work: Work {
                    content,
                    ticket: Ticket::Client(request),
                },
                reign: None,
            },
        );
    }

    pub(crate) fn content(&mut self, kind: Kind) -> Arc<Content> {
        self.next_content += 1;
        Arc::new(Content {
            id: self.next_content,
            kind,
        })
    }

    pub(crate) fn queue(&mut self, node: usize, waiting: Waiting) {
        if let Some(process) = self.nodes[node].process.as_mut() {
            process.waiting.push_back(waiting);
        }
    }

    /// Numbers what waits, unless frames are being built or written.
    pub(crate) fn build(&mut self, node: usize) {
        let life = self.nodes[node].life;
        let Some(process) = self.nodes[node].process.as_mut() else {
            return;
        };
        if process.building || process.committing.is_some() || process.waiting.is_empty() {
            return;
        }
        let mut waiting: Vec<Waiting> = process.waiting.drain(..).collect();
        waiting.sort_by_key(|one| matches!(one.work.content.kind, Kind::Verdicts { .. }));
        let mut groups: Vec<(LiveSet, Vec<Sent>)> = Vec::new();
        for one in waiting {
            if let Some((followers, sent)) = self.number(node, one) {
                match groups.iter_mut().find(|(known, _)| *known == followers) {
                    Some((_, group)) => group.push(sent),
                    None => groups.push((followers, vec![sent])),
                }
            }
        }
        if groups.is_empty() {
            return;
        }
        let frames = groups.into_iter().flat_map(|(followers, sent)| {
            let frames = sent.chunks(FRAME_RECORDS);
            let frames: Vec<BuiltFrame> = frames
                .map(|frame| (Arc::new(frame.to_vec()), followers.clone()))
                .collect();
            frames
        });
        let frames: Vec<BuiltFrame> = frames.collect();
        if let Some(process) = self.nodes[node].process.as_mut() {
            process.building = true;
        }
        self.soon(50, 2 * MS, Event::Built(node, life, frames));
    }

    /// Gives a record its number, or puts it aside while its shard is held, or lets it go.
    fn number(&mut self, node: usize, waiting: Waiting) -> Option<(LiveSet, Sent)> {
        let shard = waiting.shard;
        let process = self.nodes[node].process.as_mut()?;
        let side = &mut process.sides[shard];
        let Role::Primary(primary) = &mut side.role else {
            return None;
        };
        if waiting.reign.is_some_and(|reign| reign != side.reign) {
            return None;
        }
        if !side.held.is_empty() {
            side.deferred.push_back(waiting);
            return None;
        }
        let of_spans = matches!(waiting.work.content.kind, Kind::Spans { .. });
        if of_spans && !primary.takes() {
            return None;
        }
        let followers = primary.live();
        let content = Arc::clone(&waiting.work.content);
        let lsn = primary.number(waiting.work);
        let term = primary.term;
        primary.check();
        self.check_given(node, shard, term, lsn, &content);
        Some((
            followers,
            Sent {
                shard,
                lsn,
                content,
            },
        ))
    }

    pub(crate) fn undefer(&mut self, node: usize, shard: usize) {
        let Some(process) = self.nodes[node].process.as_mut() else {
            return;
        };
        let side = &mut process.sides[shard];
        if side.held.is_empty() {
            for waiting in side.deferred.drain(..).rev() {
                process.waiting.push_front(waiting);
            }
        }
    }

    pub(crate) fn built(&mut self, node: usize, frames: Vec<BuiltFrame>) {
        if let Some(process) = self.nodes[node].process.as_mut() {
            process.building = false;
        }
        for (frame, followers) in frames {
            for to in followers.iter() {
                self.feed(node, *to, Some(Frame::clone(&frame)));
            }
            if let Some(process) = self.nodes[node].process.as_mut() {
                process.queue.push(Landing::Own(frame));
            }
        }
    }

    /// Tells the assembler which records count now, then those who wait for it.
    pub(crate) fn advance(&mut self, node: usize, shard: usize) {
        let Some(process) = self.nodes[node].process.as_mut() else {
            return;
        };
        let side = &mut process.sides[shard];
        let mut tickets = Vec::new();
        let mut commit = None;
        let commits: Vec<(Lsn, Arc<Content>)> = match &mut side.role {
            Role::None => return,
            Role::Follower(follower) => follower.counting(),
            Role::Primary(primary) => {
                let before = primary.commit;
                let ready = primary.advance();
                primary.check();
                let went_back = primary.commit < before;
                commit = Some(primary.commit);
                let commits = ready.into_iter().map(|(lsn, work)| {
                    tickets.push((lsn, work.ticket, Arc::clone(&work.content)));
                    (lsn, work.content)
                });
                let commits = commits.collect();
                if went_back {
                    return self.broken("commit_goes_on", format!("of shard {shard} it went back"));
                }
                commits
            }
        };
        if let Some(commit) = commit {
            self.counts(node, shard, commit);
        }
        for (lsn, content) in &commits {
            if commit.is_none() {
                self.check_counted(node, shard, *lsn, content);
            }
            self.apply(node, shard, *lsn, content);
        }
        if let Some(process) = self.nodes[node].process.as_mut() {
            let side = &mut process.sides[shard];
            let commit = match &side.role {
                Role::Follower(follower) => follower.commit.min(follower.durable_up_to()),
                Role::Primary(primary) => primary.commit,
                Role::None => Lsn(0),
            };
            side.counted = side.counted.max(commit);
            if let Some(last) = side.replayed.filter(|last| commit >= *last) {
                side.state.count(last);
                side.replayed = None;
            }
        }
        for (lsn, ticket, content) in tickets {
            match ticket {
                Ticket::None => {}
                Ticket::Client(request) => self.acknowledge(node, shard, lsn, request, &content),
                Ticket::Fill(fill) => self.filled(node, fill),
            }
        }
        self.perform(node, shard);
    }

    fn acknowledge(
        &mut self,
        node: usize,
        shard: usize,
        lsn: Lsn,
        request: usize,
        content: &Arc<Content>,
    ) {
        self.clients[request].is_acknowledged = true;
        self.note(lsn.0 ^ (request as u64).rotate_left(32));
        self.check_acknowledgement(node, shard, lsn, content);
    }

    /// The assembler gets a record that counts.
    pub(crate) fn apply(&mut self, node: usize, shard: usize, lsn: Lsn, content: &Arc<Content>) {
        self.check_effect(node, shard, lsn, content);
        self.tell(|| {
            let (number, name) = (node + 1, super::checks::describe(content));
            format!(
                "node {number}: shard {shard} gets {} {name}",
                super::checks::show(lsn)
            )
        });
        if let Some(process) = self.nodes[node].process.as_mut() {
            process.sides[shard].applied = lsn;
            process.sides[shard].state.count(lsn);
        }
        self.step(node, shard, |state, step, effects| match &content.kind {
            Kind::Spans {
                batch, rows, again, ..
            } => {
                match again {
                    true => state.apply_again(lsn, batch, rows, step, effects),
                    false => state.apply(lsn, batch, rows, step, effects),
                };
            }
            Kind::Verdicts { records, again } => match again {
                true => state.verdicts_again(lsn, records, step, effects),
                false => state.verdicts_committed(lsn, records, step, effects),
            },
        });
    }

    /// Does what the assembler wants done.
    pub(crate) fn perform(&mut self, node: usize, shard: usize) {
        let life = self.nodes[node].life;
        let super::node::Node { disk, process, .. } = &mut self.nodes[node];
        let Some(process) = process.as_mut() else {
            return;
        };
        let side = &mut process.sides[shard];
        let leads = matches!(side.role, Role::Primary(_));
        let reign = side.reign;
        let mut verdicts: Vec<VerdictRecord> = Vec::new();
        if leads && !side.effects.verdicts.is_empty() {
            verdicts = std::mem::take(&mut side.effects.verdicts);
            set_mark(side, &mut disk[shard]);
        }
        let questions: Vec<(TenantId, TraceId)> = std::mem::take(&mut side.effects.confirm);
        // What a recall brings is not looked for by the checks.
        side.effects.recall.clear();
        if !verdicts.is_empty() {
            let content = self.content(Kind::Verdicts {
                records: verdicts,
                again: false,
            });
            self.queue(
                node,
                Waiting {
                    shard,
                    work: Work {
                        content,
                        ticket: Ticket::None,
                    },
                    reign: Some(reign),
                },
            );
        }
        for (_, trace_id) in questions {
            self.soon(100, 4 * MS, Event::Confirmed(node, life, shard, trace_id));
        }
    }

    /// The journal has said what it knows of a trace.
    pub(crate) fn confirmed(&mut self, node: usize, shard: usize, trace_id: TraceId) {
        let found = earlier(&self.nodes[node].disk[shard], trace_id);
        let tenant = TenantId::default();
        self.step(node, shard, |state, step, effects: &mut Effects| {
            state.confirm(&tenant, trace_id, found, step, effects);
        });
        self.perform(node, shard);
    }
}
