//! The figures of the HTTP server. Registered with the same recorder and under the same prefix as those of the core it
//! serves; an embedding program without the server has none of them.

use std::time::Duration;

use ::metrics::{Counter, Histogram, Recorder};

use super::catalogue::list;
use super::handles::{By, ByBoth, Registrar};
use super::labels::{AuthFailure, Dialect, HttpKind, HttpLimit, Route, StatusClass};

/// The handles of one server.
pub(crate) struct HttpMetrics {
    requests: ByBoth<Route, StatusClass, Counter>,
    turns: By<Dialect, Counter>,
    auth_failures: By<AuthFailure, Counter>,
    limited: By<HttpLimit, Counter>,
    response: By<HttpKind, Histogram>,
    render: Histogram,
}

impl HttpMetrics {
    /// Registers and describes everything with this recorder.
    pub(crate) fn register(recorder: &dyn Recorder, prefix: &str) -> Self {
        let registrar = Registrar::new(recorder, prefix);
        Self {
            requests: registrar.counters_by_both(&list::HTTP_REQUESTS),
            turns: registrar.counters(&list::HTTP_TURNS),
            auth_failures: registrar.counters(&list::AUTH_FAILURES),
            limited: registrar.counters(&list::HTTP_LIMITED),
            response: registrar.histograms(&list::HTTP_RESPONSE),
            render: registrar.histogram(&list::RENDER),
        }
    }

    /// The head of an answer goes out, so long after the request's came.
    pub(crate) fn answered(&self, route: Route, status: StatusClass, took: Duration) {
        self.requests.of(route, status, |requests| requests.increment(1));
        let kind = match route {
            Route::Messages | Route::Keepalive | Route::Chat => HttpKind::Turn,
            _ => HttpKind::Other,
        };
        self.response.of(kind, |responses| responses.record(took));
    }

    /// A turn was asked for.
    pub(crate) fn turn_asked(&self, dialect: Dialect) {
        self.turns.of(dialect, |turns| turns.increment(1));
    }

    /// A caller was not let in.
    pub(crate) fn auth_failed(&self, why: AuthFailure) {
        self.auth_failures.of(why, |failures| failures.increment(1));
    }

    /// A caller has had its share.
    pub(crate) fn limited(&self, what: HttpLimit) {
        self.limited.of(what, |limited| limited.increment(1));
    }

    /// All figures were written down.
    pub(crate) fn rendered(&self, took: Duration) {
        self.render.record(took);
    }
}

impl std::fmt::Debug for HttpMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HttpMetrics")
    }
}
