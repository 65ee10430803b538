//! Plays seeds: many, or one with its story.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use sim::run::play;
use sim::scenario::Scenario;
use sim::shrink::{as_test, shrink};
use sim::world::Counts;

/// The engine in worlds that follow from seeds.
#[derive(Parser)]
struct Args {
    /// Seeds to play, the last one not included: `0..2000`.
    #[arg(long, default_value = "0..2000")]
    seeds: String,
    /// Plays one seed and tells its story.
    #[arg(long)]
    seed: Option<u64>,
    /// Plays what a file says.
    #[arg(long)]
    scenario: Option<std::path::PathBuf>,
    /// Goes on until stopped, from the first of the seeds on.
    #[arg(long)]
    forever: bool,
    /// Seeds played at once; as many as there are processors if not given.
    #[arg(long)]
    jobs: Option<usize>,
    /// How long a failed run is made shorter.
    #[arg(long, default_value = "60")]
    shrink_seconds: u64,
    /// Every so many seeds, one is played twice and must be the same run.
    #[arg(long, default_value = "20")]
    replay_every: u64,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if std::env::var_os("RUST_LOG").is_some() {
        tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .without_time()
            .with_writer(std::io::stderr)
            .init();
    }
    if let Some(path) = &args.scenario {
        let text = std::fs::read_to_string(path).expect("the file can be read");
        return tell(&text.parse().expect("the file holds a scenario"), &args);
    }
    if let Some(seed) = args.seed {
        return tell(&Scenario::of(seed), &args);
    }
    many(&args)
}

fn tell(scenario: &Scenario, args: &Args) -> ExitCode {
    let report = play(scenario, None, true);
    for line in &report.story {
        println!("{line}");
    }
    print_counts(&report.counts, report.simulated);
    println!("run {:016x}", report.hash);
    let Some(violation) = report.violation else { return ExitCode::SUCCESS };
    println!("\nWRONG: {violation}\n");
    if args.shrink_seconds > 0 {
        let (short, how) = shrink(scenario, None, Duration::from_secs(args.shrink_seconds));
        println!("{}", as_test(&short, how.violation.as_deref().unwrap_or_default()));
    }
    ExitCode::FAILURE
}

fn print_counts(counts: &Counts, simulated: Duration) {
    println!(
        "{:.1} simulated hours, {} requests, {} values compared",
        simulated.as_secs_f64() / 3600.0,
        counts.requests,
        counts.compared
    );
    for (title, of) in
        [("operations", &counts.operations), ("promises", &counts.acknowledged), ("faults", &counts.faults)]
    {
        let all: Vec<String> = of.iter().map(|(name, count)| format!("{name} {count}")).collect();
        println!("{title}: {}", all.join(", "));
    }
}

fn many(args: &Args) -> ExitCode {
    let (first, end) = args
        .seeds
        .split_once("..")
        .and_then(|(first, end)| Some((first.parse().ok()?, end.parse().ok()?)))
        .expect("seeds are given as FIRST..END");
    let end: u64 = if args.forever { u64::MAX } else { end };
    let jobs = args.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let next = AtomicU64::new(first);
    let done = AtomicU64::new(0);
    let failed = AtomicBool::new(false);
    let total = Mutex::new((Counts::default(), Duration::ZERO));
    // In whatever order they are played: two builds that answer alike have done the same everywhere.
    let runs = AtomicU64::new(0);
    let since = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while !failed.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return;
                    }
                    let scenario = Scenario::of(seed);
                    let report = play(&scenario, None, false);
                    if let Some(violation) = report.violation {
                        failed.store(true, Ordering::Relaxed);
                        println!("seed {seed} went wrong: {violation}\n");
                        let (short, how) = shrink(&scenario, None, Duration::from_secs(args.shrink_seconds));
                        println!("{}", as_test(&short, how.violation.as_deref().unwrap_or_default()));
                        return;
                    }
                    if args.replay_every > 0
                        && seed.is_multiple_of(args.replay_every)
                        && play(&scenario, None, false).hash != report.hash
                    {
                        failed.store(true, Ordering::Relaxed);
                        println!("seed {seed} was another run the second time");
                        return;
                    }
                    runs.fetch_add(report.hash, Ordering::Relaxed);
                    let mut total = total.lock().expect("no holder panics");
                    total.0.add(&report.counts);
                    total.1 += report.simulated;
                    let done = done.fetch_add(1, Ordering::Relaxed) + 1;
                    if done.is_multiple_of(1000) {
                        println!("{done} seeds, {:.1} a second", done as f64 / since.elapsed().as_secs_f64());
                    }
                }
            });
        }
    });
    let done = done.load(Ordering::Relaxed);
    let (counts, simulated) = total.into_inner().expect("no holder panics");
    println!(
        "{done} seeds in {:.1} s, {:.1} a second",
        since.elapsed().as_secs_f64(),
        done as f64 / since.elapsed().as_secs_f64()
    );
    print_counts(&counts, simulated);
    println!("runs {:016x}", runs.into_inner());
    if failed.load(Ordering::Relaxed) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
