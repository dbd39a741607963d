//! Brain: what to do now. PURE.

#![forbid(unsafe_code)]

pub mod io;
