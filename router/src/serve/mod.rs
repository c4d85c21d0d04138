//! Connections: accepted up to a bound, each with deadlines, told to end when the server stops.

mod activity;
mod io;
mod open_files;
mod stream;

use std::{convert::Infallible, io as std_io, net::SocketAddr, sync::Arc, time::Duration};

use activity::Activity;
use axum::Router;
use hyper::{
    Request,
    body::Incoming,
    service::{Service, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use io::Guarded;
use stream::{Response, Streams};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::config::Http;

/// Requests that one HTTP/2 connection may have open.
const MAX_STREAMS: u32 = 256;
/// Between two HTTP/2 pings, and how long their answer may take.
const PING: Duration = Duration::from_secs(20);
/// Bytes of a response that the kernel, and HTTP/2, hold for a client whose window is full.
const MAX_UNSENT: u32 = 128 << 10;
/// When accepting fails (file descriptors used up, say), before the next try.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Listens where the configuration says; port 0 is any free one.
pub async fn bind(http: &Http) -> std_io::Result<(TcpListener, SocketAddr)> {
    open_files::allow(http.max_connections);
    let listener = TcpListener::bind((http.hostname.as_str(), http.port)).await?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// Serves connections until `stopping`, then waits for those that are open. They finish the request they are at.
pub async fn serve(listener: TcpListener, router: Router, http: Http, stopping: CancellationToken) {
    let places = Arc::new(Semaphore::new(http.max_connections.min(Semaphore::MAX_PERMITS)));
    let server = Arc::new(Server { builder: builder(&http), router, http, stopping });
    let connections = TaskTracker::new();
    while let Some(accepted) = server.stopping.run_until_cancelled(accept(&listener, &places)).await {
        let (stream, place) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let server = Arc::clone(&server);
        connections.spawn(async move {
            server.attend(stream).await;
            drop(place);
        });
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

/// What all connections share.
struct Server {
    builder: Builder<Streams>,
    router: Router,
    http: Http,
    stopping: CancellationToken,
}

impl Server {
    /// Serves a connection to its end.
    async fn attend(&self, stream: TcpStream) {
        let (header_timeout, write_timeout) = (self.http.header_timeout, self.http.write_timeout);
        let stream = TokioIo::new(Guarded::new(stream, header_timeout, write_timeout));
        let activity = Activity::new();
        let router = TowerToHyperService::new(self.router.clone());
        let service = service_fn(|request: Request<Incoming>| {
            let open = activity.begin(request.version());
            let response = router.call(request);
            async { Ok::<_, Infallible>(response.await?.map(|body| Response::new(body, open))) }
        });
        let connection = self.builder.serve_connection(stream, service);
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = &mut connection => ended,
            () = async {
                tokio::select! {
                    () = self.stopping.cancelled() => {}
                    () = activity.idle(header_timeout) => {}
                }
            } => {
                connection.as_mut().graceful_shutdown();
                tokio::select! {
                    ended = connection => ended,
                    // What is left is in hyper, and the client does not take it.
                    () = activity.idle(write_timeout) => Ok(()),
                }
            }
        };
        if let Err(error) = ended {
            tracing::debug!(error, "a connection ended early");
        }
    }
}

async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> std_io::Result<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let place = Arc::clone(places).acquire_owned().await.map_err(std_io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    // Tokens are small, and each should leave at once.
    stream.set_nodelay(true).ok();
    // The kernel would keep megabytes for a client that has stopped reading, and we would not notice.
    #[cfg(target_os = "linux")]
    socket2::SockRef::from(&stream).set_tcp_notsent_lowat(MAX_UNSENT).ok();
    Ok((stream, place))
}

fn builder(http: &Http) -> Builder<Streams> {
    // `middleware::limit_headers` answers what is too large with a body. Past twice the bound hyper refuses it itself,
    // without one, as it does what it cannot parse.
    let headers = http.max_header_bytes.saturating_mul(2);
    let mut builder = Builder::new(Streams { write_timeout: http.write_timeout });
    builder.http1().timer(TokioTimer::new()).header_read_timeout(http.header_timeout).max_buf_size(headers);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_send_buf_size(MAX_UNSENT as usize)
        .max_header_list_size(u32::try_from(headers).unwrap_or(u32::MAX))
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING);
    builder
}
