//! The end of the system, and its next beginning.

use super::*;

/// A restart of the service resumes every conversation.
#[tokio::test(flavor = "multi_thread")]
async fn service_restart_resumes_conversations() {
    let bench = Bench::new().await;
    say(&bench.pilot.session("alice"), "survive").await;
    bench.pilot.shutdown(Duration::from_secs(5)).await;
    let again = start(bench.data.path(), |_| {}).await;
    let alice = again.session("alice");
    assert_eq!(say(&alice, "[[recall]]").await, "survive");
    eventually("both are counted", || alice.status().unwrap().turns == 2).await;
    again.shutdown(Duration::from_secs(5)).await;
    assert_eq!(processes_in(bench.data.path()), Vec::<u32>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_shutdown_turns_are_refused() {
    let bench = Bench::new().await;
    let alice = bench.pilot.session("alice");
    let turn = alice.send("[[sleep:300]] finish me").await.unwrap();
    let pilot = bench.pilot.clone();
    let stopping = tokio::spawn(async move { pilot.shutdown(Duration::from_secs(5)).await });
    eventually("draining", || !bench.pilot.readiness().ready).await;
    assert_eq!(alice.send("too late").await.unwrap_err(), TurnError::Draining);
    assert!(turn.finish().await.is_ok(), "a running turn may finish");
    stopping.await.unwrap();
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_the_handles_stops_everything() {
    let data = tempfile::tempdir().unwrap();
    let pilot = start(data.path(), |_| {}).await;
    say(&pilot.session("alice"), "hello").await;
    drop(pilot);
    eventually("all stopped", || processes_in(data.path()).is_empty()).await;
    // The directory is free again.
    let mut config = Config::new(data.path());
    config.cli.program = "sim".to_owned();
    let began = SystemTime::now();
    loop {
        match Pilotlight::start(config.clone()).await {
            Ok(pilot) => break pilot.shutdown(Duration::from_secs(5)).await,
            Err(error) => assert!(began.elapsed().unwrap() < Duration::from_secs(10), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_that_is_given_up_can_be_taken_up_again() {
    let bench = Bench::new().await;
    say(&bench.pilot.session("alice"), "hello").await;
    for patience in [0, 1, 5, 20] {
        let patience = Duration::from_millis(patience);
        tokio::time::timeout(patience, bench.pilot.shutdown(Duration::ZERO)).await.ok();
    }
    bench.end().await;
}
