//! Agent: observe, decide, act
