//! The real destination of a child's requests.

use std::fmt;
use std::sync::Arc;

use hyper::Uri;
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use hyper::http::uri::{Authority, PathAndQuery, Scheme};
use url::Url;

use super::BrokerError;
use super::oauth::OauthSource;
use super::refusal::Refusal;
use crate::adapter::broker::{CredentialPlan, UpstreamPlan};

const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// A base address, and what authenticates requests to it. `Debug` is redacted.
#[derive(Clone)]
pub(crate) struct Upstream {
    base: Url,
    scheme: Scheme,
    authority: Authority,
    /// Path of the base address without a slash at its end.
    prefix: String,
    credential: Credential,
    headers: HeaderMap,
}

/// What authenticates a request.
#[derive(Clone)]
pub(crate) enum Credential {
    /// A header, with its value.
    Fixed(HeaderName, HeaderValue),
    /// OAuth credentials that are renewed here.
    Oauth(Arc<OauthSource>),
    /// One of the operator's headers.
    Headers,
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Upstream(redacted)")
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credential(redacted)")
    }
}

impl Upstream {
    /// `oauth`: the session's own credentials, for [`CredentialPlan::Oauth`].
    ///
    /// # Errors
    /// The address or a header cannot be sent.
    pub(crate) fn new(plan: UpstreamPlan, oauth: Option<Arc<OauthSource>>) -> Result<Self, BrokerError> {
        let UpstreamPlan { base_url, credential, headers } = plan;
        let wrong = || BrokerError::Upstream;
        let credential = match credential {
            CredentialPlan::ApiKey(key) => Credential::Fixed(API_KEY, secret(&key).ok_or_else(wrong)?),
            CredentialPlan::Bearer(token) => {
                Credential::Fixed(AUTHORIZATION, secret(&format!("Bearer {token}")).ok_or_else(wrong)?)
            }
            CredentialPlan::Oauth => Credential::Oauth(oauth.ok_or_else(wrong)?),
            CredentialPlan::Headers => Credential::Headers,
        };
        let mut own = HeaderMap::new();
        for (name, value) in headers {
            own.append(name.parse::<HeaderName>().map_err(|_| wrong())?, secret(&value).ok_or_else(wrong)?);
        }
        let authority = match base_url.port() {
            Some(port) => format!("{}:{port}", base_url.host_str().unwrap_or_default()),
            None => base_url.host_str().unwrap_or_default().to_owned(),
        };
        Ok(Self {
            scheme: base_url.scheme().parse().map_err(|_| wrong())?,
            authority: authority.parse().map_err(|_| wrong())?,
            prefix: base_url.path().trim_end_matches('/').to_owned(),
            base: base_url,
            credential,
            headers: own,
        })
    }

    /// The address of a request whose path was checked.
    pub(super) fn address(&self, path: &PathAndQuery) -> Option<Uri> {
        let path = match self.prefix.as_str() {
            "" => path.clone(),
            prefix => format!("{prefix}{path}").parse().ok()?,
        };
        let address = Uri::builder().scheme(self.scheme.clone()).authority(self.authority.clone());
        address.path_and_query(path).build().ok()
    }

    /// Replaces the headers of the child by those of the operator, and adds the credential. Returns the OAuth token.
    ///
    /// # Errors
    /// There is no valid credential.
    pub(super) async fn authenticate(&self, headers: &mut HeaderMap) -> Result<Option<HeaderValue>, Refusal> {
        let mut token = None;
        match &self.credential {
            Credential::Fixed(name, value) => drop(headers.insert(name, value.clone())),
            Credential::Oauth(source) => {
                let bearer = source.bearer().await?;
                headers.insert(AUTHORIZATION, bearer.clone());
                token = Some(bearer);
            }
            Credential::Headers => {}
        }
        for name in self.headers.keys() {
            headers.remove(name);
        }
        headers.extend(self.headers.clone());
        Ok(token)
    }

    /// The API does not accept this OAuth token.
    pub(super) fn rejected(&self, token: HeaderValue) {
        if let Credential::Oauth(source) = &self.credential {
            source.rejected(token);
        }
    }

    /// The path, for the child, of a redirection; `None` if it leads elsewhere.
    pub(super) fn redirection(&self, request: &PathAndQuery, location: &HeaderValue) -> Option<HeaderValue> {
        let from = Url::parse(&self.address(request)?.to_string()).ok()?;
        let to = from.join(location.to_str().ok()?).ok()?;
        let path = to.path().strip_prefix(self.prefix.as_str()).filter(|path| path.starts_with('/'))?;
        if to.origin() != self.base.origin() || !to.username().is_empty() || to.password().is_some() {
            return None;
        }
        let query = to.query().map(|query| format!("?{query}")).unwrap_or_default();
        HeaderValue::from_str(&format!("{path}{query}")).ok()
    }
}

/// A header value that is never shown.
fn secret(value: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(value.trim()).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstream(base: &str, credential: CredentialPlan, headers: &[(&str, &str)]) -> Upstream {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let plan = UpstreamPlan { base_url: base.parse().unwrap(), credential, headers };
        Upstream::new(plan, None).unwrap()
    }

    fn key() -> CredentialPlan {
        CredentialPlan::ApiKey("s3cret".into())
    }

    #[test]
    fn address_is_below_the_base() {
        let path: PathAndQuery = "/v1/messages?beta=true".parse().unwrap();
        for (base, expected) in [
            ("https://api.example", "https://api.example/v1/messages?beta=true"),
            ("https://api.example/", "https://api.example/v1/messages?beta=true"),
            ("https://api.example:8443/a/b/", "https://api.example:8443/a/b/v1/messages?beta=true"),
            ("http://[::1]:8/a", "http://[::1]:8/a/v1/messages?beta=true"),
        ] {
            assert_eq!(upstream(base, key(), &[]).address(&path).unwrap().to_string(), expected);
        }
    }

    #[tokio::test]
    async fn credential_goes_in_by_kind() {
        let sent = async |credential, headers: &[(&str, &str)]| {
            let mut sent = HeaderMap::new();
            sent.insert("x-gateway", HeaderValue::from_static("child's"));
            upstream("https://a.example", credential, headers).authenticate(&mut sent).await.unwrap();
            assert!(!format!("{sent:?}").contains("s3cret"), "{sent:?}");
            sent
        };
        assert_eq!(sent(key(), &[]).await.get("x-api-key").unwrap(), "s3cret");
        let bearer = sent(CredentialPlan::Bearer("s3cret".into()), &[]).await;
        assert_eq!(bearer.get("authorization").unwrap(), "Bearer s3cret");
        assert!(!bearer.contains_key("x-api-key"));
        let both = sent(key(), &[("x-gateway", "s3cret-a"), ("x-api-key", "s3cret-b")]).await;
        assert_eq!(both.get_all("x-gateway").iter().collect::<Vec<_>>(), ["s3cret-a"]);
        assert_eq!(both.get("x-api-key").unwrap(), "s3cret-b");
        let plan = UpstreamPlan {
            base_url: "https://a.example".parse().unwrap(),
            credential: CredentialPlan::ApiKey("a\nb".into()),
            headers: Vec::new(),
        };
        assert!(Upstream::new(plan, None).is_err());
    }

    #[test]
    fn redirection_stays_at_its_origin() {
        let upstream = upstream("https://api.example/base", key(), &[]);
        let request: PathAndQuery = "/v1/messages".parse().unwrap();
        let to = |location: &str| {
            let location = HeaderValue::from_str(location).unwrap();
            upstream.redirection(&request, &location).map(|to| to.to_str().unwrap().to_owned())
        };
        assert_eq!(to("https://api.example/base/v1/models?a=b").as_deref(), Some("/v1/models?a=b"));
        assert_eq!(to("/base/v1/models").as_deref(), Some("/v1/models"));
        assert_eq!(to("models").as_deref(), Some("/v1/models"));
        for elsewhere in [
            "http://169.254.169.254/latest",
            "https://evil.example/base/v1/models",
            "https://api.example:444/base/v1/models",
            "http://api.example/base/v1/models",
            "https://user@api.example/base/v1/models",
            "//evil.example/base/",
            "/other",
            "/basement/v1",
            "file:///etc/passwd",
            "",
        ] {
            assert!(
                to(elsewhere).is_none_or(|to| elsewhere.is_empty() && to == "/v1/messages"),
                "{elsewhere}"
            );
        }
    }
}
