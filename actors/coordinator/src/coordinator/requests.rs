//! What clients ask.

use sixfold_wire::id::{ArtifactId, JobId};

use super::{Coordinator, Ticket};
use crate::event::{AccessEvent, Event, JobEvent};
use crate::job::JobSpec;
use crate::message::{
    ArtifactPage, ClientReply, ClientRequest, JobState, KeyRequest, KeyView, Refusal, RequestId,
    TokenRequest, TokenRole,
};
use crate::state::access::Key;

/// Jobs that the log holds at most.
const JOBS_MAX: usize = 10_000;
/// Tokens, and keys, that the log holds at most.
const SECRETS_MAX: usize = 10_000;
/// Longest name of a key and longest request id, in bytes.
const NAME_BYTES_MAX: usize = 64;
/// Uses of one token.
const TOKEN_USES_MAX: u32 = 10_000;
/// Artefacts in one answer.
const ARTIFACTS_PER_PAGE: usize = 500;

impl Coordinator {
    pub(super) fn take_request(&mut self, request: ClientRequest, ticket: Ticket) {
        let answer = match request {
            ClientRequest::Watch { job, since } => match self.watch(job, since, ticket) {
                Ok(()) => return,
                Err(refusal) => Err(refusal),
            },
            ClientRequest::Submit { request, spec } => self.submit(request, spec).map(ClientReply::Submitted),
            ClientRequest::Jobs => Ok(ClientReply::Jobs(self.job_summaries())),
            ClientRequest::Job(id) => self.job_view(id).map(|view| ClientReply::Job(Box::new(view))),
            ClientRequest::Why(id) => self.placements(id).map(ClientReply::Why),
            ClientRequest::Logs { job, from } => {
                self.known(job).map(|()| ClientReply::Logs(self.live.page(job, from)))
            }
            ClientRequest::Cancel(id) => self.cancel(id),
            ClientRequest::Nodes => Ok(ClientReply::Nodes(self.node_views())),
            ClientRequest::Artifacts { after } => Ok(ClientReply::Artifacts(self.artifact_page(after))),
            ClientRequest::Token(request) => self.take_token(request),
            ClientRequest::Key(request) => self.take_key(request),
            ClientRequest::Spec(id) => self.spec(id),
            ClientRequest::Replan(replan) => self.replan(&replan),
            ClientRequest::Histories(id) => self.histories(id).map(ClientReply::Histories),
        };
        self.reply_client(ticket, answer.unwrap_or_else(ClientReply::Refused));
    }

    pub(super) fn known(&self, job: JobId) -> Result<(), Refusal> {
        if self.state.jobs.contains_key(&job) { Ok(()) } else { Err(Refusal::NoSuchJob(job)) }
    }

    fn submit(&mut self, request: RequestId, spec: JobSpec) -> Result<JobId, Refusal> {
        check_request(&request)?;
        if let Some(job) = self.state.requests.get(&request) {
            return Ok(*job);
        }
        spec.validate().map_err(|error| Refusal::InvalidJob(error.to_string()))?;
        check_room("jobs", self.state.jobs.len(), JOBS_MAX)?;
        let newest = self.state.jobs.last_key_value().map_or(JobId(0), |(id, _)| *id);
        let id = newest.next();
        self.record_job(id, JobEvent::Submitted { request, spec });
        Ok(id)
    }

    fn spec(&self, id: JobId) -> Result<ClientReply, Refusal> {
        let job = self.state.jobs.get(&id).ok_or(Refusal::NoSuchJob(id))?;
        Ok(ClientReply::Spec(Box::new(JobSpec::clone(&job.spec))))
    }

    fn cancel(&mut self, id: JobId) -> Result<ClientReply, Refusal> {
        self.known(id)?;
        self.end_job(id, JobState::Cancelled, None);
        Ok(ClientReply::Done)
    }

    fn take_token(&mut self, request: TokenRequest) -> Result<ClientReply, Refusal> {
        match request {
            TokenRequest::Create { hash, role, expires_ms, uses } => {
                self.create_token(hash, role, expires_ms, uses)
            }
            TokenRequest::Use { hash, request } => self.use_token(hash, request),
        }
    }

    fn create_token(
        &mut self,
        hash: [u8; 32],
        role: TokenRole,
        expires_ms: u64,
        uses: u32,
    ) -> Result<ClientReply, Refusal> {
        if let Some(token) = self.state.access.tokens.get(&hash) {
            let same = token.role == role && token.expires_ms == expires_ms && token.uses == uses;
            let clash = || Refusal::InvalidToken("another token has this hash".to_owned());
            return if same { Ok(ClientReply::Done) } else { Err(clash()) };
        }
        check_room("tokens", self.state.access.tokens.len(), SECRETS_MAX)?;
        if !(1..=TOKEN_USES_MAX).contains(&uses) {
            return Err(Refusal::InvalidToken(format!("a token has 1 to {TOKEN_USES_MAX} uses, not {uses}")));
        }
        if expires_ms <= self.now_ms {
            return Err(Refusal::InvalidToken("the token would have expired already".to_owned()));
        }
        self.record(Event::Access(AccessEvent::TokenCreated { hash, role, expires_ms, uses }));
        Ok(ClientReply::Done)
    }

    fn use_token(&mut self, hash: [u8; 32], request: RequestId) -> Result<ClientReply, Refusal> {
        check_request(&request)?;
        let token = self.state.access.tokens.get(&hash).ok_or(Refusal::UnknownToken)?;
        let (role, uses) = (token.role, token.uses);
        if token.used_by.contains(&request) {
            return Ok(ClientReply::TokenAccepted(role));
        }
        if token.expires_ms <= self.now_ms {
            return Err(Refusal::ExpiredToken { seconds: (self.now_ms - token.expires_ms) / 1000 });
        }
        if token.used_by.len() >= uses as usize {
            return Err(Refusal::UsedToken { uses });
        }
        self.record(Event::Access(AccessEvent::TokenUsed { hash, request }));
        Ok(ClientReply::TokenAccepted(role))
    }

    fn take_key(&mut self, request: KeyRequest) -> Result<ClientReply, Refusal> {
        match request {
            KeyRequest::Create { name, hash } => self.create_key(name, hash),
            KeyRequest::Revoke { name } => match self.state.access.keys.get(&name) {
                None => Err(Refusal::NoSuchKey(name)),
                Some(key) => {
                    if !key.revoked {
                        self.record(Event::Access(AccessEvent::KeyRevoked { name }));
                    }
                    Ok(ClientReply::Done)
                }
            },
            KeyRequest::List => {
                let keys = self.state.access.keys.iter();
                let view = |(name, key): (&String, &Key)| KeyView {
                    name: name.clone(),
                    created_ms: key.created_ms,
                    revoked: key.revoked,
                };
                Ok(ClientReply::Keys(keys.map(view).collect()))
            }
        }
    }

    /// A revoked key's name stays taken, so that a name in a log means one key.
    fn create_key(&mut self, name: String, hash: [u8; 32]) -> Result<ClientReply, Refusal> {
        match self.state.access.keys.get(&name) {
            Some(key) if key.hash == hash && !key.revoked => return Ok(ClientReply::Done),
            Some(_) => return Err(Refusal::KeyExists(name)),
            None => {}
        }
        check_room("keys", self.state.access.keys.len(), SECRETS_MAX)?;
        if !(1..=NAME_BYTES_MAX).contains(&name.len()) || name.chars().any(char::is_control) {
            let message = format!("a key's name has 1 to {NAME_BYTES_MAX} bytes without control characters");
            return Err(Refusal::InvalidName(message));
        }
        self.record(Event::Access(AccessEvent::KeyCreated { name, hash }));
        Ok(ClientReply::Done)
    }

    fn artifact_page(&self, after: Option<ArtifactId>) -> ArtifactPage {
        let mut rest = self.state.catalogue.after(after);
        let page = rest.by_ref().take(ARTIFACTS_PER_PAGE);
        let artifacts =
            page.map(|record| (record.summary.clone(), record.holders.iter().cloned().collect())).collect();
        ArtifactPage { artifacts, more: rest.next().is_some() }
    }
}

fn check_request(request: &RequestId) -> Result<(), Refusal> {
    if (1..=NAME_BYTES_MAX).contains(&request.0.len()) {
        return Ok(());
    }
    Err(Refusal::InvalidRequestId(request.0.chars().take(NAME_BYTES_MAX).collect()))
}

fn check_room(what: &str, held: usize, most: usize) -> Result<(), Refusal> {
    if held < most { Ok(()) } else { Err(Refusal::Full { what: what.to_owned(), held }) }
}
