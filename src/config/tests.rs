use std::{fs, path::Path};

use super::*;
use crate::{
    dedup::{KeyReuse, Replay},
    endpoint::{Enforcement, EventFilter, MissingKey},
};

const CANARY: &str = "canary-of-a-secret-0123456789";

struct Try {
    dir: PathBuf,
    sources: Sources,
}

impl Try {
    fn new(name: &str, extension: &str, text: &str) -> Self {
        let dir =
            std::env::temp_dir().join(format!("hookward-config-{}-{name}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let file = dir.join(format!("hookward.{extension}"));
        fs::write(&file, text).unwrap();
        let env = vec![("SECRET".to_owned(), CANARY.to_owned())];
        Self {
            dir,
            sources: Sources {
                file: Some(file),
                env,
                ..Sources::default()
            },
        }
    }

    fn env(mut self, name: &str, value: &str) -> Self {
        self.sources.env.push((name.to_owned(), value.to_owned()));
        self
    }

    fn load(&self) -> Result<Config, String> {
        let outcome = load(
            &self.sources,
            SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_000_000),
        );
        outcome.map_err(|faults| {
            let lines: Vec<_> = faults.iter().map(ToString::to_string).collect();
            let text = lines.join("\n");
            assert!(!text.contains("canary"), "a value was shown: {text}");
            text
        })
    }
}

impl Drop for Try {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn endpoint(more: &str) -> String {
    format!(
        "[endpoints.crm]\npath = \"/hook\"\nupstream = \"http://127.0.0.1:3000/in\"\n\
         secrets = [{{ name = \"main\", env = \"SECRET\" }}]\n{more}\n"
    )
}

fn good(name: &str, text: &str) -> Config {
    Try::new(name, "toml", text).load().unwrap()
}

fn fault(name: &str, text: &str) -> String {
    Try::new(name, "toml", text).load().unwrap_err()
}

fn shipped(name: &str) -> Sources {
    let env = vec![("TINYTALK_WEBHOOK_SECRET".to_owned(), CANARY.to_owned())];
    let file = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("config")
        .join(name);
    Sources {
        file: Some(file),
        env,
        ..Sources::default()
    }
}

#[test]
fn the_shipped_files_load_and_the_long_one_says_the_defaults() {
    let load = |name| load(&shipped(name), SystemTime::UNIX_EPOCH).unwrap();
    assert_eq!(
        load("hookward.toml").effective_toml(),
        load("minimal.toml").effective_toml(),
        "hookward.toml and the built-in defaults differ"
    );
    assert_eq!(load("sidecar.yaml").shutdown_delay, Duration::from_secs(10));
}

#[test]
fn every_key_of_the_schema_stands_in_the_long_file() {
    fn keys(schema: &Value, found: &mut Vec<String>) {
        if !schema.is_object() {
            return;
        }
        if let Some(properties) = schema["properties"].as_object() {
            found.extend(properties.keys().cloned());
            properties.values().for_each(|inner| keys(inner, found));
        }
        for key in ["additionalProperties", "items"] {
            keys(&schema[key], found);
        }
        schema["anyOf"]
            .as_array()
            .into_iter()
            .flatten()
            .for_each(|inner| keys(inner, found));
    }
    let text = fs::read_to_string(shipped("hookward.toml").file.unwrap()).unwrap();
    let mut found = Vec::new();
    keys(&json_schema(), &mut found);
    assert!(found.len() > 70, "{found:?}");
    for key in found {
        assert!(text.contains(&key), "{key} is missing");
    }
}

#[test]
fn everything_said_for_an_endpoint_is_taken() {
    let config = good(
        "whole",
        &endpoint(
            "events = [\"message.created\"]\nactive = false\ndeadline = \"250ms\"\nreject_status = 403\n\
             enforce = false\nenforce_from = \"2027-01-01T00:00:00Z\"\nmax_body = 4096\n\
             dedup = { window = \"1h\", missing_key = \"body\", key_reuse = \"reject\", replay = \"off\" }\n\
             [endpoints.crm.upstream_options]\nrate = \"30/m\"\nheaders = { X-Env = { env = \"SECRET\" }, X-Plain = \"v\" }",
        ),
    );
    let endpoint = config.endpoints.iter().next().unwrap();
    assert_eq!(
        endpoint.events,
        EventFilter::Only(vec!["message.created".to_owned()])
    );
    assert!(!endpoint.active);
    assert_eq!(endpoint.deadline, Duration::from_millis(250));
    assert_eq!(endpoint.reject_status, 403);
    assert!(matches!(endpoint.enforcement, Enforcement::From(_)));
    assert_eq!(endpoint.max_body, 4096);
    assert_eq!(endpoint.dedup.missing_key, MissingKey::Body);
    assert_eq!(endpoint.dedup.policy.key_reuse, KeyReuse::Reject);
    assert_eq!(endpoint.dedup.policy.replay, Replay::Off);
    assert!((endpoint.upstream.rate.unwrap().per_second - 0.5).abs() < 1e-9);
    assert_eq!(endpoint.upstream.headers.len(), 2);
    assert!(!config.effective_toml().contains("canary"));
}

#[test]
fn all_faults_are_told_at_once_with_place_and_remedy() {
    let text = "[server]\nthreads = \"many\"\nlissten = []\n[limits]\nmax_body = \"5q\"\n\
                [endpoints.Bad]\n[endpoints.b]\npath = \"/x\"\nupstream = \"ftp://x\"\nsecrets = [{ env = \"NOPE\" }]\n";
    let told = fault("many", text);
    for part in [
        "server.threads: expected a number from 0 to 1024",
        "server.lissten: unknown key; did you mean listen?",
        "limits.max_body: expected a size",
        "endpoints.Bad: expected a name",
        "endpoints.b.upstream: expected http://",
        "endpoints.b.secrets[0].env: the variable named here is not set",
    ] {
        assert!(told.contains(part), "{part:?} in\n{told}");
    }
    assert!(
        told.lines().all(|line| line.contains("hookward.toml: ")),
        "{told}"
    );
}

#[test]
fn what_is_switched_off_needs_no_place_on_disk() {
    good(
        "off",
        &endpoint("mode = \"relay\"\nfallback = \"none\"\nquarantine = \"0\""),
    );
    let dir = good(
        "dir",
        &format!("data_dir = \"/var/lib/x\"\n{}", endpoint("")),
    );
    assert!(dir.data_dir.is_some());
}

#[test]
fn what_is_kept_on_disk_needs_a_place_there() {
    for (name, more) in [
        ("mode", "mode = \"queue\""),
        ("fallback", "fallback = \"queue\""),
        ("quarantine", "quarantine = \"1MiB\""),
    ] {
        let told = fault(name, &endpoint(more));
        assert!(
            told.contains(&format!("endpoints.crm.{name}: expected data_dir with it")),
            "{told}"
        );
        good(
            name,
            &format!("data_dir = \"/var/lib/x\"\n{}", endpoint(more)),
        );
    }
}

#[test]
fn a_queues_keys_are_read_and_held_to_each_other() {
    let text = format!(
        "data_dir = \"/var/lib/x\"\n{}",
        endpoint(
            "mode = \"queue\"\n[endpoints.crm.queue]\nordering = \"/payload/conversationId\"\n\
             retry = [\"100ms\", \"2s\"]\npermanent_statuses = [404]\nattempt_timeout = \"3s\"\n\
             max_pending_bytes = \"2MiB\"\nkeep_dead = \"1h\""
        )
    );
    let config = good("queue", &text);
    let endpoint_of = |config: &Config| config.endpoints.iter().next().unwrap().clone();
    let crm = endpoint_of(&config);
    assert_eq!(crm.mode, crate::endpoint::Mode::Queue);
    let queue = &crm.queueing;
    assert_eq!(
        queue.ordering,
        crate::endpoint::Ordering::Pointer("/payload/conversationId".to_owned())
    );
    assert_eq!(
        queue.retry,
        [Duration::from_millis(100), Duration::from_secs(2)]
    );
    assert_eq!(queue.permanent_statuses, [http::StatusCode::NOT_FOUND]);
    assert_eq!(queue.attempt_timeout, Duration::from_secs(3));
    assert_eq!(
        (queue.max_pending_bytes, queue.max_stored_bytes),
        (2 << 20, 4 << 30)
    );
    let default = endpoint_of(&good("default", &endpoint("")));
    assert_eq!(
        default.mode,
        crate::endpoint::Mode::Relay { fallback: None }
    );
    let days: Duration = default.queueing.retry.iter().sum();
    assert_eq!(default.queueing.retry.len(), 12);
    assert!((2..=4).contains(&(days.as_secs() / 86_400)), "{days:?}");

    for (name, more, part) in [
        (
            "both",
            "mode = \"queue\"\nfallback = \"queue\"",
            "only with mode",
        ),
        (
            "unverified",
            "mode = \"queue\"\nenforce = false\nenforce_from = \"2030-01-01T00:00:00Z\"",
            "only what is verified is kept",
        ),
        (
            "late",
            "fallback = \"queue\"\nfallback_after = \"30s\"",
            "expected less than deadline",
        ),
        (
            "small",
            "mode = \"queue\"\nqueue = { max_pending_bytes = \"1KiB\" }",
            "no larger event could ever be accepted",
        ),
        (
            "stored",
            "queue = { max_stored_bytes = \"1MiB\" }",
            "at least max_pending_bytes",
        ),
        ("order", "queue = { ordering = \"fifo\" }", "a JSON pointer"),
        (
            "retry",
            "queue = { retry = [\"soon\"] }",
            "a list of at most 100",
        ),
        (
            "status",
            "queue = { permanent_statuses = [200] }",
            "statuses from 300 to 599",
        ),
    ] {
        let told = fault(
            name,
            &format!("data_dir = \"/var/lib/x\"\n{}", endpoint(more)),
        );
        assert!(told.contains(part), "{part:?} in {told}");
    }
}

#[test]
fn no_fault_shows_what_was_found() {
    for (name, text) in [
        ("syntax", format!("{}\nx = {CANARY} {CANARY}", endpoint(""))),
        (
            "type",
            format!("[server]\nthreads = \"{CANARY}\"\n{}", endpoint("")),
        ),
        (
            "upstream",
            endpoint("").replace("http://127", &format!("http://{CANARY}@127")),
        ),
        (
            "value",
            endpoint("").replace("env = \"SECRET\"", &format!("value = \"{CANARY}\"")),
        ),
        (
            "variable",
            endpoint("").replace("\"SECRET\"", &format!("\"{CANARY}\"")),
        ),
        ("scheme", endpoint(&format!("scheme = \"{CANARY}\""))),
        ("deadline", endpoint(&format!("deadline = \"{CANARY}\""))),
    ] {
        fault(name, &text);
    }
    let yaml = Try::new(
        "yaml",
        "yaml",
        &format!("server:\n  threads: [{CANARY}\n x: {CANARY}"),
    );
    assert!(yaml.load().unwrap_err().contains("not valid YAML at line"));
    assert!(fault("place", "a = 1\nb = = 2\n").contains("not valid TOML at line 2, column 5"));
}

#[test]
fn secrets_must_be_there_and_short_ones_are_warned_about() {
    let with = |value: &str| {
        let text = endpoint("").replace("SECRET", "OTHER");
        let text = format!("server.listen = [\"127.0.0.1:8080\"]\n{text}");
        Try::new("secret", "toml", &text).env("OTHER", value).load()
    };
    assert!(with("").unwrap_err().contains("is empty"));
    assert!(
        with("short")
            .unwrap()
            .warnings
            .iter()
            .any(|w| w.contains("under 16 bytes"))
    );
    assert!(with("long-enough-to-be-safe").unwrap().warnings.is_empty());
    let gone = endpoint("").replace("env = \"SECRET\"", "file = \"/nowhere/at/all\"");
    assert!(fault("gone", &gone).contains("secrets[0].file: the file named here cannot be read"));
}

#[test]
fn one_newline_at_the_end_of_a_secrets_file_is_cut() {
    let dir = std::env::temp_dir().join(format!("hookward-newline-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    for (content, length) in [
        ("0123456789abcdef\n", 16),
        ("0123456789abcdef\r\n", 16),
        ("0123456789abcdef\n\n", 17),
    ] {
        let file = dir.join("secret");
        fs::write(&file, content).unwrap();
        let text = endpoint(
            "[endpoints.other]\npath = \"/o\"\nupstream = \"http://a\"\nscheme = \"tinytalk\"",
        ) + &format!("secrets = [{{ file = \"{}\" }}]", file.display());
        let config = good("newline", &text);
        let endpoint = config
            .endpoints
            .iter()
            .find(|e| e.name.as_str() == "other")
            .unwrap();
        let key =
            crate::secret::Secret::new("x".into(), content.as_bytes()[..length].to_vec(), None);
        let signed = endpoint.scheme.sign(
            &key.unwrap(),
            &crate::signature::ToSign {
                id: "k",
                timestamp: SystemTime::UNIX_EPOCH,
                method: "POST",
                url: "/",
                body: b"x",
                event_type: None,
            },
        );
        let request = crate::signature::SignedRequest {
            headers: &signed.into_iter().collect(),
            method: "POST",
            url: "/",
        };
        let opened = endpoint
            .scheme
            .open(&endpoint.secrets, &request, SystemTime::UNIX_EPOCH);
        let mut verification = opened.unwrap();
        verification.update(b"x");
        assert!(verification.finish().is_ok(), "{content:?}");
        assert!(config.watched.contains(&file));
    }
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn the_environment_is_over_the_file_and_flags_are_over_both() {
    let mut over = Try::new("over", "toml", &endpoint("deadline = \"1s\""))
        .env("HOOKWARD_ENDPOINTS__CRM__DEADLINE", "2s")
        .env("HOOKWARD_ENDPOINTS__CRM__DESCRIPTION", "123")
        .env(
            "HOOKWARD_ENDPOINTS__CRM__SECRETS",
            "[{name=\"a\",env=\"SECRET\"}]",
        )
        .env("HOOKWARD_SERVER__LISTEN", "[\"127.0.0.1:1\"]")
        .env("HOOKWARD_LIMITS__MAX_BODY", "2048");
    over.sources.flags.listen = vec!["127.0.0.1:2".to_owned()];
    let config = over.load().unwrap();
    let endpoint = config.endpoints.iter().next().unwrap();
    assert_eq!(endpoint.deadline, Duration::from_secs(2));
    assert_eq!(endpoint.description, "123");
    assert_eq!(endpoint.secrets.names().next(), Some("a"));
    assert_eq!(endpoint.max_body, 2048);
    assert_eq!(
        config.server.listen,
        [Listen::parse("127.0.0.1:2").unwrap()]
    );
}

#[test]
fn a_fault_names_the_variable_or_flag_it_came_from() {
    let by_variable =
        Try::new("origin", "toml", &endpoint("")).env("HOOKWARD_ENDPOINTS__CRM__DEADLINE", "soon");
    assert!(
        by_variable
            .load()
            .unwrap_err()
            .starts_with("HOOKWARD_ENDPOINTS__CRM__DEADLINE: ")
    );
    let flags = Flags {
        upstream: Some("nonsense".into()),
        secret_env: Some("SECRET".into()),
        ..Flags::default()
    };
    let mut by_flag = Try::new("flag", "toml", "");
    by_flag.sources.flags = flags;
    assert!(by_flag.load().unwrap_err().starts_with("--upstream: "));
}

#[test]
fn variables_of_others_are_ignored_with_one_warning() {
    let text = format!("server.listen = [\"127.0.0.1:8080\"]\n{}", endpoint(""));
    let config = Try::new("k8s", "toml", &text)
        .env("HOOKWARD_SERVICE_HOST", "10.0.0.1")
        .env("HOOKWARD_PORT_8080_TCP", "tcp://10.0.0.1:8080")
        .env("HOOKWARD_LOG", "debug")
        .load()
        .unwrap();
    assert_eq!(config.warnings.len(), 1);
    assert!(config.warnings[0].contains("HOOKWARD_PORT_8080_TCP, HOOKWARD_SERVICE_HOST"));
}

#[test]
fn plain_http_for_strangers_is_warned_about_unless_something_stands_in_front() {
    let warns = |server: &str| {
        let config = good("plain", &format!("[server]\n{server}\n{}", endpoint("")));
        let is_ours = |warning: &String| warning.contains("speaks plain HTTP");
        config.warnings.iter().any(is_ours)
    };
    assert!(warns(""));
    assert!(warns("listen = [\"127.0.0.1:80\", \"[::]:80\"]"));
    assert!(warns("listen = [\"http://10.0.0.1:80\"]"));
    assert!(!warns(
        "listen = [\"127.0.0.1:80\", \"[::1]:80\", \"unix:/run/x.sock\"]"
    ));
    assert!(!warns("trusted_proxies = [\"10.0.0.0/8\"]"));
}

#[test]
fn certificates_in_files_are_shown_as_they_were_given() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let pair = format!(
        "{{ cert = \"{0}/server.pem\", key = \"{0}/server.key\" }}",
        fixtures.display()
    );
    for tls in [pair.clone(), format!("[{pair}, {pair}]")] {
        let config = good("files", &format!("[server]\ntls = {tls}\n{}", endpoint("")));
        let shown = config.effective_toml();
        assert!(
            shown.contains("server.key") && !shown.contains("acme"),
            "{shown}"
        );
        let files = &config.server.tls.unwrap().certificates;
        assert_eq!(files.len(), tls.matches("server.pem").count());
        assert!(
            config
                .watched
                .iter()
                .any(|path| path.ends_with("server.key"))
        );
    }
}

#[test]
fn certificates_from_an_authority_need_names_and_a_place() {
    let with = |top: &str, acme: &str| {
        let text = format!(
            "{top}\n[server]\ntls = {{ acme = {acme} }}\n{}",
            endpoint("")
        );
        Try::new("acme", "toml", &text).load()
    };
    let place = "data_dir = \"/var/lib/x\"";
    let config = with(place, "{ domains = [\"Hooks.example\"] }").unwrap();
    let acme = config.server.acme().unwrap();
    assert_eq!(acme.domains, ["hooks.example"]);
    assert!(acme.directory.starts_with("https://acme-v02."));
    assert_eq!((&acme.contact, acme.roots.len()), (&None, 0));
    assert!(config.effective_toml().contains("[server.tls.acme]"));
    let told = |top: &str, acme: &str| with(top, acme).unwrap_err();
    let good = "domains = [\"a.example\"]";
    for (top, acme, part) in [
        (
            "",
            format!("{{ {good} }}"),
            "server.tls.acme: expected data_dir with it",
        ),
        (
            place,
            "{}".to_owned(),
            "acme.domains: expected at least one",
        ),
        (
            place,
            "{ domains = [\"*.a.example\"] }".to_owned(),
            "acme.domains[0]: expected a DNS name",
        ),
        (
            place,
            "{ domains = [\"127.0.0.1\"] }".to_owned(),
            "acme.domains[0]: expected a DNS name",
        ),
        (
            place,
            "{ domains = [\"localhost\"] }".to_owned(),
            "acme.domains[0]: expected a DNS name",
        ),
        (
            place,
            format!("{{ {good}, contact = \"me@a.example\" }}"),
            "acme.contact: expected a URL",
        ),
        (
            place,
            format!("{{ {good}, directory = \"http://a.example\" }}"),
            "acme.directory: expected the https",
        ),
        (
            place,
            format!("{{ {good}, ca = \"/nowhere\" }}"),
            "acme.ca: /nowhere cannot be read",
        ),
        (
            place,
            format!("{{ {good}, odd = 1 }}"),
            "acme.odd: unknown key",
        ),
        (
            place,
            format!("{{ {good} }}, cert = \"x\""),
            "server.tls.cert: expected either files or acme",
        ),
    ] {
        let told = told(top, &acme);
        assert!(told.contains(part), "{part}\n{told}");
    }
    let twice = format!(
        "{place}\n[server]\ntls = [{{ acme = {{ {good} }} }}, {{ acme = {{ {good} }} }}]\n{}",
        endpoint("")
    );
    assert!(fault("twice", &twice).contains("server.tls: expected acme once"));
}

#[test]
fn flags_alone_make_an_endpoint_named_default() {
    let sources = Sources {
        env: vec![("S".into(), CANARY.into())],
        flags: Flags {
            upstream: Some("http://a:1".into()),
            secret_env: Some("S".into()),
            ..Flags::default()
        },
        ..Sources::default()
    };
    let config = load(&sources, SystemTime::UNIX_EPOCH).unwrap();
    let endpoint = config.endpoints.iter().next().unwrap();
    assert_eq!(
        (endpoint.name.as_str(), endpoint.path.to_string().as_str()),
        ("default", "/")
    );
    let none = load(&Sources::default(), SystemTime::UNIX_EPOCH).unwrap_err();
    assert!(
        none[0].to_string().contains("expected at least one"),
        "{none:?}"
    );
}

#[test]
fn two_endpoints_on_one_path_are_refused() {
    let told = fault(
        "clash",
        &(endpoint("") + &endpoint("").replace("crm", "erp")),
    );
    assert!(
        told.contains("endpoints.erp.path: expected a path of its own"),
        "{told}"
    );
}

#[test]
fn bounds_are_kept() {
    for (name, more, part) in [
        ("status", "reject_status = 410", "without 408, 410 and 429"),
        ("status2", "reject_status = 500", "a number from 400 to 499"),
        ("from", "enforce = false", "expected with enforce = false"),
        (
            "from2",
            "enforce_from = \"2027-01-01T00:00:00Z\"",
            "only with enforce = false",
        ),
        ("events", "events = []", "at least one event type"),
        ("plain", "deadline = 5", "expected a duration"),
        (
            "rate",
            "upstream_options = { rate = \"fast\" }",
            "a rate such as",
        ),
        (
            "ca",
            "upstream_options = { ca = \"/etc/passwd\" }",
            "an https upstream",
        ),
        (
            "own",
            "upstream_options = { headers = { Hookward-Verified = \"true\" } }",
            "does not set itself",
        ),
        (
            "tol",
            "[endpoints.crm.scheme]\nheader = \"X\"\ntolerance = \"5m\"",
            "scheme.tolerance: expected a content",
        ),
    ] {
        let told = fault(name, &endpoint(more));
        assert!(told.contains(part), "{part:?} in {told}");
    }
}

#[test]
fn a_change_that_needs_a_restart_is_named() {
    let one = good("one", &endpoint(""));
    let two = good(
        "two",
        &format!(
            "data_dir = \"/x\"\n[dedup]\ncapacity = 5\n[server]\nthreads = 7\n{}",
            endpoint("")
        ),
    );
    assert_eq!(
        one.needs_restart(&two),
        ["server.threads", "data_dir", "dedup.capacity"]
    );
    assert!(one.needs_restart(&one).is_empty());
}
