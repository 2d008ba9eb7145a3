//! The REST client of the command line.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use clonegate_core::format::sparse::MEDIA_TYPE;
use clonegate_core::{Error, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use url::Url;

use super::failure::Failure;
use crate::lifecycle::views::Page;

/// Longest wait for a connection to the gateway.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Items asked for with each page of a list.
const PAGE: usize = 1000;

/// Talks to one gateway.
#[derive(Debug, Clone)]
pub(super) struct Client {
    http: reqwest::Client,
    server: Url,
    token: Option<String>,
}

fn certificates(file: &Path) -> Result<Vec<reqwest::Certificate>> {
    let wrong = || {
        Error::invalid("bad-certificate", "it has no certificates in PEM")
            .on(file.display().to_string())
            .hint("--ca takes a PEM file")
    };
    let text = std::fs::read(file).map_err(|e| wrong().because(e))?;
    let certificates = reqwest::Certificate::from_pem_bundle(&text).map_err(|e| wrong().because(e))?;
    if certificates.is_empty() { Err(wrong()) } else { Ok(certificates) }
}

/// What a request sends.
pub(super) enum Body {
    None,
    Json(serde_json::Value),
    /// An image, as a stream of sparse frames.
    Stream(reqwest::Body),
}

impl Body {
    fn json(value: &impl Serialize) -> Result<Self> {
        serde_json::to_value(value)
            .map(Self::Json)
            .map_err(|e| Error::internal("bad-request", "the request does not encode").because(e))
    }
}

impl Client {
    /// Talks to `server`; `authority` is a PEM file of certificates to trust besides those of the system.
    pub(super) fn new(server: &str, token: Option<String>, authority: Option<&Path>) -> Result<Self> {
        let wrong = |why: String| {
            Error::invalid("bad-server", why).on(server.to_owned()).hint("give --server http://HOST:PORT")
        };
        let mut url = Url::parse(server).map_err(|e| wrong(e.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
            return Err(wrong("it is no http URL".to_owned()));
        }
        if !url.path().ends_with('/') {
            url.set_path(&format!("{}/", url.path()));
        }
        crate::store::tls::install_provider();
        let authorities = authority.map(certificates).transpose()?.unwrap_or_default();
        let http = reqwest::Client::builder()
            .tls_certs_merge(authorities)
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .user_agent(concat!("clonegate/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|e| Error::internal("no-client", "the HTTP client cannot be made").because(e))?;
        Ok(Self { http, server: url, token })
    }

    /// `path` below `/v1/` of the server.
    pub(super) fn url(&self, path: &str, query: &[(&str, String)]) -> std::result::Result<Url, Failure> {
        let mut url = self
            .server
            .join(&format!("v1/{path}"))
            .map_err(|e| Error::invalid("bad-name", format!("{path:?} makes no URL: {e}")))?;
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        Ok(url)
    }

    pub(super) async fn send(
        &self,
        method: reqwest::Method,
        path: &str,
        query: &[(&str, String)],
        body: Body,
    ) -> std::result::Result<Bytes, Failure> {
        let mut request = self.http.request(method, self.url(path, query)?);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        let request = match body {
            Body::None => request,
            Body::Json(value) => request.json(&value),
            Body::Stream(stream) => request.header(reqwest::header::CONTENT_TYPE, MEDIA_TYPE).body(stream),
        };
        let response = request.send().await.map_err(|e| self.unreachable(e))?;
        let status = response.status();
        let body = response.bytes().await.map_err(|e| self.unreachable(e))?;
        if status.is_success() { Ok(body) } else { Err(Failure::of_answer(status.as_u16(), &body)) }
    }

    fn unreachable(&self, error: reqwest::Error) -> Failure {
        let server = self.server.as_str().trim_end_matches('/').to_owned();
        let what = if error.is_connect() { "no gateway answers there" } else { "the connection broke" };
        Error::unavailable("no-gateway", what)
            .on(server)
            .because(error.without_url())
            .hint("start one with `clonegate up` or `clonegate serve`, or say which with --server")
            .into()
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: reqwest::Method,
        path: &str,
        query: &[(&str, String)],
        body: Body,
    ) -> std::result::Result<T, Failure> {
        let body = self.send(method, path, query, body).await?;
        // An empty answer (204) reads as null.
        let text: &[u8] = if body.is_empty() { b"null" } else { &body };
        serde_json::from_slice(text)
            .map_err(|e| Error::internal("bad-answer", "the gateway's answer is not understood").because(e).into())
    }

    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> std::result::Result<T, Failure> {
        self.call(reqwest::Method::GET, path, &[], Body::None).await
    }

    /// A GET with a query.
    pub(super) async fn get_of<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, String)],
    ) -> std::result::Result<T, Failure> {
        self.call(reqwest::Method::GET, path, query, Body::None).await
    }

    /// Size and entity tag of a disk.
    pub(super) async fn head(&self, path: &str) -> std::result::Result<(u64, String), Failure> {
        let mut request = self.http.head(self.url(path, &[])?);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        let response = request.send().await.map_err(|e| self.unreachable(e))?;
        if !response.status().is_success() {
            // The answer to HEAD has no body that says why: that to GET has.
            self.send(reqwest::Method::GET, path, &[], Body::None).await?;
        }
        let header =
            |name| response.headers().get(name).and_then(|value: &reqwest::header::HeaderValue| value.to_str().ok());
        let size = header(reqwest::header::CONTENT_LENGTH).and_then(|size| size.parse().ok());
        match (size, header(reqwest::header::ETAG)) {
            (Some(size), Some(etag)) => Ok((size, etag.to_owned())),
            _ => Err(Error::internal("bad-answer", "the gateway does not say how large the disk is").on(path).into()),
        }
    }

    /// Bytes `from..to` of a disk, of that version.
    pub(super) async fn range(
        &self,
        path: &str,
        from: u64,
        to: u64,
        etag: &str,
    ) -> std::result::Result<Bytes, Failure> {
        use reqwest::header::{IF_MATCH, RANGE};
        let mut request = self.http.get(self.url(path, &[])?);
        request = request.header(RANGE, format!("bytes={from}-{}", to - 1)).header(IF_MATCH, etag);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        let response = request.send().await.map_err(|e| self.unreachable(e))?;
        let status = response.status().as_u16();
        let changed = || {
            Error::conflict("changed-meanwhile", "it was written to while it was read")
                .on(path)
                .hint("switch the machine off first, and try again")
        };
        let body = match response.bytes().await {
            Ok(body) => body,
            // An answer is of one version: it is broken off when the volume changes, and when the gateway goes. The version tells which.
            Err(_) if status == 206 && self.head(path).await.is_ok_and(|(_, now)| now != etag) => {
                return Err(changed().into());
            }
            Err(error) => return Err(self.unreachable(error)),
        };
        match status {
            206 if body.len() as u64 == to - from => Ok(body),
            412 => Err(changed().into()),
            206 => Err(Error::unavailable("cut-off", "an answer ended early").on(path).hint("try again").into()),
            status => Err(Failure::of_answer(status, &body)),
        }
    }

    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, String)],
        body: &impl Serialize,
    ) -> std::result::Result<T, Failure> {
        self.call(reqwest::Method::POST, path, query, Body::json(body)?).await
    }

    pub(super) async fn patch<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, String)],
        body: &impl Serialize,
    ) -> std::result::Result<T, Failure> {
        self.call(reqwest::Method::PATCH, path, query, Body::json(body)?).await
    }

    pub(super) async fn put<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, String)],
        body: &impl Serialize,
    ) -> std::result::Result<T, Failure> {
        self.call(reqwest::Method::PUT, path, query, Body::json(body)?).await
    }

    pub(super) async fn upload<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, String)],
        body: reqwest::Body,
    ) -> std::result::Result<T, Failure> {
        self.call(reqwest::Method::POST, path, query, Body::Stream(body)).await
    }

    pub(super) async fn delete<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, String)],
    ) -> std::result::Result<T, Failure> {
        self.call(reqwest::Method::DELETE, path, query, Body::None).await
    }

    /// All pages of a list.
    pub(super) async fn list<T: DeserializeOwned>(&self, path: &str) -> std::result::Result<Vec<T>, Failure> {
        self.list_of(path, &[]).await
    }

    /// All pages of a list, of what a query picks.
    pub(super) async fn list_of<T: DeserializeOwned>(
        &self,
        path: &str,
        picked: &[(&str, String)],
    ) -> std::result::Result<Vec<T>, Failure> {
        let mut all = Vec::new();
        let mut cursor: Option<String> = None;
        loop {
            let mut query = picked.to_vec();
            query.push(("limit", PAGE.to_string()));
            query.extend(cursor.map(|cursor| ("cursor", cursor)));
            let page: Page<T> = self.call(reqwest::Method::GET, path, &query, Body::None).await?;
            all.extend(page.items);
            match page.next {
                Some(next) => cursor = Some(next),
                None => return Ok(all),
            }
        }
    }
}
