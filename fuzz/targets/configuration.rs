//! Configuration files: refused with a reason or taken, and in neither case is a secret told.
#![no_main]

use hookward_fuzz::{SECRET, config};
use libfuzzer_sys::fuzz_target;

/// A part of the secret that no configuration names by chance.
const TELLTALE: &str = "thirty-two-bytes-ab!";

fuzz_target!(|text: &str| {
    assert!(SECRET.contains(TELLTALE));
    // What the text itself tells is no secret of the environment's.
    if text.contains(TELLTALE) {
        return;
    }
    match config("check.toml", text) {
        Err(faults) => {
            assert!(!faults.is_empty(), "refused for a reason");
            for fault in faults {
                assert!(!fault.to_string().contains(TELLTALE), "{fault}");
                assert!(!fault.what.is_empty(), "{fault:?}");
            }
        }
        Ok(config) => {
            let shown = config.effective_toml();
            assert!(!shown.contains(TELLTALE), "{shown}");
            assert!(!format!("{config:?}").contains(TELLTALE));
            let value: Result<toml::Table, _> = toml::from_str(&shown);
            assert!(value.is_ok(), "what is in effect can be read: {shown}");
        }
    }
});
