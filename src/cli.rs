//! The command line: what can be asked of the program, and how it ends.
//!
//! Owns arguments, their help and the exit codes: 0 fine, 1 failed, 2 usage or configuration.
//! Errors go to stderr, one line each.

mod api;
mod check;
mod core_dump;
mod demo;
mod endpoints;
mod healthcheck;
mod later;
mod queue;
mod sample;
mod send;
mod serve;
mod tail;
mod verify;

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, CommandFactory as _, Parser, Subcommand};
use zeroize::Zeroizing;

use self::later::Later;
use crate::config::{self, Fault, Flags, Sources};

/// Usage or configuration.
const USAGE: u8 = 2;

/// Lets only genuine webhooks through: verifies, deduplicates, relays.
#[derive(Debug, Parser)]
#[command(version, about, arg_required_else_help = true, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gate
    Serve(ServeArgs),
    /// Check a configuration and print what is in effect, secrets as ***
    Check(Later<check::CheckArgs>),
    /// Send a signed sample event, as the sender's Test button does
    Send(Later<send::SendArgs>),
    /// Say whether a signature matches, and if not, what would have
    Verify(Later<verify::VerifyArgs>),
    /// Show everything on loopback: a gate, an application, genuine and forged events
    Demo(Later<demo::DemoArgs>),
    /// Show and change what is on disk, on a running instance or a stopped one
    Queue(Later<queue::QueueArgs>),
    /// Show requests as they come, through a running instance's API
    Tail(Later<tail::TailArgs>),
    /// List, make, change, switch, try and remove endpoints, through a running instance's API
    Endpoints(Box<Later<endpoints::EndpointsArgs>>),
    /// Print the JSON Schema of the configuration
    Schema,
    /// Print a shell's completions
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages: hookward.1 and one for each command
    Man {
        /// The directory they are written into
        directory: PathBuf,
    },
    /// Ask a running hookward whether it is ready
    Healthcheck(Later<healthcheck::HealthcheckArgs>),
}

/// Where a configuration comes from.
#[derive(Debug, Args)]
struct ServeArgs {
    /// TOML, or YAML by extension [default: HOOKWARD_CONFIG, or /etc/hookward/hookward.toml if
    /// present]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where verified events go; makes one endpoint named default
    #[arg(long, value_name = "URL")]
    upstream: Option<String>,
    /// The environment variable that holds the secret of that endpoint
    #[arg(long, value_name = "VARIABLE")]
    secret_env: Option<String>,
    /// The path of that endpoint [default: /]
    #[arg(long)]
    path: Option<String>,
    /// What that endpoint does with events
    #[arg(long, value_parser = ["relay", "queue"])]
    mode: Option<String>,
    /// Where senders connect, such as 0.0.0.0:8080; may be repeated
    #[arg(long, value_name = "ADDRESS")]
    listen: Vec<String>,
}

impl ServeArgs {
    fn sources(self) -> Sources {
        Sources {
            file: config_file(self.config),
            env: environment(),
            unreadable: unreadable(),
            flags: Flags {
                upstream: self.upstream,
                secret_env: self.secret_env,
                path: self.path,
                mode: self.mode,
                listen: self.listen,
            },
        }
    }
}

/// The configuration's file: what was named, or what the environment names; empty is unset.
fn config_file(named: Option<PathBuf>) -> Option<PathBuf> {
    let variable = std::env::var_os("HOOKWARD_CONFIG");
    named.or_else(|| variable.filter(|path| !path.is_empty()).map(PathBuf::from))
}

/// The names of our variables whose values are no text.
fn unreadable() -> Vec<String> {
    std::env::vars_os()
        .filter(|(_, value)| value.to_str().is_none())
        .filter_map(|(name, _)| name.into_string().ok())
        .filter(|name| name.starts_with("HOOKWARD_"))
        .collect()
}

/// The environment; what is not text cannot be configuration.
fn environment() -> Vec<(String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// The text in one variable, wiped when dropped; `None` where there is none, or no text.
fn hidden(variable: &str) -> Option<Zeroizing<String>> {
    std::env::var(variable).ok().map(Zeroizing::new)
}

/// How a command that did not do its work ends.
#[derive(Debug)]
enum Failure {
    /// It was tried and failed.
    Failed(String),
    /// It could not be tried.
    Usage(Vec<String>),
}

impl From<Vec<Fault>> for Failure {
    fn from(faults: Vec<Fault>) -> Self {
        Self::Usage(faults.iter().map(ToString::to_string).collect())
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

type Outcome = Result<(), Failure>;

impl Cli {
    /// Reads the command line.
    ///
    /// # Errors
    /// The exit code, when there is nothing to do: help was shown, or the usage is wrong and was
    /// said to be, in one line.
    pub fn from_arguments() -> Result<Self, ExitCode> {
        use clap::error::ErrorKind;
        let error = match Self::try_parse() {
            Ok(cli) => return Ok(cli),
            Err(error) => error,
        };
        let is_help = error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
        if is_help || !error.use_stderr() {
            // With the stream closed the exit code has to do.
            let _ = error.print();
            return Err(ExitCode::from(
                u8::try_from(error.exit_code()).unwrap_or(USAGE),
            ));
        }
        let text = error.to_string();
        let said = text.strip_prefix("error: ").unwrap_or(&text).lines();
        let said: Vec<_> = said
            .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"))
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .collect();
        let line = said.join(" ");
        let _ = writeln!(io::stderr(), "hookward: {line}; see hookward --help");
        Err(ExitCode::from(USAGE))
    }

    /// Does what was asked.
    pub fn run(self) -> ExitCode {
        core_dump::forbid();
        let outcome = match self.command {
            Command::Serve(args) => serve::run(args.sources()),
            Command::Check(Later(args)) => check::run(args),
            Command::Send(Later(args)) => send::run(args),
            Command::Verify(Later(args)) => verify::run(args),
            Command::Demo(Later(args)) => demo::run(args),
            Command::Queue(Later(args)) => queue::run(args),
            Command::Tail(Later(args)) => tail::run(args),
            Command::Endpoints(args) => endpoints::run(args.0),
            Command::Schema => print(&format!("{:#}\n", config::json_schema())),
            Command::Completions { shell } => {
                let mut script = Vec::new();
                clap_complete::generate(shell, &mut Self::command(), "hookward", &mut script);
                print(&String::from_utf8_lossy(&script))
            }
            Command::Man { directory } => man(&directory),
            Command::Healthcheck(Later(args)) => healthcheck::run(args),
        };
        let (code, lines) = match outcome {
            Ok(()) => return ExitCode::SUCCESS,
            Err(Failure::Failed(line)) => (ExitCode::FAILURE, vec![line]),
            Err(Failure::Usage(lines)) => (ExitCode::from(USAGE), lines),
        };
        for line in lines {
            // With stderr closed the exit code has to do.
            let _ = writeln!(io::stderr(), "hookward: {line}");
        }
        code
    }
}

/// Writes the manual pages.
fn man(directory: &Path) -> Outcome {
    let written = clap_mangen::generate_to(Cli::command(), directory);
    written.map_err(|error| {
        let (kind, directory) = (error.kind(), directory.display());
        Failure::Failed(format!(
            "{directory}: {kind}; name a directory that is there and can be written to"
        ))
    })
}

/// Writes to stdout; a reader that has seen enough is no failure.
fn print(text: &str) -> Outcome {
    match io::stdout()
        .write_all(text.as_bytes())
        .and_then(|()| io::stdout().flush())
    {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
