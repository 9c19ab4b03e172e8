//! Importing the OpenTelemetry Collector's `tail_sampling` processor.

use super::emit::Out;
use super::error::PolicyError;
use super::fields::parse_duration_ms;
use super::import_policy::Importer;
use super::set::PolicySet;
use super::tree::{self, Node, Place};
use crate::limits::{MAX_DECISION_MS, MIN_DECISION_MS};

/// What became of a Collector's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Import {
    /// A policy file of ours; [`PolicySet::parse`] accepts it.
    pub yaml: String,
    /// One sentence for each setting or policy that has no counterpart here or works otherwise here.
    pub not_taken_over: Vec<String>,
}

/// The name of the processor; instances are called `tail_sampling/name`.
const PROCESSOR: &str = "tail_sampling";
/// The Collector's `decision_wait` when the file does not say.
const COLLECTOR_DECISION_WAIT_MS: u64 = 30_000;

/// Settings of the processor that have no counterpart, with the reason.
const SETTINGS: [(&str, &str); 11] = [
    (
        "num_traces",
        "open traces are bounded by the node's memory (`--memory`), not by a count",
    ),
    (
        "expected_new_traces_per_sec",
        "nothing is allocated in advance",
    ),
    (
        "decision_cache",
        "verdicts are in the journal, late spans follow them as long as it is held",
    ),
    (
        "sample_on_first_match",
        "rate limits are asked only when nothing else keeps a trace, so it would save nothing",
    ),
    (
        "drop_pending_traces_on_shutdown",
        "pending traces are durable and are decided after the restart",
    ),
    (
        "block_on_overflow",
        "under pressure a node spills, decides early, and at last refuses with a retry hint",
    ),
    (
        "maximum_trace_size_bytes",
        "traces are bounded at 5 MB and 100,000 spans",
    ),
    (
        "sampling_strategy",
        "a trace is decided when it is complete, idle or too old, and early where nothing can change a keep",
    ),
    (
        "num_shards",
        "shards are a setting of the cluster (`--shards`)",
    ),
    ("tail_storage", "spans wait in the journal, on disk"),
    (
        "decision_wait_after_root_received_jitter",
        "decisions are not spread by chance",
    ),
];

/// Turns a Collector file (whole, or the processor's block alone) into a policy file.
///
/// # Errors
/// Text that is not YAML, no `tail_sampling` processor in it, or none of its policies can be taken over.
pub fn import_collector(yaml: &str) -> Result<Import, PolicyError> {
    let root = tree::parse(yaml)?;
    let mut importer = Importer::default();
    let (processor, path) = find_processor(&root, &mut importer)?;
    let decision = decision(processor, &mut importer);
    for entry in processor.entries() {
        settings(&entry.key, &entry.node, &mut importer);
    }
    let list = processor.get("policies");
    let mut policies = Vec::new();
    for node in list.map(Node::items).unwrap_or_default() {
        policies.extend(importer.policy(node));
    }
    if policies.is_empty() {
        let place = list.map_or(processor.place, |list| list.place);
        let message = match importer.notes.as_slice() {
            [] => "there is no policy to import".to_owned(),
            notes => format!("no policy can be taken over: {}", notes.join("; ")),
        };
        return Err(PolicyError::new(place, format!("{path}policies"), message));
    }
    let file = Out::Map(vec![
        ("decision".to_owned(), decision),
        ("policies".to_owned(), Out::List(policies)),
    ]);
    let yaml = format!(
        "# Imported from the {PROCESSOR} processor of an OpenTelemetry Collector.\n{}",
        file.render()
    );
    // Each policy was parsed alone; only the bounds of a whole file can still be passed.
    PolicySet::parse(&yaml, 0).map_err(|error| {
        let message = format!("what was imported breaks a limit: {}", error.message);
        PolicyError::new(processor.place, error.field, message)
    })?;
    Ok(Import {
        yaml,
        not_taken_over: importer.notes,
    })
}

/// The block of the processor, wherever the file has it: in a Collector's file, in the values of its Helm chart, in a
/// resource of its operator, alone with its name, or alone without it. With the path to it, for errors.
fn find_processor<'a>(
    root: &'a Node,
    importer: &mut Importer,
) -> Result<(&'a Node, String), PolicyError> {
    let config = root.get("config");
    let operator = root.get("spec").and_then(|spec| spec.get("config"));
    for holder in [Some(root), config, operator].into_iter().flatten() {
        for (block, prefix) in [
            (holder.get("processors"), "processors."),
            (Some(holder), ""),
        ] {
            let instances = block.map(Node::entries).unwrap_or_default();
            let mut instances = instances.iter().filter(|entry| {
                entry.key == PROCESSOR || entry.key.starts_with(&format!("{PROCESSOR}/"))
            });
            if let Some(first) = instances.next() {
                for other in instances {
                    importer.note(format!(
                        "the processor `{}` (line {}): only the first one, `{}`, is imported",
                        other.key, other.place.line, first.key
                    ));
                }
                return Ok((&first.node, format!("{prefix}{}.", first.key)));
            }
        }
    }
    if root.get("policies").is_some() {
        return Ok((root, String::new()));
    }
    Err(PolicyError::new(
        Place { line: 1, column: 1 },
        format!("processors.{PROCESSOR}"),
        "there is no such processor in the file",
    ))
}

fn decision(processor: &Node, importer: &mut Importer) -> Out {
    let max_age = time(processor, "decision_wait", importer).unwrap_or(COLLECTOR_DECISION_WAIT_MS);
    let idle = time(processor, "decision_wait_after_root_received", importer);
    let mut entries = Vec::new();
    if let Some(idle) = idle {
        entries.push(("idle".to_owned(), duration(idle.min(max_age))));
    }
    entries.push(("max_age".to_owned(), duration(max_age)));
    Out::Map(entries)
}

/// A duration of the processor within our bounds. The Collector's 0 turns a setting off.
fn time(processor: &Node, key: &str, importer: &mut Importer) -> Option<u64> {
    let node = processor.get(key)?;
    let text = node.scalar().unwrap_or_default();
    match parse_duration_ms(text) {
        Some(0) => None,
        Some(ms) if (MIN_DECISION_MS..=MAX_DECISION_MS).contains(&ms) => Some(ms),
        Some(ms) => {
            let bounded = ms.clamp(MIN_DECISION_MS, MAX_DECISION_MS);
            importer.note(format!(
                "`{key}: {text}`: it became {bounded} ms, the nearest that is allowed"
            ));
            Some(bounded)
        }
        None if text == "0" => None,
        None => {
            importer.note(format!(
                "`{key}: {text}`: it is not a duration such as 10s or 1m30s"
            ));
            None
        }
    }
}

fn duration(ms: u64) -> Out {
    Out::Scalar(if ms.is_multiple_of(1_000) {
        format!("{}s", ms / 1_000)
    } else {
        format!("{ms}ms")
    })
}

fn settings(key: &str, node: &Node, importer: &mut Importer) {
    if matches!(
        key,
        "policies" | "decision_wait" | "decision_wait_after_root_received"
    ) {
        return;
    }
    let known = SETTINGS.iter().find(|(known, _)| *known == key);
    let reason = known.map_or("there is no such setting here", |(_, reason)| *reason);
    importer.note(format!("`{key}` (line {}): {reason}", node.place.line));
}
