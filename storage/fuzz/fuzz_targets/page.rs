//! Any content of a page behind right checksums: each part is refused or read, and the rows that are read are those that
//! the page says it has.
#![no_main]

#[path = "../../tests/support/sealed_page.rs"]
#[allow(dead_code)] // tests use the rest
mod sealed_page;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|open: &[u8]| {
    let _ = sealed_page::read_all(&sealed_page::seal(open));
});
