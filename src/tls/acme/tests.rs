use std::fs;

use super::*;

const DAY: Duration = Duration::from_hours(24);

/// How long a certificate for these names, which was issued on 1 January 2025 for 90 days, is good
/// for so many days after that.
fn rest(names: &[&str], days: i64) -> Duration {
    let name = format!("hookward-acme-rest-{}", std::process::id());
    let dir = std::env::temp_dir().join(name);
    let _ = fs::remove_dir_all(&dir);
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.not_before = rcgen::date_time_ymd(2025, 1, 1);
    params.not_after = rcgen::date_time_ymd(2025, 4, 1);
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let pem = format!("{}{}", key.serialize_pem(), certificate.pem());
    let store = Store::open(&dir).unwrap();
    store.keep_certificate(pem.as_bytes()).unwrap();
    let settings = Settings {
        domains: vec!["a.example".to_owned(), "b.example".to_owned()],
        contact: None,
        directory: "https://authority.example/dir".to_owned(),
        roots: Vec::new(),
    };
    let manager = Manager::open(settings, &dir).unwrap();
    let days = u32::try_from(20_089 + days).unwrap();
    let rest = manager.rest(SystemTime::UNIX_EPOCH + DAY * days);
    fs::remove_dir_all(&dir).unwrap();
    rest
}

#[test]
fn a_certificate_is_renewed_when_a_third_of_its_time_is_left_by_any_clock() {
    let both = &["a.example", "b.example"][..];
    assert_eq!(rest(both, 0), DAY * 60);
    assert_eq!(rest(both, 59), DAY);
    assert_eq!(rest(both, 61), Duration::ZERO);
    assert_eq!(rest(both, 91), Duration::ZERO);
    // The clock is behind: another one would be valid no sooner.
    assert_eq!(rest(both, -1), DAY * 61);
    assert_eq!(rest(&["a.example"], 0), Duration::ZERO);
}
