//! The pieces of a trace as the body of an answer: one is in memory at a time.

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream::{Stream, unfold};
use prost::encoding::encode_varint;
use spandrel_model::error::PortError;
use spandrel_model::ports::TraceReader;

use crate::error::ApiError;
use crate::otlp::json::RenderedTraces;

/// How pieces are written.
pub(crate) struct Rendering {
    start: Bytes,
    end: Bytes,
    form: Form,
}

enum Form {
    /// `TracesData` as it is.
    Raw,
    /// Each piece as field 1, a message: a reader joins them (protobuf, "Last One Wins": messages are merged).
    Field,
    /// The elements of a JSON array.
    Json(RenderedTraces),
}

impl Rendering {
    pub(crate) fn raw() -> Self {
        Self::new(Form::Raw, Bytes::new(), Bytes::new())
    }

    /// Each piece as a message in field 1, then `end`.
    pub(crate) fn field(end: impl Into<Bytes>) -> Self {
        Self::new(Form::Field, Bytes::new(), end.into())
    }

    /// The JSON of all `ResourceSpans` between `start` and `end`.
    pub(crate) fn json(start: impl Into<Bytes>, end: impl Into<Bytes>) -> Self {
        Self::new(
            Form::Json(RenderedTraces::default()),
            start.into(),
            end.into(),
        )
    }

    fn new(form: Form, start: Bytes, end: Bytes) -> Self {
        Self { start, end, form }
    }

    fn write(&mut self, piece: Bytes) -> Bytes {
        match &mut self.form {
            Form::Raw => piece,
            Form::Field => {
                let mut field = BytesMut::with_capacity(piece.len() + 11);
                field.put_u8(0x0a);
                encode_varint(piece.len() as u64, &mut field);
                field.put(piece);
                field.freeze()
            }
            Form::Json(traces) => traces.piece(&piece).into(),
        }
    }
}

/// A trace whose first piece is here: a failure of that one can still be answered with a status.
pub(crate) struct Pieces {
    reader: Box<dyn TraceReader>,
    rendering: Rendering,
    first: Option<Bytes>,
}

enum Step {
    Start(Pieces),
    Read(Pieces),
    Done,
}

impl Pieces {
    pub(crate) async fn open(
        mut reader: Box<dyn TraceReader>,
        rendering: Rendering,
    ) -> Result<Self, ApiError> {
        let first = reader.next().await?;
        Ok(Self {
            reader,
            rendering,
            first,
        })
    }

    /// The body. A failure on the way breaks it off, so that the client cannot take it for whole.
    pub(crate) fn into_stream(self) -> impl Stream<Item = Result<Bytes, PortError>> + Send {
        unfold(Step::Start(self), async |step| match step {
            Step::Start(mut pieces) => {
                let start = std::mem::take(&mut pieces.rendering.start);
                Some((Ok(start), Step::Read(pieces)))
            }
            Step::Read(mut pieces) => {
                let next = match pieces.first.take() {
                    Some(piece) => Ok(Some(piece)),
                    None => pieces.reader.next().await,
                };
                Some(match next {
                    Ok(Some(piece)) => {
                        let bytes = pieces.rendering.write(piece);
                        (Ok(bytes), Step::Read(pieces))
                    }
                    Ok(None) => (Ok(std::mem::take(&mut pieces.rendering.end)), Step::Done),
                    Err(error) => {
                        tracing::warn!(code = error.code, message = %error.message, "a trace broke off while it was sent");
                        (Err(error), Step::Done)
                    }
                })
            }
            Step::Done => None,
        })
    }
}
