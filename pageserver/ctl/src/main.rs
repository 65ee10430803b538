//! The binary `pagectl`.
fn main() {}
