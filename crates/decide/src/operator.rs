//! What operators ask for: each command is accepted or refused at once, with the reason.

use crate::io::{Config, Output};
use crate::mind::Mind;
use mainstay_model::Command;

impl Mind {
    /// Takes the operator's new wishes. Who I am, the seed and plants stay.
    pub(crate) fn on_configured(&mut self, config: Config) {
        let (me, seed, plants) = (self.config.me.clone(), self.config.seed, std::mem::take(&mut self.config.plants));
        let paused = self.config.paused;
        self.config = Config { me, seed, plants, ..config };
        self.update_peers();
        if paused != self.config.paused {
            self.server.retry_at = self.now;
            let text = if paused {
                "resumed: take-over, restart and rejoin go on by themselves"
            } else {
                "paused: no take-over, restart or rejoin by itself"
            };
            self.reason("paused", text);
        }
    }

    pub(crate) fn on_command(&mut self, id: u64, by: &str, command: Command) {
        let reply = match command {
            // The way out for a node that was left behind, also without its promise.
            Command::Reinit if self.is_superseded() => self.on_reinit(by),
            _ if self.lost => Err("this node is just starting and has not read the record yet: try again".to_owned()),
            Command::Switchover { to } => self.on_switchover(by, to),
            Command::Failover { accept_data_loss } => self.on_failover(by, accept_data_loss),
            Command::Restart { in_place } => self.on_restart(by, in_place),
            Command::Reinit => self.on_reinit(by),
            Command::Hold { for_ms } => self.on_hold(by, for_ms),
            Command::Restore(wanted) => self.on_restore(by, *wanted),
        };
        if let Err(why) = &reply {
            self.reason("refused", format!("{by}: {why}"));
        }
        self.out.push(Output::Reply(id, reply));
    }
}
