//! The client side of Spandrel's binary and the composition of its server: the command line, the settings, the
//! waterfall in the terminal, and the generator of demonstration traffic.

pub mod authority;
pub mod cli;
pub mod commands;
pub mod config;
pub mod data_dir;
pub mod demo;
pub mod host_port;
pub mod hub_links;
pub mod link_streams;
pub mod output;
pub mod program;
pub mod system_clock;
pub mod waterfall;
