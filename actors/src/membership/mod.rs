//! How a node becomes and stays a member: joining, registering, the links and the group of the settings put together.
//!
//! A node's identity is its directory: the disk id in `identity.json`, and in `raft/` the cluster and the node id. An
//! empty directory is a new node, whatever address it has; a used one is the node that it was.

mod admin;
mod contact;
mod handler;
mod join;
mod link_factory;
mod member;
mod message;
#[cfg(test)]
mod message_oracle;
mod no_link;
mod raft_link;
#[cfg(test)]
mod raft_link_test;
mod register;
mod router;
mod start;
mod token;
mod view;

pub(crate) use contact::Contact;
pub use link_factory::{LinkFactory, LinkIdentity, LinkStartError};
pub(crate) use member::Member;
pub use member::settings_dir;
pub use no_link::{NoLink, NoLinks};
#[cfg(test)]
pub(crate) use raft_link::RaftLink;
pub(crate) use register::{Registration, refused};
pub use router::PeerRouter;
pub use start::NodeStart;
pub use token::JoinSecret;
