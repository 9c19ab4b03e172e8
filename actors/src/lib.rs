//! Spandrel's actors: ingest, assemblers, pagers, indexer and queries over journal and blocks.
