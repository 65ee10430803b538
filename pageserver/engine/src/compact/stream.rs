//! The versions of several layers as one stream, by key, then LSN.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use model::{Key, KeyRange, Lsn};

use crate::as_of::ReadError;
use crate::layer_map::MapLayer as _;
use crate::layer_read::Layer;
use crate::layer_scan::{LayerScan, Stored, StoredValue};

/// A layer to be read, and whether it stays where it is.
#[derive(Clone)]
pub struct Input {
    /// The layer.
    pub layer: Arc<Layer>,
    /// It is only built upon.
    pub is_base: bool,
}

/// A version, and where it is from.
pub struct Streamed {
    /// What the layer has.
    pub version: Stored,
    /// Its layer stays.
    pub is_base: bool,
}

/// Merges layers. Of those that do not begin yet nothing is read, so it holds as much as the layers that share a key need.
pub struct Stream {
    keys: KeyRange,
    /// By start key, the next one last.
    waiting: Vec<Input>,
    open: Vec<Option<Open>>,
    heads: BinaryHeap<Reverse<Head>>,
}

struct Open {
    scan: LayerScan,
    head: Stored,
    is_base: bool,
}

/// Of one LSN, a change comes before the image that includes it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Head {
    key: Key,
    lsn: Lsn,
    is_image: bool,
    at: usize,
}

impl Stream {
    /// Of these layers' versions of these keys.
    pub fn new(inputs: Vec<Input>, keys: KeyRange) -> Stream {
        let mut waiting = inputs;
        waiting.sort_by_key(|input| Reverse(input.layer.name().keys().start));
        Stream { keys, waiting, open: Vec::new(), heads: BinaryHeap::new() }
    }

    /// The next version.
    pub async fn next(&mut self) -> Result<Option<Streamed>, ReadError> {
        while let Some(input) = self.waiting.last() {
            let begins_later =
                self.heads.peek().is_some_and(|head| head.0.key < input.layer.name().keys().start);
            if begins_later {
                break;
            }
            let Some(Input { layer, is_base }) = self.waiting.pop() else { break };
            let mut scan = LayerScan::open(layer, &self.keys).await?;
            if let Some(head) = scan.next().await? {
                self.heads.push(Reverse(place_of(&head, self.open.len())));
                self.open.push(Some(Open { scan, head, is_base }));
            }
        }
        let Some(Reverse(Head { at, .. })) = self.heads.pop() else { return Ok(None) };
        let open = self.open[at].as_mut().expect("a head belongs to an open layer");
        let is_base = open.is_base;
        let version = match open.scan.next().await? {
            Some(next) => {
                self.heads.push(Reverse(place_of(&next, at)));
                std::mem::replace(&mut open.head, next)
            }
            None => self.open[at].take().expect("just seen").head,
        };
        Ok(Some(Streamed { version, is_base }))
    }
}

fn place_of(version: &Stored, at: usize) -> Head {
    let is_image = matches!(version.value, StoredValue::Image(_));
    Head { key: version.key, lsn: version.lsn, is_image, at }
}
