//! The index of a layer file: a B-tree from fixed-length keys to 40-bit numbers, written once, bottom up.
//!
//! ```text
//! node    u16 entries | u8 level, 0 for a leaf | u8 prefix length | u8 suffix length
//!         prefix | a suffix per entry | 5 bytes per entry | zeros to 8,192
//! leaf    entry: key → 40 bits, the top one clear
//! inner   entry: first key of a child → byte 80, u32 block of the child
//! ```
//!
//! Prefix and suffix lengths add up to the key length. Blocks are counted from the first block of the index.

use std::ops::{ControlFlow, Range};

use model::BLOCK_SIZE;
use smallvec::SmallVec;

use super::{BLOCK_BYTES, Block, Layout, ReadLayerError};

const NODE_HEADER: usize = 5;
const VALUE: usize = 5;
const CHILD: u8 = 0x80;

/// The largest number that a leaf can hold.
pub const MAX_VALUE: u64 = 0x7F_FFFF_FFFF;

/// Levels that a tree can have: even nodes of a few entries would take more than 2^32 blocks.
const MAX_LEVEL: u8 = 16;

/// A node while it is filled.
struct OpenNode<const L: usize> {
    prefix: Vec<u8>,
    suffixes: Vec<u8>,
    values: Vec<u8>,
    entries: u16,
}

impl<const L: usize> OpenNode<L> {
    fn new() -> Self {
        OpenNode { prefix: Vec::new(), suffixes: Vec::new(), values: Vec::new(), entries: 0 }
    }

    fn suffix_len(&self) -> usize {
        L - self.prefix.len()
    }

    fn size(&self) -> usize {
        NODE_HEADER + self.prefix.len() + self.suffixes.len() + self.values.len()
    }

    /// Adds an entry if the node has room and, once a prefix was factored out, the key shares it.
    fn push(&mut self, key: &[u8; L], value: [u8; VALUE]) -> bool {
        let fits = self.size() + self.suffix_len() + VALUE < BLOCK_SIZE && key.starts_with(&self.prefix);
        if fits {
            self.suffixes.extend_from_slice(&key[self.prefix.len()..]);
            self.values.extend_from_slice(&value);
            self.entries += 1;
        }
        fits
    }

    /// Factors out what all keys begin with: what the first and the last begin with. Whether that made room.
    fn factor(&mut self) -> bool {
        let width = self.suffix_len();
        let (first, last) = (&self.suffixes[..width], &self.suffixes[self.suffixes.len() - width..]);
        let shared = first.iter().zip(last).take_while(|(a, b)| a == b).count();
        if shared == 0 {
            return false;
        }
        let prefix = first[..shared].to_vec();
        self.suffixes =
            self.suffixes.chunks_exact(width).flat_map(|suffix| &suffix[shared..]).copied().collect();
        self.prefix.extend(prefix);
        true
    }

    fn first_key(&self) -> [u8; L] {
        let mut key = [0; L];
        key[..self.prefix.len()].copy_from_slice(&self.prefix);
        key[self.prefix.len()..].copy_from_slice(&self.suffixes[..self.suffix_len()]);
        key
    }

    fn encode(&self, level: u8, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&self.entries.to_be_bytes());
        out.extend_from_slice(&[level, self.prefix.len() as u8, self.suffix_len() as u8]);
        out.extend_from_slice(&self.prefix);
        out.extend_from_slice(&self.suffixes);
        out.extend_from_slice(&self.values);
        out.resize(start + BLOCK_SIZE, 0);
    }
}

/// Builds a tree from entries in ascending key order. Its nodes stay in memory until the end, since the file's values come first.
pub(super) struct TreeBuilder<const L: usize> {
    blocks: Vec<u8>,
    /// By level, leaf first. Each holds at least one entry, but for the leaf before the first push.
    open: Vec<OpenNode<L>>,
}

impl<const L: usize> TreeBuilder<L> {
    pub(super) fn new() -> Self {
        TreeBuilder { blocks: Vec::new(), open: vec![OpenNode::new()] }
    }

    /// Adds an entry; `key` is above all before it, and `value` at most [`MAX_VALUE`].
    pub(super) fn push(&mut self, key: &[u8; L], value: u64) {
        debug_assert!(value <= MAX_VALUE, "the caller checks");
        let [_, _, _, value @ ..] = value.to_be_bytes();
        self.insert(0, key, value);
    }

    fn insert(&mut self, level: usize, key: &[u8; L], value: [u8; VALUE]) {
        if level == self.open.len() {
            self.open.push(OpenNode::new());
        }
        let node = &mut self.open[level];
        if node.push(key, value) || (node.factor() && node.push(key, value)) {
            return;
        }
        self.close(level);
        let fits = self.open[level].push(key, value);
        debug_assert!(fits, "an empty node has room for one entry");
    }

    /// Writes the open node of a level, links it into the level above, and leaves an empty one.
    fn close(&mut self, level: usize) {
        let node = std::mem::replace(&mut self.open[level], OpenNode::new());
        let mut link = [CHILD; VALUE];
        link[1..].copy_from_slice(&self.blocks_written().to_be_bytes());
        node.encode(level as u8, &mut self.blocks);
        self.insert(level + 1, &node.first_key(), link);
    }

    fn blocks_written(&self) -> u32 {
        (self.blocks.len() / BLOCK_SIZE) as u32
    }

    /// Bytes that the tree would take if it ended now, but for nodes that ending adds above.
    pub(super) fn size(&self) -> u64 {
        (self.blocks.len() + self.open.len() * BLOCK_SIZE) as u64
    }

    /// All blocks, and which of them is the root. There was at least one entry.
    pub(super) fn finish(mut self) -> (Vec<u8>, u32) {
        let mut level = 0;
        while level + 1 < self.open.len() {
            self.close(level);
            level += 1;
        }
        let root = self.blocks_written();
        self.open[level].encode(level as u8, &mut self.blocks);
        (self.blocks, root)
    }
}

/// A node in a block, its lengths checked.
#[derive(Clone, Copy)]
pub(super) struct Node<'a, const L: usize> {
    at: u64,
    pub(super) level: u8,
    pub(super) entries: usize,
    prefix: &'a [u8],
    suffixes: &'a [u8],
    values: &'a [u8],
}

impl<'a, const L: usize> Node<'a, L> {
    /// Reads the node in the block that begins at offset `at` of the file.
    pub(super) fn parse(block: &'a Block, at: u64) -> Result<Self, ReadLayerError> {
        let entries = usize::from(u16::from_be_bytes([block[0], block[1]]));
        let (level, prefix_len, suffix_len) = (block[2], usize::from(block[3]), usize::from(block[4]));
        let field = |what, offset, found: usize, expected| ReadLayerError::Field {
            at: at + offset,
            what,
            found: found as u64,
            expected,
        };
        if prefix_len + suffix_len != L {
            return Err(field(
                "length of an index node's keys",
                3,
                prefix_len + suffix_len,
                "the layer's key length",
            ));
        }
        let end_of_suffixes = NODE_HEADER + prefix_len + entries * suffix_len;
        let end = end_of_suffixes + entries * VALUE;
        if entries == 0 || end > BLOCK_SIZE {
            return Err(field(
                "number of entries of an index node",
                0,
                entries,
                "at least one, and all within the block",
            ));
        }
        let (prefix, suffixes) = block[NODE_HEADER..end_of_suffixes].split_at(prefix_len);
        Ok(Node { at, level, entries, prefix, suffixes, values: &block[end_of_suffixes..end] })
    }

    fn suffix(&self, slot: usize) -> &'a [u8] {
        let width = L - self.prefix.len();
        &self.suffixes[slot * width..][..width]
    }

    pub(super) fn key(&self, slot: usize) -> [u8; L] {
        let mut key = [0; L];
        key[..self.prefix.len()].copy_from_slice(self.prefix);
        key[self.prefix.len()..].copy_from_slice(self.suffix(slot));
        key
    }

    /// The first slot whose key is at or above `key`; the number of entries if none is.
    fn lower_bound(&self, key: &[u8; L]) -> usize {
        let (head, tail) = key.split_at(self.prefix.len());
        match self.prefix.cmp(head) {
            std::cmp::Ordering::Less => return self.entries,
            std::cmp::Ordering::Greater => return 0,
            std::cmp::Ordering::Equal => {}
        }
        let (mut low, mut high) = (0, self.entries);
        while low < high {
            let middle = usize::midpoint(low, high);
            if self.suffix(middle) < tail {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    fn raw_value(&self, slot: usize) -> [u8; VALUE] {
        *self.values[slot * VALUE..].first_chunk().expect("as many values as entries, checked by parse")
    }

    fn wrong_value(&self, slot: usize, expected: &'static str) -> ReadLayerError {
        let [a, b, c, d, e] = self.raw_value(slot);
        ReadLayerError::Field {
            at: self.at,
            what: "entry of an index node",
            found: u64::from_be_bytes([0, 0, 0, a, b, c, d, e]),
            expected,
        }
    }

    /// The number in a leaf's slot.
    fn value(&self, slot: usize) -> Result<u64, ReadLayerError> {
        let [a, b, c, d, e] = self.raw_value(slot);
        let value = u64::from_be_bytes([0, 0, 0, a, b, c, d, e]);
        if value > MAX_VALUE {
            return Err(self.wrong_value(slot, "a number below 2^39 in a leaf"));
        }
        Ok(value)
    }

    /// The child in an inner node's slot.
    fn child(&self, slot: usize, blocks: u32) -> Result<u32, ReadLayerError> {
        let [kind, block @ ..] = self.raw_value(slot);
        let block = u32::from_be_bytes(block);
        if kind != CHILD || block >= blocks {
            return Err(self.wrong_value(slot, "80, then a block of the index, in an inner node"));
        }
        Ok(block)
    }

    fn key_order(&self, key: &[u8; L], expected: &'static str) -> ReadLayerError {
        ReadLayerError::KeyOrder { at: self.at, found: hex::encode_upper(key), expected }
    }
}

/// Which way to go through a range of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the lowest key.
    Ascending,
    /// From the highest key.
    Descending,
}

/// A block still to be visited.
#[derive(Clone, Debug)]
struct Pending<const L: usize> {
    block: u32,
    /// What the link above promises of a block that is not the root.
    promised: Option<Promise<L>>,
}

#[derive(Clone, Debug)]
struct Promise<const L: usize> {
    level: u8,
    first: [u8; L],
    /// All keys are below this one.
    below: Option<[u8; L]>,
}

/// A node, and the key that all of its keys are below.
type Wanted<'a, const L: usize> = (Node<'a, L>, Option<[u8; L]>);

/// One entry that a scan came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found<const L: usize> {
    pub key: [u8; L],
    pub value: u64,
    /// The value of the entry after it in the same leaf.
    pub next: Option<u64>,
}

/// A walk over the entries of a range of keys that does no I/O: it says which block it wants and is fed it.
///
/// A link's promises (level, first key, order) are checked at its child, so a damaged tree ends in an error after at most as many blocks
/// as the index has.
#[derive(Clone, Debug)]
pub(super) struct TreeScan<const L: usize> {
    index_start_block: u32,
    index_blocks: u32,
    keys: Range<[u8; L]>,
    direction: Direction,
    /// The next one last.
    pending: SmallVec<[Pending<L>; 2]>,
}

impl<const L: usize> TreeScan<L> {
    pub(super) fn new(layout: &Layout, keys: Range<[u8; L]>, direction: Direction) -> Self {
        let mut pending = SmallVec::new();
        if !keys.is_empty() {
            pending.push(Pending { block: layout.index_root_block(), promised: None });
        }
        TreeScan {
            index_start_block: layout.index_start_block(),
            index_blocks: layout.blocks() - layout.index_start_block(),
            keys,
            direction,
            pending,
        }
    }

    /// The block of the file to feed next; `None` at the end.
    pub(super) fn wants(&self) -> Option<u32> {
        self.pending.last().map(|next| self.index_start_block + next.block)
    }

    /// The blocks known to be wanted, in the order in which they will be.
    pub(super) fn will_want(&self) -> impl Iterator<Item = u32> + '_ {
        self.pending.iter().rev().map(|next| self.index_start_block + next.block)
    }

    /// Ends the walk.
    pub(super) fn stop(&mut self) {
        self.pending.clear();
    }

    /// Takes the block that [`TreeScan::wants`] names. Entries of a leaf go to `visit`, which may end the walk.
    pub(super) fn feed(
        &mut self,
        block: &Block,
        mut visit: impl FnMut(Found<L>) -> ControlFlow<()>,
    ) -> Result<(), ReadLayerError> {
        let Some((node, below)) = self.take(block)? else { return Ok(()) };
        if node.level > 0 {
            return self.descend(&node, below);
        }
        let slots = node.lower_bound(&self.keys.start)..node.lower_bound(&self.keys.end);
        let last = match (slots.is_empty(), self.direction) {
            (true, _) => return Ok(()),
            (false, Direction::Ascending) => check_order(&node, slots.clone())?,
            (false, Direction::Descending) => node.key(slots.end - 1),
        };
        if below.is_some_and(|below| last >= below) {
            return Err(node.key_order(&last, "a key below the next index node's first"));
        }
        let mut found = |slot: usize| {
            let next = (slot + 1 < node.entries).then(|| node.value(slot + 1)).transpose()?;
            Ok(visit(Found { key: node.key(slot), value: node.value(slot)?, next }))
        };
        let ends = match self.direction {
            Direction::Ascending => slots.into_iter().map(&mut found).find(is_end),
            Direction::Descending => slots.rev().map(&mut found).find(is_end),
        };
        match ends {
            None => Ok(()),
            Some(end) => end.map(|_| self.stop()),
        }
    }

    /// The same, but leaves are not visited: `visit` gets the first key of each, whether or not it holds keys of the range.
    pub(super) fn feed_to_leaves(
        &mut self,
        block: &Block,
        visit: impl FnMut([u8; L]),
    ) -> Result<(), ReadLayerError> {
        let Some((node, below)) = self.take(block)? else { return Ok(()) };
        if node.level > 1 {
            return self.descend(&node, below);
        }
        check_order(&node, 0..node.entries)?;
        // A tree of one leaf has nothing above it.
        let leaves = if node.level == 1 { node.entries } else { 1 };
        (0..leaves).map(|slot| node.key(slot)).for_each(visit);
        Ok(())
    }

    /// The node that was wanted, once it is what was promised of it, and the key that all of its are below. Nothing at the end.
    fn take<'a>(&mut self, block: &'a Block) -> Result<Option<Wanted<'a, L>>, ReadLayerError> {
        let Some(Pending { block: number, promised }) = self.pending.pop() else { return Ok(None) };
        let at = u64::from(self.index_start_block + number) * BLOCK_BYTES;
        let node = Node::<L>::parse(block, at)?;
        check_promise(&node, promised.as_ref())?;
        Ok(Some((node, promised.and_then(|promised| promised.below))))
    }

    /// Notes the children that can hold keys of the range.
    fn descend(&mut self, node: &Node<'_, L>, below: Option<[u8; L]>) -> Result<(), ReadLayerError> {
        let end = node.lower_bound(&self.keys.end);
        let mut start = node.lower_bound(&self.keys.start);
        // The range may begin inside the child before.
        if start == node.entries || node.key(start) > self.keys.start {
            start = start.saturating_sub(1);
        }
        let mark = self.pending.len();
        for slot in start..end {
            let first = node.key(slot);
            let next = if slot + 1 < node.entries { Some(node.key(slot + 1)) } else { below };
            if next.is_some_and(|next| next <= first) {
                return Err(node.key_order(&first, "a key below the one after it"));
            }
            self.pending.push(Pending {
                block: node.child(slot, self.index_blocks)?,
                promised: Some(Promise { level: node.level - 1, first, below: next }),
            });
        }
        if self.direction == Direction::Ascending {
            self.pending[mark..].reverse();
        }
        Ok(())
    }
}

/// Checks what the link to a node, or the root's place, says of it.
fn check_promise<const L: usize>(
    node: &Node<'_, L>,
    promised: Option<&Promise<L>>,
) -> Result<(), ReadLayerError> {
    let (level, first) = match promised {
        None if node.level <= MAX_LEVEL => return Ok(()),
        None => (None, None),
        Some(promise) => (Some(promise.level), Some(promise.first)),
    };
    if level != Some(node.level) {
        return Err(ReadLayerError::Field {
            at: node.at + 2,
            what: "level of an index node",
            found: node.level.into(),
            expected: "one less than its parent's; at most 16 at the root",
        });
    }
    let key = node.key(0);
    if first != Some(key) {
        return Err(node.key_order(&key, "the key of the link that leads to this index node"));
    }
    Ok(())
}

fn is_end(visited: &Result<ControlFlow<()>, ReadLayerError>) -> bool {
    !matches!(visited, Ok(ControlFlow::Continue(())))
}

/// Checks that the keys of these slots rise; answers the last.
fn check_order<const L: usize>(node: &Node<'_, L>, slots: Range<usize>) -> Result<[u8; L], ReadLayerError> {
    for slot in slots.start + 1..slots.end {
        if node.suffix(slot) <= node.suffix(slot - 1) {
            return Err(node.key_order(&node.key(slot), "a key above the one before it"));
        }
    }
    Ok(node.key(slots.end - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A plain file whose index has `leaves` entries for the keys 0, 10, 20, … to their number.
    fn tree(entries: u64) -> (Layout, Vec<u8>) {
        let mut builder = TreeBuilder::<8>::new();
        for entry in 0..entries {
            builder.push(&(entry * 10).to_be_bytes(), entry);
        }
        let (blocks, root) = builder.finish();
        let file_size = BLOCK_BYTES + blocks.len() as u64;
        (Layout::new(super::super::LayerKind::Image, file_size, 1, root, None).unwrap(), blocks)
    }

    fn scan(
        layout: &Layout,
        blocks: &[u8],
        keys: Range<u64>,
        direction: Direction,
    ) -> Result<(Vec<u64>, usize), ReadLayerError> {
        let mut scan =
            TreeScan::<8>::new(layout, keys.start.to_be_bytes()..keys.end.to_be_bytes(), direction);
        let (mut found, mut fed) = (Vec::new(), 0);
        while let Some(block) = scan.wants() {
            let bytes = blocks[(block as usize - 1) * BLOCK_SIZE..].first_chunk().expect("a whole block");
            scan.feed(bytes, |entry| {
                assert_eq!(u64::from_be_bytes(entry.key), entry.value * 10);
                found.push(entry.value);
                ControlFlow::Continue(())
            })?;
            fed += 1;
        }
        Ok((found, fed))
    }

    #[test]
    fn a_tree_of_any_height_gives_back_every_range() {
        for entries in [1, 2, 255, 627, 628, 629, 1000, 300_000] {
            let (layout, blocks) = tree(entries);
            assert_eq!(u64::from(layout.index_root_block()) + 1, blocks.len() as u64 / BLOCK_BYTES);
            let all = scan(&layout, &blocks, 0..u64::MAX, Direction::Ascending).unwrap().0;
            assert!(all.into_iter().eq(0..entries));
            for (from, until) in
                [(0, 1), (5, 6), (9, 11), (2505, 2525), (6270, 6281), (entries * 10, u64::MAX)]
            {
                let expected: Vec<u64> = (0..entries).filter(|n| (from..until).contains(&(n * 10))).collect();
                let (found, fed) = scan(&layout, &blocks, from..until, Direction::Ascending).unwrap();
                assert_eq!(found, expected, "{from}..{until} of {entries}");
                assert!(fed <= 5, "{fed} blocks read for a short range");
                let (mut found, _) = scan(&layout, &blocks, from..until, Direction::Descending).unwrap();
                found.reverse();
                assert_eq!(found, expected, "{from}..{until} of {entries} descending");
            }
        }
    }

    #[test]
    fn an_empty_range_wants_no_block() {
        let (layout, blocks) = tree(10);
        assert_eq!(scan(&layout, &blocks, 5..5, Direction::Ascending), Ok((vec![], 0)));
        let backward = Range { start: 9, end: 5 };
        assert_eq!(scan(&layout, &blocks, backward, Direction::Ascending), Ok((vec![], 0)));
    }

    #[test]
    fn a_child_that_is_not_what_its_parent_says_is_an_error() {
        let (layout, mut blocks) = tree(2000);
        let root = layout.index_root_block() as usize * BLOCK_SIZE;
        assert_eq!(blocks[root + 2], 1, "the tree has two levels");
        let entries = usize::from(blocks[root + 1]);
        let links =
            root + NODE_HEADER + usize::from(blocks[root + 3]) + entries * usize::from(blocks[root + 4]);
        // The second link leads to the first child, then outside of the index, then is no link.
        let second = links + VALUE..links + 2 * VALUE;
        for link in [[CHILD, 0, 0, 0, 0], [CHILD, 0xFF, 0, 0, 0], [0, 0, 0, 0, 1]] {
            blocks[second.clone()].copy_from_slice(&link);
            assert!(scan(&layout, &blocks, 0..u64::MAX, Direction::Ascending).is_err(), "{link:?}");
        }
    }
}
