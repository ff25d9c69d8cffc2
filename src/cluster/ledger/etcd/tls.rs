//! TLS to etcd: an own authority and a client certificate, if configured.

use rustls::{ClientConfig, RootCertStore};

use super::TlsFiles;
use crate::support::tls::{self, Identity, TlsError};

pub(super) fn config(files: &TlsFiles) -> Result<ClientConfig, TlsError> {
    let roots = match &files.ca {
        // In the place of those of the host: whom etcd's certificates come from is known.
        Some(path) => {
            let mut roots = RootCertStore::empty();
            tls::trust(&mut roots, path)?;
            roots
        }
        None => tls::host_roots(),
    };
    match &files.client {
        Some(identity) => Identity::read(identity)?.client(roots),
        None => Ok(tls::client(roots)?.with_no_client_auth()),
    }
}
