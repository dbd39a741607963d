//! Store: memory and embedded Raft behind one trait
