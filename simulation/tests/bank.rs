//! The bank of bugs: its patches still apply. That they are noticed is for `bank` to say, which builds each.

#![allow(clippy::unwrap_used, clippy::panic)] // a test fails so

use std::path::Path;

use spandrel_simulation::bank::patches;

#[test]
fn every_patch_still_applies() {
    let simulation = Path::new(env!("CARGO_MANIFEST_DIR"));
    let patches = patches(&simulation.join("bank")).unwrap();
    assert!(patches.len() >= 20, "{} patches", patches.len());
    for patch in patches {
        let files = patch.applied(&simulation.join(".."));
        let files = files.unwrap_or_else(|error| panic!("{}: {error}", patch.name));
        for (path, text) in files {
            let before = std::fs::read_to_string(simulation.join("..").join(&path)).unwrap();
            assert_ne!(before, text, "{} changes nothing in {path}", patch.name);
        }
    }
}
