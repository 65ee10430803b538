//! Which shard of a tenant a key belongs to. The mapping is Neon's.
//!
//! Only blocks of relations are spread, by relation file number and stripe; all forks of a relation but `init` are spread alike. Whatever
//! else there is belongs to shard 0. Tablespace and database do not enter, so that copying a database stays within each shard.

use model::{Fork, Key, ShardIndex, key::KeyKind};

/// Pages of a stripe unless told otherwise: 16 MiB.
pub const DEFAULT_STRIPE_PAGES: u32 = 2048;
/// Pages of a stripe of tenants that do not say: 256 MiB.
pub const LEGACY_STRIPE_PAGES: u32 = 32_768;

/// The number of the shard that owns `key` when there are `count` shards with stripes of `stripe_pages` (at least 1) pages.
pub fn owner(key: Key, count: u8, stripe_pages: u32) -> u8 {
    match key.kind() {
        Some(KeyKind::RelBlock { rel, block }) if count >= 2 && rel.fork != Fork::Init => {
            let hash = combine(mix(rel.rel), mix(block / stripe_pages.max(1)));
            (hash % u32::from(count)) as u8
        }
        _ => 0,
    }
}

/// Whether `shard` owns `key`.
pub fn owns(shard: ShardIndex, key: Key, stripe_pages: u32) -> bool {
    owner(key, shard.count, stripe_pages) == shard.number
}

/// The last step of murmur3 on 32 bits.
fn mix(mut hash: u32) -> u32 {
    hash ^= hash >> 16;
    hash = hash.wrapping_mul(0x85EB_CA6B);
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(0xC2B2_AE35);
    hash ^ hash >> 16
}

fn combine(a: u32, b: u32) -> u32 {
    a ^ b.wrapping_add(0x9E37_79B9).wrapping_add(a << 6).wrapping_add(a >> 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::RelTag;

    fn block(rel: u32, block: u32) -> Key {
        Key::rel_block(RelTag { spc: 1663, db: 5, rel, fork: Fork::Main }, block)
    }

    #[test]
    fn blocks_go_where_the_format_says() {
        for (rel, number, stripe, count, shard) in [
            (0x400C, 0x7D06, 32_768, 10, 8),
            (16384, 0, 2048, 8, 4),
            (16384, 2047, 2048, 8, 4),
            (16384, 2048, 2048, 8, 7),
            (16384, 4096, 2048, 8, 6),
            (16384, 204_800, 2048, 8, 2),
            (4701, 0, 2048, 8, 6),
            (2619, 5, 2048, 4, 2),
            (24576, 1_000_000, 32_768, 16, 3),
        ] {
            assert_eq!(owner(block(rel, number), count, stripe), shard, "{rel}/{number} of {count}");
            assert_eq!(owner(block(rel, number), 1, stripe), 0);
            assert_eq!(owner(block(rel, number), 0, stripe), 0);
        }
    }

    #[test]
    fn all_but_blocks_belong_to_shard_0() {
        let init = RelTag { spc: 1663, db: 5, rel: 16384, fork: Fork::Init };
        for key in [Key::CHECKPOINT, Key::DB_DIRECTORY, Key::rel_block(init, 0), Key::rel_size(init)] {
            assert_eq!(owner(key, 8, 2048), 0);
        }
        let fsm = RelTag { fork: Fork::Fsm, ..init };
        assert_eq!(owner(Key::rel_block(fsm, 0), 8, 2048), owner(block(16384, 0), 8, 2048));
    }
}
