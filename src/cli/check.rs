//! `check`: is this configuration right, and what does it come to?

use std::{io::Write as _, time::SystemTime};

use clap::Args;

use super::{Outcome, ServeArgs, print};
use crate::config;

/// What is checked.
#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    sources: ServeArgs,
    /// Print JSON instead of TOML
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: CheckArgs) -> Outcome {
    let config = config::load(&args.sources.sources(), SystemTime::now())?;
    for warning in &config.warnings {
        // Advice: with stderr closed nobody wants it.
        let _ = writeln!(std::io::stderr(), "hookward: warning: {warning}");
    }
    if args.json {
        print(&format!("{:#}\n", config.effective_json()))
    } else {
        print(&config.effective_toml())
    }
}
