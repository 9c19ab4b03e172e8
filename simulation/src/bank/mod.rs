//! The bank of bugs: patches that put plausible defects back into the product, each with the checker that must notice it.
//! So the tester is tested: a checker that sees nothing any more is found out.

mod patch;

use std::path::{Path, PathBuf};
use std::process::Command;

pub use patch::{Patch, PatchError, PatchLevel};

/// Seeds within which a bug must be noticed.
pub const MOST_SEEDS: u64 = 200;
/// What is not copied: it is made by builds, or of no use to one.
const NOT_COPIED: [&str; 2] = ["target", ".git"];

/// The patches of a folder, by name.
///
/// # Errors
/// When it cannot be read, or one of them is not understood.
pub fn patches(dir: &Path) -> anyhow::Result<Vec<Patch>> {
    let mut patches = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let is_patch = path.extension().is_some_and(|ending| ending == "patch");
        if let (true, Some(name)) = (is_patch, path.file_stem()) {
            let text = std::fs::read_to_string(&path)?;
            let patch = Patch::parse(&name.to_string_lossy(), &text);
            patches.push(patch.map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))?);
        }
    }
    patches.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(patches)
}

/// Puts each bug into a copy of the sources, builds it and runs seeds until its checker notices it. True when all were
/// noticed. `names`: only these; all when empty.
///
/// # Errors
/// When the sources cannot be copied, or a patch does not apply or build.
pub fn run(root: &Path, names: &[String]) -> anyhow::Result<bool> {
    let wanted = |patch: &Patch| names.is_empty() || names.contains(&patch.name);
    let patches = patches(&root.join("simulation/bank"))?;
    let patches: Vec<Patch> = patches.into_iter().filter(wanted).collect();
    let copy = root.join("target/bank");
    copy_tree(root, &copy)?;
    let mut missed = Vec::new();
    for patch in &patches {
        let files = patch.applied(root);
        let files = files.map_err(|error| anyhow::anyhow!("{}: {error}", patch.name))?;
        for (path, text) in &files {
            std::fs::write(copy.join(path), text)?;
        }
        let noticed = notice(patch, &copy);
        for path in files.keys() {
            std::fs::copy(root.join(path), copy.join(path))?;
        }
        match noticed? {
            Some((seed, line)) => println!("{}: caught at seed {seed}: {line}", patch.name),
            None => {
                println!("{}: MISSED by {:?}", patch.name, patch.checkers);
                missed.push(patch.name.clone());
            }
        }
    }
    println!(
        "{} bugs, {} missed: {missed:?}",
        patches.len(),
        missed.len()
    );
    Ok(missed.is_empty())
}

/// Builds the copy and runs seeds: the first at which the checker notices something, and what.
fn notice(patch: &Patch, copy: &Path) -> anyhow::Result<Option<(u64, String)>> {
    let target = copy.join("target");
    let built = Command::new("cargo")
        .args(["build", "--quiet", "--locked", "-p", "spandrel-simulation"])
        .current_dir(copy)
        .env("CARGO_TARGET_DIR", &target)
        // One crate after the other changes by some lines.
        .env("CARGO_INCREMENTAL", "1")
        .status()?;
    anyhow::ensure!(built.success(), "{} does not build", patch.name);
    let program: PathBuf = target.join("debug/spandrel-simulation");
    for seed in 1..=MOST_SEEDS {
        let mut command = Command::new(&program);
        command.args(["replay", &seed.to_string()]);
        if patch.level == PatchLevel::Message {
            command.args(["--level", "message"]);
        }
        let output = command.args(&patch.options).output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let broken = text.lines().find_map(|line| line.strip_prefix("broken: "));
        let names = |line: &&str| patch.checkers.iter().any(|name| line.contains(name));
        if let Some(line) = broken.filter(names) {
            return Ok(Some((seed, line.to_owned())));
        }
    }
    Ok(None)
}

/// Copies files that have changed since the last time; the times of the others stay, so that they are not built again.
fn copy_tree(from: &Path, to: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if NOT_COPIED.iter().any(|other| *other == name) {
            continue;
        }
        let target = to.join(&name);
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else if std::fs::read(&target).ok() != Some(std::fs::read(entry.path())?) {
            std::fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}
