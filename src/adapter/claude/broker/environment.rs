//! A child's environment, divided into the destination of its requests and the rest.

use std::ffi::OsString;

use url::Url;

use crate::adapter::broker::{Brokered, CredentialPlan, NotBrokered, UpstreamPlan};

/// The provider's own address.
const BASE_URL: &str = "https://api.anthropic.com";
const BASE: &str = "ANTHROPIC_BASE_URL";
const HEADERS: &str = "ANTHROPIC_CUSTOM_HEADERS";
const API_KEY: &str = "ANTHROPIC_API_KEY";
const AUTH_TOKEN: &str = "ANTHROPIC_AUTH_TOKEN";
const OAUTH_TOKEN: &str = "CLAUDE_CODE_OAUTH_TOKEN";

/// Switches to the API of another provider.
const PROVIDERS: [(&str, &str); 7] = [
    ("CLAUDE_CODE_USE_BEDROCK", "Amazon Bedrock"),
    ("CLAUDE_CODE_USE_MANTLE", "Amazon Bedrock"),
    ("CLAUDE_CODE_USE_ANTHROPIC_AWS", "the provider's platform on AWS"),
    ("CLAUDE_CODE_USE_VERTEX", "Google Vertex AI"),
    ("CLAUDE_CODE_USE_ANTHROPIC_GOOGLE_CLOUD", "the provider's platform on Google Cloud"),
    ("CLAUDE_CODE_USE_FOUNDRY", "Microsoft Foundry"),
    ("CLAUDE_CODE_USE_GATEWAY", "a gateway with tokens of its own"),
];

/// Credentials in other forms, and other ways to the API.
const UNUSABLE: [&str; 24] = [
    "ANTHROPIC_AWS_API_KEY",
    "ANTHROPIC_BEDROCK_MANTLE_API_KEY",
    "ANTHROPIC_FEDERATION_RULE_ID",
    "ANTHROPIC_FOUNDRY_API_KEY",
    "ANTHROPIC_FOUNDRY_AUTH_TOKEN",
    "ANTHROPIC_IDENTITY_TOKEN",
    "ANTHROPIC_IDENTITY_TOKEN_FILE",
    "ANTHROPIC_PROFILE",
    "ANTHROPIC_UNIX_SOCKET",
    "AWS_BEARER_TOKEN_BEDROCK",
    "CLAUDE_CODE_API_KEY_FILE_DESCRIPTOR",
    "CLAUDE_CODE_CLIENT_CERT",
    "CLAUDE_CODE_CLIENT_KEY",
    "CLAUDE_CODE_CLIENT_KEY_PASSPHRASE",
    "CLAUDE_CODE_GATEWAY_TOKEN",
    "CLAUDE_CODE_GATEWAY_TOKEN_FILE_DESCRIPTOR",
    "CLAUDE_CODE_HOST_AUTH_ENV_VAR",
    "CLAUDE_CODE_HOST_CREDS_FILE",
    "CLAUDE_CODE_OAUTH_REFRESH_TOKEN",
    "CLAUDE_CODE_OAUTH_TOKEN_FILE_DESCRIPTOR",
    "CLAUDE_CODE_PROVIDER_MANAGED_BY_HOST",
    "CLAUDE_CODE_RUNNER_MODEL_SOCKET",
    "CLAUDE_CODE_SESSION_ACCESS_TOKEN",
    "CLAUDE_SESSION_INGRESS_TOKEN_FILE",
];

/// Headers of the operator that stay with the child: the CLI joins them with its own. All others may be secrets.
const CHILDS_HEADERS: [&str; 5] = ["accept", "anthropic-beta", "anthropic-version", "user-agent", "x-app"];
/// Headers about the connection, which the broker sets itself.
const CONNECTION_HEADERS: [&str; 13] = [
    "accept-encoding",
    "connection",
    "content-encoding",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Separates the credentials from the environment of a child. `own_credentials`: the session has OAuth credentials of
/// its own, which replace those of the environment.
///
/// # Errors
/// [`NotBrokered`] if the environment selects an API that cannot be reached through the broker.
pub(crate) fn brokered(
    given: Vec<(OsString, OsString)>,
    own_credentials: bool,
) -> Result<Brokered, NotBrokered> {
    let mut env: Vec<(OsString, OsString)> = Vec::with_capacity(given.len());
    for (name, value) in given {
        // As in an environment, the last one counts.
        env.retain(|(other, _)| *other != name);
        env.push((name, value));
    }
    let mut take = |name: &str| {
        let at = env.iter().position(|(other, _)| other == name)?;
        let (_, value) = env.swap_remove(at);
        (!value.is_empty()).then(|| value.to_string_lossy().into_owned())
    };
    for (variable, provider) in PROVIDERS {
        if take(variable).is_some_and(|value| is_on(&value)) {
            return Err(NotBrokered::Provider { variable, provider });
        }
    }
    for variable in UNUSABLE {
        if take(variable).is_some() {
            return Err(NotBrokered::Variable { variable });
        }
    }
    let base_url = base_url(take(BASE).as_deref())?;
    let (kept, headers) = headers(&take(HEADERS).unwrap_or_default())?;
    let (token, key, oauth) = (take(AUTH_TOKEN), take(API_KEY), take(OAUTH_TOKEN));
    // In the order of the CLI. The token of the child has the form that the CLI expects, because its requests depend on it.
    let found = if own_credentials {
        Some((CredentialPlan::Oauth, OAUTH_TOKEN))
    } else if let Some(token) = token {
        Some((CredentialPlan::Bearer(token), AUTH_TOKEN))
    } else if let Some(key) = key {
        Some((CredentialPlan::ApiKey(key), API_KEY))
    } else if let Some(token) = oauth {
        Some((CredentialPlan::Bearer(token), OAUTH_TOKEN))
    } else {
        let is_credential = |(name, _): &(String, String)| is_credential(name);
        headers.iter().any(is_credential).then_some((CredentialPlan::Headers, API_KEY))
    };
    if !kept.is_empty() {
        env.push((HEADERS.into(), kept.into()));
    }
    let headers = if own_credentials {
        headers.into_iter().filter(|(name, _)| !is_credential(name)).collect()
    } else {
        headers
    };
    let token_variable = found.as_ref().map_or(API_KEY, |(_, variable)| variable);
    let upstream = found.map(|(credential, _)| UpstreamPlan { base_url, credential, headers });
    Ok(Brokered { env, upstream, base_variable: BASE, token_variable })
}

/// Whether a switch is on. The CLI takes unknown words for off; here they are on, to be safe.
fn is_on(value: &str) -> bool {
    !["0", "false", "no", "off"].iter().any(|off| value.trim().eq_ignore_ascii_case(off))
}

fn is_credential(header: &str) -> bool {
    header == "authorization" || header == "x-api-key"
}

fn base_url(given: Option<&str>) -> Result<Url, NotBrokered> {
    let wrong = || NotBrokered::BaseUrl { variable: BASE };
    let url = Url::parse(given.unwrap_or(BASE_URL).trim()).map_err(|_| wrong())?;
    let is_plain = url.username().is_empty()
        && url.password().is_none()
        && url.query().is_none()
        && url.fragment().is_none();
    let is_http = matches!(url.scheme(), "http" | "https") && url.has_host();
    if is_plain && is_http { Ok(url) } else { Err(wrong()) }
}

/// The lines that stay with the child, and the headers of the broker by lower-case name.
fn headers(text: &str) -> Result<(String, Vec<(String, String)>), NotBrokered> {
    let wrong = || NotBrokered::Header { variable: HEADERS };
    let (mut kept, mut taken) = (Vec::new(), Vec::new());
    for line in text.split('\n').map(str::trim).filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':').ok_or_else(wrong)?;
        let (name, value) = (name.trim().to_ascii_lowercase(), value.trim());
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        let is_value = |byte: u8| byte == b'\t' || (b' '..=b'~').contains(&byte);
        if name.is_empty() || !name.bytes().all(is_name) || !value.bytes().all(is_value) {
            return Err(wrong());
        }
        if CONNECTION_HEADERS.contains(&name.as_str()) {
            return Err(wrong());
        }
        if CHILDS_HEADERS.contains(&name.as_str()) {
            kept.push(line);
        } else {
            taken.push((name, value.to_owned()));
        }
    }
    Ok((kept.join("\n"), taken))
}

#[cfg(test)]
mod tests {
    use super::super::super::credentials::INSTEAD;
    use super::*;
    use crate::adapter::broker::ChildProxy;

    fn of(pairs: &[(&str, &str)], own: bool) -> Result<Brokered, NotBrokered> {
        brokered(pairs.iter().map(|(name, value)| (name.into(), value.into())).collect(), own)
    }

    fn upstream(pairs: &[(&str, &str)], own: bool) -> UpstreamPlan {
        of(pairs, own).unwrap().upstream.unwrap()
    }

    /// The environment that the child gets, sorted.
    fn child(pairs: &[(&str, &str)], own: bool, proxy: ChildProxy) -> Vec<String> {
        let env = of(pairs, own).unwrap().environment("127.0.0.1:9", "TOKEN", proxy);
        let line = |(name, value): (OsString, OsString)| {
            format!("{}={}", name.into_string().unwrap(), value.into_string().unwrap())
        };
        let mut lines: Vec<_> = env.into_iter().map(line).collect();
        lines.sort();
        lines
    }

    #[test]
    fn each_credential_keeps_its_kind() {
        let base = "ANTHROPIC_BASE_URL=http://127.0.0.1:9";
        for (name, expected) in [
            (API_KEY, CredentialPlan::ApiKey("real".into())),
            (AUTH_TOKEN, CredentialPlan::Bearer("real".into())),
            (OAUTH_TOKEN, CredentialPlan::Bearer("real".into())),
        ] {
            let given = [(name, "real"), ("PATH", "/bin")];
            assert!(upstream(&given, false).credential == expected, "{name}");
            let mut lines = vec![base.to_owned(), format!("{name}=TOKEN"), "PATH=/bin".to_owned()];
            lines.sort();
            assert_eq!(child(&given, false, ChildProxy::None), lines);
        }
        let both = [(API_KEY, "key"), (AUTH_TOKEN, "token"), (OAUTH_TOKEN, "oauth")];
        assert!(upstream(&both, false).credential == CredentialPlan::Bearer("token".into()));
        assert_eq!(child(&both, false, ChildProxy::None), ["ANTHROPIC_AUTH_TOKEN=TOKEN", base]);
        assert!(upstream(&both, true).credential == CredentialPlan::Oauth);
        assert_eq!(child(&both, true, ChildProxy::None), [base, "CLAUDE_CODE_OAUTH_TOKEN=TOKEN"]);
    }

    #[test]
    fn last_of_equal_variables_counts() {
        let given =
            [(API_KEY, "one"), (API_KEY, "two"), (BASE, "http://a.example"), (BASE, "http://b.example/x")];
        let upstream = upstream(&given, false);
        assert!(upstream.credential == CredentialPlan::ApiKey("two".into()));
        assert_eq!(upstream.base_url.as_str(), "http://b.example/x");
        let shown = format!("{upstream:?} {:?}", of(&given, false).unwrap());
        assert!(!shown.contains("two") && !shown.contains("b.example"), "{shown}");
    }

    #[test]
    fn without_credential_there_is_no_upstream() {
        let given = [("PATH", "/bin"), (API_KEY, ""), (BASE, "https://gateway.example")];
        assert_eq!(of(&given, false).unwrap().upstream, None);
        assert_eq!(child(&given, false, ChildProxy::None), ["PATH=/bin"]);
    }

    #[test]
    fn every_other_credential_is_refused() {
        for name in INSTEAD {
            let given = [(API_KEY, "s3cret"), (name, "s3cret")];
            match of(&given, false) {
                Ok(_) => assert!([API_KEY, AUTH_TOKEN, OAUTH_TOKEN].contains(&name), "{name}"),
                Err(refused) => {
                    let text = refused.to_string();
                    assert!(text.contains(name) && text.contains("broker.credentials"), "{text}");
                    assert!(!text.contains("s3cret"), "{text}");
                }
            }
        }
        for (name, provider) in PROVIDERS {
            for off in ["", "0", "false", "OFF", " no "] {
                assert_eq!(child(&[(name, off)], false, ChildProxy::None), [""; 0], "{name}={off}");
            }
            assert_eq!(
                of(&[(name, "1")], false).unwrap_err(),
                NotBrokered::Provider { variable: name, provider }
            );
        }
        for name in ["ANTHROPIC_UNIX_SOCKET", "CLAUDE_CODE_CLIENT_KEY", "CLAUDE_CODE_HOST_CREDS_FILE"] {
            assert_eq!(of(&[(name, "/x")], true).unwrap_err(), NotBrokered::Variable { variable: name });
        }
    }

    #[test]
    fn base_address_is_checked() {
        let base = |url: &str| of(&[(API_KEY, "k"), (BASE, url)], false);
        assert_eq!(upstream(&[(API_KEY, "k")], false).base_url.as_str(), "https://api.anthropic.com/");
        for good in ["https://gateway.example/anthropic", "http://127.0.0.1:4000", " https://g.example/ "] {
            assert!(base(good).is_ok(), "{good}");
        }
        for bad in [
            "gateway",
            "file:///etc",
            "https://u:p@g.example",
            "https://g.example/?a=b",
            "https://g.example/#a",
        ] {
            assert_eq!(base(bad).unwrap_err(), NotBrokered::BaseUrl { variable: BASE }, "{bad}");
        }
    }

    #[test]
    fn custom_headers_move_to_the_broker() {
        let text = "X-Gateway-Key: s3cret\r\n\nanthropic-beta: a\nAuthorization: Bearer x\nX-Api-Key: y";
        let given = [(API_KEY, "k"), (HEADERS, text)];
        let taken = [("x-gateway-key", "s3cret"), ("authorization", "Bearer x"), ("x-api-key", "y")];
        let taken = taken.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(upstream(&given, false).headers, taken);
        assert_eq!(upstream(&given, true).headers, taken[..1]);
        let lines = child(&given, false, ChildProxy::None);
        assert!(lines.contains(&"ANTHROPIC_CUSTOM_HEADERS=anthropic-beta: a".to_owned()), "{lines:?}");
        // A header alone can be the credential.
        let only = [(HEADERS, "authorization: Bearer x")];
        assert!(upstream(&only, false).credential == CredentialPlan::Headers);
        assert_eq!(of(&[(HEADERS, "x-team: a")], false).unwrap().upstream, None);
        for bad in [
            "none",
            ": x",
            "a b: c",
            "host: x",
            "Content-Length: 3",
            "Transfer-Encoding: chunked",
            "a: \u{1}",
        ] {
            let refused = of(&[(API_KEY, "k"), (HEADERS, bad)], false).unwrap_err();
            assert_eq!(refused, NotBrokered::Header { variable: HEADERS }, "{bad}");
        }
    }

    #[test]
    fn proxy_variables_follow_the_egress() {
        let given =
            [("HTTPS_PROXY", "http://u:p@corp:1"), ("no_proxy", "corp"), ("ALL_PROXY", "socks5://corp")];
        assert_eq!(child(&given, false, ChildProxy::None), [""; 0]);
        let through = "http://pilotlight:TOKEN@127.0.0.1:9";
        assert_eq!(
            child(&given, false, ChildProxy::Broker),
            [
                format!("HTTPS_PROXY={through}"),
                format!("HTTP_PROXY={through}"),
                "NO_PROXY=127.0.0.1,localhost,::1".to_owned(),
                format!("http_proxy={through}"),
                format!("https_proxy={through}"),
                "no_proxy=127.0.0.1,localhost,::1".to_owned(),
            ]
        );
        let own = child(&given, false, ChildProxy::Environment);
        assert!(own.contains(&"HTTPS_PROXY=http://u:p@corp:1".to_owned()));
        assert!(own.contains(&"no_proxy=corp,127.0.0.1,localhost,::1".to_owned()));
    }
}
