//! A cluster of real nodes on loopback. Nodes are named by their place here, from 0; the cluster's own numbers are
//! looked up.

use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use spandrel_api::client::Client;
use spandrel_api::dto::{ClusterNode, ClusterResponse};

use crate::limits::{POLL_INTERVAL, SETTLE_DEADLINE};
use crate::link_proxy::{LinkProxy, Wires};
use crate::node_process::{MachineOptions, NodeOptions, NodeProcess, Role};
use crate::observe::wait_until;

/// The policy of clusters that faults strike. Decisions fall into the run; healthy traces are dropped or kept by their id,
/// so that both kinds exist. They wait longer than a fault holds spans up: what is late for a drop and meets a replica that
/// has joined since is decided anew, which docs/replication.md says is not solved.
pub const CLUSTER_POLICY: &str = "
decision: {idle: 8s, max_age: 12s}
policies:
  - {name: errors, type: status_code, status_codes: [ERROR]}
  - {name: slow, type: latency, threshold_ms: 1000}
  - {name: some, type: probabilistic, sampling_percentage: 30}
";

/// How the nodes reach one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wiring {
    /// At their own addresses.
    Direct,
    /// Through proxies: a node can be cut off.
    Proxied,
}

/// What a cluster is made of.
#[derive(Debug, Clone, Copy)]
pub struct ClusterOptions<'a> {
    /// Nodes at the beginning.
    pub nodes: usize,
    /// Flags of the first node alone: what the cluster begins with.
    pub seeds: &'a [&'a str],
    /// Flags of every node.
    pub arguments: &'a [&'a str],
    /// The text of the policy file.
    pub policy: &'a str,
    /// How the nodes reach one another.
    pub wiring: Wiring,
    /// What each node has of its own.
    pub machine: MachineOptions,
}

/// A node and its number in the cluster.
#[derive(Debug)]
struct Member {
    process: NodeProcess,
    id: String,
}

/// Dropping it kills every process.
///
/// Invariant: a node keeps its place, and each place its number in the cluster until another node takes its place.
#[derive(Debug)]
pub struct ClusterProcess {
    arguments: Vec<String>,
    machine: MachineOptions,
    wires: Option<Wires>,
    members: Vec<Member>,
}

impl ClusterProcess {
    /// Starts the nodes, one after the other, and waits until they have settled.
    ///
    /// # Errors
    /// When a node does not start, or they do not settle in time; with logs.
    pub async fn start(options: ClusterOptions<'_>) -> anyhow::Result<Self> {
        let arguments = options.arguments.iter().map(|&text| text.to_owned());
        let mut cluster = Self {
            arguments: arguments.collect(),
            machine: options.machine,
            wires: (options.wiring == Wiring::Proxied).then(Wires::default),
            members: Vec::new(),
        };
        let first = [options.seeds, options.arguments].concat();
        cluster
            .add(Role::First, &first, Some(options.policy))
            .await?;
        for _ in 1..options.nodes {
            cluster.join().await?;
        }
        if options.nodes > 1 {
            cluster.wait_until_settled(0, options.nodes).await?;
        }
        Ok(cluster)
    }

    /// One more node joins. Returns its place when it is ready; [`Self::wait_until_settled`] waits until it has its
    /// share.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn join(&mut self) -> anyhow::Result<usize> {
        let members = Role::Joins(self.advertised_but(None));
        let arguments = self.arguments.clone();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        self.add(members, &arguments, None).await
    }

    /// Lets a node leave: it hands over what it has, its process ends, and the node at `asked` takes it out of the
    /// cluster.
    ///
    /// # Errors
    /// When a step fails, or is not done in time.
    pub async fn leave(&mut self, place: usize, asked: usize) -> anyhow::Result<()> {
        self.node(place).leave().await?;
        self.node_mut(place).stop().await?;
        let number = self.id(place).parse()?;
        let removed = self.client(asked).await?.remove_node(number, false).await;
        removed.with_context(|| format!("node {number} is not removed"))
    }

    /// A new node with an empty directory joins in the place of one that has left. It is ready when this returns.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn replace(&mut self, place: usize) -> anyhow::Result<()> {
        let members = self.advertised_but(Some(place));
        let node = self.node_mut(place);
        node.renew(members)?;
        node.restart().await?;
        let id = self.view(place).await?.asked;
        self.members[place].id = id;
        Ok(())
    }

    fn advertised_but(&self, place: Option<usize>) -> Vec<SocketAddr> {
        let others = self.members.iter().enumerate();
        let others = others.filter(|(other, _)| Some(*other) != place);
        let others = others.map(|(_, member)| member.process.advertised());
        others.collect()
    }

    async fn add(
        &mut self,
        role: Role,
        arguments: &[&str],
        policy: Option<&str>,
    ) -> anyhow::Result<usize> {
        let place = self.members.len();
        let proxy = match &self.wires {
            Some(wires) => Some(LinkProxy::start(place, wires).await?),
            None => None,
        };
        let options = NodeOptions {
            role,
            arguments,
            policy,
            proxy,
            machine: self.machine,
        };
        let process = NodeProcess::start_as(options).await?;
        let id = process.client().await?.cluster().await?.asked;
        self.members.push(Member { process, id });
        Ok(place)
    }

    /// How many nodes there are, dead ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// A node.
    ///
    /// # Panics
    /// When there is no such place.
    #[must_use]
    pub fn node(&self, place: usize) -> &NodeProcess {
        &self.members[place].process
    }

    /// A node, to be killed or started again.
    ///
    /// # Panics
    /// When there is no such place.
    pub fn node_mut(&mut self, place: usize) -> &mut NodeProcess {
        &mut self.members[place].process
    }

    /// The node's number in the cluster.
    ///
    /// # Panics
    /// When there is no such place.
    #[must_use]
    pub fn id(&self, place: usize) -> &str {
        &self.members[place].id
    }

    /// What the proxies have in common.
    ///
    /// # Errors
    /// When there are none.
    pub fn wires(&self) -> anyhow::Result<&Wires> {
        self.wires.as_ref().context("the nodes are wired directly")
    }

    /// A client of the native API of a node.
    ///
    /// # Errors
    /// When it is not reached.
    pub async fn client(&self, place: usize) -> anyhow::Result<Client> {
        self.node(place).client().await
    }

    /// The cluster, as a node sees it.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn view(&self, place: usize) -> anyhow::Result<ClusterResponse> {
        Ok(self.client(place).await?.cluster().await?)
    }

    /// Who leads the settings, as a node sees it.
    ///
    /// # Errors
    /// When it does not know, or does not answer.
    pub async fn leader(&self, asked: usize) -> anyhow::Result<usize> {
        let leader = self.view(asked).await?.leader.context("nobody leads")?;
        let place = self.members.iter().position(|member| member.id == leader);
        place.context("the leader is none of ours")
    }

    /// What `asked` says of a node.
    ///
    /// # Errors
    /// When it does not know it, or does not answer.
    pub async fn standing(&self, asked: usize, of: usize) -> anyhow::Result<ClusterNode> {
        let view = self.view(asked).await?;
        let mut nodes = view.nodes.into_iter();
        let found = nodes.find(|node| node.node == self.id(of));
        found.context("the node is not known")
    }

    /// Waits until `asked` says that a node is down.
    ///
    /// # Errors
    /// When it does not say so in time; with logs.
    pub async fn wait_until_down(&self, asked: usize, of: usize) -> anyhow::Result<()> {
        let down = async || Ok(self.standing(asked, of).await?.state == "down");
        let waited = wait_until("the node is down", SETTLE_DEADLINE, down).await;
        waited.with_context(|| self.logs())
    }

    /// Waits until, as `asked` sees it, so many nodes are up, every shard has its copies, nothing is filled, and
    /// nobody leads more than 110 % of its share.
    ///
    /// # Errors
    /// When they have not settled in time; with logs.
    pub async fn wait_until_settled(&self, asked: usize, nodes: usize) -> anyhow::Result<()> {
        let since = Instant::now();
        let client = self.client(asked).await?;
        loop {
            // A node that has lost its leader may refuse for some moments.
            let seen = client.cluster().await;
            match seen {
                Ok(view) if is_settled(&view, nodes) => return Ok(()),
                seen if since.elapsed() > SETTLE_DEADLINE => {
                    bail!(
                        "not settled after {SETTLE_DEADLINE:?}: {seen:?}\n{}",
                        self.logs()
                    );
                }
                _ => tokio::time::sleep(POLL_INTERVAL).await,
            }
        }
    }

    /// The node at this place has the number that it had.
    ///
    /// # Errors
    /// When it has another one, or does not answer.
    pub async fn ensure_same_identity(&self, place: usize) -> anyhow::Result<()> {
        let (was, is) = (self.id(place), self.view(place).await?.asked);
        ensure!(was == is, "node {was} came back as {is}");
        Ok(())
    }

    /// The ends of all logs, for a failure.
    #[must_use]
    pub fn logs(&self) -> String {
        let log = |(place, member): (usize, &Member)| {
            let (id, end) = (&member.id, member.process.log_end());
            let state = member.process.process_state();
            format!("--- node {id} at place {place}, process: {state}; its log ends:\n{end}\n")
        };
        self.members.iter().enumerate().map(log).collect()
    }
}

fn is_settled(view: &ClusterResponse, nodes: usize) -> bool {
    let up: Vec<&ClusterNode> = view.nodes.iter().filter(|it| it.state == "up").collect();
    let most = (u32::from(view.shards) * 110).div_ceil(100 * u32::try_from(nodes).unwrap_or(1));
    let has_its_share =
        |node: &&ClusterNode| node.filling_shards == 0 && node.primary_shards <= most;
    up.len() == nodes && view.lacking.is_empty() && up.iter().all(has_its_share)
}
