//! The `lorikeet` command: one binary that serves (`serve`), is its own router (`router`), measures (`bench`)
//! and explains itself (`doctor`).
//!
//! What belongs to no single subcommand is here: parsing, logging, exit codes. Exit code 2 means that the
//! command line is wrong, 1 that something failed; either way the last line on stderr says what and how to
//! mend it.

pub mod check;
pub mod cli;
pub mod doctor;
pub mod environment;
pub mod hardware;
pub mod logs;
pub mod plan;
pub mod ranks;
pub mod role;
pub mod run_directory;
pub mod serve;
pub mod supervise;

use std::ffi::OsString;
use std::process::ExitCode;

use cli::Command;

/// The command line is wrong.
const USAGE: u8 = 2;

/// Parses the command line and does what it says.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let _written = logs::WrittenAtEnd;
    let command = match cli::parse(args) {
        Ok(cli) => cli.command,
        Err(error) => return usage(&error),
    };
    match dispatch(command) {
        Ok(code) => code,
        Err(error) => match error.downcast_ref::<clap::Error>() {
            Some(error) => usage(error),
            None => fail(&format!("{error:#}"), 1),
        },
    }
}

fn dispatch(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Serve(args) => {
            logs::init(args.json_output, args.log_level)?;
            serve::serve(*args)
        }
        Command::Router(args) => {
            logs::init(args.config.telemetry.json_output, args.log_level)?;
            let runtime = many_threads()?;
            let ended = runtime.block_on(lorikeet_router::run(args.config));
            // Nothing is in flight; a disk that hangs while it is looked at must not hold up the end.
            runtime.shutdown_background();
            ended?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Bench(args) => {
            many_threads()?.block_on(lorikeet_bench::run(*args))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Doctor(args) => doctor::doctor(&args),
    }
}

fn many_threads() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()
}

fn usage(error: &clap::Error) -> ExitCode {
    if error.use_stderr() {
        return fail(cli::one_line(error).trim_start_matches("error: "), USAGE);
    }
    // --help or --version; whoever closed the pipe does not want to read it.
    let _ = error.print();
    ExitCode::SUCCESS
}

fn fail(error: &str, code: u8) -> ExitCode {
    logs::last_word(&error.replace('\n', " "));
    ExitCode::from(code)
}
