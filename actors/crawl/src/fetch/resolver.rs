//! Resolves names for connections, and refuses addresses that are not public.

use std::net::SocketAddr;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use crate::address::is_public;

/// A name leads to an address that is not public.
#[derive(Debug, thiserror::Error)]
#[error("`{name}` resolves to {address}, which is not a public address")]
pub(super) struct AddressRefused {
    name: String,
    address: SocketAddr,
}

/// A name leads nowhere.
#[derive(Debug, thiserror::Error)]
#[error("`{name}` cannot be resolved: {reason}")]
pub(super) struct NameNotFound {
    name: String,
    reason: String,
}

/// Hands out only addresses that may be connected to. The connection is made to what this returns,
/// so a name that resolves otherwise a moment later (DNS rebinding) gains nothing.
pub(super) struct PublicResolver;

impl Resolve for PublicResolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let name = name.as_str().to_owned();
            let found = tokio::net::lookup_host((name.as_str(), 0)).await;
            let addresses = found
                .map_err(|error| NameNotFound { name: name.clone(), reason: error.to_string() })?
                .collect::<Vec<_>>();
            admit(name, addresses)
                .map(|addresses| Box::new(addresses.into_iter()) as Addrs)
                .map_err(Into::into)
        })
    }
}

/// One address that is not public spoils all: a public site has no reason to name one.
fn admit(name: String, addresses: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, AddressRefused> {
    match addresses.iter().find(|address| !is_public(address.ip())) {
        Some(&address) => Err(AddressRefused { name, address }),
        None => Ok(addresses),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_private_address_among_public_ones_is_enough_to_refuse() {
        let public: SocketAddr = "93.184.216.34:0".parse().unwrap();
        let private: SocketAddr = "[::ffff:10.0.0.1]:0".parse().unwrap();
        assert_eq!(admit("a".into(), vec![public]).unwrap(), [public]);
        assert_eq!(admit("a".into(), vec![public, private]).unwrap_err().address, private);
    }

    #[tokio::test]
    async fn a_name_of_this_machine_is_refused() {
        let resolved = PublicResolver.resolve("localhost".parse().unwrap()).await;
        assert!(resolved.err().unwrap().is::<AddressRefused>());
    }
}
