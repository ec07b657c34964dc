//! What operators change at run time: tried against the whole configuration, put on disk, in force.

use std::{io, time::SystemTime};

use rand::Rng as _;
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use super::{App, live};
use crate::{
    admin::change::{Changed, Refused, Wish, Wrong},
    config::{self, Config, Fault},
    endpoint::{EndpointName, Upstream},
    roster::{ENDPOINTS_LIMIT, Made, Roster},
    secret::SecretEncoding,
    signature::Scheme,
};

/// Stands where a secret is, and in an edit for the one that is there.
const HIDDEN: &str = "***";
/// Bytes in a secret that is made.
const SECRET_LENGTH: usize = 32;

impl App {
    /// Does what an operator wishes, or changes nothing.
    pub(super) fn change(&mut self, wish: Wish) -> Result<Changed, Refused> {
        let Some(dir) = self.config.data_dir.clone() else {
            let what = "this needs data_dir in the configuration, to survive a restart";
            return Err(Refused::Conflict(what.to_owned()));
        };
        let now = SystemTime::now();
        let mut plan = Plan {
            roster: self.config.roster.clone(),
            config: &self.config,
            made: Changed::default(),
        };
        let (what, name) = wish.subject();
        let name = name.to_owned();
        self.check_waiting(&wish)?;
        plan.fulfil(wish, now)?;
        let Plan { roster, made, .. } = plan;
        let new = config::with_roster(&self.config, roster, &self.sources, now)
            .map_err(|faults| refusal(&name, faults))?;
        let live =
            live(&new, &self.shared, Some(&self.live), self.acme.as_deref()).map_err(|what| {
                let key = String::new();
                Refused::Wrong(vec![Wrong { key, what }])
            })?;
        // On disk first: what has taken effect survives a crash.
        new.roster.write(&dir).map_err(|error| {
            if error.kind() == io::ErrorKind::FileTooLarge {
                let what = "the tables made at run time would be too large together: shorten one";
                return Refused::Conflict(what.to_owned());
            }
            Refused::Storage(format!("data_dir: the change was not put on disk: {error}"))
        })?;
        self.install(new, live);
        tracing::info!(endpoint = name, what, "endpoint changed by an operator");
        Ok(made)
    }

    /// Another endpoint's events are nobody's to deliver elsewhere by accident.
    fn check_waiting(&self, wish: &Wish) -> Result<(), Refused> {
        let Wish::Create {
            name,
            takes_over: false,
            ..
        } = wish
        else {
            return Ok(());
        };
        let queue = self.shared.queue.as_ref();
        let queue = queue.filter(|_| !self.config.endpoints.has(name));
        let waiting = queue.and_then(|queue| queue.depths().get(name).map(|depth| depth.0));
        match waiting {
            Some(count @ 1..) => Err(Refused::Waiting(count)),
            Some(0) | None => Ok(()),
        }
    }
}

/// What a wish makes of a roster.
struct Plan<'c> {
    roster: Roster,
    config: &'c Config,
    made: Changed,
}

impl Plan<'_> {
    /// Puts the wish into the roster.
    fn fulfil(&mut self, wish: Wish, now: SystemTime) -> Result<(), Refused> {
        let config = self.config;
        self.roster
            .switches
            .retain(|name, _| config.endpoints.has(name));
        match wish {
            Wish::Create { name, settings, .. } => self.create(&name, settings, now)?,
            Wish::Edit {
                name,
                settings,
                expected,
            } => {
                let made = self.made(&name)?;
                let revision = made.revision();
                if expected.is_some_and(|expected| !expected.contains(&revision)) {
                    return Err(Refused::Changed);
                }
                let before = made.settings.clone();
                let settings = self.complete(settings, Some(&before))?;
                self.made(&name)?.settings = settings;
            }
            Wish::Remove { name } => {
                self.made(&name)?;
                self.roster.endpoints.remove(&name);
            }
            Wish::Switch { name, active } => self.switch(&name, active)?,
        }
        Ok(())
    }

    fn create(
        &mut self,
        name: &str,
        settings: Map<String, Value>,
        now: SystemTime,
    ) -> Result<(), Refused> {
        if let Err(expected) = EndpointName::new(name) {
            return Err(wrong("name", format!("expected {expected}")));
        }
        if self.config.endpoints.has(name) {
            return Err(Refused::Conflict(format!(
                "there is an endpoint {name} already"
            )));
        }
        if self.roster.endpoints.len() >= ENDPOINTS_LIMIT {
            let what = format!("{ENDPOINTS_LIMIT} endpoints are made at run time: no more fit");
            return Err(Refused::Conflict(what));
        }
        let settings = self.complete(settings, None)?;
        let made = Made { at: now, settings };
        self.roster.endpoints.insert(name.to_owned(), made);
        Ok(())
    }

    fn switch(&mut self, name: &str, active: bool) -> Result<(), Refused> {
        if let Some(made) = self.roster.endpoints.get_mut(name) {
            made.settings.insert("active".to_owned(), active.into());
            return Ok(());
        }
        let own = self
            .config
            .active_as_configured(name)
            .ok_or(Refused::Unknown)?;
        if own == active {
            self.roster.switches.remove(name);
        } else {
            self.roster.switches.insert(name.to_owned(), active);
        }
        Ok(())
    }

    /// The endpoint of this name, if it was made at run time.
    fn made(&mut self, name: &str) -> Result<&mut Made, Refused> {
        if self.config.active_as_configured(name).is_some() {
            let what = format!(
                "{name} stands in the configuration: change it there; here it is only switched on and off"
            );
            return Err(Refused::Conflict(what));
        }
        self.roster.endpoints.get_mut(name).ok_or(Refused::Unknown)
    }

    /// A table with its secrets: those that stay, those that are given, those that are made.
    fn complete(
        &mut self,
        mut settings: Map<String, Value>,
        before: Option<&Map<String, Value>>,
    ) -> Result<Map<String, Value>, Refused> {
        let old = before.and_then(|table| table.get("secrets"));
        let given = match (settings.remove("secrets"), old) {
            (Some(Value::Array(given)), _) => given,
            (Some(_), _) => return Err(wrong("secrets", "expected a list of tables".to_owned())),
            (None, Some(Value::Array(old))) => old.clone(),
            (None, _) => vec![json!({"name": "main", "generate": true})],
        };
        let writing = Writing::of(settings.get("scheme"));
        let mut secrets = Vec::new();
        for mut secret in given {
            if let Some(secret) = secret.as_object_mut() {
                self.complete_secret(secret, old, &writing);
            }
            secrets.push(secret);
        }
        settings.insert("secrets".to_owned(), secrets.into());
        keep_hidden(&mut settings, before)?;
        Ok(settings)
    }

    fn complete_secret(
        &mut self,
        secret: &mut Map<String, Value>,
        old: Option<&Value>,
        writing: &Writing,
    ) {
        let name = secret
            .get("name")
            .and_then(Value::as_str)
            .unwrap_or("default");
        let name = name.to_owned();
        if secret.remove("generate") == Some(true.into()) {
            let encoding = secret.get("encoding").and_then(Value::as_str);
            let text = writing.fresh(encoding);
            secret.insert("value".to_owned(), text.as_str().into());
            self.made.generated.push((name, text));
            return;
        }
        let is_hidden = secret.get("value").is_none_or(|value| value == HIDDEN);
        let all = old.and_then(Value::as_array).into_iter().flatten();
        let mut same = all.filter(|s| s.get("name").and_then(Value::as_str) == Some(&name));
        if let (true, Some(value)) = (is_hidden, same.find_map(|secret| secret.get("value"))) {
            secret.insert("value".to_owned(), value.clone());
        } else if is_hidden {
            // A secret of three stars would be one that everybody knows.
            secret.remove("value");
        }
    }
}

/// Puts back what an edit only stood in for: header values and the upstream's query, where the
/// upstream is the one that they were given for. Another one would be told them.
fn keep_hidden(
    settings: &mut Map<String, Value>,
    before: Option<&Map<String, Value>>,
) -> Result<(), Refused> {
    fn url_of(table: &Map<String, Value>) -> &str {
        table
            .get("upstream")
            .and_then(Value::as_str)
            .unwrap_or_default()
    }
    let place_of = |url: &str| {
        Upstream::parse_url(url)
            .ok()
            .map(|(at, host, ..)| (at, host))
    };
    let before = before.filter(|before| place_of(url_of(before)) == place_of(url_of(settings)));
    let missing = |key: &str| {
        let what = "expected its value: for this upstream none is kept";
        wrong(key, what.to_owned())
    };
    if let Some((path, HIDDEN)) = url_of(settings).split_once('?') {
        let query = before.and_then(|before| Some(url_of(before).split_once('?')?.1));
        let url = format!("{path}?{}", query.ok_or_else(|| missing("upstream"))?);
        settings.insert("upstream".to_owned(), url.into());
    }
    let old = before.and_then(|table| table.get("upstream_options")?.get("headers"));
    let headers = settings
        .get_mut("upstream_options")
        .and_then(|options| options.get_mut("headers"))
        .and_then(Value::as_object_mut);
    for (name, value) in headers.into_iter().flatten() {
        if *value == HIDDEN {
            let kept = old.and_then(|old| old.get(name)).cloned();
            let key = format!("upstream_options.headers.{name}");
            *value = kept.ok_or_else(|| missing(&key))?;
        }
    }
    Ok(())
}

/// How a scheme's sender writes secrets.
struct Writing {
    is_base64: bool,
    prefix: String,
}

impl Writing {
    fn of(scheme: Option<&Value>) -> Self {
        let own = |key: &str| scheme.and_then(|scheme| scheme.get(key)?.as_str());
        let preset = scheme.and_then(Value::as_str).and_then(Scheme::preset);
        match &preset {
            Some(preset) => Self {
                is_base64: preset.spec().secret_encoding == SecretEncoding::Base64,
                prefix: preset.spec().secret_prefix.clone().unwrap_or_default(),
            },
            None => Self {
                is_base64: own("secret_encoding") == Some("base64"),
                prefix: own("secret_prefix").unwrap_or_default().to_owned(),
            },
        }
    }

    /// A secret that nobody has seen.
    fn fresh(&self, encoding: Option<&str>) -> Zeroizing<String> {
        let mut bytes = Zeroizing::new([0; SECRET_LENGTH]);
        rand::rng().fill_bytes(&mut *bytes);
        let (is_base64, prefix) = match encoding {
            None | Some("scheme") => (self.is_base64, self.prefix.as_str()),
            Some(encoding) => (encoding == "base64", ""),
        };
        let encoding = match is_base64 {
            true => SecretEncoding::Base64,
            false => SecretEncoding::Hex,
        };
        let text = encoding.encode(&*bytes);
        Zeroizing::new(format!("{prefix}{}", String::from_utf8_lossy(&text)))
    }
}

fn wrong(key: &str, what: String) -> Refused {
    let key = key.to_owned();
    Refused::Wrong(vec![Wrong { key, what }])
}

/// Why a configuration with the changed endpoint in it is none.
fn refusal(name: &str, faults: Vec<Fault>) -> Refused {
    let own = format!("endpoints.{name}");
    let key_of = |fault: &Fault| {
        let rest = fault.path.strip_prefix(&own)?;
        let key = rest.strip_prefix('.').or(rest.is_empty().then_some(rest));
        key.map(str::to_owned)
    };
    let wrong: Vec<_> = faults
        .iter()
        .filter_map(|fault| {
            let (key, what) = (key_of(fault)?, fault.what.clone());
            Some(Wrong { key, what })
        })
        .collect();
    match faults.first() {
        Some(first) if wrong.is_empty() => {
            Refused::Conflict(format!("{}: {}", first.path, first.what))
        }
        _ => Refused::Wrong(wrong),
    }
}
