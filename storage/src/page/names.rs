//! The attribute keys of a page, and the values of a key.

use spandrel_model::otlp::visit_attributes;

use super::compare::stored_text;
use super::error::PageError;
use super::evaluate::Presence;
use super::field::{self, Step, ValueKind};
use super::reader::PageReader;

impl PageReader<'_> {
    /// The attribute keys of the spans, not sorted, possibly several times; those that are not UTF-8 are left out.
    ///
    /// # Errors
    /// When the bytes are corrupt or cannot be read.
    pub fn attribute_keys(&mut self) -> Result<Vec<String>, PageError> {
        let columns = self.attribute_columns();
        let mut keys: Vec<String> = columns
            .filter_map(|column| std::str::from_utf8(column.key).ok())
            .map(str::to_owned)
            .collect();
        self.visit_raw(&mut |span| {
            // Attributes before a fault count.
            let _ = visit_attributes(span, &mut |key, _| keys.push(key.to_owned()));
            true
        })?;
        Ok(keys)
    }

    /// Calls `visit` with the distinct texts that a key has, as far as a dictionary knows them to be distinct, until
    /// it returns false. Returns whether it never did.
    ///
    /// # Errors
    /// When the bytes are corrupt or cannot be read.
    pub fn attribute_texts(
        &mut self,
        key: &str,
        visit: &mut dyn FnMut(ValueKind, &str) -> bool,
    ) -> Result<bool, PageError> {
        let columns: Vec<(Step, ValueKind)> = self
            .attribute_columns()
            .filter(|column| column.key == key.as_bytes() && column.kind != ValueKind::Other)
            .map(|column| (column.step, column.kind))
            .collect();
        for (step, kind) in columns {
            let count = Presence::of(self.rows()?, step).values;
            let values = self.values(step, count)?;
            for index in 0..values.entries() {
                let text = values
                    .entry(index)
                    .and_then(|stored| stored_text(kind, stored));
                if text.is_some_and(|text| !visit(kind, &text)) {
                    return Ok(false);
                }
            }
        }
        self.visit_raw(&mut |span| {
            let mut more = true;
            let _ = visit_attributes(span, &mut |found, value| {
                if let (true, true, Some(text)) = (more, found == key, value.text()) {
                    more = visit(ValueKind::of(&value), &text);
                }
            });
            more
        })
    }

    /// Calls `visit` with each span that is stored raw until it returns false; returns whether it never did.
    fn visit_raw(&mut self, visit: &mut dyn FnMut(&[u8]) -> bool) -> Result<bool, PageError> {
        if self.head.place(field::RAW).is_none() {
            return Ok(true);
        }
        let count = Presence::of(self.rows()?, field::RAW).values;
        let values = self.values(field::RAW, count)?;
        Ok((0..count).all(|number| values.value(number).is_none_or(&mut *visit)))
    }
}
