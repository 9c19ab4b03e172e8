//! Patches of the bank: a head that says what must notice the bug, and a unified diff, applied without any tool.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

/// Which runs are to notice the bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchLevel {
    /// `replay --level message`.
    Message,
    /// `replay`.
    Byte,
}

/// A bug that is put back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patch {
    /// The file's name without its ending.
    pub name: String,
    /// What must notice it: words of which one is in the line `broken: ...` of a run.
    pub checkers: Vec<String>,
    /// In which runs.
    pub level: PatchLevel,
    /// Further arguments of these runs.
    pub options: Vec<String>,
    files: Vec<FilePatch>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct FilePatch {
    path: String,
    hunks: Vec<Hunk>,
}

/// Lines that stand together in a file, and what they become.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Hunk {
    /// The line at which they stood when the patch was made, counted from 1.
    at: usize,
    before: Vec<String>,
    after: Vec<String>,
}

/// Why a patch cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PatchError {
    /// A line of the head or of the diff is not understood, or one is missing.
    Malformed(String),
    /// The file is not there.
    NoFile(String),
    /// The lines do not stand in the file as the patch has them, or more than once.
    NotFound {
        /// The file.
        path: String,
        /// Where they stood.
        line: usize,
    },
}

impl fmt::Display for PatchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(line) => write!(f, "not understood: `{line}`"),
            Self::NoFile(path) => write!(f, "there is no `{path}`"),
            Self::NotFound { path, line } => {
                write!(f, "the lines around {line} of `{path}` are others by now")
            }
        }
    }
}

impl std::error::Error for PatchError {}

impl Patch {
    /// Reads the text of a patch file.
    ///
    /// # Errors
    /// [`PatchError::Malformed`].
    pub fn parse(name: &str, text: &str) -> Result<Self, PatchError> {
        let malformed = |line: &str| PatchError::Malformed(line.to_owned());
        let mut patch = Self {
            name: name.to_owned(),
            checkers: Vec::new(),
            level: PatchLevel::Message,
            options: Vec::new(),
            files: Vec::new(),
        };
        for line in text.lines() {
            if let Some(path) = line.strip_prefix("+++ b/") {
                patch.files.push(FilePatch {
                    path: path.to_owned(),
                    hunks: Vec::new(),
                });
            } else if patch.files.is_empty() {
                patch.head(line).ok_or_else(|| malformed(line))?;
            } else if !line.starts_with("--- a/") {
                let file = patch.files.last_mut().ok_or_else(|| malformed(line))?;
                file.line(line).ok_or_else(|| malformed(line))?;
            }
        }
        if patch.checkers.is_empty() || patch.files.is_empty() {
            return Err(malformed("Checker, or the diff"));
        }
        Ok(patch)
    }

    /// A line before the diff: `Checker`, `Level` and `Options`; anything else is the story.
    fn head(&mut self, line: &str) -> Option<()> {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect();
        match line.split_once(": ") {
            Some(("Checker", checkers)) => self.checkers = words(checkers),
            Some(("Options", options)) => self.options = words(options),
            Some(("Level", "message")) => self.level = PatchLevel::Message,
            Some(("Level", "byte")) => self.level = PatchLevel::Byte,
            Some(("Level", _)) => return None,
            _ => {}
        }
        Some(())
    }

    /// The files that it changes, with their new text.
    ///
    /// # Errors
    /// [`PatchError::NoFile`], [`PatchError::NotFound`].
    pub fn applied(&self, root: &Path) -> Result<BTreeMap<String, String>, PatchError> {
        let files = self.files.iter().map(|file| {
            let text = std::fs::read_to_string(root.join(&file.path));
            let text = text.map_err(|_| PatchError::NoFile(file.path.clone()))?;
            Ok((file.path.clone(), file.applied(&text)?))
        });
        files.collect()
    }
}

impl FilePatch {
    fn line(&mut self, line: &str) -> Option<()> {
        if let Some(head) = line.strip_prefix("@@ -") {
            let at = head.split([',', ' ']).next()?;
            self.hunks.push(Hunk {
                at: at.parse().ok()?,
                ..Hunk::default()
            });
            return Some(());
        }
        let hunk = self.hunks.last_mut()?;
        let (kind, text) = match line.split_at_checked(1) {
            Some((kind, text)) => (kind, text.to_owned()),
            // An empty line of context whose space an editor has taken away.
            None => (" ", String::new()),
        };
        match kind {
            " " => {
                hunk.before.push(text.clone());
                hunk.after.push(text);
            }
            "-" => hunk.before.push(text),
            "+" => hunk.after.push(text),
            _ => return None,
        }
        Some(())
    }

    fn applied(&self, text: &str) -> Result<String, PatchError> {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        for hunk in &self.hunks {
            let length = hunk.before.len();
            let mut found = lines
                .windows(length)
                .enumerate()
                .filter(|(_, window)| *window == hunk.before.as_slice())
                .map(|(at, _)| at);
            let (Some(at), None) = (found.next(), found.next()) else {
                return Err(PatchError::NotFound {
                    path: self.path.clone(),
                    line: hunk.at,
                });
            };
            lines.splice(at..at + length, hunk.after.iter().cloned());
        }
        Ok(lines.join("\n") + "\n")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const TEXT: &str = "A story.\nChecker: one two\nLevel: byte\nOptions: --alone\n\n--- a/x.rs\n+++ b/x.rs\n@@ -2,3 +2,3 @@\n b\n-c\n+C\n d\n";

    #[test]
    fn lines_are_replaced_where_they_stand_once() {
        let patch = Patch::parse("x", TEXT).unwrap();
        assert_eq!(patch.checkers, ["one", "two"]);
        assert_eq!(
            (patch.level, patch.options.as_slice()),
            (PatchLevel::Byte, ["--alone".to_owned()].as_slice())
        );
        let file = &patch.files[0];
        assert_eq!(file.applied("a\nb\nc\nd\n").unwrap(), "a\nb\nC\nd\n");
        assert_eq!(file.applied("z\na\nb\nc\nd\n").unwrap(), "z\na\nb\nC\nd\n");
        for other in ["a\nb\nC\nd\n", "b\nc\nd\nb\nc\nd\n", ""] {
            assert!(file.applied(other).is_err(), "{other:?}");
        }
        assert!(Patch::parse("x", "no diff").is_err());
    }
}
