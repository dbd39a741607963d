//! What is wrong with a node before its server starts: named, with the way out, and nothing is touched.

use crate::support::{Cluster, Node, until};
use mainstay_engine_postgres::{Finding, Postgres};
use mainstay_model::ServerState;
use mainstay_ports::engine::{Engine, EngineError};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;

/// The node is found to be so, and does not start; then `undo` puts it right.
async fn refused(node: &Node, upstream: &Node, words: &[&str], undo: impl FnOnce()) {
    let found = node.pg.inspect().await;
    let text: Vec<String> = found.iter().map(ToString::to_string).collect();
    let text = text.join("; ");
    assert!(words.iter().all(|word| text.contains(word)), "{words:?} in {text:?}");
    assert!(found.iter().any(Finding::blocks));
    let error = node.pg.start_standby(node.copy(), Some(&upstream.id)).await.unwrap_err().to_string();
    assert!(words.iter().all(|word| error.contains(word)), "{words:?} in {error:?}");
    let seen = node.pg.probe().await;
    assert_eq!(seen.state, ServerState::Down);
    assert_eq!(seen.symptom, Some(error), "people are not told");
    undo();
}

fn mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_not_fit_says_why_and_starts_when_it_is_put_right() {
    let cluster = Cluster::running(2).await;
    let (first, second) = (&cluster.nodes[0], &cluster.nodes[1]);
    assert!(second.pg.inspect().await.iter().all(|found| !found.blocks()), "a healthy node was found fault with");
    second.pg.stop_standby().await.unwrap();
    assert!(second.pg.inspect().await.iter().all(|found| !found.blocks()), "a healthy node was found fault with");
    let layout = second.options.layout.clone();
    let data = layout.data();

    let probed = data.join("pg_stat_tmp/mainstay.probe");
    let not_written_to = || {
        let _ = std::fs::remove_file(&probed);
        std::thread::sleep(std::time::Duration::from_millis(2500));
        assert!(!probed.exists(), "the disk probe writes to data that may be another's");
        mode(&data, 0o700);
    };
    mode(&data, 0o777);
    refused(second, first, &["mode 777", "chmod 700"], not_written_to).await;

    if let Some((uid, gid)) = second.options.user {
        chown(&data, Some(0), Some(0)).unwrap();
        refused(second, first, &["belongs to user 0", "chown"], || chown(&data, Some(uid), Some(gid)).unwrap()).await;
    } else {
        println!("not root: the owner of a data directory can not be changed, that case was not looked at");
    }

    let elsewhere = layout.dir().join("elsewhere");
    std::fs::rename(&data, &elsewhere).unwrap();
    symlink(&elsewhere, &data).unwrap();
    let back = || {
        std::fs::remove_file(&data).unwrap();
        std::fs::rename(&elsewhere, &data).unwrap();
    };
    refused(second, first, &["symbolic link"], back).await;

    let version = data.join("PG_VERSION");
    let real = std::fs::read_to_string(&version).unwrap();
    std::fs::write(&version, "99\n").unwrap();
    refused(second, first, &["made by PostgreSQL 99", "bin_dir"], || std::fs::write(&version, &real).unwrap()).await;

    let listener = std::net::TcpListener::bind((second.host.as_str(), second.options.port)).unwrap();
    let me = format!("process {}", std::process::id());
    refused(second, first, &["port 5432", "is in use by", &me], || drop(listener)).await;

    let (cert, kept) = (layout.server_cert(), layout.dir().join("kept.crt"));
    std::fs::rename(&cert, &kept).unwrap();
    refused(second, first, &["server.crt can not be read", "pki issue"], || std::fs::rename(&kept, &cert).unwrap())
        .await;

    mode(&layout.replication_key(), 0o644);
    refused(second, first, &["replication.key has mode 644"], || mode(&layout.replication_key(), 0o600)).await;

    second.pg.start_standby(second.copy(), Some(&first.id)).await.unwrap();
    second.until_receiving().await;
    until("nothing is wrong", || async { second.pg.probe().await.symptom.is_none() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_certificate_is_said_and_keeps_no_server_from_starting() {
    let cluster = Cluster::running(1).await;
    let node = &cluster.nodes[0];
    let mut params = rcgen::CertificateParams::new(vec!["n1".to_owned()]).unwrap();
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2021, 1, 1);
    let key = rcgen::KeyPair::generate().unwrap();
    std::fs::write(node.options.layout.replication_cert(), params.self_signed(&key).unwrap().pem()).unwrap();
    let found = node.pg.inspect().await;
    let expired = found.iter().find(|found| matches!(found, Finding::TlsExpired { .. })).unwrap();
    assert!(
        !expired.blocks() && expired.to_string().contains("Jan  1") && expired.to_string().contains("replication.crt")
    );
    node.restart_primary().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_are_no_data_directory_are_never_touched() {
    let cluster = Cluster::running(2).await;
    let (first, second) = (&cluster.nodes[0], &cluster.nodes[1]);
    second.kill().await;
    let data = second.options.layout.data();
    std::fs::rename(&data, second.options.layout.dir().join("away")).unwrap();
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("thesis.txt"), "the only copy").unwrap();
    let error = (*second.pg).clone_from(&first.id, second.copy()).await.unwrap_err();
    assert!(matches!(&error, EngineError::Failed(text) if text.contains("not empty and no data directory")), "{error}");
    let error = second.pg.bootstrap(second.copy(), &Default::default(), None).await.unwrap_err().to_string();
    assert!(error.contains("not empty"), "{error}");
    assert_eq!(std::fs::read_to_string(data.join("thesis.txt")).unwrap(), "the only copy");
    std::fs::remove_file(data.join("thesis.txt")).unwrap();
    second.clone_from(first).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_that_are_missing_or_too_old_are_named() {
    let cluster = Cluster::new(1);
    let node = &cluster.nodes[0];
    let programs = tempfile::tempdir().unwrap();
    mode(programs.path(), 0o755);
    let mut options = node.options.clone();
    options.bin_dir = programs.path().to_owned();
    let error = Postgres::new(options.clone(), node.process.clone()).err().unwrap().to_string();
    assert!(error.contains(&programs.path().display().to_string()) && error.contains("install"), "{error}");
    for name in ["postgres", "initdb"] {
        std::fs::write(programs.path().join(name), "#!/bin/sh\necho 'postgres (PostgreSQL) 14.9 (Old 14.9-1)'\n")
            .unwrap();
        mode(&programs.path().join(name), 0o755);
    }
    let old = Postgres::new(options, node.process.clone()).unwrap();
    let found = old.inspect().await;
    let too_old = found.iter().find(|found| matches!(found, Finding::TooOld { .. })).unwrap();
    assert!(too_old.blocks() && too_old.to_string().contains("14.9"), "{too_old}");
    let error = old.bootstrap(node.copy(), &Default::default(), None).await.unwrap_err().to_string();
    assert!(error.contains("too old"), "{error}");
    until("nothing was made", || async { !node.options.layout.data().exists() }).await;
}
