//! The PROXY protocol, versions 1 and 2 (HAProxy's `proxy-protocol.txt`): what a proxy that passes
//! connections on says first about who is behind it.
//!
//! Reads exactly the preamble and not a byte more: what comes behind it is TLS or HTTP.

use std::{io, net::IpAddr};

use ppp::{v1, v2};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// What every preamble of version 2 begins with; one of version 1 is longer, too.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Longest line of version 1, in bytes.
const LINE: usize = 107;
/// Bytes of version 2 before what its length counts.
const FIXED: usize = 16;
/// Most bytes behind those; addresses take up to 216, the rest is for what we pass over.
const MOST: usize = 4096;

/// What a preamble tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// For whom the connection is made.
    pub client: Client,
    /// The proxy itself took TLS off.
    pub is_secure: bool,
}

/// Who is behind a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// Somebody at this address.
    Ip(IpAddr),
    /// Somebody on the proxy's machine, by a socket in its file system.
    Local,
    /// The proxy itself, or it does not know.
    Proxy,
}

/// What came is no preamble, or broke off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoPreamble;

/// The first byte of what may be a preamble.
#[derive(Clone, Copy, Debug)]
pub struct First(u8);

/// Waits for the first byte; `None` where the other side went away without one, as those do who
/// only look whether somebody listens.
pub async fn first(stream: &mut (impl AsyncRead + Unpin)) -> Option<First> {
    stream.read_u8().await.ok().map(First)
}

impl From<io::Error> for NoPreamble {
    fn from(_: io::Error) -> Self {
        Self
    }
}

/// Reads the rest of a preamble.
///
/// # Errors
/// [`NoPreamble`]; how much was read is then of no interest.
pub async fn read(
    First(first): First,
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<Told, NoPreamble> {
    let mut bytes = vec![first; SIGNATURE.len()];
    let rest = bytes.get_mut(1..).unwrap_or_default();
    stream.read_exact(rest).await?;
    if bytes == SIGNATURE {
        bytes.resize(FIXED, 0);
        let fixed = bytes.get_mut(SIGNATURE.len()..).unwrap_or_default();
        stream.read_exact(fixed).await?;
        let length = match bytes.as_slice() {
            [.., high, low] => usize::from(u16::from_be_bytes([*high, *low])),
            _ => return Err(NoPreamble),
        };
        if length > MOST {
            return Err(NoPreamble);
        }
        bytes.resize(FIXED + length, 0);
        stream
            .read_exact(bytes.get_mut(FIXED..).unwrap_or_default())
            .await?;
        return binary(&bytes);
    }
    if !bytes.starts_with(b"PROXY ") {
        return Err(NoPreamble);
    }
    // One by one: where the line ends is known at its end, and it is short.
    while !bytes.ends_with(b"\n") {
        if bytes.len() == LINE {
            return Err(NoPreamble);
        }
        bytes.push(stream.read_u8().await?);
    }
    // One end that every reader sees: of an unknown client's line the library takes other ends, too.
    if memchr::memchr(b'\r', &bytes) != bytes.len().checked_sub(2) {
        return Err(NoPreamble);
    }
    line(&bytes)
}

fn line(bytes: &[u8]) -> Result<Told, NoPreamble> {
    let header = v1::Header::try_from(bytes).map_err(|_| NoPreamble)?;
    let client = match header.addresses {
        v1::Addresses::Tcp4(both) => Client::Ip(both.source_address.into()),
        v1::Addresses::Tcp6(both) => Client::Ip(both.source_address.into()),
        v1::Addresses::Unknown => Client::Proxy,
    };
    let is_secure = false;
    Ok(Told { client, is_secure })
}

fn binary(bytes: &[u8]) -> Result<Told, NoPreamble> {
    let header = v2::Header::try_from(bytes).map_err(|_| NoPreamble)?;
    let client = match (header.command, header.addresses) {
        (v2::Command::Local, _) | (_, v2::Addresses::Unspecified) => Client::Proxy,
        (v2::Command::Proxy, v2::Addresses::IPv4(both)) => Client::Ip(both.source_address.into()),
        (v2::Command::Proxy, v2::Addresses::IPv6(both)) => Client::Ip(both.source_address.into()),
        (v2::Command::Proxy, v2::Addresses::Unix(_)) => Client::Local,
    };
    // PP2_TYPE_SSL, whose first byte says PP2_CLIENT_SSL; of a local command nothing is taken.
    let mut fields = header.tlvs().map_while(Result::ok);
    let is_secure = header.command == v2::Command::Proxy
        && fields.any(|field| {
            field.kind == u8::from(v2::Type::SSL) && field.value.first().is_some_and(|b| b & 1 == 1)
        });
    Ok(Told { client, is_secure })
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        task::{Context, Poll, Waker},
    };

    use super::*;

    /// What is read of these bytes, and what is left of them.
    fn read_of(bytes: &[u8]) -> (Result<Told, NoPreamble>, Vec<u8>) {
        let mut rest = bytes;
        let mut cx = Context::from_waker(Waker::noop());
        let whole = async {
            let first = first(&mut rest).await.ok_or(NoPreamble)?;
            read(first, &mut rest).await
        };
        let told = match pin!(whole).poll(&mut cx) {
            Poll::Ready(told) => told,
            Poll::Pending => panic!("bytes at hand are waited for"),
        };
        (told, rest.to_vec())
    }

    fn told(client: Client) -> Result<Told, NoPreamble> {
        let is_secure = false;
        Ok(Told { client, is_secure })
    }

    fn binary(command: u8, family: u8, content: &[u8]) -> Vec<u8> {
        let length = u16::try_from(content.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, content].concat()
    }

    const FOUR: [u8; 12] = [203, 0, 113, 9, 127, 0, 0, 1, 0x12, 0x34, 0, 80];

    #[test]
    fn addresses_are_told_and_what_comes_behind_is_left() {
        let six = [&[0x20; 16][..], &[0; 16], &[1, 2, 3, 4]].concat();
        let ip = |text: &str| Client::Ip(text.parse().unwrap());
        let cases = [
            (
                b"PROXY TCP4 203.0.113.9 127.0.0.1 4660 80\r\n".to_vec(),
                ip("203.0.113.9"),
            ),
            (
                b"PROXY TCP6 2001:db8::1 ::1 4660 80\r\n".to_vec(),
                ip("2001:db8::1"),
            ),
            (b"PROXY UNKNOWN\r\n".to_vec(), Client::Proxy),
            (
                b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n".to_vec(),
                Client::Proxy,
            ),
            (binary(0x21, 0x11, &FOUR), ip("203.0.113.9")),
            (
                binary(0x21, 0x21, &six),
                ip("2020:2020:2020:2020:2020:2020:2020:2020"),
            ),
            (binary(0x20, 0x11, &FOUR), Client::Proxy),
            (binary(0x20, 0, b""), Client::Proxy),
            (binary(0x21, 0, b"whatever"), Client::Proxy),
            (binary(0x21, 0x31, &[0; 216]), Client::Local),
        ];
        for (bytes, client) in cases {
            let all = [&bytes[..], b"POST"].concat();
            assert_eq!(read_of(&all), (told(client), b"POST".to_vec()), "{bytes:?}");
            for cut in 0..bytes.len() {
                assert_eq!(
                    read_of(&bytes[..cut]).0,
                    Err(NoPreamble),
                    "{cut} of {bytes:?}"
                );
            }
        }
    }

    #[test]
    fn tls_that_the_proxy_took_off_is_told() {
        let with = |fields: &[u8]| {
            let content = [&FOUR[..], fields].concat();
            read_of(&binary(0x21, 0x11, &content)).0.unwrap().is_secure
        };
        assert!(with(b"\x20\x00\x05\x01\0\0\0\0"));
        assert!(with(b"\x01\x00\x02h2\x20\x00\x05\x07\0\0\0\0"));
        assert!(!with(b"\x20\x00\x05\x00\0\0\0\0"));
        assert!(!with(b"\x20\x00\x00"));
        assert!(!with(b"\x20\x00\x09\x01"));
        let local = [&FOUR[..], b"\x20\x00\x05\x01\0\0\0\0"].concat();
        assert!(!read_of(&binary(0x20, 0x11, &local)).0.unwrap().is_secure);
    }

    #[test]
    fn whatever_else_is_no_preamble() {
        let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(100));
        for bytes in [
            b"POST /hook HTTP/1.1\r\n".to_vec(),
            b"PROXY TCP4 203.0.113.9 127.0.0.1 4660 80\n".to_vec(),
            b"PROXY TCP4 203.0.113.9 127.0.0.1 4660\r\n".to_vec(),
            b"PROXY TCP4 2001:db8::1 ::1 4660 80\r\n".to_vec(),
            b"PROXY TCP4 203.0.113.999 127.0.0.1 1 2\r\n".to_vec(),
            b"PROXY UNKNOWN a b c d \n".to_vec(),
            b"PROXY UNKNOWN a b c\r \n".to_vec(),
            b"PROXY UNKNOWN a\r b\r\n".to_vec(),
            b"proxy TCP4 203.0.113.9 127.0.0.1 1 2\r\n".to_vec(),
            b"PROXY UDP4 203.0.113.9 127.0.0.1 1 2\r\n".to_vec(),
            long.into_bytes(),
            binary(0x11, 0x11, &FOUR),
            binary(0x23, 0x11, &FOUR),
            binary(0x21, 0x11, &FOUR[..8]),
            binary(0x21, 0x11, &[0; MOST + 1]),
        ] {
            let mut all = bytes.clone();
            all.extend([b'x'; 200]);
            assert_eq!(read_of(&all).0, Err(NoPreamble), "{bytes:?}");
        }
    }
}
