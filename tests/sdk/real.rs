//! The SDKs with the real CLI, which talks to a Messages API of the tests on loopback: what it reports is what the SDK
//! receives, and what the SDK sends is what it is asked.

use crate::bench::Bench;
use crate::common::api::Api;
use crate::python::{Age, Script};

/// Few retries of the CLI's own, else its failures take minutes.
const ONE_RETRY: &str = "api_retries = 1\n";

async fn check(script: &'static str, age: Age) -> Option<Api> {
    let script = Script::with_package(script, age)?;
    let bench = Bench::new().await?;
    let server = bench.serve(ONE_RETRY).await;
    let client = server.client();
    script
        .run(&bench.place, &[("PILOTLIGHT_URL", client.http()), ("PILOTLIGHT_ADMIN_URL", client.admin())])
        .await;
    server.stop().await;
    Some(bench.api)
}

/// What the scripts have sent has come to the API.
fn judge(api: &Api) {
    let requests = api.requests();
    let with_image =
        requests.iter().find(|request| request.last().contains("a picture")).expect("the picture's turn");
    // Twice by the CLI; the SDK does not ask again.
    for status in [429, 500, 529] {
        assert_eq!(api.count(&format!("[[error:{status}]]")), 2, "requests that failed with {status}");
    }
    assert_eq!(with_image.images, 1, "{with_image:?}");
    let instructed = requests.iter().find(|request| request.last().contains("instructed")).expect("the turn");
    assert!(instructed.system.contains("speak like a lighthouse keeper"), "{}", instructed.system);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_current_anthropic_sdk() {
    check("anthropic_real", Age::Current).await.iter().for_each(judge);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_anthropic_sdk_of_a_year_ago() {
    check("anthropic_real", Age::YearOld).await.iter().for_each(judge);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_current_openai_sdk() {
    check("openai_real", Age::Current).await.iter().for_each(judge);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_openai_sdk_of_a_year_ago() {
    check("openai_real", Age::YearOld).await.iter().for_each(judge);
}
