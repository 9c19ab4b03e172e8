//! What is wrong in a policy file, and where.

use std::fmt;

use super::tree::Place;

/// A policy file (or a Collector file to import) that cannot be used: the place, the field and the rule it breaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyError {
    /// Line in the file, from 1; 0 when the file as a whole is at fault.
    pub line: u32,
    /// Column in characters, from 1; 0 when the file as a whole is at fault.
    pub column: u32,
    /// Path of the field, such as `policies[2].threshold_ms`; empty when the text is not YAML at all.
    pub field: String,
    /// One lowercase sentence that names the rule or the limit.
    pub message: String,
}

impl PolicyError {
    pub(super) fn new(place: Place, field: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            line: place.line,
            column: place.column,
            field: field.into(),
            message: message.into(),
        }
    }
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 {
            write!(f, "line {}, column {}: ", self.line, self.column)?;
        }
        if !self.field.is_empty() {
            write!(f, "`{}`: ", self.field)?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for PolicyError {}
