//! Reload of the configuration of a running server: no child, turn or connection ends.

use std::sync::{Arc, Mutex, OnceLock};

use super::Server;
use super::api::router;
use super::auth::{AuthPolicy, Keyring};
use super::net::connection::CurrentRouter;
use super::serve_error::ServeError;
use crate::config::{Config, ConfigError, Reloaded};
use crate::support::lock::MutexExt;
use crate::telemetry::metrics::Reload;

/// What is built again for some keys.
pub(super) struct Reloading {
    pub(super) policy: AuthPolicy,
    pub(super) router: CurrentRouter,
    /// A reload is compared with the configuration of the one before.
    pub(super) one_at_a_time: tokio::sync::Mutex<()>,
}

/// What the operator should know of the last reload.
#[derive(Default)]
pub(super) struct LastReload {
    last: Mutex<Last>,
    /// Follows its own file.
    keys: OnceLock<Arc<Keyring>>,
}

#[derive(Debug, Default)]
struct Last {
    waiting: Vec<&'static str>,
    is_invalid: bool,
}

impl LastReload {
    pub(super) fn follow(&self, keys: Arc<Keyring>) {
        // Once, at the start.
        self.keys.set(keys).ok();
    }

    /// Names of keys only: any caller may read them.
    pub(super) fn warnings(&self) -> Vec<String> {
        let last = self.last.lock_unpoisoned();
        let mut warnings = Vec::new();
        if self.keys.get().is_some_and(|keys| keys.is_unusable()) {
            warnings.push(
                "the key file (auth.keys_file) cannot be used, and the former keys are in force, also those that were \
                 taken out of it; the log says why"
                    .to_owned(),
            );
        }
        if last.is_invalid {
            warnings.push(
                "the configuration that was to be reloaded is invalid, and the former one is in effect; the log \
                 says why"
                    .to_owned(),
            );
        }
        if !last.waiting.is_empty() {
            warnings.push(format!("changed keys wait for the next start: {}", last.waiting.join(", ")));
        }
        warnings
    }
}

impl Server {
    /// Takes over what a running server can of a changed configuration, without ending a child, a turn or a connection. The
    /// result, the log and `/readyz` name the other changed keys: they wait for the next start.
    ///
    /// # Errors
    /// The configuration is invalid, contradicts keys that wait, or a secret of a webhook is unusable: nothing has changed.
    pub async fn reload(&self, config: &Config) -> Result<Reloaded, ServeError> {
        let _others_wait = self.reloading.one_at_a_time.lock().await;
        let reloaded = self.take_over(config).await;
        match &reloaded {
            Ok(reloaded) => {
                let metrics = &self.app.exporter.metrics;
                metrics.reloads.increment(Reload::Applied);
                metrics.restart_keys.set(reloaded.waiting.len() as f64);
                *self.app.reloads.last.lock_unpoisoned() =
                    Last { waiting: reloaded.waiting.clone(), is_invalid: false };
                tracing::info!(keys = reloaded.applied.join(", "), "the configuration was reloaded");
                if !reloaded.waiting.is_empty() {
                    let keys = reloaded.waiting.join(", ");
                    tracing::warn!(keys, "changed keys wait for the next start");
                }
            }
            Err(error) => self.not_reloaded(error),
        }
        reloaded
    }

    /// Reports a configuration that cannot be read. The former one stays in effect.
    pub fn refuse_reload(&self, error: &ConfigError) {
        self.not_reloaded(error);
    }

    fn not_reloaded(&self, error: &dyn std::fmt::Display) {
        self.app.exporter.metrics.reloads.increment(Reload::Invalid);
        self.app.reloads.last.lock_unpoisoned().is_invalid = true;
        tracing::warn!(%error, "the configuration was not reloaded; the former one stays in effect");
    }

    async fn take_over(&self, config: &Config) -> Result<Reloaded, ServeError> {
        let pilot = self.pilot();
        let (merged, reloaded) = pilot.prepare_reload(config)?;
        // Reads files: before anything changes.
        let endpoints = self.webhooks.prepare(&merged).await?;
        let http = merged.http.clone();
        let has_other_origins = pilot.current().http.cors_origins != http.cors_origins;
        pilot.put_config(merged);
        self.webhooks.put(endpoints);
        self.app.rate_limits.reconfigure(http.requests_per_minute, http.new_users_per_minute);
        if has_other_origins {
            self.reloading.router.put(router::public(self.app.clone(), self.reloading.policy.clone()));
        }
        Ok(reloaded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_name_keys_and_an_invalid_file() {
        let last = LastReload::default();
        assert!(last.warnings().is_empty());
        *last.last.lock_unpoisoned() = Last { waiting: vec!["http.listen", "cli.env"], is_invalid: true };
        let warnings = last.warnings();
        assert!(warnings[0].contains("invalid"), "{warnings:?}");
        assert_eq!(warnings[1], "changed keys wait for the next start: http.listen, cli.env");
    }
}
