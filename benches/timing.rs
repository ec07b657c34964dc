//! Whether the time a signature's check takes tells anything about the secret.
//!
//! `cargo bench --bench timing [-- SAMPLES]`. Two kinds of inputs take turns by chance, each check
//! is timed by itself, and Welch's t-test says whether the two kinds of times have the same mean
//! (the method of dudect: Reparaz, Balasch, Verbauwhede, "Dude, is my code constant time?", DATE
//! 2017). Slow samples, in which something else interrupted, hide small differences: the test is
//! made over all samples and again with ever more of the slowest cropped, and the largest |t|
//! counts. |t| above 4.5 is a leak. A comparison that stops at the first wrong byte is tested the
//! same way, and has to be found: a harness that is too coarse to see it proves nothing.
//!
//! Ends with 0 when nothing leaks and the leak is found, with 1 otherwise.

#![expect(clippy::print_stdout, reason = "prints its figures")]

use std::{
    hint::black_box,
    process::ExitCode,
    time::{Instant, SystemTime},
};

use hookward::{
    secret::Secret,
    signature::{Scheme, Secrets, SignedRequest, ToSign, Verification},
};
use http::{HeaderMap, HeaderName, HeaderValue};

/// Beyond this the two kinds differ.
const LIMIT: f64 = 4.5;
const SAMPLES: usize = 1_000_000;
/// Checks prepared at a time, so that only the check itself is timed.
const BATCH: usize = 1_000;
/// Samples that are kept of a thousand: all, and without more and more of the slowest.
const KEPT: [usize; 8] = [1000, 999, 990, 950, 900, 750, 500, 250];
const BODY: &[u8] = br#"{"type":"message.created","payload":{}}"#;
const NAMES: [&str; 3] = ["first", "second", "third"];

/// A signature of one of the two kinds.
type Make<'b> = dyn FnMut(bool) -> String + 'b;

fn main() -> ExitCode {
    let asked = std::env::args().skip(1).find_map(|text| text.parse().ok());
    let samples = asked.unwrap_or(SAMPLES);
    let Some(bench) = Bench::new() else {
        println!("the keys could not be made");
        return ExitCode::FAILURE;
    };
    let right = bench.tag(0);
    let last = bench.tag(NAMES.len() - 1);
    let fixed = [0x5a_u8; 32];
    println!("{samples} samples each, |t| ≤ {LIMIT} wanted but of the leak");
    let outcomes = [
        bench.test("a fixed tag or a random one", samples, false, &mut |kind| {
            hex::encode(if kind { fixed } else { rand::random() })
        }),
        bench.test(
            "the first byte wrong or the last",
            samples,
            false,
            &mut |kind| nearly(right, kind),
        ),
        bench.test(
            "the first secret matches or the last",
            samples,
            false,
            &mut |kind| hex::encode(if kind { right } else { last }),
        ),
        bench.test(
            "all wrong, or all but one byte right",
            samples,
            false,
            &mut |kind| {
                if kind {
                    nearly(last, false)
                } else {
                    hex::encode(rand::random::<[u8; 32]>())
                }
            },
        ),
        bench.test(
            "the leak: stops at the first wrong byte",
            samples,
            true,
            &mut |kind| nearly(right, kind),
        ),
    ];
    let is_fine = outcomes.iter().all(|is_fine| *is_fine);
    println!("{}", if is_fine { "no leak" } else { "MISSED" });
    ExitCode::from(u8::from(!is_fine))
}

/// A tag with one bit changed: in its first byte or in its last.
fn nearly(mut tag: [u8; 32], in_first: bool) -> String {
    let [first, .., last] = &mut tag;
    *(if in_first { first } else { last }) ^= 1;
    hex::encode(tag)
}

/// What is checked: one scheme, three secrets.
struct Bench {
    scheme: Scheme,
    secrets: Secrets,
    tags: Vec<[u8; 32]>,
    name: HeaderName,
}

impl Bench {
    fn new() -> Option<Self> {
        let scheme = Scheme::preset("tinytalk")?;
        let secret = |name: &str| {
            let bytes = rand::random::<[u8; 32]>().to_vec();
            Secret::new(name.to_owned(), bytes, None).ok()
        };
        let all: Vec<Secret> = NAMES.into_iter().filter_map(secret).collect();
        let tags = all
            .iter()
            .filter_map(|secret| tag_of(&scheme, secret))
            .collect();
        Some(Self {
            secrets: Secrets::new(scheme.spec().algorithm, all).ok()?,
            name: scheme.signature_headers().first()?.clone(),
            scheme,
            tags,
        })
    }

    /// The right tag of a secret.
    fn tag(&self, number: usize) -> [u8; 32] {
        self.tags.get(number).copied().unwrap_or_default()
    }

    /// A check up to its last step, with this signature.
    fn open(&self, signature: &str) -> Option<Verification> {
        let mut headers = HeaderMap::new();
        headers.insert(&self.name, HeaderValue::from_str(signature).ok()?);
        let request = SignedRequest {
            headers: &headers,
            method: "POST",
            url: "/",
        };
        let opened = self
            .scheme
            .open(&self.secrets, &request, SystemTime::UNIX_EPOCH);
        let mut verification = opened.ok()?;
        verification.update(BODY);
        Some(verification)
    }

    /// Tests two kinds of signatures; whether it came out as it should.
    fn test(&self, what: &str, samples: usize, leaks: bool, make: &mut Make<'_>) -> bool {
        let expected = self.tag(0);
        let mut times = Times::default();
        while times.all.len() < samples {
            let prepared: Vec<_> = (0..BATCH)
                .filter_map(|_| {
                    let kind = rand::random::<bool>();
                    let signature = make(kind);
                    let sent = hex::decode(&signature).ok()?;
                    Some((kind, sent, self.open(&signature)?))
                })
                .collect();
            for (kind, sent, verification) in prepared {
                let began = Instant::now();
                let outcome = black_box(verification).finish();
                let is_equal = leaks && leaky(&expected, &sent);
                let took = began.elapsed();
                black_box((outcome.is_ok(), is_equal));
                times.all.push((kind, took.as_nanos() as f64));
            }
        }
        let t = times.largest_t();
        let is_found = t > LIMIT;
        let word = if is_found { "differ" } else { "alike" };
        println!("{what:<40} |t| {t:>9.2}  {word}");
        is_found == leaks
    }
}

fn tag_of(scheme: &Scheme, secret: &Secret) -> Option<[u8; 32]> {
    let signed = scheme.sign(
        secret,
        &ToSign {
            id: "",
            timestamp: SystemTime::UNIX_EPOCH,
            method: "POST",
            url: "/",
            body: BODY,
            event_type: None,
        },
    );
    let (_, value) = signed.into_iter().next()?;
    let mut tag = [0; 32];
    hex::decode_to_slice(value.as_bytes(), &mut tag).ok()?;
    Some(tag)
}

/// What must not be done: the time tells how many bytes were right.
#[inline(never)]
fn leaky(expected: &[u8], sent: &[u8]) -> bool {
    for (one, other) in expected.iter().zip(sent) {
        if black_box(*one) != black_box(*other) {
            return false;
        }
    }
    true
}

/// Times by kind, in nanoseconds.
#[derive(Default)]
struct Times {
    all: Vec<(bool, f64)>,
}

impl Times {
    /// The largest |t| over all samples and over those below each percentile.
    fn largest_t(&self) -> f64 {
        let mut sorted: Vec<f64> = self.all.iter().map(|(_, time)| *time).collect();
        sorted.sort_unstable_by(f64::total_cmp);
        let t = KEPT.map(|kept| {
            let rank = sorted.len() * kept / 1000;
            let most = sorted.get(rank.saturating_sub(1)).copied();
            self.t(most.unwrap_or(f64::INFINITY))
        });
        t.into_iter().fold(0.0, f64::max)
    }

    /// Welch's |t| of the times that took at most this long.
    fn t(&self, most: f64) -> f64 {
        let (mut one, mut other) = (Moments::default(), Moments::default());
        for (kind, time) in self.all.iter().filter(|(_, time)| *time <= most) {
            if *kind { &mut one } else { &mut other }.add(*time);
        }
        let error = (one.variance() / one.count + other.variance() / other.count).sqrt();
        let difference = (one.mean - other.mean).abs();
        if error > 0.0 { difference / error } else { 0.0 }
    }
}

/// Mean and variance as samples come (Welford).
#[derive(Default)]
struct Moments {
    count: f64,
    mean: f64,
    squares: f64,
}

impl Moments {
    fn add(&mut self, sample: f64) {
        self.count += 1.0;
        let off = sample - self.mean;
        self.mean += off / self.count;
        self.squares += off * (sample - self.mean);
    }

    fn variance(&self) -> f64 {
        self.squares / (self.count - 1.0).max(1.0)
    }
}
