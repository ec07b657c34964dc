//! `demo`: everything on loopback, so that a newcomer sees what a gate does.

mod outage;

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
    time::{Duration, SystemTime},
};

use clap::Args;
use http::Uri;

use self::outage::Outage;
use super::{Failure, Outcome, print, sample};
use crate::{
    app::{App, MainThread},
    config::{self, Flags, Sources},
    secret::Secret,
    signature::{Scheme, ToSign},
};

/// The demo's secret; it is known to everyone who reads this.
const SECRET: &str = "demo-secret-do-not-use-elsewhere";
const VARIABLE: &str = "HOOKWARD_DEMO_SECRET";
const PATH: &str = "/webhooks/tinytalk";
/// What opens the demo's dashboard; a fresh one every time.
const TOKEN: &str = "HOOKWARD_DEMO_TOKEN";
/// Longer than anything on loopback takes.
const PATIENCE: Duration = Duration::from_secs(10);
/// Deliveries the sample application may be behind with; there are fewer altogether.
const BACKLOG: usize = 64;

/// How the demo goes on.
#[derive(Debug, Args)]
pub(super) struct DemoArgs {
    /// Keep running afterwards, until Ctrl-C
    #[arg(long)]
    keep: bool,
    /// Where the gate listens
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    listen: String,
}

pub(super) fn run(args: DemoArgs) -> Outcome {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let application = listener.local_addr()?;
    let delivered = application_at(listener);
    let outage = Outage::new()?;
    let token = uuid::Uuid::new_v4().simple().to_string();
    let operator = [
        ("LISTEN", r#"["127.0.0.1:0"]"#.to_owned()),
        ("TOKEN", format!(r#"{{env="{TOKEN}"}}"#)),
        ("UPSTREAM_ALLOW", r#"["127.0.0.0/8"]"#.to_owned()),
        ("CAPTURE", "{events=1000}".to_owned()),
    ];
    let operator = operator.map(|(key, value)| (format!("HOOKWARD_ADMIN__{key}"), value));
    let sources = Sources {
        env: [
            (VARIABLE.to_owned(), SECRET.to_owned()),
            (TOKEN.to_owned(), token.clone()),
        ]
        .into_iter()
        .chain(operator)
        .chain(outage.variables())
        .collect(),
        flags: Flags {
            upstream: Some(format!("http://{application}/hooks")),
            secret_env: Some(VARIABLE.to_owned()),
            path: Some(PATH.to_owned()),
            mode: None,
            listen: vec![args.listen],
        },
        file: None,
        unreadable: Vec::new(),
    };
    let config = config::load(&sources, SystemTime::now())?;
    let app = App::start(config, sources).map_err(|error| Failure::Failed(error.to_string()))?;
    let gate = app
        .public_addresses()
        .next()
        .map(ToString::to_string)
        .unwrap_or_default();
    let url = format!("http://{gate}{PATH}");
    print(&format!(
        "A gate listens at {url}; behind it, an application at {application}.\n\n"
    ))?;

    let show = Show {
        url: url.parse().map_err(io::Error::other)?,
        delivered,
    };
    let is_as_it_should_be = show.everything()? && outage.show(&gate)?;
    if !is_as_it_should_be {
        return Err(Failure::Failed(
            "the gate did not behave as it should".to_owned(),
        ));
    }
    if !args.keep {
        return print("\nAs it should be. Try your own: hookward serve --help\n");
    }
    let dashboard = app.admin_addresses().next();
    let dashboard = dashboard.map(ToString::to_string).unwrap_or_default();
    print(&format!(
        "\nThe dashboard is at http://{dashboard}/ and opens with this token: {token}\n"
    ))?;
    print(&format!(
        "\nStill running; stop it with Ctrl-C. Send an event of your own from another terminal:\n\
         \n  {VARIABLE}={SECRET} hookward send message.created --to {url} --secret-env {VARIABLE}\n",
    ))?;
    let main = MainThread::new().map_err(|error| Failure::Failed(error.to_string()))?;
    app.run(main, None)
        .map_err(|error| Failure::Failed(error.to_string()))
}

/// The sample application: it takes whatever comes and says what it got.
fn application_at(listener: TcpListener) -> Receiver<String> {
    let (deliveries, delivered) = sync_channel(BACKLOG);
    // Ends with the process.
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let deliveries = deliveries.clone();
            thread::spawn(move || serve(stream, &deliveries));
        }
    });
    delivered
}

/// Answers the requests of one connection until it ends.
fn serve(stream: TcpStream, deliveries: &SyncSender<String>) -> Option<()> {
    let mut answers = stream.try_clone().ok()?;
    let mut requests = BufReader::new(stream);
    loop {
        let (mut event, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            requests.read_line(&mut line).ok().filter(|&n| n > 0)?;
            match line.trim_end().split_once(": ") {
                Some(("content-length", value)) => length = value.parse().ok()?,
                Some(("hookward-event-type", value)) => value.clone_into(&mut event),
                None if line.trim_end().is_empty() => break,
                Some(_) | None => {}
            }
        }
        let mut body = vec![0; length];
        requests.read_exact(&mut body).ok()?;
        // Told before the answer: whoever has the answer finds it told. With nobody listening the
        // answer still goes out.
        let _ = deliveries.try_send(format!("{event}, {length} bytes"));
        answers.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").ok()?;
    }
}

/// What is shown.
struct Show {
    url: Uri,
    delivered: Receiver<String>,
}

impl Show {
    fn everything(&self) -> Result<bool, Failure> {
        let mut fine = true;
        print("One genuine event of each type:\n")?;
        for (event, body) in sample::EVENTS {
            fine &= self.send(
                event,
                &format!("demo-{event}"),
                body,
                body,
                SECRET,
                (204, true),
            )?;
        }
        let (event, body) = (
            "message.created",
            sample::body_of("message.created").unwrap_or(""),
        );
        print("\nThe same event again, as a sender that saw no answer would:\n")?;
        fine &= self.send(
            event,
            "demo-message.created",
            body,
            body,
            SECRET,
            (200, false),
        )?;
        print("\nForged events:\n")?;
        let tampered = body.replace("Graz", "Linz");
        fine &= self.send(
            "body changed",
            "demo-1",
            &tampered,
            body,
            SECRET,
            (401, false),
        )?;
        fine &= self.send(
            "wrong secret",
            "demo-2",
            body,
            body,
            "guessed-secret",
            (401, false),
        )?;
        fine &= self.send("not signed", "demo-3", body, body, "", (401, false))?;
        Ok(fine)
    }

    /// Sends one event and compares what came of it with what should: a status, and whether the
    /// application got it.
    fn send(
        &self,
        what: &str,
        key: &str,
        body: &str,
        signed: &str,
        secret: &str,
        expected: (u16, bool),
    ) -> Result<bool, Failure> {
        let failed = |what: &str| Failure::Failed(what.to_owned());
        let scheme = Scheme::preset("tinytalk").ok_or_else(|| failed("no preset"))?;
        let to_sign = ToSign {
            id: key,
            timestamp: SystemTime::now(),
            method: "POST",
            url: PATH,
            body: signed.as_bytes(),
            event_type: None,
        };
        let headers = match Secret::new("demo".to_owned(), secret.as_bytes().to_vec(), None) {
            Ok(secret) => scheme.sign(&secret, &to_sign),
            Err(_unsigned) => Vec::new(),
        };
        let reply = sample::post(&self.url, &headers, body.as_bytes())?;
        let wait = if expected.1 { PATIENCE } else { Duration::ZERO };
        let delivered = self.delivered.recv_timeout(wait).ok();
        let outcome = reply.header("hookward-outcome").unwrap_or("-");
        let application = delivered
            .as_ref()
            .map_or_else(|| "nothing".to_owned(), Clone::clone);
        print(&format!(
            "  {what:<22} {} {outcome:<10} application got {application}\n",
            reply.status
        ))?;
        Ok((reply.status, delivered.is_some()) == expected)
    }
}
