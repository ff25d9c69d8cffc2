//! Many sessions at rest: neither the start nor a stranger's token reads what is not asked for.

use std::path::{Path, PathBuf};

use pilotlight::{Config, Pilotlight};
use rustix::fs::inotify;
use serde_json::json;

use crate::common::program::{Answer, Program, message, place};

/// Counts how often files of these directories are opened.
struct Opened(std::os::fd::OwnedFd);

impl Opened {
    fn watch(directories: &[PathBuf]) -> Self {
        let watch = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC).unwrap();
        for directory in directories {
            inotify::add_watch(&watch, directory, inotify::WatchFlags::OPEN).unwrap();
        }
        Self(watch)
    }

    fn count(&self) -> usize {
        let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(&self.0, &mut buffer);
        let mut count = 0;
        while events.next().is_ok() {
            count += 1;
        }
        count
    }
}

fn below(directory: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(directory)
        .unwrap()
        .flatten()
        .map(|entry| entry.path())
        .filter(|it| it.is_dir())
        .collect()
}

/// Sessions and tokens at rest are not read at the start, nor for an unknown token.
#[tokio::test(flavor = "multi_thread")]
async fn start_and_unknown_token_read_no_session_at_rest() {
    const SESSIONS: usize = 40;
    let place = place();
    let mut config = Config::new(place.data_dir());
    config.cli.program = "sim".to_owned();
    config.isolation.rungs = Vec::new();
    let body = |name: &str| {
        let mut body = message("hello");
        body["oauth_credentials"] = json!({ "access_token": format!("a-{name}"),
            "refresh_token": format!("r-{name}"), "expires_at": 4_102_444_800_000_i64 });
        body
    };
    let pilot = Pilotlight::start(config).await.unwrap();
    for number in 0..SESSIONS {
        pilot.session(format!("user-{number}")).workspace().await.unwrap();
    }
    pilot.shutdown(std::time::Duration::ZERO).await;
    let records = place.data_dir().join("records");
    let at_rest = below(&records).into_iter().filter(|it| it.join("directory").exists());
    let at_rest: Vec<_> = at_rest.collect();
    assert_eq!(at_rest.len(), SESSIONS);
    let (mut program, site) = Program::ready(&place, "").await;
    assert_eq!(Answer::of(site.post().json(&body("known"))).await.text(), "echo 1: hello");
    program.signal(rustix::process::Signal::TERM);
    assert_eq!(program.code().await, Some(0));

    let opened = Opened::watch(&at_rest);
    std::fs::read(at_rest[0].join("directory")).unwrap();
    assert!(opened.count() > 0, "the watch sees a read");
    let (_program, site) = Program::ready(&place, "").await;
    assert_eq!(Answer::of(site.post().json(&body("stranger"))).await.text(), "echo 1: hello");
    assert_eq!(Answer::of(site.post().json(&body("known"))).await.text(), "echo 2: hello");
    assert_eq!(opened.count(), 0, "sessions at rest were read");
}

/// Saving tokens waits for the disk, one user after the other; a crowd of them occupies no thread that others need.
#[tokio::test(flavor = "multi_thread")]
async fn crowd_of_strangers_holds_up_no_other() {
    const CROWD: usize = 400;
    let place = place();
    let config = "[http]\nnew_users_per_minute = 0\nmax_connections = 1000";
    let (program, site) = Program::ready(&place, config).await;
    assert_eq!(site.turn("alice", "hello").await.text(), "echo 1: hello");
    let threads = || below(Path::new(&format!("/proc/{}/task", program.process().pid))).len();
    let before = threads();
    let crowd: Vec<_> = (0..CROWD)
        .map(|number| {
            let mut body = message("hello");
            body["oauth_credentials"] = json!({ "access_token": format!("a-{number}"),
                "refresh_token": format!("r-{number}"), "expires_at": 4_102_444_800_000_i64 });
            let request = site.post().header("x-pilotlight-session", "%").json(&body);
            tokio::spawn(async move { Answer::of(request).await.status })
        })
        .collect();
    let mut most = 0;
    while crowd.iter().any(|request| !request.is_finished()) {
        most = most.max(threads());
        assert_eq!(site.get("/livez").await.status, 200);
    }
    for request in crowd {
        assert_eq!(request.await.unwrap(), 400);
    }
    assert!(most < before + CROWD / 2, "{before} threads, {most} with the crowd");
}
