//! Adopting an existing server, in the same small world.

use super::super::adopt::{self, Adopt, Existing, Habit, Setting, Stream, Told};
use super::*;

/// A file by which the second node's server is adopted, and hosts where it runs.
fn adopting() -> (World, String) {
    let text = text(&[1, 2, 3], "").replace("host = \"10.0.0.2\"\n", "host = \"10.0.0.2\"\nadopt = \"/srv/main\"\n");
    let told = Told { superuser: true, port: 5432, clients: 3, bytes: 5_000_000, ..Told::default() };
    let existing = Existing {
        directory: "/srv/main".into(),
        system: Some(SystemId(77)),
        major: 15,
        pid: Some(9),
        state: "in production".into(),
        told: Some(Ok(told)),
        ..Existing::default()
    };
    let mut world = World::bare(3);
    world.hosts.values_mut().for_each(|host| host.server = Some(15));
    world.host(&name(2)).adopt = Some(Adopt::Named(Box::new(existing)));
    (world, text)
}

fn existing(world: &mut World) -> &mut Existing {
    let Some(Adopt::Named(existing)) = &mut world.host(&name(2)).adopt else { panic!("nothing to adopt") };
    existing
}

fn asked(world: &mut World) -> &mut Told {
    existing(world).told.as_mut().unwrap().as_mut().unwrap()
}

#[test]
fn a_server_is_adopted_last_wherever_that_was_interrupted() {
    let (bare, text) = adopting();
    for interrupted in 0..60 {
        let mut world = bare.clone();
        world.apply(&text, false, interrupted);
        same(&world, &[1, 2, 3], &text);
        assert_eq!(world.hosts[&name(2)].adopt, Some(Adopt::Taken));
        assert_eq!(world.decide(&text, false), Ok(Work::default()));
    }
    // The old server was stopped, and the run ended there.
    let mut world = bare.clone();
    (1..=3).for_each(|number| world.host(&name(number)).server = Some(15));
    let stopped = existing(&mut world);
    (stopped.pid, stopped.told, stopped.state, stopped.noted) = (None, None, "shut down".into(), Some(SystemId(77)));
    world.apply(&text, false, usize::MAX / 2);
    same(&world, &[1, 2, 3], &text);
    // Its host is set up anew, years later: the line means nothing any more.
    let mut later = world.clone();
    later.host(&name(2)).adopt =
        Some(Adopt::Named(Box::new(Existing { no_data: Some("does not exist".into()), ..Existing::default() })));
    let inventory = Inventory { primary: Some(name(1)), ..later.inventory(&spec(&text)) };
    let spec = spec(&text);
    let wanted = wanted(&spec, &text, Some(AUTHORITY), false);
    assert_eq!(adopt::pending(&wanted, &inventory), None);
    assert_eq!(work(&wanted, &inventory), Ok(Work::default()));
}

/// What stands in the way once the hosts were changed.
fn told(change: &dyn Fn(&mut World), text: &str) -> String {
    let (mut world, _) = adopting();
    change(&mut world);
    world.decide(text, false).map_or_else(
        |found| found.iter().map(|each| format!("{}: {}\n", each.what, each.mend)).collect::<String>(),
        |_| String::new(),
    )
}

#[test]
fn what_keeps_a_server_from_being_adopted_is_told_before_it_is_stopped() {
    let (_, text) = adopting();
    assert_eq!(told(&|_| {}, &text), "");
    type Change<'a> = (&'a str, &'a dyn Fn(&mut World));
    let cases: [Change<'_>; 26] = [
        ("does not exist", &|world| existing(world).no_data = Some("does not exist".into())),
        ("other data than those whose adoption began", &|world| existing(world).noted = Some(SystemId(78))),
        ("whose data those are is not known", &|world| existing(world).system = None),
        ("is of PostgreSQL 16, and servers of this node are PostgreSQL 15", &|world| existing(world).major = 16),
        ("15 is the oldest", &|world| existing(world).major = 14),
        ("chown -R postgres", &|world| existing(world).owner = Some(("ann".into(), "postgres".into()))),
        ("mode 777", &|world| existing(world).mode = Some(0o777)),
        ("on the same file system", &|world| existing(world).elsewhere = Some("that is on another file system".into())),
        ("DROP TABLESPACE", &|world| existing(world).links = vec![("pg_tblspc/16384".into(), "/fast".into())]),
        ("is a standby", &|world| existing(world).standby = true),
        ("is a standby", &|world| asked(world).in_recovery = true),
        ("patroni runs there", &|world| existing(world).managers = vec!["patroni".into()]),
        ("local all postgres peer", &|world| existing(world).told = Some(Err("no".into()))),
        ("no superuser called postgres", &|world| asked(world).superuser = false),
        ("does not run", &|world| (existing(world).pid, existing(world).told) = (None, None)),
        ("not shut down in order", &|world| {
            existing(world).noted = Some(SystemId(77));
            (existing(world).pid, existing(world).told) = (None, None);
        }),
        (
            "standbys stream from the server of /srv/main that the file does not name: walreceiver at 10.0.0.7",
            &|world| asked(world).standbys = vec![stream("10.0.0.7:4000")],
        ),
        ("pg_drop_replication_slot('it''s')", &|world| asked(world).slots = vec!["it's".into()]),
        ("prepared transactions", &|world| asked(world).prepared = 2),
        ("mounted at /srv/main/pg_wal", &|world| existing(world).mounts = vec!["/srv/main/pg_wal".into()]),
        ("/data, where the data of /srv/main will lie, is not empty", &|world| {
            existing(world).occupied = Some("/var/lib/mainstay/orders/data".into())
        }),
        ("bash (process 7) works in", &|world| existing(world).strangers = vec!["bash (process 7)".into()]),
        ("echo auto > start.conf; then start it by its own means, then", &|world| {
            existing(world).undo = vec!["echo auto > start.conf".into()];
            (existing(world).noted, existing(world).pid, existing(world).told) = (Some(SystemId(77)), None, None);
        }),
        ("put the line back: adopt = \"/srv/main\"", &|world| {
            let place = "/var/lib/mainstay/orders/data.adopted".into();
            world.host(&name(2)).adopt = Some(Adopt::Unnamed { directory: "/srv/main".into(), place });
        }),
        ("comes too late", &|world| world.host(&name(1)).identity = Some(SystemId(78))),
        ("secrets/app.password", &|world| asked(world).app = true),
    ];
    for (words, change) in cases {
        let told = told(change, &text);
        assert!(told.contains(words), "{words}: {told}");
    }
}

#[test]
fn what_somebody_has_decided_about_is_in_nobodys_way() {
    let (_, text) = adopting();
    // The cluster's data are these, or were.
    let same = |world: &mut World| world.host(&name(1)).identity = Some(SystemId(77));
    assert_eq!(told(&same, &text), "");
    let again = |world: &mut World| {
        world.host(&name(1)).identity = Some(SystemId(76));
        existing(world).noted = Some(SystemId(76));
    };
    assert_eq!(told(&again, &text), "");
    let library = |world: &mut World| world.host(&name(3)).libraries = vec!["timescaledb".into()];
    assert!(told(&library, &text).contains("no library \"timescaledb\""));
    let md5 = |world: &mut World| asked(world).md5 = vec!["shop".into()];
    assert!(told(&md5, &text).contains("MD5"));
    let ldap = |world: &mut World| asked(world).access = vec![("host all all 10.0.0.0/8 ldap".into(), "ldap".into())];
    assert!(told(&ldap, &text).contains("hba = [\"host all all 10.0.0.0/8 ldap\"]"));
    let bound = |world: &mut World| {
        ldap(world);
        asked(world).access.push(("host all all all ldap ldapbindpasswd=hidden".into(), "ldap".into()));
    };
    let said = told(&bound, &text);
    assert!(
        said.contains("hba = [\"host all all 10.0.0.0/8 ldap\"]\nA line that") && !said.contains("hidden"),
        "{said}"
    );
    let full = |world: &mut World| {
        asked(world).bytes = 5_000_000_000;
        (1..=3).for_each(|number| world.host(&name(number)).free = Some(4_000_000_000));
    };
    let said = told(&full, &text);
    // What is moved needs no room; its two copies do.
    assert_eq!(said.matches("does not fit").count(), 2, "{said}");
    let large = |world: &mut World| asked(world).bytes = 180_000_000_000;
    assert!(told(&large, &text).contains("about 30 min"), "{}", told(&large, &text));
    let waits_not = text.replace("[cluster]\n", "[cluster]\ndurability = \"available\"\n");
    assert_eq!(told(&large, &waits_not), "");
    // Somebody has decided about both.
    let more = format!("{text}[postgres]\nhba = [\"hostssl all shop all md5\"]\n");
    assert_eq!((told(&md5, &more), told(&ldap, &more)), (String::new(), String::new()));
}

fn setting(name: &str, value: &str) -> Setting {
    Setting { name: name.into(), value: value.into(), ..Setting::default() }
}

/// Is it in the way?
fn open(one: Setting, text: &str) -> bool {
    !told(&|world| asked(world).settings = vec![one.clone()], text).is_empty()
}

#[test]
fn what_goes_with_the_data_must_not_count_before_the_file() {
    let (bare, text) = adopting();
    // What the file says does not count beside these.
    let automatic = |name: &str, value: &str| Setting { automatic: true, ..setting(name, value) };
    let refused = [
        automatic("synchronous_commit", "off"),
        automatic("synchronous_commit", "local"),
        automatic("shared_preload_libraries", "timescaledb"),
        automatic("session_preload_libraries", "auto_explain"),
        automatic("default_transaction_read_only", "on"),
        Setting { pending: true, ..automatic("max_connections", "100") },
    ];
    for one in refused {
        let value = if one.name == "synchronous_commit" { "on" } else { "x" };
        let decided = format!("{text}[postgres.parameters]\n{} = \"{value}\"\n", one.name);
        assert!(open(one.clone(), &text) && open(one.clone(), &decided), "{one:?}");
        let mut world = bare.clone();
        asked(&mut world).settings = vec![one.clone()];
        let mend = &world.decide(&text, false).unwrap_err()[0].mend;
        assert!(mend.contains(&format!("alter system reset {};", one.name)), "{mend}");
    }
    let harmless = [automatic("synchronous_commit", "remote_apply"), automatic("shared_preload_libraries", "")];
    harmless.into_iter().for_each(|one| assert!(!open(one.clone(), &text), "{one:?}"));
    // What the server itself can not see, or has not read.
    let (unread, stale) = ("/etc/postgresql.conf line 9: syntax error", "was changed after its server read it");
    assert!(told(&|world| asked(world).unread = vec![unread.into()], &text).contains(unread));
    assert!(told(&|world| asked(world).stale = true, &text).contains(stale));
    // Nobody sees what its own file would make of it; this one's does not need to know.
    let waits = Setting { pending: true, built_in: true, ..setting("max_files_per_process", "1000") };
    let decided = format!("{text}[postgres.parameters]\nmax_files_per_process = \"2000\"\n");
    assert!(open(waits.clone(), &text) && !open(waits, &decided));
}

#[test]
fn what_roles_and_databases_have_set_must_not_count_before_the_file() {
    let (_, text) = adopting();
    let habit = |role: Option<&str>, database: Option<&str>, (name, value): (&str, &str)| Habit {
        role: role.map(str::to_owned),
        database: database.map(str::to_owned),
        name: name.into(),
        value: value.into(),
    };
    let said = |habit: Habit| told(&|world| asked(world).habits = vec![habit.clone()], &text);
    let (off, read_only) = (("synchronous_commit", "off"), ("default_transaction_read_only", "on"));
    let refused = [
        (habit(Some("app"), None, off), "ALTER ROLE \"app\" RESET synchronous_commit;"),
        (
            habit(Some("a\"b"), Some("shop"), read_only),
            "ALTER ROLE \"a\"\"b\" IN DATABASE \"shop\" RESET default_transaction_read_only;",
        ),
        (habit(None, Some("shop"), off), "ALTER DATABASE \"shop\" RESET synchronous_commit;"),
        (
            habit(None, None, ("session_preload_libraries", "auto_explain")),
            "ALTER ROLE ALL RESET session_preload_libraries;",
        ),
    ];
    for (one, mend) in refused {
        let said = said(one.clone());
        assert!(said.contains(mend) && said.contains(" SET "), "{one:?}: {said}");
    }
    for fine in [("search_path", "shop"), ("synchronous_commit", "TRUE"), ("work_mem", "1GB")] {
        assert_eq!(said(habit(Some("app"), None, fine)), "");
    }
}

#[test]
fn parameters_that_nobody_has_decided_about_keep_a_server_from_being_adopted() {
    let (bare, text) = adopting();
    let ours = |name: &str, value: &str, ours: &str| Setting { ours: Some(ours.into()), ..setting(name, value) };
    let fine = [
        ours("max_connections", "100", "200"),
        ours("TimeZone", "Etc/UTC", "UTC"),
        ours("shared_buffers", "128MB", "128MB"),
        Setting { built_in: true, ..setting("DateStyle", "ISO, MDY") },
        Setting { owned: true, ..setting("archive_command", "cp") },
        Setting { automatic: true, ..setting("work_mem", "64MB") },
        setting("log_min_duration_statement", "1s"),
        setting("external_pid_file", "/run/x.pid"),
    ];
    for one in fine {
        assert!(!open(one.clone(), &text), "{one:?}");
    }
    let decide = [
        ours("max_connections", "500", "200"),
        ours("TimeZone", "Europe/Berlin", "UTC"),
        setting("default_text_search_config", "pg_catalog.german"),
        setting("shared_preload_libraries", "pg_stat_statements"),
        // An application's own.
        setting("app.tenant", "north"),
    ];
    for one in decide {
        assert!(open(one.clone(), &text), "{one:?}");
        let decided = format!("{text}[postgres.parameters]\n\"{}\" = \"x\"\n", one.name.to_lowercase());
        assert!(!open(one.clone(), &decided), "{one:?}");
    }
    // What is told can be pasted, and says what becomes of the rest.
    let mut world = bare.clone();
    asked(&mut world).settings =
        vec![setting("search_path", "\"$user\", public"), Setting { owned: true, ..setting("archive_mode", "on") }];
    let found = world.decide(&text, false).unwrap_err();
    let command = Setting { owned: true, ..setting("archive_command", "tool push %p") };
    asked(&mut world).settings.push(command);
    assert!(found[0].mend.ends_with("search_path = \"\\\"$user\\\", public\""), "{}", found[0].mend);
    let spec = spec(&text);
    let told = adopt::told(&wanted(&spec, &text, None, false), &world.inventory(&spec)).join("\n");
    for words in [
        "nothing is copied",
        "3 clients",
        "the way back",
        "sets these itself: archive_mode",
        "its archive ends: to go on with it, put archive_command = \"tool push %p\" under [postgres]",
        "port 6432",
        "about 1 s at",
    ] {
        assert!(told.contains(words), "{words}: {told}");
    }
    let text = format!("{text}[postgres]\narchive_command = \"tool push %p\"\n");
    let kept = self::spec(&text);
    let told = adopt::told(&wanted(&kept, &text, None, false), &world.inventory(&kept)).join("\n");
    assert!(
        told.contains("is archived by archive_command of [postgres]") && !told.contains("its archive ends"),
        "{told}"
    );
}

#[test]
fn a_line_that_comes_after_the_start_is_in_force_before_the_server_is_stopped() {
    let (bare, text) = adopting();
    for interrupted in 0..40 {
        // Agents were started with a file that named no server, and ended before there was a first copy.
        let mut world = made(&[1, 2, 3], 3);
        world.hosts.values_mut().for_each(|host| host.server = Some(15));
        world.host(&name(2)).adopt = bare.hosts[&name(2)].adopt.clone();
        assert!(world.stored.as_ref().unwrap().spec.founder().is_none());
        world.apply(&text, false, interrupted);
        same(&world, &[1, 2, 3], &text);
        assert_eq!(world.hosts[&name(2)].adopt, Some(Adopt::Taken));
    }
}

/// A standby as its primary sees it.
fn stream(at: &str) -> Stream {
    Stream { name: "walreceiver".into(), at: Some(at.parse().unwrap()) }
}

/// The same, and the third node's server is a standby of it.
fn pair() -> (World, String) {
    let (mut world, text) = adopting();
    let text = text.replace("host = \"10.0.0.3\"\n", "host = \"10.0.0.3\"\nadopt_standby = \"/srv/copy\"\n");
    asked(&mut world).standbys = vec![stream("10.0.0.3:4000")];
    asked(&mut world).slots = vec!["theirs".into()];
    let told = Told {
        in_recovery: true,
        receives: true,
        slot: Some("theirs".into()),
        source: Some("10.0.0.2 port 5432".into()),
        end: Some("10.0.0.3:4000".parse().unwrap()),
        ..asked(&mut world).clone()
    };
    let standby = Existing {
        directory: "/srv/copy".into(),
        standby: true,
        state: "in archive recovery".into(),
        told: Some(Ok(Told { standbys: Vec::new(), slots: Vec::new(), ..told })),
        ..existing(&mut world).clone()
    };
    world.host(&name(3)).adopt = Some(Adopt::Named(Box::new(standby)));
    (world, text)
}

fn standby(world: &mut World) -> &mut Existing {
    let Some(Adopt::Named(existing)) = &mut world.host(&name(3)).adopt else { panic!("no standby") };
    existing
}

#[test]
fn a_standby_comes_with_its_primary_wherever_that_was_interrupted() {
    let (bare, text) = pair();
    for interrupted in 0..60 {
        let mut world = bare.clone();
        world.apply(&text, false, interrupted);
        same(&world, &[1, 2, 3], &text);
        let taken = [2, 3].map(|number| world.hosts[&name(number)].adopt.clone());
        assert_eq!(taken, [Some(Adopt::Taken), Some(Adopt::Taken)]);
        assert_eq!(world.decide(&text, false), Ok(Work::default()));
    }
    // The primary was stopped and the standby moved, and the run ended there.
    let mut world = bare.clone();
    world.host(&name(3)).adopt = Some(Adopt::Taken);
    let stopped = existing(&mut world);
    (stopped.pid, stopped.told, stopped.state, stopped.noted) = (None, None, "shut down".into(), Some(SystemId(77)));
    world.apply(&text, false, usize::MAX / 2);
    same(&world, &[1, 2, 3], &text);
}

#[test]
fn what_keeps_a_standby_from_being_taken_over_is_told_before_its_primary_is_stopped() {
    let (_, text) = pair();
    let said = |change: &dyn Fn(&mut World), text: &str| {
        let (mut world, _) = pair();
        change(&mut world);
        let found = world.decide(text, false).err().unwrap_or_default();
        found.iter().map(|each| format!("{}: {}\n", each.what, each.mend)).collect::<String>()
    };
    assert_eq!(said(&|_| {}, &text), "");
    type Change<'a> = (&'a str, &'a dyn Fn(&mut World));
    let told = |world: &mut World, change: &dyn Fn(&mut Told)| {
        change(standby(world).told.as_mut().unwrap().as_mut().unwrap());
    };
    let cases: [Change<'_>; 16] = [
        ("applies its log late", &|world| {
            let one = setting("recovery_min_apply_delay", "3600000");
            told(world, &|told| told.settings.push(one.clone()));
        }),
        ("other values than its primary: work_mem", &|world| {
            let one = Setting { automatic: true, ..setting("work_mem", "64MB") };
            told(world, &|told| told.settings.push(one.clone()));
        }),
        ("is not there: /srv/copy does not exist", &|world| standby(world).no_data = Some("does not exist".into())),
        ("no standby of the adopted server", &|world| standby(world).system = Some(SystemId(78))),
        ("takes writes of its own", &|world| told(world, &|told| told.in_recovery = false)),
        ("receives nothing from its primary", &|world| told(world, &|told| told.receives = false)),
        ("follows the standby of /srv/copy", &|world| told(world, &|told| told.standbys = vec![stream("10.0.0.8:1")])),
        ("replication slot mine", &|world| told(world, &|told| told.slots = vec!["mine".into()])),
        ("postgresql.auto.conf", &|world| told(world, &|told| told.stale = true)),
        ("does not run: it must follow", &|world| (standby(world).pid, standby(world).told) = (None, None)),
        ("can not be moved into", &|world| standby(world).elsewhere = Some("another file system".into())),
        ("pg_wal in /srv/copy leads to", &|world| standby(world).links = vec![("pg_wal".into(), "/wal".into())]),
        ("patroni runs there", &|world| standby(world).managers = vec!["patroni".into()]),
        ("mode 777", &|world| standby(world).mode = Some(0o777)),
        // Of the primary's.
        ("that the file does not name: walreceiver at 10.0.0.9: name", &|world| {
            asked(world).standbys.push(stream("10.0.0.9:4000"))
        }),
        ("replication slot other", &|world| asked(world).slots.push("other".into())),
    ];
    for (words, change) in cases {
        let said = said(change, &text);
        assert!(said.contains(words), "{words}: {said}");
    }
    // Once the primary is stopped nothing of the standby keeps clients waiting; it comes along if it can.
    let halfway = |change: &dyn Fn(&mut World)| {
        let (mut world, _) = pair();
        let stopped = existing(&mut world);
        (stopped.pid, stopped.told, stopped.state) = (None, None, "shut down".into());
        stopped.noted = Some(SystemId(77));
        told(&mut world, &|told| told.receives = false);
        change(&mut world);
        let work = world.decide(&text, false).unwrap();
        let adopts = work.steps().find_map(|each| match &each.step {
            Step::Adopt { standbys, stopped, .. } => Some((standbys.clone(), *stopped)),
            _ => None,
        });
        adopts.unwrap()
    };
    assert_eq!(halfway(&|_| {}), (vec![name(3)], true));
    let ended = |world: &mut World, state: &str| {
        (standby(world).pid, standby(world).told, standby(world).state) = (None, None, state.into());
    };
    assert_eq!(halfway(&|world| ended(world, "shut down in recovery")), (vec![name(3)], true));
    assert_eq!(halfway(&|world| ended(world, "in archive recovery")), (Vec::new(), true));
    // Without the line the standby is in the way, and is told how it comes along.
    let without = text.replace("adopt_standby = \"/srv/copy\"\n", "");
    let said = said(&|world| world.host(&name(3)).adopt = None, &without);
    assert!(said.contains("standbys stream from") && said.contains("adopt_standby = "), "{said}");
}

#[test]
fn a_standby_behind_another_one_hides_none_that_follows_the_primary() {
    let (bare, text) = pair();
    let asked_of_standby = |world: &mut World| standby(world).told.clone().unwrap().unwrap();
    let found = |change: &dyn Fn(&mut Told, &mut Told)| {
        let mut world = bare.clone();
        let (mut primary, mut second) = (asked(&mut world).clone(), asked_of_standby(&mut world));
        change(&mut primary, &mut second);
        (*asked(&mut world), standby(&mut world).told) = (primary, Some(Ok(second)));
        world.decide(&text, false).err().unwrap_or_default()
    };
    let said = |found: &[Obstacle]| found.iter().map(|each| format!("{}\n", each.what)).collect::<String>();
    assert_eq!(found(&|_, _| {}), []);
    // As many as are named stream from it; the named one follows through the one that is not.
    let behind = found(&|primary, second| {
        primary.standbys = vec![stream("10.0.0.9:4000")];
        second.source = Some("10.0.0.9 port 5432".into());
    });
    let words = said(&behind);
    assert!(words.contains("does not name: walreceiver at 10.0.0.9"), "{words}");
    assert!(
        words.contains("/srv/copy does not follow the adopted server itself: its log comes from 10.0.0.9 port 5432")
    );
    // Its slot is nobody's that comes along.
    assert!(words.contains("replication slot theirs"), "{words}");
    // The same host, another connection.
    let other = said(&found(&|primary, _| primary.standbys = vec![stream("10.0.0.3:4001")]));
    assert!(other.contains("does not follow the adopted server itself") && other.contains("walreceiver at 10.0.0.3"));
    // Over the server's own socket nobody of another host comes.
    let local = said(&found(&|primary, second| {
        (primary.standbys, second.end) = (vec![Stream { name: "receivewal".into(), at: None }], None)
    }));
    assert!(local.contains("receivewal at its socket") && local.contains("itself"), "{local}");
}

#[test]
fn what_stands_in_a_standbys_own_files_is_asked_about() {
    let (bare, text) = pair();
    let told = |own: &[Setting], primarys: &[Setting], text: &str| {
        let mut world = bare.clone();
        asked(&mut world).settings = primarys.to_vec();
        let Some(Ok(told)) = &mut standby(&mut world).told else { panic!("it does not answer") };
        told.settings = own.to_vec();
        let found = world.decide(text, false).err().unwrap_or_default();
        let of_it = found.iter().filter(|each| each.node == Some(name(3)));
        of_it.map(|each| format!("{}: {}\n", each.what, each.mend)).collect::<String>()
    };
    let delay = setting("max_standby_streaming_delay", "15min");
    let said = told(std::slice::from_ref(&delay), &[], &text);
    assert!(said.contains("does not mention: max_standby_streaming_delay = \"15min\""), "{said}");
    assert!(said.ends_with("as they are there:\nmax_standby_streaming_delay = \"15min\"\n"), "{said}");
    // Somebody has decided about it, or is asked with the primary.
    let decided = format!("{text}[postgres.parameters]\nmax_standby_streaming_delay = \"1min\"\n");
    assert_eq!(told(std::slice::from_ref(&delay), &[], &decided), "");
    assert_eq!(told(std::slice::from_ref(&delay), std::slice::from_ref(&delay), &text), "");
    let said = told(&[delay], &[setting("max_standby_streaming_delay", "30s")], &text);
    assert!(said.contains("(another value than its primary's)") && !said.contains("as they are there"), "{said}");
    // What a standby has as such.
    let own = |name: &str| Setting { owned: true, ..setting(name, "x") };
    assert_eq!(told(&[own("primary_conninfo"), setting("log_statement", "all")], &[], &text), "");
    // Who is let in there, and not by its primary.
    let mut world = bare.clone();
    let Some(Ok(told)) = &mut standby(&mut world).told else { panic!("it does not answer") };
    told.access = vec![("host all reports 10.0.0.0/8 ldap".into(), "ldap".into())];
    let found = world.decide(&text, false).unwrap_err();
    assert!(found[0].node == Some(name(3)) && found[0].mend.contains("hba = [\"host all reports"), "{found:?}");
    asked(&mut world).access = vec![("host all reports 10.0.0.0/8 ldap".into(), "ldap".into())];
    assert_eq!(world.decide(&text, false).unwrap_err().len(), 1);
}

#[test]
fn with_a_standby_no_commit_is_held_for_a_copy_and_no_room_is_asked_for() {
    let (mut world, text) = pair();
    let text = format!("{text}[failover]\nsync_replicas = 1\n");
    asked(&mut world).bytes = 1 << 40;
    (1..=3).for_each(|number| world.host(&name(number)).free = Some(1 << 30));
    let found = world.decide(&text, false).unwrap_err();
    assert!(found.len() == 1 && found[0].node == Some(name(1)) && found[0].what.contains("does not fit"), "{found:?}");
    let spec = spec(&text);
    let wanted = wanted(&spec, &text, Some(AUTHORITY), false);
    let lines = adopt::told(&wanted, &world.inventory(&spec)).join("\n");
    assert!(
        lines.contains("db3: the standby of /srv/copy becomes its copy") && !lines.contains("commits are on that node"),
        "{lines}"
    );
}
