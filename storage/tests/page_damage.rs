//! Pages with right checksums and other content than any builder writes: each is read or refused.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

#[path = "support/sealed_page.rs"]
#[allow(missing_docs, unreachable_pub)]
mod sealed_page;

use proptest::collection::vec;
use proptest::prelude::*;

const GOLDEN: &[u8] = include_bytes!("../src/page/testdata/page_v1.bin");

#[test]
fn a_page_that_is_opened_and_sealed_is_the_same_page() {
    let open = sealed_page::open(GOLDEN);
    let page = sealed_page::seal(&open);
    assert_eq!(sealed_page::open(&page), open);
    let spans = sealed_page::read_all(&page).unwrap();
    assert_eq!(
        spans,
        sealed_page::read_all(&GOLDEN.to_vec().into()).unwrap()
    );
    assert!(spans > 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn damaged_content_is_read_or_refused(
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        let mut open = sealed_page::open(GOLDEN);
        for (at, byte) in damage {
            *at.get_mut(&mut open) = byte;
        }
        if let Some(cut) = cut {
            open.truncate(cut.index(open.len()));
        }
        let _ = sealed_page::read_all(&sealed_page::seal(&open));
    }

    #[test]
    fn any_content_is_read_or_refused(open in vec(any::<u8>(), 0..300)) {
        let _ = sealed_page::read_all(&sealed_page::seal(&open));
    }
}
