//! A pagestream connection of a command: one request, one answer.

use anyhow::{Context as _, Result};
use codec::pagestream::{Request, Response, Version};
use model::{TenantId, TimelineId};

use crate::copy_out::{CopyOut, Server};

/// A `pagestream_v3` session.
pub struct PageStream {
    stream: CopyOut,
}

/// The bytes of an answer.
pub struct ResponseBytes(Vec<u8>);

impl PageStream {
    /// Connects and enters the stream of a timeline.
    pub fn open(server: &Server, tenant: TenantId, timeline: TimelineId) -> Result<PageStream> {
        Ok(PageStream { stream: CopyOut::start(server, &format!("pagestream_v3 {tenant} {timeline}"))? })
    }

    /// Sends a request without waiting for its answer.
    pub fn send(&mut self, request: &Request) -> Result<()> {
        let mut bytes = Vec::new();
        request.encode(Version::V3, &mut bytes);
        self.stream.give(&bytes)
    }

    /// Sends requests together without waiting for their answers.
    pub fn send_all(&mut self, requests: impl IntoIterator<Item = Request>) -> Result<()> {
        let encoded = |request: Request| {
            let mut bytes = Vec::new();
            request.encode(Version::V3, &mut bytes);
            bytes
        };
        let messages: Vec<Vec<u8>> = requests.into_iter().map(encoded).collect();
        self.stream.give_all(messages.iter().map(Vec::as_slice))
    }

    /// The answer to the oldest request that has none yet.
    pub fn answer(&mut self) -> Result<ResponseBytes> {
        Ok(ResponseBytes(self.stream.next()?.context("the server ended the stream")?))
    }

    /// One request, and its answer.
    pub fn ask(&mut self, request: &Request) -> Result<ResponseBytes> {
        self.send(request)?;
        self.answer()
    }
}

impl ResponseBytes {
    /// What the bytes say.
    pub fn response(&self) -> Result<Response<'_>> {
        Response::decode(Version::V3, &self.0).context("the server's answer is not understood")
    }
}
