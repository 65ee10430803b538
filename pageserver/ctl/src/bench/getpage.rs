//! `pagectl bench getpage`: pages from a running server, beside a loopback exchange of as many bytes.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use codec::pagestream::{Answer, Query, Request, RequestHeader};
use model::Lsn;
use rand::RngExt as _;

use super::clock::{Samples, cpu_time, line};
use crate::page::ServedRelation;
use crate::page_stream::PageStream;

/// Bytes of the floor's request and answer: about those of a page's.
const ASKED: usize = 64;
const ANSWERED: usize = 8208;

/// Asks a pageserver for random pages: latency one by one, then throughput.
#[derive(Debug, Args)]
pub struct GetPage {
    #[command(flatten)]
    from: ServedRelation,
    /// Its pages from 0 on are asked for; it must have so many.
    #[arg(long)]
    blocks: u32,
    /// Requests that a connection keeps under way when throughput is measured.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1024))]
    depth: u32,
    /// Connections when throughput is measured.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    connections: u32,
    /// Length of each measurement.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// The server's process, to say what a page costs its processor.
    #[arg(long)]
    pid: Option<u32>,
    /// Ask for each page at most once and for none near another, as a server does that lost its disk; no floor, no throughput.
    #[arg(long)]
    cold: bool,
}

/// What answers: a pageserver, or the floor's echo.
trait Peer: Send {
    /// Sends so many requests with one write.
    fn ask(&mut self, count: u32) -> Result<()>;
    /// Takes one answer.
    fn answer(&mut self) -> Result<()>;
}

struct Pages<'a> {
    stream: PageStream,
    arguments: &'a GetPage,
}

impl Pages<'_> {
    fn request(&self, block: u32) -> Request {
        let header = RequestHeader { id: 1, request_lsn: Lsn::MAX, not_modified_since: Lsn(1) };
        Request { header, query: Query::Page { rel: self.arguments.from.rel(), block } }
    }
}

impl Peer for Pages<'_> {
    fn ask(&mut self, count: u32) -> Result<()> {
        let mut random = rand::rng();
        let blocks: Vec<u32> = (0..count).map(|_| random.random_range(0..self.arguments.blocks)).collect();
        self.stream.send_all(blocks.into_iter().map(|block| self.request(block)).collect::<Vec<_>>())
    }

    fn answer(&mut self) -> Result<()> {
        match self.stream.answer()?.response()?.answer {
            Answer::Page(_) => Ok(()),
            Answer::Error(text) => bail!("{text}"),
            other => bail!("the server answered {other:?}"),
        }
    }
}

struct Echo(TcpStream);

impl Peer for Echo {
    fn ask(&mut self, count: u32) -> Result<()> {
        Ok(self.0.write_all(&vec![0; ASKED * count as usize])?)
    }

    fn answer(&mut self) -> Result<()> {
        Ok(self.0.read_exact(&mut [0; ANSWERED])?)
    }
}

/// Answers what has arrived with one write, until the client goes.
fn echo(mut stream: TcpStream) -> Result<Duration> {
    let thread = PathBuf::from("/proc/thread-self");
    let before = cpu_time(&thread)?;
    stream.set_nodelay(true)?;
    let mut asked = vec![0; ASKED * 1024];
    let answers = vec![0; ANSWERED * 1024];
    let mut held = 0;
    loop {
        let count = stream.read(&mut asked)?;
        if count == 0 {
            return Ok(cpu_time(&thread)?.saturating_sub(before));
        }
        held += count;
        stream.write_all(&answers[..held / ASKED * ANSWERED])?;
        held %= ASKED;
    }
}

/// Carries the verb out.
pub fn run(arguments: &GetPage) -> Result<()> {
    ensure!(arguments.blocks > 0, "a relation without blocks has no pages");
    if arguments.cold {
        return cold(arguments);
    }
    let time = Duration::from_secs(arguments.seconds);
    let server = arguments.pid.map(|pid| PathBuf::from(format!("/proc/{pid}")));
    let used = || server.as_deref().map(cpu_time).transpose();

    // What is asked for is brought into memory first, and both peers are warm.
    let mut pages = vec![open(arguments)?];
    throughput(&mut pages, 32, Duration::from_secs(1))?;
    // In turns, so that what else happens on the machine meets both.
    let (mut ours, mut floor) = (Samples::default(), Samples::default());
    let (listener, mut client) = echo_pair()?;
    std::thread::scope(|scope| {
        let echo = scope.spawn(move || echo(listener));
        for _ in 0..4 {
            latency(&mut client, time / 4, &mut floor)?;
            latency(&mut pages[0], time / 4, &mut ours)?;
        }
        drop(client);
        echo.join().expect("an echo does not panic")?;
        Ok::<_, anyhow::Error>(())
    })?;
    let micros = |samples: &mut Samples, share| samples.quantile(share) / 1e3;
    line("T1a GetPage at depth 1, p50", micros(&mut ours, 0.5), micros(&mut floor, 0.5), "us");
    line("T1a GetPage at depth 1, p99", micros(&mut ours, 0.99), micros(&mut floor, 0.99), "us");

    for depth in [1, arguments.depth] {
        let connections = arguments.connections as usize;
        let (echoed, echo_cpu) = echo_throughput(connections, depth, time)?;
        while pages.len() < connections {
            pages.push(open(arguments)?);
        }
        let before = used()?;
        let answered = throughput(&mut pages, depth, time)?;
        let spent = used()?.zip(before).map(|(after, before)| after.saturating_sub(before));
        let rate = |count: u64| count as f64 / time.as_secs_f64() / 1e3;
        let what = format!("T1c {connections} x depth {depth}, thousand pages/s");
        line(&what, rate(answered), rate(echoed), "k/s");
        let each = |spent: Duration, count: u64| spent.as_secs_f64() * 1e6 / count.max(1) as f64;
        if let Some(spent) = spent {
            line("    server's processor time a page", each(spent, answered), each(echo_cpu, echoed), "us");
        }
    }
    Ok(())
}

fn open(arguments: &GetPage) -> Result<Pages<'_>> {
    Ok(Pages { stream: arguments.from.open()?, arguments })
}

/// The first page, which finds nothing at hand, then others that lie in chunks of their own.
fn cold(arguments: &GetPage) -> Result<()> {
    const APART: u32 = 67; // more pages than a chunk holds, compressed fourfold
    let mut pages = open(arguments)?;
    let (mut first, mut others) = (Samples::default(), Samples::default());
    for block in (0..arguments.blocks).step_by(APART as usize).take(1000) {
        let request = pages.request(block);
        let begun = Instant::now();
        pages.stream.send_all([request])?;
        pages.answer()?;
        if first.len() == 0 { &mut first } else { &mut others }.add(begun.elapsed());
    }
    println!("T3 first page, nothing at hand: {:.0} us", first.quantile(0.5) / 1e3);
    println!(
        "T3 {} more with the layer's index at hand: p50 {:.0} us, p99 {:.0} us",
        others.len(),
        others.quantile(0.5) / 1e3,
        others.quantile(0.99) / 1e3
    );
    Ok(())
}

fn latency(peer: &mut impl Peer, time: Duration, samples: &mut Samples) -> Result<()> {
    let begun = Instant::now();
    while begun.elapsed() < time {
        samples.time(|| peer.ask(1).and_then(|()| peer.answer()))?;
    }
    Ok(())
}

/// How many answers all peers gave, each on a thread of its own with `depth` requests under way.
fn throughput<P: Peer>(peers: &mut [P], depth: u32, time: Duration) -> Result<u64> {
    let together = Barrier::new(peers.len());
    std::thread::scope(|scope| {
        let clients: Vec<_> = peers
            .iter_mut()
            .map(|peer| {
                let together = &together;
                scope.spawn(move || {
                    together.wait();
                    keep_asking(peer, depth, time)
                })
            })
            .collect();
        clients.into_iter().map(|client| client.join().expect("a client does not panic")).sum()
    })
}

/// Half of the requests are sent when the other half is answered.
fn keep_asking(peer: &mut impl Peer, depth: u32, time: Duration) -> Result<u64> {
    let (mut answered, mut under_way) = (0, depth);
    peer.ask(depth)?;
    let begun = Instant::now();
    while begun.elapsed() < time {
        let half = depth.div_ceil(2);
        for _ in 0..half {
            peer.answer()?;
        }
        under_way -= half;
        answered += u64::from(half);
        peer.ask(half)?;
        under_way += half;
    }
    // So that the next measurement finds the stream empty.
    (0..under_way).try_for_each(|_| peer.answer())?;
    Ok(answered)
}

fn echo_pair() -> Result<(TcpStream, Echo)> {
    let listener = TcpListener::bind("127.0.0.1:0").context("cannot listen for the floor")?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    client.set_nodelay(true)?;
    Ok((listener.accept()?.0, Echo(client)))
}

/// As [`throughput`], of the floor; and the processor time of its servers.
fn echo_throughput(connections: usize, depth: u32, time: Duration) -> Result<(u64, Duration)> {
    std::thread::scope(|scope| {
        let (mut servers, mut clients) = (Vec::new(), Vec::new());
        for _ in 0..connections {
            let (listener, client) = echo_pair()?;
            servers.push(scope.spawn(move || echo(listener)));
            clients.push(client);
        }
        let answered = throughput(&mut clients, depth, time);
        drop(clients);
        let mut spent = Duration::ZERO;
        for server in servers {
            spent += server.join().expect("an echo does not panic")?;
        }
        Ok((answered?, spent))
    })
}
