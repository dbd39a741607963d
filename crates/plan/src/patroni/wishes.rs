//! What the dynamic configuration wishes: how commits are protected, how long a claim lasts, which slots are kept.

use super::book::{Book, Id, Verdict};
use super::nodes::Member;
use super::yaml::Scalar;
use super::{Dynamic, Input};
use mainstay_model::Durability;
use mainstay_model::spec::Failover;

/// Patroni's own times, in seconds: what is longer was made so for a slow or unsteady network.
const USUAL_TTL: u64 = 30;
const USUAL_RETRY: u64 = 10;

/// What they come to.
pub(super) struct Wished {
    pub(super) durability: Durability,
    pub(super) failover: Failover,
}

fn find(book: &Book, dynamic: Option<Dynamic>, key: &str) -> Option<(Id, Scalar)> {
    let dynamic = dynamic?;
    book.find(dynamic.file, &dynamic.path(&[key])).map(|(id, scalar)| (id, scalar.clone()))
}

fn number(scalar: &Scalar) -> Option<u64> {
    scalar.text.trim().parse().ok()
}

pub(super) fn wishes(input: &Input<'_>, book: &mut Book, members: &[Member], notes: &mut Vec<String>) -> Wished {
    notes.push(
        "Settings from the environment (PATRONI_…) stand in no file: compare what was made with what runs.".to_owned(),
    );
    match input.dynamic {
        None => notes.push(
            "No dynamic configuration was read: Patroni's defaults are taken for it. Name a file with what `patronictl show-config` prints, too."
                .to_owned(),
        ),
        Some(dynamic) if !dynamic.prefix.is_empty() => notes.push(
            "bootstrap.dcs was taken when the cluster was first made, and may have been changed since (patronictl edit-config): name a file \
             with what `patronictl show-config` prints, too."
                .to_owned(),
        ),
        Some(dynamic) => elsewhere(book, dynamic, notes),
    }
    if let Some(dynamic) = input.dynamic
        && !book.under(dynamic.file, &dynamic.path(&["standby_cluster"])).is_empty()
    {
        notes.push(
            "This is a standby cluster, which follows another one. What was made is a cluster that takes writes of its own: do not start it \
             in place of the standby."
                .to_owned(),
        );
    }
    let durability = durability(input, book, notes);
    let sync_replicas = commits(input, book, durability, members.len(), notes);
    let mut failover = Failover { sync_replicas, ..Failover::default() };
    times(input, book, &mut failover);
    asynchronous(input, book, durability);
    Wished { durability, failover }
}

/// A dynamic configuration that holds nothing is Patroni's defaults.
fn elsewhere(book: &Book, dynamic: Dynamic, notes: &mut Vec<String>) {
    if book.under(dynamic.file, &[]).is_empty() {
        notes.push("The dynamic configuration says nothing: Patroni's defaults are taken.".to_owned());
    }
}

fn durability(input: &Input<'_>, book: &mut Book, notes: &mut Vec<String>) -> Durability {
    let mode = find(book, input.dynamic, "synchronous_mode");
    let strict = find(book, input.dynamic, "synchronous_mode_strict");
    let quorum = mode.as_ref().is_some_and(|(_, scalar)| scalar.text.eq_ignore_ascii_case("quorum"));
    let on = quorum || mode.as_ref().is_some_and(|(_, scalar)| scalar.boolean() == Some(true));
    let strictly = strict.as_ref().is_some_and(|(_, scalar)| scalar.boolean() == Some(true));
    let durability = match (on, strictly) {
        (false, _) => Durability::Async,
        (true, false) => Durability::Available,
        (true, true) => Durability::Strict,
    };
    let to = Some("cluster.durability");
    // What is no such word does not switch it on; the one who wrote it must hear that.
    if let Some((id, scalar)) = mode.as_ref().filter(|(_, scalar)| !quorum && scalar.boolean().is_none()) {
        book.say(*id, Verdict::left("it is none of on, off and quorum: read as off, so commits wait for no replica"));
        notes.push(format!(
            "synchronous_mode: {:?} is none of on, off and quorum. It was read as off, hence cluster.durability = \"async\": is that meant?",
            scalar.text
        ));
    } else if let Some((id, _)) = mode {
        let text = match durability {
            Durability::Async => "commits wait for no replica, as under Patroni; what a take-over loses is reported",
            _ if quorum => "any of the replicas may confirm, as in quorum mode",
            _ => "any of the replicas may confirm, not one that is chosen beforehand: the slowest one no longer counts",
        };
        book.say(id, Verdict::changed(to, durability.as_str(), text));
    } else {
        notes.push(
            "Patroni protects commits by no replica unless told so, hence cluster.durability = \"async\". Mainstay's own default, \"strict\", \
             loses no acknowledged write when a server dies: consider it (`mainstay plan` shows the difference)."
                .to_owned(),
        );
    }
    if let Some((id, scalar)) = strict {
        let word = scalar.boolean();
        let verdict = match (on, strictly) {
            _ if word.is_none() => Verdict::left("it is neither on nor off: read as off"),
            (false, _) => Verdict::left("without synchronous_mode it has no effect"),
            (true, true) => Verdict::changed(to, durability.as_str(), "writes wait rather than go on unprotected"),
            (true, false) => {
                Verdict::changed(to, durability.as_str(), "without a replica writes go on, and that is told")
            }
        };
        book.say(id, verdict);
    }
    durability
}

/// Patroni lets fewer confirm when fewer replicas are there (one is enough even in its strict mode); here the number is a promise.
fn commits(
    input: &Input<'_>,
    book: &mut Book,
    durability: Durability,
    nodes: usize,
    notes: &mut Vec<String>,
) -> Option<u32> {
    let (id, scalar) = find(book, input.dynamic, "synchronous_node_count")?;
    let most = u32::try_from(nodes).unwrap_or(u32::MAX).saturating_sub(1);
    let Some(wanted) = number(&scalar).and_then(|wanted| u32::try_from(wanted).ok()).filter(|wanted| *wanted > 0)
    else {
        book.say(id, Verdict::left("it is no number of replicas"));
        return None;
    };
    if durability == Durability::Async {
        book.say(id, Verdict::left("without synchronous_mode it has no effect"));
        return None;
    }
    if most == 0 {
        book.say(id, Verdict::left("there is no other node yet that could confirm"));
        return None;
    }
    let taken = wanted.min(most);
    let to = "failover.sync_replicas";
    let cut = (taken < wanted).then(|| format!("there are {nodes} nodes, of which {most} can confirm"));
    if durability == Durability::Strict && taken > 1 {
        let here = format!(
            "Patroni goes on with fewer when fewer replicas are there, one at least; here commits wait until {taken} have confirmed"
        );
        let text = cut.map_or_else(|| here.clone(), |cut| format!("{cut}; {here}"));
        book.say(id, Verdict::changed(Some(to), taken.to_string(), text));
        let stop = match most - taken {
            0 => format!("writes wait as soon as one of the {most} other nodes is away"),
            spare => format!("writes wait as soon as {} of the {most} other nodes are away", spare + 1),
        };
        notes.push(format!(
            "failover.sync_replicas = {taken} with durability \"strict\": {stop}; Patroni would go on with a single replica. A smaller number \
             keeps writes going, and still loses no acknowledged write when the primary dies (`mainstay plan` shows the difference)."
        ));
    } else {
        let verdict = match cut {
            None => Verdict::carried(to, taken.to_string()),
            Some(cut) => Verdict::changed(Some(to), taken.to_string(), cut),
        };
        book.say(id, verdict);
    }
    Some(taken)
}

/// The lease stays as short as Mainstay's, unless Patroni's times were made longer than they usually are: then it grows as they did.
fn times(input: &Input<'_>, book: &mut Book, failover: &mut Failover) {
    let ttl = find(book, input.dynamic, "ttl");
    let retry = find(book, input.dynamic, "retry_timeout");
    let value = |said: &Option<(Id, Scalar)>| said.as_ref().and_then(|(_, scalar)| number(scalar));
    let percent =
        |value: Option<u64>, usual: u64| value.map_or(100, |value| value.min(6000).saturating_mul(100) / usual);
    let grown = percent(value(&ttl), USUAL_TTL).max(percent(value(&retry), USUAL_RETRY)).max(100);
    let usual = Failover::default();
    failover.lease_ms = (usual.lease_ms * grown / 100).min(600_000);
    failover.suspicion_ms = (usual.suspicion_ms * grown / 100).min(60_000);
    let to = "failover.lease_ms";
    let text = if grown > 100 {
        "longer than Patroni's usual times (ttl 30, retry_timeout 10), so lease and suspicion_ms are longer than Mainstay's in the same measure"
    } else {
        "Mainstay sees the end of a server or host by more than time, so its own, shorter lease stays"
    };
    for (id, scalar) in [&ttl, &retry].into_iter().flatten() {
        if number(scalar).is_none() {
            book.say(*id, Verdict::left("it is no number of seconds: Patroni's own time is taken for it"));
            continue;
        }
        book.say(*id, Verdict::changed(Some(to), failover.lease_ms.to_string(), text));
    }
    if let Some((id, _)) = find(book, input.dynamic, "loop_wait") {
        let text = "there is no loop that sleeps: agents tell each other that they live this often, and act at once on what they see";
        book.say(id, Verdict::changed(Some("failover.ping_ms"), failover.ping_ms.to_string(), text));
    }
}

/// What bounds a loss there.
fn asynchronous(input: &Input<'_>, book: &mut Book, durability: Durability) {
    let Some((id, _)) = find(book, input.dynamic, "maximum_lag_on_failover") else { return };
    let text = match durability {
        Durability::Async => {
            "the replica that reaches furthest takes over, however far behind; what was lost is measured and reported. To lose nothing: \
             durability strict or available"
        }
        _ => "a take-over loses no acknowledged commit here, so nothing is measured in bytes",
    };
    book.say(id, Verdict::changed(Some("cluster.durability"), durability.as_str(), text));
}

/// Slots that are to be kept: those of members are, as every node has one.
pub(super) fn slots(input: &Input<'_>, book: &mut Book, members: &[Member]) {
    let Some(dynamic) = input.dynamic else { return };
    for (id, rest, _) in book.under(dynamic.file, &dynamic.path(&["slots"])) {
        let Some(slot) = rest.first() else { continue };
        let member = |member: &Member| member.called == *slot || member.called.replace(['-', '.'], "_") == *slot;
        let verdict = if members.iter().any(member) {
            Verdict::anyway("every node has a slot on every other one")
        } else {
            Verdict::left(
                "Mainstay keeps the slots of its own nodes only: make this one on the primary with SQL, and again after each take-over",
            )
        };
        book.say(id, verdict);
    }
}
