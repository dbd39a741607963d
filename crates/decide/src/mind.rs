//! The machine's one entry and its state.

use crate::io::{Config, Input, Output};
use crate::summary::Summary;
use mainstay_model::{Durable, Moment, Span, SystemId};

/// One node's decisions. See the crate's documentation.
#[derive(Clone, Debug)]
pub struct Mind {
    config: Config,
    durable: Option<Durable>,
    data: Option<SystemId>,
    life: u64,
}

impl Mind {
    /// A machine that begins a process life. `durable` is what the node kept: `None`, or a promise of 0 beside a copy, means that the
    /// promise was lost, and the record is read linearizably before anything else. `data` is the identity of the data directory
    /// if it looks whole. `life` is random per process life.
    #[must_use]
    pub fn new(config: Config, durable: Option<Durable>, data: Option<SystemId>, life: u64) -> Mind {
        Mind { config, durable, data, life }
    }

    /// Takes one input and says what to do. `now` never goes back.
    pub fn step(&mut self, _now: Moment, _input: Input) -> Vec<Output> {
        Vec::new()
    }

    /// The latest moment at which the next `Tick` must come.
    #[must_use]
    pub fn wake(&self) -> Option<Moment> {
        None
    }

    /// How often the server should be probed now.
    #[must_use]
    pub fn probe_interval(&self) -> Span {
        Span(500)
    }

    /// What the machine thinks now.
    #[must_use]
    pub fn summary(&self) -> Summary {
        Summary { copy: self.durable.as_ref().and_then(|durable| durable.copy), ..Summary::default() }
    }

    /// The configuration it decides by.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The identity of the data directory, and this process life's number.
    #[must_use]
    pub fn identity(&self) -> (Option<SystemId>, u64) {
        (self.data, self.life)
    }
}
