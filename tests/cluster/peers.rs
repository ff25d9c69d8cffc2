//! The listener for other nodes: TLS with certificates of one authority, and strangers.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme, crypto};

use crate::common::SOON;
use crate::common::program::Answer;
use crate::nodes::{LONG_LEASE, Nodes, SIM};

/// An authority, and a certificate of it for 127.0.0.1 with its key.
fn authority(place: &Path, name: &str) -> (String, String) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["127.0.0.1".into()]).unwrap();
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    let identity = params.signed_by(&key, &issuer).unwrap().pem() + &key.serialize_pem();
    let write = |file: String, content: &str| {
        let path = place.join(file);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    (write(format!("{name}-ca.pem"), &issuer.pem()), write(format!("{name}.pem"), &identity))
}

/// Trusts every server, to see whom the server trusts.
#[derive(Debug)]
struct Anyone(Arc<crypto::CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// What a client of TLS with this certificate, or none, gets for a request.
async fn ask(address: &str, identity: Option<&str>) -> String {
    let provider = Arc::new(crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone(provider)));
    let config = match identity {
        None => builder.with_no_client_auth(),
        Some(file) => {
            let chain = CertificateDer::pem_file_iter(file).unwrap().map(Result::unwrap).collect();
            builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(file).unwrap()).unwrap()
        }
    };
    let stream = TcpStream::connect(address).await.unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    match connector.connect(ServerName::try_from("127.0.0.1").unwrap(), stream).await {
        Ok(stream) => get(stream).await,
        Err(_) => String::new(),
    }
}

async fn get(mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin) -> String {
    stream.write_all(b"GET /health HTTP/1.1\r\nhost: n\r\nconnection: close\r\n\r\n").await.ok();
    let mut answer = Vec::new();
    timeout(SOON, stream.read_to_end(&mut answer)).await.expect("an end").ok();
    String::from_utf8(answer).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_with_tls_trust_one_authority() {
    let place = TempDir::with_prefix("pilotlight-test-").unwrap();
    let (ca, identity) = authority(place.path(), "own");
    let (_, stranger) = authority(place.path(), "other");
    let config = format!("{SIM}{LONG_LEASE}tls_identity_file = \"{identity}\"\ntls_ca_file = \"{ca}\"\n");
    let Some(cluster) = Nodes::start(2, &config).await else { return };
    let owner = cluster.owner(0, "alice").await;
    let url = format!("{}/v1/messages", cluster.sites()[1 - owner]);
    let question = serde_json::json!({ "model": "sonnet", "max_tokens": 9, "messages": [{ "role": "user", "content": "hello" }] });
    let request = reqwest::Client::new().post(url).header("x-pilotlight-user", "alice").json(&question);
    let answer = Answer::of(request).await;
    assert_eq!(
        (answer.status, answer.headers["x-pilotlight-node"].to_str().unwrap()),
        (200, &*cluster.nodes[owner].name)
    );
    // Who has a certificate of the authority is heard, and still is no node without the secret.
    let listener = &cluster.nodes[owner].listen;
    let known = ask(listener, Some(&identity)).await;
    assert!(known.starts_with("HTTP/1.1 401 ") && known.contains("not_a_node"), "{known}");
    assert_eq!(ask(listener, None).await, "");
    assert_eq!(ask(listener, Some(&stranger)).await, "");
    let clear = get(TcpStream::connect(listener).await.unwrap()).await;
    assert!(!clear.contains("HTTP"), "{clear}");
}
