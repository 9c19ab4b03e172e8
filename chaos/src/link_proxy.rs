//! Stands between nodes, so that one of them can be cut off from the others without a privilege: each node advertises
//! the address of its proxy, which passes connections on until it is told to be silent. As on a wire that is cut,
//! connections are not closed, and what is sent arrives nowhere.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What all proxies of a cluster have in common. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Wires {
    /// The node that is cut off.
    cut: watch::Sender<Option<usize>>,
    /// The processes of the nodes: a proxy sees who dials by the socket's owner.
    processes: Arc<Mutex<BTreeMap<usize, u32>>>,
}

impl Default for Wires {
    fn default() -> Self {
        Self {
            cut: watch::Sender::new(None),
            processes: Arc::default(),
        }
    }
}

impl Wires {
    /// Cuts a node off from all others, in both directions.
    pub fn cut_off(&self, node: usize) {
        self.cut.send_replace(Some(node));
    }

    /// Connects it again: connections that were silent break, and new ones pass.
    pub fn heal(&self) {
        self.cut.send_replace(None);
    }

    /// The node that has dialled from this port: its process holds the socket.
    fn dialler(&self, from: SocketAddr, to: SocketAddr) -> Option<usize> {
        let inode = socket_inode(from, to)?;
        let name = format!("socket:[{inode}]");
        let holds = |process: u32| {
            let files = fs::read_dir(format!("/proc/{process}/fd"));
            let mut files = files.into_iter().flatten().flatten();
            files.any(|file| fs::read_link(file.path()).is_ok_and(|it| *it == *name))
        };
        let processes = locked(&self.processes).clone();
        let mut nodes = processes.into_iter();
        let found = nodes.find(|(_, process)| holds(*process));
        found.map(|(node, _)| node)
    }
}

/// The proxy in front of one node's link address.
///
/// Invariant: every connection between two nodes of the cluster passes through the proxy of the one that was dialled.
#[derive(Debug)]
pub struct LinkProxy {
    node: usize,
    wires: Wires,
    addr: SocketAddr,
    target: Arc<Mutex<Option<SocketAddr>>>,
    accepts: JoinHandle<()>,
}

impl LinkProxy {
    /// Listens for the node of this number. It passes nothing on before `leads_to` is called.
    ///
    /// # Errors
    /// When it cannot listen.
    pub async fn start(node: usize, wires: &Wires) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let addr = listener.local_addr()?;
        let target = Arc::default();
        let accepts = tokio::spawn(accept(listener, node, wires.clone(), Arc::clone(&target)));
        Ok(Self {
            node,
            wires: wires.clone(),
            addr,
            target,
            accepts,
        })
    }

    /// What the node advertises.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where the node listens.
    pub(crate) fn leads_to(&self, target: SocketAddr) {
        *locked(&self.target) = Some(target);
    }

    /// The node's process.
    pub(crate) fn belongs_to(&self, process: u32) {
        locked(&self.wires.processes).insert(self.node, process);
    }
}

impl Drop for LinkProxy {
    fn drop(&mut self) {
        self.accepts.abort();
    }
}

fn locked<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn accept(
    listener: TcpListener,
    node: usize,
    wires: Wires,
    target: Arc<Mutex<Option<SocketAddr>>>,
) {
    // An error is of one connection that broke before it was accepted.
    loop {
        let (Ok((stream, from)), Ok(here)) = (listener.accept().await, listener.local_addr())
        else {
            continue;
        };
        let Some(target) = *locked(&target) else {
            continue;
        };
        let ends = (wires.dialler(from, here), Some(node));
        tokio::spawn(carry(stream, target, ends, wires.cut.subscribe()));
    }
}

/// Passes bytes on in both directions. While one end is cut off, none; and then the connection ends.
async fn carry(
    mut here: TcpStream,
    target: SocketAddr,
    ends: (Option<usize>, Option<usize>),
    mut cut: watch::Receiver<Option<usize>>,
) {
    let concerns = |cut: &Option<usize>| cut.is_some() && (*cut == ends.0 || *cut == ends.1);
    let mut silence = cut.clone();
    let passes = async {
        let mut there = TcpStream::connect(target).await?;
        there.set_nodelay(true)?;
        here.set_nodelay(true)?;
        tokio::io::copy_bidirectional(&mut here, &mut there).await
    };
    let mut passes = std::pin::pin!(passes);
    let is_cut = async { drop(silence.wait_for(concerns).await) };
    tokio::select! {
        biased;
        () = is_cut => {}
        _ = &mut passes => return,
    }
    // `passes` is held, so that its connections stay open, but not driven.
    drop(cut.wait_for(Option::is_none).await);
}

/// The socket that is connected from here to there, on this machine.
fn socket_inode(from: SocketAddr, to: SocketAddr) -> Option<String> {
    let hex = |port: u16| format!(":{port:04X}");
    let (from, to) = (hex(from.port()), hex(to.port()));
    let table = fs::read_to_string("/proc/self/net/tcp").ok()?;
    table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is_it = fields.get(1)?.ends_with(&from) && fields.get(2)?.ends_with(&to);
        is_it.then(|| fields.get(9).map(|inode| (*inode).to_owned()))?
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_cut_is_silent_and_a_healed_connection_is_closed() {
        // given: this process is node 1, and dials node 0
        let wires = Wires::default();
        let echo = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = LinkProxy::start(0, &wires).await.unwrap();
        proxy.leads_to(echo.local_addr().unwrap());
        locked(&wires.processes).insert(1, std::process::id());
        let mut here = TcpStream::connect(proxy.addr()).await.unwrap();
        let (mut there, _) = echo.accept().await.unwrap();
        let mut byte = [0];

        // when: all is well, then another node is cut off
        here.write_all(b"a").await.unwrap();
        there.read_exact(&mut byte).await.unwrap();
        wires.cut_off(2);
        here.write_all(b"b").await.unwrap();
        there.read_exact(&mut byte).await.unwrap();
        assert_eq!(byte, *b"b", "it is not concerned");

        // then: when the dialler is cut off, nothing passes and nothing ends
        wires.cut_off(1);
        here.write_all(b"c").await.unwrap();
        let silence = tokio::time::timeout(Duration::from_millis(100), there.read(&mut byte));
        assert!(silence.await.is_err(), "it passed or ended");
        wires.heal();
        assert_eq!(there.read(&mut byte).await.unwrap(), 0, "it has ended");
    }
}
