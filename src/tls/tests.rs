use rcgen::{CertificateParams, KeyPair};

use super::*;

fn pair(names: &[&str]) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2020, 1, 2);
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

fn certificate(names: &[&str]) -> Certificate {
    let (chain, key) = pair(names);
    Certificate::read(chain.as_bytes(), key.as_bytes()).unwrap()
}

#[test]
fn a_certificate_tells_its_names_and_its_end() {
    let certificate = certificate(&["Hooks.example", "*.b.example", "127.0.0.1", "::1"]);
    let names = ["hooks.example", "*.b.example", "127.0.0.1", "::1"];
    assert_eq!(certificate.names(), names);
    // 2020-01-02T00:00:00Z.
    let ends = SystemTime::UNIX_EPOCH + Duration::from_secs(1_577_923_200);
    assert_eq!(certificate.not_after(), ends);
    let second = Duration::from_secs(1);
    assert_eq!(certificate.remaining(ends - second), Some(second));
    assert_eq!(certificate.remaining(ends + second), None);
    assert_eq!(certificate.remaining(ends - 86_401 * second), None);
}

#[test]
fn what_is_no_pair_is_told_apart() {
    let ((chain, key), (_, other)) = (pair(&["a.example"]), pair(&["a.example"]));
    let encrypted = key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
    let read = |chain: &str, key: &str| Certificate::read(chain.as_bytes(), key.as_bytes()).err();
    assert_eq!(read(&chain, &key), None);
    assert_eq!(read("", &key), Some(Misfit::Certificate));
    assert_eq!(read(&key, &key), Some(Misfit::Certificate));
    let torn = chain.replace("MII", "AII");
    assert_eq!(read(&torn, &key), Some(Misfit::Certificate));
    assert_eq!(read(&chain, &chain), Some(Misfit::Key));
    assert_eq!(read(&chain, &encrypted), Some(Misfit::Encrypted));
    assert_eq!(read(&chain, &other), Some(Misfit::Pair));
}

#[test]
fn the_certificate_with_the_name_is_chosen_else_the_first() {
    let all = [
        certificate(&["a.example"]),
        certificate(&["b.example", "*.b.example"]),
        certificate(&["deep.b.example"]),
    ];
    let choice = Choice::new(&all, None);
    let chosen = |name: &str| {
        let named = choice.named(name).unwrap_or(&choice.first);
        all.iter().position(|c| Arc::ptr_eq(&c.shown, &named[0]))
    };
    for (name, number) in [
        ("a.example", 0),
        ("b.example", 1),
        ("B.Example", 1),
        ("x.b.example", 1),
        ("deep.b.example", 2),
        ("x.deep.b.example", 0),
        ("elsewhere.example", 0),
        ("example", 0),
    ] {
        assert_eq!(chosen(name), Some(number), "{name}");
    }
}

#[test]
fn the_nearest_end_counts_for_a_name() {
    let (mut one, two) = (certificate(&["a.example"]), certificate(&["a.example"]));
    one.not_after = two.not_after + Duration::from_secs(1);
    for both in [[&one, &two], [&two, &one]] {
        let expected = [("a.example".to_owned(), two.not_after)];
        assert_eq!(expiries(both), expected);
    }
}
