//! The store's log, looked at before SQLite opens it: damage that SQLite would take for the end.
//!
//! SQLite takes the first frame whose checksum fails for a write that a crash tore, and what stands
//! behind it for nothing. But a transaction is written only when the one before it was synced, so
//! that a crash tears the last one at most: where frames of two transactions stand behind the break,
//! the first of them had been acknowledged. Damage within the last transaction cannot be told from
//! a torn write.
//!
//! Source: SQLite, "Database File Format", §4 "The Write-Ahead Log".

use std::{
    fs::{self, File},
    io::{self, BufReader, Read},
    path::{Path, PathBuf},
};

use super::{DamagedLog, OpenError};

const HEADER: usize = 32;
const FRAME_HEADER: usize = 24;
const PAGE: usize = 4096;
/// The log's first four bytes; the lowest bit: its sums are over big-endian words.
const MAGIC: u32 = 0x377f_0682;
/// Damaged logs kept at most.
const COPIES: u32 = 9;

/// Looks at a log, if there is one, and keeps a copy of one that is damaged beside it.
pub(super) fn examine(log: &Path) -> Result<Option<DamagedLog>, OpenError> {
    let failed = |error| OpenError::Io {
        path: log.to_owned(),
        error,
    };
    let file = match File::open(log) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(failed)?,
    };
    let Some((at, lost)) = damage(BufReader::with_capacity(1 << 16, file)).map_err(failed)? else {
        return Ok(None);
    };
    let copy = copy(log).map_err(failed)?;
    Ok(Some(DamagedLog { at, lost, copy }))
}

/// Copies a log under the next free name, as long as there is one.
fn copy(log: &Path) -> io::Result<Option<PathBuf>> {
    for number in 1..=COPIES {
        let copy = log.with_extension(format!("sqlite3.damaged-{number}"));
        if !copy.try_exists()? {
            // What a crash left of a copy under another name is written over.
            let unfinished = log.with_extension("sqlite3.damaged-new");
            fs::copy(log, &unfinished)?;
            File::open(&unfinished)?.sync_all()?;
            fs::rename(&unfinished, &copy)?;
            return Ok(Some(copy));
        }
    }
    Ok(None)
}

/// The sums that a checksum has come to.
type Sums = (u32, u32);

/// How many bytes of the log are sound, and how many transactions behind them were acknowledged at
/// the least; `None`: nothing says that any was lost.
fn damage(mut log: impl Read) -> io::Result<Option<(u64, u64)>> {
    let mut header = [0; HEADER];
    if !fill(&mut log, &mut header)? {
        return Ok(None);
    }
    let mut frame = [0; FRAME_HEADER + PAGE];
    let is_big = number(&header, 0) & 1 == 1;
    let mut sums = sum(is_big, (0, 0), header.get(..24).unwrap_or_default());
    let mut is_sound = number(&header, 0) & !1 == MAGIC
        && number(&header, 8) as usize == PAGE
        && sums == (number(&header, 24), number(&header, 28));
    let mut salts = is_sound.then(|| (number(&header, 16), number(&header, 20)));
    let (mut sound, mut commits) = (if is_sound { HEADER as u64 } else { 0 }, 0_u64);
    while fill(&mut log, &mut frame)? {
        let own = (number(&frame, 8), number(&frame, 12));
        let is_of_this_log = *salts.get_or_insert(own) == own;
        if is_sound {
            let (head, page) = frame.split_at(FRAME_HEADER);
            sums = sum(is_big, sums, head.get(..8).unwrap_or_default());
            sums = sum(is_big, sums, page);
            is_sound = is_of_this_log && sums == (number(&frame, 16), number(&frame, 20));
        }
        if is_sound {
            sound += frame.len() as u64;
        } else if is_of_this_log && number(&frame, 4) != 0 {
            commits += 1;
        }
    }
    // The last one may be what a crash tore.
    Ok((commits > 1).then(|| (sound, commits - 1)))
}

/// Fills the buffer; `false`: the log ends before.
fn fill(log: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match log.read_exact(buffer) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        read => read.map(|()| true),
    }
}

/// The big-endian number at a place.
fn number(bytes: &[u8], at: usize) -> u32 {
    let four = bytes.get(at..at + 4).unwrap_or_default();
    four.iter().fold(0, |n, byte| n << 8 | u32::from(*byte))
}

/// Goes on with a checksum over pairs of words.
fn sum(is_big: bool, (mut s0, mut s1): Sums, bytes: &[u8]) -> Sums {
    let (pairs, _) = bytes.as_chunks::<8>();
    for [a, b, c, d, e, f, g, h] in pairs {
        let word = |bytes| {
            if is_big {
                u32::from_be_bytes(bytes)
            } else {
                u32::from_le_bytes(bytes)
            }
        };
        s0 = s0.wrapping_add(word([*a, *b, *c, *d])).wrapping_add(s1);
        s1 = s1.wrapping_add(word([*e, *f, *g, *h])).wrapping_add(s0);
    }
    (s0, s1)
}
