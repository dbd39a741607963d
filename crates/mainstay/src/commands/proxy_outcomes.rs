//! Commits whose answer was lost with their server: the agent of the primary that comes next is asked what became of them (docs/adr/0054).

use mainstay_agent::door::ask_commit;
use mainstay_model::outcome::CommitAnswer;
use mainstay_ports::clock::boot_now;
use mainstay_ports::peer::Peers;
use mainstay_proxy::pool::{Asked, Pooled};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// The same question is asked again after this.
const PAUSE: Duration = Duration::from_millis(50);
/// So many are asked at once.
const AT_ONCE: usize = 8;

/// Looks them up, for ever.
pub(crate) async fn keep(pooled: Pooled, peers: Arc<dyn Peers>) {
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        for asked in pooled.commits_in_doubt().await {
            let (pooled, peers, turns) = (pooled.clone(), Arc::clone(&peers), Arc::clone(&turns));
            tokio::spawn(async move {
                let answer = look_up(&pooled, &peers, &turns, &asked).await;
                pooled.found(&asked, answer);
            });
        }
    }
}

/// Until there is an answer, or nobody waits for it any more.
async fn look_up(pooled: &Pooled, peers: &Arc<dyn Peers>, turns: &Semaphore, asked: &Asked) -> CommitAnswer {
    let mut last = CommitAnswer::Unknown("there is no primary to ask".to_owned());
    while boot_now() < asked.until {
        // Never closed. Who waits for a turn waits no longer than its client, and asks whoever is the primary then.
        let left = Duration::from_millis(asked.until.since(boot_now()).0);
        let Ok(Ok(turn)) = tokio::time::timeout(left, turns.acquire()).await else { break };
        if let Some(primary) = pooled.primary() {
            let answer = ask_commit(peers, &primary, asked.question).await;
            match answer {
                Ok(CommitAnswer::Later(why)) => last = CommitAnswer::Unknown(why),
                Ok(answer) => return answer,
                Err(why) => last = CommitAnswer::Unknown(format!("the agent of {primary}: {why}")),
            }
        }
        drop(turn);
        tokio::time::sleep(PAUSE).await;
    }
    last
}
