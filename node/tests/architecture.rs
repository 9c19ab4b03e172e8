//! Rules of the repository that no compiler checks: who imports whom, how long a file may be, and that documents
//! point at files that exist.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// A file longer than this is two ideas.
const MAX_LINES: usize = 600;

/// What a crate may depend on, tests and benches not counted.
struct Rule {
    name: &'static str,
    /// Crates of ours.
    may: &'static [&'static str],
    /// Crates of others that another crate of ours owns.
    never: &'static [&'static str],
}

const RULES: [Rule; 8] = [
    Rule {
        name: "spandrel-model",
        may: &[],
        never: &[
            "axum", "openraft", "ractor", "rand", "redb", "tantivy", "tokio", "tonic",
        ],
    },
    Rule {
        name: "spandrel-storage",
        may: &["spandrel-model"],
        never: &["axum", "openraft", "ractor", "rand", "tokio", "tonic"],
    },
    Rule {
        name: "spandrel-raft",
        may: &["spandrel-model", "spandrel-storage"],
        never: &["axum", "ractor", "tantivy", "tonic", "zstd"],
    },
    Rule {
        name: "spandrel-actors",
        may: &["spandrel-model", "spandrel-storage", "spandrel-raft"],
        never: &["axum", "hyper", "openraft", "redb", "tantivy", "tonic"],
    },
    Rule {
        name: "spandrel-api",
        may: &["spandrel-model"],
        never: &["openraft", "ractor", "redb", "tantivy"],
    },
    Rule {
        name: "spandrel",
        may: &[
            "spandrel-model",
            "spandrel-storage",
            "spandrel-raft",
            "spandrel-actors",
            "spandrel-api",
        ],
        never: &["axum", "openraft", "ractor", "redb", "tantivy"],
    },
    Rule {
        name: "spandrel-simulation",
        may: &[
            "spandrel",
            "spandrel-actors",
            "spandrel-api",
            "spandrel-chaos",
            "spandrel-model",
            "spandrel-raft",
            "spandrel-storage",
        ],
        never: &[],
    },
    Rule {
        name: "spandrel-chaos",
        may: &["spandrel-model", "spandrel-api"],
        never: &["openraft", "ractor", "redb", "tantivy"],
    },
];

fn root() -> PathBuf {
    let node = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = node.parent().expect("node lies in the workspace");
    root.to_owned()
}

/// The crates of ours, as cargo describes them.
fn packages() -> Vec<Value> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline"])
        .args(["--format-version", "1"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "cargo metadata: {complaint}");
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("metadata is json");
    metadata["packages"].as_array().expect("packages").clone()
}

fn dependencies(package: &Value) -> &[Value] {
    package["dependencies"].as_array().expect("dependencies")
}

fn name_of(value: &Value) -> String {
    value["name"].as_str().expect("a name").to_owned()
}

/// What each of our crates depends on, by name.
fn imports() -> BTreeMap<String, Vec<String>> {
    let packages = packages();
    let imports = packages.iter().map(|package| {
        let shipped = dependencies(package).iter();
        let shipped = shipped.filter(|one| one["kind"] != "dev");
        (name_of(package), shipped.map(name_of).collect())
    });
    imports.collect()
}

/// Every file of the repository, relative to its root: what git tracks or would track; without git what is there.
fn files() -> Vec<PathBuf> {
    let listed = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others"])
        .arg("--exclude-standard")
        .current_dir(root())
        .output();
    let mut files = match listed {
        Ok(output) if output.status.success() => {
            let names = String::from_utf8(output.stdout).expect("names are text");
            let names = names.split('\0').filter(|name| !name.is_empty());
            names.map(PathBuf::from).collect()
        }
        _ => walk(Path::new("")),
    };
    // Removed, and the removal is not committed yet.
    files.retain(|file| root().join(file).is_file());
    assert!(files.len() > 100, "only {} files were found", files.len());
    files
}

fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(root().join(dir)).expect("a directory") {
        let entry = entry.expect("an entry");
        let path = dir.join(entry.file_name());
        let made = [".git", "spandrel-data"].map(Path::new);
        // The fuzz targets have one of their own.
        if made.contains(&path.as_path()) || path.ends_with("target") {
            continue;
        }
        if entry.file_type().expect("a type").is_dir() {
            files.extend(walk(&path));
        } else {
            files.push(path);
        }
    }
    files
}

fn files_ending(end: &str) -> Vec<(PathBuf, String)> {
    let mut files = files();
    files.retain(|file| file.extension().is_some_and(|extension| extension == end));
    let read = |file: PathBuf| {
        let text = std::fs::read_to_string(root().join(&file)).expect("it is text");
        (file, text)
    };
    files.into_iter().map(read).collect()
}

fn assert_none(broken: &[String], rule: &str) {
    assert!(broken.is_empty(), "{rule}:\n  {}", broken.join("\n  "));
}

/// What is rare happens in the simulation alone: a build of the program has no place for it.
#[test]
fn nobody_but_the_simulation_asks_for_buggify() {
    let packages = packages();
    let asks = packages.iter().filter(|package| {
        let features = dependencies(package).iter().map(|one| &one["features"]);
        let mut asked = features.flat_map(|features| features.as_array().expect("features"));
        asked.any(|feature| feature == "buggify")
    });
    assert_eq!(
        asks.map(name_of).collect::<Vec<_>>(),
        ["spandrel-simulation"]
    );
    let own = packages
        .iter()
        .map(|package| &package["features"]["default"]);
    let mut own = own.filter_map(Value::as_array).flatten();
    assert!(!own.any(|feature| feature == "buggify"));
}

#[test]
fn crates_import_in_one_direction() {
    let imports = imports();
    let mut broken = Vec::new();
    for name in imports.keys() {
        if !RULES.iter().any(|rule| rule.name == name) {
            broken.push(format!("{name} has no rule in this test"));
        }
    }
    for rule in &RULES {
        for import in imports.get(rule.name).expect("a crate for each rule") {
            let of_ours = imports.contains_key(import);
            let allowed = !of_ours || rule.may.contains(&import.as_str());
            if !allowed || rule.never.contains(&import.as_str()) {
                broken.push(format!("{} imports {import}", rule.name));
            }
        }
    }
    assert_none(&broken, "imports against the direction of ARCHITECTURE.md");
}

#[test]
fn no_source_file_is_too_long() {
    let mut broken = Vec::new();
    for (file, text) in files_ending("rs") {
        let lines = text.lines().count();
        if lines > MAX_LINES {
            broken.push(format!("{}: {lines} lines", file.display()));
        }
    }
    assert_none(&broken, &format!("files of more than {MAX_LINES} lines"));
}

#[test]
fn no_file_names_a_place_on_somebodys_machine() {
    // Put together here, so that this file does not name them itself.
    let places = ["home", "Users", "root", "work"].map(|dir| format!("/{dir}/"));
    let begins_a_path = |text: &str, at: usize| {
        let before = text.get(..at).and_then(|before| before.chars().next_back());
        before.is_none_or(|c| c.is_whitespace() || "\"'`(=:<,[".contains(c))
    };
    let mut broken = Vec::new();
    for file in files() {
        let bytes = std::fs::read(root().join(&file)).expect("it can be read");
        let Ok(text) = String::from_utf8(bytes) else {
            continue;
        };
        for place in &places {
            let found = text.match_indices(place.as_str());
            if let Some((at, _)) = found.into_iter().find(|(at, _)| begins_a_path(&text, *at)) {
                let line = text
                    .get(..at)
                    .map_or(0, |before| before.matches('\n').count())
                    + 1;
                broken.push(format!("{}:{line}: {place}", file.display()));
            }
        }
    }
    assert_none(&broken, "absolute paths of a home or work directory");
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut broken = Vec::new();
    for (file, text) in files_ending("md") {
        let path = root().join(&file);
        let dir = path.parent().expect("a file lies in a directory");
        for after in text.split("](").skip(1) {
            let target = after.split([')', '#', ' ']).next().unwrap_or_default();
            let elsewhere = target.is_empty() || target.contains("://");
            if !elsewhere && !dir.join(target).exists() {
                broken.push(format!("{} links to {target}", file.display()));
            }
        }
    }
    assert_none(&broken, "links to files that do not exist");
}
