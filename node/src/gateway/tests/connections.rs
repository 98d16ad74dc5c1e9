//! The gateway on a real socket: deadlines, caps, refusal to speak in the open.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::fake::Replicas;
use crate::gateway::{Gateway, GatewayError, GatewayOptions, TlsFiles};

async fn start(options: GatewayOptions) -> Result<Gateway, GatewayError> {
    // The gateway keeps the last view when its daemon is gone.
    super::start(options, Replicas::new(&[]).parts()).await
}

async fn ask(stream: &mut TcpStream) -> String {
    stream.write_all(b"GET /livez HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn plain_text_stays_on_loopback() {
    for listen in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"] {
        let listen = listen.parse().unwrap();
        let error = start(GatewayOptions { listen, ..GatewayOptions::default() }).await.err().unwrap();
        assert!(error.to_string().contains("without TLS"), "{error}");
    }
    let listen = "0.0.0.0:0".parse().unwrap();
    let tls = Some(TlsFiles { certificate: "/nowhere/a.pem".into(), key: "/nowhere/b.pem".into() });
    let error = start(GatewayOptions { listen, tls, ..GatewayOptions::default() }).await.err().unwrap();
    assert!(error.to_string().contains("/nowhere/a.pem"), "{error}");
}

#[tokio::test]
async fn idle_connections_keep_nobody_out() {
    let gateway = start(GatewayOptions { connections_max: 8, ..GatewayOptions::default() }).await.unwrap();
    let mut idle = Vec::new();
    for _ in 0..50 {
        idle.push(TcpStream::connect(gateway.address().unwrap()).await.unwrap());
    }
    let mut honest = TcpStream::connect(gateway.address().unwrap()).await.unwrap();
    assert!(ask(&mut honest).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn slow_heads_are_cut_off() {
    let gateway =
        start(GatewayOptions { header_deadline_ms: 50, ..GatewayOptions::default() }).await.unwrap();
    let mut slow = TcpStream::connect(gateway.address().unwrap()).await.unwrap();
    slow.write_all(b"GET /livez HTT").await.unwrap();
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(10), slow.read_to_end(&mut rest)).await;
    assert!(ended.is_ok(), "the connection is still open");
}

#[tokio::test]
async fn draining_closes_the_door() {
    let gateway = start(GatewayOptions::default()).await.unwrap();
    let address = gateway.address().unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    assert!(ask(&mut stream).await.starts_with("HTTP/1.1 200"));
    assert!(gateway.take_asked().is_empty());
    gateway.drain(Duration::from_secs(5)).await;
    assert!(TcpStream::connect(address).await.is_err());
}
