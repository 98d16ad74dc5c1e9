//! Actor channels between two processes: calls, one-way messages, and the memory of a sender that
//! floods a slow actor.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use sixfold_bench::peer;
use sixfold_bench::report::Report;
use sixfold_telemetry::usage;
use sixfold_transport::identity::{Role, Roles};
use sixfold_transport::{ActorGone, ChannelOptions, Delivery, Endpoint, EndpointOptions, RemoteRef};
use sixfold_wire::message::Message;
use tokio::sync::mpsc;

const DEADLINE: Duration = Duration::from_secs(10);
/// The slow actor takes this long for a message.
const SLOW: Duration = Duration::from_millis(1);
/// Tasks that flood the slow actor.
const FLOODERS: usize = 64;

/// Actor channels between two processes.
#[derive(Parser)]
struct Arguments {
    /// Seconds that each measurement takes.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Bytes of a message's payload.
    #[arg(long, default_value_t = 64)]
    payload_bytes: usize,
    /// Repetitions; the medians are reported.
    #[arg(long, default_value_t = 3)]
    repeats: usize,
    /// Print one line of JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// Also write the table to this file.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Be the second process.
    #[arg(long, hide = true)]
    child: bool,
}

#[derive(Serialize, Deserialize)]
enum Parcel {
    Echo(Vec<u8>),
    Count,
    Note(Vec<u8>),
}

#[derive(Serialize, Deserialize)]
enum Receipt {
    Echo(Vec<u8>),
    Count(u64),
}

impl Message for Parcel {
    type Reply = Receipt;
    const PROTOCOL: &'static str = "parcel";
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if arguments.child { serve().await } else { measure(&arguments).await }
}

async fn serve() -> Result<()> {
    let endpoint = Endpoint::bind(peer::given_identity()?, &EndpointOptions::new(peer::loopback()))?;
    // As an actor would, each has a mailbox and a task of its own.
    let _quick = mailbox(&endpoint, "quick", None);
    let _slow = mailbox(&endpoint, "slow", Some(SLOW));
    peer::announce(endpoint.local_address()?)?;
    tokio::task::spawn_blocking(peer::wait_for_parent).await?;
    Ok(())
}

fn mailbox(endpoint: &Endpoint, name: &str, delay: Option<Duration>) -> sixfold_transport::Registration {
    let (sender, mut receiver) = mpsc::unbounded_channel::<Delivery<Parcel>>();
    tokio::spawn(async move {
        let mut count = 0;
        while let Some(delivery) = receiver.recv().await {
            if let Some(delay) = delay {
                tokio::time::sleep(delay).await;
            }
            let Some(reply) = delivery.reply else {
                count += 1;
                continue;
            };
            match delivery.message {
                Parcel::Echo(payload) => reply.send(&Receipt::Echo(payload)),
                Parcel::Count => reply.send(&Receipt::Count(count)),
                Parcel::Note(_) => {}
            }
        }
    });
    endpoint.register(name, Roles::ANY, move |delivery| sender.send(delivery).map_err(|_| ActorGone))
}

async fn measure(arguments: &Arguments) -> Result<()> {
    let (partner, identity) = peer::start(&[])?;
    let endpoint = Endpoint::bind(identity, &EndpointOptions::new(peer::loopback()))?;
    let connection = endpoint.connect(partner.address, Role::Node).await?;
    let quick = connection.actor::<Parcel>("quick", ChannelOptions::default()).await?;
    let slow = connection.actor::<Parcel>("slow", ChannelOptions::default()).await?;
    let columns = ["messages/s", "p50 us", "p99 us", "sender peak MiB", "receiver peak MiB"];
    let mut report = Report::new("remote_ref", arguments.repeats, &columns);
    let size = arguments.payload_bytes;
    for depth in [1, 64] {
        let mut runs = Vec::new();
        for _ in 0..arguments.repeats {
            runs.push(calls(&quick, depth, arguments).await?);
        }
        report.add(&format!("calls, depth {depth}, {size} B"), &runs);
    }
    let mut runs = Vec::new();
    for _ in 0..arguments.repeats {
        runs.push(one_way(&quick, arguments).await?);
    }
    report.add(&format!("one-way, {size} B"), &runs);
    let mut runs = Vec::new();
    for _ in 0..arguments.repeats {
        runs.push(flood(&slow, &partner, arguments).await?);
    }
    report.add(&format!("flood of an actor of 1 ms a message, 1 KiB, {FLOODERS} tasks"), &runs);
    report.publish(arguments.json, arguments.out.as_deref())
}

async fn calls(actor: &RemoteRef<Parcel>, depth: usize, arguments: &Arguments) -> Result<Vec<Option<f64>>> {
    let until = Instant::now() + Duration::from_secs_f64(arguments.seconds);
    let start = Instant::now();
    let callers = (0..depth).map(|_| tokio::spawn(caller(actor.clone(), arguments.payload_bytes, until)));
    let mut latencies = Histogram::<u64>::new(3)?;
    for caller in callers.collect::<Vec<_>>() {
        latencies.add(caller.await??)?;
    }
    let rate = figure(latencies.len()) / start.elapsed().as_secs_f64();
    let microseconds = |quantile| Some(figure(latencies.value_at_quantile(quantile)) / 1e3);
    Ok(vec![Some(rate), microseconds(0.5), microseconds(0.99), None, None])
}

async fn caller(actor: RemoteRef<Parcel>, payload_bytes: usize, until: Instant) -> Result<Histogram<u64>> {
    let mut latencies = Histogram::<u64>::new(3)?;
    loop {
        let start = Instant::now();
        if start >= until {
            return Ok(latencies);
        }
        let reply = actor.call(Parcel::Echo(vec![7; payload_bytes]), DEADLINE).await?;
        anyhow::ensure!(matches!(reply, Receipt::Echo(payload) if payload.len() == payload_bytes));
        latencies.record(u64::try_from(start.elapsed().as_nanos())?)?;
    }
}

async fn one_way(actor: &RemoteRef<Parcel>, arguments: &Arguments) -> Result<Vec<Option<f64>>> {
    let before = count(actor).await?;
    let start = Instant::now();
    let until = start + Duration::from_secs_f64(arguments.seconds);
    let mut sent = 0;
    while Instant::now() < until {
        for _ in 0..256 {
            actor.cast(Parcel::Note(vec![7; arguments.payload_bytes])).await?;
        }
        sent += 256;
    }
    // A call on the same channel comes after all of them.
    let handled = count(actor).await? - before;
    let rate = figure(handled) / start.elapsed().as_secs_f64();
    anyhow::ensure!(handled == sent, "{sent} messages sent, {handled} handled");
    Ok(vec![Some(rate), None, None, None, None])
}

async fn count(actor: &RemoteRef<Parcel>) -> Result<u64> {
    match actor.call(Parcel::Count, DEADLINE).await? {
        Receipt::Count(count) => Ok(count),
        Receipt::Echo(_) => anyhow::bail!("another receipt"),
    }
}

async fn flood(
    actor: &RemoteRef<Parcel>,
    partner: &peer::Partner,
    arguments: &Arguments,
) -> Result<Vec<Option<f64>>> {
    let before = count(actor).await?;
    let stop = Arc::new(AtomicBool::new(false));
    let start = Instant::now();
    let flooders: Vec<_> = (0..FLOODERS)
        .map(|_| {
            let (actor, stop) = (actor.clone(), stop.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    actor.cast(Parcel::Note(vec![7; 1024])).await?;
                }
                anyhow::Ok(())
            })
        })
        .collect();
    let (mut sender_peak, mut receiver_peak) = (0, 0);
    while start.elapsed().as_secs_f64() < arguments.seconds {
        tokio::time::sleep(Duration::from_millis(50)).await;
        sender_peak = sender_peak.max(usage::resident_bytes("self")?);
        receiver_peak = receiver_peak.max(partner.resident_bytes()?);
    }
    stop.store(true, Ordering::Relaxed);
    for flooder in flooders {
        flooder.await.context("a flooder")??;
    }
    let rate = figure(count(actor).await? - before) / start.elapsed().as_secs_f64();
    let mib = |bytes: u64| Some(figure(bytes) / f64::from(1 << 20));
    Ok(vec![Some(rate), None, None, mib(sender_peak), mib(receiver_peak)])
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn figure(count: u64) -> f64 {
    count as f64
}
