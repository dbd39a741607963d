//! Testkit: real clusters, faults and ledgers for tests and benchmarks
