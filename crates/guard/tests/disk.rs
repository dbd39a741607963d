//! A server whose volume is frozen under it, on an ext4 volume of its own. Needs root, loop devices, `mkfs.ext4` and `fsfreeze`; fails,
//! and says so, without.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{AT_ONCE, Node, ahead, eventually, server_user, spawn_guard, state};
use mainstay_guard::GuardClient;
use mainstay_model::Term;
use mainstay_model::layout::NodeLayout;
use mainstay_ports::clock::boot_now;
use mainstay_ports::process::{Fenced, ProcessError, ServerProcess as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

fn run(program: &str, arguments: &[&str]) {
    let ran = Command::new(program).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{program} {arguments:?}: {said} (volumes of their own need root and loop devices)");
}

/// Thaws and unmounts, whatever happened.
struct Mounted(PathBuf);

impl Mounted {
    fn new(dir: &Path) -> Mounted {
        let (image, mounted) = (dir.join("image"), dir.join("volume"));
        std::fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
        std::fs::create_dir(&mounted).unwrap();
        let text = |path: &Path| path.display().to_string();
        run("mkfs.ext4", &["-q", "-O", "^has_journal", &text(&image)]);
        run("mount", &["-o", "loop", &text(&image), &text(&mounted)]);
        Mounted(mounted)
    }
    fn freeze(&self) {
        run("fsfreeze", &["-f", &self.0.display().to_string()]);
    }
    fn thaw(&self) {
        run("fsfreeze", &["-u", &self.0.display().to_string()]);
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let mounted = self.0.display().to_string();
        let _ = Command::new("fsfreeze").args(["-u", &mounted]).output();
        let gone = |_| {
            std::thread::sleep(Duration::from_millis(100));
            Command::new("umount").arg(&mounted).output().is_ok_and(|ran| ran.status.success())
        };
        if !(0..30).any(gone) {
            let _ = Command::new("umount").args(["-l", &mounted]).output();
        }
    }
}

/// A node whose directory lies wholly on the volume, the guard's log too; its socket does not move.
async fn node_on(volume: &Mounted, dir: tempfile::TempDir) -> Node {
    let layout = NodeLayout::new(volume.0.join("node"));
    for path in [layout.dir().to_owned(), layout.agent(), layout.data(), layout.log()] {
        std::fs::create_dir(path).unwrap();
    }
    for (path, mode) in [(layout.agent(), 0o700), (layout.dir().to_owned(), 0o711), (dir.path().to_owned(), 0o755)] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let (user, group) = server_user().expect("root");
    std::os::unix::fs::chown(layout.data(), Some(user), Some(group)).unwrap();
    let guard = spawn_guard(&layout);
    let client = GuardClient::new(layout.guard_socket());
    let node = Node { dir, layout, guard, client };
    node.wait_for_guard().await;
    node
}

#[tokio::test]
async fn processes_stuck_on_a_frozen_volume_are_told_apart_at_once_and_nothing_starts_beside_them() {
    let dir = tempfile::tempdir().unwrap();
    let volume = Mounted::new(dir.path());
    let node = node_on(&volume, dir).await;
    // One that writes, one that never touches the disk and so can be killed, one that ignores what is polite.
    let script =
        "trap '' INT TERM QUIT HUP; sleep 600 & (while :; do echo x >> one; done) & while :; do echo x > two; done";
    let pid = node.client.start(node.shell(script), Some((Term(1), ahead(60_000)))).await.unwrap();
    let written = node.layout.data().join("one");
    eventually("it writes", async || written.exists() && node.at_home().len() >= 3).await;
    volume.freeze();
    eventually("it is stuck", async || state(pid) == Some('D')).await;
    for order in 0..3 {
        let begun = boot_now();
        let fenced = node.client.fence("a frozen volume".to_owned()).await.unwrap();
        let took = boot_now().since(begun);
        let Fenced::Doomed { processes } = fenced else { panic!("the volume is not frozen: nobody was stuck") };
        println!("order {order}: doomed after {took}: {processes:?}");
        assert!(took < AT_ONCE && processes.contains(&pid), "{took} {processes:?}");
        assert!(processes.iter().all(|pid| state(*pid) == Some('D')), "somebody who is not stuck");
        assert_eq!(node.at_home(), processes, "one that could be killed was not");
    }
    // The guard answers, and lets nobody in beside them.
    let begun = boot_now();
    let status = node.client.status().await.unwrap();
    assert!(status.server_pid == Some(pid) && boot_now().since(begun) < AT_ONCE, "{status:?}");
    let refused = node.client.start(node.family(), None).await;
    assert!(matches!(&refused, Err(ProcessError::Refused(_))), "{refused:?}");
    assert!(node.client.extend(Term(1), ahead(60_000)).await.is_err(), "a fenced server got a new deadline");
    let sizes = || ["one", "two"].map(|name| std::fs::metadata(node.layout.data().join(name)).unwrap().len());
    let before = sizes();
    volume.thaw();
    assert_eq!(node.client.fence("again".to_owned()).await.unwrap(), Fenced::Gone);
    eventually("all are gone", async || {
        node.at_home().is_empty() && node.client.status().await.unwrap().server_pid.is_none()
    })
    .await;
    // The write that was under way may be finished; the program that would have gone on never ran again.
    assert!(sizes().iter().zip(before).all(|(after, before)| *after <= before + 2), "{before:?} {:?}", sizes());
    eventually("the guard has written its log", async || node.guard_log().contains("stuck in the kernel")).await;
    node.start_family(None).await;
    assert_eq!(node.client.fence("the end".to_owned()).await.unwrap(), Fenced::Gone);
    drop(node);
    drop(volume);
}
