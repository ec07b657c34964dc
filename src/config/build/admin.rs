//! The operator's side: where it listens, who may ask, what it may do.

use std::{net::IpAddr, sync::Arc};

use serde_json::{Value, json};

use super::{ADDRESS, endpoint::Reader};
use crate::{
    admin::{Settings, TOKEN_LENGTH},
    config::{Listen, table::Table},
    endpoint::{Allow, Allowed},
    feed::Capture,
    secret::Secret,
};

/// Most requests kept for the live view.
const CAPTURE_LIMIT: usize = 100_000;

/// The table, read.
pub(super) struct Admin {
    pub(super) listen: Vec<Listen>,
    pub(super) api_listen: Option<Vec<Listen>>,
    pub(super) settings: Arc<Settings>,
    pub(super) allow: Arc<Allow>,
}

pub(super) fn read_admin(root: &mut Table, reader: &mut Reader<'_>) -> Admin {
    let mut table = root.table("admin");
    let listen = table.list("listen", &["127.0.0.1:9464"], ADDRESS, Listen::parse);
    let has_own = table.has("api_listen");
    let api_listen = has_own.then(|| table.list("api_listen", &[], ADDRESS, Listen::parse));
    table.describe(
        "api_listen",
        json!({"type": "array", "items": {"type": "string"}}),
    );
    let token = token(&mut table, reader);
    let host = "a host's name without a port, such as hookward.example.com";
    let hosts = table.list("hosts", &[], host, |text| match Allowed::parse(text)? {
        Allowed::Host(host) => Some(host),
        Allowed::Network(network) => Some(network.addr().to_string()),
    });
    let place = "a network such as 10.0.0.0/8, an address or a host's name";
    let allow = table.list("upstream_allow", &[], place, Allowed::parse);
    let mut capture = table.table("capture");
    let kept = Capture {
        events: capture.number("events", 0, 0..=CAPTURE_LIMIT),
        bytes: capture.size("bytes", 8 << 20, 0..=1 << 30),
    };
    table.close("capture", capture);
    root.close("admin", table);
    let doors = api_listen.as_ref().unwrap_or(&listen);
    let is_far = |listen: &Listen| matches!(listen, Listen::Tcp(at) if !at.ip().is_loopback());
    if token.is_some() && doors.iter().any(is_far) {
        let key = if has_own { "api_listen" } else { "listen" };
        reader.warnings.push(format!(
            "admin.{key}: API and dashboard are open to the network, without TLS of their own; put \
             TLS in front, or keep them here with admin.api_listen = [\"127.0.0.1:9465\"]"
        ));
    }
    let addresses = listen.iter().chain(api_listen.iter().flatten());
    let addresses: Vec<IpAddr> = addresses
        .filter_map(|listen| match listen {
            Listen::Plain(at) | Listen::Tcp(at) => Some(at.ip().to_canonical()),
            Listen::Unix(_) => None,
        })
        .collect();
    Admin {
        settings: Arc::new(Settings {
            token,
            addresses,
            hosts,
            capture: kept,
            has_own_listener: has_own,
        }),
        listen,
        api_listen,
        allow: Arc::new(Allow::new(allow)),
    }
}

fn token(table: &mut Table, reader: &mut Reader<'_>) -> Option<Secret> {
    let is_given = table.has("token");
    let mut entry = table.table("token");
    if !is_given {
        // Read all the same: what it may hold is part of the schema.
        for key in ["file", "env"] {
            entry.text(key);
        }
        table.describe("token", entry.end().1);
        return None;
    }
    let hidden = reader.hidden(&mut entry);
    entry.show("value", "***");
    let (shown, schema): (Value, Value) = entry.end();
    table.show("token", shown);
    table.describe("token", schema);
    let bytes = hidden?;
    if bytes.len() < TOKEN_LENGTH {
        table.fault(
            "token",
            format!("expected at least {TOKEN_LENGTH} bytes, such as openssl rand -hex 32 makes"),
        );
        return None;
    }
    let is_plain = bytes.iter().all(u8::is_ascii_graphic);
    if !is_plain {
        table.fault("token", "expected visible ASCII characters without spaces");
        return None;
    }
    Secret::new("token".to_owned(), bytes, None).ok()
}
