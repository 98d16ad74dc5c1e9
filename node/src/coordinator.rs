//! `sixfold coordinator`: the coordinator's actor, its log, its certificate authority and its door.
//!
//! The actor decides ([`sixfold_coordinator`]); this module connects it to the network:
//! [`members`] signs certificates, [`bridge`] brings reports and requests to the mailbox, [`sender`]
//! takes commands to the nodes.

mod bridge;
mod members;
mod sender;

use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use ractor::{Actor, ActorRef};
use sixfold_coordinator::Options;
use sixfold_coordinator::actor::{CoordinatorActor, CoordinatorArguments, CoordinatorMessage};
use sixfold_transport::identity::{Authority, MEMBER_LIFETIME, Peer, USER_LIFETIME};
use sixfold_transport::{Endpoint, EndpointOptions};

use crate::cli::CoordinatorArgs;
use crate::home::Home;
use crate::local::READY_PREFIX;
use crate::process;

use members::Members;
use sender::ConnectedNodes;

/// The coordinator's name in its certificate.
const NAME: &str = "main";
/// The first user, whose identity lies in the coordinator's folder.
const FIRST_USER: &str = "admin";

/// Runs the coordinator until it is told to end.
pub(crate) async fn run(args: CoordinatorArgs) -> Result<()> {
    let now = SystemTime::now();
    let authority = Arc::new(Authority::open_or_create(&args.dir.join("authority.pem"), now)?);
    let identity = authority.issue_identity(&Peer::coordinator(NAME)?, now, MEMBER_LIFETIME)?;
    let endpoint = Endpoint::bind(identity, &EndpointOptions::new(args.listen))
        .context("the coordinator cannot listen; `--listen ADDR` chooses another address")?;
    let address = endpoint.local_address()?;
    let arguments = CoordinatorArguments {
        cluster: authority.cluster().clone(),
        options: Options { copies: args.copies, ..Options::default() },
        log: args.dir.join("log.sqlite"),
        sender: Arc::new(ConnectedNodes::new(endpoint.clone())),
    };
    let (actor, mut ended) =
        Actor::spawn(None, CoordinatorActor, arguments).await.context("the coordinator does not start")?;
    let user = authority.issue_identity(&Peer::user(FIRST_USER)?, now, USER_LIFETIME)?;
    Home::save(&args.dir, &user, address)?;
    let _door = open_door(&endpoint, &actor, authority)?;
    println!("{READY_PREFIX}{address}");
    tracing::info!(%address, dir = %args.dir.display(), "the coordinator is up");
    tokio::select! {
        () = process::end(args.with_parent) => {}
        _ = &mut ended => bail!("the coordinator's actor ended; its log says why"),
    }
    actor.stop(None);
    // The log's last batch is written before the process ends.
    let _ = ended.await;
    endpoint.shutdown("the coordinator has ended").await;
    Ok(())
}

/// Lets members join, renew, report and ask, for as long as the result lives.
fn open_door(
    endpoint: &Endpoint,
    actor: &ActorRef<CoordinatorMessage>,
    authority: Arc<Authority>,
) -> Result<bridge::Bridge> {
    let members = Members::new(authority, actor.clone());
    members.keep_own_certificate(endpoint.clone());
    let renewals = members.serve(endpoint)?;
    Ok(bridge::Bridge::open(endpoint, actor, renewals))
}
