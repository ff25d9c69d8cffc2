//! Whether a rung fails because of a mount of the configuration.

use pilotlight_shim::isolation::Network;

use super::{Prober, judge};
use crate::config::{ConfigError, IsolationMount};
use crate::isolation::proven::Proven;

impl Prober<'_> {
    /// Tells a mistake in the configuration from a rung that the host lacks: rungs that work without the configured mounts
    /// fail because of them, and to go on without the rungs would be a weaker wall than what was written.
    pub(super) async fn blame_mounts(
        &self,
        rungs: &Proven,
        network: &Network,
        as_user: bool,
    ) -> Result<(), ConfigError> {
        let configured = &self.config.isolation.mounts;
        let with = async |mounts: &[&IsolationMount]| {
            let host = self.host.with_mounts_of(configured, mounts);
            let isolation = self.isolation_on(&host, rungs, network.clone());
            self.report(isolation, as_user, &self.attempts(&judge::BASE)).await
        };
        if configured.is_empty() || with(&[]).await.is_err() {
            return Ok(());
        }
        for (number, mount) in configured.iter().enumerate() {
            if let Err(reason) = with(&[mount]).await {
                let key = format!("isolation.mounts[{number}].path");
                let problem = format!("`{}` cannot be shown to children: {reason}", mount.path.display());
                return Err(ConfigError::Key { key, problem });
            }
        }
        match with(&configured.iter().collect::<Vec<_>>()).await {
            // What failed before works now: the rung has its state, and its reason.
            Ok(_) => Ok(()),
            Err(reason) => {
                let problem = format!("cannot be shown to children together: {reason}");
                Err(ConfigError::Key { key: "isolation.mounts".to_owned(), problem })
            }
        }
    }
}
