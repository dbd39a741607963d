//! What operators ask for: each command is accepted or refused at once, with the reason.

use crate::io::{Config, Output};
use crate::mind::Mind;
use mainstay_model::Command;

impl Mind {
    /// Takes the operator's new wishes. Who I am, the seed and plants stay.
    pub(crate) fn on_configured(&mut self, config: Config) {
        let (me, seed, plants) = (self.config.me.clone(), self.config.seed, std::mem::take(&mut self.config.plants));
        self.config = Config { me, seed, plants, ..config };
    }

    pub(crate) fn on_command(&mut self, id: u64, by: &str, command: Command) {
        let reply = match command {
            Command::Switchover { to } => self.on_switchover(by, to),
            Command::Failover { .. } | Command::Restart { .. } | Command::Reinit => {
                Err("this command is not understood here yet".to_owned())
            }
        };
        if let Err(why) = &reply {
            self.reason("refused", format!("{by}: {why}"));
        }
        self.out.push(Output::Reply(id, reply));
    }
}
