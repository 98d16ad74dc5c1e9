//! A network namespace for each node of a local cluster, joined by a bridge: the nodes then share
//! no loopback interface, as on separate machines. Linux, as root, with iproute2.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result, bail};
use tokio::process::Command;

/// The namespaces of one local cluster.
pub(crate) struct Namespaces {
    /// Unique among the clusters of this machine, and short: interface names have 15 bytes.
    tag: String,
    /// Third byte of the addresses 10.231.x.y.
    subnet: u8,
    count: u32,
}

impl Namespaces {
    /// Makes a bridge and `count` namespaces on it.
    pub(crate) async fn create(count: u32) -> Result<Self> {
        let process = std::process::id();
        let this = Self { tag: format!("sf{process:x}"), subnet: (process % 250) as u8, count };
        let made = this.make().await;
        if made.is_err() {
            this.remove().await;
        }
        made.map(|()| this).context("network namespaces need Linux, root and iproute2")
    }

    async fn make(&self) -> Result<()> {
        let (tag, bridge) = (&self.tag, self.bridge());
        ip(&format!("link add {tag} type bridge")).await?;
        ip(&format!("addr add {bridge}/24 dev {tag}")).await?;
        ip(&format!("link set {tag} up")).await?;
        for index in 0..self.count {
            let (name, address) = (self.name(index), self.address(index));
            ip(&format!("netns add {name}")).await?;
            ip(&format!("link add {tag}v{index} type veth peer name eth0 netns {name}")).await?;
            ip(&format!("link set {tag}v{index} master {tag} up")).await?;
            ip(&format!("-n {name} addr add {address}/24 dev eth0")).await?;
            ip(&format!("-n {name} link set eth0 up")).await?;
            ip(&format!("-n {name} link set lo up")).await?;
        }
        Ok(())
    }

    /// The bridge's address, reachable from every namespace.
    pub(crate) fn bridge(&self) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(10, 231, self.subnet, 1))
    }

    /// The address of a node.
    pub(crate) fn address(&self, index: u32) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(10, 231, self.subnet, 2 + index as u8))
    }

    /// This program, in the namespace of a node.
    pub(crate) fn command(&self, index: u32) -> Result<Command> {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name(index)]).arg(std::env::current_exe()?);
        Ok(command)
    }

    /// Removes what was made. What cannot be removed is said and left.
    pub(crate) async fn remove(&self) {
        let namespaces = (0..self.count).map(|index| format!("netns del {}", self.name(index)));
        for command in namespaces.chain([format!("link del {}", self.tag)]) {
            if let Err(error) = ip(&command).await {
                tracing::warn!("{error:#}");
            }
        }
    }

    fn name(&self, index: u32) -> String {
        format!("{}n{index}", self.tag)
    }
}

async fn ip(arguments: &str) -> Result<()> {
    let output = Command::new("ip").args(arguments.split(' ')).output().await.context("cannot run `ip`")?;
    if !output.status.success() {
        bail!("ip {arguments}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
