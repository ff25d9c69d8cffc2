//! What users without sessions have left: sums of what they spent, and digests of their histories. And stored responses,
//! also of users with sessions.
//!
//! With `retention.idle_days` a file that was not written for as long is removed, once its user has no session. The sums
//! of today and yesterday stay in any case: they are what limits per day count. A stored response is removed after its
//! own time, or after the idle days if they are fewer.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::{looked, next_part, open, pause};
use crate::session::sessions::Sessions;
use crate::support::blocking::blocking;
use crate::workspace::{
    RESPONSES_KEPT_FOR, conversations_dir, remove_any, responses_dir, usage_dir, user_of_digest,
};

/// Age from which a file has no sum of a day that still counts.
const TWO_DAYS: Duration = Duration::from_secs(2 * 24 * 3600);

pub(super) async fn expire(sessions: &Arc<Sessions>) -> io::Result<()> {
    let (idle, data_dir) = (sessions.env.config.retention.idle(), &sessions.env.config.data_dir);
    let kept_for = idle.map_or(RESPONSES_KEPT_FOR, |idle| idle.min(RESPONSES_KEPT_FOR));
    expire_responses(responses_dir(data_dir), kept_for).await?;
    let Some(idle) = idle else { return Ok(()) };
    for directory in [usage_dir(data_dir), conversations_dir(data_dir)] {
        expire_in(data_dir, directory, idle.max(TWO_DAYS)).await?;
    }
    Ok(())
}

async fn expire_in(data_dir: &Path, directory: PathBuf, age: Duration) -> io::Result<()> {
    let mut files = open(directory.clone()).await?;
    while let (begun, Some(names)) = (Instant::now(), next_part(&mut files).await?) {
        let (count, data_dir, directory) = (names.len(), data_dir.to_owned(), directory.clone());
        blocking(move || names.iter().try_for_each(|name| expire_one(&data_dir, &directory, name, age)))
            .await?;
        pause(begun, looked(count)).await;
    }
    Ok(())
}

/// Removes responses that were stored as long ago, and directories that have none.
async fn expire_responses(directory: PathBuf, age: Duration) -> io::Result<()> {
    let mut users = open(directory.clone()).await?;
    while let (begun, Some(names)) = (Instant::now(), next_part(&mut users).await?) {
        pause(begun, Duration::ZERO).await;
        for name in names {
            let user = directory.join(name);
            let mut files = open(user.clone()).await?;
            while let (begun, Some(names)) = (Instant::now(), next_part(&mut files).await?) {
                let (count, user) = (names.len(), user.clone());
                blocking(move || names.iter().try_for_each(|name| expire_file(&user.join(name), age)))
                    .await?;
                pause(begun, looked(count)).await;
            }
            // Refused unless it is empty; a response that is stored now creates it again.
            blocking(move || Ok(std::fs::remove_dir(user).ok())).await?;
        }
    }
    Ok(())
}

fn expire_file(file: &Path, age: Duration) -> io::Result<()> {
    let Ok(written) = file.symlink_metadata().and_then(|metadata| metadata.modified()) else { return Ok(()) };
    let is_old = SystemTime::now().duration_since(written).unwrap_or_default() >= age;
    if is_old { remove_any(file) } else { Ok(()) }
}

fn expire_one(data_dir: &Path, directory: &Path, name: &OsStr, age: Duration) -> io::Result<()> {
    let Some(list) = name.to_str().and_then(|digest| user_of_digest(data_dir, digest)) else { return Ok(()) };
    let file = directory.join(name);
    // A file that is gone was removed with its user.
    let Ok(written) = file.symlink_metadata().and_then(|metadata| metadata.modified()) else { return Ok(()) };
    // A clock that was set back makes no file old.
    let is_old = SystemTime::now().duration_since(written).unwrap_or_default() >= age;
    if is_old && list.symlink_metadata().is_err() { remove_any(&file) } else { Ok(()) }
}
