//! The router's flags, accepted by `serve` and handed on to the router process as they were given.
//!
//! They are declared once, in the router. What is missing here is what the launcher sets itself.

use std::ffi::OsString;

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, parser::ValueSource};
use lorikeet_router::config::Config;

/// Flags that the launcher finds out for the router.
const SET_BY_LAUNCHER: [&str; 2] = ["shard_socket", "tokenizer_path"];

/// Router flags given on the command line. Those given by the environment reach the router the same way.
#[derive(Debug, Clone, Default)]
pub struct RouterFlags {
    argv: Vec<OsString>,
}

impl RouterFlags {
    /// The flags as they were given.
    pub fn argv(&self) -> &[OsString] {
        &self.argv
    }
}

fn flags() -> impl Iterator<Item = Arg> {
    let command = Config::augment_args(Command::new("router"));
    let flags: Vec<_> = command.get_arguments().filter(|flag| !is_ours(flag)).cloned().collect();
    flags.into_iter()
}

fn is_ours(flag: &Arg) -> bool {
    SET_BY_LAUNCHER.contains(&flag.get_id().as_str())
}

impl Args for RouterFlags {
    fn augment_args(command: Command) -> Command {
        flags().fold(command, |command, flag| {
            // `serve` has a flag of the same name: one value serves both.
            let shared = command.get_arguments().any(|own| own.get_id() == flag.get_id());
            if shared { command } else { command.arg(flag) }
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for RouterFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags_given = Self::default();
        flags_given.update_from_arg_matches(matches)?;
        Ok(flags_given)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        // The flags that the launcher shares are written by the plan, with the launcher's value.
        let shared = |flag: &Arg| {
            ["model_id", "adapter_root", "hostname", "port", "json_output"].contains(&flag.get_id().as_str())
        };
        for flag in flags().filter(|flag| !shared(flag)) {
            let id = flag.get_id().as_str();
            if matches.value_source(id) != Some(ValueSource::CommandLine) {
                continue;
            }
            let Some(name) = flag.get_long().map(|long| OsString::from(format!("--{long}"))) else {
                continue;
            };
            match flag.get_action() {
                ArgAction::SetTrue | ArgAction::SetFalse | ArgAction::Count => self.argv.push(name),
                _ => {
                    for value in matches.get_raw(id).into_iter().flatten() {
                        self.argv.extend([name.clone(), value.to_owned()]);
                    }
                }
            }
        }
        Ok(())
    }
}
