//! The `hookward` program: arguments in, exit code out.

use std::process::ExitCode;

use clap::Parser as _;
use hookward::cli::Cli;

fn main() -> ExitCode {
    Cli::parse().run()
}
