//! The order in which endpoints are asked.

use std::time::Duration;

use hyper::Uri;
use hyper::http::uri::Authority;
use tokio::sync::watch;

use super::SettingsError;
use super::status::Failure;
use crate::cluster::ledger::error::LedgerError;

/// Maximum number of endpoints: etcd clusters have 3, 5 or 7 members.
pub(super) const MAX_ENDPOINTS: usize = 16;
/// Pause after all endpoints have failed; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const MAX_PAUSE: Duration = Duration::from_millis(500);

pub(super) struct Endpoints {
    list: Vec<(&'static str, Authority)>,
    preferred: watch::Sender<usize>,
}

impl Endpoints {
    pub(super) fn new(addresses: &[String]) -> Result<Self, SettingsError> {
        if addresses.is_empty() || addresses.len() > MAX_ENDPOINTS {
            return Err(SettingsError::Count(addresses.len()));
        }
        let parse = |(at, address): (usize, &String)| parse(address).ok_or(SettingsError::Endpoint(at + 1));
        let list = addresses.iter().enumerate().map(parse).collect::<Result<_, _>>()?;
        Ok(Self { list, preferred: watch::Sender::new(0) })
    }

    /// The endpoint to ask first.
    pub(super) fn preferred(&self) -> usize {
        *self.preferred.borrow()
    }

    /// For streams, which notice the failure of their endpoint later than requests do.
    pub(super) fn follow(&self) -> watch::Receiver<usize> {
        self.preferred.subscribe()
    }

    /// The next one is preferred, unless another request has changed that already.
    pub(super) fn failed(&self, at: usize) {
        let next = (at + 1) % self.list.len();
        self.preferred.send_if_modified(|preferred| {
            let is_first = *preferred == at && next != at;
            if is_first {
                *preferred = next;
            }
            is_first
        });
    }

    pub(super) fn uri(&self, at: usize, path: &'static str) -> Result<Uri, Failure> {
        let uri = self.list.get(at).map(|(scheme, authority)| {
            Uri::builder().scheme(*scheme).authority(authority.clone()).path_and_query(path).build()
        });
        match uri {
            Some(Ok(uri)) => Ok(uri),
            _ => Err(Failure::Final(LedgerError::Unavailable("endpoint"))),
        }
    }

    /// The pause before the next attempt: none until each endpoint was tried. With jitter, or all nodes would come at once.
    pub(super) fn pause(&self, tries: usize) -> Duration {
        if !tries.is_multiple_of(self.list.len()) {
            return Duration::ZERO;
        }
        let round = u32::try_from(tries / self.list.len()).unwrap_or(u32::MAX).saturating_sub(1).min(8);
        let pause = FIRST_PAUSE.saturating_mul(1 << round).min(MAX_PAUSE);
        pause.mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}

fn parse(address: &str) -> Option<(&'static str, Authority)> {
    let uri: Uri = address.trim_end_matches('/').parse().ok()?;
    let scheme = match uri.scheme_str()? {
        "http" => "http",
        "https" => "https",
        _ => return None,
    };
    let authority = uri.authority()?.clone();
    let is_plain = uri.path() == "/" && uri.query().is_none() && !authority.as_str().contains('@');
    (is_plain && authority.port_u16().is_some()).then_some((scheme, authority))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoint_is_scheme_host_and_port() {
        for good in ["http://a:1", "https://10.0.0.1:2379/", "http://[::1]:2379"] {
            assert!(Endpoints::new(&[good.to_owned()]).is_ok(), "{good}");
        }
        for bad in ["", "a:1", "ftp://a:1", "http://a", "http://u:secret@a:1", "http://a:1/x", "http://a:1?x"]
        {
            let error = Endpoints::new(&["http://a:1".to_owned(), bad.to_owned()]).map(|_| ()).unwrap_err();
            assert!(error.to_string().starts_with("endpoint 2 is not"), "{bad}: {error}");
            assert!(!error.to_string().contains("secret"));
        }
        assert!(Endpoints::new(&[]).is_err());
    }

    #[test]
    fn failed_endpoint_is_asked_last() {
        let list: Vec<_> = (1..=3).map(|port| format!("http://a:{port}")).collect();
        let endpoints = Endpoints::new(&list).unwrap();
        assert_eq!(endpoints.preferred(), 0);
        endpoints.failed(0);
        // A second request that failed at the same one changes nothing.
        endpoints.failed(0);
        assert_eq!(endpoints.preferred(), 1);
        endpoints.failed(1);
        endpoints.failed(2);
        assert_eq!(endpoints.preferred(), 0);
    }

    #[test]
    fn pause_comes_after_a_round_and_is_bounded() {
        let list: Vec<_> = (1..=3).map(|port| format!("http://a:{port}")).collect();
        let endpoints = Endpoints::new(&list).unwrap();
        for tries in 1..2000 {
            let pause = endpoints.pause(tries);
            if tries % 3 == 0 {
                assert!(pause >= FIRST_PAUSE / 2 && pause <= MAX_PAUSE, "{tries}: {pause:?}");
            } else {
                assert_eq!(pause, Duration::ZERO);
            }
        }
    }
}
