//! The `hookward` program.
fn main() {}
