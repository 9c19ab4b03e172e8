//! Gets fragments from the block of another node, piece by piece, and stores them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use spandrel_model::ids::{Bucket, NodeId, ShardId};
use spandrel_storage::block::{BlockWrite, PagePlace};

use crate::limits::{COPY_CALL_MS, MAX_COPY_PART_BYTES};
use crate::link::{Link, LinkClass, PeerService};
use crate::meters::Stage;
use crate::pager::{SpansFrom, commit_pages};
use crate::shared::Shared;
use crate::wire::copy_answer::Answer;
use crate::wire::{CopyAnswer, CopyPiece, CopyRequest};

/// A part while its pieces come.
#[derive(Debug, Default)]
pub(crate) struct Fetching {
    /// The last page that is here.
    pub(crate) after: PagePlace,
    part: Vec<u8>,
}

/// What a piece has come to.
pub(crate) enum Fetched {
    /// More of the part will come.
    Piece(usize),
    /// The part is whole; it may be empty. Then whether it was the last one.
    Part(Bytes, bool),
}

impl Fetching {
    /// Asks for the next piece. `request` says what of; where to go on is added.
    pub(crate) async fn next(
        &mut self,
        link: &dyn Link,
        from: NodeId,
        request: CopyRequest,
    ) -> Result<Fetched, String> {
        let request = CopyRequest {
            after_tenant: self.after.tenant.into(),
            after_page: self.after.page,
            offset: self.part.len() as u64,
            ..request
        };
        let piece = ask(link, from, &request).await?;
        let bytes = piece.bytes.len();
        self.part.extend_from_slice(&piece.bytes);
        let has = self.part.len() as u64;
        if has < piece.part_bytes && bytes > 0 && piece.part_bytes <= MAX_COPY_PART_BYTES {
            return Ok(Fetched::Piece(bytes));
        }
        if has != piece.part_bytes {
            return Err("a part is not as long as it was said to be".to_owned());
        }
        if !piece.is_last {
            let after = PagePlace {
                tenant: u16::try_from(piece.next_tenant).map_err(|_| "no such tenant")?,
                page: piece.next_page,
            };
            if after <= self.after {
                return Err("it comes to no end".to_owned());
            }
            self.after = after;
        }
        let part = std::mem::take(&mut self.part);
        Ok(Fetched::Part(part.into(), piece.is_last))
    }
}

async fn ask(link: &dyn Link, from: NodeId, request: &CopyRequest) -> Result<CopyPiece, String> {
    let request = request.encode_to_vec().into();
    let deadline = Duration::from_millis(COPY_CALL_MS);
    let (service, class) = (PeerService::Copies, LinkClass::Bulk);
    let called = link.call(from, service, class, request, deadline);
    let answer = called.await.map_err(|error| error.to_string())?;
    let answer = CopyAnswer::decode(answer).map_err(|error| error.to_string())?;
    match answer.answer {
        Some(Answer::Piece(piece)) => Ok(piece),
        Some(Answer::Refused(refusal)) => Err(refusal.reason),
        None => Err("it answered nothing".to_owned()),
    }
}

/// Writes a part, which has nothing but these shards of the bucket, to the block; `unreadable` are pages of it that cannot
/// be read. Returns the number of spans that were not there.
pub(crate) async fn store_part(
    shared: &Arc<Shared>,
    bucket: Bucket,
    shards: BTreeSet<ShardId>,
    part: Bytes,
    unreadable: BTreeSet<u64>,
) -> Result<u64, String> {
    let worker = Arc::clone(shared);
    let write = move || -> Result<u64, String> {
        let write = BlockWrite::unpack(&part).map_err(|error| error.to_string())?;
        let fragments = write.pages.iter().flat_map(|page| &page.fragments);
        let of_shards = fragments.map(|fragment| fragment.head.shard);
        let summaries = write.summaries.iter().map(|summary| summary.shard);
        let mut named = of_shards.chain(summaries);
        if write.bucket != bucket || !named.all(|shard| shards.contains(&shard)) {
            return Err("it gave something else".to_owned());
        }
        let spans = || {
            let block = worker.blocks.block(bucket);
            block.map_or(0, |block| block.map_or(0, |block| block.spans))
        };
        let before = spans();
        commit_pages(&worker, write, &SpansFrom::Node { unreadable })?;
        Ok(spans().saturating_sub(before))
    };
    shared.block(Stage::Copy, write).await
}
