//! Chaos: a seed becomes a printed plan of faults and workloads; the plan happens to a real cluster on virtual hosts; what every client was told
//! is compared with what is there.
//!
//! Three parts that know little of each other. What will happen is a pure function of the seed (`plan`). Making it happen, and making sure that
//! it did (`inject`), knows nothing of judging. Judging (`check`) is a set of pure functions over what was recorded, each of which has been
//! shown to turn red. Absent: chance while a plan runs. Servers and networks bring enough of that, so a seed repeats a plan, not every interleaving.

mod cgroup;
pub mod check;
pub mod dice;
pub mod fault;
pub(crate) mod inject;
mod inject_database;
mod inject_disk;
mod inject_etcd;
mod inject_log;
mod inject_network;
mod inject_process;
mod look;
pub mod page;
pub mod plan;
pub mod report;
pub mod run;
pub mod sabotage;
pub mod scorecard;
mod undo;
mod workload;

pub use fault::{Class, Kind};
pub use plan::Plan;
pub use report::{Report, Verdict};
