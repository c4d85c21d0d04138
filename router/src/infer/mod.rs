//! From a dialect-free request to a stream of outputs: the one path every API goes through.

mod detokenizer;
mod generation;
mod stop;

use std::sync::Arc;

pub use generation::Generation;
use lorikeet_engine::{Priority, Request, RequestId, TenantId};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError, watch},
    time::{Instant, timeout_at},
};

use crate::{
    adapters::{AdapterSource, Registry, Staged},
    config::Config,
    driver::{Driver, Refused, Ticket},
    error::{Error, Invalid},
    model::ModelHandle,
    output::GenerationInfo,
    readiness::Readiness,
    request::{AdapterRef, GenerateRequest},
    telemetry::Metrics,
    validate::Validator,
};

/// How often a request may find that the shards were lost between staging its adapter and queueing it.
const STALE_RETRIES: usize = 3;

/// Takes requests. Cloning is cheap.
#[derive(Clone)]
pub struct Infer {
    shared: Arc<Shared>,
}

struct Shared {
    parts: Parts,
    /// Requests in the server. Closed when no more are taken.
    permits: Arc<Semaphore>,
}

/// What requests go through.
pub struct Parts {
    pub config: Arc<Config>,
    pub validator: Validator,
    pub registry: Arc<Registry>,
    pub driver: Driver,
    pub metrics: Arc<Metrics>,
    pub model: ModelHandle,
    pub readiness: watch::Receiver<Readiness>,
}

impl Infer {
    pub fn new(parts: Parts) -> Self {
        let most = parts.config.limits.max_concurrent_requests.min(Semaphore::MAX_PERMITS);
        let permits = Arc::new(Semaphore::new(most));
        Self { shared: Arc::new(Shared { parts, permits }) }
    }

    /// Validates, tokenises, resolves the adapter and queues. Returns once the request is queued; later
    /// failures come as the stream's last item. `best_of` and `n` are several calls.
    ///
    /// Dropping the future or the [`Generation`] takes the request back, wherever it is.
    pub async fn generate(&self, request: GenerateRequest) -> Result<Generation, Error> {
        let arrived = Instant::now();
        let deadline = arrived + self.shared.parts.config.limits.request_timeout;
        let started = timeout_at(deadline, self.shared.start(request, arrived, deadline)).await;
        started.unwrap_or(Err(Error::DeadlineExceeded)).inspect_err(|error| {
            self.shared.parts.metrics.rejected(error);
        })
    }

    /// Takes no more requests.
    pub fn close(&self) {
        self.shared.permits.close();
    }
}

impl Shared {
    async fn start(
        &self,
        request: GenerateRequest,
        arrived: Instant,
        deadline: Instant,
    ) -> Result<Generation, Error> {
        let Parts { validator, metrics, .. } = &self.parts;
        let permit = self.enter()?;
        let model = self.parts.model.get().ok_or(Error::NotReady)?;
        let GenerateRequest { prompt, adapter, params, request_id } = request;
        let adapter = match adapter {
            AdapterRef::Base => None,
            AdapterRef::Named { id, source } => {
                crate::adapters::name::check(&id)?;
                Some((id, source))
            }
        };
        let valid = validator.validate(prompt, &params, model).await?;
        let validation = arrived.elapsed();
        metrics.validated(validation);

        let prompt_tokens = valid.tokens.len();
        let detokenizer = detokenizer::Detokenizer::new(Arc::clone(validator.tokenizer()), &valid.tokens);
        let eos: Arc<[u32]> =
            if params.ignore_eos_token { Arc::default() } else { validator.tokenizer().eos().into() };
        let request = Request {
            id: RequestId(0),
            tenant: TenantId::default(),
            priority: Priority::default(),
            adapter: None,
            tokens: valid.tokens,
            max_new_tokens: valid.max_new_tokens,
            stop_tokens: eos,
            sampling: valid.sampling,
            prompt_logprobs: params.prompt_logprobs,
            deadline: None,
        };
        let ticket = self.submit(request, adapter.as_ref(), deadline).await?;
        let adapter = adapter.map(|(id, _)| id);
        let series = metrics.series(adapter.as_deref());
        series.accepted(prompt_tokens);
        let info = GenerationInfo {
            prompt_tokens: u32::try_from(prompt_tokens).unwrap_or(u32::MAX),
            prompt_entries: crate::validate::params::prompt_entries(&params, prompt_tokens),
            seed: valid.seed,
            prompt_text: valid.text,
            adapter,
            validation,
        };
        tracing::debug!(%request_id, prompt_tokens, adapter = info.adapter, "queued a request");
        let stop = stop::StopMatcher::new(params.stop, params.include_stop);
        Ok(Generation::new(
            info,
            ticket,
            permit,
            generation::Text { detokenizer, stop },
            Arc::clone(metrics),
            series,
            arrived,
        ))
    }

    /// A place in the server, if it takes requests and has one.
    fn enter(&self) -> Result<OwnedSemaphorePermit, Error> {
        self.check_ready()?;
        let permit = Arc::clone(&self.permits).try_acquire_owned().map_err(|refused| match refused {
            TryAcquireError::Closed => Error::Draining,
            TryAcquireError::NoPermits => Error::full(),
        })?;
        // The engine has the last word; this spares the tokeniser what it would refuse.
        let Parts { config, metrics, .. } = &self.parts;
        if metrics.engine().stats.queued_requests >= config.batching.max_waiting_requests {
            return Err(Error::full());
        }
        Ok(permit)
    }

    fn check_ready(&self) -> Result<(), Error> {
        match *self.parts.readiness.borrow() {
            Readiness::Starting | Readiness::ShardLost => Err(Error::NotReady),
            Readiness::Ready | Readiness::Draining => Ok(()),
        }
    }

    /// Stages the adapter and queues the request, again if the shards are lost in between.
    async fn submit(
        &self,
        request: Request,
        adapter: Option<&(String, AdapterSource)>,
        deadline: Instant,
    ) -> Result<Ticket, Error> {
        for _ in 0..STALE_RETRIES {
            let staged: Option<Staged> = match adapter {
                Some((id, source)) => {
                    // A load from shards that are gone would fail, and be remembered as the adapter's failure.
                    self.check_ready()?;
                    Some(self.parts.registry.resolve(id, *source).await?)
                }
                None => None,
            };
            match self.parts.driver.submit(request.clone(), staged, deadline).await {
                Ok(ticket) => return Ok(ticket),
                Err(Refused::Stale) => {}
                Err(refused) => return Err(refusal(&refused, &request, adapter)),
            }
        }
        Err(Error::NotReady)
    }
}

/// As the caller is told.
fn refusal(refused: &Refused, request: &Request, adapter: Option<&(String, AdapterSource)>) -> Error {
    match *refused {
        Refused::Stale | Refused::NotReady => Error::NotReady,
        Refused::Overloaded { retry_after } => Error::Overloaded { retry_after },
        Refused::AdapterTooLarge { given, limit } => {
            let id = adapter.map(|(id, _)| id.clone()).unwrap_or_default();
            let flag = if limit == 0 { "--max-active-adapters" } else { "--adapter-memory-bytes" };
            let message = format!("it takes {given} bytes on the device, its share is {limit} ({flag})");
            Error::AdapterTooLarge { id, message }
        }
        Refused::TooLong { limit } => {
            let max = u32::try_from(limit).unwrap_or(u32::MAX);
            Invalid::TotalTokens { max, input: request.tokens.len(), new: request.max_new_tokens }.into()
        }
        Refused::Internal => Error::Internal,
    }
}
