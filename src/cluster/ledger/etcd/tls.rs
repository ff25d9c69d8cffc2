//! TLS to etcd: an own authority and a client certificate, if configured.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use super::{SettingsError, TlsFiles};

/// Largest file of certificates: a bundle of all public authorities has 200 kB.
const MAX_FILE_BYTES: u64 = 4 << 20;

pub(super) fn config(files: &TlsFiles) -> Result<ClientConfig, SettingsError> {
    let mut roots = RootCertStore::empty();
    match &files.ca {
        Some(path) => {
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|error| wrong(path, &error))?;
            }
        }
        // Single certificates of a host may be unusable; errors are about such or about places that do not exist.
        None => drop(roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder =
        builder.map_err(|error| SettingsError::Tls(error.to_string()))?.with_root_certificates(roots);
    let Some((certificate, key)) = &files.client else { return Ok(builder.with_no_client_auth()) };
    let chain = certificates(certificate)?;
    // The cause may repeat parts of the file.
    let private = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|_| SettingsError::File {
        path: key.clone(),
        problem: "no private key in PEM form".to_owned(),
    })?;
    builder.with_client_auth_cert(chain, private).map_err(|error| wrong(certificate, &error))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, SettingsError> {
    let content = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&content).collect();
    let found = found.map_err(|error| wrong(path, &error))?;
    if found.is_empty() { Err(wrong(path, &"no certificate in PEM form")) } else { Ok(found) }
}

fn read(path: &Path) -> Result<Vec<u8>, SettingsError> {
    let mut content = Vec::new();
    let file = File::open(path).map_err(|error| wrong(path, &error))?;
    let size =
        file.take(MAX_FILE_BYTES + 1).read_to_end(&mut content).map_err(|error| wrong(path, &error))?;
    let fits = u64::try_from(size).is_ok_and(|size| size <= MAX_FILE_BYTES);
    if fits { Ok(content) } else { Err(wrong(path, &"it is too large")) }
}

fn wrong(path: &Path, problem: &dyn std::fmt::Display) -> SettingsError {
    SettingsError::File { path: PathBuf::from(path), problem: problem.to_string() }
}
