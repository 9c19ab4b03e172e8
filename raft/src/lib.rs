//! The replicated settings and membership of a Spandrel cluster, in one openraft group.
