//! Measuring time, and saying it.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

/// Times of single operations.
#[derive(Default)]
pub struct Samples {
    nanos: Vec<u64>,
}

impl Samples {
    /// Notes one.
    pub fn add(&mut self, took: Duration) {
        self.nanos.push(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Runs an operation and notes its time.
    pub fn time<T>(&mut self, operation: impl FnOnce() -> T) -> T {
        let begun = Instant::now();
        let result = operation();
        self.add(begun.elapsed());
        result
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.nanos.len()
    }

    /// The time that this share of the operations did not exceed; 0 without any.
    pub fn quantile(&mut self, share: f64) -> f64 {
        self.nanos.sort_unstable();
        let at = (self.nanos.len().saturating_sub(1)) as f64 * share;
        self.nanos.get(at.round() as usize).map_or(0.0, |nanos| *nanos as f64)
    }
}

/// Nanoseconds of one operation too short for the clock: the median over runs of many.
pub fn median_nanos<T>(mut operation: impl FnMut() -> T) -> f64 {
    const RUNS: usize = 101;
    const RUN: Duration = Duration::from_millis(5);
    let begun = Instant::now();
    let mut each: u32 = 0;
    while begun.elapsed() < RUN {
        std::hint::black_box(operation());
        each += 1;
    }
    let mut runs = Samples::default();
    for _ in 0..RUNS {
        runs.time(|| (0..each).for_each(|_| drop(std::hint::black_box(operation()))));
    }
    runs.quantile(0.5) / f64::from(each)
}

/// Processor time that a process, or a thread by its path below `/proc`, has used. Known to a hundredth of a second.
pub fn cpu_time(process: &Path) -> Result<Duration> {
    let path = process.join("stat");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    // The second field is a name in parentheses, which may hold anything; the 14th and 15th are user and system time in ticks of 10 ms.
    let fields = text.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    Ok(Duration::from_millis(ticks * 10))
}

/// Prints a figure, its floor and how they compare.
pub fn line(what: &str, ours: f64, floor: f64, unit: &str) {
    println!("{what:<44} {ours:>10.2} {unit:<9} floor {floor:>10.2}   ratio {:.2}", ours / floor);
}
