//! Tensor links between two processes beside plain TCP: throughput and CPU time.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use sixfold_bench::peer;
use sixfold_bench::report::Report;
use sixfold_telemetry::usage;
use sixfold_transport::identity::Role;
use sixfold_transport::link::{LinkError, TensorLink};
use sixfold_transport::tensor::{LinkKey, TensorEndpoint, TensorOptions};
use sixfold_wire::id::{Epoch, JobId};
use tokio::runtime::Runtime;

const KINDS: [&str; 3] = ["shared-memory", "quic", "tcp"];

/// Tensor links between two processes, beside plain TCP.
#[derive(Parser)]
struct Arguments {
    /// Sizes of a message, in KiB: by default a tensor, and a piece of one as collectives send them.
    #[arg(long, value_delimiter = ',', default_value = "65536,128")]
    message_kib: Vec<usize>,
    /// Bytes of a run in one direction, in MiB.
    #[arg(long, default_value_t = 2048)]
    total_mib: usize,
    /// Repetitions; the medians are reported.
    #[arg(long, default_value_t = 3)]
    repeats: usize,
    /// Print one line of JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// Also write the table to this file.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Be the second process, with this kind of link.
    #[arg(long, hide = true)]
    child: Option<String>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    match &arguments.child {
        Some(kind) => serve(kind, &arguments),
        None => measure(&arguments),
    }
}

fn measure(arguments: &Arguments) -> Result<()> {
    let columns = ["one way GB/s", "CPU s/GB", "both ways GB/s", "CPU s/GB both ways"];
    let mut report = Report::new("tensor_link", arguments.repeats, &columns);
    for &kib in &arguments.message_kib {
        let load = Load::new(kib, arguments);
        for kind in KINDS {
            let runs = (0..arguments.repeats).map(|_| run(kind, load)).collect::<Result<Vec<_>>>()?;
            report.add(&format!("{kind}, {kib} KiB"), &runs);
        }
    }
    report.publish(arguments.json, arguments.out.as_deref())
}

/// What goes over a link in one direction.
#[derive(Clone, Copy)]
struct Load {
    message_bytes: usize,
    messages: usize,
}

impl Load {
    fn new(message_kib: usize, arguments: &Arguments) -> Self {
        let messages = (arguments.total_mib << 10) / message_kib.max(1);
        Self { message_bytes: message_kib << 10, messages: messages.max(1) }
    }

    /// Messages that an end sends before it receives the first, when both send.
    fn ahead(self) -> usize {
        if self.message_bytes > 1 << 20 { 1 } else { 3 }
    }

    fn warm_up(self) -> Self {
        Self { messages: self.messages.min(3), ..self }
    }

    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    fn gigabytes(self) -> f64 {
        (self.message_bytes * self.messages) as f64 / 1e9
    }
}

/// One child, one link, both patterns.
fn run(kind: &str, load: Load) -> Result<Vec<Option<f64>>> {
    let (kib, mib) = (load.message_bytes >> 10, (load.message_bytes * load.messages) >> 20);
    let (kib, mib) = (kib.to_string(), mib.to_string());
    let (partner, identity) = peer::start(&[kind, "--message-kib", &kib, "--total-mib", &mib])?;
    let runtime = Runtime::new()?;
    let mut link: Box<dyn TensorLink> = if kind == "tcp" {
        Box::new(TcpLink::connect(partner.address)?)
    } else {
        let endpoint = TensorEndpoint::bind(identity.into(), options(kind)?)?;
        runtime.block_on(endpoint.connect(partner.address, Role::Node, key()))?
    };
    transfer(&mut *link, load.warm_up(), true, true)?;
    let mut figures = Vec::new();
    for both_ways in [false, true] {
        let cpu_before = usage::cpu_seconds()?;
        let start = Instant::now();
        transfer(&mut *link, load, true, both_ways)?;
        let mut their_cpu = [0; 8];
        link.recv(&mut their_cpu)?;
        let seconds = start.elapsed().as_secs_f64();
        let cpu = usage::cpu_seconds()? - cpu_before + f64::from_le_bytes(their_cpu);
        let directions = if both_ways { 2.0 } else { 1.0 };
        let gigabytes = directions * load.gigabytes();
        figures.extend([Some(gigabytes / seconds), Some(cpu / gigabytes)]);
    }
    Ok(figures)
}

fn serve(kind: &str, arguments: &Arguments) -> Result<()> {
    let load = Load::new(*arguments.message_kib.first().context("no message size")?, arguments);
    let identity = peer::given_identity()?;
    let runtime = Runtime::new()?;
    let mut link: Box<dyn TensorLink> = if kind == "tcp" {
        let listener = TcpListener::bind(peer::loopback())?;
        peer::announce(listener.local_addr()?)?;
        Box::new(TcpLink::new(listener.accept()?.0)?)
    } else {
        let endpoint = TensorEndpoint::bind(identity.into(), options("auto")?)?;
        peer::announce(endpoint.local_address()?)?;
        runtime.block_on(endpoint.accept(Role::Node, key()))?
    };
    transfer(&mut *link, load.warm_up(), false, true)?;
    for both_ways in [false, true] {
        let cpu_before = usage::cpu_seconds()?;
        transfer(&mut *link, load, false, both_ways)?;
        link.send(&(usage::cpu_seconds()? - cpu_before).to_le_bytes())?;
    }
    peer::wait_for_parent();
    Ok(())
}

/// The parent sends and the child receives; or both do, each a few messages ahead.
fn transfer(link: &mut dyn TensorLink, load: Load, parent: bool, both_ways: bool) -> Result<()> {
    let outgoing = vec![u8::from(parent); load.message_bytes];
    let mut incoming = vec![0; load.message_bytes];
    let ahead = if both_ways { load.ahead() } else { 0 };
    for index in 0..load.messages + ahead {
        if (parent || both_ways) && index < load.messages {
            link.send(&outgoing)?;
        }
        if (!parent || both_ways) && index >= ahead {
            link.recv(&mut incoming)?;
        }
    }
    Ok(())
}

fn options(policy: &str) -> Result<TensorOptions> {
    Ok(TensorOptions { policy: policy.parse()?, ..TensorOptions::new(peer::loopback()) })
}

fn key() -> LinkKey {
    LinkKey { job: JobId(1), epoch: Epoch(1), from: 0, to: 1, purpose: "bench".into() }
}

/// Plain TCP as a reference: a thread writes, so that two ends may send at once.
struct TcpLink {
    out: std::sync::mpsc::SyncSender<Vec<u8>>,
    stream: TcpStream,
    bytes_sent: u64,
    waited: Duration,
}

impl TcpLink {
    fn connect(address: SocketAddr) -> Result<Self> {
        Self::new(TcpStream::connect(address).context("cannot connect")?)
    }

    fn new(stream: TcpStream) -> Result<Self> {
        stream.set_nodelay(true)?;
        let mut writer = stream.try_clone()?;
        let (out, queue) = std::sync::mpsc::sync_channel::<Vec<u8>>(1);
        std::thread::spawn(move || queue.into_iter().try_for_each(|message| writer.write_all(&message)));
        Ok(Self { out, stream, bytes_sent: 0, waited: Duration::ZERO })
    }
}

fn closed(reason: impl ToString) -> LinkError {
    LinkError::Closed { peer: "the other process".to_owned(), reason: reason.to_string() }
}

impl TensorLink for TcpLink {
    fn send(&mut self, message: &[u8]) -> Result<(), LinkError> {
        self.out.send(message.to_vec()).map_err(closed)?;
        self.bytes_sent += message.len() as u64;
        Ok(())
    }

    fn recv(&mut self, message: &mut [u8]) -> Result<(), LinkError> {
        let since = Instant::now();
        let read = self.stream.read_exact(message);
        self.waited += since.elapsed();
        read.map_err(closed)
    }

    fn bytes_sent(&self) -> u64 {
        self.bytes_sent
    }

    fn waited(&self) -> Duration {
        self.waited
    }

    fn kind(&self) -> &'static str {
        "tcp"
    }
}
