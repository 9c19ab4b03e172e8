//! The operating system of a simulated machine, as far as a process needs one: connections of turmoil's network, handed
//! to the process as pipes. It runs on while the process stands still, and closes what a dead process leaves open.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, copy_bidirectional, duplex};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::io::InspectReader;
use turmoil::net::{TcpListener, TcpStream};
use xxhash_rust::xxh3::xxh3_64;

use crate::world::World;

/// Bytes of a connection that the system holds for one side.
const SOCKET_BYTES: usize = 65_536;
/// Milliseconds for which a port may still be taken by who had it before.
const BIND_TRIES: u32 = 20;
/// Connections that wait to be taken.
const BACKLOG: usize = 64;

/// A connection that another machine has opened.
pub(super) type Accepted = (DuplexStream, SocketAddr);

enum Call {
    Dial {
        address: String,
        answer: oneshot::Sender<io::Result<DuplexStream>>,
    },
    Listen {
        port: u16,
        answer: oneshot::Sender<io::Result<()>>,
        accepted: mpsc::Sender<Accepted>,
    },
}

/// What a process calls. Clones are the same machine.
#[derive(Clone)]
pub(super) struct Kernel {
    calls: mpsc::UnboundedSender<Call>,
    closes: Arc<Closes>,
}

/// What makes the system close connections.
#[derive(Default)]
struct Closes {
    /// They are to be forgotten.
    severed: Notify,
    /// Their process has ended: what its memory still refers to holds nothing open.
    exited: Notify,
}

impl Kernel {
    /// The machine, and what runs on its host in turmoil's network.
    pub(super) fn new(world: Arc<World>) -> (Self, impl Future<Output = ()>) {
        let (calls, called) = mpsc::unbounded_channel();
        let closes = Arc::new(Closes::default());
        let kernel = Self {
            calls,
            closes: Arc::clone(&closes),
        };
        (kernel, serve(world, called, closes))
    }

    /// Forgets every connection without a word: the other sides do not hear of it if nothing reaches them now.
    pub(super) fn sever(&self) {
        self.closes.severed.notify_waiters();
    }

    /// The process has ended: its ports are free, and its connections are closed.
    pub(super) fn exit(&self) {
        self.closes.exited.notify_waiters();
    }

    pub(super) async fn dial(&self, address: &str) -> io::Result<DuplexStream> {
        let (answer, answered) = oneshot::channel();
        let address = address.to_owned();
        let _ = self.calls.send(Call::Dial { address, answer });
        answered.await.unwrap_or_else(|_| Err(gone()))
    }

    /// Connections to a port, until the receiver is dropped.
    pub(super) async fn listen(&self, port: u16) -> io::Result<mpsc::Receiver<Accepted>> {
        let (answer, answered) = oneshot::channel();
        let (accepted, receiver) = mpsc::channel(BACKLOG);
        let _ = self.calls.send(Call::Listen {
            port,
            answer,
            accepted,
        });
        answered.await.unwrap_or_else(|_| Err(gone()))?;
        Ok(receiver)
    }
}

fn gone() -> io::Error {
    io::Error::other("the simulated machine is off")
}

async fn serve(world: Arc<World>, mut called: mpsc::UnboundedReceiver<Call>, closes: Arc<Closes>) {
    while let Some(call) = called.recv().await {
        let (world, closes) = (Arc::clone(&world), Arc::clone(&closes));
        match call {
            Call::Dial { address, answer } => {
                tokio::spawn(dial(world, address, answer, closes));
            }
            Call::Listen {
                port,
                answer,
                accepted,
            } => {
                tokio::spawn(listen(world, port, answer, accepted, closes));
            }
        }
    }
}

async fn dial(
    world: Arc<World>,
    address: String,
    mut answer: oneshot::Sender<io::Result<DuplexStream>>,
    closes: Arc<Closes>,
) {
    let connected = tokio::select! {
        biased;
        () = answer.closed() => return,
        () = closes.exited.notified() => return,
        connected = TcpStream::connect(address) => connected,
    };
    match connected {
        Ok(stream) => {
            let (near, far) = duplex(SOCKET_BYTES);
            if answer.send(Ok(near)).is_ok() {
                carry(heard(&world, stream), far, closes).await;
            }
        }
        Err(error) => drop(answer.send(Err(error))),
    }
}

async fn listen(
    world: Arc<World>,
    port: u16,
    answer: oneshot::Sender<io::Result<()>>,
    accepted: mpsc::Sender<Accepted>,
    closes: Arc<Closes>,
) {
    let mut tries = 0;
    let listener = loop {
        match TcpListener::bind(("0.0.0.0", port)).await {
            Ok(listener) => break listener,
            // The listener before it is being closed.
            Err(_) if tries < BIND_TRIES => {
                tries += 1;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            Err(error) => return drop(answer.send(Err(error))),
        }
    };
    let _ = answer.send(Ok(()));
    loop {
        let taken = tokio::select! {
            biased;
            () = accepted.closed() => return,
            () = closes.exited.notified() => return,
            taken = listener.accept() => taken,
        };
        let Ok((stream, from)) = taken else { return };
        let (near, far) = duplex(SOCKET_BYTES);
        // Where the backlog is full the connection is closed.
        if accepted.try_send((near, from)).is_ok() {
            tokio::spawn(carry(heard(&world, stream), far, Arc::clone(&closes)));
        }
    }
}

/// Carries bytes both ways until one side is gone.
async fn carry(
    mut outside: impl AsyncRead + AsyncWrite + Unpin,
    mut inside: DuplexStream,
    closes: Arc<Closes>,
) {
    tokio::select! {
        biased;
        () = closes.severed.notified() => {}
        () = closes.exited.notified() => {}
        _ = copy_bidirectional(&mut outside, &mut inside) => {}
    }
}

/// A connection whose bytes the run's hash covers, where they arrive.
fn heard(world: &Arc<World>, stream: TcpStream) -> impl AsyncRead + AsyncWrite + Unpin + use<> {
    let world = Arc::clone(world);
    InspectReader::new(stream, move |bytes: &[u8]| {
        world.fold("bytes", &[bytes.len() as u64, xxh3_64(bytes)]);
    })
}
