//! Edges that were wrong once.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn credentials_that_come_at_once_are_written_whole_and_the_newest_stays() {
    let bench = Bench::new().await;
    let alice = bench.pilot.session("alice");
    let writers: Vec<_> = (1..=40)
        .map(|number| {
            let alice = alice.clone();
            let credentials = OauthCredentials {
                access_token: format!("access-{number}"),
                refresh_token: "refresh".into(),
                expires_at: number,
                scopes: Vec::new(),
                subscription_type: "max".into(),
            };
            tokio::spawn(async move { alice.write_credentials(&credentials).await })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap().unwrap();
    }
    let home = alice.workspace().await.unwrap().home.join(".claude");
    let written = std::fs::read_to_string(home.join(".credentials.json")).unwrap();
    assert!(written.contains("access-40"), "{written}");
    assert_eq!(std::fs::read_dir(home).unwrap().count(), 1, "temporary files are left");
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_that_is_given_up_locks_nobody_out() {
    let bench = Bench::new().await;
    let alice = bench.pilot.session("alice");
    say(&alice, "hello").await;
    tokio::time::timeout(Duration::from_millis(1), alice.purge()).await.ok();
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if let Ok(turn) = alice.send("again").await
            && turn.finish().await.is_ok()
        {
            break;
        }
        assert!(Instant::now() < deadline, "locked out");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    bench.end().await;
}
