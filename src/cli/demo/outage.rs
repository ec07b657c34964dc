//! The second half of the demo: an application that is down, and events that wait for it on disk.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
};

use super::{PATIENCE, SECRET, Show, VARIABLE, application_at};
use crate::cli::{Failure, print, sample};

const PATH: &str = "/webhooks/crm";

/// An application's address where nobody listens yet, and a place on disk for its events.
pub(super) struct Outage {
    address: SocketAddr,
    dir: PathBuf,
}

impl Outage {
    pub(super) fn new() -> io::Result<Self> {
        // Given up again at once: from here on connections to it are refused.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let dir = std::env::temp_dir().join(format!("hookward-demo-{}", std::process::id()));
        Ok(Self { address, dir })
    }

    /// The configuration of its endpoint, as variables.
    pub(super) fn variables(&self) -> Vec<(String, String)> {
        let endpoint = |key: &str| format!("HOOKWARD_ENDPOINTS__CRM__{key}");
        let secrets = format!(r#"[{{name="demo",env="{VARIABLE}"}}]"#);
        vec![
            (
                "HOOKWARD_DATA_DIR".to_owned(),
                self.dir.display().to_string(),
            ),
            (endpoint("PATH"), PATH.to_owned()),
            (
                endpoint("UPSTREAM"),
                format!("http://{}/hooks", self.address),
            ),
            (endpoint("MODE"), "queue".to_owned()),
            (endpoint("SECRETS"), secrets),
        ]
    }

    /// Sends events while the application is down, lets it come back, and waits for them there.
    pub(super) fn show(&self, gate: &str) -> Result<bool, Failure> {
        let url = format!("http://{gate}{PATH}");
        print(&format!(
            "\nAn application that is down ({}); its events are acknowledged when they are on disk:\n",
            self.address
        ))?;
        // Nobody can deliver yet: the receiver is only there to be asked.
        let (_nobody, delivered) = std::sync::mpsc::sync_channel(1);
        let show = Show {
            url: url.parse().map_err(io::Error::other)?,
            delivered,
        };
        let events = sample::EVENTS.iter().take(3);
        let mut fine = true;
        for (event, body) in events.clone() {
            let key = format!("outage-{event}");
            fine &= show.send(event, &key, body, body, SECRET, (200, false))?;
        }
        print("\nIt is back:\n")?;
        let delivered = application_at(TcpListener::bind(self.address)?);
        for _ in events {
            match delivered.recv_timeout(PATIENCE) {
                Ok(event) => print(&format!("  application got {event}\n"))?,
                Err(_nothing) => fine = false,
            }
        }
        Ok(fine)
    }
}

impl Drop for Outage {
    fn drop(&mut self) {
        // It is in the directory for temporary files: what stays there is tidied away.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
