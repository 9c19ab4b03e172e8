//! openraft's own test suite of storages, on a real directory.

use std::path::PathBuf;

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use spandrel_storage::disk::RealDisk;
use tempfile::TempDir;

use super::{Database, Identity, LogStore, StateMachine};
use crate::types::TypeConfig;

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError<TypeConfig>> {
        let dir = TempDir::new().unwrap();
        let database = create(dir.path().to_owned());
        let machine = StateMachine::load(database.clone()).unwrap();
        Ok((dir, LogStore::new(database), machine))
    }
}

fn create(dir: PathBuf) -> Database {
    let identity = Identity {
        cluster_id: 1,
        node: 0,
        founder: true,
    };
    Database::create(&RealDisk, &dir, identity).unwrap()
}

#[tokio::test]
async fn the_suite_of_openraft_passes() {
    Suite::test_all(Builder).await.unwrap();
}
