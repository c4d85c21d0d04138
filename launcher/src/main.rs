//! The `lorikeet` command. Everything it does is in the library, where tests reach it.

use std::process::ExitCode;

fn main() -> ExitCode {
    lorikeet_launcher::run(std::env::args_os())
}
