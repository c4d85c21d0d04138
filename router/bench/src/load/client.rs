//! One request over one connection, its stream read as bytes: events are found, not parsed.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::{
    Request, StatusCode, Uri,
    body::Incoming,
    client::conn::http1::{self, SendRequest},
    header::{CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};

use super::api::Api;

/// What one request showed.
#[derive(Debug)]
pub(super) struct Sample {
    pub(super) start: Instant,
    /// When each event with a token came.
    pub(super) tokens_at: Vec<Instant>,
    pub(super) end: Instant,
    /// As the server counts them.
    pub(super) tokens: u64,
}

/// Where requests go.
#[derive(Clone, Debug)]
pub(super) struct Target {
    authority: Arc<str>,
    path: &'static str,
    timeout: Duration,
}

impl Target {
    pub(super) fn new(url: &str, path: &'static str, timeout: Duration) -> anyhow::Result<Self> {
        let uri: Uri = url.parse().with_context(|| format!("`{url}` is not a URL"))?;
        if uri.scheme_str() != Some("http") {
            bail!("`{url}`: expected http://HOST:PORT");
        }
        let host = uri.host().context("the URL has no host")?;
        let authority = format!("{host}:{}", uri.port_u16().unwrap_or(80)).into();
        Ok(Self { authority, path, timeout })
    }

    /// Whether anything listens.
    pub(super) async fn check(&self) -> anyhow::Result<()> {
        self.connect().await.map(drop)
    }

    async fn connect(&self) -> anyhow::Result<SendRequest<Full<Bytes>>> {
        let stream = TcpStream::connect(&*self.authority).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(sender)
    }
}

/// Whether a router at this URL says that it is ready.
pub(super) async fn is_ready(url: &str) -> bool {
    let answer = async {
        let target = Target::new(url, "/health", Duration::ZERO)?;
        let request = Request::get(target.path).header(HOST, &*target.authority).body(Full::default())?;
        anyhow::Ok(target.connect().await?.send_request(request).await?.status())
    };
    answer.await.is_ok_and(|status| status == StatusCode::OK)
}

/// A connection that is kept for the next request while requests succeed.
#[derive(Debug)]
pub(super) struct Client {
    target: Target,
    connection: Option<SendRequest<Full<Bytes>>>,
}

impl Client {
    pub(super) fn new(target: Target) -> Self {
        Self { target, connection: None }
    }

    pub(super) async fn request(&mut self, api: Api, body: Bytes) -> anyhow::Result<Sample> {
        let limit = self.target.timeout;
        match timeout(limit, self.exchange(api, body)).await {
            Ok(result) => result,
            Err(_) => bail!("no answer within {limit:?}"),
        }
    }

    async fn exchange(&mut self, api: Api, body: Bytes) -> anyhow::Result<Sample> {
        let mut connection = match self.connection.take() {
            Some(open) if !open.is_closed() => open,
            _ => self.target.connect().await?,
        };
        connection.ready().await?;
        let request = Request::post(self.target.path)
            .header(HOST, &*self.target.authority)
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))?;
        let start = Instant::now();
        let response = connection.send_request(request).await?;
        if response.status() != StatusCode::OK {
            let status = response.status();
            let body = response.into_body().collect().await?.to_bytes();
            bail!("{status}: {:.200}", String::from_utf8_lossy(&body));
        }
        let sample = read(response.into_body(), api, start).await?;
        self.connection = Some(connection);
        Ok(sample)
    }
}

async fn read(mut body: Incoming, api: Api, start: Instant) -> anyhow::Result<Sample> {
    let mut events = Events::new(api);
    let mut tokens_at = Vec::with_capacity(256);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        let now = Instant::now();
        for _ in 0..events.feed(&data)? {
            tokens_at.push(now);
        }
    }
    let tokens = events.total.context("the stream ended without its totals")?;
    Ok(Sample { start, tokens_at, end: Instant::now(), tokens })
}

/// Finds the ends of events in the pieces of a stream.
struct Events {
    token_mark: &'static str,
    total_mark: &'static str,
    /// The event that is not complete yet.
    rest: BytesMut,
    total: Option<u64>,
}

impl Events {
    fn new(api: Api) -> Self {
        let (token_mark, total_mark) = (api.token_mark(), api.total_mark());
        Self { token_mark, total_mark, rest: BytesMut::with_capacity(8192), total: None }
    }

    /// The number of events with a token that this piece completes.
    fn feed(&mut self, piece: &[u8]) -> anyhow::Result<usize> {
        self.rest.extend_from_slice(piece);
        let mut tokens = 0;
        while let Some(end) = self.rest.windows(2).position(|pair| pair == b"\n\n") {
            let event = self.rest.split_to(end + 2);
            let text = str::from_utf8(&event)?;
            if text.starts_with("data: {\"error") || text.starts_with("error:") {
                bail!("in the stream: {:.200}", text.trim());
            }
            tokens += usize::from(text.contains(self.token_mark));
            if let Some(place) = text.rfind(self.total_mark) {
                let digits = text[place + self.total_mark.len()..].trim_start();
                let length = digits.bytes().take_while(u8::is_ascii_digit).count();
                self.total = digits[..length].parse().ok().or(self.total);
            }
        }
        Ok(tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_found_wherever_the_pieces_end() {
        let stream = "data: {\"choices\":[{\"text\":\"é\",\"finish_reason\":null}]}\n\n\
            data: {\"choices\":[{\"text\":\"\",\"finish_reason\":\"length\"}]}\n\n: comment\n\n\
            data: {\"choices\":[],\"usage\":{\"completion_tokens\": 17}}\n\ndata: [DONE]\n\n";
        for size in [1, 2, 7, 1000] {
            let mut events = Events::new(Api::Openai);
            let tokens: usize = stream.as_bytes().chunks(size).map(|piece| events.feed(piece).unwrap()).sum();
            assert_eq!((tokens, events.total), (1, Some(17)), "{size}");
        }
    }

    #[test]
    fn an_error_event_fails_the_request() {
        assert!(
            Events::new(Api::Lorax)
                .feed(b"data: {\"error\":\"x\",\"error_type\":\"generation\"}\n\n")
                .is_err()
        );
    }

    #[test]
    fn only_plain_http_is_spoken() {
        let target = |url| Target::new(url, "/", Duration::ZERO);
        assert_eq!(&*target("http://localhost").unwrap().authority, "localhost:80");
        assert_eq!(&*target("http://[::1]:3000/").unwrap().authority, "[::1]:3000");
        assert!(target("https://x").is_err() && target("x").is_err());
    }
}
