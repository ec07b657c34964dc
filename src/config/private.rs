//! Files that hold secrets: read once, into memory that is wiped, with a look at who else may.
//!
//! Everything here follows symbolic links, since Kubernetes mounts secrets as such, and looks at
//! the file that was opened and not at its name, so that what is judged is what was read.

use std::{
    fmt,
    fs::{self, Metadata},
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::Path,
};

use zeroize::Zeroizing;

/// The largest file a configuration may name, itself included, in bytes: some hundred certificates.
const LIMIT: usize = 1 << 20;
/// Permission bits: others may read, write, search.
const OTHERS_READ: u32 = 0o004;
const OTHERS_WRITE: u32 = 0o002;
const OTHERS_SEARCH: u32 = 0o001;

/// What was read.
pub(super) struct File {
    pub(super) bytes: Zeroizing<Vec<u8>>,
    /// Who else may do something with it that they should not.
    pub(super) exposure: Option<Exposure>,
}

/// What every user of this machine may do with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exposure {
    Readable,
    Writable,
}

impl Exposure {
    pub(super) fn is_writable(self) -> bool {
        self == Self::Writable
    }
}

impl fmt::Display for Exposure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Readable => "can be read by every user of this machine; chmod o-rwx it",
            Self::Writable => "can be changed by every user of this machine; chmod o-rwx it",
        })
    }
}

/// Reads a whole file of at most 1 MiB.
///
/// # Errors
/// The system's; [`io::ErrorKind::FileTooLarge`] beyond the limit.
pub(super) fn read(path: &Path) -> io::Result<File> {
    let mut file = fs::File::open(path)?;
    let data = file.metadata()?;
    if data.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    let too_large = || io::Error::from(io::ErrorKind::FileTooLarge);
    let size = usize::try_from(data.len()).map_err(|_| too_large())?;
    if size > LIMIT {
        return Err(too_large());
    }
    // A buffer that grew would leave what it held behind. A pipe and the like have no size.
    let room = if size > 0 { size } else { LIMIT } + 1;
    let mut bytes = Zeroizing::new(vec![0; room]);
    let mut length = 0;
    while let Some(free) = bytes.get_mut(length..).filter(|free| !free.is_empty()) {
        match file.read(free) {
            Ok(0) => break,
            Ok(came) => length += came,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    if length == room {
        // It grew while it was read, or has no end.
        return Err(too_large());
    }
    bytes.truncate(length);
    let exposure = exposure(path, &file, &data);
    Ok(File { bytes, exposure })
}

/// What others may do with an open file, as far as it matters.
///
/// Whoever can write a secret can sign; that is always worth a word. Reading is not where nobody
/// else is there to read: in memory or on a read-only mount, which is how Kubernetes, Docker and
/// systemd hand a secret to one container or service, readable by its every user and without a way
/// to say otherwise; or below a directory that others may not enter.
fn exposure(path: &Path, file: &fs::File, data: &Metadata) -> Option<Exposure> {
    let may = |bit: u32| data.is_file() && data.mode() & bit != 0;
    if !may(OTHERS_READ | OTHERS_WRITE) || !is_reachable(path) {
        return None;
    }
    if may(OTHERS_WRITE) && !is_read_only(file) {
        return Some(Exposure::Writable);
    }
    let is_handed_over = is_read_only(file) || is_in_memory(file);
    (may(OTHERS_READ) && !is_handed_over).then_some(Exposure::Readable)
}

/// Whether every directory on the way may be entered by others.
fn is_reachable(path: &Path) -> bool {
    let Ok(path) = path.canonicalize() else {
        return true;
    };
    let may_enter = |dir: &Path| fs::metadata(dir).is_ok_and(|d| d.mode() & OTHERS_SEARCH != 0);
    path.ancestors().skip(1).all(may_enter)
}

fn is_read_only(file: &fs::File) -> bool {
    use rustix::fs::{StatVfsMountFlags, fstatvfs};
    fstatvfs(file).is_ok_and(|fs| fs.f_flag.contains(StatVfsMountFlags::RDONLY))
}

#[cfg(target_os = "linux")]
fn is_in_memory(file: &fs::File) -> bool {
    // Linux, statfs(2): TMPFS_MAGIC and RAMFS_MAGIC.
    const IN_MEMORY: [rustix::fs::FsWord; 2] = [0x0102_1994, 0x8584_58f6];
    rustix::fs::fstatfs(file).is_ok_and(|fs| IN_MEMORY.contains(&fs.f_type))
}

#[cfg(not(target_os = "linux"))]
fn is_in_memory(_: &fs::File) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// A file of this mode in a directory of that one.
    fn exposure_of(name: &str, directory: u32, file: u32) -> Option<Exposure> {
        let dir = std::env::temp_dir().join(format!("hookward-mode-{}-{name}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("secret");
        fs::write(&path, "a secret").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(file)).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(directory)).unwrap();
        let found = read(&path).map(|file| file.exposure);
        fs::remove_dir_all(&dir).unwrap();
        found.unwrap()
    }

    #[test]
    fn what_every_user_may_change_is_exposed_and_what_they_cannot_reach_is_not() {
        assert_eq!(
            exposure_of("w", 0o755, 0o646),
            Some(Exposure::Writable),
            "also in memory"
        );
        for (name, directory, file) in [("own", 0o755, 0o600), ("group", 0o755, 0o660)] {
            assert_eq!(exposure_of(name, directory, file), None, "{name}");
        }
        assert_eq!(exposure_of("closed", 0o750, 0o666), None);
    }

    #[test]
    fn what_every_user_may_read_is_exposed_unless_it_is_in_memory() {
        let here = fs::File::open(std::env::temp_dir()).unwrap();
        let expected = (!is_in_memory(&here)).then_some(Exposure::Readable);
        assert_eq!(exposure_of("r", 0o755, 0o644), expected);
        let shared_memory = Path::new("/dev/shm");
        if fs::File::open(shared_memory).is_ok_and(|dir| is_in_memory(&dir)) {
            let path = shared_memory.join(format!("hookward-mode-{}", std::process::id()));
            fs::write(&path, "a secret").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
            let found = read(&path).map(|file| file.exposure);
            fs::remove_file(&path).unwrap();
            assert_eq!(found.unwrap(), None);
        }
    }

    #[test]
    fn a_file_without_an_end_is_refused() {
        let endless = read(Path::new("/dev/zero")).map(|_| ());
        assert_eq!(endless.unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    }
}
