//! TLS of this program's clients, and of the listener for other nodes: whom they trust, and what files of certificates and keys
//! must be like. Blocking.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WantsClientCert;
use rustls::pki_types::CertificateDer;
#[cfg(feature = "cluster")]
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
#[cfg(feature = "cluster")]
use rustls::server::{ServerConfig, WebPkiClientVerifier};
use rustls::{ClientConfig, ConfigBuilder, RootCertStore};

use super::secret_file::{self, InsecureFile};

/// Largest file: a bundle of all public authorities has 200 kB.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    #[error("cannot use {}: {problem}", .path.display())]
    File { path: PathBuf, problem: String },
    #[error(transparent)]
    Library(#[from] rustls::Error),
}

/// The authorities of the host, or a copy of the public ones if it has none.
pub(crate) fn host_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    // Single certificates of a host may be unusable; errors are about such or about places that do not exist.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        tracing::debug!("the host has no certificate authorities; the built-in copy is used");
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    roots
}

/// Trusts the certificates of a file. Only its owner may write it: a certificate in it opens all traffic.
pub(crate) fn trust(roots: &mut RootCertStore, path: &Path) -> Result<(), TlsError> {
    for certificate in certificates(path, secret_file::read_public(path, MAX_FILE_BYTES))? {
        roots.add(certificate).map_err(|error| wrong(path, error))?;
    }
    Ok(())
}

/// The certificates of a file that was read; at least one.
fn certificates(
    path: &Path,
    content: Result<Vec<u8>, InsecureFile>,
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let content = content.map_err(|error| wrong(path, error))?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&content).collect();
    let found = found.map_err(|error| wrong(path, error))?;
    if found.is_empty() { Err(wrong(path, "it holds no certificate in PEM form")) } else { Ok(found) }
}

/// A client that trusts these authorities.
pub(crate) fn client(roots: RootCertStore) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(builder.with_root_certificates(roots))
}

/// A certificate with those that lead to its authority, and its key.
#[cfg(feature = "cluster")]
pub(crate) struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

#[cfg(feature = "cluster")]
impl Identity {
    /// Reads one from a file with both. Only its owner may read it.
    pub(crate) fn read(path: &Path) -> Result<Self, TlsError> {
        let (content, _) = secret_file::read(path, MAX_FILE_BYTES).map_err(|error| wrong(path, error))?;
        // The cause may repeat parts of the file.
        let key = PrivateKeyDer::from_pem_slice(&content)
            .map_err(|_| wrong(path, "it holds no private key in PEM form"))?;
        Ok(Self { chain: certificates(path, Ok(content))?, key })
    }

    /// A client that shows it.
    pub(crate) fn client(self, roots: RootCertStore) -> Result<ClientConfig, TlsError> {
        Ok(client(roots)?.with_client_auth_cert(self.chain, self.key)?)
    }

    /// A server that shows it, for clients with certificates of these authorities alone.
    pub(crate) fn server(self, clients: RootCertStore) -> Result<ServerConfig, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(clients), provider.clone())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        Ok(builder.with_client_cert_verifier(clients).with_single_cert(self.chain, self.key)?)
    }
}

#[cfg(feature = "cluster")]
impl Clone for Identity {
    fn clone(&self) -> Self {
        Self { chain: self.chain.clone(), key: self.key.clone_key() }
    }
}

fn wrong(path: &Path, problem: impl std::fmt::Display) -> TlsError {
    TlsError::File { path: path.to_owned(), problem: problem.to_string() }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn file_without_certificates_is_refused() {
        let data = tempfile::tempdir().unwrap();
        let file = data.path().join("ca.pem");
        assert!(client(host_roots()).is_ok());
        for content in ["", "nonsense", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            fs::write(&file, content).unwrap();
            let error = trust(&mut RootCertStore::empty(), &file).unwrap_err().to_string();
            assert!(error.contains("ca.pem"), "{error}");
        }
        assert!(trust(&mut RootCertStore::empty(), &data.path().join("none")).is_err());
    }

    #[cfg(feature = "cluster")]
    #[test]
    fn private_key_that_others_may_read_is_refused() {
        let data = tempfile::tempdir().unwrap();
        let key = rcgen::generate_simple_self_signed(["node".to_owned()]).unwrap();
        let file = data.path().join("identity.pem");
        fs::write(&file, key.cert.pem() + &key.signing_key.serialize_pem()).unwrap();
        let identified = |mode| {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            Identity::read(&file).map(drop).map_err(|error| error.to_string())
        };
        assert_eq!(identified(0o600), Ok(()));
        let refused = identified(0o644).unwrap_err();
        assert!(refused.contains("0644") && !refused.contains("PRIVATE"), "{refused}");
    }
}
