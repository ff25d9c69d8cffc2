//! Signatures as the Standard Webhooks specification has them: HMAC-SHA256 over id, time and body. Pure, but for the file.

use std::fmt;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;

use crate::support::secret_file;

/// What a secret begins with.
const PREFIX: &str = "whsec_";
/// Bytes of a secret, as the specification has it.
const LENGTHS: std::ops::RangeInclusive<usize> = 24..=64;
/// Maximum secrets of a file: one, and another while it is replaced.
const MAX_SECRETS: usize = 2;
/// Maximum size of a file of secrets.
const MAX_FILE: u64 = 4096;

/// The secrets of an endpoint. A message has a signature of each, so that the receiver can replace its own.
#[derive(Clone)]
pub(super) struct Secrets(Vec<hmac::Key>);

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secrets")
    }
}

impl Secrets {
    /// Reads a file that only its owner may read: a secret per line. The error never has a part of a secret. Blocking.
    pub(super) fn read(path: &Path) -> Result<Self, String> {
        let (content, _) = secret_file::read(path, MAX_FILE).map_err(|error| error.to_string())?;
        Self::parse(&String::from_utf8_lossy(&content))
    }

    fn parse(text: &str) -> Result<Self, String> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let keys = lines.map(|line| {
            let secret = line.strip_prefix(PREFIX).and_then(|secret| STANDARD.decode(secret).ok());
            let secret = secret.filter(|secret| LENGTHS.contains(&secret.len()));
            secret.map(|secret| hmac::Key::new(hmac::HMAC_SHA256, &secret))
        });
        let keys = keys.collect::<Option<Vec<_>>>().filter(|keys| (1..=MAX_SECRETS).contains(&keys.len()));
        keys.map(Self).ok_or_else(|| {
            format!(
                "it must hold one or {MAX_SECRETS} lines, each with {PREFIX} and {} to {} bytes in base64, such as \
                 the output of: echo {PREFIX}$(openssl rand -base64 32)",
                LENGTHS.start(),
                LENGTHS.end()
            )
        })
    }

    /// Value of the header `webhook-signature`.
    pub(super) fn sign(&self, id: &str, timestamp: u64, body: &[u8]) -> String {
        let signatures = self.0.iter().map(|key| {
            let mut context = hmac::Context::with_key(key);
            context.update(format!("{id}.{timestamp}.").as_bytes());
            context.update(body);
            format!("v1,{}", STANDARD.encode(context.sign()))
        });
        signatures.collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the specification's own libraries.
    #[test]
    fn signature_is_that_of_the_specification() {
        let secrets = Secrets::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n").unwrap();
        let body = br#"{"test": 2432232314}"#;
        let signed = secrets.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, body);
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn two_secrets_give_two_signatures() {
        let one = format!("{PREFIX}{}", STANDARD.encode([1; 24]));
        let two = format!("{PREFIX}{}", STANDARD.encode([2; 64]));
        let secrets = Secrets::parse(&format!("# now\n{one}\n\n# before\n {two} \n")).unwrap();
        let signed = secrets.sign("msg_1", 5, b"{}");
        let alone = Secrets::parse(&two).unwrap().sign("msg_1", 5, b"{}");
        assert_eq!(signed.split(' ').collect::<Vec<_>>().len(), 2);
        assert!(signed.ends_with(&alone), "{signed}");
    }

    #[test]
    fn unusable_secrets_are_refused_and_not_repeated() {
        let short = format!("{PREFIX}{}", STANDARD.encode([1; 23]));
        let good = format!("{PREFIX}{}", STANDARD.encode([1; 24]));
        let three = format!("{good}\n{good}\n{good}");
        for text in ["", "# only", "whsec_", "whsec_s3cret!", "s3cret", &short, &three, &format!("{good}\nx")]
        {
            let problem = Secrets::parse(text).unwrap_err();
            assert!(problem.contains("whsec_") && !problem.contains("s3cret"), "{text}: {problem}");
        }
    }
}
