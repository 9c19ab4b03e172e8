//! Spandrel.
fn main() {}
