//! A sender's bytes through a whole gate: the application gets nothing, or messages that only one
//! reading fits and whose body is the one that was signed.
#![no_main]

use hookward_fuzz::{gate::Running, pieces, requests::signed};
use libfuzzer_sys::fuzz_target;

thread_local! {
    static GATE: Running = Running::default();
}

fuzz_target!(|data: &[u8]| {
    let signed = signed(data);
    let heard = GATE.with(|gate| gate.send(&pieces(&signed.bytes, signed.cuts)));
    for message in heard {
        let body = message.unwrap_or_else(|what| panic!("{what}"));
        assert_eq!(body, signed.body, "nothing else was signed");
    }
});
