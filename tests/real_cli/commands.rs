//! The subcommands that end by themselves.

use super::bench::Bench;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_tells_the_version_without_a_token_spent() {
    let Some(bench) = Bench::new().await else { return };
    let (status, written) = bench.run("check").await;
    assert!(status.success(), "{status}: {written}");
    assert!(written.contains(&super::version()), "{written}");
    assert!(bench.api.requests().is_empty(), "the API was asked: {:#?}", bench.api.requests());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_demo_keeps_its_claims() {
    let Some(bench) = Bench::for_long().await else { return };
    let (status, written) = bench.run("demo").await;
    assert!(status.success(), "{status}: {written}");
    let requests = bench.api.requests();
    let marked = requests.iter().flat_map(|request| &request.user_texts).find(|text| text.contains("[["));
    assert_eq!(marked, None, "a marker went to the API");
    assert!(!requests.is_empty(), "it did not use the configured CLI: {written}");
}
