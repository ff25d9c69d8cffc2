//! Where the store is, and what opens it. Region, endpoint and credentials of a bucket are the environment's.

use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ClientOptions, ObjectStore, RetryConfig};
use url::Url;

use super::connector::{Connector, may_go_to};
use super::error::OpenError;
use super::local::Local;

/// How a store is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoreConfig {
    /// `file:///directory`, `s3://bucket/prefix`.
    pub(crate) url: String,
    /// Variables `AWS_…` beside those of the process.
    #[cfg(test)]
    pub(crate) variables: Vec<(AmazonS3ConfigKey, String)>,
    /// Time of one try of a request.
    pub(crate) try_for: Duration,
    /// Time of a request with all tries.
    pub(crate) give_up_after: Duration,
}

impl StoreConfig {
    pub(crate) fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            #[cfg(test)]
            variables: Vec::new(),
            try_for: Duration::from_secs(10),
            give_up_after: Duration::from_secs(30),
        }
    }
}

/// A store that was opened.
pub(super) struct Opened {
    pub(super) objects: Arc<dyn ObjectStore>,
    pub(super) prefix: Path,
    pub(super) local: Option<Local>,
}

impl StoreConfig {
    pub(super) fn open(&self) -> Result<Opened, OpenError> {
        let wrong = |problem: &str| OpenError::Config(problem.to_owned());
        // The parser's message may show the address, and a password in it.
        let url =
            Url::parse(&self.url).map_err(|_| wrong("the store is no URL such as s3://bucket/prefix"))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(wrong("credentials do not belong into the URL of the store"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(wrong("the URL of the store has parts behind its path"));
        }
        match url.scheme() {
            "file" => self.directory(&url),
            "s3" => self.bucket(&url),
            #[cfg(feature = "cluster-gcp")]
            "gs" => google(&url),
            #[cfg(feature = "cluster-azure")]
            "az" => azure(&url),
            _ => Err(wrong("this program knows no store of this kind")),
        }
    }

    fn directory(&self, url: &Url) -> Result<Opened, OpenError> {
        let path = url.to_file_path().ok().filter(|_| url.host().is_none());
        let path = path.ok_or_else(|| OpenError::Config("the directory is no absolute path".to_owned()))?;
        let local = Local::open(&path)?;
        let objects = LocalFileSystem::new_with_prefix(local.root())
            .map_err(|_| OpenError::Directory { path, problem: "it cannot be used as a store".to_owned() })?;
        // What is confirmed survives a crash of the machine.
        let objects = objects.with_fsync(true).with_automatic_cleanup(true);
        Ok(Opened { objects: Arc::new(objects), prefix: Path::default(), local: Some(local) })
    }

    fn bucket(&self, url: &Url) -> Result<Opened, OpenError> {
        let builder = AmazonS3Builder::from_env();
        #[cfg(test)]
        let builder =
            (self.variables.iter()).fold(builder, |builder, (key, value)| builder.with_config(*key, value));
        for key in [AmazonS3ConfigKey::Endpoint, AmazonS3ConfigKey::S3Endpoint] {
            let endpoint = builder.get_config_value(&key);
            if endpoint.is_some_and(|endpoint| !endpoint.parse().is_ok_and(|address| may_go_to(&address))) {
                let problem = "the endpoint of the store is no https address, and not on this machine";
                return Err(OpenError::Config(problem.to_owned()));
            }
        }
        let builder = builder
            .with_bucket_name(host(url)?)
            .with_http_connector(Connector::new()?)
            // The connector decides.
            .with_client_options(ClientOptions::new().with_allow_http(true))
            .with_retry(NO_RETRY);
        opened(builder.build().map(|store| Arc::new(store) as Arc<dyn ObjectStore>), url)
    }
}

#[cfg(feature = "cluster-gcp")]
fn google(url: &Url) -> Result<Opened, OpenError> {
    let builder = object_store::gcp::GoogleCloudStorageBuilder::from_env()
        .with_bucket_name(host(url)?)
        .with_http_connector(Connector::new()?)
        .with_retry(NO_RETRY);
    opened(builder.build().map(|store| Arc::new(store) as Arc<dyn ObjectStore>), url)
}

#[cfg(feature = "cluster-azure")]
fn azure(url: &Url) -> Result<Opened, OpenError> {
    let builder = object_store::azure::MicrosoftAzureBuilder::from_env()
        .with_container_name(host(url)?)
        .with_http_connector(Connector::new()?)
        .with_retry(NO_RETRY);
    opened(builder.build().map(|store| Arc::new(store) as Arc<dyn ObjectStore>), url)
}

/// Requests are repeated by the caller.
const NO_RETRY: RetryConfig = RetryConfig {
    backoff: object_store::BackoffConfig {
        init_backoff: Duration::ZERO,
        max_backoff: Duration::ZERO,
        base: 1.0,
    },
    max_retries: 0,
    retry_timeout: Duration::ZERO,
};

fn host(url: &Url) -> Result<&str, OpenError> {
    url.host_str().ok_or_else(|| OpenError::Config("the URL of the store names no bucket".to_owned()))
}

fn opened(objects: object_store::Result<Arc<dyn ObjectStore>>, url: &Url) -> Result<Opened, OpenError> {
    let wrong = |problem: &str| OpenError::Config(problem.to_owned());
    let prefix = Path::from_url_path(url.path()).map_err(|_| wrong("the path of the store is no prefix"))?;
    // Its message may name keys of the configuration with their values.
    let objects = objects.map_err(|_| wrong("the store's region, endpoint or credentials are incomplete"))?;
    Ok(Opened { objects, prefix, local: None })
}
