//! A child that lives and does nothing: it is asked, found, killed and replaced. The limits are a tenth of the
//! defaults, with which the same takes 25 seconds at most.

use super::*;

const QUICK: &str =
    "session = { stall_timeout = \"1s\", ping_timeout = \"500ms\" }\nrestart = { intensity = 50 }";
/// A tenth of the promise, and a little for a busy machine.
const FOUND_WITHIN: Duration = Duration::from_millis(2500 + 1000);

/// A stopped child is found killed and replaced.
#[tokio::test(flavor = "multi_thread")]
async fn fault_11_stopped_child_is_killed_and_replaced() {
    let attack = Attack::with(QUICK).await;
    attack.say("before").await;
    attack.written_down("echo 1: before").await;
    // Stopped while idle: the next turn finds out, and as nothing of it had come out, it is served by the next child.
    let (old, began) = (attack.child().await, Instant::now());
    old.signal(Signal::STOP);
    assert_eq!(attack.say("are you there?").await, "echo 2: are you there?");
    assert!(began.elapsed() < FOUND_WITHIN, "{:?}", began.elapsed());
    assert!(!old.is_alive());
    // Stopped at work, after its first words.
    let began = Instant::now();
    let reply = attack.turn("[[fault:stop-self]]").await;
    assert_eq!(reply.code(), "session_lost");
    assert!(began.elapsed() < 2 * FOUND_WITHIN, "tried once more and found twice: {:?}", began.elapsed());
    assert!(attack.site.metric("hangs_total", &["detector=\"stopped\""]).await >= 2.0);
    assert!(attack.say("[[recall]]").await.starts_with("before"));
    attack.over().await;
}

/// A busy loop without output is found as well.
#[tokio::test(flavor = "multi_thread")]
async fn fault_12_busy_loop_without_output_is_detected() {
    let attack = Attack::with(QUICK).await;
    attack.say("before").await;
    attack.written_down("echo 1: before").await;
    for fault in ["spin", "hang"] {
        let began = Instant::now();
        let reply = attack.turn(&format!("[[fault:{fault}]]")).await;
        assert_eq!(reply.code(), "session_lost", "{fault}");
        assert!(reply.message().contains("no longer answered"), "{}", reply.message());
        // Twice, for it is tried once more. A child that computes is given one question more, and more time while it
        // has to share the processor.
        assert!(began.elapsed() < 5 * FOUND_WITHIN, "{fault}: {:?}", began.elapsed());
    }
    assert!(attack.site.metric("hangs_total", &["detector=\"no_progress\""]).await >= 1.0);
    assert!(attack.say("[[recall]]").await.starts_with("before"));
    attack.over().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_19_a_child_that_reads_nothing_is_given_up() {
    // All other limits are far away.
    let attack = Attack::with("session = { write_timeout = \"1s\", stall_timeout = \"60s\" }").await;
    attack.say("before").await;
    attack.written_down("echo 1: before").await;
    attack.say("[[fault:no-read]]").await;
    // More than a socket holds: the rest cannot be written. The turn is then given to the next child.
    let began = Instant::now();
    let answer = attack.say(&"x".repeat(2 << 20)).await;
    assert!(answer.starts_with("echo 3: xxx"), "{answer:.50}");
    let took = began.elapsed();
    // Not by the default, which is 10 s; the rest is the next child's start, which takes what the machine gives it.
    assert!(took >= Duration::from_secs(1) && took < Duration::from_secs(10), "{took:?}");
    assert_eq!(attack.site.metric("hangs_total", &["detector=\"stdin_stall\""]).await, 1.0);
    assert_eq!(attack.site.metric("hangs_total", &[]).await, 1.0);
    attack.over().await;
}

/// A dead API ends the turn in time and keeps the session.
#[tokio::test(flavor = "multi_thread")]
async fn fault_37_dead_api_ends_turn_keeps_session() {
    let attack = Attack::with("session = { turn_timeout = \"1500ms\", stall_timeout = \"300ms\" }").await;
    attack.say("before").await;
    let old = attack.child().await;
    // Silent, or trying again and again: the child lives and says so.
    for text in ["[[sleep:600000]]", "[[api_retry:10,200]][[sleep:600000]]"] {
        let began = Instant::now();
        let reply = attack.turn(text).await;
        assert_eq!(reply.code(), "timeout", "{reply:?}");
        let took = began.elapsed();
        assert!(took >= Duration::from_millis(1500) && took < Duration::from_secs(4), "{took:?}");
    }
    assert_eq!(attack.site.metric("hangs_total", &[]).await, 0.0);
    assert!(attack.say("[[recall]]").await.starts_with("before"));
    assert_eq!(attack.child().await, old);
    attack.over().await;
}
