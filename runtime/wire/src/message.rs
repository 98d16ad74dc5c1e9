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

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Serialize, Deserialize)]
    enum Greeting {
        Hello,
        SinceTheNextVersion,
    }

    impl Message for Greeting {
        type Reply = ();
        const PROTOCOL: &'static str = "greeting";

        fn needs(&self) -> Version {
            match self {
                Self::Hello => Version::V1,
                Self::SinceTheNextVersion => Version::after(Version::NEWEST),
            }
        }
    }

    #[test]
    fn a_message_that_the_peer_does_not_know_is_not_sent() {
        assert_eq!(Greeting::Hello.check(Version::NEWEST), Ok(()));
        let refused = Greeting::SinceTheNextVersion.check(Version::NEWEST).unwrap_err();
        assert_eq!(refused.spoken, Version::NEWEST);
        assert!(refused.to_string().contains("greeting message needs version"), "{refused}");
    }
}
