//! Stands between nodes, so that one of them can be cut off from the others, or be far away from them, without a
//! privilege: each node advertises the address of its proxy, which passes connections on until it is told to be silent.
//! As on a wire that is cut, connections are not closed, and what is sent arrives nowhere.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Bytes that are passed on at once.
const CHUNK_BYTES: usize = 16 << 10;
/// Chunks that are under way in one direction at most.
const CHUNKS_UNDER_WAY: usize = 256;

/// How the wires are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Everything passes at once.
    Well,
    /// Nothing passes between this node and the others.
    Cut(usize),
    /// What this node and the others send each other takes so long.
    Slow(usize, Duration),
}

/// The nodes at the ends of a connection: who dialled, where that is known, and who was dialled.
type Ends = (Option<usize>, usize);

fn is_at(node: usize, ends: Ends) -> bool {
    ends.0 == Some(node) || ends.1 == node
}

impl State {
    fn cuts(self, ends: Ends) -> bool {
        matches!(self, Self::Cut(node) if is_at(node, ends))
    }

    fn delay(self, ends: Ends) -> Duration {
        match self {
            Self::Slow(node, delay) if is_at(node, ends) => delay,
            _ => Duration::ZERO,
        }
    }
}

/// What all proxies of a cluster have in common. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Wires {
    state: watch::Sender<State>,
    /// The processes of the nodes: a proxy sees who dials by the socket's owner.
    processes: Arc<Mutex<BTreeMap<usize, u32>>>,
}

impl Default for Wires {
    fn default() -> Self {
        Self {
            state: watch::Sender::new(State::Well),
            processes: Arc::default(),
        }
    }
}

impl Wires {
    /// Cuts a node off from all others, in both directions.
    pub fn cut_off(&self, node: usize) {
        self.state.send_replace(State::Cut(node));
    }

    /// What this node and the others send each other arrives so much later, in its order.
    pub fn slow_down(&self, node: usize, delay: Duration) {
        self.state.send_replace(State::Slow(node, delay));
    }

    /// All is well again. Connections that were silent break, and new ones pass.
    pub fn heal(&self) {
        self.state.send_replace(State::Well);
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
        let ends = (wires.dialler(from, here), node);
        tokio::spawn(carry(stream, target, ends, wires.state.subscribe()));
    }
}

/// Passes bytes on in both directions. While one end is cut off, none; and then the connection ends.
async fn carry(here: TcpStream, target: SocketAddr, ends: Ends, mut state: watch::Receiver<State>) {
    let mut cut = state.clone();
    let delay = state.clone();
    let passes = async {
        let there = TcpStream::connect(target).await?;
        there.set_nodelay(true)?;
        here.set_nodelay(true)?;
        let (from_here, to_here) = here.into_split();
        let (from_there, to_there) = there.into_split();
        let delay = || delay.borrow().delay(ends);
        tokio::try_join!(
            pass(from_here, to_there, &delay),
            pass(from_there, to_here, &delay)
        )
    };
    let mut passes = std::pin::pin!(passes);
    let is_cut = async { drop(cut.wait_for(|state| state.cuts(ends)).await) };
    tokio::select! {
        biased;
        () = is_cut => {}
        _ = &mut passes => return,
    }
    // `passes` is held, so that its connections stay open, but not driven.
    drop(state.wait_for(|state| !state.cuts(ends)).await);
}

/// Passes bytes on in one direction, each as late as it was to be when it came, until there are no more.
async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    delay: &impl Fn() -> Duration,
) -> std::io::Result<()> {
    let (sender, mut receiver) = mpsc::channel::<(Instant, Vec<u8>)>(CHUNKS_UNDER_WAY);
    let read = async move {
        loop {
            let mut chunk = Vec::with_capacity(CHUNK_BYTES);
            if from.read_buf(&mut chunk).await? == 0 {
                return Ok(());
            }
            if sender
                .send((Instant::now() + delay(), chunk))
                .await
                .is_err()
            {
                return Ok(());
            }
        }
    };
    let write = async move {
        while let Some((due, chunk)) = receiver.recv().await {
            tokio::time::sleep_until(due).await;
            to.write_all(&chunk).await?;
        }
        to.shutdown().await
    };
    tokio::try_join!(read, write).map(drop)
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

    #[tokio::test(start_paused = true)]
    async fn what_a_slow_node_sends_comes_late_and_in_its_order() {
        let (slow, fast) = (Duration::from_secs(1), Duration::ZERO);
        let ends = (Some(1), 0);
        let state = State::Slow(1, slow);
        assert_eq!(
            [
                state.delay(ends),
                state.delay((Some(2), 1)),
                state.delay((Some(2), 0))
            ],
            [slow, slow, fast]
        );

        let (mut near, from) = tokio::io::duplex(64);
        let (to, mut far) = tokio::io::duplex(64);
        let start = Instant::now();
        let is_slow = std::cell::Cell::new(true);
        let delay = || if is_slow.get() { slow } else { fast };
        let sends = async {
            near.write_all(b"a").await.unwrap();
            tokio::time::sleep(Duration::from_millis(10)).await;
            // and: all is well again, but the first byte is still under way
            is_slow.set(false);
            near.write_all(b"b").await.unwrap();
            drop(near);
        };
        let receives = async {
            let mut bytes = Vec::new();
            far.read_to_end(&mut bytes).await.unwrap();
            (bytes, start.elapsed())
        };
        let (passed, (), (bytes, took)) = tokio::join!(pass(from, to, &delay), sends, receives);
        passed.unwrap();
        assert_eq!(bytes, b"ab");
        assert!((slow..slow * 2).contains(&took), "{took:?}");
    }
}
