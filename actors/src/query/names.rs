//! Names: services, operations, tags and values, from live traces, recent summaries, the index and pages.

use std::collections::BTreeMap;
use std::sync::Arc;

use spandrel_model::batch::SpanKind;
use spandrel_model::error::PortError;
use spandrel_model::search::{MissingPart, Name, NamesAnswer, NamesKind, NamesRequest, Receipt};
use spandrel_model::summary::TraceSummary;

use spandrel_storage::block::AttributeScope;
use spandrel_storage::index::IndexError;
use spandrel_storage::page::ValueKind;

use super::found::NamesPart;
use super::part::NodePart;
use super::sources::visit_unindexed;
use super::{QueryPort, storage_error};
use crate::assembler::LiveNames;
use crate::assembler_message::AssemblerMessage;
use crate::meters::Stage;
use crate::shared::Shared;

/// Collected names, each once: the details of the first source that knew them.
struct Names<'a> {
    request: &'a NamesRequest,
    names: BTreeMap<(String, Option<SpanKind>), Name>,
}

impl QueryPort {
    /// Lists names: of the live traces of the part's shards, and of everything that is stored here, since the terms of
    /// the index do not know their shards. A name of another shard is a name all the same.
    pub(crate) async fn list(
        &self,
        request: NamesRequest,
        part: &NodePart,
    ) -> Result<NamesPart, PortError> {
        let _credit = self.credit(&request.tenant)?;
        let live = self
            .ask_shards(part, |depth, reply| {
                let range = (request.from, request.to);
                AssemblerMessage::Names(request.tenant.clone(), range, depth, reply)
            })
            .await?;
        let shared = Arc::clone(&self.shared);
        let watermark = self.index_watermark();
        let collect = move || -> Result<NamesPart, PortError> {
            let mut names = Names {
                request: &request,
                names: BTreeMap::new(),
            };
            live.iter().for_each(|live| names.live(live));
            let unreadable = names.stored(&shared)?;
            let damage = (unreadable > 0).then(|| MissingPart {
                node: shared.node,
                shards: Vec::new(),
                from: request.from,
                to: request.to,
                reason: format!("summaries of {unreadable} blocks cannot be read"),
            });
            let answer = NamesAnswer {
                names: names.names.into_values().take(request.limit).collect(),
                receipt: Receipt {
                    complete: true,
                    from: request.from,
                    to: request.to,
                    index_watermark: watermark,
                    ..Receipt::default()
                },
            };
            Ok(NamesPart {
                answer,
                cut: false,
                damage,
            })
        };
        self.shared.block(Stage::Query, collect).await
    }
}

impl Names<'_> {
    fn add(&mut self, name: &str, kind: Option<SpanKind>, indexed: Option<bool>, value: bool) {
        if !name.starts_with(&self.request.prefix) {
            return;
        }
        self.names
            .entry((name.to_owned(), kind))
            .or_insert_with(|| Name {
                name: name.to_owned(),
                kind,
                scope: value.then_some("string"),
                indexed,
            });
    }

    fn operation(&mut self, service: &str, operation: &str, kind: SpanKind) {
        match &self.request.kind {
            NamesKind::Services => self.add(service, None, None, false),
            NamesKind::Operations { service: wanted } if wanted == service => {
                self.add(operation, Some(kind), None, false);
            }
            _ => {}
        }
    }

    fn attribute(&mut self, key: &str, value: &str) {
        match &self.request.kind {
            NamesKind::Tags => self.add(key, None, Some(true), false),
            NamesKind::TagValues { key: wanted } if wanted == key => {
                self.add(value, None, None, true);
            }
            _ => {}
        }
    }

    /// A key as the pages have it: with its scope, which the index does not know.
    fn tag(&mut self, key: &str, scope: AttributeScope, indexed: bool) {
        self.add(key, None, Some(indexed), false);
        if let Some(name) = self.names.get_mut(&(key.to_owned(), None)) {
            name.scope = Some(match scope {
                AttributeScope::Resource => "resource",
                AttributeScope::Span => "span",
            });
        }
    }

    fn value(&mut self, text: &str, kind: ValueKind) {
        self.add(text, None, None, true);
        if let Some(name) = self.names.get_mut(&(text.to_owned(), None)) {
            name.scope = Some(match kind {
                ValueKind::Int => "int",
                ValueKind::Double => "double",
                ValueKind::Bool => "bool",
                ValueKind::Text | ValueKind::Other => "string",
            });
        }
    }

    fn live(&mut self, live: &LiveNames) {
        for (service, operation, kind) in &live.operations {
            self.operation(service, operation, *kind);
        }
        for (key, value) in &live.attributes {
            self.attribute(key, value);
        }
    }

    /// A summary that the index does not hold.
    fn summary(&mut self, summary: &TraceSummary) {
        let request = self.request;
        let in_range = summary.start >= request.from && summary.start < request.to;
        if summary.tenant != request.tenant || !in_range {
            return;
        }
        for class in &summary.classes {
            self.operation(&class.service, &class.operation, class.kind);
        }
        for text in &summary.attributes {
            self.attribute(&text.key, &text.value);
        }
    }

    /// Summaries that are not indexed first: they are in the index by the time that they leave the memory. Returns how
    /// many blocks have summaries that cannot be read.
    fn stored(&mut self, shared: &Shared) -> Result<u64, PortError> {
        let request = self.request;
        let mut blocks = shared.blocks.buckets().map_err(storage_error)?;
        blocks.retain(|block| block.max_start >= request.from && block.min_start < request.to);
        let mut unreadable =
            visit_unindexed(shared, &blocks, &mut |_, summary| self.summary(summary))?;
        for block in blocks {
            let (tenant, limit) = (&request.tenant, request.limit);
            let index = &shared.index;
            let known = index.names(block.bucket, tenant, &request.kind, &request.prefix, limit);
            match known {
                // A damaged index is gone by now: what it held is read from the block's summaries.
                Err(IndexError::Corrupt { .. }) => {
                    let block = std::slice::from_ref(&block);
                    unreadable +=
                        visit_unindexed(shared, block, &mut |_, summary| self.summary(summary))?;
                }
                known => known
                    .map_err(storage_error)?
                    .iter()
                    .for_each(|name| self.indexed(name)),
            }
            self.page_attributes(shared, block.bucket)?;
        }
        Ok(unreadable)
    }

    fn indexed(&mut self, name: &Name) {
        let is_tag = matches!(self.request.kind, NamesKind::Tags);
        let is_value = matches!(self.request.kind, NamesKind::TagValues { .. });
        self.add(&name.name, name.kind, is_tag.then_some(true), is_value);
    }

    /// Keys and values that the index does not hold are in the pages' dictionaries.
    fn page_attributes(
        &mut self,
        shared: &Shared,
        bucket: spandrel_model::ids::Bucket,
    ) -> Result<(), PortError> {
        let request = self.request;
        let epoch = shared.epoch();
        let interests = epoch.rules().interests();
        let indexed = |key: &str| interests.is_indexed(key);
        match &request.kind {
            NamesKind::Tags => {
                let keys = shared.blocks.attribute_keys(bucket, &request.tenant);
                for (key, scope) in keys.map_err(storage_error)? {
                    self.tag(&key, scope, indexed(&key));
                }
            }
            NamesKind::TagValues { key } if !indexed(key) => {
                let values =
                    shared
                        .blocks
                        .attribute_values(bucket, &request.tenant, key, request.limit);
                for (value, kind) in values.map_err(storage_error)? {
                    self.value(&value, kind);
                }
            }
            _ => {}
        }
        Ok(())
    }
}
