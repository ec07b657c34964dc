//! `healthcheck`: is a hookward on this machine ready? For containers without a shell.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    time::{Duration, SystemTime},
};

use clap::Args;

use super::{Failure, Outcome, config_file, environment};
use crate::config::{self, Listen, Sources};

const PATIENCE: Duration = Duration::from_secs(3);

/// Who is asked.
#[derive(Debug, Args)]
pub(super) struct HealthcheckArgs {
    /// The admin address, such as 127.0.0.1:9464 [default: the configuration's]
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<String>,
    /// The configuration to take the address from [default: HOOKWARD_CONFIG]
    #[arg(long, value_name = "FILE")]
    config: Option<std::path::PathBuf>,
}

pub(super) fn run(args: HealthcheckArgs) -> Outcome {
    let address = match args.admin {
        Some(text) => Listen::parse(&text).ok_or_else(|| {
            Failure::Usage(vec![
                "--admin: expected an address such as 127.0.0.1:9464".to_owned(),
            ])
        })?,
        None => configured(config_file(args.config))?,
    };
    let failed = |what: String| Failure::Failed(format!("{address}: {what}"));
    let answer = ask(&address).map_err(|error| {
        failed(format!(
            "{error}; is hookward running, with admin.listen there?"
        ))
    })?;
    if answer.starts_with("HTTP/1.1 200 ") {
        Ok(())
    } else {
        Err(failed("not ready; its log says why".to_owned()))
    }
}

/// The first admin address of the configuration. What is wrong elsewhere in it is not the
/// question here.
fn configured(file: Option<std::path::PathBuf>) -> Result<Listen, Failure> {
    let sources = Sources {
        file,
        env: environment(),
        ..Sources::default()
    };
    match config::load(&sources, SystemTime::now()) {
        Ok(config) => config.admin_listen.into_iter().next().ok_or_else(|| {
            Failure::Usage(vec![
                "admin.listen is empty: there is nobody to ask".to_owned(),
            ])
        }),
        Err(_) if sources.file.is_none() => {
            Ok(Listen::Tcp(SocketAddr::from(([127, 0, 0, 1], 9464))))
        }
        Err(faults) => Err(faults.into()),
    }
}

fn ask(address: &Listen) -> std::io::Result<String> {
    const REQUEST: &[u8] = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let mut answer = String::new();
    match address {
        Listen::Plain(address) | Listen::Tcp(address) => {
            // Bound to every address means reachable at loopback.
            let mut address = *address;
            if address.ip().is_unspecified() {
                address.set_ip(match address {
                    SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
                    SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
                });
            }
            let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(REQUEST)?;
            stream.read_to_string(&mut answer)?;
        }
        Listen::Unix(path) => {
            let mut stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(REQUEST)?;
            stream.read_to_string(&mut answer)?;
        }
    }
    Ok(answer)
}
