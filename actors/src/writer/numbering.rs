//! What waits gets its numbers, or is put aside, or is not taken.

use std::sync::Arc;

use spandrel_model::ids::NodeId;

use super::frames::Group;
use super::work::{BuildContent, BuildItem, Waiting, Work, disk_reserve};
use super::{Role, WriterState};
use crate::buggify::Site;
use crate::limits::{FRAME_RAW_BYTES, MAX_READY_FRAMES};
use crate::placement::can_do_without;

impl WriterState {
    /// Takes what waits off the queue and numbers it: spans first, then verdicts, which have frames of their own.
    pub(super) fn take_groups(&mut self) -> (Vec<Group>, usize) {
        let mut taken = Vec::new();
        let (mut bytes, mut to_build) = (0, 0);
        while bytes < MAX_READY_FRAMES / 4 * FRAME_RAW_BYTES {
            let Some(waiting) = self.waiting.pop_front() else {
                break;
            };
            bytes += waiting.raw_bytes();
            to_build += waiting.bytes_to_build();
            taken.push(waiting);
            if self.shared.env.buggify.strikes(Site::SmallFrame) {
                break;
            }
        }
        self.waiting_bytes = self.waiting_bytes.saturating_sub(bytes);
        // Stable: the records of a kind keep their order.
        taken.sort_by_key(|waiting| matches!(waiting, Waiting::Verdicts(..)));
        let full = self.full_nodes();
        let mut groups: Vec<Group> = Vec::new();
        for waiting in taken {
            self.number(waiting, &full, &mut groups);
        }
        (groups, to_build)
    }

    /// This node and its followers, as far as their disks have no room for spans.
    fn full_nodes(&self) -> Vec<NodeId> {
        let mut full = self.shared.follower_pressure.full();
        if self.shared.disk.refuses() {
            full.push(self.shared.node);
        }
        full
    }

    /// Numbers a record, or puts it aside while its shard is held, or refuses it when this node does not lead the shard.
    fn number(&mut self, waiting: Waiting, full: &[NodeId], groups: &mut Vec<Group>) {
        let (me, shard) = (self.shared.node, waiting.shard());
        let Some(Role::Primary(primary)) = self.roles.get_mut(usize::from(shard.0)) else {
            if let Waiting::Spans(part) = waiting {
                part.ticket.refuse(shard);
            }
            // A verdict of a term that is over: the next primary decides.
            return;
        };
        if self.held.contains_key(&shard) {
            self.deferred.entry(shard).or_default().push_back(waiting);
            return;
        }
        if let Waiting::Spans(part) = &waiting
            && self.shared.env.buggify.strikes(Site::SpansNotTaken)
        {
            return part.ticket.clone().refuse(shard);
        }
        let term = primary.term;
        let (content, work) = match waiting {
            Waiting::Spans(part) if !primary.takes() => {
                part.ticket.refuse(shard);
                return;
            }
            Waiting::Spans(part)
                if !part.again && (full.contains(&me) || primary.needs_any(full)) =>
            {
                // Others take the shard soon: the spans are offered again.
                if can_do_without(&self.map, full) {
                    part.ticket.refuse(shard);
                } else {
                    part.ticket.fail(disk_reserve());
                }
                return;
            }
            Waiting::Spans(part) => (
                BuildContent::Spans {
                    batch: Arc::clone(&part.batch),
                    rows: Arc::clone(&part.rows),
                    start: part.start,
                    end: part.end,
                    again: part.again,
                },
                Work::Spans(part),
            ),
            Waiting::Verdicts(_, records, again) => (
                BuildContent::Verdicts(Arc::clone(&records), again.is_some()),
                Work::Verdicts(records, again),
            ),
        };
        let followers = primary.live();
        let lsn = primary.number(work);
        let item = BuildItem {
            shard,
            term,
            lsn,
            content,
        };
        match groups.iter_mut().find(|group| group.followers == followers) {
            Some(group) => group.items.push(item),
            None => groups.push(Group {
                followers,
                items: vec![item],
            }),
        }
    }
}
