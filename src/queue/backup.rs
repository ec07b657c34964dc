//! A consistent copy of the store while it runs.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use super::{
    OperateError,
    shared::Shared,
    sqlite::{self, Role},
};

/// Writes a copy to a file that must not exist; what is there is never overwritten.
pub(super) fn backup(shared: &Shared, to: &Path) -> Result<(), OperateError> {
    let failed = |said: &dyn std::fmt::Display| {
        OperateError::File(format!(
            "{}: {said}; name a file that does not exist, in a directory with room for a copy",
            to.display()
        ))
    };
    let path = to.to_str();
    let path = path.ok_or_else(|| failed(&"its name is not UTF-8"))?;
    // Made here, so that it is the owner's alone from the first byte on; SQLite takes an empty file.
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(to)
        .map_err(|e| failed(&e))?;
    copy(shared, path, to).map_err(|said| {
        // An unfinished copy is worse than none.
        let _ = fs::remove_file(to);
        failed(&said)
    })
}

fn copy(shared: &Shared, path: &str, to: &Path) -> Result<(), String> {
    let connection =
        sqlite::connect(&shared.dir.store(), Role::Keeper).map_err(|e| e.to_string())?;
    connection
        .execute("VACUUM INTO ?1", [path])
        .map_err(|e| e.to_string())?;
    let sync = || -> io::Result<()> {
        File::open(to)?.sync_all()?;
        let parent = to.parent().filter(|p| !p.as_os_str().is_empty());
        File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
    };
    sync().map_err(|e| e.to_string())
}
