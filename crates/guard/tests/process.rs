//! The server's process: who may start one, what it inherits, how it ends, and who may ask.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{AT_ONCE, Node, ahead, at_home, directory, eventually, server_user, signal, spawn_guard, state, stop};
use mainstay_guard::reap_data_dir;
use mainstay_model::{Span, Term};
use mainstay_ports::clock::boot_now;
use mainstay_ports::process::{ProcessError, ServerProcess as _, StopMode};
use rustix::process::Signal;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

fn refusal<T: std::fmt::Debug>(result: Result<T, ProcessError>) -> String {
    match result {
        Err(ProcessError::Refused(text)) => text,
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn two_servers_never_run_at_once() {
    let node = Node::new().await;
    let pid = node.start_family(None).await;
    assert!(refusal(node.client.start(node.family(), None).await).contains(&format!("runs already, process {pid}")));
    assert_eq!(node.at_home().len(), 6);
}

#[tokio::test]
async fn no_start_while_anybody_is_left_in_the_data_directory() {
    let node = Node::new().await;
    let mut orphan = Command::new("sleep").arg("600").current_dir(node.layout.data()).spawn().unwrap();
    eventually("it sleeps there", async || node.at_home().len() == 1).await;
    let text = refusal(node.client.start(node.family(), None).await);
    assert!(text.contains(&orphan.id().to_string()) && text.contains("fence first"), "{text}");
    assert_eq!(reap_data_dir(&node.layout.data()).unwrap(), 1);
    orphan.wait().unwrap();
    node.start_family(None).await;
}

#[tokio::test]
async fn a_fence_leaves_nobody_stopped_or_not() {
    let node = Node::new().await;
    let pid = node.start_family(Some((Term(1), ahead(60_000)))).await;
    for member in node.at_home() {
        stop(member).await;
    }
    let begun = boot_now();
    node.client.fence("a test".to_owned()).await.unwrap();
    println!("six stopped processes fenced in {}", boot_now().since(begun));
    assert!(boot_now().since(begun) < AT_ONCE);
    assert!(node.at_home().is_empty() && state(pid).is_none(), "nobody left, not even a zombie");
    let status = node.client.status().await.unwrap();
    assert_eq!((status.fenced, status.server_pid, status.deadline), (1, None, None));
    assert!(status.last_exit.unwrap().contains("fenced: a test; signal 9"));
    node.client.fence("nobody is there".to_owned()).await.unwrap();
    assert_eq!(node.client.status().await.unwrap().fenced, 1, "there was nothing to fence");
}

#[tokio::test]
async fn what_a_dead_server_leaves_is_killed_at_once() {
    let node = Node::new().await;
    let pid = node.start_family(Some((Term(1), ahead(60_000)))).await;
    let begun = boot_now();
    signal(pid, Signal::KILL);
    node.client.exited().await.unwrap();
    println!("exit known after {}", boot_now().since(begun));
    assert!(boot_now().since(begun) < AT_ONCE);
    eventually("nobody is left", async || node.at_home().is_empty()).await;
    eventually("the guard knows", async || node.client.status().await.unwrap().server_pid.is_none()).await;
    let status = node.client.status().await.unwrap();
    assert_eq!(status.fenced, 0, "no fence: the server died");
    let last = status.last_exit.unwrap();
    assert!(last.contains("signal 9") && last.contains("processes that it left were killed"), "{last}");
}

#[tokio::test]
async fn exited_completes_at_once_when_nothing_runs_and_stop_and_reload_are_signals() {
    let node = Node::new().await;
    node.client.exited().await.unwrap();
    assert!(refusal(node.client.stop(StopMode::Fast).await).contains("no server runs"));
    assert!(refusal(node.client.reload().await).contains("no server runs"));
    let script = "trap 'echo reloaded' HUP; trap 'exit 3' INT; echo ready; while :; do sleep 0.01; done";
    node.client.start(node.shell(script), None).await.unwrap();
    let log = || std::fs::read_to_string(node.layout.server_log()).unwrap();
    eventually("it is ready", async || log().contains("ready")).await;
    node.client.reload().await.unwrap();
    eventually("it reloads", async || log().contains("reloaded")).await;
    node.client.stop(StopMode::Fast).await.unwrap();
    node.client.exited().await.unwrap();
    eventually("the guard knows", async || {
        node.client.status().await.unwrap().last_exit.is_some_and(|last| last.starts_with("exit status 3"))
    })
    .await;
}

#[tokio::test]
async fn a_program_that_does_not_exist_is_an_error_with_its_name() {
    let node = Node::new().await;
    let mut command = node.family();
    command.program = "/nowhere/postgres".into();
    let error = node.client.start(command, Some((Term(1), ahead(60_000)))).await.unwrap_err();
    assert!(error.to_string().contains("cannot run /nowhere/postgres"), "{error}");
    eventually("the guard knows", async || node.client.status().await.unwrap().server_pid.is_none()).await;
    assert_eq!(node.client.status().await.unwrap().deadline, None);
    node.start_family(None).await;
}

/// The value of a field of `/proc/PID/status`.
fn status_field(pid: u32, name: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    text.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim_start_matches(':').trim().to_owned()
}

fn stat_field(pid: u32, index: usize) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // Field 3 of the manual's numbering is the first after the name.
    text.rsplit_once(')').unwrap().1.split_ascii_whitespace().nth(index - 3).unwrap().to_owned()
}

#[tokio::test]
async fn the_server_inherits_nothing_of_the_guard_and_the_guard_is_small() {
    let node = Node::new().await;
    let pid = node.client.start(node.shell("echo begun; exec sleep 600"), None).await.unwrap();
    eventually("it sleeps", async || {
        std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == "sleep")
    })
    .await;
    let guard = node.guard.id();
    let me = std::process::id();
    assert_eq!(stat_field(pid, 19), stat_field(me, 19), "the nice value is an ordinary one");
    assert_eq!(stat_field(pid, 6), pid.to_string(), "a session of its own");
    assert_eq!(stat_field(guard, 6), guard.to_string(), "and so has the guard");
    assert_eq!(stat_field(pid, 4), guard.to_string());
    let oom = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
    assert_eq!(oom(pid), oom(me));
    assert_eq!(status_field(pid, "Umask"), "0077");
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let open: Vec<_> = open.map(|fd| (fd.file_name(), std::fs::read_link(fd.path()).unwrap())).collect();
    assert_eq!(open.len(), 3, "nothing but standard input, output and error: {open:?}");
    assert_eq!(std::fs::read_link(format!("/proc/{pid}/fd/0")).unwrap().to_str(), Some("/dev/null"));
    assert_eq!(std::fs::read_link(format!("/proc/{pid}/fd/1")).unwrap(), node.layout.server_log());
    if let Some((user, group)) = server_user() {
        assert_eq!(status_field(pid, "Uid"), format!("{user}\t{user}\t{user}\t{user}"));
        assert_eq!(status_field(pid, "Gid"), format!("{group}\t{group}\t{group}\t{group}"));
        assert_eq!(status_field(pid, "Groups"), "", "no supplementary group of root");
        // A container may forbid some of it even to root; then the guard's log says so.
        let log = node.guard_log();
        assert!(oom(guard).trim() == "-1000" || log.contains("score not lowered"));
        assert!(stat_field(guard, 19) == "-20" || log.contains("priority not raised"));
        assert!(status_field(guard, "VmLck") != "0 kB" || log.contains("memory not locked"));
    }
    let resident: u64 = status_field(guard, "VmRSS").trim_end_matches(" kB").parse().unwrap();
    println!("guard: {resident} kB resident, {} threads", status_field(guard, "Threads"));
    assert!(resident < 10 * 1024, "{resident} kB");
}

#[tokio::test]
async fn a_guard_closes_what_a_careless_parent_left_open() {
    let (_dir, layout) = directory();
    let script = format!(
        "exec 9</etc/passwd; exec {} --socket {} --log {}",
        common::GUARD,
        layout.guard_socket().display(),
        layout.guard_log().display()
    );
    let mut guard = Command::new("/bin/sh").args(["-c", &script]).spawn().unwrap();
    let client = mainstay_guard::GuardClient::new(layout.guard_socket());
    eventually("the guard answers", async || client.status().await.is_ok()).await;
    let open = std::fs::read_dir(format!("/proc/{}/fd", guard.id())).unwrap().flatten();
    let targets: Vec<_> = open.filter_map(|entry| std::fs::read_link(entry.path()).ok()).collect();
    assert!(!targets.iter().any(|target| target.ends_with("etc/passwd")), "{targets:?}");
    client.shutdown(Span(0)).await.unwrap();
    assert!(guard.wait().unwrap().success());
}

#[tokio::test]
async fn a_second_guard_of_the_same_node_ends_and_the_first_goes_on() {
    let node = Node::new().await;
    let pid = node.start_family(None).await;
    let second = spawn_guard(&node.layout).wait_with_output().unwrap();
    assert!(!second.status.success());
    let said = String::from_utf8(second.stderr).unwrap();
    assert!(said.contains("another guard of this node runs"), "{said}");
    assert_eq!(node.client.status().await.unwrap().server_pid, Some(pid));
}

#[tokio::test]
async fn a_killed_guard_takes_the_server_along_and_the_rest_is_reaped() {
    let mut node = Node::new().await;
    let pid = node.start_family(Some((Term(1), ahead(60_000)))).await;
    signal(node.guard.id(), Signal::KILL);
    eventually("the main process got its signal", async || matches!(state(pid), None | Some('Z'))).await;
    assert!(!node.at_home().is_empty(), "this family does not die politely");
    assert!(matches!(node.client.status().await, Err(ProcessError::GuardGone(_))));
    node.replace_guard().await;
    assert!(refusal(node.client.start(node.family(), None).await).contains("of an earlier server"));
    assert!(reap_data_dir(&node.layout.data()).unwrap() >= 1);
    assert!(node.at_home().is_empty());
    node.start_family(None).await;
    assert_eq!(node.client.status().await.unwrap().deadline, None, "a new guard knows no deadline");
}

#[tokio::test]
async fn a_guard_told_to_end_stops_the_server_first_and_is_not_held_up_by_it() {
    let mut node = Node::new().await;
    let script = "trap 'sleep 0.2; exit 0' INT; echo listening; while :; do sleep 0.01; done";
    node.client.start(node.shell(script), None).await.unwrap();
    let log = || std::fs::read_to_string(node.layout.server_log()).unwrap();
    eventually("it listens", async || log().contains("listening")).await;
    signal(node.guard.id(), Signal::TERM);
    assert!(node.guard.wait().unwrap().success());
    assert!(node.at_home().is_empty());
    assert!(node.guard_log().contains("the server is gone: exit status 0"));
    // A server that ignores every signal is fenced when the time is up.
    node.guard = spawn_guard(&node.layout);
    node.wait_for_guard().await;
    node.client.start(node.shell("trap '' INT; echo deaf; while :; do sleep 1; done"), None).await.unwrap();
    let log = || std::fs::read_to_string(node.layout.server_log()).unwrap();
    eventually("it is deaf", async || log().contains("deaf")).await;
    let begun = boot_now();
    node.client.shutdown(Span(400)).await.unwrap();
    assert!(node.at_home().is_empty() && boot_now().since(begun) >= Span(400));
    assert!(node.guard.wait().unwrap().success());
}

#[tokio::test]
async fn nonsense_is_refused_and_does_not_hurt() {
    let node = Node::new().await;
    let mut stream = UnixStream::connect(node.layout.guard_socket()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.write_all(b"{\"id\":4,\"ask\":\"dance\"}\n").unwrap();
    let mut answer = [0u8; 400];
    let count = stream.read(&mut answer).unwrap();
    let text = String::from_utf8_lossy(&answer[..count]).into_owned();
    assert!(text.starts_with("{\"id\":4") && text.contains("does not understand"), "{text}");
    // An endless line ends the connection; the guard may close before it has taken all of it.
    let _ = stream.write_all(&vec![b'x'; 200 * 1024]);
    let mut rest = Vec::new();
    let ended = stream.read_to_end(&mut rest);
    assert!(ended.is_ok() || ended.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset));
    // Too many connections: the guard keeps its bound and goes on answering those it has.
    assert!(node.client.status().await.is_ok());
    let crowd: Vec<_> = (0..40).map(|_| UnixStream::connect(node.layout.guard_socket()).unwrap()).collect();
    assert!(node.client.status().await.is_ok());
    drop(crowd);
    let others = mainstay_guard::GuardClient::new(node.layout.guard_socket());
    eventually("there is room again", async || others.status().await.is_ok()).await;
}

/// Even if the directory and the socket were opened to everybody by mistake.
#[tokio::test]
async fn another_user_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let Some((user, group)) = server_user() else { return println!("only root can be another user: nothing to test") };
    let node = Node::new().await;
    std::fs::set_permissions(node.layout.agent(), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::set_permissions(node.layout.guard_socket(), std::fs::Permissions::from_mode(0o666)).unwrap();
    let script = "use Socket; $SIG{PIPE} = 'IGNORE'; socket(S, AF_UNIX, SOCK_STREAM, 0) or die; connect(S, sockaddr_un($ARGV[0])) or die; \
                  syswrite(S, qq({\"id\":1,\"ask\":\"status\"}\\n)); my $n = sysread(S, my $b, 100); print defined $n ? $n : 'reset'";
    let ask = |uid: u32, gid: u32| {
        let mut perl = Command::new("perl");
        perl.args(["-e", script])
            .arg(node.layout.guard_socket())
            .uid(uid)
            .gid(gid)
            .current_dir("/")
            .stdin(Stdio::null());
        let output = perl.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert_ne!(ask(0, 0), "0", "root is answered");
    let other = ask(user, group);
    assert!(other == "0" || other == "reset", "{other}");
    eventually("the guard's log says so", async || node.guard_log().contains("another user")).await;
}

#[tokio::test]
async fn a_socket_may_lie_deeper_than_the_kernel_takes() {
    let (dir, _) = directory();
    let deep = dir.path().join("d".repeat(100)).join("e".repeat(100));
    std::fs::create_dir_all(&deep).unwrap();
    let layout = mainstay_model::layout::NodeLayout::new(&deep);
    let client = mainstay_guard::ensure_guard(&layout, common::GUARD.as_ref(), &[]).await.unwrap();
    assert_eq!(client.status().await.unwrap().server_pid, None);
    assert_eq!(at_home(&deep).len(), 0);
    client.shutdown(Span(0)).await.unwrap();
}
