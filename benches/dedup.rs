//! What the duplicate table costs: bytes a key and nanoseconds a claim, at one million keys.
//!
//! `cargo bench --bench dedup [-- KEYS]`. Memory is what the process holds more than before, as
//! the kernel counts it, right after the table has filled and again after as many keys have come
//! and gone once more; the replay index is in use throughout. Time includes both hashes.

#![expect(clippy::print_stdout, reason = "prints its figures")]

use std::{
    hint::black_box,
    num::NonZeroUsize,
    sync::Arc,
    time::{Duration, Instant},
};

use hookward::dedup::{Ask, Decision, HashKeys, KeyReuse, Policy, Replay, Table};

const POLICY: Policy = Policy {
    window: Duration::from_secs(24 * 3600),
    key_reuse: KeyReuse::Duplicate,
    replay: Replay::Flag,
};

fn main() {
    let keys = std::env::args()
        .skip(1)
        .find_map(|text| text.parse().ok())
        .unwrap_or(1_000_000);
    // Room for the unevenness of hashing over the shards, so that nothing is evicted while filling.
    let capacity = NonZeroUsize::new(usize::try_from(keys + keys / 50).unwrap_or(usize::MAX));
    let Some(capacity) = capacity else {
        println!("KEYS must be above 0");
        return;
    };

    let before = resident_bytes();
    let table = Table::new(
        capacity,
        10_000,
        HashKeys::new([rand::random(), rand::random()]),
        Instant::now(),
    );
    let untouched = resident_bytes() - before;
    println!("untouched table for {keys} keys: {untouched} bytes");

    let fill = per_key(0..keys, |key| accept(&table, key));
    report("new key, filling", fill, &table, before);
    let duplicate = per_key(0..keys, |key| {
        assert!(matches!(
            claim(&table, scatter(key, keys)),
            Decision::Duplicate { .. }
        ));
    });
    report("duplicate", duplicate, &table, before);
    let churn = per_key(keys..2 * keys, |key| accept(&table, key));
    report("new key, full table", churn, &table, before);
    let churn = per_key(2 * keys..4 * keys, |key| accept(&table, key));
    report("new key, after 2 more capacities", churn, &table, before);

    let sweeps = Instant::now();
    let (mut calls, mut longest) = (0_u32, Duration::ZERO);
    while table.entries() > 0 {
        let call = Instant::now();
        table.sweep(call + 2 * POLICY.window);
        longest = longest.max(call.elapsed());
        calls += 1;
    }
    println!(
        "sweep of all keys: {calls} calls, {:?}, longest {longest:?}",
        sweeps.elapsed()
    );

    assert_eq!(table.in_flight(), 0);
    let hash = per_key(0..keys, |key| {
        let key = key.to_be_bytes();
        black_box(table.digest("crm", black_box(&key_text(&key))));
        black_box(table.fingerprint("crm", 0, black_box(&tag(&key))));
    });
    println!("of which both hashes: {hash:.0} ns");
}

/// A key within the range, far from the one before.
fn scatter(key: u64, keys: u64) -> u64 {
    key.wrapping_mul(0x9e37_79b9_7f4a_7c15) % keys
}

fn accept(table: &Arc<Table>, key: u64) {
    let Decision::First {
        claim,
        replayed: false,
        ..
    } = claim(table, key)
    else {
        unreachable!("every key and body comes once");
    };
    claim.commit(Instant::now());
}

fn claim(table: &Arc<Table>, key: u64) -> Decision {
    let key = key.to_be_bytes();
    table.claim(Ask {
        digest: Some(table.digest("crm", &key_text(&key))),
        body: Some(table.fingerprint("crm", 0, &tag(&key))),
        policy: POLICY,
        now: Instant::now(),
    })
}

/// As long as a UUID, and like one different in few places.
fn key_text(key: &[u8; 8]) -> [u8; 36] {
    let mut text = [b'-'; 36];
    text.iter_mut().zip(key).for_each(|(to, from)| *to = *from);
    text
}

/// As long as an HMAC-SHA256.
fn tag(key: &[u8; 8]) -> [u8; 32] {
    let mut tag = [0; 32];
    tag.iter_mut().zip(key).for_each(|(to, from)| *to = *from);
    tag
}

/// Nanoseconds each key took on average.
fn per_key(keys: std::ops::Range<u64>, mut act: impl FnMut(u64)) -> f64 {
    let count = keys.end - keys.start;
    let start = Instant::now();
    keys.for_each(&mut act);
    start.elapsed().as_secs_f64() * 1e9 / count as f64
}

fn report(what: &str, nanoseconds: f64, table: &Table, before: u64) {
    let bytes = resident_bytes() - before;
    println!(
        "{what}: {nanoseconds:.0} ns; {} keys held, {:.1} bytes a key",
        table.entries(),
        bytes as f64 / table.entries() as f64,
    );
}

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm
        .split_whitespace()
        .nth(1)
        .and_then(|pages| pages.parse().ok())
        .unwrap_or_default();
    pages * 4096
}
