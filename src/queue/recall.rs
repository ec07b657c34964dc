//! What is read back into memory at the start: which bodies came under which keys.

use super::{
    Fingerprint, Key, OpenError,
    clock::duration,
    shared::Shared,
    sqlite::{self, Role, append, said},
};
use crate::endpoint::EndpointName;

/// A key that is taken, with the body it came with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// The key.
    pub key: Key,
    /// The body.
    pub body: Fingerprint,
    /// For how much longer it is taken.
    pub remaining: std::time::Duration,
}

/// Tells of every key that is taken with a body known, looking at no more than `limit` keys.
/// `false`: there are more.
pub(super) fn taken(
    shared: &Shared,
    limit: u64,
    mut each: impl FnMut(&EndpointName, Taken),
) -> Result<bool, OpenError> {
    let file = shared.dir.store();
    let connection = sqlite::connect(&file, Role::Reader)?;
    let now = shared.clock.now();
    let mut read = || -> rusqlite::Result<bool> {
        let mut statement = connection.prepare("SELECT endpoint, key, expires, body FROM idem")?;
        let mut rows = statement.query([])?;
        let (mut seen, mut of) = (0, None);
        while let Some(row) = rows.next()? {
            if seen == limit {
                return Ok(false);
            }
            seen += 1;
            let (endpoint, expires): (i64, i64) = (row.get(0)?, row.get(2)?);
            let Some(body) = row.get::<_, Option<i64>>(3)? else {
                continue;
            };
            if expires <= append::seconds(now) {
                continue;
            }
            // They come endpoint by endpoint.
            if of.as_ref().is_none_or(|(id, _)| *id != endpoint) {
                of = Some((endpoint, shared.account_of(endpoint)));
            }
            if let Some((_, Some(account))) = &of {
                let taken = Taken {
                    key: Key(row.get(1)?),
                    body: append::from_column(body),
                    remaining: duration(expires.saturating_mul(1000).saturating_sub(now)),
                };
                each(&account.name, taken);
            }
        }
        Ok(true)
    };
    read().map_err(|error| said(&file, &error))
}
