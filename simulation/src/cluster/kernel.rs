//! The operating system of a simulated machine, as far as a process needs one: connections of turmoil's network, handed
//! to the process as pipes. It runs on while the process stands still, and closes what a dead process leaves open.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{DuplexStream, copy_bidirectional, duplex};
use tokio::sync::{Notify, mpsc, oneshot};
use turmoil::net::{TcpListener, TcpStream};

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
    /// Told to forget all connections.
    severed: Arc<Notify>,
}

impl Kernel {
    /// The machine, and what runs on its host in turmoil's network.
    pub(super) fn new() -> (Self, impl Future<Output = ()>) {
        let (calls, called) = mpsc::unbounded_channel();
        let severed = Arc::new(Notify::new());
        let kernel = Self {
            calls,
            severed: Arc::clone(&severed),
        };
        (kernel, serve(called, severed))
    }

    /// Forgets every connection without a word: the other sides do not hear of it if nothing reaches them now.
    pub(super) fn sever(&self) {
        self.severed.notify_waiters();
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

async fn serve(mut called: mpsc::UnboundedReceiver<Call>, severed: Arc<Notify>) {
    while let Some(call) = called.recv().await {
        let severed = Arc::clone(&severed);
        match call {
            Call::Dial { address, answer } => {
                tokio::spawn(dial(address, answer, severed));
            }
            Call::Listen {
                port,
                answer,
                accepted,
            } => {
                tokio::spawn(listen(port, answer, accepted, severed));
            }
        }
    }
}

async fn dial(
    address: String,
    mut answer: oneshot::Sender<io::Result<DuplexStream>>,
    severed: Arc<Notify>,
) {
    let connected = tokio::select! {
        biased;
        () = answer.closed() => return,
        connected = TcpStream::connect(address) => connected,
    };
    match connected {
        Ok(stream) => {
            let (near, far) = duplex(SOCKET_BYTES);
            if answer.send(Ok(near)).is_ok() {
                carry(stream, far, severed).await;
            }
        }
        Err(error) => drop(answer.send(Err(error))),
    }
}

async fn listen(
    port: u16,
    answer: oneshot::Sender<io::Result<()>>,
    accepted: mpsc::Sender<Accepted>,
    severed: Arc<Notify>,
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
            taken = listener.accept() => taken,
        };
        let Ok((stream, from)) = taken else { return };
        let (near, far) = duplex(SOCKET_BYTES);
        // Where the backlog is full the connection is closed.
        if accepted.try_send((near, from)).is_ok() {
            tokio::spawn(carry(stream, far, Arc::clone(&severed)));
        }
    }
}

/// Carries bytes both ways until one side is gone.
async fn carry(mut outside: TcpStream, mut inside: DuplexStream, severed: Arc<Notify>) {
    tokio::select! {
        biased;
        () = severed.notified() => {}
        _ = copy_bidirectional(&mut outside, &mut inside) => {}
    }
}
