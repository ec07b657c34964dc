//! Damage in the log: told from a torn write, said, kept, and gone on from.

use std::sync::Mutex;

use super::*;

const FRAME: usize = 24 + 4096;

/// A store with so many events in its log, one transaction each, as after a kill.
async fn killed(events: u128) -> Dir {
    let dir = Dir::new();
    let queue = open(&dir);
    for id in 1..=events {
        queue.crm().queue(in_lane(id, "a")).await;
    }
    dir.as_after_a_kill()
}

fn log(dir: &Dir) -> PathBuf {
    dir.join("queue.sqlite3-wal")
}

/// Where each transaction's last frame begins in a log.
fn commits(log: &[u8]) -> Vec<usize> {
    let frames = (32..log.len()).step_by(FRAME);
    frames.filter(|at| log[at + 4..at + 8] != [0; 4]).collect()
}

/// Opens a store with this log, and what was said of it.
fn open_with(dir: &Dir, bytes: &[u8]) -> (Dir, Queue, Option<DamagedLog>) {
    let dir = dir.as_after_a_kill();
    fs::write(log(&dir), bytes).unwrap();
    let said: Arc<Mutex<Option<DamagedLog>>> = Arc::default();
    let hears = said.clone();
    let options = Options {
        observer: Observer {
            damaged_log: Box::new(move |damage| *hears.lock().unwrap() = Some(damage.clone())),
            ..Observer::default()
        },
        ..options(start())
    };
    let queue = Queue::open(&dir, options).unwrap();
    let said = said.lock().unwrap().take();
    (dir, queue, said)
}

#[test]
fn a_flipped_bit_before_the_last_transaction_is_said_and_the_log_is_kept() {
    run(async {
        let dir = killed(4).await;
        let bytes = fs::read(log(&dir)).unwrap();
        let commits = commits(&bytes);
        let last = commits[commits.len() - 2] + FRAME;
        // In headers, salts, sums and pages; the store itself holds none of the events.
        for place in (0..last)
            .step_by(1013)
            .chain([0, 9, 17, 25, 32, 41, 49, last - 1])
        {
            let mut flipped = bytes.clone();
            flipped[place] ^= 0x10;
            let (dir, queue, damage) = open_with(&dir, &flipped);
            let damage = damage.unwrap_or_else(|| panic!("byte {place} goes unnoticed"));
            assert!(damage.lost >= 1, "byte {place}");
            let sound = usize::try_from(damage.at).unwrap();
            assert!(
                sound <= place && place < sound + FRAME,
                "byte {place}: {damage}"
            );
            let copy = damage.copy.unwrap();
            assert_eq!(fs::read(&copy).unwrap(), flipped);
            // It goes on, and says nothing at the next start.
            queue.crm().queue(in_lane(9, "b")).await;
            let ids = queue.crm().lease_ids().await;
            assert!(ids.contains(&9), "byte {place}: {ids:?}");
            let whole = commits.iter().filter(|at| **at + FRAME <= sound).count();
            let kept = queue.states().await.len();
            // The first transactions are the start's own.
            assert!(kept <= whole + 1, "byte {place}: {kept} of {whole}");
            let after = dir.as_after_a_kill();
            let bytes = fs::read(log(&after)).unwrap();
            let (_dir, queue, damage) = open_with(&after, &bytes);
            assert_eq!(damage, None, "byte {place}");
            assert_eq!(queue.states().await.len(), kept);
        }
    });
}

#[test]
fn a_torn_write_is_no_damage() {
    run(async {
        let dir = killed(4).await;
        let bytes = fs::read(log(&dir)).unwrap();
        let commits = commits(&bytes);
        let last = commits[commits.len() - 2] + FRAME;
        // Cut off anywhere; or its last transaction written in part, in whatever order.
        for length in (0..bytes.len()).step_by(2027) {
            assert_eq!(open_with(&dir, &bytes[..length]).2, None, "{length}");
        }
        for place in (last..bytes.len()).step_by(1013) {
            let mut torn = bytes.clone();
            let end = torn.len().min(place + 512);
            torn[place..end].fill(0xaa);
            let (_dir, queue, damage) = open_with(&dir, &torn);
            assert_eq!(damage, None, "{place}");
            assert_eq!(queue.states().await.len(), 3, "{place}");
        }
    });
}

#[test]
fn what_an_earlier_log_left_behind_is_no_damage() {
    run(async {
        let dir = Dir::new();
        let queue = open(&dir);
        for id in 1..=4 {
            queue.crm().queue(event(id)).await;
        }
        // Folded in whole, the log begins anew over what it held.
        let store = rusqlite::Connection::open(dir.store()).unwrap();
        let fold = "PRAGMA wal_checkpoint(PASSIVE)";
        store.query_row(fold, [], |_| Ok(())).unwrap();
        queue.crm().queue(event(5)).await;
        let dir = dir.as_after_a_kill();
        let bytes = fs::read(log(&dir)).unwrap();
        let (_dir, queue, damage) = open_with(&dir, &bytes);
        assert_eq!(damage, None);
        assert_eq!(queue.states().await.len(), 5);
    });
}

#[test]
fn a_few_damaged_logs_are_kept_and_no_more() {
    run(async {
        let dir = killed(3).await;
        let mut bytes = fs::read(log(&dir)).unwrap();
        bytes[100] ^= 1;
        fs::write(log(&dir), &bytes).unwrap();
        for number in 1..=9 {
            let copy = dir.join(format!("queue.sqlite3.damaged-{number}"));
            fs::write(copy, "an earlier one").unwrap();
        }
        let (dir, _queue, damage) = open_with(&dir, &bytes);
        let damage = damage.unwrap();
        assert_eq!(damage.copy, None);
        assert!(damage.to_string().contains("not kept"), "{damage}");
        assert_eq!(
            fs::read(dir.join("queue.sqlite3.damaged-9")).unwrap(),
            b"an earlier one"
        );
    });
}

#[test]
fn a_lane_of_which_all_wait_goes_on_after_a_check() {
    run(async {
        let dir = Dir::new();
        let queue = open(&dir);
        for id in 1..=2 {
            queue.crm().queue(in_lane(id, "a")).await;
        }
        queue.crm().queue(event(3)).await;
        queue.close().await;
        drop(queue);
        let store = rusqlite::Connection::open(dir.store()).unwrap();
        store.execute_batch("UPDATE event SET state = -1").unwrap();
        drop(store);
        fs::write(dir.join("LOCK"), "check 1\n").unwrap();
        assert_eq!(open(&dir).crm().lease_ids().await, [1, 3]);
    });
}
