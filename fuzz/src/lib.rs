//! What the fuzz targets share: a gate between two Unix sockets in this very process, and readings of
//! HTTP/1.1 that know no leniency.

pub mod answer;
pub mod frames;
pub mod gate;
#[path = "../../tests/support/message.rs"]
mod message;
pub mod requests;
pub mod upstream;

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

/// The secret of every endpoint.
pub const SECRET: &str = "a-secret-of-thirty-two-bytes-ab!";

/// The tag a sender writes over a body, in hexadecimal.
pub fn tag(body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).expect("a key of any length");
    mac.update(body);
    hex::encode(mac.finalize().into_bytes())
}

/// Takes a number off the front.
pub fn take(data: &mut &[u8]) -> usize {
    let Some((first, rest)) = data.split_first() else {
        return 0;
    };
    *data = rest;
    usize::from(*first)
}

/// Takes as many bytes off the front as the first of them says.
pub fn take_bytes<'d>(data: &mut &'d [u8]) -> &'d [u8] {
    let length = take(data).min(data.len());
    let (bytes, rest) = data.split_at(length);
    *data = rest;
    bytes
}

/// Cuts bytes into pieces at places, each counted from the one before.
pub fn pieces<'b>(mut bytes: &'b [u8], cuts: &[u8]) -> Vec<&'b [u8]> {
    let mut pieces = Vec::new();
    for cut in cuts {
        let (piece, rest) = bytes.split_at(usize::from(*cut).min(bytes.len()));
        bytes = rest;
        pieces.push(piece);
    }
    pieces.push(bytes);
    pieces.retain(|piece| !piece.is_empty());
    pieces
}

/// A configuration, read from this text with [`SECRET`] in the variable `SECRET`.
pub fn config(
    name: &str,
    text: &str,
) -> Result<hookward::config::Config, Vec<hookward::config::Fault>> {
    let file = scratch(name);
    std::fs::write(&file, text).expect("a scratch file can be written");
    let sources = hookward::config::Sources {
        file: Some(file),
        env: vec![("SECRET".to_owned(), SECRET.to_owned())],
        ..Default::default()
    };
    hookward::config::load(&sources, std::time::SystemTime::now())
}

/// A place for a file of this process's own, in memory where there is such a place.
pub fn scratch(name: &str) -> std::path::PathBuf {
    let memory = std::path::Path::new("/dev/shm");
    let base = if memory.is_dir() {
        memory.to_owned()
    } else {
        std::env::temp_dir()
    };
    base.join(format!("hookward-fuzz-{}-{name}", std::process::id()))
}
