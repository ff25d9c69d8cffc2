//! What comes out of a child: nothing more, too much of it, or too much at once.

use super::attack::{processor_time, status_bytes};
use super::*;

/// A child that closes its output is gone in five seconds.
#[tokio::test(flavor = "multi_thread")]
async fn fault_14_child_closing_output_is_gone_in_5_s() {
    let attack = Attack::with("restart = { retry_turn = false }").await;
    attack.say("before").await;
    attack.written_down("echo 1: before").await;
    let (old, began) = (attack.child().await, Instant::now());
    let used = processor_time(attack.program.process());
    let reply = attack.turn("[[fault:close-stdout]][[deltas:10000]][[delay:50]]").await;
    assert_eq!(reply.code(), "session_lost");
    assert!(!old.is_alive() && began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    // It takes a second to be sure, which is slept through.
    let used = processor_time(attack.program.process()) - used;
    assert!(used < Duration::from_millis(350), "{used:?}");
    assert!(attack.say("[[recall]]").await.starts_with("before"));
    attack.over().await;
}

/// A flood on standard error costs no memory and delays no answer.
#[tokio::test(flavor = "multi_thread")]
async fn fault_16_stderr_flood_costs_no_memory_or_delay() {
    let attack = Attack::begin().await;
    attack.say("hello").await;
    let old = attack.child().await;
    let peak = status_bytes(attack.program.process(), "VmHWM:");
    assert_eq!(attack.say("[[fault:stderr-flood=300000000]]through").await, "echo 2: through");
    let grown = status_bytes(attack.program.process(), "VmHWM:") - peak;
    assert!(grown < 8 << 20, "{grown} bytes");
    assert!(attack.site.metric("stream_bytes_total", &["stream=\"stderr\""]).await >= 3e8);
    attack.say("still the same").await;
    assert_eq!(attack.child().await, old);
    attack.over().await;
}

/// A line of 100 megabytes is refused within the limit.
#[tokio::test(flavor = "multi_thread")]
async fn fault_17_line_of_100_mb_is_refused_in_limit() {
    let attack = Attack::begin().await;
    attack.say("hello").await;
    let old = attack.child().await;
    let peak = status_bytes(attack.program.process(), "VmHWM:");
    let reply = attack.turn("[[fault:long-line=100000000]]").await;
    assert_eq!(reply.code(), "line_too_long");
    let grown = status_bytes(attack.program.process(), "VmHWM:").saturating_sub(peak);
    // The limit of 32 MiB, and what a buffer that grows has beside it for a moment.
    assert!(grown < 72 << 20, "{grown} bytes");
    assert_eq!(attack.site.metric("protocol_errors_total", &["kind=\"line_too_long\""]).await, 1.0);
    attack.say("in step again").await;
    assert_eq!(attack.child().await, old);
    attack.over().await;
}
