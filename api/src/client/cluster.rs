//! The cluster's members by HTTP; the node takes it from its own machine only.

use http::Method;

use super::{Client, ClientError};
use crate::dto::{ClusterResponse, DoneResponse, JoinTokenResponse, RemoveNodeRequest};

impl Client {
    /// The cluster as the node sees it.
    ///
    /// # Errors
    /// As every call.
    pub async fn cluster(&self) -> Result<ClusterResponse, ClientError> {
        self.call::<(), _>(Method::GET, "/v1/cluster", None).await
    }

    /// Lets the node hand over its shards and take none.
    ///
    /// # Errors
    /// [`ClientError::Refused`] when no other node is up, and as every call.
    pub async fn leave_node(&self) -> Result<(), ClientError> {
        let DoneResponse {} = self
            .call::<(), _>(Method::POST, "/v1/admin/nodes/leave", None)
            .await?;
        Ok(())
    }

    /// Takes a node out of the cluster for good.
    ///
    /// # Errors
    /// [`ClientError::Refused`] when it is up or a shard still names it, when it alone holds some of the older data and
    /// `accept_loss` is false, and as every call.
    pub async fn remove_node(&self, node: u64, accept_loss: bool) -> Result<(), ClientError> {
        let body = RemoveNodeRequest {
            node: node.to_string(),
            accept_loss,
        };
        let DoneResponse {} = self
            .call(Method::POST, "/v1/admin/nodes/remove", Some(&body))
            .await?;
        Ok(())
    }

    /// Lets the node look at once for older data that it is to copy.
    ///
    /// # Errors
    /// As every call.
    pub async fn repair_node(&self) -> Result<(), ClientError> {
        let DoneResponse {} = self
            .call::<(), _>(Method::POST, "/v1/admin/nodes/repair", None)
            .await?;
        Ok(())
    }

    /// Creates a token that lets nodes join for a day.
    ///
    /// # Errors
    /// As every call.
    pub async fn create_join_token(&self) -> Result<JoinTokenResponse, ClientError> {
        self.call::<(), _>(Method::POST, "/v1/admin/tokens/join", None)
            .await
    }
}
