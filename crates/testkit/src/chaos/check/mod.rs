//! Judges: pure functions over what was recorded. Each has tests that show it silent about what is right and loud about what is not.

pub mod append;
pub mod bank;
pub mod lineage;
pub mod loss;
pub mod register;
