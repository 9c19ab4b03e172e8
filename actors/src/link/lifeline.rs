//! Wraps the stream of a session: hears when the peer sends anything, and can cut both directions at once.
//!
//! Without the cut a peer that has stopped reading would keep its queue alive: the transport's writer waits in the
//! middle of a frame for as long as the kernel lets it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;
use ractor_cluster::{BoxRead, BoxWrite};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// The state that both halves and the session share.
#[derive(Debug)]
pub(crate) struct Lifeline {
    started: Instant,
    /// Nanoseconds after `started` at which bytes last came.
    heard_nanos: AtomicU64,
    cut: AtomicBool,
    reader: AtomicWaker,
    writer: AtomicWaker,
}

impl Lifeline {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            started: Instant::now(),
            heard_nanos: AtomicU64::new(0),
            cut: AtomicBool::new(false),
            reader: AtomicWaker::new(),
            writer: AtomicWaker::new(),
        })
    }

    /// When bytes last came; when the session began, if none did.
    pub(crate) fn heard(&self) -> Instant {
        let nanos = self.heard_nanos.load(Ordering::Relaxed);
        self.started + std::time::Duration::from_nanos(nanos)
    }

    /// Ends both directions: the reader sees the end of the stream, the writer an error.
    pub(crate) fn cut(&self) {
        self.cut.store(true, Ordering::Release);
        self.reader.wake();
        self.writer.wake();
    }

    fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Acquire)
    }

    fn hear(&self) {
        let nanos = u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.heard_nanos.store(nanos, Ordering::Relaxed);
    }
}

/// The half that reads.
pub(crate) struct WatchedReader {
    pub(crate) inner: BoxRead,
    pub(crate) lifeline: Arc<Lifeline>,
}

impl AsyncRead for WatchedReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.lifeline.reader.register(context.waker());
        if self.lifeline.is_cut() {
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.lifeline.hear();
        }
        polled
    }
}

/// The half that writes.
pub(crate) struct WatchedWriter {
    pub(crate) inner: BoxWrite,
    pub(crate) lifeline: Arc<Lifeline>,
}

impl WatchedWriter {
    fn poll_open(&self, context: &Context<'_>) -> io::Result<()> {
        self.lifeline.writer.register(context.waker());
        if self.lifeline.is_cut() {
            return Err(io::Error::new(
                io::ErrorKind::BrokenPipe,
                "the session has ended",
            ));
        }
        Ok(())
    }
}

impl AsyncWrite for WatchedWriter {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_open(context)?;
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_open(context)?;
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_open(context)?;
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}
