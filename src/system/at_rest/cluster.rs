//! A data directory of a single node from the users of a cluster.
//!
//! The file `format` is no number until all is there: a server refuses what an interrupted export left.

use std::fs;
use std::path::Path;

use super::super::hand_over::note_loss;
use super::{AtRestError, at, new_directory};
use crate::cluster::export::{Exported, Exporter};
use crate::config::Config;
use crate::support::atomic_file::{self, Durability};
use crate::support::blocking::blocking_long;
use crate::workspace::{FORMAT, format_file, lock};

/// Content of the file `format` meanwhile.
const UNFINISHED: &[u8] = b"export unfinished: remove this directory and export again\n";

/// What was exported of a cluster.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClusterCopy {
    /// Users with a conversation.
    pub users: usize,
    /// Their conversations.
    pub sessions: usize,
    /// Users of whom the latest turns are lost, or may be: their conversations report it.
    pub lossy: usize,
    /// Users without a conversation whose stored responses were left out, because nothing names the user.
    pub left_out: usize,
    /// Users whose data could not be read: they are missing. The log names why.
    pub failed: usize,
}

/// Writes all users of the cluster of `config` to `to`, a new or empty directory, as the data directory of a single node.
/// `is_running`: also while nodes run, whose later changes are then missing.
///
/// # Errors
/// [`AtRestError`]; what is there is then refused by a server.
pub async fn export_cluster(
    config: &Config,
    to: &Path,
    is_running: bool,
) -> Result<ClusterCopy, AtRestError> {
    if !config.cluster.is_on() {
        return Err(AtRestError::NoCluster);
    }
    let own = config.data_dir.canonicalize().unwrap_or_else(|_| config.data_dir.clone());
    new_directory(to, &own)?;
    let data_dir = to.canonicalize().map_err(at(to))?;
    let _lock = lock(&data_dir)?;
    let exporter = Exporter::open(config, &data_dir).await?;
    let failed = |error: crate::cluster::export::ExportError| AtRestError::Cluster(error.into());
    let nodes = exporter.live_nodes().await.map_err(|error| failed(error.into()))?;
    if !nodes.is_empty() && !is_running {
        return Err(AtRestError::ClusterRuns(nodes));
    }
    atomic_file::replace(&format_file(&data_dir), UNFINISHED, Durability::Disk).map_err(at(to))?;
    let (mut copy, mut lossy) = (ClusterCopy::default(), Vec::new());
    let each = |exported: Exported| {
        let Exported { user, sessions, is_whole, may_lack } = exported;
        copy.users += usize::from(user.is_some());
        copy.sessions += sessions;
        copy.left_out += usize::from(!is_whole);
        lossy.extend(user.filter(|_| may_lack));
    };
    copy.failed = exporter.run(each).await.map_err(failed)?;
    copy.lossy = lossy.len();
    let finished = blocking_long(move || {
        for user in &lossy {
            note_loss(&data_dir, user)?;
        }
        rustix::fs::syncfs(fs::File::open(&data_dir)?)?;
        atomic_file::replace(&format_file(&data_dir), format!("{FORMAT}\n").as_bytes(), Durability::Disk)
    });
    finished.await.map_err(at(to))?;
    Ok(copy)
}
