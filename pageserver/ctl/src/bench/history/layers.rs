//! Timelines of very many layers: what attaching them costs, what a layer costs in memory, what finding the layers of a read costs. The layers are only named.

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result};
use codec::index_part::IndexPart;
use engine::layer_map::{LayerMap, MapLayer};
use engine::ports::{Body, Bucket as _, ListRequest, PutIf};
use model::{Key, LayerName, Lsn};
use rand::RngExt as _;

use super::BenchHistory;
use super::pages::relation;
use super::place::{BASE, MAIN, Place, TENANT, memory};
use crate::bench::clock::{cpu_time, line, median_nanos};

/// Deltas above each image.
const DELTAS: u32 = 3;
const BLOCKS_EACH: u32 = 1024;

struct Named(LayerName);

impl MapLayer for Named {
    fn name(&self) -> &LayerName {
        &self.0
    }
}

/// Names of so many layers, as compaction leaves them.
fn names(count: u32) -> impl Iterator<Item = LayerName> {
    (0..count).map(|number| {
        let (stack, step) = (number / (DELTAS + 1), number % (DELTAS + 1));
        let key = |stack: u32| Key::rel_block(relation(stack / 1024), stack % 1024 * BLOCKS_EACH);
        let keys = key(stack)..Key::rel_block(relation(stack / 1024), (stack % 1024 + 1) * BLOCKS_EACH);
        let at = |step: u32| BASE.add(u64::from(step) * 0x100_0000 + 8);
        match step {
            0 => LayerName::Image { keys, lsn: at(0) },
            step => LayerName::Delta { keys, lsns: at(step - 1).add(1)..at(step).add(1) },
        }
    })
}

/// Carries the mode out.
pub async fn run(arguments: &BenchHistory) -> Result<()> {
    for count in [10_000, 100_000] {
        attach(arguments, count).await?;
        visit(count);
    }
    Ok(())
}

async fn attach(arguments: &BenchHistory, count: u32) -> Result<()> {
    let scaled = arguments.scaled(64 << 30);
    let place = Place::new(&arguments.work, &scaled.limits, scaled.policy.clone())?;
    place.make_timeline(TENANT, MAIN).await?;
    let listing = place.bucket.list(ListRequest { prefix: "tenants/", ..ListRequest::default() }).await?;
    let path =
        listing.objects.iter().map(|object| &object.path).find(|path| path.contains("index_part.json"));
    let path = path.context("the timeline has no index")?.clone();
    let stored = place.bucket.get(&path, None).await?;
    let mut part: IndexPart = serde_json::from_slice(&stored.bytes).context("the index cannot be parsed")?;
    let like = part.layer_metadata.values().next().context("the timeline has no layer")?.clone();
    for name in names(count) {
        part.layer_metadata.insert(name, like.clone());
    }
    part.update_metadata(|metadata| metadata.disk_consistent_lsn = BASE.add(0x1000_0000));
    let body = Body::Bytes(serde_json::to_vec(&part)?.into());
    place.bucket.put(&path, body, PutIf::Matches(stored.meta.etag)).await?;
    drop(part);

    // The floor: the index fetched and parsed, and nothing made of it.
    let process = Path::new("/proc/self");
    let begun = Instant::now();
    let bytes = place.bucket.get(&path, None).await?.bytes;
    let got = begun.elapsed();
    let begun = Instant::now();
    drop(black_box(serde_json::from_slice::<IndexPart>(&bytes)?));
    let parsed = begun.elapsed();
    let size = bytes.len();
    drop(bytes);
    let (before, used) = (memory()?.1, cpu_time(process)?);
    let begun = Instant::now();
    place.tenants.attach_all().await?;
    let timeline = place.tenants.timeline(TENANT, MAIN)?;
    let (took, cpu) = (begun.elapsed(), cpu_time(process)?.saturating_sub(used));
    let after = memory()?.1;
    let floor = (got + parsed).as_secs_f64() * 1e3;
    line(&format!("T7 attach with {count} layers"), took.as_secs_f64() * 1e3, floor, "ms");
    println!(
        "    index of {:.2} MB, {} ms of processor (target 10 and 40 ms above the floor), {:.0} bytes of memory for each of {} layers (target 120)",
        size as f64 / 1e6,
        cpu.as_millis(),
        after.saturating_sub(before) as f64 / f64::from(count),
        timeline.layers().len()
    );
    drop(timeline);
    place.tenants.shut_down(std::time::Duration::from_secs(10)).await;
    Ok(())
}

/// What finding the layers of a read costs, beside a search in a list of as many numbers.
fn visit(count: u32) {
    let map = LayerMap::new(names(count).map(|name| Arc::new(Named(name))));
    let stacks = count / (DELTAS + 1);
    let mut random = rand::rng();
    let mut ask = move || {
        let stack = random.random_range(0..stacks);
        Key::rel_block(
            relation(stack / 1024),
            stack % 1024 * BLOCKS_EACH + random.random_range(0..BLOCKS_EACH),
        )
    };
    let keys: Vec<Key> = (0..4096).map(|_| ask()).collect();
    let mut sorted = keys.clone();
    sorted.sort_unstable();
    let (mut at, mut at_floor) = (0, 0);
    let ours = median_nanos(|| {
        at = (at + 1) % keys.len();
        map.visit_down(keys[at], Lsn::MAX).len()
    });
    let floor = median_nanos(|| {
        at_floor = (at_floor + 1) % keys.len();
        sorted.binary_search(&keys[at_floor])
    });
    line(&format!("T7 layers of a read among {count}"), ours, floor, "ns");
}
