//! The `hookward` program: arguments in, exit code out.

use std::process::ExitCode;

use hookward::cli::Cli;

/// Gives the memory of bodies back to the system, and is faster than the system's own.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    Cli::from_arguments().map_or_else(|code| code, Cli::run)
}
