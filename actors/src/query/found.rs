//! What one node found.

use spandrel_model::search::{Cursor, MissingPart, NamesAnswer, SearchAnswer};

/// The page of one node.
#[derive(Debug)]
pub(crate) struct SearchPart {
    pub(crate) answer: SearchAnswer,
    pub(crate) reached: Reached,
    /// What the node holds and cannot read. Not in the receipt: others may hold the same.
    pub(crate) damage: Option<MissingPart>,
}

/// How far an answer goes: up to there, in the total order, nothing is missing that its receipt does not name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reached {
    /// There is nothing more.
    End,
    /// Up to this one; `None`: time or budget were over before the first.
    Until(Option<Cursor>),
}

/// The names that one node knows.
#[derive(Debug)]
pub(crate) struct NamesPart {
    pub(crate) answer: NamesAnswer,
    /// There are more behind the last one, though fewer than the limit are here.
    pub(crate) cut: bool,
    /// As of a search.
    pub(crate) damage: Option<MissingPart>,
}
