//! The search index over the summaries of the blocks.
