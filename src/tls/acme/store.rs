//! What is kept of ACME between runs: the account, and the certificate with its key.
//!
//! Two files in a directory of their own that only this user may read. Each is replaced whole, so
//! that a crash leaves the old one or the new one.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use instant_acme::AccountCredentials;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

const ACCOUNT: &str = "account.json";
/// The key first, then the chain: in one file, so that they always belong together.
const CERTIFICATE: &str = "certificate.pem";

/// The directory.
#[derive(Debug)]
pub(super) struct Store(PathBuf);

/// An account, and the authority it is an account at.
#[derive(Deserialize, Serialize)]
struct Account {
    directory: String,
    credentials: AccountCredentials,
}

impl Store {
    /// Opens the directory, which is made if it is not there.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
        Ok(Self(path.to_owned()))
    }

    /// The account at an authority, if there is one that can be read.
    pub(super) fn account(&self, directory: &str) -> Option<AccountCredentials> {
        let text = self.read(ACCOUNT)?;
        match serde_json::from_slice::<Account>(&text) {
            Ok(account) => (account.directory == directory).then_some(account.credentials),
            Err(_) => {
                self.complain(ACCOUNT, "cannot be understood; another account is made");
                None
            }
        }
    }

    pub(super) fn keep_account(
        &self,
        directory: &str,
        credentials: AccountCredentials,
    ) -> io::Result<()> {
        let account = Account {
            directory: directory.to_owned(),
            credentials,
        };
        let text = Zeroizing::new(serde_json::to_vec(&account)?);
        self.write(ACCOUNT, &text)
    }

    /// The certificate with its key, in PEM.
    pub(super) fn certificate(&self) -> Option<Zeroizing<Vec<u8>>> {
        self.read(CERTIFICATE)
    }

    pub(super) fn keep_certificate(&self, pem: &[u8]) -> io::Result<()> {
        self.write(CERTIFICATE, pem)
    }

    /// Says that the certificate is of no use.
    pub(super) fn certificate_is_no_use(&self) {
        self.complain(CERTIFICATE, "cannot be used; another one is obtained");
    }

    fn complain(&self, name: &str, what: &str) {
        let file = self.0.join(name);
        tracing::warn!(file = %file.display(), "acme: what was kept {what}");
    }

    fn read(&self, name: &str) -> Option<Zeroizing<Vec<u8>>> {
        match fs::read(self.0.join(name)) {
            Ok(bytes) => Some(Zeroizing::new(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                let file = self.0.join(name);
                tracing::warn!(file = %file.display(), %error, "acme: what was kept cannot be read");
                None
            }
        }
    }

    fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let fresh = self.0.join(format!("{name}.new"));
        // One that a crash left behind may be readable by others.
        let _ = fs::remove_file(&fresh);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&fresh)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&fresh, self.0.join(name))?;
        File::open(&self.0)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_for_this_user_alone_and_replaced_whole() {
        let path = std::env::temp_dir().join(format!("hookward-acme-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        let store = Store::open(&path).unwrap();
        assert!(store.certificate().is_none());
        fs::write(path.join("certificate.pem.new"), "torn").unwrap();
        for text in ["one", "two"] {
            store.keep_certificate(text.as_bytes()).unwrap();
            assert_eq!(store.certificate().unwrap().as_slice(), text.as_bytes());
        }
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o700);
        assert_eq!(mode(&path.join(CERTIFICATE)), 0o600);
        assert!(!path.join("certificate.pem.new").exists());
        fs::write(path.join(ACCOUNT), "{").unwrap();
        assert!(store.account("https://a.example/dir").is_none());
        fs::remove_dir_all(&path).unwrap();
    }
}
