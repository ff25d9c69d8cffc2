//! Who decides about tools.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn tools_are_denied_allowed_or_asked_about() {
    let tool = "[[tool:Bash {\"command\":\"touch made\"}]]";
    let made = |session: &Session| {
        let session = session.clone();
        async move { session.workspace().await.unwrap().work.join("made").exists() }
    };
    let bench = Bench::new().await;
    let alice = bench.pilot.session("alice");
    assert!(ask(&alice, tool).await.is_ok());
    assert!(!made(&alice).await);
    bench.end().await;

    let bench = Bench::with(|config| config.permissions.policy = PermissionPolicy::Allow).await;
    let alice = bench.pilot.session("alice");
    assert!(ask(&alice, tool).await.is_ok());
    assert!(made(&alice).await);
    bench.end().await;

    let bench = Bench::with(|config| config.permissions.policy = PermissionPolicy::Ask).await;
    let alice = bench.pilot.session("alice");
    let turn = alice.send(tool).await.unwrap();
    eventually("the question", || !alice.permissions().is_empty()).await;
    let request = alice.permissions().remove(0).request;
    assert_eq!(request.tool_name, "Bash");
    let allow = || Decision::Allow { updated_input: None };
    assert!(alice.answer_permission("nonsense", allow()).await.is_err());
    alice.answer_permission(&request.request_id, allow()).await.unwrap();
    assert!(turn.finish().await.is_ok());
    assert!(made(&alice).await);
    assert!(alice.permissions().is_empty());
    bench.end().await;
}
