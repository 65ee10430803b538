//! A local file as the body of a request, a piece in memory at a time.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

use crate::blocking;
use crate::ports::DiskFile;

/// Bytes read at once.
const PIECE: u64 = 256 << 10;

type Reading = Pin<Box<dyn Future<Output = io::Result<Bytes>> + Send + Sync>>;

/// The first bytes of a file.
pub(super) struct FileBody {
    file: Arc<dyn DiskFile>,
    sent: u64,
    length: u64,
    reading: Option<Reading>,
}

impl FileBody {
    /// Of a file that has so many.
    pub(super) fn new(file: Arc<dyn DiskFile>, length: u64) -> FileBody {
        FileBody { file, sent: 0, length, reading: None }
    }

    fn next_piece(&self) -> Reading {
        let (file, at, size) = (Arc::clone(&self.file), self.sent, PIECE.min(self.length - self.sent));
        Box::pin(async move {
            let read = move || {
                let mut piece = vec![0; size as usize];
                file.read_at(&mut piece, at).map(|()| Bytes::from(piece))
            };
            blocking::run(read).await.map_err(io::Error::other)?
        })
    }
}

impl HttpBody for FileBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if self.is_end_stream() {
            return Poll::Ready(None);
        }
        let mut reading = self.reading.take().unwrap_or_else(|| self.next_piece());
        match reading.as_mut().poll(context) {
            Poll::Pending => {
                self.reading = Some(reading);
                Poll::Pending
            }
            Poll::Ready(read) => Poll::Ready(Some(read.map(|piece| {
                self.sent += piece.len() as u64;
                Frame::data(piece)
            }))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.sent == self.length
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.length - self.sent)
    }
}
