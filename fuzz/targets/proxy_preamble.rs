//! What a proxy says first, by the PROXY protocol: whom it names is whom the document's letter names, and
//! not a byte behind it is read.
#![no_main]

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    pin::pin,
    task::{Context, Poll, Waker},
};

use hookward::connection::preamble::{Client, Told, first, read};
use libfuzzer_sys::fuzz_target;

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// What is read of these bytes, and how many of them.
fn read_of(bytes: &[u8]) -> Option<(Told, usize)> {
    let mut rest = bytes;
    let told = {
        let whole = async {
            let first = first(&mut rest).await?;
            read(first, &mut rest).await.ok()
        };
        match pin!(whole).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(told) => told?,
            Poll::Pending => panic!("bytes at hand are waited for"),
        }
    };
    Some((told, bytes.len() - rest.len()))
}

/// Version 1: one line.
fn line(bytes: &[u8]) -> Option<(Told, usize)> {
    let end = bytes.windows(2).position(|w| w == b"\r\n")?;
    let text = str::from_utf8(&bytes[..end]).ok()?;
    let words: Vec<&str> = text.split(' ').collect();
    let client = match words[..] {
        ["PROXY", "UNKNOWN", ..] => Client::Proxy,
        ["PROXY", family, source, target, ..] => {
            let (source, target): (IpAddr, IpAddr) = (source.parse().ok()?, target.parse().ok()?);
            let is_four = family == "TCP4";
            (is_four || family == "TCP6").then_some(())?;
            (source.is_ipv4() == is_four && target.is_ipv4() == is_four).then_some(())?;
            let [_, _, _, _, from, to] = words[..] else {
                return None;
            };
            from.parse::<u16>().and(to.parse::<u16>()).ok()?;
            Client::Ip(source)
        }
        _ => return None,
    };
    let is_secure = false;
    Some((Told { client, is_secure }, end + 2))
}

/// Version 2: a command, addresses, and fields of which one tells of TLS.
fn binary(bytes: &[u8]) -> Option<(Told, usize)> {
    let [command, family, high, low, rest @ ..] = bytes.strip_prefix(SIGNATURE)? else {
        return None;
    };
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    let content = rest.get(..length)?;
    let (client, size) = match family >> 4 {
        0 => (Client::Proxy, content.len()),
        1 => {
            let source: [u8; 4] = content.get(..4)?.try_into().ok()?;
            (Client::Ip(Ipv4Addr::from(source).into()), 12)
        }
        2 => {
            let source: [u8; 16] = content.get(..16)?.try_into().ok()?;
            (Client::Ip(Ipv6Addr::from(source).into()), 36)
        }
        3 => (Client::Local, 216),
        _ => return None,
    };
    let mut fields = content.get(size..)?;
    let mut is_secure = false;
    while let [kind, high, low, rest @ ..] = fields {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let Some(value) = rest.get(..length) else {
            break;
        };
        is_secure |= *kind == 0x20 && value.first().is_some_and(|flags| flags & 1 == 1);
        fields = &rest[length..];
    }
    let told = match command {
        // The proxy speaks for itself.
        0x20 => Told {
            client: Client::Proxy,
            is_secure: false,
        },
        0x21 => Told { client, is_secure },
        _ => return None,
    };
    Some((told, 16 + length))
}

fuzz_target!(|data: &[u8]| {
    if let Some(found) = read_of(data) {
        let named = binary(data).or_else(|| line(data));
        assert_eq!(Some(found), named, "{}", data.escape_ascii());
        let (_, length) = found;
        assert_eq!(read_of(&data[..length]), Some(found), "by itself");
        assert_eq!(read_of(&data[..length - 1]), None, "cut");
    }
});
