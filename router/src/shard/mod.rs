//! The shards as the router sees them: one gRPC client per rank over a Unix socket, a deadline on every call.

mod session;

use std::{
    future::Future,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use futures::future::try_join_all;
use hyper_util::rt::TokioIo;
use lorikeet_proto::v1::{
    DropAdapterRequest, FetchAdapterProgress, FetchAdapterRequest, InfoRequest, InfoResponse,
    StageAdapterRequest, StageAdapterResponse, Step, WarmupRequest, WarmupResponse,
    shard_client::ShardClient,
};
pub use session::{Lost, Session};
use tokio::{net::UnixStream, sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Status,
    transport::{Channel, Endpoint},
};
use tower::service_fn;

/// Largest message: a result with log-probabilities of a long prompt stays far below it.
const MAX_MESSAGE: usize = 64 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Calls that only look something up.
const SHORT: Duration = Duration::from_secs(3);
/// Steps a rank may be behind in taking: more than are ever in flight.
const STEP_BUFFER: usize = 8;

/// All ranks. Connections are made when first used, and again when a shard comes back under the same path.
pub struct Group {
    paths: Vec<PathBuf>,
    /// Everything but the token path, which has a connection of its own.
    control: Vec<ShardClient<Channel>>,
}

impl Group {
    pub fn new(paths: &[PathBuf]) -> Self {
        Self { paths: paths.to_vec(), control: paths.iter().map(|path| client(path)).collect() }
    }

    pub fn world_size(&self) -> usize {
        self.paths.len()
    }

    /// What each rank serves. Also the sign of life: every rank has to answer within three seconds.
    pub async fn info(&self) -> Result<Vec<InfoResponse>, Status> {
        try_join_all(
            self.ranks().map(|mut rank| async move { call(SHORT, InfoRequest {}, |r| rank.info(r)).await }),
        )
        .await
    }

    /// Sizes memory on every rank; at the same time, since the ranks may exchange data.
    pub async fn warmup(
        &self,
        request: WarmupRequest,
        deadline: Duration,
    ) -> Result<Vec<WarmupResponse>, Status> {
        let calls =
            self.ranks().map(|mut rank| async move { call(deadline, request, |r| rank.warmup(r)).await });
        try_join_all(calls).await
    }

    /// Opens the token path on every rank, over fresh connections: nothing of an earlier stream can come through it.
    pub fn open(&self) -> Session {
        let mut session = Session::default();
        for (rank, path) in self.paths.iter().enumerate() {
            let (steps, receiver) = mpsc::channel::<Step>(STEP_BUFFER);
            let mut client = client(path);
            // A shard may send its first header only with its first result, so this is not waited for here.
            let results =
                async move { Ok(client.execute(ReceiverStream::new(receiver)).await?.into_inner()) };
            session.add(rank, steps, results);
        }
        session
    }

    /// Copies an adapter into the store, on rank 0; the ranks of one machine share it. Returns the last message.
    pub async fn fetch(
        &self,
        source: &str,
        id: &str,
        max_bytes: u64,
        deadline: Duration,
    ) -> Result<FetchAdapterProgress, Status> {
        let mut rank = self.control.first().cloned().ok_or_else(|| Status::unavailable("no shards"))?;
        let message = FetchAdapterRequest { source: source.to_owned(), id: id.to_owned(), max_bytes };
        within(deadline, async move {
            let mut request = Request::new(message);
            request.set_timeout(deadline);
            let mut progress = rank.fetch_adapter(request).await?.into_inner();
            let mut last = None;
            while let Some(message) = progress.message().await? {
                last = Some(message);
            }
            last.filter(|last| !last.digest.is_empty())
                .ok_or_else(|| Status::internal("a fetch ended without a digest"))
        })
        .await
    }

    /// Brings an adapter from the store into the host memory of every rank.
    pub async fn stage(&self, digest: &str, deadline: Duration) -> Result<Vec<StageAdapterResponse>, Status> {
        let calls = self.ranks().map(|mut rank| async move {
            let request = StageAdapterRequest { digest: digest.to_owned() };
            call(deadline, request, |r| rank.stage_adapter(r)).await
        });
        try_join_all(calls).await
    }

    /// Forgets an adapter on every rank.
    pub async fn drop_adapter(
        &self,
        digest: &str,
        from_store: bool,
        deadline: Duration,
    ) -> Result<(), Status> {
        let calls = self.ranks().map(|mut rank| async move {
            let request = DropAdapterRequest { digest: digest.to_owned(), from_store };
            call(deadline, request, |r| rank.drop_adapter(r)).await
        });
        try_join_all(calls).await.map(|_| ())
    }

    fn ranks(&self) -> impl Iterator<Item = ShardClient<Channel>> + '_ {
        self.control.iter().cloned()
    }
}

fn client(path: &Path) -> ShardClient<Channel> {
    let path = path.to_owned();
    // The address is never used: the connector knows the path.
    let channel = Endpoint::from_static("http://shard")
        .connect_timeout(CONNECT_TIMEOUT)
        .connect_with_connector_lazy(service_fn(move |_| {
            let path = path.clone();
            async move { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
        }));
    ShardClient::new(channel).max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE)
}

async fn call<M, R, F>(
    deadline: Duration,
    message: M,
    send: impl FnOnce(Request<M>) -> F,
) -> Result<R, Status>
where
    F: Future<Output = Result<tonic::Response<R>, Status>>,
{
    let mut request = Request::new(message);
    request.set_timeout(deadline);
    within(deadline, async { send(request).await.map(tonic::Response::into_inner) }).await
}

async fn within<T>(deadline: Duration, work: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    timeout(deadline, work)
        .await
        .unwrap_or_else(|_| Err(Status::deadline_exceeded(format!("no answer within {deadline:?}"))))
}

/// Whether a status was made here because the connection failed, and not sent by a shard.
pub fn is_transport(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
}
