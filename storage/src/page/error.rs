//! What can be wrong with a page.

/// A page's bytes are not what the encoder wrote.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("page is corrupt: {part}")]
pub struct CorruptPage {
    /// Which part, for people.
    pub part: &'static str,
}

/// Something does not fit a page.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("page is full: {what} would be {value}, the limit is {limit}")]
pub struct PageFull {
    /// What would pass its limit, with its unit.
    pub what: &'static str,
    /// What it would be.
    pub value: u64,
    /// The limit.
    pub limit: u64,
}

/// A failed read of a page.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PageError {
    /// The bytes are there and wrong.
    #[error(transparent)]
    Corrupt(#[from] CorruptPage),
    /// The bytes could not be had.
    #[error("page could not be read: {0}")]
    Source(#[source] Box<dyn std::error::Error + Send + Sync>),
}

pub(crate) fn corrupt(part: &'static str) -> PageError {
    PageError::Corrupt(CorruptPage { part })
}
