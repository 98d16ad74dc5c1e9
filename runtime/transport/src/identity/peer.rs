//! Names and roles, and how they stand in a certificate.
//!
//! A certificate holds exactly one DNS name: `<name>.<role>.<cluster>.sixfold`, and for a worker
//! `<name>.<node>.worker.<cluster>.sixfold`, so that a name constraint can bind a node's authority
//! to its own workers. `<cluster>` is the first 16 hex digits of the cluster's id.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sixfold_wire::id::ClusterId;

/// What a certificate's holder is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Decides where work runs.
    Coordinator,
    /// A node daemon.
    Node,
    /// A process that a node daemon started.
    Worker,
    /// A person or program that submits work.
    User,
}

impl Role {
    const ALL: [Self; 4] = [Self::Coordinator, Self::Node, Self::Worker, Self::User];

    /// The role's name, as in a certificate.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Coordinator => "coordinator",
            Self::Node => "node",
            Self::Worker => "worker",
            Self::User => "user",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = PeerNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = Self::ALL.into_iter().find(|role| role.as_str() == text);
        known.ok_or_else(|| PeerNameError::Role(text.chars().take(80).collect()))
    }
}

/// A set of roles: who may use an actor or a stream kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Roles(u8);

impl Roles {
    /// Every member of the cluster.
    pub const ANY: Self = Self(0b1111);

    /// Whether `role` is in the set.
    pub fn contains(self, role: Role) -> bool {
        self.0 & (1 << role as u8) != 0
    }
}

impl From<Role> for Roles {
    fn from(role: Role) -> Self {
        Self(1 << role as u8)
    }
}

impl<const N: usize> From<[Role; N]> for Roles {
    fn from(roles: [Role; N]) -> Self {
        Self(roles.into_iter().fold(0, |set, role| set | Self::from(role).0))
    }
}

/// A text cannot be a name or role.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerNameError {
    /// Not a DNS label.
    #[error("`{0}` cannot be a name: use 1 to 63 of a-z, 0-9 and -, with no - at either end")]
    Label(String),
    /// No such role.
    #[error("`{0}` is no role")]
    Role(String),
    /// Not of the form in the module's text.
    #[error("`{0}` is not the name of a member of this cluster")]
    Form(String),
}

/// A member of the cluster, as its certificate names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Peer {
    role: Role,
    name: String,
    node: Option<String>,
}

impl Peer {
    /// A coordinator.
    ///
    /// # Errors
    /// [`PeerNameError::Label`] if the name is not a DNS label.
    pub fn coordinator(name: &str) -> Result<Self, PeerNameError> {
        Self::plain(Role::Coordinator, name)
    }

    /// A node daemon.
    ///
    /// # Errors
    /// [`PeerNameError::Label`] if the name is not a DNS label.
    pub fn node(name: &str) -> Result<Self, PeerNameError> {
        Self::plain(Role::Node, name)
    }

    /// A person or program.
    ///
    /// # Errors
    /// [`PeerNameError::Label`] if the name is not a DNS label.
    pub fn user(name: &str) -> Result<Self, PeerNameError> {
        Self::plain(Role::User, name)
    }

    /// A worker process of a node.
    ///
    /// # Errors
    /// [`PeerNameError::Label`] if a name is not a DNS label.
    pub fn worker(node: &str, name: &str) -> Result<Self, PeerNameError> {
        Ok(Self { role: Role::Worker, name: label(name)?, node: Some(label(node)?) })
    }

    fn plain(role: Role, name: &str) -> Result<Self, PeerNameError> {
        Ok(Self { role, name: label(name)?, node: None })
    }

    /// A peer of a role that stands alone (any but a worker), for a joiner who asks for a name.
    ///
    /// # Errors
    /// [`PeerNameError`] if the name is no DNS label or the role is a worker's.
    pub fn joining(role: Role, name: &str) -> Result<Self, PeerNameError> {
        match role {
            Role::Worker => Err(PeerNameError::Role("worker".into())),
            other => Self::plain(other, name),
        }
    }

    /// Its role.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Its name, unique among its role (a worker's: among its node's workers).
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The node daemon that it lives or dies with: its own name for a node, its daemon's for a worker.
    pub fn host(&self) -> Option<&str> {
        match self.role {
            Role::Node => Some(&self.name),
            Role::Worker => self.node.as_deref(),
            Role::Coordinator | Role::User => None,
        }
    }

    /// The DNS name in its certificate.
    pub(crate) fn dns_name(&self, cluster: &ClusterId) -> String {
        let domain = domain(cluster);
        match &self.node {
            Some(node) => format!("{}.{node}.{}.{domain}", self.name, self.role),
            None => format!("{}.{}.{domain}", self.name, self.role),
        }
    }

    /// The peer that a certificate's DNS name stands for.
    pub(crate) fn from_dns_name(dns: &str, cluster: &ClusterId) -> Result<Self, PeerNameError> {
        let refuse = || PeerNameError::Form(dns.chars().take(253).collect());
        let own =
            dns.strip_suffix(&domain(cluster)).and_then(|own| own.strip_suffix('.')).ok_or_else(refuse)?;
        let labels: Vec<&str> = own.split('.').collect();
        match labels.as_slice() {
            [name, node, "worker"] => Self::worker(node, name),
            [name, role] => Self::joining(role.parse()?, name),
            _ => Err(refuse()),
        }
    }
}

/// The domain of a node's workers: what its authority is constrained to.
pub(crate) fn worker_domain(node: &str, cluster: &ClusterId) -> String {
    format!("{node}.{}.{}", Role::Worker, domain(cluster))
}

fn domain(cluster: &ClusterId) -> String {
    let short: String = cluster.as_str().chars().take(16).collect();
    format!("{short}.sixfold")
}

fn label(text: &str) -> Result<String, PeerNameError> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let fits = (1..=63).contains(&text.len()) && text.bytes().all(plain);
    if fits && !text.starts_with('-') && !text.ends_with('-') {
        Ok(text.to_owned())
    } else {
        Err(PeerNameError::Label(text.chars().take(80).collect()))
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.node {
            Some(node) => write!(f, "{} `{}` of `{node}`", self.role, self.name),
            None => write!(f, "{} `{}`", self.role, self.name),
        }
    }
}

/// Whom a dialler is willing to talk to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// This peer.
    Peer(Peer),
    /// Any peer of this role.
    Role(Role),
    /// Any worker of this node, or the node itself.
    Host(String),
}

impl Expected {
    /// Whether `peer` is such a one.
    pub fn admits(&self, peer: &Peer) -> bool {
        match self {
            Self::Peer(expected) => peer == expected,
            Self::Role(role) => peer.role() == *role,
            Self::Host(node) => peer.host() == Some(node),
        }
    }
}

impl From<Peer> for Expected {
    fn from(peer: Peer) -> Self {
        Self::Peer(peer)
    }
}

impl From<Role> for Expected {
    fn from(role: Role) -> Self {
        Self::Role(role)
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Peer(peer) => peer.fmt(f),
            Self::Role(role) => write!(f, "a {role}"),
            Self::Host(node) => write!(f, "`{node}` or a worker of it"),
        }
    }
}
