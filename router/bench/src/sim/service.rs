//! The gRPC face of the simulated shard.

use std::{
    collections::HashSet,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use futures::Stream;
use lorikeet_proto::v1::{
    DropAdapterRequest, DropAdapterResponse, FetchAdapterProgress, FetchAdapterRequest, InfoRequest,
    InfoResponse, StageAdapterRequest, StageAdapterResponse, Step, StepResult, WarmupRequest, WarmupResponse,
    shard_server::Shard,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{Control, SimConfig, adapters, model::Model};

type Results = Pin<Box<dyn Stream<Item = Result<StepResult, Status>> + Send>>;
type Progress = Pin<Box<dyn Stream<Item = Result<FetchAdapterProgress, Status>> + Send>>;

#[derive(Clone)]
pub(super) struct Service {
    config: Arc<SimConfig>,
    control: Arc<Control>,
    /// Digests in host memory.
    staged: Arc<Mutex<HashSet<String>>>,
    /// Counts Execute streams: only the newest is answered.
    streams: Arc<AtomicU64>,
}

impl Service {
    pub(super) fn new(config: SimConfig, control: Arc<Control>) -> Self {
        Self { config: Arc::new(config), control, staged: Arc::default(), streams: Arc::default() }
    }

    fn change_staged(&self, change: impl FnOnce(&mut HashSet<String>)) {
        let mut staged = lock(&self.staged);
        change(&mut staged);
        self.control.staged.store(staged.len() as u64, Relaxed);
    }

    async fn execute_steps(
        self,
        stream: u64,
        mut steps: Streaming<Step>,
        results: mpsc::Sender<Result<StepResult, Status>>,
    ) {
        let mut model = Model::default();
        while let Ok(Some(step)) = steps.message().await {
            self.control.thawed().await;
            let rows = step.decode.as_ref().map_or(0, |decode| decode.slot.len())
                + step.prefill.as_ref().map_or(0, |prefill| prefill.tokens.len());
            let time = self.config.step_time + self.config.token_time.saturating_mul(rows as u32);
            if !time.is_zero() {
                tokio::time::sleep(time).await;
            }
            if self.streams.load(Relaxed) != stream {
                results.send(Err(Status::aborted("another stream was opened"))).await.ok();
                return;
            }
            let poison = self.control.poison.load(Relaxed);
            let (mut result, violations) =
                model.run(&step, &self.config, poison, |digest| lock(&self.staged).contains(digest));
            result.compute_us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
            if self.control.wrong_ids.load(Relaxed) {
                result.id += 1000;
            }
            self.control.steps.fetch_add(1, Relaxed);
            self.control.violations.fetch_add(violations, Relaxed);
            self.control.live_slots.store(model.live_slots() as u64, Relaxed);
            if results.send(Ok(result)).await.is_err() {
                return;
            }
        }
    }
}

#[tonic::async_trait]
impl Shard for Service {
    type ExecuteStream = Results;
    type FetchAdapterStream = Progress;

    async fn info(&self, _: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        self.control.thawed().await;
        Ok(Response::new(InfoResponse {
            model_id: "simulated".into(),
            base_digest: "0".repeat(64),
            dtype: "float32".into(),
            device_type: "cpu".into(),
            architecture: "SimulatedForCausalLM".into(),
            vocab_size: self.config.vocab_size,
            max_position_embeddings: self.config.max_position_embeddings,
            rank: self.config.rank,
            world_size: self.config.world_size,
            version: env!("CARGO_PKG_VERSION").into(),
            synchronous_moves: true,
            lora_targets: vec!["q_proj".into()],
            local_rank: self.config.local_rank,
            endpoints: self.config.endpoints.clone(),
            token: if self.config.rank == 0 { self.config.token.clone() } else { String::new() },
        }))
    }

    async fn warmup(&self, request: Request<WarmupRequest>) -> Result<Response<WarmupResponse>, Status> {
        self.control.thawed().await;
        self.control.set_sizes(request.into_inner());
        self.change_staged(HashSet::clear);
        tokio::time::sleep(self.config.warmup_time).await;
        self.streams.fetch_add(1, Relaxed);
        let (num_blocks, adapter_bytes) = (self.config.num_blocks, self.config.adapter_budget);
        Ok(Response::new(WarmupResponse { num_blocks, adapter_bytes }))
    }

    async fn execute(&self, request: Request<Streaming<Step>>) -> Result<Response<Results>, Status> {
        self.control.thawed().await;
        let stream = self.streams.fetch_add(1, Relaxed) + 1;
        let (sender, results) = mpsc::channel(8);
        tokio::spawn(self.clone().execute_steps(stream, request.into_inner(), sender));
        Ok(Response::new(Box::pin(ReceiverStream::new(results))))
    }

    async fn fetch_adapter(
        &self,
        request: Request<FetchAdapterRequest>,
    ) -> Result<Response<Progress>, Status> {
        self.control.thawed().await;
        self.control.fetches.fetch_add(1, Relaxed);
        let FetchAdapterRequest { id, max_bytes, .. } = request.into_inner();
        tokio::time::sleep(self.config.fetch_time).await;
        adapters::source(&id)?;
        let stored_bytes = self.config.adapter_bytes;
        if max_bytes > 0 && stored_bytes > max_bytes {
            return Err(Status::out_of_range(format!(
                "it has {stored_bytes} bytes, the bound is {max_bytes}"
            )));
        }
        let digest = adapters::digest_on(&id, self.config.rank);
        self.config.store.insert(digest.clone(), id);
        let last = FetchAdapterProgress {
            bytes_done: stored_bytes,
            bytes_total: stored_bytes,
            digest,
            stored_bytes,
        };
        Ok(Response::new(Box::pin(tokio_stream::once(Ok(last)))))
    }

    async fn stage_adapter(
        &self,
        request: Request<StageAdapterRequest>,
    ) -> Result<Response<StageAdapterResponse>, Status> {
        self.control.thawed().await;
        self.control.stagings.fetch_add(1, Relaxed);
        let digest = request.into_inner().digest;
        if self.control.hang_staging.swap(false, Relaxed) {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(self.config.stage_time).await;
        let id = self.config.store.id(&digest).ok_or_else(|| Status::not_found("not in the store"))?;
        adapters::loads(&id)?;
        if !self.control.forgetful.load(Relaxed) {
            self.change_staged(|staged| {
                staged.insert(digest);
            });
        }
        Ok(Response::new(StageAdapterResponse {
            host_bytes: self.config.adapter_bytes,
            device_bytes: self.config.adapter_bytes,
            max_rank: 8,
        }))
    }

    async fn drop_adapter(
        &self,
        request: Request<DropAdapterRequest>,
    ) -> Result<Response<DropAdapterResponse>, Status> {
        self.control.thawed().await;
        self.control.drops.fetch_add(1, Relaxed);
        let DropAdapterRequest { digest, from_store } = request.into_inner();
        self.change_staged(|staged| {
            staged.remove(&digest);
        });
        if from_store {
            self.config.store.remove(&digest);
        }
        Ok(Response::new(DropAdapterResponse {}))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
