//! `pagectl bench bucket`: what one PUT and one GET cost, the floors of whatever reads or writes a bucket.

use std::time::Instant;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use clap::Args;
use engine::bucket::config::{BucketConfig, BucketUrl};
use engine::bucket::retry::BucketMetrics;
use engine::ports::{Body, PutIf};
use tokio_util::sync::CancellationToken;

use super::clock::Samples;

/// A chunk of a layer, as reads fetch them.
const CHUNK: u64 = 64 << 10;
const LAYER: usize = 64 << 20;
const PREFIX: &str = "palimpsest/bench";

/// Times PUTs and ranged GETs on a bucket, and deletes what it put there.
#[derive(Debug, Args)]
pub struct BenchBucket {
    /// The bucket: `file:///directory` or `s3://bucket/prefix`.
    #[arg(long)]
    bucket: BucketUrl,
    /// How many of each.
    #[arg(long, default_value_t = 200)]
    count: u32,
}

/// Carries the verb out.
pub async fn run(arguments: &BenchBucket) -> Result<()> {
    let config = BucketConfig::new(arguments.bucket.clone());
    let bucket = config
        .open(BucketMetrics::new(), CancellationToken::new())
        .await
        .context("cannot open the bucket")?;
    let big = format!("{PREFIX}/layer");
    let mut paths = vec![big.clone()];
    let measured = async {
        let noise: Vec<u8> = (0..LAYER).map(|_| rand::random()).collect();
        let begun = Instant::now();
        bucket.put(&big, Body::Bytes(Bytes::from(noise)), PutIf::Absent).await?;
        let rate = (LAYER >> 20) as f64 / begun.elapsed().as_secs_f64();
        let (mut puts, mut gets) = (Samples::default(), Samples::default());
        let small = Bytes::from(vec![1; 8 << 10]);
        for number in 0..arguments.count {
            let path = format!("{PREFIX}/{number}");
            paths.push(path.clone());
            let begun = Instant::now();
            bucket.put(&path, Body::Bytes(small.clone()), PutIf::Absent).await?;
            puts.add(begun.elapsed());
            let at = rand::random_range(0..LAYER as u64 / CHUNK) * CHUNK;
            let begun = Instant::now();
            bucket.get(&big, Some(at..at + CHUNK)).await?;
            gets.add(begun.elapsed());
        }
        Ok::<_, anyhow::Error>((puts, gets, rate))
    };
    let measured = measured.await;
    bucket.delete(&paths).await.context("cannot delete what was put")?;
    let (mut puts, mut gets, rate) = measured.context("the bucket does not answer")?;
    let micros = |samples: &mut Samples, share| samples.quantile(share) / 1e3;
    println!(
        "floor p, PUT of 8 KiB: p50 {:.0} us, p99 {:.0} us",
        micros(&mut puts, 0.5),
        micros(&mut puts, 0.99)
    );
    println!(
        "floor g, GET of 64 KiB: p50 {:.0} us, p99 {:.0} us",
        micros(&mut gets, 0.5),
        micros(&mut gets, 0.99)
    );
    println!("floor, PUT of a layer of 64 MiB: {rate:.0} MiB/s");
    Ok(())
}
