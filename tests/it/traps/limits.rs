//! Sizes and budgets.

use super::*;

/// Lines of megabytes arrive whole and endless ones are a clear failure.
#[tokio::test(flavor = "multi_thread")]
async fn trap_21_long_line_passes_endless_line_fails() {
    let bench = Bench::with(|config| config.session.line_limit = 6_000_000).await;
    let alice = bench.pilot.session("alice");
    for bytes in [100_000, 5_000_000] {
        let outcome = ask(&alice, &format!("[[bytes:{bytes}]]")).await;
        assert!(outcome.is_ok());
        assert_eq!(outcome.text.len(), bytes);
    }
    let old = pid(&alice);
    for line in ["[[bytes:7000000]]", "[[fault:long-line=20000000]]"] {
        let outcome = ask(&alice, line).await;
        let Status::Aborted(error) = &outcome.status else { panic!("{outcome:?}") };
        assert_eq!((error.code(), error), ("line_too_long", &TurnError::LineTooLong { limit: 6_000_000 }));
    }
    say(&alice, "in step again").await;
    assert_eq!(pid(&alice), old, "only the turn is lost");
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_22_a_process_over_its_budget_is_replaced() {
    let budget = |config: &mut Config| config.cli.args = vec!["--max-budget-usd".into(), "0.5".into()];
    let bench = Bench::with(budget).await;
    let alice = bench.pilot.session("alice");
    say(&alice, "cheap").await;
    let old = pid(&alice);
    let outcome = ask(&alice, "[[usage:1000000,1000000]]").await;
    assert_eq!(failure(&outcome).kind, "max_budget_usd");
    for _ in 0..3 {
        say(&alice, "cheap again").await;
    }
    assert_ne!(pid(&alice), old);
    assert!(say(&alice, "[[recall]]").await.starts_with("cheap | "), "the conversation went on");
    assert_eq!(alice.status().unwrap().restarts, 0, "and nothing crashed");
    bench.end().await;
}
