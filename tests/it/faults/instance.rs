//! The end of the server itself, wanted or not, and a second one beside it.

use super::*;
use crate::common::bench;

/// Turns at the instant of eviction are all served.
#[tokio::test(flavor = "multi_thread")]
async fn fault_42_turns_racing_eviction_are_served() {
    const USERS: usize = 3;
    const TURNS: u64 = 70;
    // The 10 000 interleavings of the state machine are in `session::state`; these are the real ones. A session
    // that is idle for the whole timeout is evicted, just now.
    let attack = Attack::with("session = { idle_timeout = \"20ms\" }").await;
    let users: Vec<_> = (0..USERS)
        .map(|user| {
            let site = attack.site.clone();
            for _ in 0..TURNS {
                attack.note_turn();
            }
            tokio::spawn(async move {
                for round in 1..=TURNS {
                    let reply = Reply::of(&site.turn(&format!("user {user}"), "x").await);
                    assert_eq!(reply.text(), format!("echo {round}: x"), "user {user}");
                    tokio::time::sleep(Duration::from_millis(10 + round % 15)).await;
                }
            })
        })
        .collect();
    for user in users {
        user.await.unwrap();
    }
    let evicted = attack.site.metric("evictions_total", &["reason=\"idle\""]).await;
    assert!(evicted >= 50.0, "hardly anything was tried: {evicted} evictions");
    assert_eq!(attack.site.metric("contexts_lost_total", &[]).await, 0.0);
    attack.over().await;
}

/// SIGKILL of a server with fifty busy sessions leaves nothing.
#[tokio::test(flavor = "multi_thread")]
async fn fault_43_killed_server_leaves_no_process() {
    const SESSIONS: usize = 50;
    let place = place();
    let (mut program, site) = Program::ready(&place, "limits = { queue_deadline = \"60s\" }").await;
    site.turn("user 0", "remember me").await.text();
    // Every fifth with tools that have left its group.
    let turns = (0..SESSIONS).map(|number| {
        let tools = if number % 5 == 0 { "[[fault:outlive]]" } else { "" };
        let body = message(&format!("{tools}[[sleep:600000]]"));
        let request = site.asking(&format!("user {number}"), &body);
        tokio::spawn(async move { request.send().await })
    });
    let turns: Vec<_> = turns.collect();
    let mut answers = Vec::new();
    for turn in turns {
        answers.push(turn.await.unwrap().unwrap());
    }
    assert!(answers.iter().all(|answer| answer.status() == 200));
    let all_there = async || {
        let busy = site.metric("sessions", &["state=\"busy\""]).await as usize;
        let family = crate::common::process::descendants(program.process().pid);
        (busy == SESSIONS && family.len() >= 2 * SESSIONS + 3 * SESSIONS / 5).then_some(family)
    };
    let family = eventually_some("all are at work", Duration::from_secs(60), all_there).await;
    let began = Instant::now();
    program.process().kill();
    let gone =
        crate::common::place::wait_until(Duration::from_secs(1), || family.iter().all(|it| !it.is_alive()));
    let left: Vec<_> = family.iter().filter(|it| it.is_alive()).map(|it| it.describe()).collect();
    assert!(gone, "left after {:?}: {left:#?}", began.elapsed());
    assert_eq!(program.code().await, None);

    let (_program, site) = Program::ready(&place, "").await;
    assert_eq!(site.metric("swept_at_start_total", &[]).await, 0.0, "there was nothing to sweep");
    assert!(site.turn("user 0", "[[recall]]").await.text().starts_with("remember me"));
    assert!(!site.turn("user 49", "next").await.text().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_45_sigterm_under_load_drains_and_ends_well() {
    let place = place();
    let config = "drain_timeout = \"4s\"\npermissions = { policy = \"allow\" }";
    let (mut program, site) = Program::ready(&place, config).await;
    for user in 0..6 {
        site.turn(&format!("user {user}"), "hello").await.text();
    }
    // Five of them end in time, once the file `go` is there; the last one never would.
    let gated = format!("{}[[bytes:80]]", crate::common::UNTIL_GO);
    let turns: Vec<_> = (0..6)
        .map(|user| {
            let text = if user == 5 { "[[deltas:100000]][[delay:20]]" } else { &gated };
            let request = site.asking(&format!("user {user}"), &message(text));
            tokio::spawn(async move { Reply::of(&Answer::of(request).await) })
        })
        .collect();
    let busy = async || (site.metric("sessions", &["state=\"busy\""]).await == 6.0).then_some(());
    eventually_some("all are at work", SOON, busy).await;
    let began = Instant::now();
    program.signal(Signal::TERM);
    let not_ready = async || Some(site.get("/readyz").await).filter(|answer| answer.status == 503);
    eventually_some("/readyz says 503", Duration::from_secs(1), not_ready).await;
    for user in 0..5 {
        let user = format!("user {user}");
        let directory = crate::common::layout::session_dir(&place.data_dir(), &user, "default");
        std::fs::write(directory.join("work/go"), "").unwrap();
    }
    assert_eq!(site.turn("new", "too late").await.error().1, "draining");
    for (user, turn) in turns.into_iter().enumerate() {
        let reply = turn.await.unwrap();
        match user {
            5 => assert_ne!(reply.code(), "ok"),
            _ => assert_eq!(reply.text().len(), 80, "whole: {reply:?}"),
        }
    }
    assert_eq!(program.code().await, Some(0));
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(4) && took < Duration::from_secs(10), "{took:?}");
    assert!(place.leftovers().is_empty());
}

#[test]
fn fault_46_dropping_the_runtime_leaves_no_process() {
    let data = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let pilot = bench::start(data.path(), |_| {}).await;
        for idle in ["a", "b", "c"] {
            bench::say(&pilot.session(idle), "[[fault:outlive]]").await;
        }
        let busy = pilot.session("busy").send("[[sleep:60000]]").await.unwrap();
        let starting = pilot.session("starting").send("never said").await.unwrap();
        std::mem::forget((busy, starting, pilot));
    });
    assert!(bench::processes_in(data.path()).len() >= 3 * 4);
    runtime.shutdown_background();
    let gone = crate::common::place::wait_until(Duration::from_secs(5), || {
        bench::processes_in(data.path()).is_empty()
    });
    assert!(gone, "left: {:?}", bench::processes_in(data.path()));
}

/// A second instance on the same directory is refused.
#[tokio::test(flavor = "multi_thread")]
async fn fault_47_second_instance_on_data_dir_is_refused() {
    let attack = Attack::begin().await;
    attack.say("hello").await;
    let data = attack.place.data_dir().display().to_string();
    let free = "127.0.0.1:0";
    let arguments = ["serve", "--cli", "sim", "--listen", free, "--admin-listen", free, "--data-dir", &data];
    let mut second = Program::start(&attack.place, &arguments, &[]);
    assert_eq!(second.code().await, Some(1), "{}", second.err());
    eventually("it is said", SOON, || second.err().contains("in use by another instance")).await;
    // Also an embedded one.
    let error = pilotlight::Pilotlight::start(pilotlight::Config::new(&data)).await.unwrap_err();
    assert!(error.to_string().contains("in use by another instance"), "{error}");
    assert!(attack.say("unharmed").await.ends_with("unharmed"));
    attack.over().await;
}
