//! The running instance's API, asked from a terminal.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::SocketAddr,
    os::unix::net::UnixStream,
    path::PathBuf,
    time::Duration,
};

use clap::Args;
use http::Uri;
use serde_json::Value;
use zeroize::Zeroizing;

use super::{
    Failure, config_file, environment,
    sample::{self, Wire},
    send,
};
use crate::config::{self, Door, Listen, Sources};

/// How long a silent stream is waited for: it gives a sign of life every 15 seconds.
const SILENCE: Duration = Duration::from_secs(60);

/// Which instance.
#[derive(Debug, Args)]
pub(super) struct ApiArgs {
    /// The configuration that says where the API is and what opens it [default: HOOKWARD_CONFIG]
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// Where the API is, such as http://127.0.0.1:9464 [default: the configuration's]
    #[arg(long, value_name = "URL", global = true)]
    api: Option<Uri>,
    /// The file that holds the token [default: the configuration's]
    #[arg(long, value_name = "FILE", global = true)]
    token_file: Option<PathBuf>,
    /// The environment variable that holds the token
    #[arg(
        long,
        value_name = "VARIABLE",
        global = true,
        conflicts_with = "token_file"
    )]
    token_env: Option<String>,
}

/// An instance, and what opens its API.
pub(super) struct Api {
    place: Place,
    token: Zeroizing<String>,
}

enum Place {
    Socket(PathBuf),
    Url(Uri),
}

fn usage(line: impl Into<String>) -> Failure {
    Failure::Usage(vec![line.into()])
}

impl ApiArgs {
    /// Finds the instance.
    pub(super) fn find(self) -> Result<Api, Failure> {
        let given = match (&self.token_file, &self.token_env) {
            (Some(path), _) => {
                let read = std::fs::read(path);
                Some(read.map_err(|error| usage(format!("--token-file: {}", error.kind())))?)
            }
            (None, Some(name)) => Some(send::variable("--token-env", name)?.as_bytes().to_vec()),
            (None, None) => None,
        };
        let given = given.map(Zeroizing::new);
        let is_known = self.api.is_some() && given.is_some();
        let door = match is_known {
            true => None,
            false => Some(config::door(&Sources {
                file: config_file(self.config),
                env: environment(),
                ..Sources::default()
            })?),
        };
        let token = match (&given, &door) {
            (Some(bytes), _) => Zeroizing::new(bytes.trim_ascii().to_vec()),
            (None, Some(Door { settings, .. })) => {
                let token = settings.token.as_ref();
                let none =
                    "no token: name the configuration with --config FILE, or --token-file FILE";
                Zeroizing::new(token.ok_or_else(|| usage(none))?.bytes().to_vec())
            }
            (None, None) => Zeroizing::default(),
        };
        let place = match (self.api, door) {
            (Some(url), _) => Place::Url(url),
            (None, Some(door)) => place(&door)?,
            (None, None) => return Err(usage("--api: expected a URL")),
        };
        let text = str::from_utf8(&token).map_err(|_| usage("the token is no text"))?;
        Ok(Api {
            place,
            token: Zeroizing::new(text.to_owned()),
        })
    }
}

/// The first address the API listens at.
fn place(door: &Door) -> Result<Place, Failure> {
    let first = door.listen.first();
    match first.ok_or_else(|| usage("admin.listen is empty: there is nobody to ask"))? {
        Listen::Unix(path) => Ok(Place::Socket(path.clone())),
        Listen::Plain(address) | Listen::Tcp(address) => {
            // Bound to every address means reachable at loopback.
            let mut address = *address;
            if address.ip().is_unspecified() {
                address.set_ip(match address {
                    SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
                    SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
                });
            }
            let url = format!("http://{address}").parse();
            url.map(Place::Url)
                .map_err(|_| usage("admin.listen: no URL leads there"))
        }
    }
}

impl Api {
    /// Asks, and waits for the answer.
    pub(super) fn ask(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, Failure> {
        self.ask_with(method, path, "", body)
    }

    /// Changes what is still as it was read: of this revision.
    pub(super) fn put(
        &self,
        path: &str,
        revision: Option<&str>,
        body: &Value,
    ) -> Result<Value, Failure> {
        let line = revision.map(|revision| format!("If-Match: \"{revision}\"\r\n"));
        self.ask_with("PUT", path, &line.unwrap_or_default(), Some(body))
    }

    fn ask_with(
        &self,
        method: &str,
        path: &str,
        lines: &str,
        body: Option<&Value>,
    ) -> Result<Value, Failure> {
        let reply = self
            .open(method, path, lines, body)
            .and_then(sample::read_reply)
            .map_err(|error| self.silent(&error))?;
        let said: Value = match reply.header("content-type") {
            Some("application/toml") => String::from_utf8_lossy(&reply.body).into(),
            _ => serde_json::from_slice(&reply.body).unwrap_or_default(),
        };
        refused(reply.status, &said)?;
        Ok(said)
    }

    /// Every item of a listing.
    pub(super) fn all(&self, path: &str) -> Result<Vec<Value>, Failure> {
        let mut items = Vec::new();
        let mut cursor = String::new();
        loop {
            let part = self.ask("GET", &format!("{path}?limit=500{cursor}"), None)?;
            let some = part.get("items").and_then(Value::as_array);
            items.extend(some.into_iter().flatten().cloned());
            match part.get("next").and_then(Value::as_str) {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return Ok(items),
            }
        }
    }

    /// Server-sent events, one after the other: name and data. Ends when the instance does, or when
    /// `act` says so.
    pub(super) fn watch(
        &self,
        path: &str,
        mut act: impl FnMut(&str, &Value) -> Result<bool, Failure>,
    ) -> Result<(), Failure> {
        let failed = |error: io::Error| self.silent(&error);
        let mut lines = BufReader::new(self.open("GET", path, "", None).map_err(failed)?);
        let mut line = String::new();
        lines.read_line(&mut line).map_err(failed)?;
        let status = line
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok());
        while !line.trim_end().is_empty() {
            line.clear();
            lines.read_line(&mut line).map_err(failed)?;
        }
        if status != Some(200) {
            let mut text = Vec::new();
            // What it said of itself is enough where it says no more.
            let _ = lines.take(64 * 1024).read_to_end(&mut text);
            let said = serde_json::from_slice(&text).unwrap_or_default();
            return refused(status.unwrap_or_default(), &said);
        }
        let mut name = String::new();
        loop {
            line.clear();
            if lines.read_line(&mut line).map_err(failed)? == 0 {
                return Ok(());
            }
            match line.trim_end().split_once(": ") {
                Some(("event", text)) => text.clone_into(&mut name),
                Some(("data", text)) => {
                    let data = serde_json::from_str(text).unwrap_or_default();
                    if !act(&name, &data)? {
                        return Ok(());
                    }
                }
                Some(_) | None => {}
            }
        }
    }

    /// Opens a connection and writes a request, with these header lines; HTTP/1.0, whose answers end
    /// with the connection.
    fn open(
        &self,
        method: &str,
        path: &str,
        lines: &str,
        body: Option<&Value>,
    ) -> io::Result<Box<dyn Wire>> {
        let (mut wire, host): (Box<dyn Wire>, _) = match &self.place {
            Place::Socket(path) => {
                let socket = UnixStream::connect(path)?;
                socket.set_read_timeout(Some(SILENCE))?;
                (Box::new(socket), "localhost".to_owned())
            }
            Place::Url(url) => {
                let authority = url.authority();
                let authority =
                    authority.ok_or_else(|| io::Error::other("the URL names no host"))?;
                (sample::connect(url, authority)?, authority.to_string())
            }
        };
        let body = body.map(Value::to_string).unwrap_or_default();
        let mut head = Zeroizing::new(format!(
            "{method} /api/v1{path} HTTP/1.0\r\nHost: {host}\r\nAuthorization: Bearer {}\r\n",
            *self.token
        ));
        head.push_str(lines);
        if !body.is_empty() {
            head.push_str("Content-Type: application/json\r\n");
        }
        head.push_str(&format!("Content-Length: {}\r\n\r\n{body}", body.len()));
        wire.write_all(head.as_bytes())?;
        wire.flush()?;
        Ok(wire)
    }

    fn silent(&self, error: &io::Error) -> Failure {
        let place = match &self.place {
            Place::Socket(path) => path.display().to_string(),
            Place::Url(url) => url.to_string(),
        };
        Failure::Failed(format!(
            "{place}: {error}; is hookward running there, with admin.token set?"
        ))
    }
}

/// What a problem document says, in one line.
fn refused(status: u16, said: &Value) -> Result<(), Failure> {
    if (200..300).contains(&status) {
        return Ok(());
    }
    let detail = said.get("detail").and_then(Value::as_str);
    let mut lines = vec![detail.map_or_else(|| format!("the answer was {status}"), str::to_owned)];
    let errors = said.get("errors").and_then(Value::as_array);
    for error in errors.into_iter().flatten() {
        let of = |key| error.get(key).and_then(Value::as_str).unwrap_or_default();
        lines.push(format!("{}: {}", of("key"), of("detail")));
    }
    match status {
        400 | 422 => Err(Failure::Usage(lines)),
        _ => Err(Failure::Failed(lines.join("; "))),
    }
}
