//! What operators set at run time: endpoints of their own, and which endpoints are switched off.
//!
//! Owns one file in `data_dir`, written whole and synced before a change takes effect; only the
//! process's user may read it, because the secrets of these endpoints stand in it. What is in an
//! endpoint's table is the configuration's affair: it is read there with every other endpoint.

mod export;

use std::{
    collections::BTreeMap,
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use zeroize::Zeroize as _;

/// The file's name in `data_dir`.
const NAME: &str = "endpoints.json";
/// Where it is written before it takes the other's place.
const UNFINISHED: &str = "endpoints.json.new";
/// Of the file's form.
const VERSION: u32 = 1;
/// Largest file, in bytes.
const LIMIT: u64 = 16 << 20;
/// Most endpoints made at run time.
pub const ENDPOINTS_LIMIT: usize = 1000;

/// Endpoints made at run time, and switches.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Roster {
    version: u32,
    /// By name.
    pub endpoints: BTreeMap<String, Made>,
    /// Whether an endpoint that stands in the configuration is active, against what that says.
    pub switches: BTreeMap<String, bool>,
}

/// An endpoint made at run time.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Made {
    /// When it was made.
    #[serde(with = "moment")]
    pub at: SystemTime,
    /// Its table, as in the configuration, its secrets in it.
    pub settings: Map<String, Value>,
}

impl Roster {
    /// Where it is in a data directory.
    pub fn path(dir: &Path) -> PathBuf {
        dir.join(NAME)
    }

    /// Reads it; empty where there is none.
    ///
    /// # Errors
    /// When it cannot be read, or holds something else; with a remedy, and without quoting it.
    pub fn read(dir: &Path) -> Result<Self, RosterError> {
        let path = Self::path(dir);
        let length = match fs::metadata(&path) {
            Ok(data) => data.len(),
            Err(error) if is_absent(&error) => return Ok(Self::default()),
            Err(error) => return Err(RosterError::Unreadable(error.kind())),
        };
        if length > LIMIT {
            return Err(RosterError::Unfit);
        }
        let bytes = fs::read(&path).map_err(|error| RosterError::Unreadable(error.kind()))?;
        let bytes = zeroize::Zeroizing::new(bytes);
        let read: Self = serde_json::from_slice(&bytes).map_err(|_| RosterError::Unfit)?;
        if read.version > VERSION {
            return Err(RosterError::Later);
        }
        Ok(read)
    }

    /// Puts it on disk: when this returns, it is the one that the next start reads.
    ///
    /// # Errors
    /// When it could not be written, or would be too large to be read again
    /// ([`io::ErrorKind::FileTooLarge`]); then the one before it stays.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        let whole = Self {
            version: VERSION,
            ..self.clone()
        };
        let text = zeroize::Zeroizing::new(serde_json::to_vec_pretty(&whole)?);
        // What is longer than that the next start would refuse to read.
        if u64::try_from(text.len()).unwrap_or(u64::MAX) > LIMIT {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let unfinished = dir.join(UNFINISHED);
        // What an earlier write left may be anybody's to read.
        match fs::remove_file(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&unfinished)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&unfinished, Self::path(dir))?;
        // The name is on disk when its directory is.
        File::open(dir)?.sync_all()
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

/// Why a roster was not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RosterError {
    /// It was written by a later version.
    Later,
    /// It is not what this program writes.
    Unfit,
    /// The system refuses.
    Unreadable(io::ErrorKind),
}

impl fmt::Display for RosterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Later => f.write_str("it was written by a later version; run that one"),
            Self::Unfit => f.write_str(
                "it is not what hookward wrote; put a copy back, or move it away and make its endpoints again",
            ),
            Self::Unreadable(kind) => write!(f, "it cannot be read: {kind}"),
        }
    }
}

/// Wipes what may be a secret.
impl Drop for Made {
    fn drop(&mut self) {
        self.settings.values_mut().for_each(wipe);
    }
}

fn wipe(value: &mut Value) {
    match value {
        Value::String(text) => text.zeroize(),
        Value::Array(items) => items.iter_mut().for_each(wipe),
        Value::Object(table) => table.values_mut().for_each(wipe),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Shows names alone: the tables hold secrets.
impl fmt::Debug for Roster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Roster")
            .field("endpoints", &self.endpoints.keys())
            .field("switches", &self.switches)
            .finish_non_exhaustive()
    }
}

/// Shows no table: it holds secrets.
impl fmt::Debug for Made {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Made")
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}

/// A moment as RFC 3339 text.
mod moment {
    use std::time::SystemTime;

    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(at: &SystemTime, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&humantime::format_rfc3339_millis(*at))
    }

    pub(super) fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<SystemTime, D::Error> {
        let text = String::deserialize(from)?;
        humantime::parse_rfc3339(&text).map_err(|_| D::Error::custom("no moment"))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn dir() -> PathBuf {
        let dir = std::env::temp_dir().join(format!("hookward-roster-{}", uuid::Uuid::new_v4()));
        fs::create_dir(&dir).unwrap();
        dir
    }

    fn some() -> Roster {
        let settings = serde_json::json!({"secrets": [{"value": "very-secret"}]});
        let made = Made {
            at: SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(1_500),
            settings: settings.as_object().unwrap().clone(),
        };
        Roster {
            version: VERSION,
            endpoints: [("crm".to_owned(), made)].into(),
            switches: [("shop".to_owned(), false)].into(),
        }
    }

    #[test]
    fn what_is_written_is_read_and_nobody_elses() {
        let dir = dir();
        assert_eq!(Roster::read(&dir), Ok(Roster::default()));
        some().write(&dir).unwrap();
        some().write(&dir).unwrap();
        assert_eq!(Roster::read(&dir), Ok(some()));
        let mode = fs::metadata(Roster::path(&dir))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(!format!("{:?}", some()).contains("very-secret"));
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn what_was_not_written_by_us_is_refused_and_not_quoted() {
        let dir = dir();
        for text in ["", "{}", r#"{"version":1,"very-secret":2}"#, "[very-secret"] {
            fs::write(Roster::path(&dir), text).unwrap();
            assert_eq!(Roster::read(&dir), Err(RosterError::Unfit), "{text}");
        }
        let later = r#"{"version":2,"endpoints":{},"switches":{}}"#;
        fs::write(Roster::path(&dir), later).unwrap();
        assert_eq!(Roster::read(&dir), Err(RosterError::Later));
        fs::remove_dir_all(dir).unwrap();
    }
}
