//! Who may use API and dashboard.
//!
//! Decides from a request's head alone, before any of its body is read. A token comes as a bearer
//! token or, for browsers, once, for a cookie made from it. What a page on another site can make a
//! browser do is refused: hosts that are not ours (DNS rebinding), and changes that another origin
//! asks for.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use hmac::{Hmac, KeyInit as _, Mac as _};
use http::{HeaderMap, HeaderValue, Method, header, request::Parts};
use ipnet::IpNet;
use sha2::Sha256;
use subtle::ConstantTimeEq as _;

use super::Settings;
use crate::{endpoint::is_trusted, secret::Secret};

/// The cookie's name. No `__Host-` before it: that works with https alone.
const COOKIE: &str = "hookward_session";
/// Cookies of that name that are looked at.
const COOKIES: usize = 8;
/// How long a session lasts.
pub(super) const SESSION: Duration = Duration::from_hours(12);
/// Sessions that were ended before their time; the oldest are forgotten first.
const ENDED_LIMIT: usize = 4096;
/// Wrong tokens that one address may send at once, and the pause that gives one of them back.
const FAILURES: (u32, Duration) = (10, Duration::from_secs(6));
/// Addresses whose failures are counted apart; all others count together.
const PEERS_LIMIT: usize = 1024;

/// Why a request goes no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Denied {
    /// It names a host that is not ours.
    Host,
    /// Another origin asks for a change.
    Origin,
    /// It came with no token, or a wrong one.
    Token,
    /// Too many wrong tokens came from there.
    TooMany,
}

/// How a request was let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// With the token itself.
    Bearer,
    /// With a session's cookie.
    Session,
}

/// A session: what tells it from others, and its end, in seconds since 1970.
type Session = ([u8; 16], u64);

/// Lets in, or not.
pub(super) struct Guard {
    /// Sessions end with the process.
    boot: [u8; 32],
    failures: Mutex<Failures>,
    ended: Mutex<VecDeque<[u8; 16]>>,
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").finish_non_exhaustive()
    }
}

impl Default for Guard {
    fn default() -> Self {
        Self {
            boot: rand::random(),
            failures: Mutex::default(),
            ended: Mutex::default(),
        }
    }
}

impl Guard {
    /// Refuses what another site may have a browser ask for.
    ///
    /// # Errors
    /// [`Denied::Host`] or [`Denied::Origin`].
    pub(super) fn check_site(&self, settings: &Settings, head: &Parts) -> Result<(), Denied> {
        let host = only(&head.headers, &header::HOST).ok_or(Denied::Host)?;
        if !is_ours(settings, host) {
            return Err(Denied::Host);
        }
        if matches!(head.method, Method::GET | Method::HEAD) {
            return Ok(());
        }
        let site = head.headers.get("sec-fetch-site");
        if site.is_some_and(|site| site != "same-origin" && site != "none") {
            return Err(Denied::Origin);
        }
        match head.headers.get(header::ORIGIN) {
            None => Ok(()),
            Some(origin) => {
                let origin = origin.to_str().unwrap_or_default();
                let authority = origin.split_once("://").map(|(_, authority)| authority);
                let authority = authority.ok_or(Denied::Origin)?;
                let is_known = || {
                    let name = name_of(authority);
                    settings.hosts.iter().any(|h| name.eq_ignore_ascii_case(h))
                };
                let is_same = authority.eq_ignore_ascii_case(host) || is_known();
                if is_same { Ok(()) } else { Err(Denied::Origin) }
            }
        }
    }

    /// Lets a request in that comes with the token or a session made from it.
    ///
    /// # Errors
    /// [`Denied::Origin`], [`Denied::Token`] or [`Denied::TooMany`].
    pub(super) fn check(
        &self,
        token: &Secret,
        head: &Parts,
        peer: Option<IpAddr>,
        now: (Instant, SystemTime),
    ) -> Result<Entry, Denied> {
        if let Some(value) = head.headers.get(header::AUTHORIZATION) {
            let (scheme, given) = value
                .to_str()
                .ok()
                .and_then(|value| value.split_once(' '))
                .ok_or(Denied::Token)?;
            if !scheme.eq_ignore_ascii_case("bearer") {
                return Err(Denied::Token);
            }
            self.check_token(token, given.trim(), peer, now.0)?;
            return Ok(Entry::Bearer);
        }
        self.session(token, &head.headers, now.1)
            .ok_or(Denied::Token)?;
        // Browsers say where a change comes from; one that does not cannot be told apart.
        let is_change = !matches!(head.method, Method::GET | Method::HEAD);
        let says_whence = head.headers.contains_key(header::ORIGIN)
            || head.headers.contains_key("sec-fetch-site");
        if is_change && !says_whence {
            return Err(Denied::Origin);
        }
        Ok(Entry::Session)
    }

    /// Compares a token, in constant time, unless too many wrong ones came from there.
    ///
    /// # Errors
    /// [`Denied::Token`] or [`Denied::TooMany`].
    pub(super) fn check_token(
        &self,
        token: &Secret,
        given: &str,
        peer: Option<IpAddr>,
        now: Instant,
    ) -> Result<(), Denied> {
        if !lock(&self.failures).may_try(peer, now) {
            return Err(Denied::TooMany);
        }
        // Of digests: the comparison does not tell lengths apart either.
        let digest = |bytes: &[u8]| self.mac(bytes, b"token").finalize().into_bytes();
        if bool::from(digest(token.bytes()).ct_eq(&digest(given.as_bytes()))) {
            Ok(())
        } else {
            lock(&self.failures).failed(peer, now);
            Err(Denied::Token)
        }
    }

    /// The cookie of a new session.
    pub(super) fn begin(&self, token: &Secret, now: SystemTime, is_secure: bool) -> HeaderValue {
        let (nonce, until): Session = (rand::random(), seconds(now) + SESSION.as_secs());
        let tag = self.tag(token, &nonce, until).finalize().into_bytes();
        let value = format!("{}.{until:x}.{}", hex::encode(nonce), hex::encode(tag));
        cookie(&value, SESSION, is_secure)
    }

    /// Ends a request's session, here and in the browser.
    pub(super) fn end(
        &self,
        token: &Secret,
        headers: &HeaderMap,
        now: SystemTime,
        is_secure: bool,
    ) -> HeaderValue {
        if let Some((nonce, _)) = self.session(token, headers, now) {
            let mut ended = lock(&self.ended);
            ended.push_back(nonce);
            if ended.len() > ENDED_LIMIT {
                ended.pop_front();
            }
        }
        cookie("", Duration::ZERO, is_secure)
    }

    /// The session that a request's cookie stands for.
    fn session(&self, token: &Secret, headers: &HeaderMap, now: SystemTime) -> Option<Session> {
        let cookies = headers.get_all(header::COOKIE).iter();
        let pairs = cookies
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(';'))
            .filter_map(|pair| pair.trim().split_once('='));
        // Whoever else serves this host may have set one of that name too: ours is the one that fits.
        let mut ours = pairs.filter(|(name, _)| *name == COOKIE).take(COOKIES);
        ours.find_map(|(_, value)| self.session_of(token, value, now))
    }

    fn session_of(&self, token: &Secret, value: &str, now: SystemTime) -> Option<Session> {
        let mut parts = value.split('.');
        let (nonce, until, tag) = (parts.next()?, parts.next()?, parts.next()?);
        let mut session: Session = ([0; 16], u64::from_str_radix(until, 16).ok()?);
        hex::decode_to_slice(nonce, &mut session.0).ok()?;
        let (nonce, until) = session;
        let tag = hex::decode(tag).ok()?;
        self.tag(token, &nonce, until).verify_slice(&tag).ok()?;
        let is_good = seconds(now) < until && !lock(&self.ended).contains(&nonce);
        is_good.then_some(session)
    }

    fn tag(&self, token: &Secret, nonce: &[u8], until: u64) -> Hmac<Sha256> {
        let mut mac = self.mac(token.bytes(), b"session");
        mac.update(nonce);
        mac.update(&until.to_be_bytes());
        mac
    }

    fn mac(&self, key: &[u8], purpose: &[u8]) -> Hmac<Sha256> {
        let mac = Hmac::<Sha256>::new_from_slice(key);
        let mut mac = mac.expect("HMAC takes a key of any length");
        mac.update(&self.boot);
        mac.update(purpose);
        mac
    }
}

fn cookie(value: &str, age: Duration, is_secure: bool) -> HeaderValue {
    let secure = if is_secure { "; Secure" } else { "" };
    let age = age.as_secs();
    let text =
        format!("{COOKIE}={value}; Path=/; Max-Age={age}; HttpOnly; SameSite=Strict{secure}");
    // Hexadecimal digits and what stands here: never refused.
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static(""))
}

fn seconds(now: SystemTime) -> u64 {
    now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Who asks: the peer, or whom a trusted one says it asks for, the last that is none of ours.
///
/// Behind a proxy everybody has its address: who guesses there must not have all others refused.
pub(super) fn asker(
    peer: Option<IpAddr>,
    headers: &HeaderMap,
    trusted: &[IpNet],
) -> Option<IpAddr> {
    if !is_trusted(peer, trusted) {
        return peer;
    }
    let lines = headers.get_all("x-forwarded-for").iter();
    let lines: Vec<_> = lines.filter_map(|line| line.to_str().ok()).collect();
    let hops = lines.iter().rev().flat_map(|line| line.rsplit(','));
    // What stands before one that is no address may be anybody's word.
    let hops = hops.map_while(|hop| hop.trim().parse().ok());
    let mut strangers = hops.filter(|hop| !is_trusted(Some(*hop), trusted));
    strangers.next().or(peer)
}

/// The one value of a header.
fn only<'h>(headers: &'h HeaderMap, name: &header::HeaderName) -> Option<&'h str> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().ok(),
        _ => None,
    }
}

/// A host without its port, and an address without its brackets.
fn name_of(authority: &str) -> &str {
    if let Some(rest) = authority.strip_prefix('[') {
        return rest.split(']').next().unwrap_or_default();
    }
    authority.split(':').next().unwrap_or_default()
}

/// Whether a `Host` is one that we are known by: a name that a stranger's DNS can lead here is not.
fn is_ours(settings: &Settings, host: &str) -> bool {
    let name = name_of(host);
    if let Ok(address) = name.parse::<IpAddr>() {
        let address = address.to_canonical();
        // An address is no name: nobody can lead it elsewhere.
        let is_here = |own: &IpAddr| own.is_unspecified() || *own == address;
        return address.is_loopback()
            || settings.addresses.iter().any(is_here)
            || settings.hosts.iter().any(|h| h.parse() == Ok(address));
    }
    let name = name.to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost") || settings.hosts.contains(&name)
}

/// Who sent wrong tokens, and how many of them count still.
#[derive(Default)]
struct Failures {
    by_peer: HashMap<Option<IpAddr>, Failed>,
}

#[derive(Clone, Copy)]
struct Failed {
    count: u32,
    at: Instant,
}

impl Failed {
    fn now(self, now: Instant) -> u32 {
        let pauses = now.saturating_duration_since(self.at).as_secs() / FAILURES.1.as_secs();
        self.count
            .saturating_sub(u32::try_from(pauses).unwrap_or(u32::MAX))
    }
}

impl Failures {
    fn may_try(&self, peer: Option<IpAddr>, now: Instant) -> bool {
        let failed = self.by_peer.get(&self.known(peer));
        failed.is_none_or(|failed| failed.now(now) < FAILURES.0)
    }

    fn failed(&mut self, peer: Option<IpAddr>, now: Instant) {
        if self.by_peer.len() >= PEERS_LIMIT {
            self.by_peer.retain(|_, failed| failed.now(now) > 0);
        }
        let peer = self.known(peer);
        let failed = self
            .by_peer
            .entry(peer)
            .or_insert(Failed { count: 0, at: now });
        let count = failed.now(now) + 1;
        *failed = Failed { count, at: now };
    }

    /// Under what a peer is counted: by its own address while there is room.
    fn known(&self, peer: Option<IpAddr>) -> Option<IpAddr> {
        // One machine has a whole network of IPv6 addresses.
        let peer = peer.map(|peer| match peer.to_canonical() {
            IpAddr::V6(v6) => {
                let network = v6.to_bits() >> 64 << 64;
                IpAddr::V6(network.into())
            }
            v4 @ IpAddr::V4(_) => v4,
        });
        let has_room = self.by_peer.len() < PEERS_LIMIT || self.by_peer.contains_key(&peer);
        peer.filter(|_| has_room)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
