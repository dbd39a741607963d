//! PostgreSQL behind the Engine trait
