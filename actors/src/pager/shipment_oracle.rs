//! What must hold of a shipment of pages whatever a peer sends: it is refused, or packed again it is the same. Beside the
//! tests, the fuzz target `peer_message` uses this.

use std::sync::Arc;

use bytes::Bytes;
use spandrel_model::credit::CreditPool;
use spandrel_model::ids::NodeId;

use super::shipment::{Arrived, pack, unpack};
use crate::limits::SHIPMENT_BYTES;

/// Any bytes as a shipment.
pub(crate) fn check_any(bytes: Bytes) {
    let is_one = bytes.len() < SHIPMENT_BYTES;
    match unpack(bytes) {
        Err(reason) => assert!(!reason.is_empty()),
        Ok(arrived) => {
            check_arrived(&arrived);
            if is_one && !arrived.write.pages.is_empty() {
                check_again(&arrived);
            }
        }
    }
}

/// Each trace is in one fragment, as it is told.
fn check_arrived(arrived: &Arrived) {
    assert!(arrived.write.summaries.is_empty());
    let pages = arrived.write.pages.iter();
    let fragments: Vec<_> = pages.flat_map(|page| &page.fragments).collect();
    assert_eq!(fragments.len(), arrived.traces.len());
    for fragment in fragments {
        let head = fragment.head;
        let told = &arrived.traces[&(head.shard, head.trace_id)];
        assert_eq!((told.fragment, told.spans), (head.fragment, fragment.rows));
    }
}

fn check_again(arrived: &Arrived) {
    let to: Arc<[NodeId]> = vec![NodeId(2)].into();
    let pool = CreditPool::new(1 << 30);
    let mut shipments = pack(&arrived.write, &arrived.traces, &to, &pool).unwrap();
    assert_eq!(shipments.len(), 1);
    let again = unpack(shipments.remove(0).bytes).unwrap_or_else(|reason| panic!("{reason}"));
    assert_eq!(again.traces, arrived.traces);
    assert_eq!(again.write.pages, arrived.write.pages);
    assert_eq!(
        (again.write.bucket, &again.write.tenant),
        (arrived.write.bucket, &arrived.write.tenant)
    );
}
