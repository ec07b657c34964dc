//! What an application gets, read with no leniency at all.

/// The first message in these bytes: how many of them it is, and its body; `None` while it is not
/// all there. `tag` is the tag of a body, in hexadecimal.
///
/// # Errors
/// What in it more than one reading fits, or what was not verified.
pub(crate) fn message(
    bytes: &[u8],
    tag: impl Fn(&[u8]) -> String,
) -> Result<Option<(usize, Vec<u8>)>, &'static str> {
    let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = String::from_utf8_lossy(&bytes[..end]);
    let mut lines = head.split("\r\n");
    let first: Vec<&str> = lines.next().unwrap_or_default().split(' ').collect();
    let is_plain = matches!(first[..], ["POST", target, "HTTP/1.1"] if target.starts_with("/in"));
    if !is_plain {
        return Err("no plain request line");
    }
    let mut fields = Vec::new();
    for line in lines {
        let (name, value) = line.split_once(": ").ok_or("a line that is no field")?;
        let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if name.is_empty() || !name.bytes().all(is_token) {
            return Err("a name that is none");
        }
        if value.contains(|c: char| c.is_ascii_control() && c != '\t') {
            return Err("a value with a control character");
        }
        fields.push((name.to_ascii_lowercase(), value));
    }
    let values = |wanted: &str| {
        let named = fields.iter().filter(|(name, _)| name == wanted);
        named.map(|(_, value)| *value).collect::<Vec<_>>()
    };
    for framing in [
        "transfer-encoding",
        "trailer",
        "te",
        "upgrade",
        "connection",
    ] {
        if !values(framing).is_empty() {
            return Err("a field that ends at the gate");
        }
    }
    if values("hookward-verified") != ["true"] || values("host").len() != 1 {
        return Err("not exactly one word on verification and host");
    }
    let [length] = values("content-length")[..] else {
        return Err("not exactly one length");
    };
    let length: usize = length.parse().map_err(|_| "a length that is none")?;
    let (start, end) = (end + 4, end + 4 + length);
    let Some(body) = bytes.get(start..end) else {
        return Ok(None);
    };
    if values("tinytalk-signature") != [tag(body)] {
        return Err("a signature over another body");
    }
    Ok(Some((end, body.to_vec())))
}
