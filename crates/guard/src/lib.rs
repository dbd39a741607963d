//! Guard: the small process that owns the database server and its deadline
