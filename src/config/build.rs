//! Every key, its default and its bounds: the merged document becomes a [`Config`].

mod admin;
mod endpoint;
mod queueing;
mod scheme;
mod secret;
mod tls;
mod upstream;

use std::{
    cell::RefCell,
    collections::BTreeSet,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    rc::Rc,
    time::{Duration, SystemTime},
};

use serde_json::{Map, Value, json};

use self::{admin::read_admin, endpoint::Reader};
use super::{
    Config, Door, Fault, Listen, Log, Server,
    document::{Document, TOP},
    table::{self, Table, as_text},
};
use crate::{
    connection::opening::Proxies,
    dedup,
    endpoint::{Dedup, Endpoints, MissingKey},
    limits::Limits,
    log, queue,
    roster::{Roster, RosterError},
};

const MS: Duration = Duration::from_millis(1);
const DAY: Duration = Duration::from_hours(24);
/// Longest data directory, in bytes: a socket's path is at most 107, and `/control.sock` is in it.
const DATA_DIR_LENGTH: usize = 107 - "/control.sock".len();
const PUBLIC: &str = "an address such as 127.0.0.1:8080, [::1]:8080, http://127.0.0.1:8080 \
                      (plain beside TLS) or unix:/run/app.sock";
const ADDRESS: &str = "an address such as 127.0.0.1:8080, [::1]:8080 or unix:/run/app.sock";

/// Makes a configuration of a document.
pub(super) fn build(
    mut document: Document,
    roster: Result<Roster, RosterError>,
    env: &[(String, String)],
    now: SystemTime,
    named: &mut Vec<PathBuf>,
) -> Result<Config, Vec<Fault>> {
    let (roster, roster_fault) = match roster {
        Ok(roster) => (roster, None),
        Err(error) => (Roster::default(), Some(error)),
    };
    let faults = Rc::new(RefCell::new(Vec::new()));
    let written = Rc::new(document.written.clone());
    let mut root = Table::root(document.values.clone(), &faults, written);
    let built = read_root(&mut root, &roster, env, now, named);
    named.extend(document.file.clone());
    let (effective, _) = root.end();
    let found = faults.borrow().clone();
    let made = |path: &str| {
        let name = path.strip_prefix("endpoints.")?.split('.').next()?;
        let is_made = roster.endpoints.contains_key(name);
        is_made.then(|| document.roster_path())
    };
    let mut all: Vec<Fault> = found
        .into_iter()
        .map(|found| Fault {
            origin: made(&found.path).unwrap_or_else(|| document.origin(&found.path)),
            path: found.path,
            what: found.what,
        })
        .collect();
    all.sort_by(|a, b| (&a.origin, &a.path).cmp(&(&b.origin, &b.path)));
    let Some(mut config) = built.filter(|_| all.is_empty()) else {
        return Err(all);
    };
    if let Some(error) = roster_fault {
        let place = document.roster_path();
        config.warnings.push(format!(
            "{place}: {error}; what was made at run time is left out"
        ));
    }
    config.roster_fault = roster_fault;
    config.roster = roster;
    config
        .warnings
        .splice(0..0, std::mem::take(&mut document.warnings));
    config.watched.clone_from(named);
    config.effective = effective;
    // Needed where something may change at run time; else it is forgotten with what stands in it.
    config.document = config.admin.token.is_some().then_some(document);
    Ok(config)
}

/// The table `admin` alone.
pub(super) fn door(document: &Document, env: &[(String, String)]) -> Result<Door, Vec<Fault>> {
    let faults = Rc::new(RefCell::new(Vec::new()));
    let written = Rc::new(document.written.clone());
    let mut root = Table::root(document.values.clone(), &faults, written);
    let mut reader = Reader::new(env, SystemTime::UNIX_EPOCH, false);
    let admin = read_admin(&mut root, &mut reader);
    let found = faults.borrow().clone();
    if found.is_empty() {
        return Ok(Door {
            listen: admin.api_listen.unwrap_or(admin.listen),
            settings: admin.settings,
        });
    }
    let fault = |found: table::Found| Fault {
        origin: document.origin(&found.path),
        path: found.path,
        what: found.what,
    };
    Err(found.into_iter().map(fault).collect())
}

/// The schema: what reading one endpoint with everything in it asks for.
pub(super) fn schema() -> Value {
    let faults = Rc::new(RefCell::new(Vec::new()));
    let document = json!({"endpoints": {"x": {"scheme": {}, "secrets": [{}]}}});
    let values = document.as_object().cloned().unwrap_or_default();
    let mut root = Table::root(values, &faults, Rc::default());
    let (roster, epoch) = (Roster::default(), SystemTime::UNIX_EPOCH);
    read_root(&mut root, &roster, &[], epoch, &mut Vec::new());
    let (_, mut schema) = root.end();
    if let Some(schema) = schema.as_object_mut() {
        schema.insert(
            "$schema".into(),
            json!("https://json-schema.org/draft/2020-12/schema"),
        );
        schema.insert("title".into(), json!("hookward configuration"));
    }
    schema
}

fn read_root(
    root: &mut Table,
    roster: &Roster,
    env: &[(String, String)],
    now: SystemTime,
    named: &mut Vec<PathBuf>,
) -> Option<Config> {
    let hour = Duration::from_hours(1);
    let data_dir = root.text("data_dir").map(PathBuf::from);
    if let Some(what) = data_dir.as_deref().and_then(unusable) {
        root.fault("data_dir", what);
    }
    let shutdown_delay = root.duration("shutdown_delay", Duration::ZERO, Duration::ZERO..=hour);
    let shutdown_grace = root.duration(
        "shutdown_grace",
        Duration::from_secs(25),
        Duration::ZERO..=hour,
    );
    let mut watched = BTreeSet::new();
    let mut warnings = Vec::new();
    let mut around = tls::Surroundings {
        env,
        now,
        has_data_dir: data_dir.is_some(),
        warnings: &mut warnings,
        watched: &mut watched,
    };
    let server = read_server(root, &mut around);
    let mut reader = Reader::new(env, now, data_dir.is_some());
    reader.warnings = warnings;
    reader.watched = watched;
    let admin = read_admin(root, &mut reader);
    reader.allow = admin.allow;
    reader.keeps_keys = admin.settings.token.is_some();
    let log = read_log(root)?;
    let limits = read_limits(root);
    let mut table = root.table("dedup");
    let capacity = table.number("capacity", 100_000, 1..=100_000_000);
    reader.limits = limits;
    reader.dedup = read_dedup(&mut table, reader.dedup)?;
    root.close("dedup", table);

    let can_be_made = admin.settings.token.is_some() && data_dir.is_some();
    let endpoints = read_endpoints(root, &mut reader, roster, can_be_made);
    named.extend(std::mem::take(&mut reader.watched));
    debug_assert!(
        TOP.len() == 9,
        "the top-level keys are listed in the document too"
    );
    let exposed = data_dir.as_deref().map(queue::exposed).unwrap_or_default();
    reader
        .warnings
        .extend(exposed.iter().map(|what| format!("data_dir: {what}")));
    Some(Config {
        data_dir,
        shutdown_delay,
        shutdown_grace,
        server: server?,
        admin_listen: admin.listen,
        api_listen: admin.api_listen,
        admin: admin.settings,
        log,
        limits,
        dedup_capacity: NonZeroUsize::new(capacity)?,
        endpoints: endpoints?,
        warnings: reader.warnings,
        watched: Vec::new(),
        roster: Roster::default(),
        roster_fault: None,
        document: None,
        effective: Value::Null,
    })
}

/// Why a path can be no data directory, as far as looking tells; one that is not there is made.
fn unusable(path: &Path) -> Option<String> {
    let length = path.as_os_str().len();
    if length == 0 {
        return Some(
            "expected a directory of this instance's own, such as /var/lib/hookward".to_owned(),
        );
    }
    if length > DATA_DIR_LENGTH {
        return Some(format!(
            "expected a path of at most {DATA_DIR_LENGTH} bytes, which leaves room for the name of a socket in it"
        ));
    }
    let is_other = path.exists() && !path.is_dir();
    is_other.then(|| {
        "expected a directory; it names something else: move that away, or name another".to_owned()
    })
}

fn read_server(root: &mut Table, around: &mut tls::Surroundings<'_>) -> Option<Server> {
    let mut table = root.table("server");
    let is_empty = table.is_empty_list("listen");
    let listen = table.list("listen", &["0.0.0.0:8080"], PUBLIC, Listen::parse_public);
    if is_empty {
        table.fault("listen", "expected at least one address");
    }
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let threads = table.number("threads", 0, 0..=1024);
    let threads = if threads == 0 { cores } else { threads };
    let network = "a network such as 10.0.0.0/8 or ::1/128";
    let parse = |text: &str| text.parse().ok();
    let trusted_proxies = table.list("trusted_proxies", &[], network, parse);
    let proxies = table
        .flag("proxy_protocol", false)
        .then(|| match trusted_proxies.as_slice() {
            [] => Proxies::All,
            networks => Proxies::Of(networks.to_vec()),
        });
    let tls = tls::read(&mut table, around);
    let has_tls = table.shows("tls");
    root.close("server", table);
    let bare = listen.iter().find(|address| match address {
        Listen::Tcp(tcp) => !has_tls && !tcp.ip().is_loopback(),
        Listen::Plain(tcp) => !tcp.ip().is_loopback(),
        Listen::Unix(_) => false,
    });
    if let Some(address) = bare.filter(|_| trusted_proxies.is_empty() && proxies.is_none()) {
        around.warnings.push(format!(
            "server.listen: {address} speaks plain HTTP, and senders require HTTPS; set server.tls, \
             or put what terminates TLS in front and name its network in server.trusted_proxies"
        ));
    }
    Some(Server {
        listen,
        threads: NonZeroUsize::new(threads)?,
        trusted_proxies,
        proxies,
        tls,
    })
}

fn read_log(root: &mut Table) -> Option<Log> {
    let mut table = root.table("log");
    let levels = ["error", "warn", "info", "debug", "trace", "off"].map(|level| (level, level));
    let level = table.choice("level", "info", &levels)?;
    let formats = [("json", log::Format::Json), ("text", log::Format::Text)];
    let format = table.choice("format", "json", &formats)?;
    let access = table.flag("access", false);
    root.close("log", table);
    Some(Log {
        level: level.to_owned(),
        format,
        access,
    })
}

fn read_limits(root: &mut Table) -> Limits {
    let mut table = root.table("limits");
    let default = Limits::default();
    let gib = 1 << 30;
    let max_body = table.size("max_body", default.max_body, 1..=gib);
    let max_buffered = table.size("max_buffered", default.max_buffered, 1024..=1 << 40);
    if max_body > max_buffered {
        table.fault(
            "max_body",
            "expected at most limits.max_buffered: no larger body could be held",
        );
    }
    let (short, long) = (10 * MS, Duration::from_hours(1));
    let limits = Limits {
        max_body,
        max_buffered,
        max_connections: table.number("max_connections", default.max_connections, 1..=1_000_000),
        max_header_bytes: table.size("max_header_bytes", default.max_header_bytes, 8192..=1 << 20),
        max_header_fields: table.number("max_header_fields", default.max_header_fields, 1..=1000),
        max_target_bytes: table.size("max_target_bytes", default.max_target_bytes, 1..=65_000),
        header_timeout: table.duration("header_timeout", default.header_timeout, short..=long),
        body_timeout: table.duration("body_timeout", default.body_timeout, short..=long),
        idle_timeout: table.duration("idle_timeout", default.idle_timeout, short..=long),
    };
    root.close("limits", table);
    limits
}

/// How duplicates are recognised: the global table, or an endpoint's own over it.
fn read_dedup(table: &mut Table, default: Dedup) -> Option<Dedup> {
    use dedup::{KeyReuse, Replay};
    let window = table.duration("window", default.policy.window, 100 * MS..=30 * DAY);
    let missing = [
        ("forward", MissingKey::Forward),
        ("reject", MissingKey::Reject),
        ("body", MissingKey::Body),
    ];
    let reuse = [
        ("duplicate", KeyReuse::Duplicate),
        ("forward", KeyReuse::Forward),
        ("reject", KeyReuse::Reject),
    ];
    let replay = [
        ("flag", Replay::Flag),
        ("off", Replay::Off),
        ("reject", Replay::Reject),
    ];
    Some(Dedup {
        missing_key: table.choice(
            "missing_key",
            name_of(&missing, default.missing_key),
            &missing,
        )?,
        policy: dedup::Policy {
            window,
            key_reuse: table.choice(
                "key_reuse",
                name_of(&reuse, default.policy.key_reuse),
                &reuse,
            )?,
            replay: table.choice("replay", name_of(&replay, default.policy.replay), &replay)?,
        },
    })
}

fn name_of<T: PartialEq + Copy>(options: &[(&'static str, T)], value: T) -> &'static str {
    options
        .iter()
        .find(|(_, option)| *option == value)
        .map_or("", |(name, _)| name)
}

fn read_endpoints(
    root: &mut Table,
    reader: &mut Reader<'_>,
    roster: &Roster,
    can_be_made: bool,
) -> Option<Endpoints> {
    let mut table = root.table("endpoints");
    let names = table.names();
    if names.is_empty() && roster.endpoints.is_empty() && !can_be_made {
        table.fault(
            "",
            "expected at least one: [endpoints.NAME] with path, upstream and secrets, \
             or --upstream URL --secret-env VARIABLE",
        );
    }
    let mut all = Vec::new();
    let mut schema = Value::Null;
    let mut shown = Map::new();
    for name in names {
        let mut endpoint = table.named(&name);
        let mut read = reader.endpoint(&name, &mut endpoint);
        if let (Some(read), Some(active)) = (&mut read, roster.switches.get(&name)) {
            read.active = *active;
            endpoint.show("active", *active);
        }
        all.push(read);
        let (effective, described) = endpoint.end();
        shown.insert(name, effective);
        schema = described;
    }
    for (name, made) in &roster.endpoints {
        if shown.contains_key(name) {
            table.fault(
                name,
                "made at run time too: remove that one (hookward endpoints remove), or name this one otherwise",
            );
            continue;
        }
        let mut endpoint = table.given(name, made.settings.clone());
        reader.made = Some(made.at);
        all.push(reader.endpoint(name, &mut endpoint));
        reader.made = None;
        shown.insert(name.clone(), endpoint.end().0);
    }
    if let Some(schema) = schema.as_object_mut() {
        let required = json!(["path", "upstream", "secrets"]);
        schema.insert("required".to_owned(), required);
    }
    table.end();
    root.show("endpoints", shown);
    root.describe(
        "endpoints",
        json!({
            "type": "object",
            "propertyNames": {"pattern": "^(?!.*__)[a-z][a-z0-9_]{0,62}$"},
            "additionalProperties": schema
        }),
    );
    if schema.is_null() {
        root.describe("endpoints", json!({"type": "object"}));
    }
    let all: Vec<_> = all.into_iter().collect::<Option<_>>()?;
    match Endpoints::new(all) {
        Ok(endpoints) => Some(endpoints),
        Err(clash) => {
            root.fault(
                &format!("endpoints.{}.path", clash.second),
                format!(
                    "expected a path of its own: endpoints.{} has the same",
                    clash.first
                ),
            );
            None
        }
    }
}

/// A moment as in RFC 3339, with any offset.
pub(super) fn as_moment(value: &Value) -> Option<SystemTime> {
    use toml::value::{Datetime, Offset};
    let mut moment: Datetime = as_text(value)?.trim().parse().ok()?;
    let minutes = match moment.offset.replace(Offset::Z)? {
        Offset::Z => 0,
        Offset::Custom { minutes } => minutes,
    };
    let there = humantime::parse_rfc3339(&moment.to_string()).ok()?;
    let apart = Duration::from_mins(minutes.unsigned_abs().into());
    if minutes > 0 {
        there.checked_sub(apart)
    } else {
        there.checked_add(apart)
    }
}
