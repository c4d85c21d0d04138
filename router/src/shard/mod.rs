//! The shards as the router sees them: one gRPC client per rank, a deadline on every call.

mod rank;
mod session;

use std::{future::Future, path::PathBuf, sync::Arc, time::Duration};

use futures::future::try_join_all;
use lorikeet_proto::v1::{
    DropAdapterRequest, FetchAdapterProgress, FetchAdapterRequest, InfoRequest, InfoResponse,
    StageAdapterRequest, StageAdapterResponse, Step, WarmupRequest, WarmupResponse,
};
use parking_lot::RwLock;
use rank::{Address, Client, Rank};
pub use session::{Lost, Session};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

/// Calls that only look something up.
const SHORT: Duration = Duration::from_secs(3);
/// Steps a rank may be behind in taking: more than are ever in flight.
const STEP_BUFFER: usize = 8;

/// All ranks.
pub struct Group {
    /// Of the ranks on this machine, from rank 0 on. A shard comes back under the same path.
    paths: Vec<PathBuf>,
    ranks: RwLock<Arc<[Rank]>>,
}

impl Group {
    pub fn new(paths: &[PathBuf]) -> Self {
        Self { paths: paths.to_vec(), ranks: RwLock::default() }
    }

    /// Learns what each rank serves, and from rank 0 where the ranks of other machines are: somewhere else
    /// after each restart. Connections are made anew, as an old one may lead nowhere and take minutes to say so.
    pub async fn meet(&self) -> Result<Vec<InfoResponse>, Status> {
        let mut addresses: Vec<_> = self.paths.iter().cloned().map(Address::Socket).collect();
        let first = addresses.first().ok_or_else(|| Status::unavailable("no shards"))?;
        let first = info(first.client()).await?;
        for at in first.endpoints.iter().skip(self.paths.len()).filter(|at| !at.is_empty()) {
            addresses.push(Address::tcp(at, &first.token)?);
        }
        let clients: Vec<Client> = addresses.iter().map(Address::client).collect();
        let infos = try_join_all(clients.iter().cloned().map(info)).await?;
        let ranks = addresses.into_iter().zip(clients).zip(&infos);
        *self.ranks.write() =
            ranks.map(|((address, control), info)| Rank::new(address, control, info)).collect();
        Ok(infos)
    }

    /// The sign of life: every rank has to answer within three seconds.
    pub async fn ping(&self) -> Result<(), Status> {
        self.on_all(info).await.map(|_| ())
    }

    /// Sizes memory on every rank; at the same time, since the ranks may exchange data.
    pub async fn warmup(
        &self,
        request: WarmupRequest,
        deadline: Duration,
    ) -> Result<Vec<WarmupResponse>, Status> {
        self.on_all(|mut rank| async move { call(deadline, request, |r| rank.warmup(r)).await }).await
    }

    /// Opens the token path on every rank, over fresh connections: nothing of an earlier stream can come through it.
    pub fn open(&self) -> Session {
        let mut session = Session::default();
        for (number, rank) in self.ranks().iter().enumerate() {
            let (steps, receiver) = mpsc::channel::<Step>(STEP_BUFFER);
            let mut client = rank.address.client();
            // A shard may send its first header only with its first result, so this is not waited for here.
            let results =
                async move { Ok(client.execute(ReceiverStream::new(receiver)).await?.into_inner()) };
            session.add(number, steps, results);
        }
        session
    }

    /// Copies an adapter into the store of every machine, which must find the same bytes. Returns the last
    /// message of rank 0.
    pub async fn fetch(
        &self,
        source: &str,
        id: &str,
        max_bytes: u64,
        deadline: Duration,
    ) -> Result<FetchAdapterProgress, Status> {
        let message = FetchAdapterRequest { source: source.to_owned(), id: id.to_owned(), max_bytes };
        let ranks = self.ranks();
        let stores = ranks.iter().enumerate().filter(|(_, rank)| rank.has_store);
        let fetches = stores.map(|(number, rank)| {
            let fetched = fetch(rank.control.clone(), message.clone(), deadline);
            async move { fetched.await.map(|last| (number, last)).map_err(|status| of_rank(number, status)) }
        });
        let mut fetched = try_join_all(fetches).await?.into_iter();
        let (_, first) = fetched.next().ok_or_else(not_met)?;
        match fetched.find(|(_, other)| other.digest != first.digest) {
            None => Ok(first),
            Some((number, other)) => Err(Status::failed_precondition(format!(
                "its files differ between machines: rank 0 has {}, rank {number} has {} (--adapter-root)",
                first.digest, other.digest
            ))),
        }
    }

    /// Brings an adapter from the store into the host memory of every rank.
    pub async fn stage(&self, digest: &str, deadline: Duration) -> Result<Vec<StageAdapterResponse>, Status> {
        self.on_all(|mut rank| async move {
            let request = StageAdapterRequest { digest: digest.to_owned() };
            call(deadline, request, |r| rank.stage_adapter(r)).await
        })
        .await
    }

    /// Forgets an adapter on every rank.
    pub async fn drop_adapter(
        &self,
        digest: &str,
        from_store: bool,
        deadline: Duration,
    ) -> Result<(), Status> {
        let dropped = self.on_all(|mut rank| async move {
            let request = DropAdapterRequest { digest: digest.to_owned(), from_store };
            call(deadline, request, |r| rank.drop_adapter(r)).await
        });
        dropped.await.map(|_| ())
    }

    fn ranks(&self) -> Arc<[Rank]> {
        Arc::clone(&self.ranks.read())
    }

    /// Calls every rank at the same time.
    async fn on_all<T, F>(&self, work: impl Fn(Client) -> F) -> Result<Vec<T>, Status>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let clients: Vec<Client> = self.ranks().iter().map(|rank| rank.control.clone()).collect();
        if clients.is_empty() {
            return Err(not_met());
        }
        try_join_all(clients.into_iter().map(work)).await
    }
}

fn not_met() -> Status {
    Status::unavailable("the shards have not answered yet")
}

async fn info(mut rank: Client) -> Result<InfoResponse, Status> {
    call(SHORT, InfoRequest {}, |request| rank.info(request)).await
}

async fn fetch(
    mut rank: Client,
    message: FetchAdapterRequest,
    deadline: Duration,
) -> Result<FetchAdapterProgress, Status> {
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

/// What went wrong on another machine says so.
fn of_rank(number: usize, status: Status) -> Status {
    if number == 0 || is_transport(&status) {
        return status;
    }
    Status::new(status.code(), format!("on the machine of rank {number}: {}", status.message()))
}

async fn call<M, R, F>(
    deadline: Duration,
    message: M,
    send: impl FnOnce(Request<M>) -> F,
) -> Result<R, Status>
where
    F: Future<Output = Result<Response<R>, Status>>,
{
    let mut request = Request::new(message);
    request.set_timeout(deadline);
    within(deadline, async { send(request).await.map(Response::into_inner) }).await
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
