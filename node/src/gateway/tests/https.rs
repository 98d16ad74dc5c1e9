//! The gateway over HTTPS, on real sockets, with certificates made here.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{CertificateError, ClientConfig, RootCertStore};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::fake::{Fake, Fate, KEY, Replicas, sse};
use super::wire::{Received, post, receive};
use crate::gateway::{Gateway, GatewayError, GatewayOptions, TlsFiles};

const PATIENCE: Duration = Duration::from_secs(10);

/// A certificate authority of a test.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
}

impl Authority {
    fn new(name: &str) -> Self {
        let (key, mut params) = (KeyPair::generate().unwrap(), CertificateParams::default());
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let root = params.self_signed(&key).unwrap().der().clone();
        Self { issuer: Issuer::new(params, key), root }
    }

    /// The files of a certificate for `localhost` that is valid until the end of a year.
    fn issue(&self, folder: &Path, until_year: i32) -> TlsFiles {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(until_year, 12, 31);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let files = TlsFiles { certificate: folder.join("certificate.pem"), key: folder.join("key.pem") };
        std::fs::write(&files.certificate, certificate.pem()).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        files
    }

    /// A client that trusts this authority and nobody else.
    async fn connect(&self, address: SocketAddr) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = TcpStream::connect(address).await?;
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }

    /// Sends bytes and reads until the gateway says that it closes.
    async fn exchange(&self, address: SocketAddr, request: &str) -> Received {
        let mut stream = self.connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        receive(stream).await
    }
}

/// A gateway on every address of the machine, which it may with TLS only, as seen from this machine.
struct Https {
    address: SocketAddr,
    fake: Arc<Fake>,
    _gateway: Gateway,
    _replicas: Replicas,
}

async fn start(tls: TlsFiles, options: GatewayOptions) -> Result<Https, GatewayError> {
    let fake = Fake::new(Fate::Lives);
    let replicas = Replicas::new(&[Arc::clone(&fake)]);
    let listen = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    let options = GatewayOptions { listen, tls: Some(tls), ..options };
    let gateway = super::start(options, replicas.parts()).await?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, gateway.address().unwrap().port()));
    Ok(Https { address, fake, _gateway: gateway, _replicas: replicas })
}

async fn start_valid(authority: &Authority) -> Https {
    let folder = tempfile::tempdir().unwrap();
    start(authority.issue(folder.path(), 4000), GatewayOptions::default()).await.unwrap()
}

fn asked() -> String {
    post("/v1/completions", &json!({"model": "toy", "prompt": "a", "stream": true}).to_string())
}

#[tokio::test]
async fn keys_and_streamed_answers_go_over_tls() {
    let authority = Authority::new("one");
    let https = start_valid(&authority).await;
    let refused = authority.exchange(https.address, &asked().replace(KEY, "sk-other")).await;
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (401, &"invalid_api_key".into()));
    assert_eq!(https.fake.asked.load(Ordering::SeqCst), 0);
    let answer = authority.exchange(https.address, &asked()).await;
    assert_eq!(answer.status, 200);
    assert!(answer.head.contains("content-type: text/event-stream"), "{}", answer.head);
    let chunks = sse(&answer.body);
    let text: String = chunks.iter().filter_map(|chunk| chunk["choices"][0]["text"].as_str()).collect();
    assert_eq!(text, " w1 w2 w3 w4 w5 w6 w7 w8 w9 w10 w11 w12!");
}

#[tokio::test]
async fn plain_http_on_the_tls_port_gets_an_alert_and_nothing_else() {
    let authority = Authority::new("one");
    let https = start_valid(&authority).await;
    let mut plain = TcpStream::connect(https.address).await.unwrap();
    plain.write_all(asked().as_bytes()).await.unwrap();
    let mut seen = Vec::new();
    timeout(PATIENCE, plain.read_to_end(&mut seen)).await.expect("the connection stays open").unwrap();
    // One TLS record: type alert, version, two bytes long, level fatal (RFC 8446, sections 5.1 and 6).
    assert!(matches!(seen[..], [21, 3, _, 0, 2, 2, _]), "{seen:?}");
    assert_eq!(https.fake.asked.load(Ordering::SeqCst), 0);
    assert_eq!(authority.exchange(https.address, &asked()).await.status, 200);
}

#[tokio::test]
async fn whom_to_trust_is_for_the_client_to_decide() {
    let rejected = |error: std::io::Error| match error.get_ref().and_then(|error| error.downcast_ref()) {
        Some(rustls::Error::InvalidCertificate(error)) => error.clone(),
        _ => panic!("{error}"),
    };
    let authority = Authority::new("one");
    let https = start_valid(&authority).await;
    let stranger = Authority::new("other").connect(https.address).await.unwrap_err();
    assert_eq!(rejected(stranger), CertificateError::UnknownIssuer);
    let impostor = Authority::new("one").connect(https.address).await.unwrap_err();
    assert_eq!(rejected(impostor), CertificateError::BadSignature);
    assert_eq!(authority.exchange(https.address, &asked()).await.status, 200, "others are not disturbed");
    let folder = tempfile::tempdir().unwrap();
    let expired = start(authority.issue(folder.path(), 2020), GatewayOptions::default()).await.unwrap();
    let error = rejected(authority.connect(expired.address).await.unwrap_err());
    assert!(matches!(error, CertificateError::Expired | CertificateError::ExpiredContext { .. }), "{error}");
    assert_eq!(expired.fake.asked.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_handshake_that_does_not_come_is_cut_off() {
    let folder = tempfile::tempdir().unwrap();
    let options = GatewayOptions { header_deadline_ms: 50, ..GatewayOptions::default() };
    let https = start(Authority::new("one").issue(folder.path(), 4000), options).await.unwrap();
    let mut silent = TcpStream::connect(https.address).await.unwrap();
    let ended = timeout(PATIENCE, silent.read_to_end(&mut Vec::new())).await;
    assert!(ended.is_ok(), "the connection is still open");
}

#[tokio::test]
async fn a_key_of_another_certificate_is_refused() {
    let (authority, folders) = (Authority::new("one"), [(); 2].map(|()| tempfile::tempdir().unwrap()));
    let [one, other] = folders.each_ref().map(|folder| authority.issue(folder.path(), 4000));
    let mixed = TlsFiles { key: other.key, ..one };
    let error = start(mixed, GatewayOptions::default()).await.err().unwrap();
    assert!(matches!(error, GatewayError::Certificate(_)), "{error}");
}
