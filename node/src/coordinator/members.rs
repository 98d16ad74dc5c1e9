//! Who becomes a member, and how members stay it: join tokens, certificates, their renewal.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::Result;
use ractor::ActorRef;
use ractor::rpc::CallResult;
use sixfold_coordinator::actor::CoordinatorMessage;
use sixfold_coordinator::message::{ClientReply, ClientRequest, RequestId, TokenRequest, TokenRole};
use sixfold_transport::identity::{Authority, Issued, MEMBER_LIFETIME, Peer, Role, USER_LIFETIME};
use sixfold_transport::{Endpoint, JoinRequest, Registration, serve_renewals};
use sixfold_wire::id::ContentHash;

/// How long the actor may take to judge a token.
const DECISION_TIMEOUT: Duration = Duration::from_secs(5);
/// States of a node whose name is free again.
const GONE: [&str; 2] = ["dead", "left"];

/// Signs for those who may join.
#[derive(Clone)]
pub(super) struct Members {
    authority: Arc<Authority>,
    actor: ActorRef<CoordinatorMessage>,
    /// Names of nodes that joined since the start, by the request that took them: they may not
    /// have said Hello yet.
    joined: Arc<Mutex<HashMap<String, RequestId>>>,
}

impl Members {
    pub(super) fn new(authority: Arc<Authority>, actor: ActorRef<CoordinatorMessage>) -> Self {
        Self { authority, actor, joined: Arc::default() }
    }

    /// Lets processes join, and nodes renew for as long as the registration lives.
    pub(super) fn serve(&self, endpoint: &Endpoint) -> Result<Registration> {
        let members = self.clone();
        endpoint.serve_joins(move |request| {
            let members = members.clone();
            Box::pin(async move { members.admit(request).await })
        })?;
        let authority = Arc::clone(&self.authority);
        Ok(serve_renewals(endpoint, Role::Node, move |peer, request| {
            tracing::info!(%peer, "renews its certificate");
            sign(&authority, peer, request)
        }))
    }

    /// Renews the coordinator's own certificate for as long as the process lives.
    pub(super) fn keep_own_certificate(&self, endpoint: Endpoint) {
        let authority = Arc::clone(&self.authority);
        tokio::spawn(async move {
            loop {
                let identity = endpoint.identity();
                crate::process::sleep_until(identity.renew_after()).await;
                let next = authority.issue_identity(identity.peer(), SystemTime::now(), MEMBER_LIFETIME);
                let taken =
                    next.map_err(anyhow::Error::from).and_then(|next| Ok(endpoint.set_identity(next)?));
                if let Err(error) = taken {
                    tracing::error!("the coordinator's certificate was not renewed: {error:#}");
                    tokio::time::sleep(Duration::from_mins(1)).await;
                }
            }
        });
    }

    async fn admit(&self, join: JoinRequest) -> Result<Issued, String> {
        let peer = Peer::joining(join.role, &join.name).map_err(|error| error.to_string())?;
        let request = RequestId(ContentHash::of(&join.signing_request).to_string());
        if join.role == Role::Node {
            self.check_name(&join.name, &request).await?;
        }
        let hash = *join.secret_hash.as_bytes();
        let used = TokenRequest::Use { hash, request: request.clone() };
        let role = match self.ask(ClientRequest::Token(used)).await? {
            ClientReply::TokenAccepted(role) => role,
            ClientReply::Refused(refusal) => return Err(refusal.to_string()),
            other => return Err(format!("unexpected answer {other:?}")),
        };
        if role != token_role(join.role) {
            return Err(format!("this token is not for a {}", join.role));
        }
        tracing::info!(%peer, "joins the cluster");
        if join.role == Role::Node {
            self.joined.lock().unwrap_or_else(PoisonError::into_inner).insert(join.name, request);
        }
        sign(&self.authority, &peer, &join.signing_request)
    }

    /// Two nodes of one name would act for each other.
    async fn check_name(&self, name: &str, request: &RequestId) -> Result<(), String> {
        let taken_now = self.joined.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
        if taken_now.as_ref() == Some(request) {
            return Ok(());
        }
        let ClientReply::Nodes(nodes) = self.ask(ClientRequest::Nodes).await? else {
            return Err("the coordinator does not know its nodes".to_owned());
        };
        let known = nodes.iter().find(|node| node.node.node.as_str() == name);
        let taken = known.map_or(taken_now.is_some(), |node| !GONE.contains(&node.state.as_str()));
        if taken {
            return Err(format!(
                "a node called `{name}` is a member already: choose another name with `--name`, or start the \
                 daemon with the `--dir` that holds its identity"
            ));
        }
        Ok(())
    }

    async fn ask(&self, request: ClientRequest) -> Result<ClientReply, String> {
        let wrap = |reply| CoordinatorMessage::Request { request, reply };
        match self.actor.call(wrap, Some(DECISION_TIMEOUT)).await {
            Ok(CallResult::Success(reply)) => Ok(reply),
            Ok(_) | Err(_) => Err("the coordinator is too busy to decide; try again".to_owned()),
        }
    }
}

fn token_role(role: Role) -> TokenRole {
    if role == Role::Node { TokenRole::Node } else { TokenRole::User }
}

fn sign(authority: &Authority, peer: &Peer, request: &[u8]) -> Result<Issued, String> {
    let lifetime = if peer.role() == Role::User { USER_LIFETIME } else { MEMBER_LIFETIME };
    authority.issue(request, peer, SystemTime::now(), lifetime).map_err(|error| error.to_string())
}
