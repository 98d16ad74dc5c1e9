//! What an actor's messages implement to travel between processes.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::version::{CapabilityError, Version};

/// A message of an actor protocol. Usually an enum, which only grows at its end.
pub trait Message: Serialize + DeserializeOwned + Send + 'static {
    /// What a call is answered with. `()` for a protocol that is only cast.
    type Reply: Serialize + DeserializeOwned + Send + 'static;

    /// Name of the protocol; both ends must agree on it when a channel opens.
    const PROTOCOL: &'static str;

    /// The first wire version that has this message. Override it for variants added later.
    fn needs(&self) -> Version {
        Version::V1
    }

    /// Whether a peer that speaks `spoken` understands this message.
    ///
    /// # Errors
    /// [`CapabilityError`] if it does not.
    fn check(&self, spoken: Version) -> Result<(), CapabilityError> {
        let needed = self.needs();
        if needed <= spoken {
            return Ok(());
        }
        Err(CapabilityError { protocol: Self::PROTOCOL, needed, spoken })
    }
}
