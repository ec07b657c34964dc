//! An upstream's bytes: what is passed on is what only one reading fits, and nothing of them answers
//! another request.
#![no_main]

use hookward_fuzz::{
    answer::{Reading, read},
    pieces, take, take_bytes,
    upstream::Stage,
};
use libfuzzer_sys::fuzz_target;

thread_local! {
    static STAGE: Stage = Stage::default();
}

fuzz_target!(|data: &[u8]| {
    let mut data = data;
    let closes = take(&mut data).is_multiple_of(2);
    let cuts = take_bytes(&mut data);
    let (first, second) = STAGE.with(|stage| stage.round(&pieces(data, cuts), closes));
    match (first, read(data)) {
        (Err(_), _) => {}
        (
            Ok((status, body)),
            Reading::Whole {
                status: s, body: b, ..
            }
            | Reading::UntilClose { status: s, body: b },
        ) => {
            assert_eq!((status, body), (s, b));
        }
        (Ok(heard), Reading::None) => panic!("{heard:?} where nothing is certain"),
    }
    let second = second.expect("the next event is delivered");
    assert_eq!(second, (200, b"second".to_vec()), "by an answer of its own");
});
