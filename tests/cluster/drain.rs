//! A node that is stopped in order hands over what it has, without one failed request.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::asker::{Asker, End, now};
use crate::common::attached::Attached;
use crate::common::program::Answer;
use crate::common::{SOON, UNTIL_GO, eventually, eventually_some, installed, layout};
use crate::history;
use crate::nodes::{LONG_LEASE, Nodes, SIM};
use crate::observer::Observer;
use crate::talk::{Talk, spread};

const USERS: usize = 20;
const CONVERSATIONS: usize = 5;
/// Pause of a client between two turns.
const THINKS: Duration = Duration::from_millis(1200);
/// Handing over a third of 100 sessions takes this time at most, on a busy machine.
const DRAINS_WITHIN: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drain_of_100_sessions_fails_no_request() {
    let config = format!("drain_timeout = \"20s\"\n{SIM}{LONG_LEASE}");
    let Some(mut cluster) = Nodes::start(3, &config).await else { return };
    let names: Vec<_> = (0..USERS * CONVERSATIONS)
        .map(|number| (format!("drained-{}", number / CONVERSATIONS), format!("c{}", number % CONVERSATIONS)))
        .collect();
    let observer = Observer::start(
        &cluster,
        names.iter().map(|(user, conversation)| (user.as_str(), conversation.as_str())),
    );
    let sites = cluster.sites();
    let (end, ended) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (acknowledging, mut acknowledged) = mpsc::channel(names.len());
    let mut talks = JoinSet::new();
    for (number, (user, conversation)) in names.iter().enumerate() {
        let (mut talk, sites) = (Talk::new(user, conversation), sites.clone());
        let mut first = Some(acknowledging.clone());
        let (end, ended) = (Arc::clone(&end), Arc::clone(&ended));
        talks.spawn(async move {
            let mut at = number;
            while !end.load(Ordering::Acquire) || talk.acknowledged() < 2 {
                at += 1;
                let markers = ["", "[[sleep:300]]", "[[deltas:20]][[delay:15]]"][at % 3];
                let answer = talk.say(&sites[at % sites.len()], markers).await;
                let is_closed = matches!(answer, End::Unreached)
                    && ended.load(Ordering::Acquire)
                    && at % sites.len() == 0;
                assert!(answer.is_good() || is_closed, "a request failed: {answer:?}");
                if let Some(first) = first.take() {
                    first.send(()).await.expect("the test waits for it");
                }
                tokio::time::sleep(THINKS).await;
            }
            talk
        });
    }
    // All starts take as long as the machine needs; each turn has a bound of its own, and one that fails drops its sender.
    drop(acknowledging);
    let mut begun = 0;
    while acknowledged.recv().await.is_some() {
        begun += 1;
    }
    assert_eq!(begun, names.len(), "a first turn failed");
    // Every session is there, and every third of them on the node that is drained.
    let (first, marks) = (&cluster.nodes[0], cluster.marks());
    eventually("every session has a child", SOON, || {
        marks.iter().map(|mark| observer.alive(mark)).sum::<usize>() == names.len()
    })
    .await;
    let had = observer.alive(&marks[0]);
    assert!(had > 0, "the node has users");
    assert!(first.is_running());
    // A turn of another node that goes through this one, and takes longer than the rest.
    let mut passing = JoinSet::new();
    for number in 0..6 {
        let (asker, site) = (Asker::new(&format!("passing-{number}"), "default"), sites[0].clone());
        passing.spawn(async move { asker.ask(&site, "[[deltas:100]][[delay:50]]").await });
    }
    eventually_some("they run", SOON, async || {
        let mut busy = 0.0;
        for node in 1..3 {
            busy += cluster.client(node).metrics().await.sum("pilotlight_sessions", &["state=\"busy\""]);
        }
        (busy >= 1.0).then_some(())
    })
    .await;
    // A client sees that it closes.
    ended.store(true, Ordering::Release);
    let began = now();
    cluster.nodes[0].stop().await;
    let took = began.elapsed();
    end.store(true, Ordering::Release);
    while let Some(passed) = passing.join_next().await {
        let passed = passed.unwrap();
        assert!(passed.is_good(), "a turn through the node failed: {passed:?}");
    }
    let mut all = Vec::new();
    while let Some(talk) = talks.join_next().await {
        all.push(talk.unwrap());
    }
    let mut taken: Vec<_> = all.iter().flat_map(|talk| talk.took.iter().copied()).collect();
    installed::say(&format!("drain: {had} sessions in {took:?}; turns: {}", spread(&mut taken)));
    assert!(took < DRAINS_WITHIN, "{took:?}");
    for (number, talk) in all.iter_mut().enumerate() {
        let recalled = talk.recall(&sites[1 + number % 2]).await;
        assert!(recalled.is_good(), "{recalled:?}");
    }
    observer.check();
    assert!(history::check(&cluster).await >= names.len());
}

/// Two nodes, one of which has a user who has said `first-word`; and which one.
async fn begun(config: &str) -> Option<(Nodes, Asker, usize)> {
    let cluster = Nodes::start(2, config).await?;
    let asker = Asker::new("alice", "default");
    assert!(asker.ask(&cluster.sites()[0], "first-word").await.is_good());
    let owner = cluster.owner(0, "alice").await;
    Some((cluster, asker, owner))
}

/// A node that is drained by an operator gives its users away and takes others again on request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drained_node_takes_users_again() {
    let Some((cluster, asker, owner)) = begun(&format!("{SIM}{LONG_LEASE}")).await else { return };
    let sites = cluster.sites();
    cluster.post(owner, "drain").await;
    assert!(asker.ask(&sites[owner], "[[recall]]").await.text().contains("first-word"));
    assert_eq!(cluster.owner(owner, "alice").await, 1 - owner, "the other node has the user");
    cluster.post(owner, "resume").await;
    cluster.post(1 - owner, "drain").await;
    assert!(asker.ask(&sites[owner], "[[recall]]").await.text().contains("first-word"));
    assert_eq!(cluster.owner(1 - owner, "alice").await, owner, "the user is back");
    history::check(&cluster).await;
}

/// A node that has begun to stop takes no users again, whatever an operator asks for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_node_does_not_take_users_again() {
    let config = format!("drain_timeout = \"20s\"\n{SIM}[permissions]\npolicy = \"allow\"\n{LONG_LEASE}");
    let Some((mut cluster, asker, owner)) = begun(&config).await else { return };
    let sites = cluster.sites();
    let (here, there) = (sites[owner].clone(), sites[1 - owner].clone());
    let mut running = JoinSet::new();
    let turn = asker.clone();
    running.spawn(async move { turn.ask(&here, UNTIL_GO).await });
    let data = cluster.nodes[owner].place().data_dir();
    let work = layout::session_dir(&data, "alice", "default").join("work");
    eventually("the tool runs", SOON, || work.join("began").exists()).await;
    let other = cluster.client(1 - owner);
    let meanwhile = async {
        eventually_some("the node drains", SOON, async || {
            let (_, body) = other.get("/v1/cluster").await;
            body.contains("\"draining\":true").then_some(())
        })
        .await;
        let resume = reqwest::Client::new().post(format!("{}/v1/cluster/resume", sites[owner]));
        let answer = Answer::of(resume).await;
        assert_eq!((answer.status, answer.error().1.as_str()), (409, "node_stopping"));
        std::fs::write(work.join("go"), "").unwrap();
        assert!(running.join_next().await.unwrap().unwrap().is_good());
        assert!(asker.ask(&there, "[[recall]]").await.text().contains("first-word"));
    };
    tokio::join!(cluster.nodes[owner].stop(), meanwhile);
    history::check(&cluster).await;
}

/// A request that comes with the last connections of a node that stops is answered, however long its turn takes elsewhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn last_request_of_a_stopping_node_is_answered() {
    /// Longer than connections are given through which nothing passes.
    const TURN: &str = "[[sleep:6000]]late-word";
    /// Less than a server waits for the first request of a new connection.
    const PAUSE: Duration = Duration::from_millis(20);
    let config = format!("drain_timeout = \"20s\"\n{SIM}{LONG_LEASE}");
    let Some((mut cluster, _, owner)) = begun(&config).await else { return };
    let passes = 1 - owner;
    let address = cluster.sites()[passes].strip_prefix("http://").unwrap().to_owned();
    let mut last = [TcpStream::connect(&address).await.unwrap(), TcpStream::connect(&address).await.unwrap()];
    let asking = async {
        while let Ok(another) = TcpStream::connect(&address).await {
            // Of two: the newest may have come when nobody accepted any more.
            last.rotate_left(1);
            last[1] = another;
            tokio::time::sleep(PAUSE).await;
        }
        // Nothing listens any more.
        let body = json!({ "messages": [{ "role": "user", "content": TURN }] }).to_string();
        let head = format!(
            "POST /v1/messages/keepalive HTTP/1.1\r\nhost: {address}\r\nx-pilotlight-user: alice\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len(),
        );
        let [mut last, _] = last;
        last.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
        let mut answer = String::new();
        last.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let (answer, ()) = tokio::join!(asking, cluster.nodes[passes].stop());
    assert!(answer.contains("late-word") && answer.contains("[DONE]"), "{answer:?}");
    history::check(&cluster).await;
}

/// An attached client keeps its user on a node: one that is idle ends when the node stops.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_attached_client_holds_up_no_stop() {
    // Longer than a stop may take.
    let config = format!("drain_timeout = \"60s\"\n{SIM}[attach]\nconnections = 8\n{LONG_LEASE}");
    let Some((mut cluster, asker, owner)) = begun(&config).await else { return };
    let sites = cluster.sites();
    let mut client = Attached::start(cluster.nodes[owner].place(), "alice", &[], &[]);
    assert_eq!(client.turn("[[say:second-word]]").await["result"], "second-word");
    cluster.nodes[owner].stop().await;
    let recalled = asker.ask(&sites[1 - owner], "[[recall]]").await;
    assert!(
        recalled.text().contains("first-word") && recalled.text().contains("second-word"),
        "{recalled:?}"
    );
    let (code, errors) = client.end().await;
    assert!(code == 1 && errors.contains("the server is stopping"), "{code} {errors}");
    history::check(&cluster).await;
}
