//! The links of a node over sockets: a Hub that listens at the link address.

use std::sync::Arc;

use async_trait::async_trait;
use rand::Rng;
use spandrel_actors::link::{Hub, HubOptions, Link, LinkIdentity as HubIdentity, PeerHandler};
use spandrel_actors::membership::{LinkFactory, LinkIdentity, LinkStartError};

use crate::config::NodeStartOptions;
use crate::link_streams::listen;

/// Opens the links as the settings of a node say.
pub struct HubLinks {
    /// The settings.
    pub options: NodeStartOptions,
    /// Stops the process, when a part of the Hub has panicked.
    pub halt: Arc<dyn Fn(&str) + Send + Sync>,
}

#[async_trait]
impl LinkFactory for HubLinks {
    async fn start(
        &self,
        identity: LinkIdentity,
        handler: Arc<dyn PeerHandler>,
    ) -> Result<Arc<dyn Link>, LinkStartError> {
        let streams = listen(&self.options)
            .await
            .map_err(|error| LinkStartError {
                reason: format!("{error:#}"),
            })?;
        let options = HubOptions {
            identity: identity.node.map(|node| HubIdentity {
                cluster_id: identity.cluster_id,
                node,
            }),
            boot: identity.boot,
            advertised: self.options.advertise_addr.to_string(),
            streams: Arc::new(streams),
            newest_version: self.options.link_version,
            seed: seed(),
            halt: Arc::clone(&self.halt),
        };
        let hub = Hub::start(options, handler)
            .await
            .map_err(|error| LinkStartError {
                reason: error.to_string(),
            })?;
        Ok(Arc::new(hub))
    }
}

fn seed() -> [u8; 32] {
    #[allow(clippy::disallowed_methods)] // the secrets of sessions come from the system
    let mut random = rand::rng();
    let mut seed = [0; 32];
    random.fill_bytes(&mut seed);
    seed
}
