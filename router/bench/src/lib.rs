//! Measuring: a load generator for a running server, and a simulated shard to run the router without a model.

pub mod load;
pub mod sim;

use clap::Subcommand;

#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    Serve(load::Args),
    Router(load::router::Args),
}

/// # Errors
/// When what is to be measured cannot be reached.
pub async fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Serve(args) => load::run(args).await,
        Command::Router(args) => load::router::run(args).await,
    }
}
