//! What people do to a node while spans arrive: they change the policy and promote traces.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::RngExt;
use spandrel_model::error::ErrorClass;
use spandrel_model::ports::{Admin, Query};

use crate::check::{promoted, violation};
use crate::faults::FaultKind;
use crate::random::{Stream, stream};
use crate::world::World;

/// Changes the policy again and again.
pub(crate) async fn reload(world: Arc<World>, admin: Arc<dyn Admin>, every_ms: u64) {
    loop {
        tokio::time::sleep(Duration::from_millis(every_ms)).await;
        let before = admin.policy().await;
        let yaml = world.plan.policy_yaml_of(u64::from(before.version));
        match admin.apply_policy(yaml.clone()).await {
            Ok(applied) => {
                world.note(format!("policy {} is in force", applied.version));
                world.fired(FaultKind::PolicyChange);
                world.policies().insert(applied.version, yaml);
            }
            Err(error) => world.note(format!("the policy is not changed: {error}")),
        }
    }
}

/// Promotes one trace after the other.
pub(crate) async fn promote(world: Arc<World>, query: Arc<dyn Query>, every_ms: u64) {
    let mut random = stream(world.plan.seed ^ world.elapsed_ms(), Stream::Operators);
    loop {
        tokio::time::sleep(Duration::from_millis(every_ms)).await;
        let number = random.random_range(0..world.traces().len());
        let (tenant, trace_id) = {
            let traces = world.traces();
            (traces[number].tenant.clone(), traces[number].trace_id)
        };
        match query.promote(&tenant, trace_id).await {
            Ok(decision) => {
                world.note(format!("trace {number} is promoted"));
                promoted(&world, number, &decision);
            }
            Err(error) => {
                let expected = matches!(
                    error.class,
                    ErrorClass::NotFound | ErrorClass::Unavailable | ErrorClass::OverLimit
                );
                if !expected && !world.faulted.load(Ordering::Relaxed) {
                    let problem = format!("promotion of trace {number} ({trace_id}): {error}");
                    world.violate(violation("answer", problem));
                }
            }
        }
    }
}
