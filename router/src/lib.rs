//! HTTP in, steps out: validation, adapters, scheduling and streaming in front of a group of shards.
//!
//! Dependencies point inward: `api` knows `infer`; `infer` knows `validate`, `adapters` and `driver`;
//! `validate` knows `chat`; the driver knows `adapters`, the engine and `shard`. What they pass on lies below
//! them all, in `request`, `output`, `model`, `readiness` and `error`. What runs next is decided in
//! `lorikeet_engine`, without I/O.

pub mod adapters;
mod allocator;
pub mod api;
pub mod app;
pub mod chat;
mod clock;
pub mod config;
pub mod driver;
pub mod error;
pub mod infer;
pub mod middleware;
pub mod model;
pub mod output;
pub mod readiness;
pub mod request;
pub mod routes;
pub mod serve;
pub mod shard;
pub mod shutdown;
pub mod telemetry;
pub mod validate;

use std::{io, sync::Arc};

use tokio::{
    sync::watch,
    task::{JoinError, JoinHandle},
};
use tokio_util::sync::CancellationToken;

use crate::{
    adapters::Registry,
    app::AppState,
    config::{Config, ConfigError},
    driver::Driver,
    infer::Infer,
    model::ModelHandle,
    readiness::Readiness,
    shard::Group,
    shutdown::{Drain, Drained, Signals},
    telemetry::Metrics,
    validate::{StartError, Validator},
};

/// Why the router ended, other than because it was told to.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("cannot listen on {hostname}:{port} (--hostname, --port): {source}")]
    Bind { hostname: String, port: u16, source: io::Error },
    #[error("cannot use --tokenizer-path")]
    Tokenizer(#[from] StartError),
    #[error("cannot listen for signals: {0}")]
    Signals(io::Error),
    /// Without it the server would answer, but never serve.
    #[error("the {task} ended: {reason}")]
    TaskEnded { task: &'static str, reason: String },
    #[error("stopped by a second signal")]
    Cut,
}

/// Runs the router until it is told to stop. Returning an error, the process has to end with a failure: part
/// of the router may have died.
pub async fn run(config: Config) -> Result<(), RunError> {
    config.check()?;
    let (listener, address) = serve::bind(&config.http).await.map_err(|source| RunError::Bind {
        hostname: config.http.hostname.clone(),
        port: config.http.port,
        source,
    })?;
    let mut signals = Signals::listen().map_err(RunError::Signals)?;
    let (readiness, ready) = watch::channel(Readiness::default());
    let Started { state, driver, mut driving } = start(config, readiness.clone(), ready)?;
    let stopping = CancellationToken::new();
    let http = state.config.http.clone();
    let infer = state.infer.clone();
    let router = routes::router(state);
    let mut serving = tokio::spawn(serve::serve(listener, router, http.clone(), stopping.clone()));
    tracing::info!(%address, "listening");

    let stop = tokio::select! {
        stop = signals.next() => stop,
        ended = &mut driving => return Err(task_ended("driver", ended)),
        () = driver.stuck() => {
            return Err(RunError::TaskEnded { task: "driver", reason: "it makes no progress".to_owned() });
        }
        ended = &mut serving => return Err(task_ended("listener", ended)),
    };
    let served = async {
        (&mut serving).await.ok();
    };
    let drained = Drain { http, readiness, infer, driver, stopping }.run(stop, &mut signals, served).await;
    tracing::info!(?drained, "stopped");
    if drained == Drained::Cut { Err(RunError::Cut) } else { Ok(()) }
}

/// A router without its listener.
pub struct Started {
    pub state: AppState,
    pub driver: Driver,
    /// The driver's task; the router is of no use once it has ended.
    pub driving: JoinHandle<()>,
}

/// Starts everything behind the routes.
pub fn start(
    config: Config,
    readiness: watch::Sender<Readiness>,
    ready: watch::Receiver<Readiness>,
) -> Result<Started, StartError> {
    let config = Arc::new(config);
    let model = ModelHandle::default();
    let metrics = Arc::new(Metrics::new(config.telemetry.clone(), config.model.model_id.clone()));
    let validator = Validator::start(&config.model.tokenizer_path, &config.limits, model.clone())?;
    let group = Arc::new(Group::new(&config.shards.shard_socket));
    let base = &config.model.model_id;
    // However many wait for adapters, others find room.
    let waiting = config.limits.max_concurrent_requests - config.limits.max_concurrent_requests / 5;
    let adapters = config.adapters.clone();
    let registry = Arc::new(Registry::new(group.clone(), adapters, base, metrics.clone(), waiting));
    // So that what is wrong with a name is said at the start.
    registry.catalogue.list.refresh();
    let (driver, task) = driver::driver(driver::Parts {
        config: config.clone(),
        group,
        registry: registry.clone(),
        metrics: metrics.clone(),
        model: model.clone(),
        readiness,
    });
    let infer = Infer::new(infer::Parts {
        config: config.clone(),
        validator: validator.clone(),
        registry: registry.clone(),
        driver: driver.clone(),
        metrics: metrics.clone(),
        model: model.clone(),
        readiness: ready.clone(),
    });
    let state = AppState { config, infer, validator, registry, metrics, model, readiness: ready };
    Ok(Started { state, driver, driving: tokio::spawn(task) })
}

fn task_ended(task: &'static str, ended: Result<(), JoinError>) -> RunError {
    let reason = match ended {
        Ok(()) => "it stopped by itself".to_owned(),
        Err(error) => error.to_string(),
    };
    RunError::TaskEnded { task, reason }
}
