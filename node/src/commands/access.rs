//! Tokens, logins and keys.

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use serde_json::json;
use sixfold_coordinator::message::{self, ClientReply, ClientRequest, KeyRequest, KeyView, TokenRequest};
use sixfold_transport::identity::{Clock, JoinToken, Role};
use sixfold_transport::join;

use super::{connect, print_json, table};
use crate::cli::{ClientArgs, KeyCommand, LoginArgs, TokenCommand, TokenRole};
use crate::client::{Client, unexpected};
use crate::home::{self, Home};

/// `sixfold token create`.
pub(crate) async fn token(command: TokenCommand) -> Result<()> {
    let TokenCommand::Create { role, uses, expires_minutes, client: args } = command;
    let client = connect(&args)?;
    let lifetime = Duration::from_secs(expires_minutes.saturating_mul(60));
    let token = create_token(&client, role, uses, lifetime).await?;
    if args.json {
        print_json(&json!({"token": token, "uses": uses, "expires_minutes": expires_minutes}));
    } else {
        println!("{token}");
        let coordinator = client.coordinator();
        match role {
            TokenRole::Node => {
                eprintln!("on the new node: sixfold node --join {coordinator} --token {token}")
            }
            TokenRole::User => eprintln!("for the new user: sixfold login {coordinator} --token {token}"),
        }
    }
    client.close().await;
    Ok(())
}

/// Makes a token; only its hash reaches the coordinator.
pub(crate) async fn create_token(
    client: &Client,
    role: TokenRole,
    uses: u32,
    lifetime: Duration,
) -> Result<String> {
    let now = SystemTime::now();
    let (peer_role, role) = match role {
        TokenRole::Node => (Role::Node, message::TokenRole::Node),
        TokenRole::User => (Role::User, message::TokenRole::User),
    };
    let identity = client.endpoint().identity();
    let expires = now.checked_add(lifetime).context("`--expires-minutes` is too large")?;
    let (token, record) = JoinToken::new(identity.cluster(), peer_role, uses, now, lifetime)?;
    let expires_ms = expires.duration_since(SystemTime::UNIX_EPOCH)?.as_millis() as u64;
    let hash = *record.secret_hash.as_bytes();
    client.request(ClientRequest::Token(TokenRequest::Create { hash, role, expires_ms, uses })).await?;
    Ok(token.to_string())
}

/// `sixfold login`.
pub(crate) async fn login(args: LoginArgs) -> Result<()> {
    let token: JoinToken = args.token.parse()?;
    if token.role != Role::User {
        bail!(
            "this token is for a {}, not for a user: `sixfold token create --role user` makes one",
            token.role
        );
    }
    let dir = args.home.map_or_else(home::default_dir, Ok)?;
    let name = args.name.to_ascii_lowercase();
    let identity = join(args.coordinator, &token, &name, &Clock::system()).await.context("cannot log in")?;
    Home::save(&dir, &identity, args.coordinator)?;
    println!("logged in as {}; the identity is in {}", identity.peer(), dir.display());
    Ok(())
}

/// `sixfold key ...`.
pub(crate) async fn key(command: KeyCommand) -> Result<()> {
    match command {
        KeyCommand::Create { name, client: args } => {
            let client = connect(&args)?;
            let key = create_key(&client, &name).await?;
            if args.json {
                print_json(&json!({"name": name, "key": key}));
            } else {
                println!("{key}");
                eprintln!("it is shown only now; use it as `Authorization: Bearer {key}`");
            }
            client.close().await;
            Ok(())
        }
        KeyCommand::List(args) => list_keys(&args).await,
        KeyCommand::Revoke { name, client: args } => {
            let client = connect(&args)?;
            client.request(ClientRequest::Key(KeyRequest::Revoke { name: name.clone() })).await?;
            if args.json {
                print_json(&json!({"revoked": name}))
            } else {
                println!("revoked `{name}`")
            }
            client.close().await;
            Ok(())
        }
    }
}

/// Makes an HTTP key; only its hash reaches the coordinator.
pub(crate) async fn create_key(client: &Client, name: &str) -> Result<String> {
    let key = format!("sk-{}", data_encoding::BASE64URL_NOPAD.encode(&rand::random::<[u8; 32]>()));
    let hash = *blake3::hash(key.as_bytes()).as_bytes();
    client.request(ClientRequest::Key(KeyRequest::Create { name: name.to_owned(), hash })).await?;
    Ok(key)
}

async fn list_keys(args: &ClientArgs) -> Result<()> {
    let client = connect(args)?;
    let keys = match client.request(ClientRequest::Key(KeyRequest::List)).await? {
        ClientReply::Keys(keys) => keys,
        other => return unexpected(&other),
    };
    if args.json {
        let keys: Vec<_> = keys.iter().map(|key| json!({"name": key.name, "revoked": key.revoked})).collect();
        print_json(&json!(keys));
    } else {
        let state = |key: &KeyView| if key.revoked { "revoked" } else { "valid" }.to_owned();
        let rows: Vec<_> = keys.iter().map(|key| vec![key.name.clone(), state(key)]).collect();
        table::print(&["name", "state"], &rows);
    }
    client.close().await;
    Ok(())
}
