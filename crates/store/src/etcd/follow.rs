//! What runs beside the requests: one stream of changes for all keys, a poll that does not rely on it, a look at each member, and
//! keeping what was seen.

use super::client::{Client, Fault, watch_body};
use super::wire::{Alarms, Line, Status};
use super::{Inner, OLDER, locked};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use mainstay_model::etcd::{MemberStanding, NO_LEADER};
use serde_json::json;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

/// The stream tells at once; the poll finds what it did not tell, and that etcd answers.
const POLL: Duration = Duration::from_secs(2);
/// While etcd does not answer.
const POLL_SILENT: Duration = Duration::from_millis(500);
const POLL_LIMIT: Duration = Duration::from_secs(2);
const BEGIN_LIMIT: Duration = Duration::from_secs(3);
/// Before the stream is begun anew.
const PAUSE: Duration = Duration::from_millis(200);
const SURVEY_PAUSE: Duration = Duration::from_secs(10);
const MEMBER_LIMIT: Duration = Duration::from_secs(2);
const SAVE: Duration = Duration::from_secs(10);
const SAVE_AGAIN: Duration = Duration::from_secs(1);
/// The longest line of a stream. A change holds one value; its base64 is a third longer.
const LINE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// So often in a row the poll is faster than the stream before that is begun anew.
const MISSED_MAX: u32 = 2;

/// Starts the tasks; they end with the store.
pub(super) fn start(inner: &Arc<Inner>) -> Vec<JoinHandle<()>> {
    let of = || Arc::downgrade(inner);
    vec![tokio::spawn(stream(of())), tokio::spawn(poll(of())), tokio::spawn(survey(of())), tokio::spawn(save(of()))]
}

async fn stream(inner: Weak<Inner>) {
    while let Some(inner) = inner.upgrade() {
        if inner.refusal().is_none()
            && let Err(why) = follow(&inner).await
        {
            tracing::debug!(%why, "the stream of etcd's changes ended; beginning it anew");
        }
        drop(inner);
        sleep(PAUSE).await;
    }
}

/// All values, then every change from there on. Returns why it ended: that may also be that etcd has compacted what comes next.
async fn follow(inner: &Inner) -> Result<(), String> {
    let before = locked(&inner.kept).clone();
    let (values, revision) = inner.whole(Instant::now() + BEGIN_LIMIT).await.map_err(Fault::text)?;
    if before.seen.keys().any(|name| !before.allows(name, values.get(name))) {
        inner.confirm(Instant::now() + BEGIN_LIMIT).await;
        return Err(OLDER.to_owned());
    }
    inner.publish_all(&values)?;
    let body = watch_body(&inner.options.prefix, revision + 1);
    let mut changes = inner.client.watch(&body, Instant::now() + BEGIN_LIMIT).await?;
    let mut refused = inner.refused.subscribe();
    tokio::select! {
        ended = read(inner, &mut changes) => ended,
        () = inner.missed.notified() => Err("it told nothing of changes that were there".to_owned()),
        _ = refused.wait_for(Option::is_some) => Ok(()),
    }
}

async fn read(inner: &Inner, changes: &mut Incoming) -> Result<(), String> {
    let mut held: Vec<u8> = Vec::new();
    while let Some(frame) = changes.frame().await {
        let frame = frame.map_err(|error| error.to_string())?;
        let Some(data) = frame.data_ref() else { continue };
        held.extend_from_slice(data);
        while let Some(end) = held.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = held.drain(..=end).collect();
            take(inner, &line)?;
        }
        if held.len() > LINE_BYTES_MAX {
            return Err(format!("a line of more than {LINE_BYTES_MAX} bytes"));
        }
    }
    Err("etcd ended it".to_owned())
}

fn take(inner: &Inner, line: &[u8]) -> Result<(), String> {
    if line.iter().all(u8::is_ascii_whitespace) {
        return Ok(());
    }
    let line: Line = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    if let Some(error) = line.error {
        return Err(error.to_string());
    }
    let Some(watched) = line.result else { return Ok(()) };
    for happened in watched.events {
        if happened.kv.key == inner.key(super::ORIGIN_KEY).as_bytes() {
            // Whose keys these are has changed. The next beginning, and the poll, look at it.
            return Err("the origin has changed".to_owned());
        }
        let Some(name) = inner.name(&happened.kv.key) else { continue };
        if happened.kind == "DELETE" {
            return Err(format!("{name} was removed"));
        }
        if !inner.publish(&name, &happened.kv) {
            return Err(OLDER.to_owned());
        }
    }
    if watched.canceled { Err("etcd has cancelled it (compacted?)".to_owned()) } else { Ok(()) }
}

async fn poll(inner: Weak<Inner>) {
    let (mut missed, mut woken) = (0, false);
    while let Some(inner) = inner.upgrade() {
        let pause = match look(&inner).await {
            // Another node was faster than the stream: that one needs not have missed it.
            Ok(_) if woken => POLL,
            Ok(news) => {
                missed = if news { missed + 1 } else { 0 };
                if missed >= MISSED_MAX {
                    missed = 0;
                    inner.missed.notify_one();
                }
                POLL
            }
            Err(why) => {
                inner.silent(&why);
                POLL_SILENT
            }
        };
        let heard_more = Arc::clone(&inner.heard_more);
        drop(inner);
        woken = timeout(pause, heard_more.notified()).await.is_ok();
    }
}

/// Looks at every key's revision, and at the record's value. True: there was something that the stream had not told.
async fn look(inner: &Inner) -> Result<bool, String> {
    let before = locked(&inner.kept).clone();
    let deadline = Instant::now() + POLL_LIMIT;
    let shown = inner.ask(deadline).await.map_err(Fault::text)?.ok_or("etcd's answer lacks what was asked for")?;
    let older = before.seen.keys().any(|name| !before.allows(name, shown.pair(&inner.key(name))));
    if older || !shown.marked.kvs.first().is_some_and(|pair| before.is_origin(pair)) {
        inner.confirm(deadline).await;
    }
    if inner.refusal().is_some() {
        inner.answered();
        return Ok(false);
    }
    if older {
        return Err(OLDER.to_owned());
    }
    inner.answered();
    inner.note_origin(&shown);
    let newer =
        |pair: &&super::wire::Pair| inner.name(&pair.key).is_some_and(|name| inner.shown(&name) < pair.mod_revision);
    if !shown.all.kvs.iter().any(|pair| newer(&pair)) {
        return Ok(false);
    }
    let (values, _) = inner.whole(deadline).await.map_err(Fault::text)?;
    inner.publish_all(&values)?;
    Ok(true)
}

async fn survey(inner: Weak<Inner>) {
    while let Some(inner) = inner.upgrade() {
        let (members, alarms) = ask_members(&inner.client).await;
        let held = locked(&inner.members).1.clone();
        *locked(&inner.members) = (members, alarms.unwrap_or(held));
        drop(inner);
        sleep(SURVEY_PAUSE).await;
    }
}

/// What each member says of itself, and the alarms; `None`: nobody told.
pub(super) async fn ask_members(client: &Client) -> (Vec<MemberStanding>, Option<Vec<String>>) {
    let mut members = Vec::new();
    for place in 0..client.endpoints().len() {
        members.push(member(client, place).await);
    }
    let deadline = Instant::now() + MEMBER_LIMIT;
    let alarms = client.read::<Alarms>("/v3/maintenance/alarm", &json!({ "action": "GET" }), deadline).await;
    let names = alarms.ok().map(|raised| {
        let mut names: Vec<String> = raised.alarms.into_iter().map(|alarm| alarm.alarm).collect();
        names.sort();
        names.dedup();
        names
    });
    (members, names)
}

async fn member(client: &Client, place: usize) -> MemberStanding {
    let endpoint = client.endpoints().get(place).map(ToString::to_string).unwrap_or_default();
    let status = client.ask_one::<Status>(place, "/v3/maintenance/status", Instant::now() + MEMBER_LIMIT).await;
    match status {
        Err(problem) => MemberStanding { endpoint, problem: Some(problem), ..MemberStanding::default() },
        Ok(status) => MemberStanding {
            endpoint,
            problem: (status.leader == 0).then(|| NO_LEADER.to_owned()),
            leads: status.leader != 0 && status.leader == status.header.member_id,
            version: Some(status.version),
            bytes: status.size,
        },
    }
}

/// At a steady pace, at once when somebody asks for it, and soon again when it failed: it may be evidence that waits.
async fn save(inner: Weak<Inner>) {
    let (mut saved, mut pause) = (None, SAVE);
    loop {
        let Some(inner) = inner.upgrade() else { return };
        let _ = tokio::time::timeout(pause, inner.to_save.notified()).await;
        let kept = locked(&inner.kept).clone();
        pause = SAVE;
        if saved.as_ref() != Some(&kept) {
            if inner.save().await {
                saved = Some(kept);
            } else {
                pause = SAVE_AGAIN;
            }
        }
    }
}
