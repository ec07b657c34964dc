use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
};

use serde_json::{Value, json};

use super::{HANG, Reply, Sender, Setup};

/// What opens the API of every daemon here.
pub(crate) const TOKEN: &str = "a-token-of-our-own-0123456789";

/// An upstream that is allowed, where nothing is ever sent to.
pub(crate) const NOBODY: &str = "http://127.0.0.1:9/";

impl Setup {
    /// Opens its API, on disk, with upstreams on this machine allowed at run time.
    pub(crate) fn operated(self) -> Self {
        self.on_disk()
            .env("OPERATOR", TOKEN)
            .env("HOOKWARD_ADMIN__TOKEN", r#"{env="OPERATOR"}"#)
            .env("HOOKWARD_ADMIN__UPSTREAM_ALLOW", r#"["127.0.0.0/8"]"#)
    }
}

/// Somebody with the token.
pub(crate) struct Operator(pub(crate) SocketAddr);

impl Operator {
    /// Asks with the token; an answer that is no JSON is null.
    pub(crate) fn ask(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let token = format!("Authorization: Bearer {TOKEN}\r\n");
        let reply = self.send(method, path, &token, body);
        let json = serde_json::from_slice(&reply.body).unwrap_or_default();
        (reply.status, json)
    }

    /// Reads what has to be there.
    pub(crate) fn get(&self, path: &str) -> Value {
        let (status, said) = self.ask("GET", path, &Value::Null);
        assert_eq!(status, 200, "{path}: {said}");
        said
    }

    /// Makes an endpoint.
    pub(crate) fn create(&self, name: &str, settings: &Value) -> (u16, Value) {
        let body = json!({"name": name, "settings": settings});
        self.ask("POST", "/endpoints", &body)
    }

    /// Asks with these header lines, each ended by CRLF.
    pub(crate) fn send(&self, method: &str, path: &str, headers: &str, body: &Value) -> Reply {
        let host = if headers.to_ascii_lowercase().contains("host:") {
            String::new()
        } else {
            format!("Host: {}\r\n", self.0)
        };
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let kind = if body.is_empty() {
            String::new()
        } else {
            format!(
                "Content-Type: application/json\r\nContent-Length: {}\r\n",
                body.len()
            )
        };
        let mut sender = Sender::connect(self.0);
        sender.write(
            format!("{method} /api/v1{path} HTTP/1.1\r\n{host}{headers}{kind}Connection: close\r\n\r\n{body}")
                .as_bytes(),
        );
        sender.reply()
    }

    /// Watches requests as they come.
    pub(crate) fn watch(&self) -> Stream {
        let mut tcp = TcpStream::connect(self.0).unwrap();
        tcp.set_read_timeout(Some(HANG)).unwrap();
        let head = format!(
            "GET /api/v1/requests/stream HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {TOKEN}\r\n\r\n",
            self.0
        );
        tcp.write_all(head.as_bytes()).unwrap();
        let mut stream = Stream {
            tcp,
            text: String::new(),
        };
        stream.until("event: hello");
        stream
    }
}

/// Server-sent events, their chunks' lengths among them.
pub(crate) struct Stream {
    tcp: TcpStream,
    text: String,
}

impl Stream {
    /// Reads until a text has come; everything so far.
    pub(crate) fn until(&mut self, text: &str) -> &str {
        self.until_holds(|so_far| so_far.contains(text))
    }

    /// Reads until this holds of everything so far.
    pub(crate) fn until_holds(&mut self, holds: impl Fn(&str) -> bool) -> &str {
        while !holds(&self.text) {
            let mut chunk = [0; 16 * 1024];
            let length = self.tcp.read(&mut chunk).unwrap();
            assert!(length > 0, "it ended too early: {}", self.text);
            self.text
                .push_str(&String::from_utf8_lossy(&chunk[..length]));
        }
        &self.text
    }

    /// Reads to its end.
    pub(crate) fn end(mut self) -> String {
        self.tcp.read_to_string(&mut self.text).unwrap();
        self.text
    }
}
