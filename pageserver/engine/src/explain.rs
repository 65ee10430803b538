//! What a read has to do: how many layers it looks into, how many changes it redoes.

use bytes::Bytes;
use model::{Key, Lsn, RelTag};

use crate::as_of::ReadError;
use crate::read::{Chain, Snapshot, read_visit};
use crate::timeline::Timeline;

/// A value, and what it took to read it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Explained {
    /// What was read; `None` when there is none.
    pub value: Option<Bytes>,
    /// Layers that were looked into, those of ancestors included, whether they held the key or not.
    pub layers: usize,
    /// Versions that were redone, or taken over whole, from memory or from layers. The value of an image layer is none.
    pub changes: usize,
    /// Ancestors that were read.
    pub ancestors: usize,
}

impl Snapshot {
    /// Reads a key as of `lsn` and tells what that took. One layer after the other, so it counts what a read needs and not what it fetches in advance.
    pub async fn explain(&self, key: Key, lsn: Lsn) -> Result<Explained, ReadError> {
        let mut chain = Chain::default();
        let mut explained = Explained::default();
        let mut below = self.explain_own(key, lsn, &mut chain, &mut explained).await?;
        while let Some((snapshot, lsn)) = below {
            explained.ancestors += 1;
            below = snapshot.explain_own(key, lsn, &mut chain, &mut explained).await?;
        }
        explained.changes = chain.len();
        explained.value = self.redo(key, lsn, &chain)?;
        Ok(explained)
    }

    async fn explain_own(
        &self,
        key: Key,
        lsn: Lsn,
        chain: &mut Chain,
        explained: &mut Explained,
    ) -> Result<Option<(std::sync::Arc<Snapshot>, Lsn)>, ReadError> {
        self.check_kept(lsn)?;
        self.gather_tail(key, lsn, chain);
        if !chain.is_complete() {
            for visit in &self.layers.visit_down(key, lsn) {
                explained.layers += 1;
                chain.take_visited(read_visit(visit, key, lsn).await?, key);
                if chain.is_complete() {
                    break;
                }
            }
        }
        Ok(self.goes_on_in(key, lsn, chain))
    }
}

impl Timeline {
    /// Reads a page and tells what that took, the lookup of its relation's size apart.
    pub async fn explain(&self, rel: RelTag, block: u32, lsn: Lsn) -> Result<Explained, ReadError> {
        self.view().load_full().explain(Key::rel_block(rel, block), lsn).await
    }
}
