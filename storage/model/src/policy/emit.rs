//! Writing YAML that people read: block style, lists of scalars on one line.

use super::tree::{Node, Value};

/// What is to be written.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Out {
    /// A scalar, already spelled.
    Scalar(String),
    List(Vec<Out>),
    Map(Vec<(String, Out)>),
}

impl Out {
    /// Text, quoted when YAML would read something else.
    pub(super) fn text(text: &str) -> Self {
        Self::Scalar(quote(text))
    }

    /// A scalar or a list of scalars of a file as it is spelled there; nothing of anything else.
    pub(super) fn copy(node: &Node) -> Option<Self> {
        match &node.value {
            Value::Text(text) => Some(Self::text(text)),
            Value::Bool { spelling, .. }
            | Value::Int { spelling, .. }
            | Value::Float { spelling, .. } => Some(Self::Scalar(spelling.clone())),
            Value::List(items) => {
                let scalars = items.iter().map(|item| {
                    let copied = Self::copy(item)?;
                    matches!(copied, Self::Scalar(_)).then_some(copied)
                });
                scalars.collect::<Option<Vec<_>>>().map(Self::List)
            }
            Value::Null | Value::Map(_) => None,
        }
    }

    /// The YAML text, ending in a newline.
    pub(super) fn render(&self) -> String {
        let mut text = String::new();
        self.write(&mut text, 0);
        text
    }

    fn is_inline(&self) -> bool {
        match self {
            Self::Scalar(_) => true,
            Self::List(items) => items.iter().all(|item| matches!(item, Self::Scalar(_))),
            Self::Map(_) => false,
        }
    }

    fn inline(&self) -> String {
        match self {
            Self::Scalar(text) => text.clone(),
            Self::List(items) => {
                let items: Vec<String> = items.iter().map(Self::inline).collect();
                format!("[{}]", items.join(", "))
            }
            Self::Map(_) => String::new(),
        }
    }

    /// Writes a block whose first line is already indented.
    fn write(&self, text: &mut String, indent: usize) {
        match self {
            Self::Map(entries) => {
                for (index, (key, value)) in entries.iter().enumerate() {
                    pad(text, if index == 0 { 0 } else { indent });
                    text.push_str(key);
                    text.push(':');
                    value.write_after(text, indent + 2);
                }
            }
            Self::List(items) if !self.is_inline() => {
                for (index, item) in items.iter().enumerate() {
                    pad(text, if index == 0 { 0 } else { indent });
                    text.push_str("- ");
                    item.write(text, indent + 2);
                }
            }
            Self::Scalar(_) | Self::List(_) => {
                text.push_str(&self.inline());
                text.push('\n');
            }
        }
    }

    /// Writes what follows a colon.
    fn write_after(&self, text: &mut String, indent: usize) {
        if self.is_inline() {
            text.push(' ');
        } else {
            text.push('\n');
            pad(text, indent);
        }
        self.write(text, indent);
    }
}

fn pad(text: &mut String, spaces: usize) {
    text.extend(std::iter::repeat_n(' ', spaces));
}

/// Plain when it is a plain word, in double quotes otherwise.
fn quote(text: &str) -> String {
    const NOT_TEXT: [&str; 11] = [
        "true", "false", "yes", "no", "on", "off", "y", "n", "null", "inf", "nan",
    ];
    let word = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/'));
    if word && !NOT_TEXT.contains(&text.to_ascii_lowercase().as_str()) {
        return text.to_owned();
    }
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}') => {
                quoted.push_str(&format!("\\u{:04X}", u32::from(c)));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::policy::tree;

    proptest! {
        #[test]
        fn every_text_is_read_back_as_it_was(texts in proptest::collection::vec(".{0,20}|(true|NO|~|null|1e3|0x1|-|a b|a: b|# x|.inf|=|<<)", 1..5)) {
            let list = Out::List(texts.iter().map(|text| Out::text(text)).collect());
            let out = Out::Map(vec![
                ("inner".to_owned(), Out::List(vec![
                    Out::Map(vec![("a".to_owned(), list.clone()), ("b".to_owned(), Out::text("x"))]),
                    Out::Map(vec![("a".to_owned(), list)]),
                ])),
            ]);
            let yaml = out.render();
            let read = tree::parse(&yaml).unwrap();
            let inner = read.get("inner").unwrap();
            prop_assert_eq!(inner.items().len(), 2);
            for item in inner.items() {
                let back: Vec<String> = item.get("a").unwrap().items().iter().map(|node| match &node.value {
                    Value::Text(text) => text.clone(),
                    other => panic!("{other:?} in {yaml}"),
                }).collect();
                prop_assert_eq!(&back, &texts);
            }
        }
    }
}
