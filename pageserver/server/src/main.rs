//! The binary `pageserver`.
fn main() {}
