//! TLS between nodes: each shows a certificate, and trusts those of one authority alone, in both directions.

use std::path::Path;
use std::sync::Arc;

use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsAcceptor;

use crate::support::tls::{self, Identity, TlsError};

/// What both directions need.
pub(crate) struct PeerTls {
    client: ClientConfig,
    acceptor: Option<TlsAcceptor>,
}

impl PeerTls {
    /// Reads the files: certificate and key of this node, and the authorities. Without them there is no TLS. Blocking.
    pub(super) fn open(files: Option<(&Path, &Path)>) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        let Some((identity, authorities)) = files else {
            // It trusts nobody, and meets nobody.
            return Ok(Self { client: tls::client(roots)?.with_no_client_auth(), acceptor: None });
        };
        tls::trust(&mut roots, authorities)?;
        let identity = Identity::read(identity)?;
        let server = identity.clone().server(roots.clone())?;
        let acceptor = Some(TlsAcceptor::from(Arc::new(server)));
        Ok(Self { client: identity.client(roots)?, acceptor })
    }

    /// For the listener of this node.
    pub(crate) fn acceptor(&self) -> Option<TlsAcceptor> {
        self.acceptor.clone()
    }

    /// How other nodes are addressed.
    pub(super) fn scheme(&self) -> &'static str {
        if self.acceptor.is_some() { "https" } else { "http" }
    }

    /// Connects to other nodes by TLS where their address says so.
    pub(super) fn connector(&self, mut tcp: HttpConnector) -> HttpsConnector<HttpConnector> {
        tcp.enforce_http(false);
        HttpsConnectorBuilder::new()
            .with_tls_config(self.client.clone())
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp)
    }
}
