//! `lorikeet serve`: check, prepare, plan, supervise.

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use lorikeet_router::config::Config;

use crate::cli::ServeArgs;
use crate::plan::{self, Host, Run};
use crate::ranks::Ranks;
use crate::run_directory::RunDirectory;
use crate::supervise::{Ending, Prepared, Signals, prepare, supervise};
use crate::{check, environment, hardware};

/// Runs until the server ends.
///
/// # Errors
/// One line naming the flag and the mend, or what the server died of.
pub fn serve(mut args: ServeArgs) -> anyhow::Result<ExitCode> {
    let host = Host {
        executable: environment::executable().context("cannot tell where this executable is")?,
        python: check::python(args.python.as_ref())?,
        cores: hardware::cores(),
        granted_gpus: environment::granted_gpus(),
        cache_dir: check::cache_dir(&args)?,
    };
    check::model(&args)?;
    // One thread, this one: children are killed by the kernel when the thread that started them ends.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    if args.download_only {
        return runtime.block_on(download(&args, &host));
    }
    check::devices(&args, &host)?;
    args.adapter_root = check::adapter_roots(&args.adapter_root)?;
    let config = router_config(&args)?;
    check::grace(&args, &config)?;
    let ranks = check::ranks(&args, &host)?;
    let address = if ranks.lead() { Some(check::address(&args)?) } else { None };
    let run_directory = RunDirectory::make(args.shard_uds_path.as_deref())?;
    check::socket_length(run_directory.path(), ranks.range())?;

    runtime.block_on(async {
        let mut signals = Signals::catch()?;
        let Some(prepared) = prepared(&args, &host, &mut signals).await? else {
            return Ok(ExitCode::SUCCESS);
        };
        let directory = run_directory.path().to_owned();
        let run = Run { prepared, directory, address, ranks, config };
        let plan = plan::plan(&args, &host, &run);
        let threads = plan::threads_per_shard(&args, &host);
        tracing::info!("loading the model: {} shard(s) of {threads} thread(s)", plan.shards.len());
        if run.ranks.span_machines() {
            let Ranks { first, world_size, master_addr, .. } = &run.ranks;
            tracing::info!(
                "from rank {first} of {world_size} on; rank 0, at {master_addr}, answers requests"
            );
        }
        match supervise(&plan, &mut signals).await? {
            Ending::Drained => {
                tracing::info!("ended in order");
                Ok(ExitCode::SUCCESS)
            }
            Ending::Cut(signal) => Ok(ExitCode::from(128 + signal as u8)),
        }
    })
}

/// The model alone: another server may have the port, and this machine need not be the one that serves.
async fn download(args: &ServeArgs, host: &Host) -> anyhow::Result<ExitCode> {
    let prepared = prepared(args, host, &mut Signals::catch()?).await?;
    report(&prepared.context("a signal came before the model was there")?.model_path);
    Ok(ExitCode::SUCCESS)
}

/// The files of the model; none when a signal came first.
async fn prepared(args: &ServeArgs, host: &Host, signals: &mut Signals) -> anyhow::Result<Option<Prepared>> {
    tracing::info!("preparing {}", args.model_id.name);
    prepare(&plan::prepare(args, host), signals).await.map_err(|error| of_model(args, error))
}

/// Most of what can be wrong with a model names the flag by itself.
fn of_model(args: &ServeArgs, error: anyhow::Error) -> anyhow::Error {
    let flag = format!("--model-id {}", args.model_id.name);
    if error.to_string().starts_with(&flag) { error } else { error.context(flag) }
}

/// The router's settings as the router process will read them, so that it refuses nothing once it is started.
fn router_config(args: &ServeArgs) -> anyhow::Result<Config> {
    #[derive(Parser)]
    struct Router {
        #[command(flatten)]
        config: Config,
    }
    let required =
        ["router", "--model-id", &args.model_id.name, "--tokenizer-path", ".", "--shard-socket", "."];
    let argv = required.into_iter().map(Into::into).chain(args.router.argv().iter().cloned());
    let config = Router::try_parse_from(argv)?.config;
    config.check()?;
    Ok(config)
}

#[expect(clippy::print_stdout, reason = "the answer of --download-only is data")]
fn report(model: &std::path::Path) {
    println!("{}", model.display());
}
