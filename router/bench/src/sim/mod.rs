//! A shard without a model: it keeps the protocol, computes tokens from a hash, and fails when told to.
//!
//! It reads its "context" back through the block tables that the router sent, so a block reused wrongly or not released
//! shows in the tokens. [`expected`] says what a right router streams.

mod adapters;
mod model;
mod service;

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    ops::Range,
    os::unix::net::UnixListener,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

pub use adapters::{Store, digest};
use lorikeet_proto::v1::{WarmupRequest, shard_server::ShardServer};
pub use model::{expected, next_token};
use service::Service;
use tokio::{net, runtime, sync::watch};
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::{Request, Status, transport::Server};

/// What the shard is like.
#[derive(Clone, Debug)]
pub struct SimConfig {
    pub rank: u32,
    pub world_size: u32,
    /// Of rank 0: where the others are that are on another machine, by rank, and the token they want to see.
    pub endpoints: Vec<String>,
    pub token: String,
    /// On its machine.
    pub local_rank: u32,
    pub vocab_size: u32,
    pub max_position_embeddings: u32,
    pub num_blocks: u32,
    /// Time that every step takes, and each token in it.
    pub step_time: Duration,
    pub token_time: Duration,
    /// How sequences end by themselves.
    pub eos: Option<Eos>,
    /// The tokens that are sampled, and the one of `eos`.
    pub sampled: Range<u32>,
    /// Bytes of every adapter, in the store, in host memory and in a device slot.
    pub adapter_bytes: u64,
    /// Bytes of adapters on the device.
    pub adapter_budget: u64,
    pub warmup_time: Duration,
    /// What fetching and staging an adapter takes.
    pub fetch_time: Duration,
    pub stage_time: Duration,
    /// The disk: shared by the ranks, and kept when one is started again with this configuration.
    pub store: Store,
}

/// The token that ends a sequence, and once in how many it is sampled.
#[derive(Clone, Copy, Debug)]
pub struct Eos {
    pub token: u32,
    pub once_in: u64,
}

impl Default for SimConfig {
    fn default() -> Self {
        Self {
            rank: 0,
            world_size: 1,
            endpoints: Vec::new(),
            token: String::new(),
            local_rank: 0,
            vocab_size: 256,
            max_position_embeddings: 4096,
            num_blocks: 4096,
            step_time: Duration::ZERO,
            token_time: Duration::ZERO,
            eos: None,
            sampled: 0..256,
            adapter_bytes: 1 << 20,
            adapter_budget: 64 << 20,
            warmup_time: Duration::ZERO,
            fetch_time: Duration::ZERO,
            stage_time: Duration::ZERO,
            store: Store::default(),
        }
    }
}

/// What was asked of a shard, and what it is told to do wrong.
#[derive(Debug)]
pub struct Control {
    pub fetches: AtomicU64,
    pub stagings: AtomicU64,
    pub drops: AtomicU64,
    /// Adapters in host memory.
    pub staged: AtomicU64,
    /// The next staging is never answered.
    pub hang_staging: AtomicBool,
    /// What is staged from now on is gone at once.
    pub forgetful: AtomicBool,
    pub steps: AtomicU64,
    /// Sequence slots in use after the last step.
    pub live_slots: AtomicU64,
    /// Rows whose adapter slot was empty or whose block was missing: the router's mistakes.
    pub violations: AtomicU64,
    /// A sequence whose context holds this token fails with `numeric_error`; `u32::MAX`: none.
    pub poison: AtomicU32,
    /// Steps are answered with another id.
    pub wrong_ids: AtomicBool,
    frozen: watch::Sender<bool>,
    warmup: Mutex<Option<WarmupRequest>>,
}

impl Control {
    fn new() -> Self {
        Self {
            fetches: AtomicU64::new(0),
            stagings: AtomicU64::new(0),
            drops: AtomicU64::new(0),
            staged: AtomicU64::new(0),
            hang_staging: AtomicBool::new(false),
            forgetful: AtomicBool::new(false),
            steps: AtomicU64::new(0),
            live_slots: AtomicU64::new(0),
            violations: AtomicU64::new(0),
            poison: AtomicU32::new(u32::MAX),
            wrong_ids: AtomicBool::new(false),
            frozen: watch::Sender::new(false),
            warmup: Mutex::default(),
        }
    }

    /// Answers nothing until told otherwise, as a stopped process would.
    pub fn freeze(&self, frozen: bool) {
        self.frozen.send_replace(frozen);
    }

    /// The sizes that the router asked for last.
    pub fn sizes(&self) -> Option<WarmupRequest> {
        *self.warmup.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_sizes(&self, request: WarmupRequest) {
        *self.warmup.lock().unwrap_or_else(PoisonError::into_inner) = Some(request);
    }

    async fn thawed(&self) {
        self.frozen.subscribe().wait_for(|frozen| !frozen).await.ok();
    }

    pub fn count(counter: &AtomicU64) -> u64 {
        counter.load(Relaxed)
    }
}

/// A running shard, in threads of its own. Dropping it is its sudden death: every connection is cut.
pub struct SimShard {
    control: Arc<Control>,
    runtime: Option<runtime::Runtime>,
}

impl SimShard {
    /// Listens at `path`, in place of what is there.
    pub fn start(path: &Path, config: SimConfig) -> io::Result<Self> {
        if path.exists() {
            std::fs::remove_file(path)?;
        }
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        let (sim, service) = Self::new(config)?;
        if let Some(runtime) = &sim.runtime {
            let _guard = runtime.enter();
            let incoming = UnixListenerStream::new(net::UnixListener::from_std(listener)?);
            let service = ShardServer::new(service);
            runtime.spawn(Server::builder().add_service(service).serve_with_incoming(incoming));
        }
        Ok(sim)
    }

    /// Listens on TCP, as a shard on another machine does, to those who show its token. Returns where.
    pub fn start_apart(config: SimConfig) -> io::Result<(Self, SocketAddr)> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let token = config.token.clone();
        let (sim, service) = Self::new(config)?;
        if let Some(runtime) = &sim.runtime {
            let _guard = runtime.enter();
            let incoming = TcpListenerStream::new(net::TcpListener::from_std(listener)?);
            let service = ShardServer::with_interceptor(service, move |request: Request<()>| {
                let shown = request.metadata().get("lorikeet-token").and_then(|shown| shown.to_str().ok());
                if shown == Some(&token) { Ok(request) } else { Err(Status::unauthenticated("no token")) }
            });
            runtime.spawn(Server::builder().add_service(service).serve_with_incoming(incoming));
        }
        Ok((sim, address))
    }

    fn new(config: SimConfig) -> io::Result<(Self, Service)> {
        let control = Arc::new(Control::new());
        let runtime = runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name(format!("sim-{}", config.rank))
            .enable_all()
            .build()?;
        let service = Service::new(config, Arc::clone(&control));
        Ok((Self { control, runtime: Some(runtime) }, service))
    }

    pub fn control(&self) -> &Arc<Control> {
        &self.control
    }
}

impl Drop for SimShard {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
