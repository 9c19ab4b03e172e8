//! Any text: reading a policy file or a Collector's settings ends, says where an error is, and what was imported is a
//! policy file.
#![no_main]

use libfuzzer_sys::fuzz_target;
use spandrel_model::policy::{PolicyError, PolicySet, import_collector};

fuzz_target!(|yaml: &str| {
    if let Err(error) = PolicySet::parse(yaml, 1) {
        check_place(&error, yaml);
    }
    match import_collector(yaml) {
        Err(error) => check_place(&error, yaml),
        Ok(import) => {
            if let Err(error) = PolicySet::parse(&import.yaml, 1) {
                panic!("imported what is no policy file: {error}\n{}", import.yaml);
            }
        }
    }
});

fn check_place(error: &PolicyError, yaml: &str) {
    assert!(!error.message.is_empty());
    let lines = yaml.split(['\n', '\r']).count();
    assert!(
        error.line as usize <= lines + 1,
        "line {} of {lines}: {error}",
        error.line
    );
}
