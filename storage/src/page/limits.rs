//! Bounds of a page, with unit and reason.

/// Most spans of a page: a trace of the largest size (100,000 spans) has to fit beside others.
pub const MAX_PAGE_SPANS: u32 = 200_000;
/// Most bytes of span messages that a page is built from: offsets are 32 bits wide, and a page is held in memory
/// while it is encoded.
pub const MAX_PAGE_SPAN_BYTES: usize = 256 << 20;
/// Most attribute columns (key and type) of a page. Each costs about 25 bytes of directory; a span whose key finds
/// no column is stored as raw bytes.
pub const MAX_ATTRIBUTE_COLUMNS: usize = 4_096;
/// Longest attribute key in bytes that gets a column; a span with a longer one is stored as raw bytes.
pub const MAX_COLUMN_KEY_BYTES: usize = 512;
/// Most fields of one span that are stored as columns: 128 attributes, 64 events, 64 links (API.md) and the scalar
/// fields fit; a span with more is stored as raw bytes.
pub const MAX_SHAPE_FIELDS: usize = 1_024;
/// Raw bytes at which a group of columns is closed and compressed on its own: small columns share one, since a group
/// costs about 20 bytes of directory and frame.
pub const GROUP_TARGET_BYTES: usize = 4_096;
/// Most raw bytes of one group that a reader decompresses: the largest page's largest column fits.
pub const MAX_GROUP_RAW_BYTES: usize = 512 << 20;
/// Most raw bytes of a page's head: groups, columns and keys at their limits.
pub const MAX_HEAD_RAW_BYTES: usize = 8 << 20;
/// Values after which a column without repetitions stops looking for them.
pub const DICTIONARY_TRIAL_VALUES: usize = 256;
/// Fragments with at most this many spans search a span's parent by comparing all ids, which is faster than a table.
pub const LINEAR_PARENT_SEARCH_SPANS: usize = 32;
/// Attribute keys whose values are counted: 256 bytes each.
pub const CARDINALITY_KEYS: usize = 256;
/// Registers of a sketch of values, one byte each: an error of 6.5 %.
pub const CARDINALITY_REGISTERS: usize = 256;
