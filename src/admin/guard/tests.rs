use http::Request;

use super::*;

const TOKEN: &str = "a-token-of-our-own-0123456789";

fn token() -> Secret {
    Secret::new("token".to_owned(), TOKEN.as_bytes().to_vec(), None).unwrap()
}

fn head(method: &str, headers: &[(&str, &str)]) -> Parts {
    let mut request = Request::builder().method(method).uri("/api/v1/stats");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

fn now() -> (Instant, SystemTime) {
    (Instant::now(), SystemTime::now())
}

fn site(settings: &Settings, method: &str, headers: &[(&str, &str)]) -> Result<(), Denied> {
    Guard::default().check_site(settings, &head(method, headers))
}

#[test]
fn hosts_that_a_strangers_dns_can_lead_here_are_refused() {
    let settings = Settings {
        addresses: vec!["192.0.2.7".parse().unwrap()],
        hosts: vec!["hooks.example".to_owned()],
        ..Settings::default()
    };
    for host in [
        "localhost",
        "localhost:9464",
        "127.0.0.1:9464",
        "[::1]:9464",
        "192.0.2.7",
        "Hooks.Example:443",
        "x.localhost",
    ] {
        assert_eq!(site(&settings, "GET", &[("host", host)]), Ok(()), "{host}");
    }
    for host in [
        "evil.example",
        "192.0.2.8",
        "localhost.evil.example",
        "",
        "hooks.example.evil",
    ] {
        let refused = site(&settings, "GET", &[("host", host)]);
        assert_eq!(refused, Err(Denied::Host), "{host}");
    }
    let twice = [("host", "localhost"), ("host", "localhost")];
    assert_eq!(site(&settings, "GET", &twice), Err(Denied::Host));
    assert_eq!(site(&settings, "GET", &[]), Err(Denied::Host));
    let everywhere = Settings {
        addresses: vec!["0.0.0.0".parse().unwrap()],
        ..Settings::default()
    };
    assert_eq!(site(&everywhere, "GET", &[("host", "192.0.2.8")]), Ok(()));
    let named = site(&everywhere, "GET", &[("host", "evil.example")]);
    assert_eq!(named, Err(Denied::Host));
}

#[test]
fn changes_that_another_origin_asks_for_are_refused() {
    let settings = Settings::default();
    let from = |origin| {
        site(
            &settings,
            "POST",
            &[("host", "localhost:1"), ("origin", origin)],
        )
    };
    assert_eq!(from("http://localhost:1"), Ok(()));
    for origin in ["http://localhost:2", "http://evil.example", "null", ""] {
        assert_eq!(from(origin), Err(Denied::Origin), "{origin}");
    }
    for (from, outcome) in [
        ("same-origin", Ok(())),
        ("none", Ok(())),
        ("cross-site", Err(Denied::Origin)),
        ("same-site", Err(Denied::Origin)),
    ] {
        let headers = [("host", "localhost:1"), ("sec-fetch-site", from)];
        assert_eq!(site(&settings, "DELETE", &headers), outcome, "{from}");
    }
}

#[test]
fn the_token_opens_and_nothing_like_it_does() {
    let guard = Guard::default();
    let ask = |value: &str| {
        guard.check(
            &token(),
            &head("POST", &[("authorization", value)]),
            None,
            now(),
        )
    };
    assert_eq!(ask(&format!("Bearer {TOKEN}")), Ok(Entry::Bearer));
    assert_eq!(ask(&format!("bearer {TOKEN}")), Ok(Entry::Bearer));
    for value in [
        "",
        "Bearer",
        "Bearer ",
        &format!("Bearer {TOKEN}x"),
        "Basic eA==",
    ] {
        assert_eq!(ask(value), Err(Denied::Token), "{value}");
    }
    assert_eq!(
        guard.check(&token(), &head("GET", &[]), None, now()),
        Err(Denied::Token)
    );
}

#[test]
fn who_sends_wrong_tokens_has_to_wait_and_nobody_else_has() {
    let guard = Guard::default();
    let (here, there) = ("192.0.2.1".parse().ok(), "192.0.2.2".parse().ok());
    let start = Instant::now();
    for _ in 0..FAILURES.0 {
        let wrong = guard.check_token(&token(), "x", here, start);
        assert_eq!(wrong, Err(Denied::Token));
    }
    let right = |peer, at| guard.check_token(&token(), TOKEN, peer, at);
    assert_eq!(right(here, start), Err(Denied::TooMany));
    assert_eq!(right(there, start), Ok(()));
    assert_eq!(right(here, start + FAILURES.1), Ok(()));
}

#[test]
fn addresses_beyond_those_counted_apart_are_counted_together() {
    let guard = Guard::default();
    let start = Instant::now();
    for number in 0..2000_u32 {
        let peer = Some(IpAddr::from(number.to_be_bytes()));
        let _ = guard.check_token(&token(), "x", peer, start);
    }
    assert!(lock(&guard.failures).by_peer.len() <= PEERS_LIMIT + 1);
    let new = "203.0.113.1".parse().ok();
    let refused = guard.check_token(&token(), TOKEN, new, start);
    assert_eq!(refused, Err(Denied::TooMany));
}

#[test]
fn a_session_opens_until_it_ends() {
    let guard = Guard::default();
    let start = SystemTime::now();
    let cookie = guard.begin(&token(), start, false);
    let cookie = cookie.to_str().unwrap();
    assert!(cookie.contains("; HttpOnly; SameSite=Strict") && !cookie.contains("Secure"));
    assert!(!cookie.contains(TOKEN));
    let secure = guard.begin(&token(), start, true);
    assert!(secure.to_str().unwrap().ends_with("; Secure"));
    let pair = format!("a=b; {}", cookie.split(';').next().unwrap());
    let ask = |pair: &str, at: SystemTime| {
        let head = head("GET", &[("cookie", pair)]);
        guard.check(&token(), &head, None, (Instant::now(), at))
    };
    assert_eq!(ask(&pair, start), Ok(Entry::Session));
    assert_eq!(ask(&pair, start + SESSION), Err(Denied::Token));
    // Neither its end nor its tag can be changed.
    assert_eq!(ask(&pair.replacen('.', ".f", 1), start), Err(Denied::Token));
    assert_eq!(ask(&format!("{pair}0"), start), Err(Denied::Token));
    // A change has to say whence it comes.
    let change = head("DELETE", &[("cookie", &pair)]);
    let silent = guard.check(&token(), &change, None, now());
    assert_eq!(silent, Err(Denied::Origin));
    let said = head(
        "DELETE",
        &[("cookie", &pair), ("origin", "http://localhost")],
    );
    assert_eq!(
        guard.check(&token(), &said, None, now()),
        Ok(Entry::Session)
    );
    // Another token is another door; so is another process.
    let other = Secret::new("token".to_owned(), vec![7; 32], None).unwrap();
    let get = head("GET", &[("cookie", &pair)]);
    assert_eq!(guard.check(&other, &get, None, now()), Err(Denied::Token));
    let elsewhere = Guard::default().check(&token(), &get, None, now());
    assert_eq!(elsewhere, Err(Denied::Token));
    guard.end(&token(), &get.headers, start, false);
    assert_eq!(ask(&pair, start), Err(Denied::Token));
}
