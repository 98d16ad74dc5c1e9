//! Asks a server for one address. Follows no redirect, undoes codings itself under limits, and
//! connects to public addresses only, unless a host is excepted by name.

mod resolver;

use std::error::Error;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, LOCATION, RETRY_AFTER};
use reqwest::{Client, Response};
use sixfold_warc::{ContentCoding, ContentDecoder, DecodeError, DecodeLimits};
use url::{Position, Url};

use self::resolver::{AddressRefused, NameNotFound, PublicResolver};
use crate::address::{PrivateHosts, is_public, literal};
use crate::options::CrawlOptions;
use crate::outcome::FailureClass;

/// What is asked for. Fixed, so that what goes into the archive is what was sent.
const ACCEPT: &str = "text/html,application/xhtml+xml,text/plain;q=0.9,*/*;q=0.1";
const ACCEPT_ENCODING: &str = "gzip, deflate";
/// A connection takes no longer than this, or than the whole request may.
const CONNECT_TIMEOUT_MS: u64 = 10_000;
/// An unwanted body up to this length is read to its end, so that the connection can serve again.
const DISCARD_BYTES_MAX: u64 = 64 << 10;

/// Why requests cannot be made at all.
#[derive(Debug, thiserror::Error)]
pub enum FetcherError {
    /// The process has not chosen a cryptographic provider for TLS.
    #[error("no TLS provider is installed in this process")]
    NoTlsProvider,
    /// The HTTP client cannot be set up.
    #[error("cannot set up the HTTP client: {0}")]
    Client(#[from] reqwest::Error),
}

/// Makes requests.
pub(crate) struct Fetcher {
    /// Resolves names to public addresses only.
    public: Client,
    /// Connects anywhere; used for excepted hosts.
    private: Client,
    exceptions: PrivateHosts,
    user_agent: String,
}

impl Fetcher {
    /// A fetcher that behaves as the options say.
    ///
    /// # Errors
    /// [`FetcherError`].
    pub(crate) fn new(options: &CrawlOptions) -> Result<Self, FetcherError> {
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            return Err(FetcherError::NoTlsProvider);
        }
        let builder = || {
            Client::builder()
                .redirect(reqwest::redirect::Policy::none())
                .retry(reqwest::retry::never())
                .referer(false)
                .no_proxy()
                .http1_only()
                .timeout(Duration::from_millis(options.timeout_ms))
                .connect_timeout(Duration::from_millis(options.timeout_ms.min(CONNECT_TIMEOUT_MS)))
                .pool_max_idle_per_host(1)
        };
        // Without trusted authorities on the machine the platform's verifier cannot be built; then
        // plain http still works, and no certificate is accepted.
        let build = |make: &dyn Fn() -> reqwest::ClientBuilder| match make().build() {
            Err(error) if error.is_builder() => {
                tracing::warn!(error = &error as &dyn Error, "https sites cannot be crawled");
                make().tls_certs_only([]).build()
            }
            built => built,
        };
        Ok(Self {
            public: build(&|| builder().dns_resolver(Arc::new(PublicResolver)))?,
            private: build(&builder)?,
            exceptions: PrivateHosts::new(&options.allow_private_hosts),
            user_agent: options.user_agent_field(),
        })
    }

    /// Asks for an address and waits for the header of the answer.
    ///
    /// # Errors
    /// The class of the failure.
    pub(crate) async fn get(&self, url: &Url) -> Result<Answer, FailureClass> {
        let excepted = self.exceptions.name(url);
        if !excepted && literal(url).is_some_and(|address| !is_public(address)) {
            return Err(FailureClass::PrivateAddress);
        }
        let client = if excepted { &self.private } else { &self.public };
        let request = client
            .get(url.clone())
            .header("accept", ACCEPT)
            .header("accept-encoding", ACCEPT_ENCODING)
            .header("user-agent", &self.user_agent);
        match request.send().await {
            Ok(response) => Ok(Answer { response, request_head: self.request_head(url) }),
            Err(error) => {
                let class = classify(&error);
                tracing::debug!(%url, class = class.as_str(), error = &error as &dyn Error, "request failed");
                Err(class)
            }
        }
    }

    fn request_head(&self, url: &Url) -> Vec<u8> {
        let target = &url[Position::BeforePath..Position::AfterQuery];
        let host = &url[Position::BeforeHost..Position::AfterPort];
        format!(
            "GET {target} HTTP/1.1\r\naccept: {ACCEPT}\r\naccept-encoding: {ACCEPT_ENCODING}\r\n\
             user-agent: {}\r\nhost: {host}\r\n\r\n",
            self.user_agent
        )
        .into_bytes()
    }
}

/// An answer whose body has not been read.
pub(crate) struct Answer {
    response: Response,
    /// The request as it was sent.
    pub request_head: Vec<u8>,
}

impl Answer {
    /// The status.
    pub(crate) fn status(&self) -> u16 {
        self.response.status().as_u16()
    }

    /// A field of the header; several of one name joined by commas, empty where there is none.
    pub(crate) fn field(&self, name: &str) -> String {
        let values = self.response.headers().get_all(name).iter();
        values.map(|value| String::from_utf8_lossy(value.as_bytes())).collect::<Vec<_>>().join(",")
    }

    /// `Content-Type`.
    pub(crate) fn content_type(&self) -> String {
        self.first(CONTENT_TYPE).unwrap_or_default()
    }

    /// Where a redirect leads.
    pub(crate) fn location(&self) -> Option<String> {
        matches!(self.status(), 301 | 302 | 303 | 307 | 308).then(|| self.first(LOCATION)).flatten()
    }

    /// `Retry-After`.
    pub(crate) fn retry_after(&self) -> Option<String> {
        self.first(RETRY_AFTER)
    }

    /// The address that answered.
    pub(crate) fn address(&self) -> Option<IpAddr> {
        self.response.remote_addr().map(|address| address.ip())
    }

    /// The header as it is archived: it describes the body with its codings undone, and keeps the
    /// fields about them under other names, as Common Crawl does.
    pub(crate) fn archived_head(&self, payload_bytes: usize) -> Vec<u8> {
        let status = self.response.status();
        let mut head =
            format!("HTTP/1.1 {} {}\r\n", status.as_u16(), status.canonical_reason().unwrap_or_default())
                .into_bytes();
        for (name, value) in self.response.headers() {
            if matches!(name.as_str(), "content-encoding" | "transfer-encoding" | "content-length") {
                head.extend_from_slice(b"x-crawl-");
            }
            head.extend_from_slice(name.as_str().as_bytes());
            head.extend_from_slice(b": ");
            head.extend_from_slice(value.as_bytes());
            head.extend_from_slice(b"\r\n");
        }
        head.extend_from_slice(format!("content-length: {payload_bytes}\r\n\r\n").as_bytes());
        head
    }

    /// Reads the body and undoes its coding.
    ///
    /// # Errors
    /// The class of the failure.
    pub(crate) async fn body(&mut self, limits: DecodeLimits) -> Result<Vec<u8>, FailureClass> {
        if self.response.content_length().is_some_and(|bytes| bytes > limits.bytes_max as u64) {
            return Err(FailureClass::TooLarge);
        }
        let mut decoder = self.decoder(limits)?;
        while let Some(piece) = self.piece().await? {
            decoder.push(piece.as_ref()).map_err(class_of_decoding)?;
        }
        decoder.finish().map_err(class_of_decoding)
    }

    /// Reads the body up to about `limits.bytes_max` and leaves the rest.
    ///
    /// # Errors
    /// The class of the failure.
    pub(crate) async fn beginning(mut self, limits: DecodeLimits) -> Result<Vec<u8>, FailureClass> {
        let mut decoder = self.decoder(limits)?;
        while let Some(piece) = self.piece().await? {
            match decoder.push(piece.as_ref()) {
                Err(DecodeError::TooLarge { .. }) => return Ok(decoder.into_beginning()),
                pushed => pushed.map_err(class_of_decoding)?,
            }
        }
        decoder.finish().map_err(class_of_decoding)
    }

    fn decoder(&self, limits: DecodeLimits) -> Result<ContentDecoder, FailureClass> {
        let name = self.first(CONTENT_ENCODING).unwrap_or_default();
        let coding = ContentCoding::named(&name).ok_or(FailureClass::Coding)?;
        Ok(ContentDecoder::new(coding, limits))
    }

    async fn piece(&mut self) -> Result<Option<impl AsRef<[u8]> + use<>>, FailureClass> {
        self.response.chunk().await.map_err(|error| classify(&error))
    }

    /// Ends the exchange without keeping the body.
    pub(crate) async fn discard(mut self) {
        if self.response.content_length().is_none_or(|bytes| bytes > DISCARD_BYTES_MAX) {
            return;
        }
        while let Ok(Some(_)) = self.response.chunk().await {}
    }

    fn first(&self, name: HeaderName) -> Option<String> {
        let headers: &HeaderMap = self.response.headers();
        headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
    }
}

fn class_of_decoding(error: DecodeError) -> FailureClass {
    match error {
        DecodeError::TooLarge { .. } => FailureClass::TooLarge,
        DecodeError::Ratio { .. } => FailureClass::Bomb,
        DecodeError::Broken(_) => FailureClass::Coding,
    }
}

fn classify(error: &reqwest::Error) -> FailureClass {
    let mut source: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(cause) = source {
        if cause.is::<AddressRefused>() {
            return FailureClass::PrivateAddress;
        }
        if cause.is::<NameNotFound>() {
            return FailureClass::Dns;
        }
        source = cause.source();
    }
    if error.is_timeout() {
        FailureClass::Timeout
    } else if error.is_connect() || error.is_body() || error.is_decode() {
        FailureClass::Connect
    } else {
        FailureClass::Protocol
    }
}
